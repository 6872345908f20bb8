//! Where commits become releases and images: keeps sources, reads kiln.toml and kiln.lock of the commit, resolves packages,
//! has workers bake. Everything here blocks; the async side runs it on threads of their own.

pub mod rebuild;

use crate::execute::{AdmitError, Bakery, BakeryError};
use crate::handle::Progress;
use crate::keys::Keys;
use async_trait::async_trait;
use kiln_image::attest::{self, PolicyError, TrustError, Vouched};
use kiln_image::bake::{self, BakeJob};
use kiln_image::builder;
use kiln_image::debian::{self, Mirror};
use kiln_image::export::ExportError;
use kiln_image::export::blob::Compression;
use kiln_image::export::boot::Guest;
use kiln_image::export::disk::{self, Machine};
use kiln_image::export::oci::{self, Labels, OciImage, RunAs};
use kiln_image::import::{self, ImportError, Imported};
use kiln_image::lookup;
use kiln_image::objects::write_durable;
use kiln_image::oci::push::{self, PushError, Pushed};
use kiln_image::oci::{Fetcher, Registry};
use kiln_image::replicate::{self, ReplicateError};
pub use kiln_image::sbom::Format;
use kiln_image::sbom::{self, SbomError};
use kiln_image::worker::{self, WorkerError, chain};
use kiln_image::{ObjectError, Objects, SourceError, Sources, verify};
use kiln_logs::LogFolder;
use kiln_model::{
    CommitId, Digest, EnvName, EnvRef, ImageManifest, ImageName, InstanceId, LayerRef, ProjectName, Release,
    ReleaseSpec, limits,
};
use kiln_spec::lock::{LOCK_VERSION, LockedBase};
use kiln_spec::{Base, ImageRecipe, Lock, Project, Recipes, SpecErrors};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tokio::sync::{Semaphore, broadcast};

/// Bakes at the same time; each uses about one core.
const BAKES_MAX: usize = 2;
/// Commits that an uploading client is told of.
const KNOWN_MAX: usize = 8;
/// Commits that are remembered as they were read.
const DRAFTS_MAX: usize = 8;
const SPEC_FILE: &str = "kiln.toml";
const LOCK_FILE: &str = "kiln.lock";

/// How the workshop works.
#[derive(Debug, Clone)]
pub struct WorkshopConfig {
    /// The state folder.
    pub state: PathBuf,
    /// The kiln program, started as `PROGRAM internal bake|rootfs`.
    pub program: PathBuf,
    /// Where packages come from, as `--mirror` says; none takes the host's.
    pub mirror: Option<String>,
    /// The file with the credentials of registries.
    pub registry_auth: Option<PathBuf>,
    /// The keys that its package lists have to be signed with; none takes Debian's.
    pub keyring: Option<PathBuf>,
}

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

/// A commit, read.
#[derive(Debug)]
pub struct Draft {
    /// Its kiln.toml.
    pub project: Project,
    /// What its images are made of; none if no image has packages.
    pub lock: Option<Lock>,
    /// Whether the commit carried the lock, or needs none.
    pub pinned: bool,
    commit: CommitId,
    commit_time: i64,
    subject: String,
}

impl Draft {
    /// The release that it would be in an environment.
    pub fn release(&self, env: &EnvName) -> Result<ReleaseSpec, WorkshopError> {
        let spec = self.project.environment(env);
        if spec.services.is_empty() {
            return Err(WorkshopError::NoServices { env: env.clone() });
        }
        let mut images: Vec<ImageName> = spec.services.values().map(|s| s.image.clone()).collect();
        images.sort();
        images.dedup();
        Ok(ReleaseSpec {
            commit: self.commit.clone(),
            commit_time: self.commit_time,
            subject: self.subject.clone(),
            pinned: self.pinned,
            services: spec.services.clone(),
            routes: spec.routes.clone(),
            images,
        })
    }

    /// What users should know of the images before they rely on them, one line each.
    pub fn warnings(&self) -> Vec<String> {
        let containerfile = |image: &ImageRecipe| match &image.base {
            Base::Containerfile { path } => Some(format!(
                "image `{}` is not reproducible: `{path}` is run by buildah, which does not pin what it takes",
                image.name
            )),
            _ => None,
        };
        self.project.images.values().filter_map(containerfile).collect()
    }

    /// The text of a lock that the server had to resolve.
    pub fn resolved_lock(&self) -> Option<String> {
        self.lock.as_ref().filter(|_| !self.pinned).map(Lock::to_text)
    }
}

