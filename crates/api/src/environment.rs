//! Which environment a request is about, and its end.

use kiln_model::{EnvName, EnvRef, ProjectName};
use serde::{Deserialize, Serialize};

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
