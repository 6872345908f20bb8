//! An instance: one server. It is created, validated, put into use, drained, destroyed. Nothing changes it between.
//!
//! ```text
//! intent ─▶ booting ─▶ probing ─▶ validated ⇄ serving ─▶ draining ─▶ retiring ─▶ gone
//!    └─────────┴──────────┴─▶ failed ─────────────────────────────────▲
//!                          serving ─▶ tainted ─▶ draining             │
//!                          any ─────▶ lost ───────────────────────────┘
//! ```
//! `validated` is out of rotation, `serving` is in the acknowledged table. `gone` has no row: it is a tombstone,
//! written only after an acknowledged, fenced destroy.

use crate::confinement::Confinement;
use crate::digest::{CommitId, Digest};
use crate::ids::{EnvRef, InstanceId, ReleaseNumber, ServiceName};
use crate::image::ImageManifest;
use crate::network::NetworkNumber;
use crate::recovery::Origin;
use crate::secret::{SecretName, SecretVersion};
use crate::service::{Resources, Stop};
use crate::time::{Boot, Wall};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Where an instance is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// Recorded; the provider may or may not know it yet.
    Intent,
    /// The provider acknowledged it; its program runs or is about to.
    Booting,
    /// Its program runs; readiness and validation are under way.
    Probing,
    /// It passed every check and takes no traffic.
    Validated,
    /// It passed every check and is in a route table that the edge acknowledged.
    Serving,
    /// It serves, but should not: the edge ejected it, or it drifted. Its replacement comes first.
    Tainted,
    /// It leaves the table; requests in flight may end.
    Draining,
    /// It is being destroyed.
    Retiring,
    /// It never became validated, or its program ended.
    Failed,
    /// The provider does not know it any more.
    Lost,
}

impl InstanceState {
    /// Whether the instance fills a slot: it works, or may yet.
    pub fn is_wanted(self) -> bool {
        use InstanceState::*;
        matches!(self, Intent | Booting | Probing | Validated | Serving)
    }

    /// Whether every check was passed and it may be sent traffic.
    pub fn is_validated(self) -> bool {
        matches!(self, InstanceState::Validated | InstanceState::Serving)
    }

    /// Whether only its destruction is left.
    pub fn is_over(self) -> bool {
        use InstanceState::*;
        matches!(self, Retiring | Failed | Lost)
    }

    /// Whether `self → next` is legal.
    pub fn may_become(self, next: InstanceState) -> bool {
        use InstanceState::*;
        match next {
            Intent => false,
            Booting => self == Intent,
            Probing => self == Booting,
            Validated => matches!(self, Probing | Serving),
            Serving => self == Validated,
            Tainted => self == Serving,
            Draining => matches!(self, Validated | Serving | Tainted),
            Failed => matches!(self, Intent | Booting | Probing | Validated | Serving | Tainted | Draining),
            Lost => self != Lost,
            Retiring => true,
        }
    }

    /// The word used in files, commands and the API.
    pub fn word(self) -> &'static str {
        use InstanceState::*;
        match self {
            Intent => "intent",
            Booting => "booting",
            Probing => "probing",
            Validated => "validated",
            Serving => "serving",
            Tainted => "tainted",
            Draining => "draining",
            Retiring => "retiring",
            Failed => "failed",
            Lost => "lost",
        }
    }
}

/// The record of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Which.
    pub id: InstanceId,
    /// Whose.
    pub env: EnvRef,
    /// Of which release.
    pub release: ReleaseNumber,
    /// Of which service.
    pub service: ServiceName,
    /// Which of the service's replicas, from 0.
    pub slot: u32,
    /// What it runs.
    pub image: Digest,
    /// The number of its environment when it was recorded.
    #[serde(default)]
    pub network: NetworkNumber,
    /// Where it is.
    pub state: InstanceState,
    /// Since when.
    pub since: Boot,
    /// When it was recorded, for people.
    pub created: Wall,
    /// Its address, once the provider reported it.
    pub address: Option<IpAddr>,
    /// What the checks saw, the last of each.
    pub evidence: Vec<crate::check::Evidence>,
    /// Why it failed, in one line.
    pub reason: Option<String>,
}

