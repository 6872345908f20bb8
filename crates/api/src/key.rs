//! Keys that sign images, and keys that are trusted.

use serde::{Deserialize, Serialize};

/// All that the server knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyList {
    /// In the order of the list; the one that signs is among them.
    pub keys: Vec<KeyView>,
    /// The file with the trusted keys.
    pub list: String,
}

/// One public key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyView {
    /// sha256 of its DER form, in hexadecimal.
    pub id: String,
    /// As `ed25519:BASE64`.
    pub key: String,
    /// As PEM.
    pub pem: String,
    /// Whether it signs what is baked here.
    pub signs: bool,
    /// Whether images that it signed may run here.
    pub trusted: bool,
    /// The last day on which they may, as `YYYY-MM-DD` in UTC; none for no end.
    pub until: Option<String>,
}

/// Which key is no longer to be trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRequest {
    /// The first digits of its id.
    pub id: String,
}
