//! `destroy`: nothing of an environment may run.

use super::rollout::ended;
use super::{Decision, Outcome, Refusal, Request, event, existing};
use kiln_model::{EnvRef, Mutation, RolloutPhase, Snapshot};

pub(super) fn destroy(snapshot: &Snapshot, request: &Request, env: &EnvRef) -> Result<Decision, Refusal> {
    let mut environment = existing(snapshot, env)?.clone();
    environment.destroyed = true;
    environment.serving = None;
    environment.keep = None;
    environment.mix = None;
    let mut mutations = vec![Mutation::PutEnvironment(environment)];
    for rollout in snapshot.active_rollouts(env).filter(|r| r.phase.is_before_switch()) {
        let reason = format!("environment destroyed by {}", request.actor);
        mutations.push(Mutation::PutRollout(Box::new(ended(
            rollout,
            RolloutPhase::Aborted,
            request,
            reason,
        ))));
    }
    let events = vec![event(request, env, "destroy", format!("environment {env}"), String::new())];
    Ok(Decision { mutations, events, outcome: Outcome::Destroying })
}
