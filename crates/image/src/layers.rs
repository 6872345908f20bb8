//! The layers below the application: none for `scratch`; for Debian one of the base, shared by all images of one lock,
//! and one of the image's packages. Both are found again by what they are made of.

use crate::bake::BakeJob;
use crate::debian::lock::base_name;
use crate::debian::rootfs::{Installer, RootfsError};
use crate::debian::{Mirror, MirrorError};
use crate::objects::{ObjectError, Objects, write_durable};
use kiln_model::{Digest, LayerRef};
use kiln_spec::Base;
use kiln_spec::lock::LockedPackage;
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Changes whenever the installer makes other layers of the same packages.
pub(crate) const INSTALLER: &str = "kiln installer 2";
/// The name under which the cache keeps the base of some rows.
const BASE: &str = "base";
const PACKAGES: &str = "packages";
/// Lines of a failed script that are told.
const SAID_LINES: usize = 4;

/// The layers below could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LayersError {
    /// There is no lock, or it does not name the base.
    #[error("the lock names no packages for `{0}`")]
    NoLock(String),
    /// A base of a later kiln.
    #[error("base {0} is not available yet")]
    NotYet(String),
    /// A package could not be fetched.
    #[error("cannot fetch package `{package}`")]
    Fetch {
        /// Which one.
        package: String,
        /// Why.
        #[source]
        source: MirrorError,
    },
    /// The mirror cannot be used.
    #[error("cannot use the mirror")]
    Mirror(#[source] MirrorError),
    /// They could not be installed.
    #[error("cannot install the packages{}", said(source))]
    Install {
        /// Why.
        #[source]
        source: RootfsError,
    },
    /// The content store.
    #[error("the content store failed")]
    Objects(#[from] ObjectError),
    /// The cache.
    #[error("cannot use the cache `{}`", path.display())]
    Cache {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl LayersError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoLock(_) => Some("run `kiln lock` and commit kiln.lock".into()),
            Self::Fetch { source, .. } | Self::Mirror(source) => Some(source.hint().to_owned()),
            Self::Install { source } => source.hint(),
            _ => None,
        }
    }

    /// Whether it may work when it is tried again as it is.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Fetch { source, .. } => matches!(source, MirrorError::Read { .. }),
            Self::Install { source } => source.may_pass(),
            _ => false,
        }
    }
}

/// The layers below the application of `job`, lowest first.
pub fn below(
    job: &BakeJob,
    objects: &Objects,
    progress: &mut dyn FnMut(String),
) -> Result<Vec<LayerRef>, LayersError> {
    let suite = match &job.recipe.base {
        Base::Scratch => return Ok(vec![]),
        Base::Debian { suite } => suite,
        other => return Err(LayersError::NotYet(format!("{other:?}"))),
    };
    let base_name = base_name(suite);
    let lock = job.lock.as_ref().ok_or_else(|| LayersError::NoLock(base_name.clone()))?;
    let base: Vec<&LockedPackage> = lock.used_by(&base_name).collect();
    if base.is_empty() {
        return Err(LayersError::NoLock(base_name));
    }
    let packages: Vec<&LockedPackage> = lock.used_by(job.recipe.name.as_str()).collect();
    let cache = Cache { dir: job.state.join("cache"), objects };
    let mut layers = vec![];
    for (role, rows) in [(BASE, base), (PACKAGES, packages)] {
        if rows.is_empty() {
            continue;
        }
        let below = layers.last().map(|layer: &LayerRef| layer.digest);
        let key = key(role, &rows, below);
        // Two bakes of one layer would do the same work twice.
        let _one_at_a_time = cache.lock(key)?;
        let layer = match cache.get(key) {
            Some(layer) => layer,
            None => {
                fetch(job, objects, suite, &rows, progress)?;
                progress(format!("installing {} packages", rows.len()));
                cache.put(key, role, install(job, objects, below, &rows, progress)?)?
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
    progress: &mut dyn FnMut(String),
) -> Result<(Digest, u64), LayersError> {
    let packages: Vec<_> =
        rows.iter().map(|row| (LockedPackage::clone(row), objects.path(row.sha256))).collect();
    let below = below.map(|digest| objects.path(digest));
    let mut layer = objects.create()?;
    let installed = Installer::new(job.program.clone()).install(below.as_deref(), &packages, layer.file());
    let done = installed.map_err(|source| LayersError::Install { source })?;
    if done.disarmed > 0 {
        progress(format!(
            "note: {} set-id files of packages lost their bits: no instance can use them",
            done.disarmed
        ));
    }
    Ok(layer.finish()?)
}

/// What a script said last, for the message.
fn said(error: &RootfsError) -> String {
    let lines: Vec<&str> = error.output().lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match &lines[lines.len().saturating_sub(SAID_LINES)..] {
        [] => String::new(),
        last => format!(" (it said: {})", last.join(" | ")),
    }
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

/// Layers by what they are made of: `cache/KEY` holds a [`LayerRef`]. It may be deleted at any time.
struct Cache<'a> {
    dir: PathBuf,
    objects: &'a Objects,
}

impl Cache<'_> {
    fn path(&self, key: Digest) -> PathBuf {
        self.dir.join(key.hex())
    }

    fn lock(&self, key: Digest) -> Result<File, LayersError> {
        let path = self.path(key).with_extension("lock");
        let lock = || {
            std::fs::create_dir_all(&self.dir)?;
            let file = File::options().write(true).create(true).truncate(false).open(&path)?;
            flock(&file, FlockOperation::LockExclusive)?;
            Ok(file)
        };
        lock().map_err(|source| LayersError::Cache { path: path.clone(), source })
    }

    fn get(&self, key: Digest) -> Option<LayerRef> {
        let layer: LayerRef = serde_json::from_slice(&std::fs::read(self.path(key)).ok()?).ok()?;
        self.objects.has(layer.digest).then_some(layer)
    }

    fn put(&self, key: Digest, role: &str, layer: (Digest, u64)) -> Result<LayerRef, LayersError> {
        let layer = LayerRef { digest: layer.0, size: layer.1, role: role.to_owned() };
        let path = self.path(key);
        let bytes = serde_json::to_vec(&layer).unwrap_or_default();
        write_durable(&path, &bytes).map_err(|source| LayersError::Cache { path, source })?;
        Ok(layer)
    }
}
