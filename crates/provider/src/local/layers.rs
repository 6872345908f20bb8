//! The mounted layers of images. Each file is mounted once and only as a descriptor: all instances share its page
//! cache, no mount is visible on the host, and nothing is left when the server dies.

use super::order::{DESCRIPTORS_MAX, Failure};
use super::verify::Verified;
use kiln_model::{Digest, ImageManifest, LayerRef};
use kiln_sys::mount::{self, ErofsBacking};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Layers that are mounted now.
#[derive(Debug)]
pub(crate) struct Layers {
    objects: PathBuf,
    backing: ErofsBacking,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    verified: Verified,
    /// Each with the inode that it is of: the file may have been replaced by a good one since.
    mounted: HashMap<(Digest, u64), Weak<OwnedFd>>,
}

impl Layers {
    /// Over a content store.
    pub(crate) fn new(objects: PathBuf, backing: ErofsBacking) -> Self {
        Self { objects, backing, known: Mutex::default() }
    }

    /// The layers of an image, lowest first. They stay mounted while somebody holds them. Each is verified, also one that
    /// is mounted already: see `verify.rs`.
    pub(crate) fn of(&self, manifest: &ImageManifest) -> Result<Vec<Arc<OwnedFd>>, Failure> {
        count(manifest, DESCRIPTORS_MAX)?;
        manifest.layers.iter().map(|layer| self.layer(layer)).collect()
    }

    /// The files of at most `max` layers, lowest first, each verified.
    pub(crate) fn files(&self, manifest: &ImageManifest, max: usize) -> Result<Vec<File>, Failure> {
        count(manifest, max)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let files = manifest.layers.iter();
        files.map(|layer| self.verified(&mut known, layer)).collect()
    }

    fn layer(&self, layer: &LayerRef) -> Result<Arc<OwnedFd>, Failure> {
        let (digest, name) = (layer.digest, name(layer));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let file = self.verified(&mut known, layer)?;
        let meta = file.metadata().map_err(|error| Failure::io(format!("read {name}"), &error))?;
        let key = (digest, meta.ino());
        if let Some(mounted) = known.mounted.get(&key).and_then(Weak::upgrade) {
            return Ok(mounted);
        }
        let mounted = mount::erofs_of(&file, self.backing).map_err(|error| Failure {
            step: format!("mount {name}"),
            detail: error.line(),
            ..Failure::from(error)
        })?;
        let mounted = Arc::new(mounted);
        known.mounted.retain(|_, mounted| mounted.strong_count() > 0);
        known.mounted.insert(key, Arc::downgrade(&mounted));
        Ok(mounted)
    }

    /// The file of a layer, which is what its name says.
    fn verified(&self, known: &mut Known, layer: &LayerRef) -> Result<File, Failure> {
        let (digest, hex, name) = (layer.digest, layer.digest.hex(), name(layer));
        let path = self.objects.join("sha256").join(&hex[..2]).join(&hex[2..]);
        // Opened once: what is verified is what is mounted.
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Failure::damaged(format!("open {name}"), "it is not in the content store"));
            }
            other => other.map_err(|error| Failure::io(format!("open {name}"), &error))?,
        };
        let io = |error: io::Error| match error.raw_os_error() {
            // The disk cannot read it any more.
            Some(libc::EIO) => Failure::damaged(format!("read {name}"), error.to_string()),
            _ => Failure::io(format!("read {name}"), &error),
        };
        let found = known.verified.digest(digest, &file).map_err(io)?;
        if found != digest {
            let detail = format!("it is damaged: its content is {found}");
            return Err(Failure::damaged(format!("verify {name}"), detail));
        }
        Ok(file)
    }
}

/// What a layer is called in errors.
fn name(layer: &LayerRef) -> String {
    format!("layer {} ({})", layer.digest, layer.role)
}

fn count(manifest: &ImageManifest, max: usize) -> Result<(), Failure> {
    match manifest.layers.len() {
        count if (1..=max).contains(&count) => Ok(()),
        count => {
            let detail = format!("it has {count} layers, expected 1 to {max}");
            Err(Failure::permanent("mount the image", detail))
        }
    }
}
