//! A service: what to run of an image, how often, and how to know that it works.

use crate::check::Check;
use crate::confinement::Confinement;
use crate::ids::{ImageName, ServiceName};
use crate::route::Protocol;
use crate::secret::SecretName;
use crate::strategy::Strategy;
use crate::time::Millis;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One service of a release, with every default filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// Its name.
    pub name: ServiceName,
    /// The image that its instances run.
    pub image: ImageName,
    /// Program and arguments; no shell.
    pub command: Vec<String>,
    /// Instances that the release asks for; an environment may override it (`kiln scale`).
    pub instances: u32,
    /// How that number follows the load; none if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscale: Option<Autoscale>,
    /// The TCP port that it serves on, if any.
    pub port: Option<u16>,
    /// What it speaks there.
    #[serde(default, skip_serializing_if = "Protocol::is_default")]
    pub protocol: Protocol,
    /// Whether it expects a PROXY protocol header at the beginning of every connection to that port.
    #[serde(default, skip_serializing_if = "crate::policy::is_false")]
    pub proxy_protocol: bool,
    /// User name of the image or number.
    pub user: String,
    /// Environment variables beside those that kiln sets.
    pub env: BTreeMap<String, String>,
    /// Secrets that its instances find as files, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretName>,
    /// Absolute paths that are tmpfs, gone with the instance.
    pub writable: Vec<String>,
    /// Limits.
    pub resources: Resources,
    /// How its instances are kept apart.
    #[serde(default)]
    pub confinement: Confinement,
    /// Readiness before the switch, and the edge's active check after it.
    pub health: Option<Health>,
    /// Checks after creation, before the first request.
    pub validate: Vec<Check>,
    /// How a new release takes over.
    pub rollout: RolloutPolicy,
    /// How an instance is asked to end.
    pub stop: Stop,
}

/// How the number of instances of a service follows its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Autoscale {
    /// At least.
    pub min: u32,
    /// At most.
    pub max: u32,
    /// Requests per second that one instance should get.
    pub requests: u32,
}

/// Limits of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of one core.
    pub cpu_milli: u32,
    /// Bytes of memory, tmpfs included.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
}

impl Default for Resources {
    fn default() -> Self {
        Self { cpu_milli: 1000, memory_bytes: 512 * 1024 * 1024, pids: 512 }
    }
}

/// The recurring check of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// What is checked; its timeout is the attempt's.
    pub check: Check,
    /// Time between attempts once the instance serves.
    pub every: Millis,
    /// How long a new instance may take until it is healthy for the first time.
    pub grace: Millis,
    /// Consecutive passes that make it healthy.
    pub healthy_after: u32,
    /// Consecutive failures that make it unhealthy.
    pub unhealthy_after: u32,
}

/// How a new release takes over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutPolicy {
    /// How long requests in flight on the old instances may take after the switch.
    pub drain: Millis,
    /// How long the previous release stays validated, out of rotation.
    pub keep_previous: Millis,
    /// How long launching and validating may take together; in a rolling or canary rollout, in each step.
    pub deadline: Millis,
    /// In which way. The same for all services of a release.
    #[serde(default, skip_serializing_if = "Strategy::is_blue_green")]
    pub strategy: Strategy,
}

/// How an instance is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Signal number, 15 is SIGTERM.
    pub signal: i32,
    /// Time until SIGKILL.
    pub timeout: Millis,
}

impl Default for Stop {
    fn default() -> Self {
        Self { signal: 15, timeout: Millis::from_secs(10) }
    }
}
