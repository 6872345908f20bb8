//! `requires`: an environment takes only images that another one served for a time, and that were not taken back there.
//!
//! What counts is the stricter of the new release's requirement and of the one that serves: no commit lifts it for itself.
//! Time is counted on the clock of deadlines, from the success of a rollout to the success of the next one; what was before
//! a reboot of the host is not counted.

use super::deploy::Images;
use super::{NotMet, Refusal, Request};
use kiln_model::{
    Boot, EnvName, EnvRef, Millis, Promotion, Release, ReleaseNumber, ReleaseSpec, Requirement, RolloutKind,
    RolloutPhase, Snapshot, limits,
};
use std::collections::BTreeMap;

/// What a release is accepted with.
pub(super) struct Met {
    /// Its images and where they come from; none are to be baked.
    pub given: Option<(Promotion, Images)>,
    /// Why it was accepted although something was not met.
    pub overridden: Option<String>,
}

/// Why images do not meet a requirement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmet {
    /// They never served there.
    Never,
    /// A rollout of them was taken back there, or traffic was taken off them.
    TakenBack,
    /// They have not served there long enough.
    TooShort {
        /// How long they have.
        served: Millis,
        /// What is missing.
        missing: Millis,
        /// Whether they serve there now, so that it passes.
        runs: bool,
    },
}

impl std::fmt::Display for Unmet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unmet::Never => f.write_str("it never served these"),
            Unmet::TakenBack => f.write_str("these were taken back there"),
            Unmet::TooShort { served, missing, .. } => {
                write!(f, "it has served these for {served}, {missing} are missing")
            }
        }
    }
}

/// Checks what the environment requires. A deploy takes the images that were served of its commit, so that nothing else than
/// what was tried can come of it.
pub(super) fn meet(
    snapshot: &Snapshot,
    request: &Request,
    env: &EnvRef,
    spec: &ReleaseSpec,
    given: Option<(Promotion, Images)>,
    reason: Option<&str>,
) -> Result<Met, Refusal> {
    let reason = reason.map(str::trim);
    if reason.is_some_and(|r| r.is_empty() || r.len() > limits::REASON_BYTES_MAX || r.contains('\n')) {
        return Err(Refusal::NoReason);
    }
    let requirements = requirements(snapshot, env, spec);
    let judge = |images: &Images| {
        requirements.iter().find_map(|required| {
            unmet(snapshot, env, required, images, request.now).map(|unmet| (required.clone(), unmet))
        })
    };
    let verdict = match (&given, requirements.first()) {
        (_, None) => return Ok(Met { given, overridden: None }),
        (Some((_, images)), _) => match judge(images) {
            None => return Ok(Met { given, overridden: None }),
            Some(verdict) => verdict,
        },
        (None, Some(first)) => {
            let mut verdict = (first.clone(), Unmet::Never);
            for (promotion, images) in served_of_commit(snapshot, env, first, spec) {
                match judge(&images) {
                    None => return Ok(Met { given: Some((promotion, images)), overridden: None }),
                    // The newest one is what people ask about.
                    Some(why) if verdict.1 == Unmet::Never => verdict = why,
                    Some(_) => {}
                }
            }
            verdict
        }
    };
    let (Requirement { env: required, time }, unmet) = verdict;
    match reason {
        Some(reason) => Ok(Met { given, overridden: Some(format!("{required}: {unmet}; {reason}")) }),
        None => {
            let (env, commit) = (env.clone(), spec.commit.clone());
            Err(Refusal::RequirementNotMet(Box::new(NotMet { env, commit, required, time, unmet })))
        }
    }
}

/// What is required of the images, by environment.
pub fn requirements(snapshot: &Snapshot, env: &EnvRef, spec: &ReleaseSpec) -> Vec<Requirement> {
    let serving = snapshot.environments.get(env).and_then(|e| e.serving);
    // One that is destroyed has not forgotten what it was.
    let last = || snapshot.releases_of(env).rev().find(|release| release.served);
    let serving = serving.and_then(|number| snapshot.release(env, number)).or_else(last);
    let mut all: BTreeMap<EnvName, Millis> = BTreeMap::new();
    let both = spec.requires.iter().chain(serving.and_then(|release| release.spec.requires.as_ref()));
    for Requirement { env: required, time } in both.filter(|required| required.env != env.env) {
        let strictest = all.entry(required.clone()).or_default();
        *strictest = (*strictest).max(*time);
    }
    all.into_iter().map(|(env, time)| Requirement { env, time }).collect()
}

/// The images of the commit's releases in the required environment, newest first.
fn served_of_commit(
    snapshot: &Snapshot,
    env: &EnvRef,
    required: &Requirement,
    spec: &ReleaseSpec,
) -> Vec<(Promotion, Images)> {
    let source = EnvRef { project: env.project.clone(), env: required.env.clone() };
    let of_commit = snapshot.releases_of(&source).rev().filter(|r| r.served && r.spec.commit == spec.commit);
    let images = |release: &Release| -> Option<Images> {
        let all = release.images.as_ref()?;
        spec.images.iter().map(|name| Some((name.clone(), *all.get(name)?))).collect()
    };
    let with_origin = |release: &std::sync::Arc<Release>| {
        let promotion = Promotion { env: required.env.clone(), release: release.number };
        Some((promotion, images(release)?))
    };
    of_commit.filter_map(with_origin).collect()
}

/// What the required environment lacks to have shown that the images work.
fn unmet(
    snapshot: &Snapshot,
    env: &EnvRef,
    required: &Requirement,
    images: &Images,
    now: Boot,
) -> Option<Unmet> {
    let source = EnvRef { project: env.project.clone(), env: required.env.clone() };
    let has = |number: ReleaseNumber| {
        let release = snapshot.release(&source, number);
        release
            .and_then(|r| r.images.as_ref())
            .is_some_and(|have| images.values().all(|digest| have.values().any(|other| other == digest)))
    };
    let (mut served, mut since, mut state) = (Millis(0), None::<Boot>, Unmet::Never);
    for rollout in snapshot.rollouts.values().filter(|r| r.env == source) {
        let ours = has(rollout.to);
        match rollout.phase {
            RolloutPhase::Succeeded => {
                if let Some(begun) = since.take() {
                    served = Millis(served.0 + rollout.since.since(begun).0);
                    // Traffic was taken off them on purpose.
                    if rollout.kind == RolloutKind::Rollback && !ours {
                        (served, state) = (Millis(0), Unmet::TakenBack);
                    }
                }
                if ours {
                    since = Some(rollout.since);
                    state = Unmet::TooShort { served, missing: Millis(0), runs: true };
                }
            }
            RolloutPhase::TakenBack | RolloutPhase::FailedNoPrevious if ours => {
                (served, state) = (Millis(0), Unmet::TakenBack);
                since = None;
            }
            _ => {}
        }
    }
    let serving = snapshot.environments.get(&source).and_then(|e| e.serving);
    let runs = since.filter(|_| serving.is_some_and(has));
    served = Millis(served.0 + runs.map_or(0, |begun| now.since(begun).0));
    match state {
        Unmet::TooShort { .. } if served >= required.time => None,
        Unmet::TooShort { .. } => {
            let missing = Millis(required.time.0 - served.0);
            Some(Unmet::TooShort { served, missing, runs: runs.is_some() })
        }
        other => Some(other),
    }
}
