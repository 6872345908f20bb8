//! What a rollout in `shifting` shows: who has which share of the requests, what was counted, what comes next and when.

use crate::canary::Figures;
use crate::figures::figures;
use crate::mix;
use crate::observed::Observed;
use kiln_model::strategy::Canary;
use kiln_model::{Millis, ReleaseNumber, Rollout, RolloutPhase, Share, Snapshot, Strategy};

/// How far two releases are in sharing the traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Canary: the step, from 1. Rolling: instances that were replaced.
    pub number: u32,
    /// Canary: the steps. Rolling: instances to replace.
    pub of: u32,
    /// Percent of the requests that go to the candidate; none for a rolling one, whose instances each get the same.
    pub weight: Option<u32>,
    /// Percent of the requests that go to the baseline, see [`Progress::weight`].
    pub baseline: Option<u32>,
    /// The serving release.
    pub serving: Option<ReleaseNumber>,
    /// What the analysis sees, by service.
    pub figures: Vec<Figures>,
    /// Why the step goes on beyond its time, and for how long it has.
    pub hold: Option<(String, Millis)>,
    /// What happens next without anybody's help.
    pub next: String,
    /// When, from now.
    pub deadline: Option<Millis>,
}

/// None if the rollout does not share the traffic now.
pub fn progress(snapshot: &Snapshot, observed: &Observed, rollout: &Rollout) -> Option<Progress> {
    let step = rollout.step.as_ref().filter(|_| rollout.phase == RolloutPhase::Shifting)?;
    let environment = snapshot.environments.get(&rollout.env)?;
    let release = snapshot.release(&rollout.env, rollout.to)?;
    let share = environment.mix.as_ref().map(|mix| &mix.share);
    let mut progress = Progress {
        number: step.number,
        of: step.of,
        weight: None,
        baseline: None,
        serving: environment.serving,
        figures: figures(snapshot, observed.edge.as_ref(), rollout, step),
        hold: step.hold.as_ref().map(|h| (h.reason.clone(), observed.now.since(h.since))),
        next: "traffic switches when every instance passed its checks".into(),
        deadline: rollout.deadline.map(|deadline| deadline.since(observed.now)),
    };
    match (share, release.spec.strategy()) {
        (Some(Share::Canary { weight, size }), Strategy::Canary(policy)) => {
            canary(&mut progress, observed, rollout, policy, *weight, *size);
        }
        (Some(Share::Rolling { .. }), _) => {
            progress.next = "the next instances are replaced when these are validated and serve".into();
        }
        _ => {}
    }
    Some(progress)
}

fn canary(
    progress: &mut Progress,
    observed: &Observed,
    rollout: &Rollout,
    policy: &Canary,
    weight: u32,
    size: u32,
) {
    if weight > 0 {
        let [_, candidate, baseline] = mix::weights(weight);
        (progress.weight, progress.baseline) = (Some(candidate), Some(baseline));
    }
    let Some(step) = &rollout.step else { return };
    let index = step.number.saturating_sub(1) as usize;
    let Some(asked) = policy.steps.get(index) else { return };
    let after = match policy.steps.get(index + 1) {
        Some(next) => format!("it gets {} % of the requests", next.weight),
        None => "it gets all its instances, and then all requests".to_owned(),
    };
    if size >= 100 {
        progress.next = "traffic switches when all its instances passed their checks".into();
    } else if let Some(hold) = &step.hold {
        progress.next = format!("{after} when the analysis passes, else it is taken back");
        progress.deadline = Some(hold.deadline().since(observed.now));
    } else if let Some(begun) = step.begun {
        progress.next = format!("{after} if the analysis passes");
        progress.deadline = Some((begun + asked.hold).since(observed.now));
    } else {
        progress.next =
            format!("it gets {} % of the requests when the instances for them are validated", asked.weight);
    }
}

/// The steps of a strategy, in words.
pub(crate) fn steps(strategy: &Strategy) -> Vec<String> {
    match strategy {
        Strategy::BlueGreen => vec![],
        Strategy::Rolling(r) => {
            let ready = if r.min_ready > Millis(0) {
                format!(", {} after they pass", r.min_ready)
            } else {
                String::new()
            };
            vec![format!(
                "replace {} at a time, at most {} more than wanted{ready}; both releases have traffic meanwhile",
                r.batch.min(r.max_surge),
                r.max_surge
            )]
        }
        Strategy::Canary(canary) => {
            let a = &canary.analysis;
            let steps = canary.steps.iter().enumerate().map(|(n, step)| {
                let [_, candidate, baseline] = mix::weights(step.weight);
                format!(
                    "step {}: {candidate} % of the requests to it, {baseline} % to a fresh baseline, for {}",
                    n + 1,
                    step.hold
                )
            });
            let judged = format!(
                "each step passes with {} requests of each side, at most {}.{:02} percent points more failures and {}.{:02} \
                 times the latency above {}; one that cannot be judged is taken back after {}",
                a.min_requests,
                a.errors / 100,
                a.errors % 100,
                a.latency / 100,
                a.latency % 100,
                a.latency_floor,
                a.hold
            );
            steps.chain([judged]).collect()
        }
    }
}
