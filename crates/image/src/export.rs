//! Images for other tools: OCI layouts and archives, registries, disks. Nothing here changes an image; what is written is the
//! same for the same image and options.

pub mod blob;
pub mod boot;
mod cpio;
pub mod disk;
mod fat;
mod gpt;
pub mod oci;
mod pe;
mod qcow2;
pub mod tarball;

use crate::objects::ObjectError;
use kiln_model::Digest;
use std::path::PathBuf;

/// An image could not be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Its manifest is not there or is damaged.
    #[error("cannot read the manifest of image {image}")]
    Manifest {
        /// Which image.
        image: Digest,
        /// Why.
        #[source]
        source: ObjectError,
    },
    /// A layer is not there, is damaged, or cannot be turned into an archive.
    #[error("cannot export layer {layer}")]
    Layer {
        /// Which layer.
        layer: Digest,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It cannot boot.
    #[error("the image cannot boot")]
    Boot(#[source] boot::BootError),
    /// Its layers cannot be joined.
    #[error("cannot join the layers of the image")]
    Seal(#[source] std::io::Error),
    /// The content store.
    #[error("the content store failed")]
    Objects(#[from] ObjectError),
    /// A file could not be written.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}
