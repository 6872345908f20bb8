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
}