/// Held while something is made that would otherwise be made twice.
type Turn = Arc<Mutex<()>>;
/// What an image is baked from.
struct Origin {
    project: ProjectName,
    commit: CommitId,
    name: ImageName,
}

/// The workshop of one state folder.
#[derive(Debug)]
pub struct Workshop {
    config: WorkshopConfig,
    objects: Objects,
    keys: Arc<Keys>,
    mending: Mutex<()>,
    sources: Sources,
    logs: LogFolder,
    bakes: Semaphore,
    resolving: Mutex<()>,
    /// Held for reading by bakes, for writing while objects are removed.
    pub(crate) collecting: RwLock<()>,
    /// Images that are being baked.
    turns: Mutex<BTreeMap<(CommitId, ImageName), Turn>>,
    /// The last commits that were read, the newest last. A commit never changes.
    drafts: Mutex<VecDeque<Arc<Draft>>>,
    progress: broadcast::Sender<Progress>,
}

impl Workshop {
    /// Opens it and removes what interrupted bakes left.
    pub fn open(
        config: WorkshopConfig,
        keys: Arc<Keys>,
        progress: broadcast::Sender<Progress>,
    ) -> Result<Self, ObjectError> {
        let objects = Objects::open(&config.state.join("objects"))?;
        objects.sweep()?;
        // Folders of builds that were interrupted; there need not be any.
        let _ = std::fs::remove_dir_all(config.state.join(kiln_image::containerfile::FOLDER));
        Ok(Self {
            objects,
            keys,
            mending: Mutex::new(()),
            sources: Sources::new(&config.state.join("repos")),
            logs: LogFolder::new(&config.state),
            bakes: Semaphore::new(BAKES_MAX),
            resolving: Mutex::new(()),
            collecting: RwLock::new(()),
            turns: Mutex::default(),
            drafts: Mutex::new(VecDeque::new()),
            progress,
            config,
        })
    }

    /// What instances printed.
    pub fn logs(&self) -> &LogFolder {
        &self.logs
    }

    /// Whether a commit is there with all its files.
    pub fn has_source(&self, project: &ProjectName, commit: &CommitId) -> bool {
        self.sources.has(project, commit)
    }

    /// Some of the newest commits of a project that are there with all their files.
    pub fn known_sources(&self, project: &ProjectName) -> Vec<CommitId> {
        self.sources.newest(project, KNOWN_MAX)
    }

    /// Keeps an uploaded pack; durable when this returns. Blocks.
    pub fn accept_source(
        &self,
        project: &ProjectName,
        commit: &CommitId,
        pack: &mut dyn Read,
    ) -> Result<(), WorkshopError> {
        let refused = |source| WorkshopError::Source { commit: commit.clone(), source };
        self.sources.accept(project, commit, pack).map_err(refused)
    }

    /// Reads a commit: its kiln.toml, and its kiln.lock or one that is resolved now, once per project and recipe. Blocks.
    pub fn draft(
        &self,
        project: &ProjectName,
        commit: &CommitId,
        progress: &mut dyn FnMut(String),
    ) -> Result<Arc<Draft>, WorkshopError> {
        if !self.sources.has(project, commit) {
            return Err(WorkshopError::NoSource { project: project.clone(), commit: commit.clone() });
        }
        let is_it = |draft: &&Arc<Draft>| draft.project.name == *project && draft.commit == *commit;
        if let Some(draft) = self.drafts().iter().find(is_it) {
            return Ok(draft.clone());
        }
        let draft = Arc::new(self.read_draft(project, commit, progress)?);
        // A lock that was resolved here is looked up each time: it is a file of the state folder.
        if draft.pinned {
            let mut drafts = self.drafts();
            drafts.push_back(draft.clone());
            if drafts.len() > DRAFTS_MAX {
                drafts.pop_front();
            }
        }
        Ok(draft)
    }

    fn drafts(&self) -> std::sync::MutexGuard<'_, VecDeque<Arc<Draft>>> {
        self.drafts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_draft(
        &self,
        project: &ProjectName,
        commit: &CommitId,
        progress: &mut dyn FnMut(String),
    ) -> Result<Draft, WorkshopError> {
        let files = [(SPEC_FILE, limits::SPEC_BYTES_MAX as u64), (LOCK_FILE, limits::LOCK_BYTES_MAX as u64)];
        let opened = self.sources.open(project, commit, &files);
        let (info, mut files) =
            opened.map_err(|source| WorkshopError::Source { commit: commit.clone(), source })?;
        let (lock, spec) = (files.pop().flatten(), files.pop().flatten());
        let text = spec.ok_or_else(|| WorkshopError::NoSpec { commit: commit.clone() })?;
        let spec = Project::parse(&String::from_utf8_lossy(&text), SPEC_FILE).map_err(WorkshopError::Spec)?;
        if spec.name != *project {
            return Err(WorkshopError::OtherProject { expected: project.clone(), found: spec.name });
        }
        let (lock, pinned) = match (spec.recipes(), lock) {
            (recipes, _) if recipes.is_empty() => (None, true),
            (recipes, Some(text)) => (Some(committed(&recipes, &text)?), true),
            (recipes, None) => (Some(self.unpinned(project, &spec, &recipes, progress)?), false),
        };
        let commit = commit.clone();
        Ok(Draft { project: spec, lock, pinned, commit, commit_time: info.time, subject: info.subject })
    }

