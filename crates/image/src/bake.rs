//! One image of one commit: its layers below, then the application layer from the committed tree, then the manifest.
//!
//! The same commit, recipe, lock and mount points give the same digest on every host. Who baked, when, and where is
//! written beside the image ([`crate::attest`]), never into it.

use crate::attest::{self, LockFile, Statement};
use crate::builder::{self, BuildError, Built};
use crate::erofs::{self, ErofsError, Reader, Stack};
use crate::layers::{self, LayersError};
use crate::objects::{ObjectError, Objects};
use crate::sbom;
use crate::source::{SourceError, SourceFile, Sources};
use crate::tree::{Content, Kind, Node, Tree, TreeError};
use kiln_model::{CommitId, Digest, ImageConfig, ImageManifest, ImageName, LayerRef, ProjectName};
use kiln_spec::{CopyRule, CopySource, ImageRecipe, Lock, RecipeName};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;

/// The version of [`ImageManifest`] that is written.
pub(crate) const FORMAT: u32 = 1;
pub(crate) const ARCHITECTURE: &str = "amd64";
/// Directories that every image has, so that an instance's file systems can be mounted there.
const MOUNT_POINTS: &[&str] = &["/dev", "/etc", "/proc", "/run", "/sys", "/tmp"];
/// Files that every image has, empty if nobody brings them: each instance gets its own over them.
const INSTANCE_FILES: &[&str] = &["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];
/// git's mode of a submodule.
const SUBMODULE: u32 = 0o160_000;
/// Links that are followed to find where a file goes.
const LINKS_MAX: u32 = 40;
/// Bytes of a link's target, as for the kernel.
const LINK_BYTES_MAX: u64 = 4095;
/// Bytes of an `/etc/passwd`.
const PASSWD_BYTES_MAX: u64 = 1 << 20;
/// Bytes of a manifest.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// What to bake.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BakeJob {
    /// The state folder.
    pub state: PathBuf,
    /// Whose source.
    pub project: ProjectName,
    /// Which commit; the state folder has it.
    pub commit: CommitId,
    /// The image.
    pub recipe: ImageRecipe,
    /// What it is made of; none for an image without packages.
    pub lock: Option<Lock>,
    /// Absolute paths that must be directories, beside those that every image has: what its services may write to.
    pub mount_points: BTreeSet<String>,
    /// Where packages come from, as `--mirror` says; none takes the host's.
    pub mirror: Option<String>,
    /// The program that plays the parts of the installer and of a build's supervisor.
    pub program: PathBuf,
    /// The images of the same kiln.toml that this one stands on, baked.
    #[serde(default)]
    pub images: BTreeMap<ImageName, Digest>,
    /// The file with the credentials of registries, as `--registry-auth` says.
    #[serde(default)]
    pub registry_auth: Option<PathBuf>,
    /// Whether `recipe` is that of the builder of the image of that name.
    #[serde(default)]
    pub is_builder: bool,
    /// Describe it to be signed although a statement stands beside the image: nobody who is trusted signed that.
    #[serde(default)]
    pub describe: bool,
}

impl BakeJob {
    /// The same for the layers of the image's builder.
    pub fn builder(&self, build: &kiln_spec::BuildRecipe) -> Self {
        let recipe = ImageRecipe {
            base: build.base.clone(),
            packages: build.packages.clone(),
            copy: vec![],
            build: None,
            provision: None,
            allow: vec![],
            ..self.recipe.clone()
        };
        Self { recipe, is_builder: true, ..self.clone() }
    }

    /// The name under which kiln.lock has its packages.
    pub fn locked_as(&self) -> RecipeName {
        let name = &self.recipe.name;
        if self.is_builder { RecipeName::builder(name) } else { RecipeName::image(name) }
    }
}

/// A baked image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baked {
    /// What names it.
    pub image: Digest,
    /// Bytes of all layers.
    pub size: u64,
    /// How it was made, to be signed ([`attest::seal`]); none if a statement stands beside the image.
    #[serde(default)]
    pub statement: Option<Box<Statement>>,
}

