//! Environments: which one a request is about, their settings, and their end.

use kiln_model::{EnvName, EnvRef, ProjectName, ReleaseNumber, Requirement, ServiceName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a command that only reads is about. Without a project: everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// Only this project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectName>,
    /// Only this environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<EnvName>,
}

impl Scope {
    /// Whether `env` is meant.
    pub fn covers(&self, env: &EnvRef) -> bool {
        self.project.as_ref().is_none_or(|p| p == &env.project)
            && self.env.as_ref().is_none_or(|e| e == &env.env)
    }
}

/// A request that needs nothing but the environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvRequest {
    /// The project.
    pub project: ProjectName,
    /// The environment.
    pub env: EnvName,
}

impl EnvRequest {
    /// As the model names it.
    pub fn env_ref(&self) -> EnvRef {
        EnvRef { project: self.project.clone(), env: self.env.clone() }
    }
}

/// The answer to `kiln destroy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestroyView {
    /// Which environment is being removed; it is gone when `kiln status` shows no instance of it.
    pub env: EnvRef,
    /// Instances that are still to be removed.
    pub instances: usize,
    /// What holds that up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
}

/// Make an environment, without a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateRequest {
    /// The project.
    pub project: ProjectName,
    /// Its name.
    pub env: EnvName,
    /// The environment whose settings it gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub like: Option<EnvName>,
}

/// Environments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentList {
    /// By name.
    pub environments: Vec<EnvironmentDetail>,
}

/// An environment with its settings. What runs of it is in [`crate::status::EnvironmentView`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentDetail {
    /// Which.
    pub env: EnvRef,
    /// The environment that it was made like.
    pub like: Option<EnvName>,
    /// The release that serves.
    pub serving: Option<ReleaseNumber>,
    /// Whether it was removed; its history is there.
    pub destroyed: bool,
    /// How many releases it ever had.
    pub releases: usize,
    /// Instances of services, whatever a release asks for.
    pub scale: BTreeMap<ServiceName, u32>,
    /// What the release that serves requires of other environments; it holds for the next one.
    pub requires: Vec<Requirement>,
    /// Secrets that are set.
    pub secrets: usize,
}
