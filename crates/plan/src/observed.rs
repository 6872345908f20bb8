//! What was seen of the world at one moment: the planner's second input. Missing knowledge is `None`, never a guess.

use crate::autoscale::Rate;
use crate::recovery::Lead;
use kiln_model::edge::EdgeStatus;
use kiln_model::{
    Boot, Check, Digest, EnvRef, Evidence, Hold, ImageName, InstanceId, Memory, Millis, OpId, OpKey,
    ReleaseNumber, Seen, ServiceName, Wall,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// One observation.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// The present, for deadlines.
    pub now: Boot,
    /// The present, for the record.
    pub wall: Wall,
    /// The host's boot id.
    pub boot_id: String,
    /// What the provider sees; none if it could not be asked.
    pub seen: Option<BTreeMap<InstanceId, Seen>>,
    /// What the edge reports; none if it could not be asked.
    pub edge: Option<EdgeStatus>,
    /// Effects that this process has under way.
    pub running: BTreeSet<OpKey>,
    /// Effects that ended since the last pass.
    pub results: Vec<OpResult>,
    /// What the checks saw of instances that are not validated yet.
    pub probes: BTreeMap<InstanceId, ProbeLog>,
    /// Images that were baked for releases that are not sealed yet.
    pub baked: BTreeMap<(EnvRef, ReleaseNumber, ImageName), Digest>,
    /// Requests of services that scale by themselves, as far as they are known.
    pub rates: BTreeMap<(EnvRef, ServiceName), Rate>,
    /// The last lines of instances that ended or fail their checks.
    pub tails: BTreeMap<InstanceId, Vec<String>>,
    /// Environments that could not be planned.
    pub held: BTreeMap<EnvRef, Hold>,
    /// Who leads since when; none if whoever asks does not lead, and then nothing shows how old the state is.
    pub lead: Option<Lead>,
    /// What the provider remembers, once it was asked.
    pub memory: Option<Arc<Memory>>,
    /// The edge has not answered this process yet: which table it has is not known.
    pub edge_unheard: bool,
    /// When the edge answered last.
    pub edge_seen: Boot,
    /// When this process started to look.
    pub started: Boot,
}

/// How an effect ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpResult {
    /// What it was.
    pub key: OpKey,
    /// Its intent row.
    pub id: OpId,
    /// How it ended.
    pub outcome: OpOutcome,
}

/// How an effect ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpOutcome {
    /// It happened.
    Done,
    /// It may work later; whether it happened is unknown.
    Retry(String),
    /// It will never work.
    Permanent(String),
    /// The image may not run, as things are: nobody trusted vouches for it, or it is damaged and could not be mended.
    Refused(String),
    /// A secret of the instance cannot be read, as things are.
    Withheld(String),
    /// The image was found damaged and was mended: the next try will work.
    Mended(String),
}

/// What the checks saw of one instance, kept in memory: it is observed again after a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbeLog {
    /// By step: 0 is readiness, n is the n-th `validate` check.
    pub steps: BTreeMap<usize, StepLog>,
}

/// What one check saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepLog {
    /// Passes in a row.
    pub passes: u32,
    /// Failures in a row.
    pub failures: u32,
    /// When the last attempt ended.
    pub at: Boot,
    /// What it saw.
    pub last: Evidence,
}

impl ProbeLog {
    /// Records an attempt.
    pub fn record(&mut self, step: usize, at: Boot, evidence: Evidence) {
        let (passes, failures) = self.steps.get(&step).map_or((0, 0), |log| (log.passes, log.failures));
        let (passes, failures) = if evidence.passed { (passes + 1, 0) } else { (0, failures + 1) };
        self.steps.insert(step, StepLog { passes, failures, at, last: evidence });
    }
}

/// A check that should run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Of which instance.
    pub instance: InstanceId,
    /// Which: 0 is readiness, n is the n-th `validate` check.
    pub step: usize,
    /// What to look at.
    pub check: Check,
    /// Not before.
    pub not_before: Boot,
}

/// Time from one attempt of a readiness check to the next: quick at first, at most `every`.
pub fn readiness_interval(failures: u32, every: Millis) -> Millis {
    Millis((10u64 << failures.min(5)).min(every.0.max(10)).min(250))
}
