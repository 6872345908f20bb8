//! What blocks, since when, what happens next, and the command that helps.

use kiln_model::{EnvRef, Millis};
use serde::{Deserialize, Serialize};

/// The answer to `kiln why`. No reason means that all is as desired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyView {
    /// One per thing that is amiss or under way.
    pub reasons: Vec<ReasonView>,
}

/// One thing that is not as desired, or why the last rollout failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonView {
    /// Of which environment.
    pub env: EnvRef,
    /// What blocks.
    pub what: String,
    /// For how long.
    pub since_ms: Millis,
    /// What happens next without anybody's help.
    pub next: String,
    /// When that happens at the latest, from now.
    pub deadline_ms: Option<Millis>,
    /// The command that helps.
    pub command: Option<String>,
    /// What was seen: failed checks, last lines.
    pub evidence: Vec<String>,
}
