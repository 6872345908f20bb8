//! The mounted layers of images. Each file is mounted once and only as a descriptor: all instances share its page
//! cache, no mount is visible on the host, and nothing is left when the server dies.

use super::order::{DESCRIPTORS_MAX, Failure};
use kiln_model::{Digest, ImageManifest};
use kiln_sys::mount::{self, ErofsBacking};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Layers that are mounted now.
#[derive(Debug)]
pub(crate) struct Layers {
    objects: PathBuf,
    backing: ErofsBacking,
    mounted: Mutex<HashMap<Digest, Weak<OwnedFd>>>,
}

impl Layers {
    /// Over a content store.
    pub(crate) fn new(objects: PathBuf, backing: ErofsBacking) -> Self {
        Self { objects, backing, mounted: Mutex::default() }
    }

    /// The layers of an image, lowest first. They stay mounted while somebody holds them.
    pub(crate) fn of(&self, manifest: &ImageManifest) -> Result<Vec<Arc<OwnedFd>>, Failure> {
        if manifest.layers.is_empty() || manifest.layers.len() > DESCRIPTORS_MAX {
            let detail = format!("it has {} layers, expected 1 to {DESCRIPTORS_MAX}", manifest.layers.len());
            return Err(Failure::permanent("mount the image", detail));
        }
        manifest.layers.iter().map(|layer| self.layer(layer.digest)).collect()
    }

    fn layer(&self, digest: Digest) -> Result<Arc<OwnedFd>, Failure> {
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(layer) = mounted.get(&digest).and_then(Weak::upgrade) {
            return Ok(layer);
        }
        let hex = digest.hex();
        let path = self.objects.join("sha256").join(&hex[..2]).join(&hex[2..]);
        let layer = mount::erofs(&path, self.backing).map_err(|error| Failure {
            permanent: !error.may_pass(),
            step: format!("mount layer {digest}"),
            detail: error.line(),
        })?;
        let layer = Arc::new(layer);
        mounted.retain(|_, layer| layer.strong_count() > 0);
        mounted.insert(digest, Arc::downgrade(&layer));
        Ok(layer)
    }
}
