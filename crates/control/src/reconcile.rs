//! The one loop: observe first, load desired state second, plan, lint, commit, act. It takes no input: a wake-up only says
//! that it may be worth looking.

use crate::clock::Clock;
use crate::crash;
use crate::execute::{Bakery, Ended, Engines, execute};
use crate::hold::Holds;
use kiln_edge::client::Router;
use kiln_model::{
    Boot, Digest, EnvRef, Epoch, Evidence, ImageName, Incarnation, InstanceId, InstanceState, Millis, Op,
    OpKey, ReleaseNumber, Revision, SeenState, Snapshot,
};
use kiln_plan::observed::{OpOutcome, OpResult, Probe, ProbeLog};
use kiln_plan::{Observed, Plan, plan};
use kiln_provider::Provider;
use kiln_store::{Store, StoreError};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};

/// The longest time without a look at the world.
const TICK: Millis = Millis(500);
/// How long the edge may take to say what it uses. A stopped one must not hold up what does not need it.
const LOOK_MAX: Millis = Millis(1000);
/// Lines of output kept as evidence of a failed instance.
const TAIL_LINES: usize = 8;
/// Passes in a row that each changed something, after which the loop takes a breath and says so.
const PASSES_WITHOUT_REST: u32 = 200;

/// How long starting an instance may take; a damaged image is baked anew meanwhile.
const START_MAX: Millis = Millis::from_secs(60 * 60);
/// How long ending one may take, beside its own `stop.timeout`.
const END_MAX: Millis = Millis::from_secs(60);
/// How long the edge may take for a table.
const SWITCH_MAX: Millis = Millis::from_secs(30);

/// After so long an effect counts as one that failed: it is tried again, and `kiln why` shows it. A bake has its own limit.
fn effect_max(snapshot: &Snapshot, key: &OpKey) -> Option<Millis> {
    match key {
        OpKey::Bake { .. } => None,
        OpKey::Ensure { .. } => Some(START_MAX),
        OpKey::Absent { instance } => {
            let instance = snapshot.instances.get(instance);
            let stop = instance.and_then(|instance| {
                let release = snapshot.release(&instance.env, instance.release)?;
                Some(release.spec.services.get(&instance.service)?.stop.timeout)
            });
            Some(Millis(END_MAX.0.saturating_add(stop.unwrap_or_default().0)))
        }
        OpKey::SetRoute { .. } => Some(SWITCH_MAX),
    }
}

async fn within(limit: Option<Millis>, effect: impl Future<Output = Ended>) -> Ended {
    let Some(limit) = limit else { return effect.await };
    tokio::time::timeout(limit.duration(), effect).await.unwrap_or_else(|_| Ended {
        outcome: OpOutcome::Retry(format!("it did not end within {limit}")),
        baked: None,
    })
}

/// Why the loop ended. The process must end with it and start from disk.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The store failed, or a newer server took over.
    #[error("the control loop stopped")]
    Store(#[source] StoreError),
}

