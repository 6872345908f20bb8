//! `promote`: a new release with the very images that another environment runs. Nothing is baked.

use super::deploy::accept;
use super::{Decision, Refusal, Request, existing};
use kiln_model::{EnvName, EnvRef, Promotion, Release, ReleaseNumber, ReleaseSpec, Snapshot};
use std::sync::Arc;

pub(super) fn promote(
    snapshot: &Snapshot,
    request: &Request,
    (env, spec): (&EnvRef, &ReleaseSpec),
    (from, number): (&EnvName, Option<ReleaseNumber>),
    reason: Option<&str>,
) -> Result<Decision, Refusal> {
    let from = EnvRef { project: env.project.clone(), env: from.clone() };
    let source = source(snapshot, &from, number)?;
    let have = source.images.iter().flatten();
    let images: super::deploy::Images =
        have.filter(|(name, _)| spec.images.contains(name)).map(|(n, d)| (n.clone(), *d)).collect();
    if let Some(image) = spec.images.iter().find(|name| !images.contains_key(*name)) {
        let (release, image) = (source.number, image.clone());
        return Err(Refusal::LacksImage { env: from, release, image });
    }
    let promotion = Promotion { env: from.env, release: source.number };
    accept(snapshot, request, env, spec, Some((promotion, images)), reason)
}

/// The release whose images are promoted: the one that serves, or `number`. It must have served.
pub fn source<'a>(
    snapshot: &'a Snapshot,
    from: &EnvRef,
    number: Option<ReleaseNumber>,
) -> Result<&'a Arc<Release>, Refusal> {
    let serving = existing(snapshot, from)?.serving;
    let number = number.or(serving).ok_or_else(|| Refusal::NothingServes { env: from.clone() })?;
    let release = snapshot.release(from, number);
    let release = release.ok_or_else(|| Refusal::NoRelease { env: from.clone(), release: number })?;
    match (&release.images, release.served) {
        (Some(_), true) => Ok(release),
        (Some(_), false) => Err(Refusal::NeverServed { env: from.clone(), release: number }),
        (None, _) => Err(Refusal::NotBaked { env: from.clone(), release: number }),
    }
}
