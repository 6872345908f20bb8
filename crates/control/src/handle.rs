//! What the API sees of the control plane: the newest snapshot, the last observation, and commands.

use crate::clock::Clock;
use crate::crash::Point;
use crate::reconcile::Shared;
use futures_util::future::FutureExt;
use kiln_model::{Answered, Boot, Digest, EnvRef, Epoch, Event, Mutation, Revision, RolloutId, Snapshot};
use kiln_plan::command::Decision;
use kiln_plan::explain::{Reason, explain};
use kiln_plan::{Command, Observed, Outcome, Refusal, Request, decide};
use kiln_store::{Dump, DumpError, Store, StoreError};
use std::sync::Arc;
use tokio::sync::{broadcast, watch};

/// Commands that may come between the load and the commit of another before it gives up.
const CONFLICTS_MAX: u32 = 50;

/// A line about long work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Of which environment, if of one.
    pub env: Option<EnvRef>,
    /// Of which rollout, if of one.
    pub rollout: Option<RolloutId>,
    /// What is being done.
    pub text: String,
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// It is not possible; nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The key was used for something else.
    #[error("the idempotency key `{key}` was used for another request")]
    KeyReused {
        /// Which.
        key: String,
    },
    /// The store failed.
    #[error("the command could not be recorded")]
    Store(#[source] StoreError),
}

/// The name that a client gave to a request, so that it may ask again when the answer was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Made up by the client.
    pub key: String,
    /// Of who asks and what is asked for.
    pub request: Digest,
}

/// A cheap handle of a running control plane.
pub struct Handle {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) epoch: Epoch,
    pub(crate) progress: broadcast::Sender<Progress>,
}

impl Clone for Handle {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            clock: self.clock.clone(),
            shared: self.shared.clone(),
            epoch: self.epoch,
            progress: self.progress.clone(),
        }
    }
}

impl Handle {
    /// A handle over the parts of a control plane.
    pub fn new(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        shared: Arc<Shared>,
        epoch: Epoch,
        progress: broadcast::Sender<Progress>,
    ) -> Self {
        Self { store, clock, shared, epoch, progress }
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> Result<Arc<Snapshot>, StoreError> {
        self.store.load()
    }

    /// The last observation.
    pub fn observed(&self) -> Arc<Observed> {
        self.shared.observed()
    }

    /// The store, for the ledger and the history.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Changes on every commit.
    pub fn revision(&self) -> watch::Receiver<Revision> {
        self.shared.revision.subscribe()
    }

    /// Lines about long work, as it goes on.
    pub fn progress(&self) -> broadcast::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Why things are as they are.
    pub fn explain(&self, env: Option<&EnvRef>) -> Result<Vec<Reason>, StoreError> {
        Ok(explain(&*self.snapshot()?, &self.observed(), env))
    }

    /// A backup of the state as it is now. Who took it is in the ledger, and in the backup.
    pub fn backup(&self, actor: &str) -> Result<Dump, DumpError> {
        let detail = format!("revision {}", self.store.load()?.revision.next());
        self.record(actor, "backup", "the whole server".into(), detail)?;
        Dump::take(&*self.store, self.clock.wall())
    }

    /// Asks the loop to end. Edge and instances go on.
    pub fn stop(&self) {
        self.shared.stop.send_replace(true);
        self.shared.wake.notify_one();
    }

    /// Becomes true when the loop is asked to end.
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.shared.stop.subscribe()
    }

    /// The time since boot, as deadlines count it.
    pub fn now(&self) -> Boot {
        self.clock.boot()
    }

    /// What a command would lead to. Nothing is recorded.
    pub fn consider(&self, actor: &str, command: Command) -> Result<Decision, SubmitError> {
        let snapshot = self.store.load().map_err(SubmitError::Store)?;
        let (at, now) = (self.clock.wall(), self.clock.boot());
        Ok(decide(&snapshot, &Request { command, actor: actor.to_owned(), at, now })?)
    }

    /// Puts an act that changed nothing of the snapshot into the ledger.
    pub fn record(&self, actor: &str, kind: &str, subject: String, detail: String) -> Result<(), StoreError> {
        let event = Event {
            at: self.clock.wall(),
            actor: actor.to_owned(),
            env: None,
            kind: kind.to_owned(),
            subject,
            detail,
        };
        for attempt in 0.. {
            let base = self.store.load()?.revision;
            match self.store.commit(self.epoch, base, &[], std::slice::from_ref(&event)) {
                Ok(revision) => {
                    self.shared.revision.send_replace(revision);
                    return Ok(());
                }
                Err(StoreError::Conflict { .. }) if attempt < CONFLICTS_MAX => {}
                Err(error) => return Err(error),
            }
        }
        unreachable!("the loop above only ends by returning")
    }

    /// Decides on a command and records it. It is durable when this returns; it comes true afterwards.
    pub fn submit(&self, actor: &str, command: Command) -> Result<Outcome, SubmitError> {
        self.submit_once(actor, None, command)
    }

    /// The same of a request that may come twice: the second one is answered as the first, and nothing is decided anew.
    pub fn submit_once(
        &self,
        actor: &str,
        key: Option<Key>,
        command: Command,
    ) -> Result<Outcome, SubmitError> {
        let submitted = self.submit_in_steps(actor, key, command).now_or_never();
        submitted.unwrap_or_else(|| unreachable!("a process passes its named points at once"))
    }

    /// [`Handle::submit_once`] for the simulator, where others may act between two steps of a command.
    pub async fn submit_in_steps(
        &self,
        actor: &str,
        key: Option<Key>,
        command: Command,
    ) -> Result<Outcome, SubmitError> {
        let mut request =
            Request { command, actor: actor.to_owned(), at: self.clock.wall(), now: self.clock.boot() };
        for attempt in 0.. {
            let snapshot = self.store.load().map_err(SubmitError::Store)?;
            if let Some(answered) = key.as_ref().and_then(|key| answered(&snapshot, key)) {
                return answered;
            }
            request.now = self.clock.boot();
            let mut decision = decide(&snapshot, &request)?;
            if let (Some(key), Ok(outcome)) = (&key, serde_json::to_string(&decision.outcome)) {
                let (key, request) = (key.key.clone(), key.request);
                let answer = Answered { key, request, outcome, revision: snapshot.revision.next() };
                decision.mutations.push(Mutation::Answer(answer));
            }
            if decision.mutations.is_empty() {
                return Ok(decision.outcome);
            }
            self.clock.pass(Point::SubmitBeforeCommit).await;
            match self.store.commit(self.epoch, snapshot.revision, &decision.mutations, &decision.events) {
                Ok(revision) => {
                    self.clock.pass(Point::SubmitAfterCommit).await;
                    self.shared.revision.send_replace(revision);
                    self.shared.wake.notify_one();
                    return Ok(decision.outcome);
                }
                Err(StoreError::Conflict { .. }) if attempt < CONFLICTS_MAX => {}
                Err(error) => return Err(SubmitError::Store(error)),
            }
        }
        unreachable!("the loop above only ends by returning")
    }
}

/// What the request of that key was answered, if it came before.
fn answered(snapshot: &Snapshot, key: &Key) -> Option<Result<Outcome, SubmitError>> {
    let answer = snapshot.answers.get(&key.key)?;
    if answer.request != key.request {
        return Some(Err(SubmitError::KeyReused { key: key.key.clone() }));
    }
    // One that a newer kiln wrote is not understood, and is decided anew.
    serde_json::from_str(&answer.outcome).ok().map(Ok)
}
