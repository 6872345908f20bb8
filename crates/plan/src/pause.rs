//! `kiln pause` and `kiln resume`: the commands. A pause is one row; what it means for a pass is in [`crate::still`].

use crate::command::{Decision, Outcome, Refusal, Request};
use kiln_model::{EnvRef, Event, Millis, Mutation, Pause, Snapshot, limits};

/// Stops effects of one environment, or of all. A pause that holds already stays as it is.
pub(crate) fn pause(
    snapshot: &Snapshot,
    request: &Request,
    env: Option<&EnvRef>,
    reason: &str,
) -> Result<Decision, Refusal> {
    if reason.trim().is_empty() || reason.len() > limits::REASON_BYTES_MAX {
        return Err(Refusal::NoPauseReason);
    }
    if let Some(pause) = own(snapshot, env)? {
        let outcome = Outcome::Paused { pause: pause.clone() };
        return Ok(Decision { mutations: vec![], events: vec![], outcome });
    }
    // One line: it is shown in lists.
    let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
    let pause =
        Pause { actor: request.actor.clone(), reason: reason.clone(), since: request.now, at: request.at };
    let mutations = vec![Mutation::Pause { env: env.cloned(), pause: Some(pause.clone()) }];
    let events = vec![event(request, env, "pause", reason)];
    Ok(Decision { mutations, events, outcome: Outcome::Paused { pause } })
}

/// Goes on. The time of the pause does not count for what has a deadline: rollouts have left what they had, and the
/// release that is kept for a rollback is kept for as long as it would have been.
pub(crate) fn resume(
    snapshot: &Snapshot,
    request: &Request,
    env: Option<&EnvRef>,
) -> Result<Decision, Refusal> {
    let pause = own(snapshot, env)?.ok_or_else(|| Refusal::NotPaused { env: env.cloned() })?.clone();
    let mut mutations = vec![Mutation::Pause { env: env.cloned(), pause: None }];
    for environment in snapshot.environments.values().filter(|e| env.is_none_or(|env| env == &e.env)) {
        let other = if env.is_some() { snapshot.paused.as_ref() } else { environment.paused.as_ref() };
        let span = pause.span(request.now, other);
        mutations.extend(moved(snapshot, &environment.env, span, env.is_some()));
    }
    let detail = format!("after {}", request.now.since(pause.since));
    let events = vec![event(request, env, "resume", detail)];
    Ok(Decision { mutations, events, outcome: Outcome::Resumed { after: request.now.since(pause.since) } })
}

fn own<'a>(snapshot: &'a Snapshot, env: Option<&EnvRef>) -> Result<Option<&'a Pause>, Refusal> {
    let Some(env) = env else { return Ok(snapshot.paused.as_ref()) };
    let environment = snapshot.environments.get(env);
    let environment = environment.ok_or_else(|| Refusal::NoEnvironment { env: env.clone() })?;
    Ok(environment.paused.as_ref())
}

/// Rows of an environment whose deadlines end later by `span`.
fn moved(snapshot: &Snapshot, env: &EnvRef, span: Millis, own: bool) -> Vec<Mutation> {
    let mut rows = vec![];
    if span == Millis(0) {
        return rows;
    }
    for rollout in snapshot.active_rollouts(env) {
        let mut rollout = kiln_model::Rollout::clone(rollout);
        rollout.since = rollout.since + span;
        rollout.deadline = rollout.deadline.map(|deadline| deadline + span);
        rows.push(Mutation::PutRollout(Box::new(rollout)));
    }
    if let Some(environment) = snapshot.environments.get(env).filter(|e| e.keep.is_some()) {
        let mut environment = kiln_model::Environment::clone(environment);
        environment.keep = environment.keep.map(|(release, until)| (release, until + span));
        if own {
            environment.paused = None;
        }
        rows.push(Mutation::PutEnvironment(environment));
    }
    rows
}

fn event(request: &Request, env: Option<&EnvRef>, kind: &str, detail: String) -> Event {
    let subject = env.map_or("the whole server".to_owned(), |env| format!("environment {env}"));
    Event {
        at: request.at,
        actor: request.actor.clone(),
        env: env.cloned(),
        kind: kind.into(),
        subject,
        detail,
    }
}

/// What a command that was recorded waits for, in one line; none if nothing holds it up.
pub fn waits(snapshot: &Snapshot, env: &EnvRef) -> Option<String> {
    let own = snapshot.environments.get(env).and_then(|environment| environment.paused.as_ref());
    let (pause, command) = match (own, &snapshot.paused) {
        (Some(pause), _) => (pause, format!("kiln resume --env {}", env.env)),
        (None, Some(pause)) => (pause, "kiln resume".to_owned()),
        (None, None) => return None,
    };
    Some(format!("paused by {} ({}): it is recorded and waits for `{command}`", pause.actor, pause.reason))
}
