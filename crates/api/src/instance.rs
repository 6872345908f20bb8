//! Instances: those that live, and those that are gone and left their black box.

use kiln_model::edge::Tally;
use kiln_model::{
    CommitId, Digest, EnvName, EnvRef, InstanceId, InstanceState, Millis, ProjectName, ReleaseNumber,
    ServiceName, Wall,
};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Which instances.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceQuery {
    /// Only of this project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectName>,
    /// Only of this environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<EnvName>,
    /// Those that are gone as well.
    #[serde(default)]
    pub gone: bool,
}

/// A list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceList {
    /// Oldest first.
    pub instances: Vec<InstanceView>,
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceView {
    /// Which.
    pub id: InstanceId,
    /// Whose.
    pub env: EnvRef,
    /// Of which service.
    pub service: ServiceName,
    /// Of which release.
    pub release: ReleaseNumber,
    /// What it runs.
    pub image: Digest,
    /// Of which commit.
    pub commit: Option<CommitId>,
    /// Where it is in its life; none if it is gone.
    pub state: Option<InstanceState>,
    /// For how long.
    pub state_ms: Option<Millis>,
    /// When it was recorded.
    pub created: Wall,
    /// Its address.
    pub address: Option<IpAddr>,
    /// Its port.
    pub port: Option<u16>,
    /// What its program does: `running`, or how it ended. None if the provider could not be asked.
    pub process: Option<String>,
    /// Why it failed.
    pub reason: Option<String>,
    /// What the edge knows of it; none if it does not.
    pub traffic: Option<TrafficView>,
}

/// What the edge knows of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficView {
    /// Whether it is in the table in use.
    pub in_table: bool,
    /// Requests in flight.
    pub in_flight: u64,
    /// Why it gets no requests, if the edge ejected it.
    pub ejected: Option<String>,
    /// Counts.
    pub tally: Tally,
}

/// One instance with its evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceDetail {
    /// What the list shows.
    #[serde(flatten)]
    pub instance: InstanceView,
    /// What its checks saw, the last of each.
    pub evidence: Vec<EvidenceView>,
    /// Its last lines.
    pub tail: Vec<String>,
}

/// That a check ran, and what it saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceView {
    /// The check.
    pub check: String,
    /// Whether it held.
    pub passed: bool,
    /// What was seen.
    pub detail: String,
    /// How long it took.
    pub took_ms: Millis,
    /// When it ended.
    pub at: Wall,
}

impl From<&kiln_model::Evidence> for EvidenceView {
    fn from(evidence: &kiln_model::Evidence) -> Self {
        Self {
            check: evidence.check.clone(),
            passed: evidence.passed,
            detail: evidence.detail.clone(),
            took_ms: evidence.took,
            at: evidence.at,
        }
    }
}
