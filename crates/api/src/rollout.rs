//! Rollouts: where one is and how it ended.

use kiln_model::edge::Tally;
use kiln_model::{
    CommitId, Digest, EnvRef, ImageName, Millis, ReleaseNumber, RolloutId, RolloutKind, RolloutPhase, Wall,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutView {
    /// Its number.
    pub id: RolloutId,
    /// Whose.
    pub env: EnvRef,
    /// `deploy` or `rollback`.
    pub kind: RolloutKind,
    /// Where it goes.
    pub to: ReleaseNumber,
    /// What served when it was accepted.
    pub from: Option<ReleaseNumber>,
    /// The commit of the release.
    pub commit: CommitId,
    /// The image digests of the release, once baked.
    pub images: BTreeMap<ImageName, Digest>,
    /// Whether the release was made of a committed kiln.lock.
    pub pinned: bool,
    /// Who asked.
    pub actor: String,
    /// Where it is.
    pub phase: RolloutPhase,
    /// Whether it ended.
    pub ended: bool,
    /// Instances of the release that it needs.
    pub instances_wanted: u32,
    /// Of these: those that run or ran.
    pub instances_running: u32,
    /// Of these: those that passed every check.
    pub instances_validated: u32,
    /// When it was accepted.
    pub created: Wall,
    /// When it ended.
    pub ended_at: Option<Wall>,
    /// From acceptance to the acknowledged switch.
    pub switched_after_ms: Option<Millis>,
    /// Why it failed, or what it waits for.
    pub reason: Option<String>,
    /// What was seen: failed checks, the last lines of a failed instance.
    pub evidence: Vec<String>,
    /// What the edge counted around it.
    pub receipt: ReceiptView,
}

/// What the edge counted around a rollout.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptView {
    /// From the end of the last receipt to the start.
    pub before: Tally,
    /// From the start to the acknowledged switch.
    pub during: Tally,
    /// From the switch until the old release had drained.
    pub after: Tally,
}

impl ReceiptView {
    /// The sum of the three periods.
    pub fn total(&self) -> Tally {
        self.before.plus(self.during).plus(self.after)
    }
}

/// The answer to `kiln abort`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbortView {
    /// The environment.
    pub env: EnvRef,
    /// The rollout that was stopped.
    pub rollout: RolloutId,
    /// What serves on.
    pub serving: Option<ReleaseNumber>,
}