    /// The lock of a commit without one: the first that was resolved for that project and these recipes, for ever.
    fn unpinned(
        &self,
        project: &ProjectName,
        spec: &Project,
        recipes: &Recipes,
        progress: &mut dyn FnMut(String),
    ) -> Result<Lock, WorkshopError> {
        let _one_at_a_time = self.resolving.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.unpinned_path(project, recipes);
        let kept = std::fs::read_to_string(&path).ok().and_then(|text| Lock::parse(&text).ok());
        if let Some(lock) = kept.filter(|lock| spec.fits(lock)) {
            return Ok(lock);
        }
        progress("resolving packages: the commit has no kiln.lock".into());
        let lock = self.resolve(recipes, None, false, progress)?;
        let written = write_durable(&path, lock.to_text().as_bytes());
        written.map_err(|source| WorkshopError::State { path, source })?;
        Ok(lock)
    }

    /// Resolves recipes, and brings OCI images into the content store. Blocks on mirror and registries.
    pub fn resolve(
        &self,
        recipes: &Recipes,
        previous: Option<&Lock>,
        update: bool,
        progress: &mut dyn FnMut(String),
    ) -> Result<Lock, WorkshopError> {
        let bases = self.bases(recipes, previous, update, progress)?;
        // The resolver knows packages only.
        let previous = previous.map(|lock| Lock { bases: BTreeMap::new(), ..lock.clone() });
        let mut lock = match recipes.debian.is_empty() {
            true => Lock { version: LOCK_VERSION, ..Lock::default() },
            false => self.resolve_packages(recipes, previous.as_ref(), update)?,
        };
        lock.bases = bases;
        Ok(lock)
    }

    /// The OCI images behind the bases, all of them in the content store when this returns.
    fn bases(
        &self,
        recipes: &Recipes,
        previous: Option<&Lock>,
        update: bool,
        progress: &mut dyn FnMut(String),
    ) -> Result<BTreeMap<String, LockedBase>, WorkshopError> {
        let fetcher = Fetcher { objects: &self.objects, auth: self.config.registry_auth.as_deref() };
        let one = |reference: &String| {
            let pinned = previous.filter(|_| !update).and_then(|lock| lock.bases.get(reference));
            let manifest = fetcher.fetch(reference, pinned.map(|base| base.manifest), progress);
            let manifest = manifest.map_err(|e| WorkshopError::Base { text: chain(&e), hint: e.hint() })?;
            Ok((reference.clone(), LockedBase { manifest }))
        };
        recipes.oci.iter().map(one).collect()
    }

    fn resolve_packages(
        &self,
        recipes: &Recipes,
        previous: Option<&Lock>,
        update: bool,
    ) -> Result<Lock, WorkshopError> {
        let suite = recipes.debian.values().next().map_or("bookworm", |recipe| recipe.suite.as_str());
        let (mirror, keyring) = (self.config.mirror.as_deref(), self.config.keyring.as_deref());
        let mirror = Mirror::open(mirror, suite, keyring);
        let mirror = mirror.map_err(|e| WorkshopError::Resolve {
            text: chain(&e),
            hint: e.hint().to_owned(),
            mirror: true,
        })?;
        debian::resolve_lock(&mirror, &recipes.debian, previous, update).map_err(|e| WorkshopError::Resolve {
            text: chain(&e),
            hint: e.hint(),
            mirror: matches!(e, debian::LockError::Mirror { .. }),
        })
    }