/// What the loop shares with those who look on.
pub struct Shared {
    /// Wakes the loop.
    pub wake: Notify,
    /// The last observation.
    pub observed: Mutex<Arc<Observed>>,
    /// The last committed revision.
    pub revision: watch::Sender<Revision>,
    /// Asks the loop to end.
    pub stop: watch::Sender<bool>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            wake: Notify::new(),
            observed: Mutex::default(),
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
pub struct Reconciler<S, P, R, B> {
    store: Arc<S>,
    engines: Engines<P, R, B>,
    clock: Arc<dyn Clock>,
    shared: Arc<Shared>,
    server: (Incarnation, Epoch),
    effects: JoinSet<Ended>,
    /// What is under way, by task: a panic leaves nothing else to know it by.
    tasks: HashMap<tokio::task::Id, (Op, AbortHandle)>,
    results: Vec<OpResult>,
    baked: BTreeMap<(EnvRef, ReleaseNumber, ImageName), Digest>,
    probes: JoinSet<(InstanceId, usize, Evidence)>,
    probing: BTreeSet<(InstanceId, usize)>,
    logs: BTreeMap<InstanceId, ProbeLog>,
    tails: BTreeMap<InstanceId, Vec<String>>,
    holds: Holds,
    started: Boot,
    edge_seen: Boot,
}

impl<S: Store, P: Provider, R: Router, B: Bakery> Reconciler<S, P, R, B> {
    /// A loop that acts as the holder of the lease.
    pub fn new(
        store: Arc<S>,
        engines: Engines<P, R, B>,
        clock: Arc<dyn Clock>,
        shared: Arc<Shared>,
        server: (Incarnation, Epoch),
    ) -> Self {
        let started = clock.boot();
        Self {
            store,
            engines,
            clock,
            shared,
            server,
            effects: JoinSet::new(),
            tasks: HashMap::new(),
            results: vec![],
            baked: BTreeMap::new(),
            probes: JoinSet::new(),
            probing: BTreeSet::new(),
            logs: BTreeMap::new(),
            tails: BTreeMap::new(),
            holds: Holds::default(),
            started,
            edge_seen: started,
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
                if self.tasks.is_empty() || !self.results.is_empty() {
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
        let mut observed = self.observe().await;
        let snapshot = self.store.load().map_err(ReconcileError::Store)?;
        let planned = self.holds.plan(&snapshot, &mut observed, plan);
        *self.shared.observed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(observed);
        let plan = match planned {
            Ok(plan) => plan,
            Err(error) => {
                eprintln!("kiln: error: nothing could be planned at revision {}: {error}", snapshot.revision);
                return Ok(Plan::default());
            }
        };
        if plan.mutations.is_empty() {
            self.results.clear();
        } else {
            crash::point("plan", "before-commit");
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
            crash::point("plan", "after-commit");
        }
        self.act(&plan)?;
        Ok(plan)
    }

    fn act(&mut self, plan: &Plan) -> Result<(), ReconcileError> {
        let snapshot = self.store.load().map_err(ReconcileError::Store)?;
        for op in &plan.effects {
            let effect = execute(self.engines.clone(), self.server, op.clone(), snapshot.clone());
            let task = self.effects.spawn(within(effect_max(&snapshot, &op.key), effect));
            self.tasks.insert(task.id(), (op.clone(), task));
        }
        for (_, task) in self.tasks.values().filter(|(op, _)| plan.abandoned.contains(&op.key)) {
            task.abort();
        }
        let now = self.clock.boot();
        for probe in plan.probes.iter().filter(|p| p.not_before <= now) {
            self.probe(probe);
        }
        self.forget(&snapshot);
        Ok(())
    }

    fn probe(&mut self, probe: &Probe) {
        let key = (probe.instance.clone(), probe.step);
        if self.probing.insert(key) {
            let (provider, probe) = (self.engines.provider.clone(), probe.clone());
            self.probes.spawn(async move {
                let evidence = provider.check(&probe.instance, &probe.check).await;
                (probe.instance, probe.step, evidence)
            });
        }
    }

    /// Drops what was remembered of instances and releases that need it no more.
    fn forget(&mut self, snapshot: &Snapshot) {
        self.logs.retain(|id, _| snapshot.instances.contains_key(id));
        self.tails.retain(|id, _| snapshot.instances.contains_key(id));
        self.baked
            .retain(|(env, number, _), _| snapshot.release(env, *number).is_some_and(|r| r.images.is_none()));
    }

    fn take_finished(&mut self) {
        while let Some(ended) = self.effects.try_join_next_with_id() {
            self.ended(ended);
        }
        while let Some(probed) = self.probes.try_join_next() {
            self.probed(probed);
        }
    }

    fn ended(&mut self, ended: Result<(tokio::task::Id, Ended), tokio::task::JoinError>) {
        let (task, outcome) = match ended {
            Ok((task, ended)) => {
                self.baked.extend(ended.baked);
                (task, ended.outcome)
            }
            // Whether it had happened before the panic is unknown.
            Err(error) => (error.id(), OpOutcome::Retry(error.to_string())),
        };
        if let Some((op, _)) = self.tasks.remove(&task) {
            self.results.push(OpResult { key: op.key, id: op.id, outcome });
        }
    }

    fn probed(&mut self, probed: Result<(InstanceId, usize, Evidence), tokio::task::JoinError>) {
        let Ok((id, step, evidence)) = probed else {
            self.probing.clear();
            return;
        };
        self.probing.remove(&(id.clone(), step));
        self.logs.entry(id).or_default().record(step, self.clock.boot(), evidence);
    }

    async fn observe(&mut self) -> Observed {
        let edge = tokio::time::timeout(LOOK_MAX.duration(), self.engines.router.status());
        let (seen, edge) = tokio::join!(self.engines.provider.list(), edge);
        let seen: Option<BTreeMap<_, _>> =
            seen.ok().map(|list| list.into_iter().map(|s| (s.id.clone(), s)).collect());
        if let (Some(seen), Ok(snapshot)) = (&seen, self.store.load()) {
            self.read_tails(seen, &snapshot);
        }
        let edge = edge.ok().and_then(Result::ok);
        if edge.is_some() {
            self.edge_seen = self.clock.boot();
        }
        Observed {
            now: self.clock.boot(),
            edge_seen: self.edge_seen,
            wall: self.clock.wall(),
            boot_id: self.clock.boot_id(),
            seen,
            edge,
            running: self.tasks.values().map(|(op, _)| op.key.clone()).collect(),
            results: self.results.clone(),
            probes: self.logs.clone(),
            baked: self.baked.clone(),
            tails: self.tails.clone(),
            held: BTreeMap::new(),
            started: self.started,
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
            Some(ended) = self.effects.join_next_with_id() => self.ended(ended),
            Some(probed) = self.probes.join_next() => self.probed(probed),
            () = provider.changed() => {}
            () = self.shared.wake.notified() => {}
            _ = stop.changed() => {}
            () = tokio::time::sleep(span.duration()) => {}
        }
    }
}
