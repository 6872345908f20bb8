//! What a command that named itself was answered: asked again, it is answered the same and nothing happens twice.

use crate::digest::Digest;
use crate::fence::Revision;
use serde::{Deserialize, Serialize};

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// The key that the client made up.
    pub key: String,
    /// Of who asked and of what was asked for.
    pub request: Digest,
    /// What came of it, as JSON.
    pub outcome: String,
    /// The commit that recorded the command.
    pub revision: Revision,
}

/// Whether a text may be a key: letters, digits, `-` and `_`.
pub fn is_key(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}
