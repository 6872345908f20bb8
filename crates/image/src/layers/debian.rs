//! Debian: one layer of the base, shared by all images of one lock, and one of the image's packages.

use super::{LayersError, Room};
use crate::bake::BakeJob;
use crate::debian::Mirror;
use crate::debian::fetch;
use crate::debian::lock::base_name;
use crate::debian::rootfs::Installer;
use crate::debian::slim;
use crate::objects::Objects;
use kiln_model::{Digest, LayerRef};
use kiln_spec::lock::LockedPackage;
use std::path::{Path, PathBuf};

/// Changes whenever the installer makes other layers of the same packages.
pub(crate) const INSTALLER: &str = "kiln installer 3";
/// The name under which the cache keeps the base of some rows.
const BASE: &str = "base";
const PACKAGES: &str = "packages";
const SLIM: &str = "slim";

pub(super) fn below(room: &mut Room<'_>, suite: &str) -> Result<Vec<LayerRef>, LayersError> {
    let job = room.job;
    let base_name = base_name(suite);
    let lock = job.lock.as_ref().ok_or_else(|| LayersError::NoLock(base_name.clone()))?;
    let base: Vec<&LockedPackage> = lock.used_by(&base_name).collect();
    if base.is_empty() {
        return Err(LayersError::NoLock(base_name));
    }
    let locked_as = job.locked_as();
    let packages: Vec<&LockedPackage> = lock.used_by(locked_as.as_str()).collect();
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
                room.cache.put(key, role, install(job, room.objects, below, &rows, room.progress)?)?
            }
        };
        layers.push(layer);
    }
    Ok(layers)
}

/// The one layer of an image on `debian-slim`.
pub(super) fn slim(room: &mut Room<'_>, suite: &str) -> Result<Vec<LayerRef>, LayersError> {
    let (job, name) = (room.job, room.job.locked_as());
    let no_lock = || LayersError::NoLock(name.to_string());
    let lock = job.lock.as_ref().ok_or_else(no_lock)?;
    let rows: Vec<&LockedPackage> = lock.used_by(name.as_str()).collect();
    if rows.is_empty() && !job.recipe.packages.is_empty() {
        return Err(no_lock());
    }
    let key = key(SLIM, &rows, None);
    let _one_at_a_time = room.cache.lock(key)?;
    if let Some(layer) = room.cache.get(key) {
        return Ok(vec![layer]);
    }
    fetch(job, room.objects, suite, &rows, room.progress)?;
    (room.progress)(format!("putting {} packages together", rows.len()));
    let mut layer = room.objects.create()?;
    let mut out = std::io::BufWriter::with_capacity(1 << 20, layer.file());
    slim::install(&packages(room.objects, &rows), &mut out).map_err(LayersError::Slim)?;
    drop(out);
    Ok(vec![room.cache.put(key, SLIM, layer.finish()?)?])
}

fn install(
    job: &BakeJob,
    objects: &Objects,
    below: Option<Digest>,
    rows: &[&LockedPackage],
    progress: &mut dyn FnMut(String),
) -> Result<(Digest, u64), LayersError> {
    let packages = packages(objects, rows);
    if let Some(below) = below {
        // What is installed over a damaged layer would be sealed as if it were right.
        objects.check(below)?;
    }
    let below = below.map(|digest| objects.path(digest));
    let mut layer = objects.create()?;
    let installed = Installer::new(job.program.clone()).install(below.as_deref(), &packages, layer.file());
    let done = installed.map_err(|source| LayersError::Install { source })?;
    if done.disarmed > 0 {
        let n = done.disarmed;
        progress(format!("note: {n} set-id files of packages lost their bits: no instance can use them"));
    }
    Ok(layer.finish()?)
}

/// The packages with their files.
pub(super) fn packages(objects: &Objects, rows: &[&LockedPackage]) -> Vec<(LockedPackage, PathBuf)> {
    rows.iter().map(|row| (LockedPackage::clone(row), objects.path(row.sha256))).collect()
}

/// What a layer is made of.
pub(super) fn key(role: &str, rows: &[&LockedPackage], below: Option<Digest>) -> Digest {
    let mut text = format!("{INSTALLER}\n{role}\n");
    if let Some(below) = below {
        text.push_str(&format!("below {below}\n"));
    }
    for row in rows {
        text.push_str(&format!("{} {} {}\n", row.name, row.version, row.sha256));
    }
    Digest::of(text.as_bytes())
}

/// Fetches the packages that the content store lacks, or has damaged.
pub(super) fn fetch(
    job: &BakeJob,
    objects: &Objects,
    suite: &str,
    packages: &[&LockedPackage],
    progress: &mut dyn FnMut(String),
) -> Result<(), LayersError> {
    let missing: Vec<_> =
        packages.iter().filter(|package| !objects.is_intact(package.sha256)).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mirror = match &job.mirror {
        Some(text) => Mirror::parse(text),
        None => Mirror::of_host(Path::new("/"), suite),
    };
    let mirror = mirror.map_err(LayersError::Mirror)?;
    let fetched = fetch::fetch(&mirror, objects, &missing, progress);
    fetched.map_err(|(package, source)| LayersError::Fetch {
        package: format!("{} {}", package.name, package.version),
        path: package.path.clone(),
        source,
    })
}
