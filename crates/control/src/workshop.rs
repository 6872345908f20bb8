//! Where commits become releases and images: keeps sources, reads kiln.toml and kiln.lock of the commit, resolves packages,
//! has workers bake. Everything here blocks; the async side runs it on threads of their own.

use crate::execute::{Bakery, BakeryError};
use crate::handle::Progress;
use async_trait::async_trait;
use kiln_image::bake::{self, BakeJob};
use kiln_image::debian::{self, Mirror};
use kiln_image::export::ExportError;
use kiln_image::export::blob::Compression;
use kiln_image::export::boot::Guest;
use kiln_image::export::disk::{self, Machine};
use kiln_image::export::oci::{self, Labels, OciImage, RunAs};
use kiln_image::import::{self, ImportError, Imported};
use kiln_image::objects::write_durable;
use kiln_image::oci::push::{self, PushError, Pushed};
use kiln_image::oci::{Fetcher, Registry};
use kiln_image::replicate::{self, ReplicateError};
use kiln_image::worker::{self, WorkerError, chain};
use kiln_image::{ObjectError, Objects, SourceError, Sources};
use kiln_logs::LogFolder;
use kiln_model::{
    CommitId, Digest, EnvName, EnvRef, ImageManifest, ImageName, InstanceId, LayerRef, ProjectName, Release,
    ReleaseSpec, limits,
};
use kiln_spec::lock::{LOCK_VERSION, LockedBase};
use kiln_spec::{Base, ImageRecipe, Lock, Project, Recipes, SpecErrors};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tokio::sync::{Semaphore, broadcast};

