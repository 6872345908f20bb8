//! `abort`: the end of a rollout that has not switched yet.

use super::rollout::ended;
use super::{Decision, Outcome, Refusal, Request, event, existing, newest_active};
use kiln_model::{EnvRef, Mutation, RolloutPhase, Snapshot};

pub(super) fn abort(snapshot: &Snapshot, request: &Request, env: &EnvRef) -> Result<Decision, Refusal> {
    existing(snapshot, env)?;
    let active = newest_active(snapshot, env).ok_or_else(|| Refusal::NoRollout { env: env.clone() })?;
    if !active.phase.is_before_switch() {
        return Err(Refusal::AlreadySwitched { env: env.clone(), rollout: active.id });
    }
    let rollout = ended(active, RolloutPhase::Aborted, request, format!("aborted by {}", request.actor));
    let events = vec![event(request, env, "abort", format!("rollout {}", active.id), String::new())];
    let outcome = Outcome::Aborted { rollout: active.id };
    Ok(Decision { mutations: vec![Mutation::PutRollout(Box::new(rollout))], events, outcome })
}
