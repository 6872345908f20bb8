//! Images, and what they were made from.

use kiln_model::{CommitId, Digest, EnvRef, ImageManifest, ImageName, ReleaseNumber};
use serde::{Deserialize, Serialize};

/// A list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageList {
    /// Those that releases use, by digest.
    pub images: Vec<ImageView>,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageView {
    /// Its digest.
    pub digest: Digest,
    /// The name that it has in kiln.toml.
    pub name: ImageName,
    /// The commit that it was first baked from.
    pub commit: CommitId,
    /// Bytes of all layers; none if its manifest is not there.
    pub size: Option<u64>,
    /// Releases that use it.
    pub used_by: Vec<ImageUse>,
}

/// A release that uses an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageUse {
    /// Whose.
    pub env: EnvRef,
    /// Which.
    pub release: ReleaseNumber,
    /// Whether traffic goes to it.
    pub serving: bool,
}

/// One image with its content and its origin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageDetail {
    /// What the list shows.
    #[serde(flatten)]
    pub image: ImageView,
    /// Layers and configuration.
    pub manifest: Option<ImageManifest>,
    /// Who baked it from what and when: the record beside the image, as it was written.
    pub provenance: Option<serde_json::Value>,
}

/// An image that was baked again elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebuildView {
    /// The image.
    pub image: Digest,
    /// What the second bake gave; the same if the bake is pure.
    pub rebuilt: Digest,
    /// The folder of the second bake; it is gone.
    pub place: String,
    /// Layer by layer, lowest first.
    pub layers: Vec<RebuiltLayer>,
    /// The first file that differs.
    pub difference: Option<String>,
}

/// A layer of both bakes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebuiltLayer {
    /// What it is for.
    pub role: String,
    /// As the image has it; none if only the second bake has it.
    pub expected: Option<Digest>,
    /// As the second bake made it; none if it did not.
    pub found: Option<Digest>,
}
