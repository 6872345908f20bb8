//! Releases: the numbered, immutable records of an environment.

use kiln_model::{
    CommitId, Digest, EnvRef, ImageName, Promotion, ReleaseNumber, Requirement, RolloutPhase, RouteRule,
    SecretName, SecretVersion, ServiceName, ServiceSpec, Wall,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseList {
    /// By environment, newest first.
    pub releases: Vec<ReleaseView>,
}

/// One release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseView {
    /// Whose.
    pub env: EnvRef,
    /// Its number.
    pub release: ReleaseNumber,
    /// Its commit.
    pub commit: CommitId,
    /// First line of the commit message.
    pub subject: String,
    /// When it was accepted.
    pub created: Wall,
    /// Who asked for it.
    pub actor: String,
    /// Whether its commit carried a kiln.lock.
    pub pinned: bool,
    /// Whether traffic goes to it now.
    pub serving: bool,
    /// Whether traffic ever went to it.
    pub served: bool,
    /// How its last rollout stands.
    pub rollout: Option<RolloutPhase>,
    /// The image digests, once baked.
    pub images: BTreeMap<ImageName, Digest>,
}

/// One release with all that it records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseDetail {
    /// What the list shows.
    #[serde(flatten)]
    pub release: ReleaseView,
    /// Services with every default filled in.
    pub services: BTreeMap<ServiceName, ServiceSpec>,
    /// Routes.
    pub routes: Vec<RouteRule>,
    /// The versions of the secrets that its services name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<SecretName, SecretVersion>,
    /// The release of another environment whose images it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted_from: Option<Promotion>,
    /// What another environment must have shown of its images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requires: Option<Requirement>,
    /// Why it was accepted although that was not met.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overridden: Option<String>,
    /// If it serves: whether `kiln rollback` would work now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<crate::rollout::SafetyView>,
    /// Why its last rollout failed.
    pub reason: Option<String>,
}
