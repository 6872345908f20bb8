//! One pass of the planner: (desired, observed, now) → the next commit, the effects that follow it, and when to look again.

use crate::draft::Draft;
use crate::observed::{Observed, OpOutcome, Probe};
use crate::{autoscale, instance, recovery, rest, rollout, route};
use kiln_model::mutant::{Mutant, planted};
use kiln_model::{Boot, EnvRef, Event, InstanceState, Millis, Mutation, Op, OpKey, Revision, Snapshot};

/// The longest wait between two tries of an effect.
const BACKOFF_MAX: Millis = Millis::from_secs(10);

/// What one pass decided.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// To be committed, in this order, before any effect.
    pub mutations: Vec<Mutation>,
    /// To be committed with them.
    pub events: Vec<Event>,
    /// To be started after the commit. Their intent rows are among the mutations.
    pub effects: Vec<Op>,
    /// Checks that should run. They change nothing, so they need no intent.
    pub probes: Vec<Probe>,
    /// Effects under way that nobody wants any more and that cost only time: bakes of a superseded rollout.
    pub abandoned: Vec<OpKey>,
    /// When to plan again at the latest, if nothing is observed before.
    pub wake: Option<Boot>,
}

/// Plans one pass. Pure: the same input gives the same plan.
pub fn plan(snapshot: &Snapshot, observed: &Observed) -> Plan {
    plan_where(snapshot, observed, false)
}

/// The same plan, found without leaving out what is at rest. For tests.
pub fn plan_everything(snapshot: &Snapshot, observed: &Observed) -> Plan {
    plan_where(snapshot, observed, true)
}

fn plan_where(snapshot: &Snapshot, observed: &Observed, everything: bool) -> Plan {
    if let Some(plan) = recovery::hold(snapshot, observed) {
        return plan;
    }
    let mut draft = Draft::new(snapshot, observed);
    if draft.rebooted && observed.seen.is_none() {
        // Nobody knows what outlived the reboot (nothing does), and the edge asks for a table: it must not get the old one,
        // whose addresses may be somebody else's.
        return Plan::default();
    }
    if draft.rebooted {
        draft.put(Mutation::Rebase { boot_id: observed.boot_id.clone(), now: observed.now });
    }
    absorb_results(&mut draft);
    absorb_edge(&mut draft);
    rest::look(&mut draft, everything);
    instance::observe(&mut draft);
    instance::validate(&mut draft);
    instance::taint(&mut draft);
    let moving = draft.restless.iter().filter(|env| !draft.still.is_still(env));
    let environments: Vec<EnvRef> = moving.cloned().collect();
    for env in &environments {
        autoscale::step(&mut draft, env);
        rollout::step(&mut draft, env);
        rollout::fill_slots(&mut draft, env);
        // New slots may be what a rollout waited for: none of them, as in a scale to zero.
        rollout::step(&mut draft, env);
    }
    route::propose(&mut draft);
    rollout::settle_serving(&mut draft);
    for env in &environments {
        rollout::fill_slots(&mut draft, env);
    }
    instance::effects(&mut draft);
    let effects = reconcile_ops(&mut draft, snapshot.revision.next());
    if planted(Mutant::NoEvents) {
        draft.events.clear();
    }
    let abandoned = abandoned(&draft);
    let Draft { mutations, events, probes, wake, .. } = draft;
    Plan { mutations, events, effects, probes, abandoned, wake }
}

/// In a pause what is under way ends as it would have.
fn abandoned(draft: &Draft<'_>) -> Vec<OpKey> {
    let bakes = draft.observed.running.iter().filter(|key| !draft.wanted.contains(*key));
    let over = |key: &&OpKey| matches!(key, OpKey::Bake { env, .. } if !draft.still.is_still(env));
    bakes.filter(over).cloned().collect()
}

/// Takes in how effects ended. A result whose intent row is not the current one is old news.
fn absorb_results(draft: &mut Draft<'_>) {
    for result in &draft.observed.results {
        let Some(op) = draft
            .snapshot
            .ops
            .get(&result.key)
            .filter(|op| op.id == result.id || planted(Mutant::OldResults))
            .cloned()
        else {
            continue;
        };
        if draft.snapshot.env_of(&result.key).is_some_and(|env| draft.still.is_held(env)) {
            draft.put(Mutation::DropOp { key: result.key.clone(), id: result.id });
            continue;
        }
        match &result.outcome {
            OpOutcome::Refused(error) | OpOutcome::Withheld(error) if !is_needed(draft, &result.key) => {
                tell(draft, &op, &result.outcome);
                permanent(draft, &result.key, error);
            }
            OpOutcome::Retry(_) if planted(Mutant::AckOnError) => done(draft, &result.key),
            OpOutcome::Retry(error)
            | OpOutcome::Refused(error)
            | OpOutcome::Withheld(error)
            | OpOutcome::Mended(error) => {
                tell(draft, &op, &result.outcome);
                let backoff = Millis((50u64 << op.attempts.min(10)).min(BACKOFF_MAX.0));
                let not_before = draft.now() + backoff;
                draft.put(Mutation::PutOp(Op { not_before, last_error: Some(error.clone()), ..op }));
                continue;
            }
            OpOutcome::Permanent(error) => permanent(draft, &result.key, error),
            OpOutcome::Done => done(draft, &result.key),
        }
        draft.put(Mutation::DropOp { key: result.key.clone(), id: result.id });
    }
}

