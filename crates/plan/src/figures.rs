//! What the edge counted of a candidate and of its baseline since a step began: the numbers that [`crate::canary`] judges,
//! and that people are shown.

use crate::canary::{Figures, Side};
use crate::mix;
use kiln_model::edge::{EdgeStatus, TargetStatus};
use kiln_model::mix::BASELINE_SLOT;
use kiln_model::{Rollout, Snapshot, Step};

/// The figures of every service that takes requests and that both releases have. Empty before counting began, and without
/// an answer of the edge.
pub fn figures(
    snapshot: &Snapshot,
    edge: Option<&EdgeStatus>,
    rollout: &Rollout,
    step: &Step,
) -> Vec<Figures> {
    let environment = snapshot.environments.get(&rollout.env);
    let serving = environment.and_then(|e| snapshot.release(&rollout.env, e.serving?));
    let candidate = snapshot.release(&rollout.env, rollout.to);
    let (Some(edge), Some(serving), Some(candidate)) = (edge, serving, candidate) else { return vec![] };
    if step.process.is_empty() {
        return vec![];
    }
    let services = serving.spec.services.values().filter(|s| mix::is_shared(candidate, s));
    let one = |service: &kiln_model::ServiceSpec| {
        let (mut own, mut other, mut all) = (Side::default(), Side::default(), 0);
        for target in edge.targets.iter().filter(|t| t.env == rollout.env && t.service == service.name) {
            let counted = since(edge, target, step);
            all += counted.requests();
            let slot = snapshot.instances.get(&target.instance).map(|i| i.slot);
            if target.release == rollout.to {
                add(&mut own, &counted);
            } else if slot.is_some_and(|slot| slot >= BASELINE_SLOT) {
                add(&mut other, &counted);
            }
        }
        let routed = serving.spec.routes.iter().any(|route| route.service == service.name);
        Figures { service: service.name.clone(), needed: routed || all > 0, candidate: own, baseline: other }
    };
    services.map(one).collect()
}

/// What came after the step began. An edge that was started anew meanwhile counts from zero, and so does a new instance.
fn since(edge: &EdgeStatus, target: &TargetStatus, step: &Step) -> Side {
    let opened = step.opened.get(&target.instance).filter(|_| step.process == edge.process);
    let opened = opened.cloned().unwrap_or_default();
    let before = |n: usize| opened.latency.get(n).copied().unwrap_or(0);
    Side {
        instances: u32::from(target.in_table),
        tally: target.tally.minus(opened.tally),
        latency: target.latency.iter().enumerate().map(|(n, c)| c.saturating_sub(before(n))).collect(),
    }
}

fn add(sum: &mut Side, more: &Side) {
    sum.instances += more.instances;
    sum.tally = sum.tally.plus(more.tally);
    sum.latency.resize(sum.latency.len().max(more.latency.len()), 0);
    sum.latency.iter_mut().zip(&more.latency).for_each(|(sum, more)| *sum += more);
}
