//! Images from one server to another: only the layers that the other one lacks, as patches where it has an older one.

use kiln_model::{Digest, ImageManifest};
use serde::{Deserialize, Serialize};

/// What is about to come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferRequest {
    /// The image.
    pub manifest: ImageManifest,
    /// The signed statement that vouches for it.
    pub statement: Option<serde_json::Value>,
}

/// What of it is needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferView {
    /// The image.
    pub image: Digest,
    /// Layers that are not there, lowest first.
    pub missing: Vec<MissingLayer>,
}

/// A layer that is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingLayer {
    /// Which one.
    pub layer: Digest,
    /// Its bytes.
    pub size: u64,
    /// Layers that are there and may be like it, the likeliest first.
    pub like: Vec<Digest>,
}

/// Query of the bytes of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerQuery {
    /// Digests of layers that the receiver has, separated by commas; the first that the sender has as well makes a patch.
    #[serde(default)]
    pub like: String,
}

/// A layer that was received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerView {
    /// Which one.
    pub layer: Digest,
    /// Its bytes.
    pub size: u64,
}

/// All layers are there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiveRequest {
    /// The image.
    pub manifest: ImageManifest,
    /// The signed statement that vouches for it.
    pub statement: Option<serde_json::Value>,
    /// Its bills of materials, whose digests are in the statement.
    #[serde(default)]
    pub sboms: Vec<(crate::image::SbomFormat, String)>,
}
