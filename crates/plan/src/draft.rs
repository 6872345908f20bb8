//! The commit in the making: a working copy of the truth that decisions read and write, so that a later decision of
//! one pass sees what an earlier one decided.

use crate::observed::{Observed, Probe};
use crate::still::Still;
use kiln_model::edge::{EdgeStatus, TargetStatus};
use kiln_model::{
    Boot, EnvRef, Environment, Event, Instance, InstanceId, InstanceState, Mutation, OpKey, Release, Rollout,
    RolloutId, RolloutPhase, Snapshot,
};
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Who acts when nobody asked: the planner.
pub(crate) const ACTOR: &str = "kiln";

pub(crate) struct Draft<'a> {
    pub(crate) snapshot: Snapshot,
    pub(crate) observed: &'a Observed,
    pub(crate) mutations: Vec<Mutation>,
    pub(crate) events: Vec<Event>,
    /// Effects that are wanted now, whether under way or not.
    pub(crate) wanted: BTreeSet<OpKey>,
    pub(crate) probes: Vec<Probe>,
    pub(crate) wake: Option<Boot>,
    /// The host was started anew since the last pass: what ended did not end by its own fault.
    pub(crate) rebooted: bool,
    /// Environments in which something may have to be done, in order of name. Nothing is decided about the others.
    pub(crate) restless: Vec<EnvRef>,
    targets: OnceCell<BTreeMap<&'a InstanceId, &'a TargetStatus>>,
    /// What stays as it is.
    pub(crate) still: Still,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(snapshot: &Snapshot, observed: &'a Observed) -> Self {
        Self {
            snapshot: snapshot.clone(),
            observed,
            mutations: vec![],
            events: vec![],
            wanted: BTreeSet::new(),
            probes: vec![],
            wake: None,
            rebooted: snapshot.boot_id != observed.boot_id,
            restless: vec![],
            targets: OnceCell::new(),
            still: Still::of(snapshot, observed),
        }
    }

    pub(crate) fn now(&self) -> Boot {
        self.observed.now
    }

    pub(crate) fn put(&mut self, mutation: Mutation) {
        self.snapshot.apply(&mutation);
        self.mutations.push(mutation);
    }

    /// Asks to be called again at `at`, if nothing happens before.
    pub(crate) fn wake_at(&mut self, at: Boot) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    pub(crate) fn event(&mut self, env: &EnvRef, kind: &str, subject: String, detail: impl Into<String>) {
        self.events.push(Event {
            at: self.observed.wall,
            actor: ACTOR.into(),
            env: Some(env.clone()),
            kind: kind.into(),
            subject,
            detail: detail.into(),
        });
    }

    /// Moves an instance on. Asks the model whether that is legal; an illegal step is not taken.
    pub(crate) fn move_instance(&mut self, id: &InstanceId, state: InstanceState, reason: Option<String>) {
        let Some(instance) = self.snapshot.instances.get(id).filter(|i| i.state.may_become(state)) else {
            return;
        };
        let mut instance = Instance::clone(instance);
        let notable = matches!(state, InstanceState::Failed | InstanceState::Lost | InstanceState::Tainted);
        if notable || matches!(state, InstanceState::Validated if instance.state == InstanceState::Probing) {
            let kind = format!("instance.{}", state.word());
            let detail = reason.clone().unwrap_or_default();
            self.event(&instance.env.clone(), &kind, format!("instance {id}"), detail);
        }
        instance.state = state;
        instance.since = self.now();
        instance.reason = reason.or(instance.reason);
        self.put(Mutation::PutInstance(Box::new(instance)));
    }

    pub(crate) fn put_environment(&mut self, env: &EnvRef, change: impl FnOnce(&mut Environment)) {
        let Some(environment) = self.snapshot.environments.get(env) else { return };
        let mut changed = Environment::clone(environment);
        change(&mut changed);
        if changed != **environment {
            self.put(Mutation::PutEnvironment(changed));
        }
    }

    pub(crate) fn put_rollout(&mut self, id: RolloutId, change: impl FnOnce(&mut Rollout)) {
        let Some(rollout) = self.snapshot.rollouts.get(&id) else { return };
        let mut changed = Rollout::clone(rollout);
        change(&mut changed);
        if changed != **rollout {
            self.put(Mutation::PutRollout(Box::new(changed)));
        }
    }

    pub(crate) fn move_rollout(&mut self, id: RolloutId, phase: RolloutPhase, reason: Option<String>) {
        let Some(rollout) = self.snapshot.rollouts.get(&id).cloned() else { return };
        if !rollout.phase.may_become(phase) {
            return;
        }
        if phase.is_end() || phase == RolloutPhase::Switching {
            let detail = reason.clone().unwrap_or_else(|| format!("release {}", rollout.to));
            self.event(&rollout.env, &format!("rollout.{}", phase.word()), format!("rollout {id}"), detail);
        }
        let (now, wall) = (self.now(), self.observed.wall);
        self.put_rollout(id, |rollout| {
            rollout.phase = phase;
            rollout.since = now;
            rollout.ended = phase.is_end().then_some(wall);
            rollout.reason = reason;
        });
    }

    pub(crate) fn environment(&self, env: &EnvRef) -> Option<Arc<Environment>> {
        self.snapshot.environments.get(env).cloned()
    }

    pub(crate) fn release_of(&self, instance: &Instance) -> Option<Arc<Release>> {
        self.snapshot.release(&instance.env, instance.release).cloned()
    }

    /// The instances of an environment, detached from the working copy so that it may be changed meanwhile.
    pub(crate) fn instances_of(&self, env: &EnvRef) -> Vec<Arc<Instance>> {
        self.snapshot.instances_of(env).cloned().collect()
    }

    /// Whether the edge uses the last proposed table.
    pub(crate) fn route_settled(&self) -> bool {
        self.snapshot.acked == self.snapshot.route.0
    }

    /// The instances of all restless environments, detached as well.
    pub(crate) fn restless_instances(&self) -> Vec<Arc<Instance>> {
        self.restless.iter().flat_map(|env| self.snapshot.instances_of(env)).cloned().collect()
    }

    /// Whether the last proposed table sends traffic to the instance.
    pub(crate) fn in_proposed_route(&self, id: &InstanceId) -> bool {
        self.snapshot.is_routed(id)
    }

    /// Whether the table that the edge uses sends traffic to the instance; none if the edge could not be asked.
    pub(crate) fn at_edge(&self, id: &InstanceId) -> Option<bool> {
        let edge = self.observed.edge.as_ref()?;
        Some(self.targets(edge).get(id).is_some_and(|target| target.in_table))
    }

    fn targets(&self, edge: &'a EdgeStatus) -> &BTreeMap<&'a InstanceId, &'a TargetStatus> {
        self.targets.get_or_init(|| edge.targets.iter().map(|t| (&t.instance, t)).collect())
    }

    /// Requests in flight on an instance; none if the edge could not be asked.
    pub(crate) fn in_flight(&self, id: &InstanceId) -> Option<u64> {
        let edge = self.observed.edge.as_ref()?;
        Some(self.targets(edge).get(id).map_or(0, |target| target.in_flight))
    }
}