/// Whether an instance is of what serves: then it is tried again until somebody mends the cause, because nothing else
/// brings the capacity back. A rollout ends at once and what serves stays.
fn is_needed(draft: &Draft<'_>, key: &OpKey) -> bool {
    let OpKey::Ensure { instance } = key else { return false };
    draft.snapshot.instances.get(instance).is_some_and(|instance| {
        let environment = draft.snapshot.environments.get(&instance.env);
        environment.is_some_and(|environment| environment.serving == Some(instance.release))
    })
}

/// Puts into the ledger what is wrong with an image or a secret, once for each effect.
fn tell(draft: &mut Draft<'_>, op: &Op, outcome: &OpOutcome) {
    let (kind, error) = match outcome {
        OpOutcome::Refused(error) => ("image.refused", error),
        OpOutcome::Mended(error) => ("image.damaged", error),
        OpOutcome::Withheld(error) => ("secret.unreadable", error),
        OpOutcome::Done | OpOutcome::Retry(_) | OpOutcome::Permanent(_) => return,
    };
    let OpKey::Ensure { instance } = &op.key else { return };
    let Some(instance) = draft.snapshot.instances.get(instance).cloned() else { return };
    if op.last_error.as_deref() != Some(error) {
        let subject = match outcome {
            OpOutcome::Withheld(_) => format!("instance {}", instance.id),
            _ => format!("image {}", instance.image),
        };
        draft.event(&instance.env, kind, subject, error);
    }
}

fn done(draft: &mut Draft<'_>, key: &OpKey) {
    match key {
        OpKey::Absent { instance } => draft.put(Mutation::Gone { instance: instance.clone() }),
        OpKey::SetRoute { generation, .. }
            if *generation == draft.snapshot.route.0 && !draft.route_settled() =>
        {
            draft.put(Mutation::RouteAcked { generation: *generation });
        }
        _ => {}
    }
}

fn permanent(draft: &mut Draft<'_>, key: &OpKey, error: &str) {
    match key {
        OpKey::Bake { env, release, .. } => rollout::bake_failed(draft, env, *release, error),
        OpKey::Ensure { instance } => {
            let failed =
                draft.snapshot.instances.get(instance).filter(|i| i.state == InstanceState::Intent).cloned();
            if let Some(failed) = failed {
                instance::fail(draft, &failed, format!("could not be started: {error}"));
            }
        }
        OpKey::Absent { .. } | OpKey::SetRoute { .. } => {}
    }
}

/// An acknowledgement that was lost is seen in the edge's own report.
fn absorb_edge(draft: &mut Draft<'_>) {
    let Some(edge) = &draft.observed.edge else { return };
    let (generation, _) = draft.snapshot.route;
    if edge.generation == generation && edge.digest == draft.snapshot.route_digest && !draft.route_settled() {
        draft.put(Mutation::RouteAcked { generation });
    }
}

/// Writes the intent row of each wanted effect that is neither under way nor backing off, and drops the rows of effects
/// that nobody wants any more.
fn reconcile_ops(draft: &mut Draft<'_>, revision: Revision) -> Vec<Op> {
    let mut effects = vec![];
    let mut wanted = std::mem::take(&mut draft.wanted);
    if draft.observed.edge_unheard {
        // It may have a table of a history that this one lost.
        wanted.retain(|key| matches!(key, OpKey::Bake { .. } | OpKey::Ensure { .. }));
    }
    for key in wanted.into_iter().filter(|key| draft.still.allows(&draft.snapshot, key)).collect::<Vec<_>>() {
        let row = draft.snapshot.ops.get(&key).cloned();
        let backing_off =
            row.as_ref().is_some_and(|op| op.last_error.is_some() && op.not_before > draft.now());
        if let (true, Some(op)) = (backing_off, &row) {
            draft.wake_at(op.not_before);
        }
        if !draft.observed.running.contains(&key) && !backing_off {
            let op = Op {
                id: draft.snapshot.next_op.max(kiln_model::OpId(1)),
                key: key.clone(),
                revision,
                attempts: row.as_ref().map_or(0, |op| op.attempts) + 1,
                not_before: draft.now(),
                last_error: row.and_then(|op| op.last_error),
            };
            draft.put(Mutation::PutOp(op.clone()));
            effects.push(op);
        }
        draft.wanted.insert(key);
    }
    let rows = draft.snapshot.ops.clone();
    for (key, op) in &rows {
        if !draft.wanted.contains(key) && !draft.observed.running.contains(key) {
            draft.put(Mutation::DropOp { key: key.clone(), id: op.id });
        }
    }
    effects
}
