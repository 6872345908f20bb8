//! Where commits become releases and images: keeps sources, reads kiln.toml and kiln.lock of the commit, resolves packages,
//! has workers bake. Everything here blocks; the async side runs it on threads of their own.

mod error;
mod exchange;
mod kernel;
mod lock;
pub mod rebuild;
mod shared;
mod vouch;

pub use error::WorkshopError;
pub use kernel::GuestKernels;
pub use kiln_image::sbom::Format;
pub use shared::SharedWorkshop;

use crate::handle::Progress;
use crate::keys::Keys;
use kiln_image::attest;
use kiln_image::bake::{self, BakeJob};
use kiln_image::builder;
use kiln_image::lookup;
use kiln_image::worker::{self, WorkerError};
use kiln_image::{ObjectError, Objects, Sources};
use kiln_logs::LogFolder;
use kiln_model::{
    CommitId, Digest, EnvName, EnvRef, ImageManifest, ImageName, ProjectName, ReleaseSpec, limits,
};
use kiln_spec::{Base, ImageRecipe, Lock, Project};
use lock::committed;
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
    /// The release that it would be in an environment. Of `names`, its own and then that of the environment that it was made
    /// like and so on, the first counts that the kiln.toml has a table for.
    pub fn release(&self, env: &EnvName, names: &[EnvName]) -> Result<ReleaseSpec, WorkshopError> {
        let named = names.iter().find(|name| self.project.names(name));
        let spec = self.project.environment(named.unwrap_or(env));
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
            secrets: BTreeMap::new(),
            requires: spec.requires.clone(),
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
    keys: Arc<Keys>,
    mending: Mutex<()>,
    sources: Sources,
    logs: LogFolder,
    bakes: Semaphore,
    resolving: Mutex<()>,
    /// That of virtual machines, once it was looked at.
    kernel: Mutex<Option<kiln_image::kernel::GuestKernel>>,
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
            kernel: Mutex::new(None),
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

    /// Bakes one image of a commit in a worker, or finds it made; those that it stands on come first. Blocks.
    pub fn bake(
        &self,
        draft: &Draft,
        image: &ImageName,
        progress: &mut dyn FnMut(String),
    ) -> Result<Digest, WorkshopError> {
        self.bake_unless(&|| false, draft, image, progress)
    }

    /// The same, given up when `abandoned` says that nobody wants the image any more.
    pub(crate) fn bake_unless(
        &self,
        abandoned: &dyn Fn() -> bool,
        draft: &Draft,
        image: &ImageName,
        progress: &mut dyn FnMut(String),
    ) -> Result<Digest, WorkshopError> {
        // No image stands on itself: `Project::parse` refuses that, so this ends.
        let mut images = BTreeMap::new();
        for below in draft.project.images.get(image).into_iter().flat_map(ImageRecipe::images_below) {
            let mut progress = |text: String| progress(format!("{below}: {text}"));
            images.insert(below.clone(), self.bake_unless(abandoned, draft, below, &mut progress)?);
        }
        let job = self.job(draft, image, &self.config.state, images)?;
        let _nothing_is_removed = self.collecting.read().unwrap_or_else(PoisonError::into_inner);
        // Two releases may stand on one image: the second one finds it made.
        let turn = self.turn(&draft.commit, image);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = self.found(&job) {
            return Ok(found);
        }
        let baked =
            worker::run(&self.config.program, &job, abandoned, progress).map_err(WorkshopError::Bake)?;
        let baked = match baked.statement {
            // Somebody vouches for it; if that is nobody who is trusted, this server now does: it has just baked the same.
            None if !self.is_vouched(baked.image) => {
                let job = BakeJob { describe: true, ..job.clone() };
                worker::run(&self.config.program, &job, abandoned, progress).map_err(WorkshopError::Bake)?
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