    /// Bakes one image of a commit in a worker, or finds it made; those that it stands on come first. Blocks.
    pub fn bake(
        &self,
        draft: &Draft,
        image: &ImageName,
        progress: &mut dyn FnMut(String),
    ) -> Result<Digest, WorkshopError> {
        // No image stands on itself: `Project::parse` refuses that, so this ends.
        let mut images = BTreeMap::new();
        for below in draft.project.images.get(image).into_iter().flat_map(ImageRecipe::images_below) {
            let mut progress = |text: String| progress(format!("{below}: {text}"));
            images.insert(below.clone(), self.bake(draft, below, &mut progress)?);
        }
        let job = self.job(draft, image, &self.config.state, images)?;
        let _nothing_is_removed = self.collecting.read().unwrap_or_else(PoisonError::into_inner);
        // Two releases may stand on one image: the second one finds it made.
        let turn = self.turn(&draft.commit, image);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = self.found(&job) {
            return Ok(found);
        }
        let baked = worker::run(&self.config.program, &job, progress).map_err(WorkshopError::Bake)?;
        let baked = match baked.statement {
            // Somebody vouches for it; if that is nobody who is trusted, this server now does: it has just baked the same.
            None if !self.is_vouched(baked.image) => {
                let job = BakeJob { describe: true, ..job.clone() };
                worker::run(&self.config.program, &job, progress).map_err(WorkshopError::Bake)?
            }
            _ => baked,
        };
        if let Some(statement) = baked.statement {
            // A worker decodes what others wrote: it cannot have its word signed about another image or commit.
            let asked = statement.external();
            if statement.image() != Some(baked.image)
                || asked.commit != job.commit
                || asked.project != job.project
            {
                let text = format!("the worker that bakes image `{image}` described another one");
                return Err(WorkshopError::Bake(WorkerError { text, hint: None, may_pass: false }));
            }
            let path = attest::statement_path(&self.config.state, baked.image);
            attest::seal(&self.config.state, baked.image, *statement, &self.keys.signing())
                .map_err(|source| WorkshopError::State { path, source })?;
        }
        self.used_now(baked.image)?;
        Ok(baked.image)
    }

    /// One image of a commit, if it was baked here before and somebody vouches for it. Reads a few small files.
    pub fn baked(&self, draft: &Draft, image: &ImageName) -> Option<Digest> {
        let mut images = BTreeMap::new();
        for below in draft.project.images.get(image)?.images_below() {
            images.insert(below.clone(), self.baked(draft, below)?);
        }
        let job = self.job(draft, image, &self.config.state, images).ok()?;
        let _nothing_is_removed = self.collecting.read().unwrap_or_else(PoisonError::into_inner);
        self.found(&job)
    }

    /// The caller keeps objects from being removed.
    fn found(&self, job: &BakeJob) -> Option<Digest> {
        let found = lookup::find(job, &self.objects)?.image;
        (self.is_vouched(found) && self.used_now(found).is_ok()).then_some(found)
    }

    /// Until a release refers to an image, the time of its record keeps it from being collected.
    fn used_now(&self, image: Digest) -> Result<(), WorkshopError> {
        let path = self.record_path(image);
        let touched = std::fs::File::options().append(true).open(&path);
        let touched = touched.and_then(|file| file.set_modified(std::time::SystemTime::now()));
        touched.map_err(|source| WorkshopError::State { path, source })
    }

    /// What a worker needs to know to bake one image of a commit in a state folder, over `images` of the same kiln.toml.
    fn job(
        &self,
        draft: &Draft,
        image: &ImageName,
        state: &Path,
        images: BTreeMap<ImageName, Digest>,
    ) -> Result<BakeJob, WorkshopError> {
        let Some(recipe) = draft.project.images.get(image) else {
            let text = format!("`kiln.toml` has no image `{image}`");
            return Err(WorkshopError::Bake(WorkerError { text, hint: None, may_pass: false }));
        };
        Ok(BakeJob {
            state: state.to_owned(),
            project: draft.project.name.clone(),
            commit: draft.commit.clone(),
            recipe: recipe.clone(),
            lock: draft.lock.clone(),
            mount_points: draft.project.writable_of(image),
            mirror: self.config.mirror.clone(),
            program: self.config.program.clone(),
            images,
            registry_auth: self.config.registry_auth.clone(),
            is_builder: false,
            describe: false,
        })
    }

    /// Prepares an image for other tools. Blocks.
    ///
    /// # Errors
    /// [`ExportError`] with the layer at fault.
    pub fn export(
        &self,
        image: Digest,
        compression: Compression,
        run_as: &RunAs,
        labels: &Labels,
        progress: &mut dyn FnMut(String),
    ) -> Result<OciImage, ExportError> {
        let _nothing_is_removed = self.collecting.read().unwrap_or_else(PoisonError::into_inner);
        oci::prepare(&self.config.state, &self.objects, image, compression, run_as, labels, progress)
    }