/// An image could not be baked.
#[derive(Debug, thiserror::Error)]
pub enum BakeError {
    /// The source.
    #[error("cannot read commit {commit}")]
    Source {
        /// Which commit.
        commit: CommitId,
        /// Why.
        #[source]
        source: SourceError,
    },
    /// `from` names nothing.
    #[error("image `{image}`: `{from}` is not in commit {commit}")]
    NothingToCopy {
        /// Which image.
        image: String,
        /// As in kiln.toml.
        from: String,
        /// Which commit.
        commit: CommitId,
    },
    /// A folder was to become a file or the other way round.
    #[error("image `{image}`: cannot copy `{from}` to `{to}`: {why}")]
    Copy {
        /// Which image.
        image: String,
        /// As in kiln.toml.
        from: String,
        /// As in kiln.toml.
        to: String,
        /// What stands in the way.
        why: String,
    },
    /// The layers below.
    #[error("image `{image}`: cannot make the layers of its base and packages")]
    Layers {
        /// Which image.
        image: String,
        /// Why.
        #[source]
        source: Box<LayersError>,
    },
    /// Its build.
    #[error("image `{image}`: the build failed")]
    Build {
        /// Which image.
        image: String,
        /// Why.
        #[source]
        source: Box<BuildError>,
    },
    /// The application layer is no tree.
    #[error("image `{image}`: the application layer is not possible")]
    Tree {
        /// Which image.
        image: String,
        /// Why.
        #[source]
        source: TreeError,
    },
    /// The application layer could not be written.
    #[error("image `{image}`: cannot write the application layer")]
    Erofs {
        /// Which image.
        image: String,
        /// Why.
        #[source]
        source: ErofsError,
    },
    /// It holds what an image must not hold.
    #[error(transparent)]
    Lint(#[from] crate::lint::LintError),
    /// The content store.
    #[error("the content store failed")]
    Objects(#[from] ObjectError),
    /// A layer below could not be read.
    #[error("cannot read layer {0}")]
    Lower(Digest, #[source] std::io::Error),
    /// What was copied from the commit could not be read back.
    #[error("cannot read a temporary file")]
    Spool(#[source] std::io::Error),
    /// The record by which it is found again.
    #[error("cannot write to the cache")]
    Note(#[source] std::io::Error),
    /// The record beside the image.
    #[error("cannot write the provenance of the image")]
    Provenance(#[source] std::io::Error),
}

impl BakeError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NothingToCopy { .. } => {
                Some("commit the file, or correct `from`; only committed files are copied".into())
            }
            Self::Layers { source, .. } => source.hint().or_else(|| full_disk(self)),
            Self::Build { image, source } => {
                source.hint().map(|hint| hint.replace("NAME", image)).or_else(|| full_disk(self))
            }
            Self::Lint(source) => source.hint().or_else(|| full_disk(self)),
            _ => full_disk(self),
        }
    }

    /// Whether it may work when it is tried again as it is.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Layers { source, .. } => source.may_pass(),
            Self::Build { source, .. } => source.may_pass(),
            _ => false,
        }
    }
}

/// A hint if the cause of an error is a full disk.
pub(crate) fn full_disk(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|e| e.kind() == std::io::ErrorKind::StorageFull) {
            return Some("the disk of the state folder is full: free space and deploy again".into());
        }
        cause = error.source();
    }
    None
}

/// The manifest of an image that was baked.
pub fn manifest(objects: &Objects, image: Digest) -> Result<ImageManifest, ObjectError> {
    let bytes = objects.get(image, MANIFEST_BYTES_MAX)?;
    serde_json::from_slice(&bytes).map_err(|e| ObjectError::Io {
        step: "understand",
        path: objects.path(image),
        source: e.into(),
    })
}

