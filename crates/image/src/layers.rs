//! The layers below the application, by the kind of base: one file each. All are found again by what they are made of.

mod containerfile;
mod debian;
mod image;
mod oci;
mod provision;

pub(crate) use debian::INSTALLER;

pub(crate) use oci::write as import_layer;

use crate::bake::BakeJob;
use crate::containerfile::ContainerfileError;
use crate::debian::MirrorError;
use crate::debian::rootfs::RootfsError;
use crate::debian::slim::SlimError;
use crate::objects::{ObjectError, Objects, write_durable};
use crate::oci::FetchError;
use crate::oci::blob::BlobError;
use crate::oci::layer::LayerError;
use crate::oci::manifest::{ManifestError, Run};
use crate::source::SourceError;
use kiln_model::{Digest, ImageName, LayerRef};
use kiln_spec::Base;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::PathBuf;

/// Lines of a failed script that are told.
const SAID_LINES: usize = 4;

/// The layers below could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LayersError {
    /// There is no lock, or it does not name the base.
    #[error("the lock names no packages for `{0}`")]
    NoLock(String),
    /// A package could not be fetched.
    #[error("cannot fetch package `{package}` (`{path}`)")]
    Fetch {
        /// Which one, with its version.
        package: String,
        /// Where the archive has it.
        path: String,
        /// Why.
        #[source]
        source: crate::debian::fetch::FetchError,
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
    /// The lock does not name the OCI image.
    #[error("the lock does not name the base `oci:{0}`")]
    NoBase(String),
    /// An OCI image could not be fetched.
    #[error("cannot fetch the base")]
    Base(#[source] Box<FetchError>),
    /// The configuration of an OCI image.
    #[error("cannot use the configuration of the base `oci:{reference}`")]
    Config {
        /// Which base.
        reference: String,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// The blob of a layer.
    #[error("cannot use layer {layer} of the base")]
    Blob {
        /// The digest of its archive.
        layer: Digest,
        /// Why.
        #[source]
        source: BlobError,
    },
    /// A layer.
    #[error("layer {layer} of the base is not acceptable")]
    Layer {
        /// The digest of its archive.
        layer: Digest,
        /// Why.
        #[source]
        source: LayerError,
    },
    /// A layer of an OCI image could not be written.
    #[error("cannot write layer {layer} of the base")]
    Write {
        /// The digest of its archive.
        layer: Digest,
        /// Why.
        #[source]
        source: crate::erofs::ErofsError,
    },
    /// The playbook is not in the commit.
    #[error("the commit has no playbook `{0}`")]
    NoPlaybook(String),
    /// The files of a playbook.
    #[error("cannot read playbook `{path}`")]
    Playbook {
        /// The path in the commit.
        path: String,
        /// Why.
        #[source]
        source: SourceError,
    },
    /// A playbook failed.
    #[error("playbook `{path}`{}", said(source))]
    Provision {
        /// The path in the commit.
        path: String,
        /// Why.
        #[source]
        source: RootfsError,
    },
    /// What buildah makes.
    #[error("cannot build `{path}`")]
    Containerfile {
        /// The path in the commit.
        path: String,
        /// Why.
        #[source]
        source: Box<ContainerfileError>,
    },
    /// The image below was not baked first.
    #[error("image `{0}`, which this one stands on, is not baked")]
    NotBaked(ImageName),
    /// Their files could not be put together.
    #[error("cannot put the packages together")]
    Slim(#[source] SlimError),
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
            Self::NoLock(_) | Self::NoBase(_) => Some("run `kiln lock` and commit kiln.lock".into()),
            Self::Base(source) => Some(source.hint()),
            Self::Containerfile { source, .. } => source.hint(),
            Self::NoPlaybook(_) => Some("commit it, or correct `provision` in kiln.toml".into()),
            Self::Provision { source, .. } if source.to_string().contains("has no `/usr/bin/ansible") => {
                Some("put `ansible-core` into the image below; only `debian:` bases bring their own".into())
            }
            Self::Blob { .. } | Self::Layer { .. } => {
                Some("the base was made in a way that kiln does not take: rebuild it, or use another".into())
            }
            Self::Fetch { path, source, .. } => match source.mirror()? {
                MirrorError::NotFound { .. } => Some(format!(
                    "the content store does not have it either: bring that version to the mirror as `{path}`, or take a \
                     newer one with `kiln lock --update` and commit kiln.lock"
                )),
                error => Some(error.hint().to_owned()),
            },
            Self::Mirror(source) => Some(source.hint().to_owned()),
            Self::Install { source } => source.hint(),
            _ => None,
        }
    }

    /// Whether it may work when it is tried again as it is.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Fetch { source, .. } => matches!(source.mirror(), Some(MirrorError::Read { .. })),
            Self::Install { source } | Self::Provision { source, .. } => source.may_pass(),
            Self::Base(source) => source.may_pass(),
            _ => false,
        }
    }
}