    /// Prepares an image as a machine of its own, with the kernel of `kernel_image`. Blocks.
    ///
    /// # Errors
    /// [`ExportError`] with the layer, or what is missing in the kernel's image.
    pub fn machine(
        &self,
        image: Digest,
        kernel_image: Digest,
        uefi: bool,
        guest: &Guest,
        progress: &mut dyn FnMut(String),
    ) -> Result<Machine, ExportError> {
        let _nothing_is_removed = self.collecting.read().unwrap_or_else(PoisonError::into_inner);
        disk::prepare(&self.config.state, &self.objects, image, kernel_image, uefi, guest, progress)
    }

    /// Imports the image in an archive, which is called `called`. Blocks.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn import(
        &self,
        archive: &mut dyn Read,
        called: &str,
        progress: &mut dyn FnMut(String),
    ) -> Result<Imported, ImportError> {
        let _nothing_is_removed = self.collecting.read().unwrap_or_else(PoisonError::into_inner);
        let mut kept = self.objects.create()?;
        std::io::copy(archive, kept.file()).map_err(ImportError::Upload)?;
        import::import(&self.config.state, &self.objects, kept.path(), called, progress)
    }

    /// The layers of an image that are not here, each with those that may be like it. Blocks.
    pub fn missing(&self, manifest: &ImageManifest) -> Vec<(LayerRef, Vec<Digest>)> {
        let mut images = self.images();
        let made =
            |image: &Digest| std::fs::metadata(self.record_path(*image)).and_then(|m| m.modified()).ok();
        images.sort_by_key(|image| std::cmp::Reverse(made(image)));
        let known: Vec<_> = images.into_iter().filter_map(|image| self.manifest(image).ok()).collect();
        replicate::missing(&self.objects, manifest, &known)
    }

    /// Whether an image that is about to come may run here: somebody trusted signed the statement that comes with it.
    ///
    /// # Errors
    /// [`WorkshopError::Policy`] says what is wrong with it.
    pub fn may_come(
        &self,
        image: Digest,
        statement: Option<&serde_json::Value>,
    ) -> Result<Vouched, WorkshopError> {
        let bytes = statement.map(|statement| serde_json::to_vec_pretty(statement).unwrap_or_default());
        Ok(self.keys.trust()?.check(image, bytes.as_deref(), jiff::Timestamp::now())?)
    }

    /// Registers an image whose layers were all received, with what vouches for it. Blocks.
    ///
    /// # Errors
    /// [`WorkshopError::Policy`] if nobody trusted vouches for it, [`WorkshopError::Replicate`] if a layer is missing.
    pub fn register(
        &self,
        manifest: &ImageManifest,
        statement: &serde_json::Value,
        sboms: &[(Format, String)],
        note: &serde_json::Value,
    ) -> Result<Digest, WorkshopError> {
        let _nothing_is_removed = self.collecting.read().unwrap_or_else(PoisonError::into_inner);
        let state = &self.config.state;
        self.may_come(manifest.digest(), Some(statement))?;
        let image = replicate::register(&self.objects, manifest)?;
        let write = |path: PathBuf, bytes: &[u8]| {
            let written = write_durable(&path, bytes);
            written.map_err(|source| WorkshopError::State { path, source })
        };
        for (format, text) in sboms {
            write(attest::sbom_path(state, image, *format), text.as_bytes())?;
        }
        write(attest::note_path(state, image), &serde_json::to_vec_pretty(note).unwrap_or_default())?;
        // Last: what is vouched for is whole.
        let bytes = serde_json::to_vec_pretty(statement).unwrap_or_default();
        write(attest::statement_path(state, image), &bytes)?;
        Ok(image)
    }

    /// Pushes a prepared image to a registry, with the credentials of the server. Blocks.
    ///
    /// # Errors
    /// [`PushError`].
    pub fn push(
        &self,
        image: &OciImage,
        to: &str,
        progress: &mut dyn FnMut(String),
    ) -> Result<Pushed, PushError> {
        let _nothing_is_removed = self.collecting.read().unwrap_or_else(PoisonError::into_inner);
        let registry = Registry::new(self.config.registry_auth.as_deref())
            .map_err(|source| PushError::Registry { host: to.to_owned(), source })?;
        push::push(&registry, &self.objects, image, to, progress)
    }

    /// The content store.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// The folder of what was made before.
    pub(crate) fn cache_path(&self) -> PathBuf {
        self.config.state.join("cache")
    }

    /// Where the record of an image lies: the signed statement, or for one that came without any the note beside it.
    pub(crate) fn record_path(&self, image: Digest) -> PathBuf {
        let (statement, note) =
            (attest::statement_path(&self.config.state, image), attest::note_path(&self.config.state, image));
        if !statement.exists() && note.exists() { note } else { statement }
    }

    /// Everything that stands beside an image.
    pub(crate) fn beside(&self, image: Digest) -> Vec<PathBuf> {
        let state = &self.config.state;
        let sboms = Format::ALL.into_iter().map(|format| attest::sbom_path(state, image, format));
        let records = [attest::statement_path(state, image), attest::note_path(state, image)];
        sboms.chain(records).chain([builder::log_path(state, image)]).collect()
    }

    /// The lock that a commit is baked with; none if it has none, or it cannot be read.
    pub(crate) fn lock_of(&self, project: &ProjectName, commit: &CommitId) -> Option<Lock> {
        let read = |file, max| self.sources.read(project, commit, file, max as u64).ok().flatten();
        if let Some(text) = read(LOCK_FILE, limits::LOCK_BYTES_MAX) {
            return Lock::parse(&String::from_utf8_lossy(&text)).ok();
        }
        let spec =
            Project::parse(&String::from_utf8_lossy(&read(SPEC_FILE, limits::SPEC_BYTES_MAX)?), SPEC_FILE);
        let path = self.unpinned_path(project, &spec.ok()?.recipes());
        std::fs::read_to_string(path).ok().and_then(|text| Lock::parse(&text).ok())
    }

    /// Where the lock of commits without one is kept.
    fn unpinned_path(&self, project: &ProjectName, recipes: &Recipes) -> PathBuf {
        let debian = recipes.debian.iter().map(|(name, recipe)| format!("{name} {}\n", recipe.digest()));
        let oci = recipes.oci.iter().map(|reference| format!("oci {reference}\n"));
        let key: String = debian.chain(oci).collect();
        self.config.state.join("locks").join(format!("{project}-{}.lock", Digest::of(key.as_bytes()).short()))
    }

    /// What is held while an image of a commit is baked.
    fn turn(&self, commit: &CommitId, image: &ImageName) -> Turn {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry((commit.clone(), image.clone())).or_default().clone()
    }

    /// The keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Whether an image may run: who vouches for it, and with what. To be asked for what was fetched or imported, and
    /// asked before every start.
    pub fn vouched(&self, image: Digest) -> Result<Vouched, WorkshopError> {
        let trust = self.keys.trust()?;
        let path = attest::statement_path(&self.config.state, image);
        let envelope = attest::read(&self.config.state, image)
            .map_err(|source| WorkshopError::State { path, source })?;
        Ok(trust.check(image, envelope.as_deref(), jiff::Timestamp::now())?)
    }

    /// Whether somebody trusted vouches for an image, or this server did, and its bills of materials are those that were
    /// signed. Not known is as good.
    fn is_vouched(&self, image: Digest) -> bool {
        let own = || {
            let envelope = attest::read(&self.config.state, image).ok().flatten();
            let own = attest::Trust::only(self.keys.signing().public());
            own.check(image, envelope.as_deref(), jiff::Timestamp::now())
        };
        let vouched = match self.vouched(image) {
            Err(WorkshopError::Policy(_)) => own().ok(),
            Err(_) => return true,
            Ok(vouched) => Some(vouched),
        };
        vouched.is_some_and(|vouched| {
            let read = |format| sbom::read(&self.config.state, image, format, &vouched.statement);
            Format::ALL.into_iter().all(|format| read(format).is_ok())
        })
    }

    /// The bill of materials that was made with an image.
    pub fn sbom(&self, image: Digest, format: Format) -> Result<Vec<u8>, WorkshopError> {
        let vouched = self.vouched(image)?;
        Ok(sbom::read(&self.config.state, image, format, &vouched.statement)?)
    }

    /// Reads everything of an image. Blocks for as long as that takes.
    pub fn verify(
        &self,
        image: Digest,
        progress: &mut dyn FnMut(&str),
    ) -> Result<verify::Report, WorkshopError> {
        let trust = self.keys.trust()?;
        let now = jiff::Timestamp::now();
        Ok(verify::image(&self.config.state, &self.objects, &trust, image, now, progress))
    }

    /// Makes a damaged image of a commit whole again: what is damaged is removed, and the commit is baked again. Answers with
    /// what was done. Blocks.
    fn mend(
        &self,
        origin: &Origin,
        image: Digest,
        progress: &mut dyn FnMut(String),
    ) -> Result<String, WorkshopError> {
        // Many instances may find the same damage.
        let _one_at_a_time = self.mending.lock().unwrap_or_else(PoisonError::into_inner);
        let report = verify::content(&self.objects, image, &mut |_| {});
        if report.is_good() {
            return Ok("it is whole again".to_owned());
        }
        let Origin { project, commit, name } = origin;
        // Before anything is removed: without its source it stays as it is.
        let draft = self.draft(project, commit, progress)?;
        for object in report.broken.iter().filter_map(|broken| broken.object) {
            self.objects.remove(object)?;
        }
        let baked = self.bake(&draft, name, progress)?;
        let left = verify::content(&self.objects, image, &mut |_| {});
        if let Some(broken) = left.broken.first() {
            let text = format!(
                "commit {commit} was baked again and gave image {baked}; {} of image {image}: {}",
                broken.part, broken.why
            );
            return Err(WorkshopError::Bake(WorkerError { text, hint: None, may_pass: false }));
        }
        let parts: Vec<&str> = report.broken.iter().map(|broken| broken.part.as_str()).collect();
        let (commit, parts) = (commit.short(), parts.join(", "));
        Ok(format!("image `{name}` {image} was baked again from commit {commit} ({parts})"))
    }

    /// The same for whoever asks, of an image that somebody trusted vouches for; damaged packages are removed, to be fetched
    /// again when they are needed. Blocks.
    pub fn mend_image(
        &self,
        image: Digest,
        progress: &mut dyn FnMut(String),
    ) -> Result<String, WorkshopError> {
        let statement = self.vouched(image)?.statement;
        for package in statement.packages().filter_map(|package| package.sha256()) {
            self.objects.is_intact(package);
        }
        let asked = statement.external();
        let origin = Origin {
            project: asked.project.clone(),
            commit: asked.commit.clone(),
            name: asked.image.clone(),
        };
        let done = self.mend(&origin, image, progress)?;
        if self.is_vouched(image) {
            return Ok(done);
        }
        // Nothing of the image is damaged, but a bill of materials.
        let draft = self.draft(&origin.project, &origin.commit, progress)?;
        self.bake(&draft, &origin.name, progress)?;
        Ok(format!("{done}, and what stands beside it was written again"))
    }

    /// The manifest of a baked image.
    pub fn manifest(&self, image: Digest) -> Result<ImageManifest, ObjectError> {
        bake::manifest(&self.objects, image)
    }

    /// Who baked an image from what and when; none if that is not known.
    pub fn provenance(&self, image: Digest) -> Option<serde_json::Value> {
        self.described(image).or_else(|| self.noted(image))
    }

    /// What is known of an image that came from elsewhere without a statement.
    fn noted(&self, image: Digest) -> Option<serde_json::Value> {
        let note = std::fs::read(attest::note_path(&self.config.state, image)).ok()?;
        let mut note: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&note).ok()?;
        note.insert("signed by".into(), "nobody".into());
        Some(note.into())
    }

    /// The signed statement beside an image, as it lies there.
    pub fn statement(&self, image: Digest) -> Option<serde_json::Value> {
        serde_json::from_slice(&attest::read(&self.config.state, image).ok()??).ok()
    }

    fn described(&self, image: Digest) -> Option<serde_json::Value> {
        let bytes = attest::read(&self.config.state, image).ok()??;
        let envelope: attest::Envelope = serde_json::from_slice(&bytes).ok()?;
        let statement: attest::Statement = serde_json::from_slice(&envelope.payload()?).ok()?;
        let mut summary = statement.summary();
        let vouched = match self.vouched(image) {
            Ok(vouched) => format!("key {}", vouched.key.short()),
            Err(error) => format!("nobody who is trusted: {}", chain(&error)),
        };
        summary.insert("signed by", vouched.into());
        serde_json::to_value(summary).ok()
    }

    /// What the build of an image printed; none if that is not known.
    pub fn build_log(&self, image: Digest) -> Option<String> {
        std::fs::read_to_string(builder::log_path(&self.config.state, image)).ok()
    }

    /// All images that were ever baked here.
    pub fn images(&self) -> Vec<Digest> {
        let entries = std::fs::read_dir(self.config.state.join("images")).into_iter().flatten().flatten();
        let digest = |name: String| {
            let name = name.strip_suffix(attest::NOTE).or_else(|| name.strip_suffix(".json"))?;
            name.parse().ok()
        };
        let all = entries.filter_map(|entry| digest(entry.file_name().to_string_lossy().into_owned()));
        all.collect::<BTreeSet<Digest>>().into_iter().collect()
    }

    fn tell(&self, env: &EnvRef, text: String) {
        // Nobody may be listening.
        let _ = self.progress.send(Progress { env: Some(env.clone()), rollout: None, text });
    }
}

