//! Why things are as they are: what blocks, since when, what happens next and at which deadline, and what helps.

mod blocked;

use crate::mix;
use crate::observed::Observed;
use crate::progress::Progress;
use kiln_model::mix::BASELINE_SLOT;
use kiln_model::{
    Boot, EnvRef, Environment, InstanceState, Millis, Op, OpKey, Rollout, RolloutKind, RolloutPhase, Snapshot,
};

/// Tries after which an effect counts as on hold.
pub const TRIES_MAX: u32 = 8;
/// How long an edge may be silent before its keeper takes it for hung; a dead one is replaced at once.
pub const EDGE_SILENCE_MAX: Millis = Millis::from_secs(10);
/// For so long after its start a host's capacity may be missing because of that start: it ended all instances.
const HOST_IS_YOUNG: Boot = Boot(10 * 60 * 1000);

/// One thing that is not as desired, or the reason why the last rollout failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// Of which environment.
    pub env: EnvRef,
    /// What blocks, in one line.
    pub what: String,
    /// For how long.
    pub since: Millis,
    /// What happens next without anybody's help.
    pub next: String,
    /// When that happens at the latest, from now.
    pub deadline: Option<Millis>,
    /// The command that helps.
    pub command: Option<String>,
    /// What was seen: failed checks, last lines.
    pub evidence: Vec<String>,
}

/// Reasons of one environment or of all; empty if everything is as desired.
pub fn explain(snapshot: &Snapshot, observed: &Observed, env: Option<&EnvRef>) -> Vec<Reason> {
    if let Some(recovery) = &snapshot.recovery {
        // Nothing else is concluded from state that is older than the world.
        return blocked::recovering(snapshot, observed, env, recovery).into_iter().collect();
    }
    let mut reasons = blocked::held(snapshot, observed, env);
    let held = crate::still::held(snapshot, observed);
    for environment in snapshot.environments.values().filter(|e| env.is_none_or(|env| env == &e.env)) {
        reasons.extend(blocked::paused(snapshot, observed, &environment.env));
        if held.contains_key(&environment.env) {
            // What cannot be planned may not be explained either.
            continue;
        }
        reasons.extend(blocked::storms(snapshot, observed, environment));
        let active: Vec<_> = snapshot.active_rollouts(&environment.env).collect();
        reasons.extend(active.iter().map(|r| under_way(snapshot, observed, r)));
        let last = snapshot.rollouts.values().rfind(|r| r.env == environment.env);
        let failed = last.filter(|r| {
            matches!(
                r.phase,
                RolloutPhase::TakenBack | RolloutPhase::FailedNoPrevious | RolloutPhase::Aborted
            )
        });
        reasons.extend(failed.map(|r| taken_back(environment, observed, r)));
        reasons.extend(retreating(snapshot, environment));
        reasons.extend(missing_capacity(snapshot, observed, environment));
        reasons.extend(stuck_effects(snapshot, observed, environment));
    }
    if observed.edge.is_none() && snapshot.route.0.0 > 0 {
        reasons.extend(snapshot.environments.keys().next().map(|env| Reason {
            env: env.clone(),
            what: "the edge does not answer".into(),
            since: observed.now.since(observed.edge_seen),
            next:
                "it is started again, or killed first if it hangs; it serves its last table from disk".into(),
            deadline: Some(remaining(observed.edge_seen + EDGE_SILENCE_MAX, observed.now)),
            command: Some("kiln doctor".into()),
            evidence: vec![],
        }));
    }
    reasons
}