/// Bakes one image. `progress` hears of what takes long.
pub fn bake(job: &BakeJob, progress: &mut dyn FnMut(String)) -> Result<Baked, BakeError> {
    let image = || job.recipe.name.to_string();
    let started = std::time::SystemTime::now();
    let objects = Objects::open(&job.state.join("objects"))?;
    let sources = Sources::new(&job.state.join("repos"));
    let source = |source| BakeError::Source { commit: job.commit.clone(), source };
    let epoch = sources.info(&job.project, &job.commit).map_err(source)?.time;
    let built = builder::build(job, &objects, &sources, epoch, progress).map_err(|e| build_failed(job, e))?;
    let below = layers::below(job, &objects, progress);
    let below = below.map_err(|source| BakeError::Layers { image: image(), source: source.into() })?;
    let mut layers = below.layers.clone();
    let lower = Lower::open(&objects, &layers)?;
    let (tree, locks) = application(job, &sources, &lower, epoch, built.as_ref())?;
    let users = users(&tree, &lower)?;
    let mut files = Ok(Ok(vec![]));
    if tree.len() > 1 || layers.is_empty() {
        let mut pending = objects.create()?;
        erofs::write(&tree, &mut pending).map_err(|source| BakeError::Erofs { image: image(), source })?;
        // The hashes of its files are for the bills of materials, and are made while the layer is written out.
        let finished;
        (finished, files) = std::thread::scope(|scope| {
            let files = scope.spawn(|| sbom::files(&tree));
            (pending.finish(), files.join())
        });
        let (digest, size) = finished?;
        layers.push(LayerRef { digest, size, role: "app".into() });
    }
    crate::lint::gate(job, &objects, &layers, epoch, progress)?;
    let size = layers.iter().map(|layer| layer.size).sum();
    let config = ImageConfig { epoch, users };
    let manifest = ImageManifest { format: FORMAT, architecture: ARCHITECTURE.into(), layers, config };
    let digest = objects.put(&manifest.canonical())?;
    let files = files.unwrap_or_else(|_| Err(std::io::Error::other("a thread panicked")));
    let files = files.map_err(BakeError::Provenance)?;
    let layers = &manifest.layers;
    let bake = attest::Bake { job, image: digest, layers, below: &below, epoch, files, locks, started };
    let statement = attest::write(&objects, bake).map_err(BakeError::Provenance)?;
    if let Some(built) = &built {
        built.keep_log(&job.state, digest).map_err(BakeError::Provenance)?;
    }
    let baked = Baked { image: digest, size, statement: None };
    crate::lookup::note(job, &baked).map_err(BakeError::Note)?;
    Ok(Baked { statement: statement.map(Box::new), ..baked })
}

fn build_failed(job: &BakeJob, source: BuildError) -> BakeError {
    BakeError::Build { image: job.recipe.name.to_string(), source: source.into() }
}

/// The layers below.
struct Lower {
    stack: Stack,
    /// The highest of them, for errors.
    top: Digest,
}

impl Lower {
    fn open(objects: &Objects, layers: &[LayerRef]) -> Result<Self, BakeError> {
        let open = |layer: &LayerRef| {
            let reader = File::open(objects.path(layer.digest)).and_then(Reader::open);
            reader.map_err(|e| BakeError::Lower(layer.digest, e))
        };
        let readers = layers.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let top = layers.last().map_or(Digest::of(b""), |layer| layer.digest);
        Ok(Self { stack: Stack::new(readers.into_iter()), top })
    }

    /// What the layers together have at `path`.
    fn get(&self, path: &[u8]) -> Result<Option<(erofs::Found, &Reader)>, BakeError> {
        self.stack.get(path).map_err(|e| BakeError::Lower(self.top, e))
    }

    fn read(&self, path: &[u8]) -> Result<Option<Vec<u8>>, BakeError> {
        match self.get(path)? {
            Some((found, reader)) if found.size <= PASSWD_BYTES_MAX => {
                reader.read(&found).map(Some).map_err(|e| BakeError::Lower(self.top, e))
            }
            _ => Ok(None),
        }
    }
}

/// Builds the application layer.
struct Application<'a> {
    job: &'a BakeJob,
    lower: &'a Lower,
    tree: Tree,
    epoch: i64,
}