/// All that a provider needs to make an instance exist. The same id always has the same content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// Which.
    pub id: InstanceId,
    /// Whose.
    pub env: EnvRef,
    /// Of which release.
    pub release: ReleaseNumber,
    /// Of which service.
    pub service: ServiceName,
    /// Of which commit, for the logs.
    pub commit: CommitId,
    /// What it runs.
    pub image: Digest,
    /// The layers and configuration of that image.
    pub manifest: ImageManifest,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Name or number.
    pub user: String,
    /// The whole environment of the program.
    pub environment: BTreeMap<String, String>,
    /// The versions of its secrets, whose values come beside this and are written down nowhere.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<SecretName, SecretVersion>,
    /// Paths that are tmpfs, beside `/tmp`, `/run` and `/dev/shm`.
    pub writable: Vec<String>,
    /// Limits.
    pub resources: Resources,
    /// How it is kept apart.
    #[serde(default)]
    pub confinement: Confinement,
    /// The number of its environment; 0 if it is to find nobody by name.
    #[serde(default)]
    pub network: NetworkNumber,
    /// The services that it finds by name, sorted: those of its release that have a port.
    #[serde(default)]
    pub peers: Vec<ServiceName>,
    /// The port that it will listen on.
    pub port: Option<u16>,
    /// See [`crate::ServiceSpec::proxy_protocol`].
    #[serde(default, skip_serializing_if = "crate::policy::is_false")]
    pub proxy_protocol: bool,
    /// How it is asked to end.
    pub stop: Stop,
    /// What it is of, for a store that lost its row; none in specifications of an older kiln.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Box<Origin>>,
}

impl InstanceSpec {
    /// Whether both say the same. One that an older kiln wrote does not say what it is of.
    pub fn is_same(&self, other: &InstanceSpec) -> bool {
        if self.origin.is_some() == other.origin.is_some() {
            return self == other;
        }
        let without = |spec: &InstanceSpec| InstanceSpec { origin: None, ..spec.clone() };
        without(self) == without(other)
    }
}

/// What a provider sees of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Which.
    pub id: InstanceId,
    /// Its address; kept until its destruction is acknowledged, and not given to another before.
    pub address: Option<IpAddr>,
    /// Whether it runs.
    pub state: SeenState,
}

/// Whether an instance runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeenState {
    /// Being created, or created by a server that died meanwhile; another `ensure` settles it.
    Starting,
    /// Its program runs.
    Running,
    /// Its program ended. Everything else of it may still be there until it is destroyed.
    Exited(ExitReason),
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "exit", rename_all = "snake_case")]
pub enum ExitReason {
    /// By itself, with a status.
    Status {
        /// 0 to 255.
        code: i32,
    },
    /// By a signal.
    Signal {
        /// Its number.
        signal: i32,
    },
    /// The kernel killed it because it used more memory than `resources.memory`.
    OutOfMemory,
    /// It could not be started.
    NotStarted {
        /// The failed step with its object.
        error: String,
    },
    /// Its supervisor died without a word, or the host was rebooted.
    Unknown,
}

impl std::fmt::Display for ExitReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ExitReason::Status { code } => write!(f, "exited with status {code}"),
            ExitReason::Signal { signal } => write!(f, "killed by signal {signal}"),
            ExitReason::OutOfMemory => {
                f.write_str("killed because it used more memory than `resources.memory`")
            }
            ExitReason::NotStarted { error } => write!(f, "could not be started: {error}"),
            ExitReason::Unknown => f.write_str("ended without a trace (host rebooted or supervisor killed)"),
        }
    }
}
