//! Secrets: which are set, their versions, and who set them. No answer ever has a value.

use kiln_model::{EnvName, EnvRef, ProjectName, ReleaseNumber, SecretName, SecretVersion, Wall};
use serde::{Deserialize, Serialize};

/// Which secrets are asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretQuery {
    /// Of which project.
    pub project: ProjectName,
    /// Of which environment; without it of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<EnvName>,
}

/// Secrets that are set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretList {
    /// By environment and name, the newest version of each.
    pub secrets: Vec<SecretView>,
}

/// The versions of one secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretHistory {
    /// Of which environment.
    pub env: EnvRef,
    /// Which.
    pub name: SecretName,
    /// Newest first.
    pub versions: Vec<SecretView>,
}

/// What is kept of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretState {
    /// The value, sealed.
    Set,
    /// With it the secret was taken out.
    Unset,
    /// Nothing: a newer one came, and no release has it.
    Removed,
}

/// One version of a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretView {
    /// Of which environment.
    pub env: EnvRef,
    /// Which.
    pub name: SecretName,
    /// Its number.
    pub version: SecretVersion,
    /// When it was set.
    pub created: Wall,
    /// Who set it.
    pub actor: String,
    /// What is kept of it.
    pub state: SecretState,
    /// Bytes of the value.
    pub bytes: Option<u32>,
    /// The releases that have it.
    pub releases: Vec<ReleaseNumber>,
    /// Whether the release that serves has it.
    pub serving: bool,
}

/// What came of setting a secret, or of taking it out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretSet {
    /// Of which environment.
    pub env: EnvRef,
    /// Which.
    pub name: SecretName,
    /// The newest version.
    pub version: SecretVersion,
    /// False: it had that value already, and nothing was changed.
    pub changed: bool,
    /// The release that serves with another version of it; it goes on with that until the next deploy.
    pub serving: Option<ReleaseNumber>,
}
