//! Two releases that share the traffic of one environment for a while: the serving one and a candidate. It is desired
//! state, not a property of a rollout: when a rolling rollout ends half-way, the mix stays until the serving release has
//! its capacity back.

use crate::edge::Tally;
use crate::ids::{InstanceId, ReleaseNumber, ServiceName};
use crate::route::Generation;
use crate::time::{Boot, Millis};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The first slot of baseline instances: fresh ones of the serving release, started beside a canary. Regular slots are
/// below it.
pub const BASELINE_SLOT: u32 = 1 << 16;

/// The candidate and its share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mix {
    /// The candidate; the other one is what serves.
    pub release: ReleaseNumber,
    /// What it has.
    pub share: Share,
}

/// What a candidate has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "share", rename_all = "snake_case")]
pub enum Share {
    /// A share of the requests of every service that both releases have.
    Canary {
        /// Percent of the requests that the route table gives it; 0 before its instances are validated.
        weight: u32,
        /// For how many percent of the requests it has instances; 100 makes it ready for the switch.
        size: u32,
    },
    /// Some of the instances; each gets the same share.
    Rolling {
        /// Whether its instances get traffic yet.
        live: bool,
        /// By service, of those that the candidate has.
        counts: BTreeMap<ServiceName, Counts>,
    },
}

/// How many slots each release fills, counted from slot 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Of the serving release.
    pub serving: u32,
    /// Of the candidate.
    pub candidate: u32,
}

/// How far a rollout is while two releases share the traffic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Canary: the step, from 1. Rolling: instances that were replaced.
    pub number: u32,
    /// Canary: the steps. Rolling: instances to replace.
    pub of: u32,
    /// Canary: the table that carries the step's weight, once proposed.
    pub switch: Option<Generation>,
    /// Canary: when the edge acknowledged it and counting began.
    pub begun: Option<Boot>,
    /// The counts of candidate and baseline instances when counting began.
    pub opened: BTreeMap<InstanceId, Opened>,
    /// Which edge process counted them.
    pub process: String,
    /// Instances of the candidate and of the baseline that passed their checks and ended or were ejected in this step.
    pub exits: (u32, u32),
    /// Why the step goes on beyond its time.
    pub hold: Option<Hold>,
}

/// What the edge had counted of one instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Its counts.
    pub tally: Tally,
    /// Its latencies, see [`crate::edge::LATENCY_BUCKETS`].
    pub latency: Vec<u64>,
}

/// A step that cannot be judged. It has an age, a reason, and an end: see [`Hold::deadline`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Since when.
    pub since: Boot,
    /// What is missing.
    pub reason: String,
    /// How long it may last; then the rollout is taken back.
    pub limit: Millis,
}

impl Hold {
    /// When the rollout is taken back.
    pub fn deadline(&self) -> Boot {
        self.since + self.limit
    }
}
