//! A rollout: the move of an environment from one release to another. A rollback is a rollout.
//!
//! ```text
//! planned ─▶ baking ─▶ launching ─▶ validating ─▶ shifting ─▶ switching ─▶ draining ─▶ succeeded
//!    │          │           │            │  └──────────│──────────▲
//!    └──────────┴───────────┴────────────┴─────────────┴──▶ taken_back | superseded | aborted | failed_no_previous
//! ```
//! `shifting` is for strategies that let two releases share the traffic; blue-green goes past it.
//! After `switching` began there is no way back but another rollout. Every state that is not an end has a deadline.

use crate::edge::{Mark, Tally};
use crate::ids::{EnvRef, ReleaseNumber, RolloutId};
use crate::mix::Step;
use crate::route::Generation;
use crate::time::{Boot, Millis, Wall};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Why the rollout exists. The steps are the same for both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutKind {
    /// To a new release.
    Deploy,
    /// To a release that exists.
    Rollback,
}

/// Where a rollout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutPhase {
    /// Accepted; waits for an earlier one that already switches.
    Planned,
    /// Images are being baked.
    Baking,
    /// Instances are being created.
    Launching,
    /// Instances are being checked.
    Validating,
    /// Both releases have traffic; the new one's share grows.
    Shifting,
    /// The new route table is on its way to the edge.
    Switching,
    /// The edge has it; requests in flight on the old release end.
    Draining,
    /// End: traffic is on the release.
    Succeeded,
    /// End: it failed, what served before was never touched.
    TakenBack,
    /// End: a newer deploy came.
    Superseded,
    /// End: somebody stopped it.
    Aborted,
    /// End: it failed and nothing served before.
    FailedNoPrevious,
}

impl RolloutPhase {
    /// Whether no transition leaves it.
    pub fn is_end(self) -> bool {
        use RolloutPhase::*;
        matches!(self, Succeeded | TakenBack | Superseded | Aborted | FailedNoPrevious)
    }

    /// Whether the old release may still have all traffic back, so that it may still be taken back, superseded or aborted.
    pub fn is_before_switch(self) -> bool {
        self < RolloutPhase::Switching
    }

    /// Whether `self → next` is legal.
    pub fn may_become(self, next: RolloutPhase) -> bool {
        use RolloutPhase::*;
        match next {
            // A switch that nobody acknowledges is taken back by the table after it.
            TakenBack => self.is_before_switch() || self == Switching,
            Superseded | Aborted | FailedNoPrevious => self.is_before_switch(),
            Succeeded => self == Draining,
            Draining => self == Switching,
            Switching => matches!(self, Validating | Shifting),
            Shifting => self == Validating,
            Validating => self == Launching,
            Launching => self == Baking,
            Baking => self == Planned,
            Planned => false,
        }
    }

    /// The word used in files, commands and the API.
    pub fn word(self) -> &'static str {
        use RolloutPhase::*;
        match self {
            Planned => "planned",
            Baking => "baking",
            Launching => "launching",
            Validating => "validating",
            Shifting => "shifting",
            Switching => "switching",
            Draining => "draining",
            Succeeded => "succeeded",
            TakenBack => "taken_back",
            Superseded => "superseded",
            Aborted => "aborted",
            FailedNoPrevious => "failed_no_previous",
        }
    }
}

/// One rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// Its number.
    pub id: RolloutId,
    /// Whose.
    pub env: EnvRef,
    /// Why it exists.
    pub kind: RolloutKind,
    /// Where to.
    pub to: ReleaseNumber,
    /// What served when it was accepted.
    pub from: Option<ReleaseNumber>,
    /// Who asked.
    pub actor: String,
    /// Where it is.
    pub phase: RolloutPhase,
    /// Since when it is in that phase.
    pub since: Boot,
    /// When it left `planned`.
    pub begun: Boot,
    /// When launching and validating must be done together; set when launching begins.
    pub deadline: Option<Boot>,
    /// When it was accepted, for people.
    pub created: Wall,
    /// When it ended, for people.
    pub ended: Option<Wall>,
    /// The generation that carries the switch, once proposed.
    pub switch: Option<Generation>,
    /// Milliseconds from acceptance to the acknowledged switch.
    pub switched_after: Option<Millis>,
    /// How far it is while two releases share the traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<Step>,
    /// Instances of the new release that ended before they were validated, in the present step.
    pub failures: u32,
    /// Why it failed, or what it waits for, in one line.
    pub reason: Option<String>,
    /// More lines of evidence: the last output of a failed instance.
    pub evidence: Vec<String>,
    /// Requests, as counted by the edge.
    pub receipt: Receipt,
}

/// What the edge counted around a rollout. Periods of successive rollouts touch: `before` starts where the
/// environment's last receipt ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The edge's count when the last receipt of this environment ended.
    pub opened: Mark,
    /// When this rollout began.
    pub started: Option<Mark>,
    /// When the edge acknowledged the switch.
    pub switched: Option<Mark>,
    /// When draining ended.
    pub ended: Option<Mark>,
    /// What each release answered while two of them shared the traffic.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shares: BTreeMap<ReleaseNumber, SharePeriod>,
}

/// The time in which a release had a share of the traffic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharePeriod {
    /// The release's counts when it began.
    pub opened: Mark,
    /// When it ended.
    pub closed: Option<Mark>,
}

impl Receipt {
    /// Requests before, during (from start to acknowledged switch) and after it (until the drain ended).
    pub fn periods(&self) -> [Tally; 3] {
        let started = self.started.as_ref().unwrap_or(&self.opened);
        let switched = self.switched.as_ref().unwrap_or(started);
        let ended = self.ended.as_ref().unwrap_or(switched);
        [started.since(&self.opened), switched.since(started), ended.since(switched)]
    }
}

#[cfg(test)]
mod tests {
    use super::RolloutPhase::{self, *};

    const ALL: [RolloutPhase; 12] = [
        Planned,
        Baking,
        Launching,
        Validating,
        Shifting,
        Switching,
        Draining,
        Succeeded,
        TakenBack,
        Superseded,
        Aborted,
        FailedNoPrevious,
    ];

    #[test]
    fn ends_are_absorbing_and_a_begun_switch_is_not_taken_back() {
        for from in ALL {
            for to in ALL {
                if from.is_end() {
                    assert!(!from.may_become(to), "{from:?} -> {to:?}");
                }
            }
            assert!(!(from > Switching && from.may_become(TakenBack)), "{from:?}");
            assert!(!(from >= Switching && from.may_become(Aborted)), "{from:?}");
            assert!(from.is_end() || ALL.iter().any(|to| from.may_become(*to)), "{from:?} is a dead end");
        }
    }
}
