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
    /// Who baked it from what and when, and whose key vouches for that; in short.
    pub provenance: Option<serde_json::Value>,
    /// The signed statement beside the image, a DSSE envelope, as it was written.
    #[serde(default)]
    pub statement: Option<serde_json::Value>,
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

/// In which form a bill of materials is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SbomQuery {
    /// Which.
    pub format: SbomFormat,
}

/// A form of a bill of materials.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SbomFormat {
    /// SPDX 2.3.
    #[default]
    Spdx,
    /// CycloneDX 1.6.
    Cyclonedx,
}

/// A bill of materials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SbomView {
    /// The document, byte for byte as its digest in the signed statement says.
    pub text: String,
}

/// Which images are to be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyRequest {
    /// Digests or their first digits; empty for all that there are.
    pub images: Vec<String>,
    /// Bake again, from its commit, what is damaged, and read it once more.
    #[serde(default)]
    pub mend: bool,
}

/// What reading images showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Each with what is wrong with it.
    pub images: Vec<VerifiedImage>,
}

/// What reading one image showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedImage {
    /// Which.
    pub digest: Digest,
    /// First digits of the trusted key that vouches for it.
    pub signed_by: Option<String>,
    /// Layers that are right.
    pub layers: usize,
    /// `.deb` files that are right.
    pub packages: usize,
    /// `.deb` files that are not in the store; the image does not need them.
    pub packages_absent: usize,
    /// Bytes that were read.
    pub bytes: u64,
    /// What is damaged or missing.
    pub broken: Vec<BrokenPart>,
    /// What was done about it, or why nothing could be done; none if nobody asked or nothing was to do.
    #[serde(default)]
    pub mended: Option<String>,
}

/// A part that is damaged or missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokenPart {
    /// Which, with role and digest.
    pub part: String,
    /// What is wrong with it.
    pub why: String,
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
