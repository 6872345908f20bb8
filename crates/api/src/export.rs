//! Images in the forms of other tools.

use kiln_model::{Digest, ServiceName};
use serde::{Deserialize, Serialize};

/// What an image becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// An OCI layout as one tar archive; `oci-dir` is the same, unpacked by the client.
    OciArchive,
    /// What `docker save` writes.
    DockerArchive,
}

/// How layers are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// Understood by everything.
    Gzip,
    /// Smaller and faster, not understood by old tools.
    Zstd,
    /// Not at all.
    None,
}

/// Export an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportRequest {
    /// What it becomes.
    pub format: Format,
    /// How its layers are compressed; a docker archive has them plain.
    pub compression: Compression,
    /// The service whose command, environment, user and port the exported image starts with; none leaves them out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// What it is called there: `NAME:TAG`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

/// An export that is prepared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportView {
    /// The image.
    pub image: Digest,
    /// The digest of what other tools take for the image: the OCI manifest.
    pub manifest: Digest,
    /// Bytes of its layers as they are exported.
    pub size: u64,
}
