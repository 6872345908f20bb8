//! Locks: exactly what a project is made of.

use serde::{Deserialize, Serialize};

/// Resolve a kiln.toml.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRequest {
    /// The text of kiln.toml.
    pub toml: String,
    /// The text of the kiln.lock that is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    /// Take the newest versions instead of keeping those that are locked.
    #[serde(default)]
    pub update: bool,
}

/// A resolved lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockView {
    /// The text of the new kiln.lock.
    pub text: String,
    /// What differs from the previous one, one line each.
    pub changes: Vec<String>,
}
