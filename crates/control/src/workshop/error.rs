//! Why a commit cannot become a release or an image.

use kiln_image::attest::{PolicyError, TrustError};
use kiln_image::kernel::KernelError;
use kiln_image::replicate::ReplicateError;
use kiln_image::sbom::SbomError;
use kiln_image::worker::WorkerError;
use kiln_image::{ObjectError, SourceError};
use kiln_model::{CommitId, EnvName, ProjectName};
use kiln_spec::SpecErrors;
use std::path::PathBuf;

/// A commit cannot become a release or an image.
#[derive(Debug, thiserror::Error)]
pub enum WorkshopError {
    /// The source is not there.
    #[error("the server does not have commit {commit} of `{project}`")]
    NoSource {
        /// Whose.
        project: ProjectName,
        /// Which.
        commit: CommitId,
    },
    /// The source was refused or cannot be read.
    #[error("the source of commit {commit} cannot be used")]
    Source {
        /// Which.
        commit: CommitId,
        /// Why.
        #[source]
        source: SourceError,
    },
    /// It has no kiln.toml.
    #[error("commit {commit} has no `kiln.toml`")]
    NoSpec {
        /// Which.
        commit: CommitId,
    },
    /// kiln.toml is not valid; the text has the hints.
    #[error("{0}")]
    Spec(SpecErrors),
    /// kiln.toml names another project.
    #[error("`kiln.toml` of the commit names the project `{found}`, not `{expected}`")]
    OtherProject {
        /// As asked.
        expected: ProjectName,
        /// As in the file.
        found: ProjectName,
    },
    /// kiln.lock is not a lock.
    #[error("{text}")]
    Lock {
        /// What is wrong with it; begins with its name.
        text: String,
    },
    /// kiln.lock is of another kiln.toml.
    #[error("`kiln.lock` of the commit does not fit its `kiln.toml`: {images}")]
    StaleLock {
        /// The images that differ.
        images: String,
    },
    /// The environment runs nothing.
    #[error("`kiln.toml` has no services for environment `{env}`")]
    NoServices {
        /// Which.
        env: EnvName,
    },
    /// Packages cannot be resolved.
    #[error("packages cannot be resolved: {text}")]
    Resolve {
        /// Why.
        text: String,
        /// What helps.
        hint: String,
        /// Whether the mirror is at fault.
        mirror: bool,
    },
    /// An OCI image cannot be fetched.
    #[error("{text}")]
    Base {
        /// Why.
        text: String,
        /// What helps.
        hint: String,
    },
    /// A bake failed.
    #[error("{0}")]
    Bake(WorkerError),
    /// The list of trusted keys.
    #[error("the trusted keys cannot be read")]
    Trust(#[from] TrustError),
    /// A bill of materials.
    #[error("the bill of materials cannot be given")]
    Sbom(#[from] SbomError),
    /// An image that nobody trusted vouches for.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// An image from another server.
    #[error(transparent)]
    Replicate(#[from] ReplicateError),
    /// There is no kernel for virtual machines.
    #[error(transparent)]
    Kernel(#[from] Box<KernelError>),
    /// The content store failed.
    #[error("the content store failed")]
    Objects(#[from] ObjectError),
    /// The state folder failed.
    #[error("cannot write `{}`", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl WorkshopError {
    /// What the user can do about it, unless the text says it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoSpec { .. } => Some("`kiln init` writes one; commit it".into()),
            Self::StaleLock { .. } => Some("run `kiln lock` and commit kiln.lock".into()),
            Self::Lock { .. } => Some("run `kiln lock --update` and commit kiln.lock".into()),
            Self::NoServices { .. } => Some("add a `[services.NAME]` table".into()),
            Self::Resolve { hint, .. } | Self::Base { hint, .. } => Some(hint.clone()),
            Self::Bake(error) => error.hint.clone(),
            Self::Policy(error) => Some(error.hint().to_owned()),
            Self::Kernel(error) => Some(error.hint().to_owned()),
            _ => None,
        }
    }

    /// Whether a full disk is at fault.
    pub fn is_disk_full(&self) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            let io = error.downcast_ref::<std::io::Error>();
            if io.is_some_and(|e| e.kind() == std::io::ErrorKind::StorageFull) {
                return true;
            }
            cause = error.source();
        }
        false
    }
}
