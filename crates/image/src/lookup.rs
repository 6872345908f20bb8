//! An image that was baked already is found by what it is made of: no worker is started, nothing of it is read.
//!
//! A commit's name stands for its files and its time, so the key needs no look into the repository. What is found was
//! baked here and is still there whole: the manifest and every layer that it names.

use crate::bake::{BakeJob, Baked, manifest};
use crate::layers::INSTALLER;
use crate::objects::Objects;
use kiln_model::Digest;
use std::path::{Path, PathBuf};

/// Changes whenever the same job gives another image, or is refused where it was not before.
const BAKER: &str = "kiln baker 2";
/// Bytes of a record.
const RECORD_BYTES_MAX: u64 = 4096;

/// What an image is made of.
pub fn key(job: &BakeJob) -> Digest {
    let lock = job.lock.as_ref().map(kiln_spec::Lock::to_text);
    let versions = (BAKER, INSTALLER, crate::lint::VERSION);
    let parts = (versions, &job.commit, &job.recipe, &job.mount_points, lock, &job.images);
    Digest::of(&serde_json::to_vec(&parts).unwrap_or_default())
}

fn path(state: &Path, key: Digest) -> PathBuf {
    state.join("cache/images").join(key.hex())
}

/// The image of `job`, if it was baked in this state folder and is there whole.
pub fn find(job: &BakeJob, objects: &Objects) -> Option<Baked> {
    let path = path(&job.state, key(job));
    let record = std::fs::metadata(&path).ok().filter(|meta| meta.len() <= RECORD_BYTES_MAX);
    let baked: Baked = serde_json::from_slice(&record.and_then(|_| std::fs::read(&path).ok())?).ok()?;
    let manifest = manifest(objects, baked.image).ok()?;
    manifest.layers.iter().all(|layer| objects.has(layer.digest)).then_some(baked)
}

/// Notes what `job` gave. It may be lost at any time: then it is baked again.
pub fn note(job: &BakeJob, baked: &Baked) -> std::io::Result<()> {
    let path = path(&job.state, key(job));
    std::fs::create_dir_all(path.parent().unwrap_or(&job.state))?;
    let part = path.with_extension(std::process::id().to_string());
    std::fs::write(&part, serde_json::to_vec(baked).unwrap_or_default())?;
    std::fs::rename(&part, &path)
}
