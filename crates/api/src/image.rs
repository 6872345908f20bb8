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

/// What the build of an image printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildLogView {
    /// The image.
    pub digest: Digest,
    /// Its lines, shortened in the middle; none if the image was not built here, or has no build.
    pub log: Option<String>,
}