fn committed(recipes: &Recipes, text: &[u8]) -> Result<Lock, WorkshopError> {
    let lock =
        Lock::parse(&String::from_utf8_lossy(text)).map_err(|e| WorkshopError::Lock { text: chain(&e) })?;
    if lock.unfit(recipes).is_empty() {
        return Ok(lock);
    }
    Err(WorkshopError::StaleLock { images: lock.unfit(recipes).join(", ") })
}

fn bakery_error(error: &WorkshopError) -> BakeryError {
    let permanent = match error {
        WorkshopError::Bake(error) => !error.may_pass,
        WorkshopError::Resolve { mirror, .. } => !mirror,
        WorkshopError::State { .. } | WorkshopError::Objects(_) => false,
        _ => true,
    };
    let hint = error.hint().map(|hint| format!("; hint: {hint}")).unwrap_or_default();
    BakeryError { permanent, text: format!("{}{hint}", chain(error)) }
}

/// The workshop as the control loop sees it.
#[derive(Debug, Clone)]
pub struct SharedWorkshop(pub Arc<Workshop>);

impl SharedWorkshop {
    /// Does `work` with the commit of a release, on a thread of its own.
    async fn with_draft<T: Send + 'static>(
        &self,
        release: &Release,
        image: &ImageName,
        work: impl FnOnce(&Workshop, &Draft, &mut dyn FnMut(String)) -> Result<T, WorkshopError> + Send + 'static,
    ) -> Result<T, BakeryError> {
        let workshop = self.0.clone();
        let (env, commit, image) = (release.env.clone(), release.spec.commit.clone(), image.clone());
        let work = move || {
            let mut progress = |text: String| workshop.tell(&env, format!("image {image}: {text}"));
            let draft = workshop.draft(&env.project, &commit, &mut progress)?;
            work(&workshop, &draft, &mut progress)
        };
        let done = tokio::task::spawn_blocking(work).await;
        let done = done.map_err(|e| BakeryError { permanent: false, text: e.to_string() })?;
        done.map_err(|error: WorkshopError| bakery_error(&error))
    }
}