/// The files of the commit in their places, and the lock files beside them ([`attest::lock_files`]).
fn application(
    job: &BakeJob,
    sources: &Sources,
    lower: &Lower,
    epoch: i64,
    built: Option<&Built>,
) -> Result<(Tree, Vec<LockFile>), BakeError> {
    let mut application = Application { job, lower, tree: Tree::new(), epoch };
    application.insert(b"", Node::dir(0o755, epoch))?;
    let source = |source| BakeError::Source { commit: job.commit.clone(), source };
    let files = sources.list(&job.project, &job.commit).map_err(source)?;
    let mut wanted = Vec::new();
    for rule in job.recipe.copy.iter().filter(|rule| rule.source == CopySource::Commit) {
        let rows = matching(rule, &files);
        if rows.is_empty() {
            return Err(BakeError::NothingToCopy {
                image: job.recipe.name.to_string(),
                from: rule.from.clone(),
                commit: job.commit.clone(),
            });
        }
        wanted.extend(rows.into_iter().map(|(file, to)| (rule, file, to)));
    }
    if let Some((_, file, to)) = wanted.iter().find(|(_, file, _)| file.mode == SUBMODULE) {
        return Err(application.refused(&file.path, to, "submodules are not available yet"));
    }
    let locks = attest::lock_files(&job.recipe, &files);
    let ids = wanted.iter().map(|(_, file, _)| file.id.clone());
    let ids: Vec<String> = ids.chain(locks.iter().map(|lock| lock.id.clone())).collect();
    let mut contents = sources.contents(&job.project, &ids).map_err(source)?;
    let mut lock_files = vec![];
    for (lock, content) in locks.into_iter().zip(contents.split_off(wanted.len())) {
        let bytes = content.read().map_err(BakeError::Spool)?.into_owned();
        lock_files.push((String::from_utf8_lossy(&lock.path).into_owned(), bytes));
    }
    let locks = lock_files;
    let mut wanted = wanted.into_iter().zip(contents).peekable();
    // In the order of the rules: a later one hides an earlier one.
    for rule in &job.recipe.copy {
        if let (CopySource::Build, Some(built)) = (rule.source, built) {
            for row in built.rows(rule).map_err(|error| build_failed(job, error))? {
                application.place(&row.from, &row.to, row.node)?;
            }
        }
        while let Some(((_, file, to), content)) = wanted.next_if(|((of, ..), _)| std::ptr::eq(*of, rule)) {
            application.copy(rule, file, &to, content)?;
        }
    }
    for path in MOUNT_POINTS.iter().copied().chain(job.mount_points.iter().map(String::as_str)) {
        let path = application.resolve(path.trim_matches('/').as_bytes())?;
        application.directory(&path)?;
    }
    for path in INSTANCE_FILES {
        let path = path.trim_matches('/').as_bytes();
        if application.tree.get(path).is_none() && lower.get(path)?.is_none() {
            application.insert(path, Node::file(Content::Bytes([][..].into()), 0o644, epoch))?;
        }
    }
    Ok((application.tree, locks))
}

/// The files that a rule names, with their places in the image, relative to its root.
fn matching<'a>(rule: &CopyRule, files: &'a [SourceFile]) -> Vec<(&'a SourceFile, Vec<u8>)> {
    let to = rule.to.trim_matches('/').as_bytes();
    let join =
        |a: &[u8], b: &[u8]| [a, b].into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join(&b'/');
    let from = rule.from.trim_end_matches('/').trim_start_matches("./").as_bytes();
    let from = if from == b"." { &b""[..] } else { from };
    let contents = rule.from.ends_with('/');
    let row = |file: &'a SourceFile| {
        if file.path == from && !contents {
            // As with cp: into a folder if the target is written as one.
            let inside = rule.to.ends_with('/');
            let name = crate::tree::name(from);
            return Some((file, if inside { join(to, name) } else { to.to_vec() }));
        }
        let rest = match from {
            b"" => Some(file.path.as_slice()),
            _ => file.path.strip_prefix(from).and_then(|rest| rest.strip_prefix(b"/")),
        };
        rest.map(|rest| (file, join(to, rest)))
    };
    files.iter().filter_map(row).collect()
}

