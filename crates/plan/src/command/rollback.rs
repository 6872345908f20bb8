//! `rollback`: a rollout to a release that exists.

use super::rollout::{free_routes, start};
use super::{Decision, Outcome, Refusal, Request, existing, newest_active};
use kiln_model::{EnvRef, Environment, Release, ReleaseNumber, RolloutKind, Snapshot};
use std::sync::Arc;

pub(super) fn rollback(
    snapshot: &Snapshot,
    request: &Request,
    env: &EnvRef,
    to: Option<ReleaseNumber>,
) -> Result<Decision, Refusal> {
    let environment = existing(snapshot, env)?;
    let number = match to {
        Some(number) => number,
        None => rollback_target(snapshot, environment)
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

/// Where a rollback goes that names no release: the newest below the serving one that ever served. While a candidate has
/// traffic, going back means that what serves has all of it.
pub fn rollback_target(snapshot: &Snapshot, environment: &Environment) -> Option<ReleaseNumber> {
    let mixed = environment.serving.filter(|_| environment.mix.is_some());
    let served = |r: &&Arc<Release>| r.served && environment.serving.is_none_or(|serving| r.number < serving);
    mixed.or_else(|| snapshot.releases_of(&environment.env).rev().find(served).map(|r| r.number))
}
