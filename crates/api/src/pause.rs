//! Pause and resume: stopping effects while observation goes on.

use kiln_model::{EnvRef, Millis, Wall};
use serde::{Deserialize, Serialize};

/// Stop effects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseRequest {
    /// Of one environment; without it of the whole server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<EnvRef>,
    /// Why.
    pub reason: String,
}

/// Go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeRequest {
    /// With one environment; without it with the whole server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<EnvRef>,
}

/// A pause that holds. Also the answer to one that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseView {
    /// Of which environment; none for the whole server.
    pub env: Option<EnvRef>,
    /// Who asked.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// Since when.
    pub at: Wall,
}

/// The answer to `kiln resume`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeView {
    /// Which environment; none for the whole server.
    pub env: Option<EnvRef>,
    /// How long the pause was.
    pub after_ms: Millis,
    /// The pause of the whole server that still holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub still: Option<PauseView>,
}

/// What kiln itself leaves as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldView {
    /// Which environment.
    pub env: EnvRef,
    /// Why.
    pub reason: String,
    /// For how long.
    pub since_ms: Millis,
}
