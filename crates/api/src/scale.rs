//! Scale: an environment's override of how many instances a service has.

use kiln_model::{EnvName, EnvRef, ProjectName, ServiceName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Override how many instances services have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleRequest {
    /// The project.
    pub project: ProjectName,
    /// The environment.
    pub env: EnvName,
    /// Instances by service; null restores what the release asks for.
    pub instances: BTreeMap<ServiceName, Option<u32>>,
}

/// The answer: what each service now has to reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleView {
    /// The environment.
    pub env: EnvRef,
    /// Instances wanted, by service, overrides applied.
    pub wanted: BTreeMap<ServiceName, u32>,
    /// What holds that up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
}
