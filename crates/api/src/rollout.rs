//! Rollouts: where one is and how it ended.

use kiln_model::edge::Tally;
use kiln_model::{
    CommitId, Digest, EnvRef, ImageName, Millis, ReleaseNumber, RolloutId, RolloutKind, RolloutPhase,
    ServiceName, Wall,
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
    /// `blue-green`, `rolling` or `canary`.
    #[serde(default)]
    pub strategy: String,
    /// How far it is while two releases share the traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<StepView>,
    /// Once it ended: whether `kiln rollback` would work now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<SafetyView>,
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
    /// What each release answered while two of them shared the traffic.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shared: BTreeMap<ReleaseNumber, Tally>,
}

/// How far two releases are in sharing the traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepView {
    /// Canary: the step, from 1. Rolling: instances that were replaced.
    pub number: u32,
    /// Canary: the steps. Rolling: instances to replace.
    pub of: u32,
    /// Canary: percent of the requests that go to the candidate.
    pub weight: Option<u32>,
    /// Canary: percent of the requests that go to the fresh baseline.
    pub baseline_weight: Option<u32>,
    /// What the analysis sees, by service.
    pub figures: Vec<FiguresView>,
    /// Why the step goes on beyond its time.
    pub hold: Option<String>,
    /// For how long it has.
    pub hold_ms: Option<Millis>,
    /// What happens next without anybody's help.
    pub next: String,
    /// When that happens at the latest, from now.
    pub deadline_ms: Option<Millis>,
}

/// Candidate and baseline of one service, since the step began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FiguresView {
    /// Which.
    pub service: ServiceName,
    /// The new release.
    pub candidate: SideView,
    /// Fresh instances of the old one.
    pub baseline: SideView,
    /// Both, for people.
    pub text: String,
}

/// What one side answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SideView {
    /// Instances in the table.
    pub instances: u32,
    /// Requests that ended.
    pub requests: u64,
    /// Of these: those that failed, whoever noticed it.
    pub failed: u64,
    /// Upper bound of the median, microseconds.
    pub p50_us: Option<u64>,
    /// Upper bound of the 95th percentile, microseconds.
    pub p95_us: Option<u64>,
}

/// Whether `kiln rollback` would work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SafetyView {
    /// Where it would go.
    pub to: Option<ReleaseNumber>,
    /// Whether everything that it needs is there.
    pub safe: bool,
    /// For how long it needs no start of an instance.
    pub warm_ms: Option<Millis>,
    /// Why it is not safe, or what to know of it.
    pub notes: Vec<String>,
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
