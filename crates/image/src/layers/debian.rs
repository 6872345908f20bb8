//! Debian: one layer of the base, shared by all images of one lock, and one of the image's packages.

use super::{LayersError, Room};
use crate::bake::BakeJob;
use crate::debian::Mirror;
use crate::debian::lock::base_name;
use crate::debian::rootfs::Installer;
use crate::objects::{ObjectError, Objects};
use kiln_model::{Digest, LayerRef};
use kiln_spec::lock::LockedPackage;
use std::path::Path;

/// Changes whenever the installer makes other layers of the same packages.
const INSTALLER: &str = "kiln installer 1";
/// The name under which the cache keeps the base of some rows.
const BASE: &str = "base";
const PACKAGES: &str = "packages";

pub(super) fn below(room: &mut Room<'_>, suite: &str) -> Result<Vec<LayerRef>, LayersError> {
    let job = room.job;
    let base_name = base_name(suite);
    let lock = job.lock.as_ref().ok_or_else(|| LayersError::NoLock(base_name.clone()))?;
    let base: Vec<&LockedPackage> = lock.used_by(&base_name).collect();
    if base.is_empty() {
        return Err(LayersError::NoLock(base_name));
    }
    let packages: Vec<&LockedPackage> = lock.used_by(job.recipe.name.as_str()).collect();
    let mut layers = vec![];
    for (role, rows) in [(BASE, base), (PACKAGES, packages)] {
        if rows.is_empty() {
            continue;
        }
        let below = layers.last().map(|layer: &LayerRef| layer.digest);
        let key = key(role, &rows, below);
        // Two bakes of one layer would do the same work twice.
        let _one_at_a_time = room.cache.lock(key)?;
        let layer = match room.cache.get(key) {
            Some(layer) => layer,
            None => {
                fetch(job, room.objects, suite, &rows, room.progress)?;
                (room.progress)(format!("installing {} packages", rows.len()));
                room.cache.put(key, role, install(job, room.objects, below, &rows)?)?
            }
        };
        layers.push(layer);
    }
    Ok(layers)
}

fn install(
    job: &BakeJob,
    objects: &Objects,
    below: Option<Digest>,
    rows: &[&LockedPackage],
) -> Result<(Digest, u64), LayersError> {
    let packages: Vec<_> =
        rows.iter().map(|row| (LockedPackage::clone(row), objects.path(row.sha256))).collect();
    let below = below.map(|digest| objects.path(digest));
    let mut layer = objects.create()?;
    let installed = Installer::new(job.program.clone()).install(below.as_deref(), &packages, layer.file());
    installed.map_err(|source| LayersError::Install { source })?;
    Ok(layer.finish()?)
}

/// What a layer is made of.
fn key(role: &str, rows: &[&LockedPackage], below: Option<Digest>) -> Digest {
    let mut text = format!("{INSTALLER}\n{role}\n");
    if let Some(below) = below {
        text.push_str(&format!("below {below}\n"));
    }
    for row in rows {
        text.push_str(&format!("{} {} {}\n", row.name, row.version, row.sha256));
    }
    Digest::of(text.as_bytes())
}

/// Fetches the packages that the content store lacks.
fn fetch(
    job: &BakeJob,
    objects: &Objects,
    suite: &str,
    packages: &[&LockedPackage],
    progress: &mut dyn FnMut(String),
) -> Result<(), LayersError> {
    let missing: Vec<_> = packages.iter().filter(|package| !objects.has(package.sha256)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mirror = match &job.mirror {
        Some(text) => Mirror::parse(text),
        None => Mirror::of_host(Path::new("/"), suite),
    };
    let mirror = mirror.map_err(LayersError::Mirror)?;
    let bytes: u64 = missing.iter().map(|package| package.size).sum();
    progress(format!("fetching {} packages, {} MB", missing.len(), bytes / 1_000_000));
    for package in missing {
        let failed = |source| LayersError::Fetch { package: package.name.clone(), source };
        let bytes = mirror.read_package(package).map_err(failed)?;
        let found = objects.put(&bytes)?;
        if found != package.sha256 {
            return Err(ObjectError::Mismatch { expected: package.sha256, found }.into());
        }
    }
    Ok(())
}
