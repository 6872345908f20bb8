//! `rollout` of a service: the strategy and its keys. One strategy holds for all services of an environment: those that
//! declare none follow the one that does.

use crate::reader::{Shared, Table, Value};
use kiln_model::strategy::{Analysis, Canary, CanaryStep, Rolling};
use kiln_model::{Millis, RolloutPolicy, ServiceName, ServiceSpec, Strategy, limits};
use std::collections::BTreeMap;
use std::ops::Range;

const MS: Millis = Millis(1);
/// Steps of one canary.
const STEPS_MAX: usize = 20;
const STRATEGIES: &str = "\"blue-green\", \"rolling\" or \"canary\"";

/// What a service says about its strategy.
#[derive(Default)]
pub(crate) struct Declared {
    /// Where, and which; none if it says nothing.
    strategy: Option<(Range<usize>, Strategy)>,
    /// Where it wants its previous release to be kept.
    keeps: Option<Range<usize>>,
}

/// The keys that belong to one strategy only.
pub(crate) const OWN_KEYS: [&str; 5] = ["max_surge", "batch", "min_ready", "steps", "analysis"];

/// Reads one `rollout`.
pub(crate) fn read(table: Option<Table<'_>>, sink: Shared<'_, '_>) -> (RolloutPolicy, Declared) {
    let mut policy = RolloutPolicy {
        drain: Millis::from_secs(10),
        keep_previous: Millis(0),
        deadline: Millis::from_secs(60),
        strategy: Strategy::BlueGreen,
    };
    let mut declared = Declared::default();
    let Some(mut table) = table else { return (policy, declared) };
    policy.drain = table.duration("drain", sink).unwrap_or(policy.drain);
    let keeps = table.place("keep_previous");
    policy.keep_previous = table.duration("keep_previous", sink).unwrap_or_default();
    declared.keeps = keeps.filter(|_| policy.keep_previous > Millis(0));
    policy.deadline = table.duration_from("deadline", MS, sink).unwrap_or(policy.deadline);
    if let Some((word, span)) = table.string("strategy", sink) {
        let strategy = match &*word {
            "blue-green" => Some(Strategy::BlueGreen),
            "rolling" => Some(Strategy::Rolling(rolling(&mut table, sink))),
            "canary" => Some(Strategy::Canary(canary(&mut table, sink))),
            _ => {
                let hint = crate::error::did_you_mean(&word, &["blue-green", "rolling", "canary"])
                    .unwrap_or_else(|| format!("use {STRATEGIES}"));
                sink.borrow_mut().push(span.clone(), format!("unknown strategy `{word}`"), Some(hint));
                table.forget(OWN_KEYS);
                None
            }
        };
        declared.strategy = strategy.map(|strategy| (span, strategy));
    }
    foreign(&mut table, declared.strategy.as_ref().map(|(_, strategy)| strategy), sink);
    table.finish(sink);
    (policy, declared)
}

/// Keys that belong to another strategy than the declared one.
fn foreign(table: &mut Table<'_>, strategy: Option<&Strategy>, sink: Shared<'_, '_>) {
    for key in OWN_KEYS {
        let owner = if matches!(key, "steps" | "analysis") { "canary" } else { "rolling" };
        if let Some(value) = table.take(key) {
            let own = strategy.map_or("blue-green", Strategy::word);
            let message = format!("`{key}` belongs to the strategy `{owner}`, this one is `{own}`");
            let hint = format!("add `strategy = \"{owner}\"`, or remove `{key}`");
            sink.borrow_mut().push(value.span, message, Some(hint));
        }
    }
}

fn rolling(table: &mut Table<'_>, sink: Shared<'_, '_>) -> Rolling {
    let default = Rolling::default();
    let max = u64::from(limits::INSTANCES_PER_SERVICE_MAX);
    Rolling {
        max_surge: table
            .integer("max_surge", 1..=max, sink)
            .map_or(default.max_surge, |n| n.try_into().unwrap_or(u32::MAX)),
        batch: table
            .integer("batch", 1..=max, sink)
            .map_or(default.batch, |n| n.try_into().unwrap_or(u32::MAX)),
        min_ready: table.duration("min_ready", sink).unwrap_or(default.min_ready),
    }
}

