//! Reasons for what does not move at all: a pause, a hold, a heal storm.

use super::Reason;
use crate::observed::Observed;
use crate::recovery::{World, survey};
use crate::storm::{self, STORM_MAX};
use kiln_model::{EnvRef, Environment, Millis, Pause, Recovery, Snapshot};

/// The pauses that hold for an environment.
pub(super) fn paused(snapshot: &Snapshot, observed: &Observed, env: &EnvRef) -> Vec<Reason> {
    let own = snapshot.environments.get(env).and_then(|environment| environment.paused.as_ref());
    let command = format!("kiln resume --env {}", env.env);
    let reason = |pause: &Pause, place: String, command: String| Reason {
        env: env.clone(),
        what: format!("{place} is paused by {}: {}", pause.actor, pause.reason),
        since: observed.now.since(pause.since),
        next: "nothing begins: no bake, start, switch, destroy or replacement; the edge serves on".into(),
        deadline: None,
        command: Some(command),
        evidence: vec![],
    };
    let own = own.map(|pause| reason(pause, format!("`{}`", env.env), command));
    let all =
        snapshot.paused.as_ref().map(|pause| reason(pause, "the whole server".into(), "kiln resume".into()));
    own.into_iter().chain(all).collect()
}

/// State that is older than the world. Told of whichever environment is asked for: it holds for all.
pub(super) fn recovering(
    snapshot: &Snapshot,
    observed: &Observed,
    env: Option<&EnvRef>,
    recovery: &Recovery,
) -> Option<Reason> {
    let known = snapshot.environments.keys().next();
    let seen = || observed.edge.as_ref()?.targets.first().map(|target| &target.env);
    let lying = || observed.memory.as_ref()?.specs.values().next().map(|spec| &spec.env);
    let env = env.or(known).or_else(seen).or_else(lying)?.clone();
    let evidence = match survey(snapshot, &World::of(observed)) {
        Some(survey) => vec![format!(
            "{} instances serve that the state does not know, {} others run or lie there",
            survey.adopted.len() + survey.unroutable.len(),
            survey.pruned.len()
        )],
        None => vec!["the edge or the provider does not answer: what runs is not known".into()],
    };
    Some(Reason {
        env,
        what: format!("the state is older than what runs: {}", recovery.reason),
        since: observed.now.since(recovery.since),
        next: "nothing begins: nothing is destroyed, started, switched or replaced, and commands that would are refused; \
               the edge serves its last table"
            .into(),
        deadline: None,
        command: Some("kiln recover --plan".into()),
        evidence,
    })
}

/// What kiln leaves alone because it cannot read or plan it.
pub(super) fn held(snapshot: &Snapshot, observed: &Observed, env: Option<&EnvRef>) -> Vec<Reason> {
    let held = crate::still::held(snapshot, observed);
    let asked = held.into_iter().filter(|(held, _)| env.is_none_or(|env| env == held));
    asked
        .map(|(env, hold)| {
            let damaged = snapshot.damage_of(&env).next().is_some();
            let next = if damaged {
                "its instances and its routes stay as they are; all other environments go on"
            } else {
                "it is tried again every 10 s; its instances and its routes stay as they are, others go on"
            };
            let command = if damaged { "kiln restore" } else { "kiln audit" };
            Reason {
                what: format!("`{}` is on hold: {}", env.env, hold.reason),
                env,
                since: observed.now.since(hold.since),
                next: next.into(),
                deadline: None,
                command: Some(command.into()),
                evidence: snapshot.damaged.iter().map(|row| format!("{}: {}", row.what, row.error)).collect(),
            }
        })
        .collect()
}

/// Services of which most instances look sick at once.
pub(super) fn storms(snapshot: &Snapshot, observed: &Observed, environment: &Environment) -> Vec<Reason> {
    let Some(edge) = &observed.edge else { return vec![] };
    let release = environment.serving.and_then(|number| snapshot.release(&environment.env, number));
    let services = release.into_iter().flat_map(|release| release.spec.services.keys());
    let storm = |service| Some((service, storm::over(edge, &environment.env, service)?));
    services
        .filter_map(storm)
        .map(|(service, storm)| Reason {
            env: environment.env.clone(),
            what: format!("{} of {} instances of `{service}` look sick at once", storm.sick, storm.of),
            since: storm.age,
            next: "they are not replaced, since what they share is more likely at fault; traffic goes to those that \
                   are left, or to all of them if none is; then one at a time is replaced"
                .into(),
            deadline: Some(Millis(STORM_MAX.0.saturating_sub(storm.age.0))),
            command: Some(format!("kiln logs {service} --env {}", environment.env.env)),
            evidence: storm.reason.into_iter().collect(),
        })
        .collect()
}