/// Bakes at the same time; each uses about one core.
const BAKES_MAX: usize = 2;
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
    #[error("`kiln.lock` of the commit is not valid: {text}")]
    Lock {
        /// What is wrong with it.
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

/// The workshop of one state folder.
#[derive(Debug)]
pub struct Workshop {
    config: WorkshopConfig,
    objects: Objects,
    sources: Sources,
    logs: LogFolder,
    bakes: Semaphore,
    resolving: Mutex<()>,
    /// Held for reading by bakes, for writing while objects are removed.
    pub(crate) collecting: RwLock<()>,
    /// Images that are being baked.
    turns: Mutex<BTreeMap<(CommitId, ImageName), Turn>>,
    progress: broadcast::Sender<Progress>,
}

impl Workshop {
    /// Opens it and removes what interrupted bakes left.
    pub fn open(config: WorkshopConfig, progress: broadcast::Sender<Progress>) -> Result<Self, ObjectError> {
        let objects = Objects::open(&config.state.join("objects"))?;
        objects.sweep()?;
        // Folders of builds that were interrupted; there need not be any.
        let _ = std::fs::remove_dir_all(config.state.join(kiln_image::containerfile::FOLDER));
        Ok(Self {
            objects,
            sources: Sources::new(&config.state.join("repos")),
            logs: LogFolder::new(&config.state),
            bakes: Semaphore::new(BAKES_MAX),
            resolving: Mutex::new(()),
            collecting: RwLock::new(()),
            turns: Mutex::default(),
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
    ) -> Result<Draft, WorkshopError> {
        if !self.sources.has(project, commit) {
            return Err(WorkshopError::NoSource { project: project.clone(), commit: commit.clone() });
        }
        let unreadable = |source| WorkshopError::Source { commit: commit.clone(), source };
        let read = |file, max| self.sources.read(project, commit, file, max as u64).map_err(unreadable);
        let text = read(SPEC_FILE, limits::SPEC_BYTES_MAX)?
            .ok_or_else(|| WorkshopError::NoSpec { commit: commit.clone() })?;
        let spec = Project::parse(&String::from_utf8_lossy(&text), SPEC_FILE).map_err(WorkshopError::Spec)?;
        if spec.name != *project {
            return Err(WorkshopError::OtherProject { expected: project.clone(), found: spec.name });
        }
        let info = self.sources.info(project, commit).map_err(unreadable)?;
        let (lock, pinned) = match (spec.recipes(), read(LOCK_FILE, limits::LOCK_BYTES_MAX)?) {
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
        let mirror = match &self.config.mirror {
            Some(text) => Mirror::parse(text),
            None => Mirror::of_host(Path::new("/"), suite),
        };
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
        let Some(recipe) = draft.project.images.get(image) else {
            let text = format!("`kiln.toml` has no image `{image}`");
            return Err(WorkshopError::Bake(WorkerError { text, hint: None, may_pass: false }));
        };
        // No image stands on itself: `Project::parse` refuses that, so this ends.
        let mut images = BTreeMap::new();
        for below in recipe.images_below() {
            let mut progress = |text: String| progress(format!("{below}: {text}"));
            images.insert(below.clone(), self.bake(draft, below, &mut progress)?);
        }
        let job = BakeJob {
            state: self.config.state.clone(),
            project: draft.project.name.clone(),
            commit: draft.commit.clone(),
            recipe: recipe.clone(),
            lock: draft.lock.clone(),
            mount_points: draft.project.writable_of(image),
            mirror: self.config.mirror.clone(),
            program: self.config.program.clone(),
            images,
            registry_auth: self.config.registry_auth.clone(),
        };
        // Two releases may stand on one image: the second one finds it made.
        let turn = self.turn(&draft.commit, image);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let _nothing_is_removed = self.collecting.read().unwrap_or_else(PoisonError::into_inner);
        let baked = worker::run(&self.config.program, &job, progress).map_err(WorkshopError::Bake)?;
        // Until a release refers to it, the time of its record keeps it from being collected.
        let path = self.record_path(baked.image);
        let touched = std::fs::File::options().append(true).open(&path);
        let touched = touched.and_then(|file| file.set_modified(std::time::SystemTime::now()));
        touched.map_err(|source| WorkshopError::State { path, source })?;
        Ok(baked.image)
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

    /// Registers an image whose layers were all received. Blocks.
    ///
    /// # Errors
    /// [`ReplicateError::Missing`] if one was not; or of the state folder.
    pub fn register(
        &self,
        manifest: &ImageManifest,
        record: &serde_json::Value,
    ) -> Result<Digest, ReplicateError> {
        let _nothing_is_removed = self.collecting.read().unwrap_or_else(PoisonError::into_inner);
        replicate::register(&self.config.state, &self.objects, manifest, record)
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

    /// Where the record of an image lies.
    pub(crate) fn record_path(&self, image: Digest) -> PathBuf {
        bake::provenance_path(&self.config.state, image)
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

    /// The manifest of a baked image.
    pub fn manifest(&self, image: Digest) -> Result<ImageManifest, ObjectError> {
        bake::manifest(&self.objects, image)
    }

    /// Who baked an image from what and when; none if that is not known.
    pub fn provenance(&self, image: Digest) -> Option<serde_json::Value> {
        let bytes = std::fs::read(bake::provenance_path(&self.config.state, image)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// All images that were ever baked here.
    pub fn images(&self) -> Vec<Digest> {
        let entries = std::fs::read_dir(self.config.state.join("images")).into_iter().flatten().flatten();
        let digest = |name: String| name.strip_suffix(".json").and_then(|hex| hex.parse().ok());
        entries.filter_map(|entry| digest(entry.file_name().to_string_lossy().into_owned())).collect()
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

/// The workshop as the control loop sees it.
#[derive(Debug, Clone)]
pub struct SharedWorkshop(pub Arc<Workshop>);

#[async_trait]
impl Bakery for SharedWorkshop {
    async fn bake(&self, release: &Release, image: &ImageName) -> Result<Digest, BakeryError> {
        let workshop = self.0.clone();
        // The semaphore is never closed.
        let _slot = self.0.bakes.acquire().await;
        let (env, commit, image) = (release.env.clone(), release.spec.commit.clone(), image.clone());
        let work = move || {
            let mut progress = |text: String| workshop.tell(&env, format!("image {image}: {text}"));
            let draft = workshop.draft(&env.project, &commit, &mut progress)?;
            workshop.bake(&draft, &image, &mut progress)
        };
        let done = tokio::task::spawn_blocking(work).await;
        let done = done.map_err(|e| BakeryError { permanent: false, text: e.to_string() })?;
        done.map_err(|error: WorkshopError| {
            let permanent = match &error {
                WorkshopError::Bake(error) => !error.may_pass,
                WorkshopError::Resolve { mirror, .. } => !mirror,
                WorkshopError::State { .. } | WorkshopError::Objects(_) => false,
                _ => true,
            };
            let hint = error.hint().map(|hint| format!("; hint: {hint}")).unwrap_or_default();
            BakeryError { permanent, text: format!("{}{hint}", chain(&error)) }
        })
    }

    async fn manifest(&self, image: Digest) -> Result<ImageManifest, BakeryError> {
        let manifest = self.0.manifest(image);
        manifest.map_err(|error| BakeryError {
            permanent: matches!(error, ObjectError::Missing(_) | ObjectError::Mismatch { .. }),
            text: chain(&error),
        })
    }

    fn tail(&self, instance: &InstanceId, lines: usize) -> Vec<String> {
        self.0.logs.tail_of(instance, lines)
    }
}
