//! Where commits become releases and images: keeps sources, reads kiln.toml and kiln.lock of the commit, resolves packages,
//! has workers bake. Everything here blocks; the async side runs it on threads of their own.

pub mod rebuild;

use crate::execute::{Bakery, BakeryError};
use crate::handle::Progress;
use async_trait::async_trait;
use kiln_image::bake::{self, BakeJob};
use kiln_image::debian::{self, Mirror};
use kiln_image::lookup;
use kiln_image::objects::write_durable;
use kiln_image::worker::{self, WorkerError, chain};
use kiln_image::{ObjectError, Objects, SourceError, Sources};
use kiln_logs::LogFolder;
use kiln_model::{
    CommitId, Digest, EnvName, EnvRef, ImageManifest, ImageName, InstanceId, ProjectName, Release,
    ReleaseSpec, limits,
};
use kiln_spec::{Lock, Project, Recipes, SpecErrors};
use std::collections::VecDeque;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
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
            Self::Resolve { hint, .. } => Some(hint.clone()),
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

    /// The text of a lock that the server had to resolve.
    pub fn resolved_lock(&self) -> Option<String> {
        self.lock.as_ref().filter(|_| !self.pinned).map(Lock::to_text)
    }
}

/// The workshop of one state folder.
#[derive(Debug)]
pub struct Workshop {
    config: WorkshopConfig,
    objects: Objects,
    sources: Sources,
    logs: LogFolder,
    bakes: Semaphore,
    resolving: Mutex<()>,
    /// The last commits that were read, the newest last. A commit never changes.
    drafts: Mutex<VecDeque<Arc<Draft>>>,
    progress: broadcast::Sender<Progress>,
}

impl Workshop {
    /// Opens it and removes what interrupted bakes left.
    pub fn open(config: WorkshopConfig, progress: broadcast::Sender<Progress>) -> Result<Self, ObjectError> {
        let objects = Objects::open(&config.state.join("objects"))?;
        objects.sweep()?;
        Ok(Self {
            objects,
            sources: Sources::new(&config.state.join("repos")),
            logs: LogFolder::new(&config.state),
            bakes: Semaphore::new(BAKES_MAX),
            resolving: Mutex::new(()),
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
        let debian = recipes.debian.iter().map(|(name, recipe)| format!("{name} {}\n", recipe.digest()));
        let key: String =
            debian.chain(recipes.oci.iter().map(|reference| format!("oci {reference}\n"))).collect();
        let file = format!("{project}-{}.lock", Digest::of(key.as_bytes()).short());
        let path = self.config.state.join("locks").join(file);
        let kept = std::fs::read_to_string(&path).ok().and_then(|text| Lock::parse(&text).ok());
        if let Some(lock) = kept.filter(|lock| spec.fits(lock)) {
            return Ok(lock);
        }
        progress("resolving packages: the commit has no kiln.lock".into());
        let lock = self.resolve(recipes, None, false)?;
        let written = write_durable(&path, lock.to_text().as_bytes());
        written.map_err(|source| WorkshopError::State { path, source })?;
        Ok(lock)
    }

    /// Resolves recipes. Blocks on the mirror.
    pub fn resolve(
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

    /// Bakes one image of a commit in a worker, or finds it made. Blocks.
    pub fn bake(
        &self,
        draft: &Draft,
        image: &ImageName,
        progress: &mut dyn FnMut(String),
    ) -> Result<Digest, WorkshopError> {
        let job = self.job(draft, image, &self.config.state)?;
        if let Some(baked) = lookup::find(&job, &self.objects) {
            return Ok(baked.image);
        }
        let baked = worker::run(&self.config.program, &job, progress).map_err(WorkshopError::Bake)?;
        Ok(baked.image)
    }

    /// One image of a commit, if it was baked here before. Reads three small files.
    pub fn baked(&self, draft: &Draft, image: &ImageName) -> Option<Digest> {
        let job = self.job(draft, image, &self.config.state).ok()?;
        Some(lookup::find(&job, &self.objects)?.image)
    }

    /// What a worker needs to know to bake one image of a commit in a state folder.
    fn job(&self, draft: &Draft, image: &ImageName, state: &Path) -> Result<BakeJob, WorkshopError> {
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
        })
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