#[async_trait]
impl Bakery for SharedWorkshop {
    async fn bake(&self, release: &Release, image: &ImageName) -> Result<Digest, BakeryError> {
        let name = image.clone();
        let found = self.with_draft(release, image, move |w, draft, _| Ok(w.baked(draft, &name))).await?;
        if let Some(found) = found {
            // It waits for nobody's bake.
            return Ok(found);
        }
        // The semaphore is never closed.
        let _slot = self.0.bakes.acquire().await;
        let name = image.clone();
        self.with_draft(release, image, move |w, draft, progress| w.bake(draft, &name, progress)).await
    }

    async fn admit(&self, image: Digest) -> Result<ImageManifest, AdmitError> {
        self.0.vouched(image).map_err(|error| match &error {
            WorkshopError::State { .. } => AdmitError::Unreadable(chain(&error)),
            _ => AdmitError::Refused(bakery_error(&error).text),
        })?;
        self.0.manifest(image).map_err(|error| match error {
            ObjectError::Missing(_) | ObjectError::Mismatch { .. } => {
                AdmitError::Damaged(format!("manifest of image {image}: {}", chain(&error)))
            }
            _ => AdmitError::Unreadable(chain(&error)),
        })
    }

    async fn mend(&self, release: &Release, image: Digest) -> Result<String, BakeryError> {
        let (workshop, release) = (self.0.clone(), release.clone());
        // The semaphore is never closed.
        let _slot = self.0.bakes.acquire().await;
        let work = move || {
            let images = release.images.iter().flatten();
            let name = images.filter(|(_, digest)| **digest == image).map(|(name, _)| name.clone()).next();
            let origin = Origin {
                project: release.env.project.clone(),
                commit: release.spec.commit.clone(),
                name: name.ok_or(ObjectError::Missing(image))?,
            };
            let mut progress = |text: String| workshop.tell(&release.env, format!("mending image: {text}"));
            workshop.mend(&origin, image, &mut progress)
        };
        let done = tokio::task::spawn_blocking(work).await;
        let done = done.map_err(|e| BakeryError { permanent: false, text: e.to_string() })?;
        done.map_err(|error: WorkshopError| bakery_error(&error))
    }

    fn tail(&self, instance: &InstanceId, lines: usize) -> Vec<String> {
        self.0.logs.tail_of(instance, lines)
    }
}