/// What an OCI image says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseRecord {
    /// The digest of its manifest.
    pub manifest: Digest,
    /// How it wants to be run.
    #[serde(default)]
    pub run: Run,
}

/// What lies below the application of an image.
#[derive(Debug, Default)]
pub struct Below {
    /// Layers, lowest first.
    pub layers: Vec<LayerRef>,
    /// How the OCI image at the bottom wants to be run; it is recorded, and nothing follows it.
    pub base: Option<BaseRecord>,
    /// Why another bake may give other layers; none if it gives the same.
    pub unreproducible: Option<String>,
}

/// The layers below the application of `job`.
pub fn below(
    job: &BakeJob,
    objects: &Objects,
    progress: &mut dyn FnMut(String),
) -> Result<Below, LayersError> {
    let mut room = Room { job, objects, cache: Cache::new(&job.state, objects), progress };
    let mut below = match &job.recipe.base {
        Base::Scratch => Below::default(),
        Base::Debian { suite } => Below { layers: debian::below(&mut room, suite)?, ..Below::default() },
        Base::DebianSlim { suite } => Below { layers: debian::slim(&mut room, suite)?, ..Below::default() },
        Base::Oci { reference } => oci::below(&mut room, reference)?,
        Base::Image { name } => image::below(&mut room, name)?,
        Base::Containerfile { path } => containerfile::below(&mut room, path)?,
    };
    if let Some(provision) = &job.recipe.provision {
        let layer = provision::over(&mut room, &below.layers, &provision.ansible)?;
        below.layers.push(layer);
    }
    Ok(below)
}

/// What all kinds of layers are made with.
struct Room<'a> {
    job: &'a BakeJob,
    objects: &'a Objects,
    cache: Cache<'a>,
    progress: &'a mut dyn FnMut(String),
}

/// What a script said last, for the message.
fn said(error: &RootfsError) -> String {
    let lines: Vec<&str> = error.output().lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match &lines[lines.len().saturating_sub(SAID_LINES)..] {
        [] => String::new(),
        last => format!(" (it said: {})", last.join(" | ")),
    }
}

/// Layers by what they are made of: `cache/KEY` holds a [`LayerRef`]. It may be deleted at any time.
pub(crate) struct Cache<'a> {
    dir: PathBuf,
    objects: &'a Objects,
}

impl<'a> Cache<'a> {
    pub(crate) fn new(state: &std::path::Path, objects: &'a Objects) -> Self {
        Self { dir: state.join("cache"), objects }
    }

    pub(crate) fn path(&self, key: Digest) -> PathBuf {
        self.dir.join(key.hex())
    }

    pub(crate) fn lock(&self, key: Digest) -> Result<File, LayersError> {
        let path = self.path(key).with_extension("lock");
        let lock = || {
            std::fs::create_dir_all(&self.dir)?;
            let file = File::options().write(true).create(true).truncate(false).open(&path)?;
            flock(&file, FlockOperation::LockExclusive)?;
            Ok(file)
        };
        lock().map_err(|source| LayersError::Cache { path: path.clone(), source })
    }

    pub(crate) fn get(&self, key: Digest) -> Option<LayerRef> {
        let path = self.path(key);
        let layer: LayerRef = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
        if !self.objects.has(layer.digest) {
            return None;
        }
        // What was used lately is not collected; that the time cannot be set only makes it be made again.
        let used = File::options().append(true).open(path);
        let _ = used.and_then(|file| file.set_modified(std::time::SystemTime::now()));
        Some(layer)
    }

    pub(crate) fn put(&self, key: Digest, role: &str, layer: (Digest, u64)) -> Result<LayerRef, LayersError> {
        let layer = LayerRef { digest: layer.0, size: layer.1, role: role.to_owned() };
        let path = self.path(key);
        let bytes = serde_json::to_vec(&layer).unwrap_or_default();
        write_durable(&path, &bytes).map_err(|source| LayersError::Cache { path, source })?;
        Ok(layer)
    }
}
