//! The JSON documents of the OCI image specification, as far as kiln reads and writes them.

use kiln_model::Digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Bytes of a manifest, an index or a configuration.
pub const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// Layers of one image.
pub const LAYERS_MAX: usize = 120;
/// Entries of one index.
const INDEX_MAX: usize = 1000;
/// Media types that are asked for and understood.
pub const MANIFEST_TYPES: &[&str] = &[
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
/// Media type of a manifest.
pub const MANIFEST_TYPE: &str = MANIFEST_TYPES[0];
/// Media type of a configuration.
pub const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of an uncompressed layer.
pub const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// A document that is not acceptable.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not the JSON that it should be.
    #[error("it is not understood")]
    Json(#[from] serde_json::Error),
    /// Something in it is impossible.
    #[error("{0}")]
    Invalid(String),
}

/// A reference to a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// For which machines it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Free texts; `org.opencontainers.image.ref.name` is a tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// For which machines an image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `amd64`.
    pub architecture: String,
    /// `linux`.
    pub os: String,
}

impl Descriptor {
    /// The tag that a layout gives it.
    pub fn tag(&self) -> Option<&str> {
        self.annotations.as_ref()?.get("org.opencontainers.image.ref.name").map(String::as_str)
    }

    fn fits(&self) -> bool {
        self.platform.as_ref().is_none_or(|p| p.architecture == "amd64" && p.os == "linux")
    }
}

/// What an image consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2.
    pub schema_version: u32,
    /// One of [`MANIFEST_TYPES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Its configuration.
    pub config: Descriptor,
    /// Its layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

/// Several images under one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// Them.
    pub manifests: Vec<Descriptor>,
}

/// What a manifest's bytes can be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several.
    Index(Index),
}

impl Document {
    /// Understands a manifest or an index.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let value: serde_json::Value = serde_json::from_slice(bytes)?;
        if value.get("manifests").is_some() {
            let index: Index = serde_json::from_value(value)?;
            if index.manifests.len() > INDEX_MAX {
                return Err(ManifestError::Invalid(format!("it lists more than {INDEX_MAX} images")));
            }
            return Ok(Self::Index(index));
        }
        Ok(Self::Manifest(Manifest::check(serde_json::from_value(value)?)?))
    }
}

impl Index {
    /// The images for this machine, with that tag if one is given.
    pub fn candidates(&self, tag: Option<&str>) -> Vec<&Descriptor> {
        let fits = |d: &&Descriptor| d.fits() && tag.is_none_or(|tag| d.tag() == Some(tag));
        self.manifests.iter().filter(fits).collect()
    }
}

impl Manifest {
    /// Understands the manifest of one image.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        Self::check(serde_json::from_slice(bytes)?)
    }

    fn check(manifest: Self) -> Result<Self, ManifestError> {
        if manifest.layers.len() > LAYERS_MAX {
            return Err(ManifestError::Invalid(format!("it has more than {LAYERS_MAX} layers")));
        }
        if manifest.config.size > DOCUMENT_BYTES_MAX {
            return Err(ManifestError::Invalid("its configuration is too large".into()));
        }
        Ok(manifest)
    }

    /// Configuration and layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        std::iter::once(&self.config).chain(&self.layers)
    }
}

/// How an image wants to be run, and what its layers are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// How it wants to be run.
    #[serde(default)]
    pub config: Option<Run>,
    /// Its layers.
    pub rootfs: RootFs,
}

/// Digests of the archives of an image's layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// The lowest first.
    pub diff_ids: Vec<Digest>,
}

/// How an image wants to be run. kiln records it; `command`, `env` and `user` of kiln.toml decide.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Run {
    /// `NAME=VALUE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    /// The program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Its arguments, or the program if there is no entry point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// A user, a uid, or both with a group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where the program starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
}

impl Config {
    /// Understands a configuration for `n_layers` layers on this machine.
    pub fn parse(bytes: &[u8], n_layers: usize) -> Result<Self, ManifestError> {
        let config: Self = serde_json::from_slice(bytes)?;
        if !matches!((&*config.architecture, &*config.os), ("amd64" | "", "linux" | "")) {
            let text = format!("the image is for {}/{}, not linux/amd64", config.os, config.architecture);
            return Err(ManifestError::Invalid(text));
        }
        if config.rootfs.diff_ids.len() != n_layers {
            let n = config.rootfs.diff_ids.len();
            return Err(ManifestError::Invalid(format!("it has {n} archives for {n_layers} layers")));
        }
        Ok(config)
    }
}