fn under_way(snapshot: &Snapshot, observed: &Observed, rollout: &Rollout) -> Reason {
    let release = snapshot.release(&rollout.env, rollout.to);
    let limit = release.and_then(|r| r.spec.services.values().map(|s| s.rollout.deadline).max());
    let span = match rollout.phase {
        RolloutPhase::Baking => Some(crate::rollout::BAKE_DEADLINE),
        RolloutPhase::Launching | RolloutPhase::Validating => limit,
        RolloutPhase::Switching => Some(crate::overdue::SWITCH_DEADLINE),
        RolloutPhase::Draining => {
            release.and_then(|r| r.spec.services.values().map(|s| s.rollout.drain).max())
        }
        _ => None,
    };
    let waiting: Vec<String> = snapshot
        .instances_of(&rollout.env)
        .filter(|i| i.release == rollout.to && !i.state.is_validated())
        .flat_map(|i| {
            let last =
                observed.probes.get(&i.id).and_then(|log| log.steps.values().rfind(|s| !s.last.passed));
            let check = last.map(|s| format!("{}: check {}: {}", i.id, s.last.check, s.last.detail));
            let state = format!("{}: {}", i.id, i.state.word());
            let tail =
                observed.tails.get(&i.id).into_iter().flatten().map(|line| format!("{}: {line}", i.id));
            std::iter::once(check.unwrap_or(state)).chain(tail).collect::<Vec<_>>()
        })
        .collect();
    let next = match rollout.phase {
        _ if snapshot.pause_of(&rollout.env).is_some() => {
            "it goes on after `kiln resume`, with the time it has left"
        }
        RolloutPhase::Planned => "it begins when the rollout before it has ended",
        RolloutPhase::Baking if release.is_some_and(|r| r.images.is_some()) => {
            "instances are launched when the release that serves has its capacity back"
        }
        RolloutPhase::Baking => "instances are launched when its images are baked",
        RolloutPhase::Launching => "its instances are checked when they run",
        RolloutPhase::Validating => "traffic switches when every instance passed its checks",
        RolloutPhase::Shifting => "its share of the requests grows",
        RolloutPhase::Switching => {
            "the old release drains when the edge acknowledged the new table; else it is taken back"
        }
        _ => "it is done when no request is in flight on the old release",
    };
    let deadline = rollout.deadline.filter(|_| rollout.phase < RolloutPhase::Switching);
    let deadline = deadline.or(span.map(|span| rollout.since + span));
    // A pause stops the clock.
    let deadline = deadline.filter(|_| snapshot.pause_of(&rollout.env).is_none());
    let cancel = rollout.phase.is_before_switch();
    if let Some(shared) = crate::progress::progress(snapshot, observed, rollout) {
        return sharing(observed, rollout, &shared, waiting);
    }
    Reason {
        env: rollout.env.clone(),
        what: format!("rollout {} to release {} is {}", rollout.id, rollout.to, rollout.phase.word()),
        since: observed.now.since(rollout.since),
        next: next.into(),
        deadline: deadline.map(|deadline| remaining(deadline, observed.now)),
        command: cancel.then(|| format!("kiln abort --env {}", rollout.env.env)),
        evidence: waiting,
    }
}

/// A rollout while two releases share the traffic.
fn sharing(observed: &Observed, rollout: &Rollout, shared: &Progress, waiting: Vec<String>) -> Reason {
    let share = shared.weight.map_or(String::new(), |w| format!(", {w} % of the requests"));
    let held = shared.hold.as_ref().map(|(why, age)| format!("; on hold for {age}: {why}"));
    Reason {
        env: rollout.env.clone(),
        what: format!(
            "rollout {} to release {} is {}: {} of {}{share}{}",
            rollout.id,
            rollout.to,
            rollout.phase.word(),
            shared.number,
            shared.of,
            held.unwrap_or_default()
        ),
        since: observed.now.since(rollout.since),
        next: shared.next.clone(),
        deadline: shared.deadline,
        command: Some(format!("kiln abort --env {}", rollout.env.env)),
        evidence: shared.figures.iter().map(ToString::to_string).chain(waiting).collect(),
    }
}

/// A candidate without a rollout, that has traffic until the serving release has its capacity back.
fn retreating(snapshot: &Snapshot, environment: &Environment) -> Option<Reason> {
    let mix = environment.mix.as_ref()?;
    let driven = snapshot.active_rollouts(&environment.env).any(|r| r.to == mix.release);
    let serving = environment.serving.filter(|_| !driven)?;
    Some(Reason {
        env: environment.env.clone(),
        what: format!("release {} still has a share of the traffic", mix.release),
        since: Millis(0),
        next: format!("release {serving} gets its instances back; then it has all of it"),
        deadline: None,
        command: None,
        evidence: vec![],
    })
}

fn remaining(deadline: Boot, now: Boot) -> Millis {
    deadline.since(now)
}

fn taken_back(environment: &Environment, observed: &Observed, rollout: &Rollout) -> Reason {
    let verb = match rollout.kind {
        RolloutKind::Deploy => "deploy",
        RolloutKind::Rollback => "rollback",
    };
    let end = match rollout.phase {
        RolloutPhase::Aborted => "was aborted",
        RolloutPhase::FailedNoPrevious => "failed, and nothing served before",
        _ => "was taken back",
    };
    let reason = rollout.reason.clone().unwrap_or_default();
    let touched = if rollout.receipt.shares.is_empty() { ", untouched" } else { "" };
    let serving = environment
        .serving
        .map_or("nothing serves".to_owned(), |n| format!("release {n} serves on{touched}"));
    Reason {
        env: rollout.env.clone(),
        what: format!("the last {verb} (release {}) {end}: {reason}", rollout.to),
        since: observed.now.since(rollout.since),
        next: serving,
        deadline: None,
        command: Some(format!("kiln logs --release {} --env {}", rollout.to, rollout.env.env)),
        evidence: rollout.evidence.clone(),
    }
}

