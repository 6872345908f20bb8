//! What runs: environments with their services, instances, routes and rollouts, and the edge.

use crate::backup::RecoveryView;
use crate::instance::InstanceView;
use crate::pause::{HoldView, PauseView};
use crate::rollout::{RolloutView, SafetyView};
use crate::server::ServerView;
use kiln_model::edge::Tally;
use kiln_model::edge::TlsStatus;
use kiln_model::{Autoscale, CommitId, Digest, EnvRef, ReleaseNumber, RouteRule, ServiceName, Wall};
use serde::{Deserialize, Serialize};

/// Everything that `kiln status` shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusView {
    /// The server that answered.
    pub server: ServerView,
    /// The edge; none if it does not answer.
    pub edge: Option<EdgeView>,
    /// By name.
    pub environments: Vec<EnvironmentView>,
    /// The pause of the whole server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<PauseView>,
    /// The state is older than what runs: nothing begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<RecoveryView>,
    /// What kiln itself leaves as it is, because it cannot be read or planned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holds: Vec<HoldView>,
}

/// The edge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeView {
    /// The generation of the table in use.
    pub generation: u64,
    /// The generation that it should use.
    pub wanted: u64,
    /// Addresses that take traffic.
    pub listening: Vec<String>,
    /// The process; 0 from an older edge.
    #[serde(default)]
    pub pid: u32,
    /// Which build of the program it runs; empty from an older edge.
    #[serde(default)]
    pub program: String,
    /// Processes that it took over from and that still have connections.
    #[serde(default)]
    pub replaced: u64,
    /// Addresses that take traffic over TLS, and what is wrong with certificates; none if it listens for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsStatus>,
}

/// One environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentView {
    /// Which.
    pub env: EnvRef,
    /// The release that traffic goes to.
    pub serving: Option<ServingView>,
    /// The release that is kept validated, out of rotation.
    pub kept: Option<ReleaseNumber>,
    /// Whether it is being destroyed, or was.
    pub destroyed: bool,
    /// Services of the serving release.
    pub services: Vec<ServiceView>,
    /// Routes of the serving release.
    pub routes: Vec<RouteRule>,
    /// All instances that are not gone, of any release.
    pub instances: Vec<InstanceView>,
    /// The rollout under way, else the last one.
    pub rollout: Option<RolloutView>,
    /// Whether `kiln rollback` would work now; none before anything served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<SafetyView>,
    /// What the edge counted since it started.
    pub requests: Tally,
    /// How many things block or are amiss; `kiln why` names them.
    pub reasons: usize,
    /// Its own pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<PauseView>,
}

/// The serving release, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServingView {
    /// Its number.
    pub release: ReleaseNumber,
    /// Its commit.
    pub commit: CommitId,
    /// First line of the commit message.
    pub subject: String,
    /// When it was accepted.
    pub created: Wall,
}

/// One service of the serving release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceView {
    /// Its name.
    pub name: ServiceName,
    /// The image that it runs.
    pub image: Option<Digest>,
    /// Instances wanted, overrides applied.
    pub wanted: u32,
    /// Whether an override applies.
    pub scaled: bool,
    /// Its rule, if the number follows the load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscale: Option<Autoscale>,
    /// Requests per second that it gets, if it scales by them and they are known yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<u64>,
    /// Instances that passed every check.
    pub validated: u32,
    /// Of these: those that take traffic.
    pub serving: u32,
}
