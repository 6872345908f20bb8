//! `deploy`: a new release, and the rollout to it.

use super::requirement::{Met, meet};
use super::rollout::{free_routes, start};
use super::{Decision, Outcome, Refusal, Request, event, newest_active, secret};
use kiln_model::{
    Digest, EnvRef, Environment, ImageName, Mutation, Promotion, Release, ReleaseSpec, RolloutKind, Snapshot,
};
use std::collections::BTreeMap;

/// Images of releases.
pub(super) type Images = BTreeMap<ImageName, Digest>;

pub(super) fn deploy(
    snapshot: &Snapshot,
    request: &Request,
    env: &EnvRef,
    spec: &ReleaseSpec,
    reason: Option<&str>,
) -> Result<Decision, Refusal> {
    accept(snapshot, request, env, spec, None, reason)
}

/// Accepts a release whose images are to be baked, or `given` with where they come from.
pub(super) fn accept(
    snapshot: &Snapshot,
    request: &Request,
    env: &EnvRef,
    spec: &ReleaseSpec,
    given: Option<(Promotion, Images)>,
    reason: Option<&str>,
) -> Result<Decision, Refusal> {
    let spec = &secret::bind(snapshot, env, spec)?;
    let current = snapshot.environments.get(env).map(|e| Environment::clone(e));
    let mut environment = current.unwrap_or_else(|| Environment::new(env.clone()));
    let heading_to =
        newest_active(snapshot, env).map(|r| (r.to, Some(r.id))).or(environment.serving.map(|n| (n, None)));
    let has_images = |release: &Release| {
        given.as_ref().is_none_or(|(_, images)| release.images.as_ref().is_none_or(|have| have == images))
    };
    if let Some((number, rollout)) = heading_to
        && !environment.destroyed
        && snapshot.release(env, number).is_some_and(|release| release.spec == *spec && has_images(release))
    {
        let outcome = Outcome::Already { release: number, rollout };
        return Ok(Decision { mutations: vec![], events: vec![], outcome });
    }
    let Met { given, overridden } = meet(snapshot, request, env, spec, given, reason)?;
    free_routes(snapshot, env, spec)?;
    let number = environment.next_release;
    environment.next_release = number.next();
    environment.destroyed = false;
    environment.network = snapshot.network_for(env);
    let (promoted_from, images) = given.unzip();
    let mut decision = start(snapshot, request, &environment, RolloutKind::Deploy, number);
    let subject = || format!("release {number}");
    if let Some(Promotion { env: source, release }) = &promoted_from {
        let detail = format!("images of release {release} of {source}");
        decision.events.insert(0, event(request, env, "promote", subject(), detail));
    }
    if let Some(text) = &overridden {
        decision.events.insert(0, event(request, env, "requirement.overridden", subject(), text.clone()));
    }
    let release = Release {
        env: env.clone(),
        number,
        spec: spec.clone(),
        images,
        created: request.at,
        actor: request.actor.clone(),
        served: false,
        promoted_from,
        overridden,
    };
    decision.mutations.insert(0, Mutation::PutRelease(Box::new(release)));
    Ok(decision)
}