fn missing_capacity(snapshot: &Snapshot, observed: &Observed, environment: &Environment) -> Vec<Reason> {
    let release = environment.serving.and_then(|n| snapshot.release(&environment.env, n));
    let services = release.into_iter().flat_map(|r| r.spec.services.values().map(move |s| (r, s)));
    let mut reasons = vec![];
    for (release, service) in services {
        let own = || {
            snapshot.instances_of(&environment.env).filter(|i| {
                i.release == release.number && i.service == service.name && i.slot < BASELINE_SLOT
            })
        };
        let (want, have) = (
            mix::slots(environment, release.number, service),
            own().filter(|i| i.state.is_validated()).count() as u32,
        );
        if have >= want {
            continue;
        }
        let deaths = environment.deaths.get(&service.name).copied();
        let next_try =
            deaths.map(|(n, last)| remaining(crate::instance::heal_not_before(n, last), observed.now));
        let young = deaths.is_none() && observed.now < HOST_IS_YOUNG;
        let started = young.then(|| format!("the host was started {} ago", Millis(observed.now.0)));
        let bad: Vec<String> = own()
            .filter(|i| i.state.is_over() || i.state == InstanceState::Tainted)
            .map(|i| format!("{}: {}", i.id, i.reason.clone().unwrap_or_default()))
            .chain(own().flat_map(|i| observed.tails.get(&i.id).into_iter().flatten().cloned()))
            .chain(started)
            .collect();
        reasons.push(Reason {
            env: environment.env.clone(),
            what: format!("`{}` has {have} of {want} instances", service.name),
            since: deaths.map_or(Millis(0), |(_, last)| observed.now.since(last)),
            next: healing(snapshot, environment).into(),
            deadline: next_try.filter(|t| t.0 > 0),
            command: Some(format!("kiln logs {} --env {}", service.name, environment.env.env)),
            evidence: bad,
        });
    }
    reasons
}

fn healing(snapshot: &Snapshot, environment: &Environment) -> &'static str {
    match snapshot.pause_of(&environment.env) {
        Some(_) => "nothing is replaced before `kiln resume`",
        None => "the missing ones are being replaced",
    }
}

/// What an effect that does not work is about. After [`TRIES_MAX`] it is on hold: tried on, at leisure, beside all others.
fn stuck(op: &Op) -> String {
    let subject = match &op.key {
        OpKey::Bake { release, image, .. } => format!("baking image `{image}` of release {release}"),
        OpKey::Ensure { instance } => format!("starting `{instance}`"),
        OpKey::Absent { instance } => format!("destroying `{instance}`"),
        OpKey::SetRoute { generation, .. } => format!("giving the edge table {generation}"),
    };
    let hold = if op.attempts >= TRIES_MAX { ": it is on hold" } else { "" };
    format!("{subject} failed {} times{hold}", op.attempts)
}

/// For how long an effect has been wanted.
fn begun(snapshot: &Snapshot, observed: &Observed, op: &Op) -> Millis {
    let since = match &op.key {
        OpKey::Bake { env, release, .. } => {
            snapshot.active_rollouts(env).find(|r| r.to == *release).map(|r| r.since)
        }
        OpKey::Ensure { instance } | OpKey::Absent { instance } => {
            snapshot.instances.get(instance).map(|i| i.since)
        }
        OpKey::SetRoute { generation, .. } => {
            snapshot.rollouts.values().find(|r| r.switch == Some(*generation)).map(|r| r.since)
        }
    };
    since.map_or(Millis(0), |since| observed.now.since(since))
}

fn stuck_effects(snapshot: &Snapshot, observed: &Observed, environment: &Environment) -> Vec<Reason> {
    let of_env = |key: &OpKey| match key {
        OpKey::Bake { env, .. } => env == &environment.env,
        OpKey::Ensure { instance } | OpKey::Absent { instance } => {
            snapshot.instances.get(instance).is_some_and(|i| i.env == environment.env)
        }
        OpKey::SetRoute { .. } => true,
    };
    let failing = snapshot.ops.values().filter(|op| op.last_error.is_some() && of_env(&op.key));
    failing
        .map(|op| Reason {
            env: environment.env.clone(),
            what: stuck(op),
            since: begun(snapshot, observed, op),
            next: "it is tried again".into(),
            deadline: Some(remaining(op.not_before, observed.now)),
            command: Some("kiln doctor".into()),
            evidence: op.last_error.clone().into_iter().collect(),
        })
        .collect()
}
