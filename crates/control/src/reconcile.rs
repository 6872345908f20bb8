//! The one loop: observe first, load desired state second, plan, lint, commit, act. It takes no input: a wake-up only says
//! that it may be worth looking.

use crate::clock::{Clock, within};
use crate::crash::Point;
use crate::execute::{Bakery, Engines};
use crate::hold::Holds;
use crate::recover;
use crate::work::{Finished, Work};
use kiln_edge::client::Router;
use kiln_model::mutant::{Mutant, planted};
use kiln_model::{
    Boot, Digest, EnvRef, Epoch, ImageName, Incarnation, InstanceId, InstanceState, Memory, Millis, OpKey,
    ReleaseNumber, Revision, SeenState, Snapshot,
};
use kiln_plan::autoscale::Rates;
use kiln_plan::observed::{OpResult, ProbeLog};
use kiln_plan::recovery::{Lead, World};
use kiln_plan::{Observed, Plan, plan};
use kiln_provider::Provider;
use kiln_store::{Store, StoreError};
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use tokio::sync::{Notify, watch};

/// The longest time without a look at the world.
const TICK: Millis = Millis(500);
/// How long the edge may take to say what it uses. A stopped one must not hold up what does not need it.
const LOOK_MAX: Millis = Millis(1000);
/// Lines of output kept as evidence of a failed instance.
const TAIL_LINES: usize = 8;
/// Passes in a row that each changed something, after which the loop takes a breath and says so.
const PASSES_WITHOUT_REST: u32 = 200;

/// Why the loop ended. The process must end with it and start from disk.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The store failed, or a newer server took over.
    #[error("the control loop stopped")]
    Store(#[source] StoreError),
    /// A receiver heard of a server that is newer than this one, and takes nothing from it any more.
    #[error("the control loop stopped: a newer server ({0}.{1}) was heard of")]
    Newer(Incarnation, Epoch),
}

/// What the loop shares with those who look on.
pub struct Shared {
    /// Wakes the loop.
    pub wake: Notify,
    /// The last observation.
    pub observed: Mutex<Arc<Observed>>,
    /// The last committed revision.
    pub revision: watch::Sender<Revision>,
    /// The last plan that the lint refused, and why. There is none but by a bug of the planner.
    pub refused: Mutex<Option<String>>,
    /// Asks the loop to end.
    pub stop: watch::Sender<bool>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            wake: Notify::new(),
            observed: Mutex::default(),
            refused: Mutex::default(),
            revision: watch::Sender::new(Revision(0)),
            stop: watch::Sender::new(false),
        }
    }
}