impl Application<'_> {
    fn tree_error(&self, source: TreeError) -> BakeError {
        BakeError::Tree { image: self.job.recipe.name.to_string(), source }
    }

    fn insert(&mut self, path: &[u8], node: Node) -> Result<(), BakeError> {
        self.tree.insert(path, node).map_err(|source| self.tree_error(source))
    }

    fn copy(
        &mut self,
        rule: &CopyRule,
        file: &SourceFile,
        to: &[u8],
        content: Content,
    ) -> Result<(), BakeError> {
        let node = match file.mode {
            0o120_000 if content.size() > LINK_BYTES_MAX => {
                return Err(self.refused(&file.path, to, "the link's target is too long"));
            }
            0o120_000 => {
                let target = content.read().map_err(BakeError::Spool)?.into_owned();
                Node { kind: Kind::Symlink(target), ..Node::dir(0o777, self.epoch) }
            }
            mode => Node::file(content, rule.mode.unwrap_or(mode & 0o777), self.epoch),
        };
        self.place(&file.path, to, node)
    }

    fn refused(&self, from: &[u8], to: &[u8], why: &str) -> BakeError {
        BakeError::Copy {
            image: self.job.recipe.name.to_string(),
            from: String::from_utf8_lossy(from).into_owned(),
            to: format!("/{}", String::from_utf8_lossy(to)),
            why: why.to_owned(),
        }
    }

    /// Puts `node`, which was at `from`, to its place. A folder that is there already stays as it is.
    fn place(&mut self, from: &[u8], to: &[u8], node: Node) -> Result<(), BakeError> {
        let is_dir = node.kind == Kind::Dir;
        if to.is_empty() && is_dir {
            return Ok(());
        }
        if to.is_empty() {
            return Err(self.refused(from, to, "a file cannot be the root"));
        }
        let (directory, name) = (crate::tree::parent(to).unwrap_or(b""), crate::tree::name(to));
        let mut place = self.resolve(directory)?;
        if self.at(&place)?.is_some_and(|is_dir| !is_dir) {
            return Err(self.refused(from, to, "a folder of that path is a file in the image"));
        }
        self.directory(&place)?;
        if !place.is_empty() {
            place.push(b'/');
        }
        place.extend_from_slice(name);
        if is_dir {
            // A link of the image may lead to the folder.
            place = self.resolve(&place)?;
        }
        match self.at(&place)? {
            Some(true) if is_dir => self.directory(&place),
            Some(true) => Err(self.refused(from, to, "that path is a folder in the image")),
            Some(false) if is_dir => Err(self.refused(from, to, "that path is a file in the image")),
            _ => {
                self.directory(crate::tree::parent(&place).unwrap_or(b""))?;
                self.insert(&place, node)
            }
        }
    }

    /// Whether there is a directory at `path`; none if there is nothing.
    fn at(&self, path: &[u8]) -> Result<Option<bool>, BakeError> {
        if let Some(node) = self.tree.get(path) {
            return Ok(Some(node.kind == Kind::Dir));
        }
        Ok(self.lower.get(path)?.map(|(found, _)| found.is_dir()))
    }

    /// Where `path` leads when the links on the way, and at its end, are followed inside the image.
    fn resolve(&self, path: &[u8]) -> Result<Vec<u8>, BakeError> {
        let mut rest: Vec<Vec<u8>> = parts(path).rev().collect();
        let mut place: Vec<u8> = Vec::new();
        let mut links = 0;
        while let Some(part) = rest.pop() {
            if part == b".." {
                place.truncate(crate::tree::parent(&place).map_or(0, <[u8]>::len));
                continue;
            }
            let mut next = place.clone();
            if !next.is_empty() {
                next.push(b'/');
            }
            next.extend_from_slice(&part);
            match self.link(&next)? {
                Some(target) if links < LINKS_MAX => {
                    links += 1;
                    if target.starts_with(b"/") {
                        place.clear();
                    }
                    rest.extend(parts(&target).rev());
                }
                _ => place = next,
            }
        }
        Ok(place)
    }

    fn link(&self, path: &[u8]) -> Result<Option<Vec<u8>>, BakeError> {
        match self.tree.get(path).map(|node| &node.kind) {
            Some(Kind::Symlink(target)) => return Ok(Some(target.clone())),
            Some(_) => return Ok(None),
            None => {}
        }
        match self.lower.get(path)? {
            Some((found, _)) if found.is_symlink() => self.lower.read(path),
            _ => Ok(None),
        }
    }

    /// Makes sure that `path` is a directory of the whole image. One of the layers below is repeated as it is there,
    /// because the highest layer decides on owner and mode.
    fn directory(&mut self, path: &[u8]) -> Result<(), BakeError> {
        if path.is_empty() || self.tree.get(path).is_some() {
            return Ok(());
        }
        let below = self.lower.get(path)?.map(|(found, _)| found);
        let needed = below.as_ref().is_none_or(|found| found.is_dir());
        if !needed {
            return Ok(());
        }
        let node = match below {
            Some(found) => {
                Node { uid: found.uid, gid: found.gid, ..Node::dir(found.mode & 0o7777, found.mtime) }
            }
            None => Node::dir(if path == b"tmp" { 0o1777 } else { 0o755 }, self.epoch),
        };
        self.directory(crate::tree::parent(path).unwrap_or(b""))?;
        self.insert(path, node)
    }
}

fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> + '_ {
    path.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".").map(<[u8]>::to_vec)
}

/// User names with (uid, gid) of the image's `/etc/passwd`.
fn users(tree: &Tree, lower: &Lower) -> Result<BTreeMap<String, (u32, u32)>, BakeError> {
    let text = match tree.get(b"etc/passwd").map(|node| &node.kind) {
        Some(Kind::File(content)) if content.size() > PASSWD_BYTES_MAX => vec![],
        Some(Kind::File(content)) => content.read().map_err(BakeError::Spool)?.into_owned(),
        Some(_) => vec![],
        None => lower.read(b"etc/passwd")?.unwrap_or_default(),
    };
    Ok(parse_users(&String::from_utf8_lossy(&text)))
}

/// Users with their ids, of the text of an `/etc/passwd`.
pub(crate) fn parse_users(text: &str) -> BTreeMap<String, (u32, u32)> {
    let row = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let (name, uid, gid) = (fields.first()?, fields.get(2)?, fields.get(3)?);
        Some(((*name).to_owned(), (uid.parse().ok()?, gid.parse().ok()?)))
    };
    // The first row of a name counts, as for the C library.
    text.lines().rev().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(from: &str, to: &str) -> CopyRule {
        CopyRule { source: kiln_spec::CopySource::Commit, from: from.into(), to: to.into(), mode: None }
    }

    #[test]
    fn a_full_disk_is_named_wherever_it_was_met() {
        let full = || ObjectError::Io {
            step: "write",
            path: "/state/objects".into(),
            source: std::io::ErrorKind::StorageFull.into(),
        };
        let of_packages = layers::LayersError::from(full());
        for error in [
            BakeError::Layers { image: "web".into(), source: of_packages.into() },
            BakeError::Objects(full()),
        ] {
            assert!(error.hint().unwrap().contains("free space"), "{error:?}");
        }
    }

    #[test]
    fn rules_name_files_folders_and_contents() {
        let file = |path: &str| SourceFile { path: path.into(), mode: 0o100_644, id: String::new() };
        let files = [file("a"), file("site/x"), file("site/d/y"), file("sites/z")];
        let found = |from: &str, to: &str| -> Vec<String> {
            let rows = matching(&rule(from, to), &files);
            rows.into_iter().map(|(_, to)| String::from_utf8(to).unwrap()).collect()
        };
        assert_eq!(found("a", "/bin/b"), ["bin/b"]);
        assert_eq!(found("a", "/bin/"), ["bin/a"]);
        assert_eq!(found("a/", "/bin/b"), [""; 0], "a file has no contents");
        assert_eq!(found("site/", "/srv"), ["srv/x", "srv/d/y"]);
        assert_eq!(found("site", "/srv"), ["srv/x", "srv/d/y"]);
        assert_eq!(found("site/d/y", "/"), ["y"]);
        assert_eq!(found("./", "/all"), ["all/a", "all/site/x", "all/site/d/y", "all/sites/z"]);
        assert_eq!(found("none", "/x"), [""; 0]);
    }
}
