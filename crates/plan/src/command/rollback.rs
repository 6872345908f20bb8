//! `rollback`: a rollout to a release that exists.

use super::rollout::{free_routes, start};
use super::{Decision, Outcome, Refusal, Request, existing, newest_active};
use kiln_model::{EnvRef, ReleaseNumber, RolloutKind, Snapshot};

pub(super) fn rollback(
    snapshot: &Snapshot,
    request: &Request,
    env: &EnvRef,
    to: Option<ReleaseNumber>,
) -> Result<Decision, Refusal> {
    let environment = existing(snapshot, env)?;
    let number = match to {
        Some(number) => number,
        None => snapshot
            .releases_of(env)
            .rev()
            .find(|r| r.served && environment.serving.is_none_or(|serving| r.number < serving))
            .map(|r| r.number)
            .ok_or_else(|| Refusal::NothingBefore { env: env.clone() })?,
    };
    let release = snapshot
        .release(env, number)
        .ok_or_else(|| Refusal::NoRelease { env: env.clone(), release: number })?;
    if release.images.is_none() {
        return Err(Refusal::NotBaked { env: env.clone(), release: number });
    }
    let active = newest_active(snapshot, env);
    let heading_to = active.map(|r| (r.to, Some(r.id))).or(environment.serving.map(|n| (n, None)));
    if let Some((heading, rollout)) = heading_to
        && heading == number
        && !environment.destroyed
    {
        let outcome = Outcome::Already { release: number, rollout };
        return Ok(Decision { mutations: vec![], events: vec![], outcome });
    }
    free_routes(snapshot, env, &release.spec)?;
    let mut environment = environment.clone();
    environment.destroyed = false;
    environment.network = snapshot.network_for(env);
    Ok(start(snapshot, request, &environment, RolloutKind::Rollback, number))
}
