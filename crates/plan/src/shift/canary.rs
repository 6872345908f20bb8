//! A canary between two looks: its next share, when counting begins, and what follows from the verdict.

use super::{finish, late, limit, validated, waiting};
use crate::canary::{self, Verdict};
use crate::draft::Draft;
use crate::mix;
use crate::rollout::take_back;
use kiln_model::mix::{Hold, Opened};
use kiln_model::strategy::Canary;
use kiln_model::{Mix, Release, Rollout, Share, Step};

/// A canary at one moment.
pub(super) struct Look<'a> {
    pub(super) rollout: &'a Rollout,
    pub(super) release: &'a Release,
    pub(super) policy: &'a Canary,
    pub(super) weight: u32,
    pub(super) size: u32,
}

impl Look<'_> {
    pub(super) fn step(&self, draft: &mut Draft<'_>) {
        let Some(mut step) = self.rollout.step.clone() else { return };
        let now = draft.now();
        let figures = figures(draft, self.rollout, &step);
        let counted = !step.process.is_empty();
        let verdict = counted.then(|| canary::judge(&self.policy.analysis, &figures, step.exits));
        if let Some(Verdict::Worse(how)) = &verdict {
            let lines = figures.iter().map(ToString::to_string).collect();
            let reason = format!("the candidate is worse than its baseline: {how}");
            take_back(draft, self.rollout, reason, lines);
            return;
        }
        let (index, last) = (step.number.saturating_sub(1) as usize, step.number >= step.of);
        let Some(asked) = self.policy.steps.get(index).copied() else { return };
        if self.weight != asked.weight {
            return self.raise(draft, asked.weight, step);
        }
        let Some(begun) = step.begun else { return self.count(draft, step) };
        if self.size >= 100 {
            return finish(draft, self.rollout, self.release);
        }
        let over = begun + asked.hold;
        if now < over {
            return draft.wake_at(over);
        }
        match verdict {
            Some(Verdict::Passes) => {
                step.hold = None;
                let next = self.policy.steps.get(index + 1).filter(|_| !last);
                if next.is_some() {
                    (step.number, step.begun, step.switch) = (step.number + 1, None, None);
                }
                let size = next.map_or(100, |next| next.weight);
                self.set(draft, self.weight, size);
                let deadline = now + limit(self.release);
                draft.put_rollout(self.rollout.id, |r| {
                    (r.step, r.deadline, r.failures) = (Some(step), Some(deadline), 0);
                });
                // Its instances are created in this pass.
                draft.wake_at(now);
            }
            verdict => self.hold(draft, step, over, verdict),
        }
    }

    /// Gives the candidate more requests, once the instances for them are validated.
    fn raise(&self, draft: &mut Draft<'_>, weight: u32, mut step: Step) {
        if !is_ready(draft, self.rollout, self.release) || draft.observed.seen.is_none() {
            if late(draft, self.rollout, self.release) {
                let reason = format!(
                    "step {}: the instances of candidate and baseline were not validated within {}",
                    step.number,
                    limit(self.release)
                );
                take_back(draft, self.rollout, reason, waiting(draft, self.rollout));
            }
            return;
        }
        self.set(draft, weight, self.size);
        let text = format!("step {} of {}: {weight} % of the requests", step.number, step.of);
        draft.event(&self.rollout.env, "rollout.step", format!("rollout {}", self.rollout.id), text);
        crate::route::propose(draft);
        step.switch = Some(draft.snapshot.route.0);
        draft.put_rollout(self.rollout.id, |r| r.step = Some(step));
    }

    /// Begins to count, once the edge uses the weight and says what it had counted before.
    fn count(&self, draft: &mut Draft<'_>, mut step: Step) {
        let in_use = step.switch.is_some_and(|generation| draft.snapshot.acked >= generation);
        let edge = draft.observed.edge.as_ref();
        let edge = edge.filter(|edge| in_use && step.switch.is_some_and(|g| edge.generation >= g));
        let Some(edge) = edge else {
            if late(draft, self.rollout, self.release) {
                let reason = format!("step {}: the edge did not take its table in time", step.number);
                take_back(draft, self.rollout, reason, vec![]);
            }
            return;
        };
        let own = edge.targets.iter().filter(|t| t.env == self.rollout.env);
        let opened = own.map(|t| (t.instance.clone(), Opened { tally: t.tally, latency: t.latency.clone() }));
        (step.opened, step.process) = (opened.collect(), edge.process.clone());
        (step.begun, step.exits, step.hold) = (Some(draft.now()), (0, 0), None);
        draft.put_rollout(self.rollout.id, |r| (r.step, r.deadline) = (Some(step), None));
        draft.wake_at(draft.now());
    }

    /// The time of the step is over and it did not pass: it waits, but not for ever.
    fn hold(&self, draft: &mut Draft<'_>, mut step: Step, since: kiln_model::Boot, verdict: Option<Verdict>) {
        let reason = match verdict {
            Some(Verdict::Holds(reason)) => reason,
            _ => "nothing was counted".to_owned(),
        };
        let limit = self.policy.analysis.hold;
        let mut hold = step.hold.take().unwrap_or(Hold { since, reason: String::new(), limit });
        if draft.now() >= hold.deadline() {
            let lines = figures(draft, self.rollout, &step).iter().map(ToString::to_string).collect();
            take_back(
                draft,
                self.rollout,
                format!("step {} could not be judged: {reason}", step.number),
                lines,
            );
            return;
        }
        draft.wake_at(hold.deadline());
        // Figures in it change with every request; the row must not.
        hold.reason = reason.split(": ").next().unwrap_or_default().to_owned();
        step.hold = Some(hold);
        draft.put_rollout(self.rollout.id, |r| r.step = Some(step));
    }

    fn set(&self, draft: &mut Draft<'_>, weight: u32, size: u32) {
        let mix = Mix { release: self.rollout.to, share: Share::Canary { weight, size } };
        draft.put_environment(&self.rollout.env, |env| env.mix = Some(mix));
    }
}

/// Whether the candidate has a validated instance in each slot that it should fill now, and the baseline too.
fn is_ready(draft: &Draft<'_>, rollout: &Rollout, release: &Release) -> bool {
    let Some(environment) = draft.environment(&rollout.env) else { return false };
    let serving = environment.serving.and_then(|n| draft.snapshot.release(&rollout.env, n)).cloned();
    let candidate = release.spec.services.values().all(|service| {
        let slots = 0..mix::slots(&environment, release.number, service);
        validated(draft, release, &service.name, |slot| slots.contains(&slot)) >= slots.len()
    });
    let baseline = serving.into_iter().all(|serving| {
        serving.spec.services.values().all(|service| {
            let slots = mix::baseline_slots(&draft.snapshot, &environment, serving.number, service);
            validated(draft, &serving, &service.name, |slot| slots.contains(&slot)) >= slots.len()
        })
    });
    candidate && baseline
}

fn figures(draft: &Draft<'_>, rollout: &Rollout, step: &Step) -> Vec<canary::Figures> {
    crate::figures::figures(&draft.snapshot, draft.observed.edge.as_ref(), rollout, step)
}
