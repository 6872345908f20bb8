//! Autoscaling: how many instances a service should have for the requests that it gets. Up at once, down only when
//! the load stayed low for minutes; what is not known changes nothing. The rule is the one of the Kubernetes horizontal
//! pod autoscaler: current × (rate / target), with a tolerance of a tenth and a stabilisation window for the way down.

use crate::draft::Draft;
use crate::route::replicas;
use kiln_model::edge::EdgeStatus;
use kiln_model::{Autoscale, Boot, EnvRef, Environment, InstanceId, Millis, Release, ServiceName, Snapshot};
use std::collections::{BTreeMap, VecDeque};

/// A rate is that of so long: shorter ones are noise.
pub const WINDOW: Millis = Millis::from_secs(15);
/// For so long the rate must have been low before instances are taken away.
pub const STABLE: Millis = Millis::from_secs(300);
/// Time between two samples.
const EVERY: Millis = Millis(1000);
/// In percent: a rate so close to the target changes nothing.
const TOLERANCE: u64 = 10;

/// Requests of one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Requests in 1,000 seconds, over the last [`WINDOW`].
    pub now: u64,
    /// The highest of these within [`STABLE`]; none if that long was not observed yet.
    pub peak: Option<u64>,
}

/// Makes rates of what the edge counts. Kept in memory: after a restart nothing is known until a window has passed.
#[derive(Debug, Default)]
pub struct Rates {
    process: String,
    counted: BTreeMap<InstanceId, u64>,
    services: BTreeMap<(EnvRef, ServiceName), Samples>,
    last: Option<Boot>,
}

#[derive(Debug, Default)]
struct Samples {
    total: u64,
    /// (when, total then), oldest first.
    totals: VecDeque<(Boot, u64)>,
    /// (when, rate then), oldest first.
    rates: VecDeque<(Boot, u64)>,
    since: Option<Boot>,
}

impl Rates {
    /// Takes in what the edge reports now, of the services that scale by themselves.
    pub fn record(&mut self, snapshot: &Snapshot, edge: Option<&EdgeStatus>, now: Boot) {
        if self.last.is_some_and(|last| now < last + EVERY) {
            return;
        }
        let services = scaling(snapshot);
        self.services.retain(|service, _| services.contains_key(service));
        let Some(edge) = edge.filter(|_| !services.is_empty()) else {
            // What happens unseen is no rate: a new window begins when it is seen again.
            *self = Self::default();
            return;
        };
        if self.process != edge.process {
            *self = Self { process: edge.process.clone(), ..Self::default() };
        }
        self.last = Some(now);
        let targets = edge.targets.iter().map(|t| ((t.env.clone(), t.service.clone()), t));
        let mut counted = BTreeMap::new();
        for (service, target) in targets.filter(|(service, _)| services.contains_key(service)) {
            let requests = target.tally.requests;
            let before = self.counted.get(&target.instance).copied().unwrap_or(0);
            self.services.entry(service).or_default().total += requests.saturating_sub(before);
            counted.insert(target.instance.clone(), requests);
        }
        self.counted = counted;
        services.into_keys().for_each(|service| self.services.entry(service).or_default().sample(now));
    }

    /// The rates that are known.
    pub fn known(&self) -> BTreeMap<(EnvRef, ServiceName), Rate> {
        let rate = |samples: &Samples| {
            let (at, now) = *samples.rates.back()?;
            let long = samples.since.is_some_and(|since| since + STABLE + WINDOW <= at);
            let peak = samples.rates.iter().map(|(_, rate)| *rate).max().filter(|_| long);
            Some(Rate { now, peak })
        };
        self.services
            .iter()
            .filter_map(|(service, samples)| Some((service.clone(), rate(samples)?)))
            .collect()
    }
}

impl Samples {
    fn sample(&mut self, now: Boot) {
        self.since.get_or_insert(now);
        self.totals.push_back((now, self.total));
        // The newest one that is a window old, and what came after it.
        while self.totals.get(1).is_some_and(|(at, _)| *at + WINDOW <= now) {
            self.totals.pop_front();
        }
        while self.rates.front().is_some_and(|(at, _)| *at + STABLE < now) {
            self.rates.pop_front();
        }
        if let Some((at, total)) = self.totals.front().filter(|(at, _)| *at + WINDOW <= now) {
            let (requests, span) = (self.total - total, now.since(*at).0.max(1));
            self.rates.push_back((now, requests.saturating_mul(1_000_000) / span));
        }
    }
}

