//! What a mix of two releases means: which slots each of them fills, and which share of the requests each of them gets.
//! Pure functions of desired state; the route table and its lint both ask them.

use crate::route::replicas;
use kiln_model::mix::BASELINE_SLOT;
use kiln_model::{Environment, Mix, Release, ReleaseNumber, ServiceName, ServiceSpec, Share, Snapshot};
use std::ops::Range;

/// The weights of the serving release, the candidate and the baseline, for a candidate that gets `percent` of the
/// requests. The baseline gets as much as the candidate as long as the serving release keeps as much as the baseline.
pub fn weights(percent: u32) -> [u32; 3] {
    let percent = percent.clamp(1, 99);
    let baseline = percent.min((100 - percent) / 2).max(1);
    [100 - percent - baseline, percent, baseline]
}

/// Instances that carry `percent` of the requests that `n` instances carry; at least one.
pub fn in_proportion(n: u32, percent: u32) -> u32 {
    (n * percent.min(100)).div_ceil(100).max(n.min(1))
}

/// The candidate of an environment, if two releases share its traffic.
pub fn candidate<'a>(snapshot: &'a Snapshot, environment: &'a Environment) -> Option<(&'a Mix, &'a Release)> {
    let mix = environment.mix.as_ref()?;
    Some((mix, snapshot.release(&environment.env, mix.release)?))
}

/// The regular slots that a service of a release fills, counted from 0.
pub fn slots(environment: &Environment, release: ReleaseNumber, service: &ServiceSpec) -> u32 {
    let all = replicas(environment, service);
    let Some(mix) = &environment.mix else { return all };
    let is_candidate = mix.release == release;
    match &mix.share {
        Share::Canary { size, .. } if is_candidate => in_proportion(all, *size),
        Share::Rolling { counts, .. } if is_candidate => {
            counts.get(&service.name).map_or(0, |c| c.candidate).min(all)
        }
        Share::Rolling { counts, .. } if environment.serving == Some(release) => {
            counts.get(&service.name).map_or(all, |c| c.serving).min(all)
        }
        _ => all,
    }
}

/// The slots of the fresh baseline that a service of a release fills: none but in a canary, by the serving release.
pub fn baseline_slots(
    snapshot: &Snapshot,
    environment: &Environment,
    release: ReleaseNumber,
    service: &ServiceSpec,
) -> Range<u32> {
    let none = BASELINE_SLOT..BASELINE_SLOT;
    let Some((mix, candidate)) = candidate(snapshot, environment) else { return none };
    let Share::Canary { weight, size } = mix.share else { return none };
    if environment.serving != Some(release) || !is_shared(candidate, service) {
        return none;
    }
    let [_, _, share] = weights(if size >= 100 { weight } else { size });
    BASELINE_SLOT..BASELINE_SLOT + in_proportion(replicas(environment, service), share)
}

/// Whether the candidate has that service too, and both take requests.
pub fn is_shared(candidate: &Release, service: &ServiceSpec) -> bool {
    let other = candidate.spec.services.get(&service.name);
    service.port.is_some() && other.is_some_and(|other| other.port.is_some())
}

/// Who takes the requests of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The instances of the serving release.
    Serving,
    /// Those of the candidate.
    Candidate,
    /// The fresh ones of the serving release.
    Baseline,
}

/// Who gets which share of the requests of a service of the serving release. `targets` tells how many instances may be
/// sent requests.
pub fn shares(
    snapshot: &Snapshot,
    environment: &Environment,
    service: &ServiceSpec,
    targets: impl Fn(Role) -> usize,
) -> Vec<(Role, u32)> {
    let alone = vec![(Role::Serving, 1)];
    let Some((mix, candidate)) = candidate(snapshot, environment) else { return alone };
    if !is_shared(candidate, service) {
        return alone;
    }
    match mix.share {
        Share::Canary { weight: weight @ 1.., .. } => {
            let [serving, candidate, baseline] = weights(weight);
            vec![(Role::Serving, serving), (Role::Candidate, candidate), (Role::Baseline, baseline)]
        }
        Share::Rolling { live: true, .. } => {
            let count = |role| u32::try_from(targets(role)).unwrap_or(u32::MAX);
            match (count(Role::Serving), count(Role::Candidate)) {
                (_, 0) => alone,
                (serving, candidate) => vec![(Role::Serving, serving), (Role::Candidate, candidate)],
            }
        }
        _ => alone,
    }
}

/// The instances that a service of the serving release and its candidate should keep in use together, and at most have.
/// None if the candidate does not have it.
pub fn bounds(
    environment: &Environment,
    serving: &Release,
    candidate: &Release,
    service: &ServiceName,
) -> (u32, u32) {
    let count = |release: &Release| release.spec.services.get(service).map(|s| replicas(environment, s));
    match (count(serving), count(candidate)) {
        (Some(old), Some(new)) => (old.min(new), old.max(new)),
        (old, new) => (0, old.or(new).unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_add_up_and_the_baseline_gets_the_candidates_share_as_long_as_it_can() {
        assert_eq!(weights(5), [90, 5, 5]);
        assert_eq!(weights(33), [34, 33, 33]);
        assert_eq!(weights(50), [25, 50, 25]);
        assert_eq!(weights(99), [0, 99, 1]);
        for percent in 1..100 {
            assert_eq!(weights(percent).iter().sum::<u32>(), 100);
        }
        let sizes = [(1, 5, 1), (10, 5, 1), (10, 11, 2), (100, 5, 5), (3, 100, 3), (0, 50, 0)];
        for (n, percent, expected) in sizes {
            assert_eq!(in_proportion(n, percent), expected, "{n} at {percent} %");
        }
    }
}