impl Shared {
    /// The last observation.
    pub fn observed(&self) -> Arc<Observed> {
        self.observed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

/// The loop's own state. All of it may be lost at any time.
pub struct Reconciler<S: ?Sized, P, R, B> {
    store: Arc<S>,
    engines: Engines<P, R, B>,
    clock: Arc<dyn Clock>,
    shared: Arc<Shared>,
    server: (Incarnation, Epoch),
    work: Work,
    results: Vec<OpResult>,
    baked: BTreeMap<(EnvRef, ReleaseNumber, ImageName), Digest>,
    logs: BTreeMap<InstanceId, ProbeLog>,
    tails: BTreeMap<InstanceId, Vec<String>>,
    rates: Rates,
    holds: Holds,
    started: Boot,
    edge_seen: Boot,
    edge_heard: bool,
    memory: Option<Arc<Memory>>,
    base: Revision,
}

impl<S: Store + ?Sized, P: Provider, R: Router, B: Bakery> Reconciler<S, P, R, B> {
    /// A loop that acts as the holder of the lease.
    pub fn new(
        store: Arc<S>,
        engines: Engines<P, R, B>,
        clock: Arc<dyn Clock>,
        shared: Arc<Shared>,
        server: (Incarnation, Epoch),
    ) -> Self {
        let started = clock.boot();
        // If it cannot be loaded now the first pass fails as well.
        let base = store.load().map_or(Revision(0), |snapshot| snapshot.revision);
        Self {
            store,
            engines,
            clock,
            shared,
            server,
            work: Work::default(),
            results: vec![],
            baked: BTreeMap::new(),
            logs: BTreeMap::new(),
            tails: BTreeMap::new(),
            rates: Rates::default(),
            holds: Holds::default(),
            started,
            edge_seen: started,
            edge_heard: false,
            memory: None,
            base,
        }
    }

    /// Runs until it is asked to stop or the store fails.
    pub async fn run(mut self) -> Result<(), ReconcileError> {
        let mut stop = self.shared.stop.subscribe();
        let mut restless = 0;
        while !*stop.borrow_and_update() {
            let plan = self.pass().await?;
            restless = if plan.mutations.is_empty() { 0 } else { restless + 1 };
            if restless > 0 && restless < PASSES_WITHOUT_REST {
                self.take_finished();
                tokio::task::yield_now().await;
                if self.work.runs_nothing() || !self.results.is_empty() {
                    continue;
                }
            }
            if restless == PASSES_WITHOUT_REST {
                eprintln!("kiln: error: {restless} passes in a row changed something; resting for a moment");
                restless = 0;
            }
            self.rest(&plan, &mut stop).await;
        }
        Ok(())
    }

    /// One pass. Public so that tests can step through.
    pub async fn pass(&mut self) -> Result<Plan, ReconcileError> {
        self.take_finished();
        let stale = planted(Mutant::StaleSnapshot).then(|| self.store.load()).and_then(Result::ok);
        let mut observed = self.observe().await;
        self.clock.pass(Point::Observed).await;
        let newest = self.store.load().map_err(ReconcileError::Store)?;
        let snapshot = stale.unwrap_or(newest);
        let planned = self.holds.plan(&snapshot, &mut observed, plan);
        let newer = recover::fences(&World::of(&observed)).map(|fence| fence.server()).max();
        let newer = newer.filter(|newer| *newer > self.server);
        let refused = observed.held.values().next().map(|hold| hold.reason.clone());
        *self.shared.observed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(observed);
        let (plan, refused) = match planned {
            Ok(plan) => (plan, refused),
            Err(error) => {
                eprintln!("kiln: error: nothing could be planned at revision {}: {error}", snapshot.revision);
                (Plan::default(), Some(error))
            }
        };
        *self.shared.refused.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = refused;
        if plan.mutations.is_empty() {
            self.results.clear();
        } else {
            if planted(Mutant::CreateBeforeRecord) {
                self.create_before_record(&snapshot, &plan).await;
            }
            self.clock.pass(Point::PlanBeforeCommit).await;
            match self.store.commit(self.server.1, snapshot.revision, &plan.mutations, &plan.events) {
                Ok(revision) => {
                    self.results.clear();
                    self.shared.revision.send_replace(revision);
                }
                // A command came between: the next pass sees it, with the same results.
                Err(StoreError::Conflict { .. }) => {
                    return Ok(Plan { mutations: plan.mutations, ..Plan::default() });
                }
                Err(error) => return Err(ReconcileError::Store(error)),
            }
            self.clock.pass(Point::PlanAfterCommit).await;
        }
        if let Some((incarnation, epoch)) = newer.filter(|_| !planted(Mutant::NoRecoveryHold)) {
            return Err(ReconcileError::Newer(incarnation, epoch));
        }
        self.act(&plan)?;
        Ok(plan)
    }

    /// The planted fault.
    async fn create_before_record(&mut self, snapshot: &Snapshot, plan: &Plan) {
        let mut after = snapshot.clone();
        plan.mutations.iter().for_each(|mutation| after.apply(mutation));
        let after = Arc::new(after);
        for op in plan.effects.iter().filter(|op| matches!(op.key, OpKey::Ensure { .. })) {
            crate::execute::execute(
                self.engines.clone(),
                self.clock.clone(),
                self.server,
                op.clone(),
                after.clone(),
            )
            .await;
        }
    }

    fn act(&mut self, plan: &Plan) -> Result<(), ReconcileError> {
        let snapshot = self.store.load().map_err(ReconcileError::Store)?;
        for op in &plan.effects {
            self.work.begin(&self.engines, &self.clock, self.server, op.clone(), snapshot.clone());
        }
        for key in &plan.abandoned {
            self.work.abandon(key);
        }
        let now = self.clock.boot();
        for probe in plan.probes.iter().filter(|p| p.not_before <= now) {
            self.work.look(&self.engines, &self.clock, probe);
        }
        self.forget(&snapshot);
        Ok(())
    }

    /// Drops what was remembered of instances and releases that need it no more.
    fn forget(&mut self, snapshot: &Snapshot) {
        self.logs.retain(|id, _| snapshot.instances.contains_key(id));
        self.tails.retain(|id, _| snapshot.instances.contains_key(id));
        self.baked
            .retain(|(env, number, _), _| snapshot.release(env, *number).is_some_and(|r| r.images.is_none()));
    }

    fn take_finished(&mut self) {
        while let Some(finished) = self.work.try_next() {
            match finished {
                Finished::Effect { result, baked } => {
                    self.baked.extend(baked);
                    self.results.push(result);
                }
                Finished::Probe { instance, step, evidence } => {
                    self.logs.entry(instance).or_default().record(step, self.clock.boot(), evidence);
                }
            }
        }
    }

    async fn observe(&mut self) -> Observed {
        let (engines, clock) = (self.engines.clone(), self.clock.clone());
        let edge = within(&*clock, LOOK_MAX, engines.router.status());
        let mut look = pin!(async { tokio::join!(engines.provider.list(), edge) });
        // What ends meanwhile is told by the next pass: its result must not be newer than what was seen.
        let (seen, edge) = self.work.while_working(&mut look).await;
        let seen: Option<BTreeMap<_, _>> =
            seen.ok().map(|list| list.into_iter().map(|s| (s.id.clone(), s)).collect());
        let edge = edge.and_then(Result::ok);
        self.remember().await;
        if let Ok(snapshot) = self.store.load() {
            seen.iter().for_each(|seen| self.read_tails(seen, &snapshot));
            self.rates.record(&snapshot, edge.as_ref(), self.clock.boot());
        }
        if edge.is_some() {
            self.edge_seen = self.clock.boot();
            self.edge_heard = true;
        }
        Observed {
            now: self.clock.boot(),
            edge_seen: self.edge_seen,
            wall: self.clock.wall(),
            boot_id: self.clock.boot_id(),
            seen,
            edge,
            running: self.work.running().clone(),
            results: self.results.clone(),
            probes: self.logs.clone(),
            baked: self.baked.clone(),
            tails: self.tails.clone(),
            rates: self.rates.known(),
            held: BTreeMap::new(),
            lead: Some(Lead { base: self.base, server: self.server }),
            memory: self.memory.clone(),
            edge_unheard: !self.edge_heard,
            started: self.started,
        }
    }

    /// Asks what the provider remembers, until it answers once; in a hold each time, since whoever ends that decides by it.
    async fn remember(&mut self) {
        let in_hold = self.store.load().is_ok_and(|snapshot| snapshot.recovery.is_some());
        if self.memory.is_none() || in_hold {
            self.memory = self.engines.provider.memory().await.ok().map(Arc::new);
        }
    }

    /// Reads the last lines of instances that ended, once, and of those that fail their checks, each time.
    fn read_tails(&mut self, seen: &BTreeMap<InstanceId, kiln_provider::Seen>, snapshot: &Snapshot) {
        for instance in snapshot.instances.values() {
            let ended = seen.get(&instance.id).is_some_and(|s| matches!(s.state, SeenState::Exited(_)));
            let failing = instance.state == InstanceState::Probing
                && self.logs.get(&instance.id).is_some_and(|log| log.steps.values().any(|s| s.failures > 0));
            if failing || (ended && !instance.state.is_over()) {
                self.tails.insert(instance.id.clone(), self.engines.bakery.tail(&instance.id, TAIL_LINES));
            }
        }
    }

    /// Waits until something may have changed.
    async fn rest(&mut self, plan: &Plan, stop: &mut watch::Receiver<bool>) {
        let now = self.clock.boot();
        let span = plan.wake.map_or(TICK, |wake| wake.since(now)).min(TICK).max(Millis(1));
        let provider = self.engines.provider.clone();
        tokio::select! {
            biased;
            () = self.work.ended() => {}
            () = provider.changed() => {}
            () = self.shared.wake.notified() => {}
            _ = stop.changed() => {}
            () = self.clock.sleep(span) => {}
        }
    }
}