/// Services of serving releases that scale by themselves, with their rules.
fn scaling(snapshot: &Snapshot) -> BTreeMap<(EnvRef, ServiceName), Autoscale> {
    let serving = |env: &Environment| env.serving.and_then(|n| snapshot.release(&env.env, n));
    let releases = snapshot.environments.values().filter(|e| !e.destroyed).filter_map(|e| serving(e));
    let services = releases.flat_map(|release| release.spec.services.values().map(move |s| (release, s)));
    let rule = |(release, service): (&std::sync::Arc<Release>, &kiln_model::ServiceSpec)| {
        Some(((release.env.clone(), service.name.clone()), service.autoscale?))
    };
    services.filter_map(rule).collect()
}

/// How many instances a service with `current` ones should have.
fn desired(rule: Autoscale, current: u32, rate: Rate) -> u32 {
    let target = u64::from(rule.requests) * 1000;
    let needed = |rate: u64| {
        let close =
            rate.abs_diff(u64::from(current) * target) * 100 <= u64::from(current) * target * TOLERANCE;
        let count = u32::try_from(rate.div_ceil(target.max(1))).unwrap_or(u32::MAX);
        if close { current } else { count }.clamp(rule.min, rule.max)
    };
    let now = needed(rate.now);
    if now >= current {
        return now;
    }
    // The way down goes no further than the highest load of the last minutes allows.
    rate.peak.map_or(current, |peak| needed(peak).min(current)).max(rule.min)
}

/// What changes in an environment; empty if it is as it should be. Nobody scales what a user scaled by hand, and nothing
/// is taken away while a rollout is under way.
pub(crate) fn changes(draft: &Draft<'_>, environment: &Environment) -> Vec<(ServiceName, u32, u32, Rate)> {
    let release = environment.serving.and_then(|n| draft.snapshot.release(&environment.env, n));
    let services = release.into_iter().flat_map(|release| release.spec.services.values());
    let rolls_out = || draft.snapshot.active_rollouts(&environment.env).next().is_some();
    let change = |service: &kiln_model::ServiceSpec| {
        let rule = service.autoscale.filter(|_| !environment.scale.contains_key(&service.name))?;
        let rate = draft.observed.rates.get(&(environment.env.clone(), service.name.clone()))?;
        let current = replicas(environment, service);
        let desired = desired(rule, current, *rate);
        let changes = desired > current || (desired < current && !rolls_out());
        changes.then(|| (service.name.clone(), current, desired, *rate))
    };
    services.filter_map(change).collect()
}

/// Writes down how many instances services should have for their load.
pub(crate) fn step(draft: &mut Draft<'_>, env: &EnvRef) {
    let Some(environment) = draft.environment(env).filter(|e| !e.destroyed) else { return };
    for (service, from, to, rate) in changes(draft, &environment) {
        let detail = format!("{from} to {to} instances for {} requests/s", rate.now / 1000);
        draft.event(env, "autoscale", format!("service {service}"), detail);
        draft.put_environment(env, |env| {
            env.auto.insert(service, to);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Autoscale = Autoscale { min: 2, max: 10, requests: 100 };

    #[test]
    fn up_at_once_down_by_the_peak_and_never_without_knowledge() {
        let rate = |now: u64, peak: Option<u64>| Rate { now: now * 1000, peak: peak.map(|p| p * 1000) };
        let table = [
            (2, rate(150, None), 2, "fits"),
            (2, rate(215, None), 2, "within the tolerance"),
            (2, rate(250, None), 3, "too much for two"),
            (2, rate(5000, None), 10, "at most the maximum"),
            (8, rate(100, None), 8, "nobody knows the last minutes"),
            (8, rate(100, Some(650)), 7, "as far as the peak allows"),
            (8, rate(100, Some(900)), 8, "there was more a moment ago"),
            (8, rate(0, Some(0)), 2, "at least the minimum"),
            (1, rate(0, None), 2, "below the minimum"),
            (0, rate(0, Some(0)), 2, "below the minimum from nothing"),
        ];
        for (current, rate, expected, why) in table {
            assert_eq!(desired(RULE, current, rate), expected, "{why}");
        }
    }

    #[test]
    fn a_rate_is_counted_over_a_window_and_begins_anew_with_another_edge() {
        let mut samples = Samples::default();
        let mut seen = vec![];
        for second in 0..=20_u64 {
            samples.total = second * 40;
            samples.sample(Boot(second * 1000));
            seen.push(samples.rates.back().map(|(_, rate)| *rate));
        }
        assert!(seen[..15].iter().all(Option::is_none), "{seen:?}");
        assert!(seen[15..].iter().all(|rate| *rate == Some(40_000)), "{seen:?}");
        let snapshot = Snapshot::default();
        let mut rates = Rates { process: "1".into(), ..Rates::default() };
        rates.record(&snapshot, Some(&EdgeStatus { process: "2".into(), ..EdgeStatus::default() }), Boot(1));
        assert_eq!(rates.known(), BTreeMap::new());
    }
}
