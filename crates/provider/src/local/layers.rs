//! The mounted layers of images. Each file is mounted once and only as a descriptor: all instances share its page
//! cache, no mount is visible on the host, and nothing is left when the server dies.

use super::order::Failure;
use super::root::{Layer, Roots};
use super::verify::Verified;
use kiln_model::{Digest, ImageManifest, LayerRef};
use kiln_sys::mount::{self, ErofsBacking};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Layers of one image.
const LAYERS_MAX: usize = 64;

/// Layers that stay mounted although nobody uses them. The disk space of a deleted one is free only when it goes.
const RECENT_MAX: usize = 16;

/// Layers that are mounted now.
#[derive(Debug)]
pub(crate) struct Layers {
    objects: PathBuf,
    backing: ErofsBacking,
    roots: Arc<Roots>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    verified: Verified,
    /// Those used last, so that the next instance of their image finds them mounted.
    recent: VecDeque<Arc<Layer>>,
    /// Each with the inode that it is of: the file may have been replaced by a good one since.
    mounted: HashMap<(Digest, u64), Weak<Layer>>,
}

impl Layers {
    /// Over a content store.
    pub(crate) fn new(objects: PathBuf, backing: ErofsBacking, roots: Arc<Roots>) -> Self {
        Self { objects, backing, roots, known: Mutex::default() }
    }

    /// The layers of an image, lowest first. They stay mounted while somebody holds them. Each is verified, also one that
    /// is mounted already: see `verify.rs`.
    pub(crate) fn of(&self, manifest: &ImageManifest) -> Result<Vec<Arc<Layer>>, Failure> {
        count(manifest, LAYERS_MAX)?;
        manifest.layers.iter().map(|layer| self.layer(layer)).collect()
    }

    /// The files of at most `max` layers, lowest first, each verified.
    pub(crate) fn files(&self, manifest: &ImageManifest, max: usize) -> Result<Vec<File>, Failure> {
        count(manifest, max)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        manifest.layers.iter().map(|layer| self.verified(&mut known, layer)).collect()
    }

    fn layer(&self, layer: &LayerRef) -> Result<Arc<Layer>, Failure> {
        let (digest, name) = (layer.digest, name(layer));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let file = self.verified(&mut known, layer)?;
        let meta = file.metadata().map_err(|error| Failure::io(format!("read {name}"), &error))?;
        let key = (digest, meta.ino());
        if let Some(mounted) = known.mounted.get(&key).and_then(Weak::upgrade) {
            known.remember(&mounted);
            return Ok(mounted);
        }
        let mounted = mount::erofs_of(&file, self.backing).and_then(|mount| self.roots.keep(mount));
        let mounted = mounted.map_err(|error| Failure {
            step: format!("mount {name}"),
            detail: error.line(),
            ..Failure::from(error)
        })?;
        let mounted = Arc::new(mounted);
        known.mounted.retain(|_, mounted| mounted.strong_count() > 0);
        known.mounted.insert(key, Arc::downgrade(&mounted));
        known.remember(&mounted);
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

impl Known {
    fn remember(&mut self, layer: &Arc<Layer>) {
        self.recent.retain(|known| !Arc::ptr_eq(known, layer));
        self.recent.push_front(layer.clone());
        self.recent.truncate(RECENT_MAX);
    }
}
