//! What the server says of itself.

use serde::{Deserialize, Serialize};

/// The server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerView {
    /// Version of kiln.
    pub version: String,
    /// Process id, to recognise a restart.
    pub pid: u32,
    /// The newest revision of its state.
    pub revision: u64,
    /// Who may change the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseView>,
}

/// The lease: exactly one server has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseView {
    /// Who has it: the address of the server that leads, or its process if there are no others.
    pub holder: String,
    /// How often it was taken. Effects of lower ones are refused.
    pub epoch: u64,
    /// Until when it is renewed, in milliseconds from now; none if there are no others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_ms: Option<u64>,
}
