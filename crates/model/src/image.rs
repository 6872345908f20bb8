//! A sealed image: an ordered list of layers and a configuration, named by the digest of its manifest.

use crate::digest::Digest;
use serde::{Deserialize, Serialize};

/// What an image is made of. Its canonical JSON ([`ImageManifest::canonical`]) is what the image digest is taken of.
/// Nothing in here may depend on who baked it, where, or when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageManifest {
    /// Version of this format, 1.
    pub format: u32,
    /// `amd64`.
    pub architecture: String,
    /// Lowest layer first. Each is one EROFS file; a higher one hides the lower.
    pub layers: Vec<LayerRef>,
    /// What an instance needs to know of it.
    pub config: ImageConfig,
}

impl ImageManifest {
    /// The bytes that are digested and stored.
    pub fn canonical(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The digest that names the image.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.canonical())
    }
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRef {
    /// sha256 of the EROFS file.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// `base`, `packages` or `app`, for people.
    pub role: String,
}

/// The configuration that is sealed into an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Seconds since 1970 that all files of the application layer carry: the commit's time.
    pub epoch: i64,
    /// User names of the image's `/etc/passwd` with (uid, gid), sorted, so that `user = "www-data"` needs no lookup
    /// at start.
    pub users: std::collections::BTreeMap<String, (u32, u32)>,
}
