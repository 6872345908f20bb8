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
    /// A disk that UEFI boots.
    Raw,
    /// The same disk as a file of QEMU.
    Qcow2,
    /// A tar archive of kernel, initial RAM disk, command line and root file system.
    Kernel,
}

impl Format {
    /// Whether it is a machine of its own.
    pub const fn boots(self) -> bool {
        matches!(self, Self::Raw | Self::Qcow2 | Self::Kernel)
    }
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
    /// For what boots: the digest of the image that its kernel is taken from, or its first digits; none takes the image's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_image: Option<String>,
    /// For what boots: its address with bits, such as `10.0.2.15/24`; none asks DHCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// For what boots: the way out of its network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<std::net::Ipv4Addr>,
}

impl ExportRequest {
    /// Of that form, with nothing else said.
    pub const fn new(format: Format) -> Self {
        let compression = Compression::Gzip;
        Self {
            format,
            compression,
            service: None,
            reference: None,
            kernel_image: None,
            address: None,
            gateway: None,
        }
    }
}

/// An export that is prepared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportView {
    /// The image.
    pub image: Digest,
    /// The digest of what other tools take for the image: the OCI manifest. For what boots, of its root file system.
    pub manifest: Digest,
    /// Bytes of its layers as they are exported; with the kernel, for what boots.
    pub size: u64,
}

/// Push an image to a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushRequest {
    /// Where to: `HOST[:PORT]/NAME:TAG`.
    pub to: String,
    /// How its layers are compressed.
    pub compression: Compression,
    /// The service whose command, environment, user and port the image there starts with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
}

/// An image that was pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushView {
    /// The image.
    pub image: Digest,
    /// The digest of its manifest there.
    pub manifest: Digest,
    /// Bytes of its layers there.
    pub size: u64,
    /// Bytes that were sent; the registry had the rest.
    pub sent: u64,
}

/// Query of an import; its body is an OCI archive, a Docker archive, or a tar archive of an OCI layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportQuery {
    /// What the file is called, for messages and the record.
    pub name: String,
}

/// An image that was imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportView {
    /// The image.
    pub image: Digest,
    /// Bytes of its layers.
    pub size: u64,
    /// The image of kiln that it says it is; another one if its content is not the same any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<Digest>,
}
