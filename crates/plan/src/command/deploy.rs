//! `deploy`: a new release, and the rollout to it.

use super::rollout::{free_routes, start};
use super::{Decision, Outcome, Refusal, Request, newest_active};
use kiln_model::{EnvRef, Environment, Mutation, Release, ReleaseSpec, RolloutKind, Snapshot};

pub(super) fn deploy(
    snapshot: &Snapshot,
    request: &Request,
    env: &EnvRef,
    spec: &ReleaseSpec,
) -> Result<Decision, Refusal> {
    let current = snapshot.environments.get(env).map(|e| Environment::clone(e));
    let mut environment = current.unwrap_or_else(|| Environment::new(env.clone()));
    let heading_to =
        newest_active(snapshot, env).map(|r| (r.to, Some(r.id))).or(environment.serving.map(|n| (n, None)));
    if let Some((number, rollout)) = heading_to
        && !environment.destroyed
        && snapshot.release(env, number).is_some_and(|release| release.spec == *spec)
    {
        let outcome = Outcome::Already { release: number, rollout };
        return Ok(Decision { mutations: vec![], events: vec![], outcome });
    }
    free_routes(snapshot, env, spec)?;
    let number = environment.next_release;
    environment.next_release = number.next();
    environment.destroyed = false;
    environment.network = snapshot.network_for(env);
    let release = Release {
        env: env.clone(),
        number,
        spec: spec.clone(),
        images: None,
        created: request.at,
        actor: request.actor.clone(),
        served: false,
    };
    let mut decision = start(snapshot, request, &environment, RolloutKind::Deploy, number);
    decision.mutations.insert(0, Mutation::PutRelease(Box::new(release)));
    Ok(decision)
}