fn canary(table: &mut Table<'_>, sink: Shared<'_, '_>) -> Canary {
    let mut canary = Canary::default();
    let name = table.child("steps");
    if let Some(value) = table.take("steps") {
        canary.steps = steps(&value, &name, sink);
    }
    if let Some(analysis) = table.table("analysis", sink) {
        canary.analysis = read_analysis(analysis, sink);
    }
    canary
}

fn steps(value: &Value<'_>, name: &str, sink: Shared<'_, '_>) -> Vec<CanaryStep> {
    let expected = "an array of { weight, for } with 1 to 20 steps";
    let items = value.as_array("steps", expected, sink).unwrap_or_default();
    if items.is_empty() || items.len() > STEPS_MAX {
        value.wrong("steps", expected, sink);
    }
    let mut steps: Vec<CanaryStep> = vec![];
    for item in items {
        let Some(mut table) = item.as_table(name.to_owned(), sink) else { continue };
        if !table.has("weight") {
            table.missing("weight", "5", sink);
        }
        if !table.has("for") {
            table.missing("for", "\"1m\"", sink);
        }
        let weight = table.integer("weight", 1..=99, sink);
        let hold = table.duration_from("for", MS, sink);
        table.finish(sink);
        let (Some(weight), Some(hold)) = (weight.and_then(|n| u32::try_from(n).ok()), hold) else { continue };
        if steps.last().is_some_and(|last| last.weight >= weight) {
            let hint = "a candidate only gets more traffic; what fails is taken back at once".to_owned();
            let message = format!("the weight {weight} is not above the one before it");
            sink.borrow_mut().push(item.span.clone(), message, Some(hint));
        }
        steps.push(CanaryStep { weight, hold });
    }
    steps
}

fn read_analysis(mut table: Table<'_>, sink: Shared<'_, '_>) -> Analysis {
    let default = Analysis::default();
    let hundredths = |number: f64| (number * 100.0).round() as u32;
    let analysis = Analysis {
        min_requests: table.integer("min_requests", 1..=1_000_000, sink).unwrap_or(default.min_requests),
        errors: table.number("errors", 0.0..=100.0, sink).map_or(default.errors, hundredths),
        latency: table.number("latency", 1.0..=1000.0, sink).map_or(default.latency, hundredths),
        latency_floor: table.duration("latency_floor", sink).unwrap_or(default.latency_floor),
        hold: table.duration("hold", sink).unwrap_or(default.hold),
    };
    table.finish(sink);
    analysis
}

/// Gives all services the strategy that one of them declares, and reports those that disagree.
pub(crate) fn agree(
    services: &mut BTreeMap<ServiceName, ServiceSpec>,
    declared: &BTreeMap<ServiceName, Declared>,
    sink: Shared<'_, '_>,
) {
    let mut said = declared.iter().filter_map(|(name, d)| d.strategy.as_ref().map(|s| (name, s)));
    let Some((first, (_, strategy))) = said.next() else { return };
    if let Some((other, (span, _))) = said.find(|(_, (_, other))| other != strategy) {
        let message = format!("`[services.{other}]` and `[services.{first}]` declare different rollouts");
        let hint =
            "all services of a release take over together: declare the strategy once, the others follow";
        sink.borrow_mut().push(span.clone(), message, Some(hint.to_owned()));
        return;
    }
    if matches!(strategy, Strategy::Canary(_)) && services.values().all(|service| service.port.is_none()) {
        let place = declared[first].strategy.as_ref().map_or(0..0, |(span, _)| span.clone());
        let hint = "requests are what it judges; use \"rolling\", or add `port = …` to a service".to_owned();
        sink.borrow_mut().push(place, "a canary needs a service with a port", Some(hint));
    }
    let rolling = matches!(strategy, Strategy::Rolling(_));
    for (name, span) in declared.iter().filter_map(|(name, d)| Some((name, d.keeps.clone()?))) {
        if rolling {
            let message = format!("`keep_previous` of `[services.{name}]` has nothing to keep");
            let hint = "a rolling rollout replaces the instances of the previous release; \"blue-green\" and \
                        \"canary\" keep them";
            sink.borrow_mut().push(span, message, Some(hint.to_owned()));
        }
    }
    for service in services.values_mut() {
        service.rollout.strategy = strategy.clone();
    }
}
