//! How a new release takes over from the one that serves: at once, instance by instance, or by a growing share of the
//! requests that is judged before it grows. One strategy holds for all services of a release.

use crate::time::Millis;
use serde::{Deserialize, Serialize};

/// How a new release takes over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Strategy {
    /// All instances beside the old ones, then one switch.
    #[default]
    BlueGreen,
    /// A few instances at a time, with traffic on both.
    Rolling(Rolling),
    /// A growing share of the requests, judged against a fresh baseline of the old release.
    Canary(Canary),
}

impl Strategy {
    /// The word of kiln.toml.
    pub fn word(&self) -> &'static str {
        match self {
            Strategy::BlueGreen => "blue-green",
            Strategy::Rolling(_) => "rolling",
            Strategy::Canary(_) => "canary",
        }
    }

    /// Whether it is the default, which older kilns wrote as nothing.
    pub fn is_blue_green(&self) -> bool {
        *self == Strategy::BlueGreen
    }
}

/// A few instances at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rolling {
    /// Instances of one service that may exist beyond the wanted number, at least 1: capacity never falls below it.
    pub max_surge: u32,
    /// Instances of one service that are being brought into use at the same time.
    pub batch: u32,
    /// How long an instance must run after its checks passed until it counts as validated.
    pub min_ready: Millis,
}

impl Default for Rolling {
    fn default() -> Self {
        Self { max_surge: 1, batch: 1, min_ready: Millis(0) }
    }
}

/// A growing share of the requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    /// At least one; the weights grow.
    pub steps: Vec<CanaryStep>,
    /// What the candidate must show to go on.
    pub analysis: Analysis,
}

impl Default for Canary {
    fn default() -> Self {
        let step = |weight, minutes: u64| CanaryStep { weight, hold: Millis::from_secs(minutes * 60) };
        Self { steps: vec![step(5, 1), step(25, 2), step(50, 2)], analysis: Analysis::default() }
    }
}

/// One share and how long it lasts at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryStep {
    /// Percent of the requests, 1 to 99.
    pub weight: u32,
    /// How long it lasts if the analysis passes.
    pub hold: Millis,
}

/// What the candidate must show in each step, against the baseline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Analysis {
    /// Answers of the candidate and of the baseline that are enough to judge a service.
    pub min_requests: u64,
    /// By how much the candidate's share of failed requests may exceed the baseline's, in hundredths of a percent point.
    pub errors: u32,
    /// How many times slower than the baseline's the candidate's median and 95th percentile may be, in percent.
    pub latency: u32,
    /// Answers faster than that are never slow: below it, times tell more about the host than about the program.
    pub latency_floor: Millis,
    /// How long a step that cannot be judged waits beyond its time before the rollout is taken back.
    pub hold: Millis,
}

impl Default for Analysis {
    fn default() -> Self {
        Self {
            min_requests: 50,
            errors: 100,
            latency: 200,
            latency_floor: Millis(10),
            hold: Millis::from_secs(600),
        }
    }
}
