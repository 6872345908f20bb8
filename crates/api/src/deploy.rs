//! Deploy and rollback: both ask for a rollout.

use kiln_model::{CommitId, EnvName, EnvRef, ProjectName, ReleaseNumber, RolloutId};
use serde::{Deserialize, Serialize};

/// Move an environment to a new release of a commit whose source the server has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployRequest {
    /// The project.
    pub project: ProjectName,
    /// The environment.
    pub env: EnvName,
    /// The commit.
    pub commit: CommitId,
    /// Only say what would happen.
    #[serde(default)]
    pub plan: bool,
    /// Go on also if what the environment requires is not met, and why.
    #[serde(default, rename = "override", skip_serializing_if = "Option::is_none")]
    pub override_reason: Option<String>,
}

/// Move an environment to a new release with the very images that another one runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromoteRequest {
    /// The project.
    pub project: ProjectName,
    /// Whose images.
    pub from: EnvName,
    /// Where to.
    pub to: EnvName,
    /// Which release of `from`; without it the one that serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseNumber>,
    /// Only say what would happen.
    #[serde(default)]
    pub plan: bool,
    /// Go on also if what the environment requires is not met, and why.
    #[serde(default, rename = "override", skip_serializing_if = "Option::is_none")]
    pub override_reason: Option<String>,
}

/// Move an environment to a release that exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackRequest {
    /// The project.
    pub project: ProjectName,
    /// The environment.
    pub env: EnvName,
    /// Where to; without it the newest release below the serving one that ever served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<ReleaseNumber>,
    /// Only say what would happen.
    #[serde(default)]
    pub plan: bool,
}

/// What came of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accepted {
    /// A rollout was accepted.
    Started,
    /// That release serves already, or is being rolled out already.
    Already,
    /// Nothing was changed: only the plan was asked for.
    Planned,
}

/// The answer to a deploy or a rollback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployView {
    /// The environment.
    pub env: EnvRef,
    /// What came of it.
    pub result: Accepted,
    /// The rollout to watch, if one is under way.
    pub rollout: Option<RolloutId>,
    /// The release that it goes to; the number that it would get, for a plan.
    pub release: ReleaseNumber,
    /// The kiln.lock that the server resolved because the commit had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<String>,
    /// For a plan: what would happen, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plan: Vec<String>,
    /// What the user should know of the images, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}
