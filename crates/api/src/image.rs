//! Images, and what they were made from.

use kiln_model::{CommitId, Digest, EnvRef, ImageManifest, ImageName, ReleaseNumber};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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

/// What differs between two images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffView {
    /// The first image.
    pub before: Digest,
    /// The second image.
    pub after: Digest,
    /// Debian packages by name.
    pub packages: BTreeMap<String, ValueChange>,
    /// Files by absolute path.
    pub files: BTreeMap<String, FileChange>,
    /// Values of the configuration by name.
    pub config: BTreeMap<String, ValueChange>,
    /// Bytes of all layers of the first.
    pub size_before: u64,
    /// Bytes of all layers of the second.
    pub size_after: u64,
    /// Bytes of the layers that a host with the first image lacks for the second.
    pub size_new: u64,
}

/// A value before and after; one of them is missing if it is new or gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValueChange {
    /// In the first image.
    pub before: Option<String>,
    /// In the second.
    pub after: Option<String>,
}

/// What became of one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileChange {
    /// It is new; its bytes.
    Added(u64),
    /// It is gone; the bytes that it had.
    Removed(u64),
    /// It differs; the names of what differs: `type`, `content`, `target`, `mode`, `owner`, `attributes`.
    Changed(Vec<String>),
}

/// Remove what nothing needs from the content store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcRequest {
    /// Only say what would go.
    #[serde(default)]
    pub plan: bool,
    /// What was written less than so many milliseconds ago stays.
    pub young_ms: u64,
}

/// What was collected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcView {
    /// Whether nothing was done yet.
    pub plan: bool,
    /// Bytes that became free, or would.
    pub freed: u64,
    /// Bytes that stay.
    pub kept: u64,
    /// Every object, the largest first.
    pub objects: Vec<ObjectView>,
}

/// One object of the content store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectView {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// What it is, as far as that is known.
    pub what: String,
    /// Why it stays; none if it goes.
    pub kept_by: Option<String>,
}

/// What the build of an image printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildLogView {
    /// The image.
    pub digest: Digest,
    /// Its lines, shortened in the middle; none if the image was not built here, or has no build.
    pub log: Option<String>,
}
