//! `debian-slim`: the files of an image's packages and what their scripts would have made of them, without running one.
//!
//! Everything happens in memory, in the bake's own process: packages are decoded, their files become a tree, the hooks
//! below add what a daemon needs (users, certificates, library cache, name lookup, a few links), and the tree is written.
//! Scripts are not run, so what only they do is missing; docs/how-to/write-kiln-toml.md lists it.
//!
//! | hook | makes |
//! |---|---|
//! | `users` | `/etc/passwd`, `group`, `shadow`: Debian's fixed ids, `sysusers.d` of the packages, known daemons |
//! | `certificates` | `/etc/ssl/certs/ca-certificates.crt` and the links by name and hash |
//! | `libraries` | `/etc/ld.so.cache` |
//! | `files` | the directories of every root, `nsswitch.conf`, `os-release`, `localtime`, alternatives, `status.d` |

mod certificates;
mod files;
mod libraries;
mod users;

use super::deb::{Deb, DebError, Entry, Kind as DebKind};
use super::rootfs::Done;
use crate::erofs::{self, ErofsError};
use crate::tree::{self, Content, Kind, Node, Tree, TreeError, Xattrs};
use kiln_model::Digest;
use kiln_spec::lock::LockedPackage;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Instant;

/// Threads that decode.
const DECODERS: usize = 2;
/// Links that are followed to find where a file goes.
const LINKS_MAX: usize = 40;
/// Directories of a merged `/usr`.
const MERGED: &[&str] = &["bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// A slim layer could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SlimError {
    /// A package cannot be read from the content store.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A package in the content store is not the one in the lock.
    #[error("the stored package `{package}` is {found}, not {expected}")]
    Mismatch {
        /// Its name.
        package: String,
        /// As locked.
        expected: Digest,
        /// As stored.
        found: Digest,
    },
    /// A package is not acceptable.
    #[error("cannot read package `{package}`")]
    Deb {
        /// Its name.
        package: String,
        /// Why.
        #[source]
        source: DebError,
    },
    /// Two packages have the same file.
    #[error("`/{path}` is in package `{package}` and in package `{other}`")]
    Twice {
        /// The later one.
        package: String,
        /// The earlier one.
        other: String,
        /// The file.
        path: String,
    },
    /// A file cannot be where a package has it.
    #[error("`/{path}` of package `{package}` cannot be placed: {why}")]
    Place {
        /// The package.
        package: String,
        /// The file.
        path: String,
        /// What stands in the way.
        why: &'static str,
    },
    /// The files together are no tree.
    #[error("the files of the packages are no file system")]
    Tree(#[from] TreeError),
    /// The layer could not be written.
    #[error("cannot write the layer")]
    Erofs(#[source] ErofsError),
    /// The layer could not be written.
    #[error("cannot write the layer")]
    Write(#[source] std::io::Error),
}

/// Writes the layer of `packages`, each with its `.deb`, to `out`. The same packages give the same bytes.
///
/// # Errors
/// [`SlimError`]; what `out` holds is then of no use.
pub fn install(packages: &[(LockedPackage, PathBuf)], out: &mut impl Write) -> Result<Done, SlimError> {
    let mut since = Instant::now();
    let mut steps = Vec::new();
    let mut lap = |step: &str| {
        steps.push((step.to_owned(), u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)));
        since = Instant::now();
    };
    let mut debs = decode(packages)?;
    // By name, whatever the order of the lock: which of two packages replaces a file must not depend on it.
    debs.sort_by(|a, b| a.name().cmp(b.name()));
    lap("decode");
    let epoch = debs.iter().flat_map(|deb| &deb.entries).map(|entry| entry.mtime).max().unwrap_or(0);
    let mut root = Root::new(epoch)?;
    for deb in &mut debs {
        root.package(deb)?;
    }
    lap("unpack");
    files::make(&mut root, &debs)?;
    let users = users::make(&mut root, &debs)?;
    certificates::make(&mut root)?;
    libraries::make(&mut root)?;
    lap("hooks");
    let disarmed = crate::lint::setid::strip(&mut root.tree).len() as u64;
    erofs::write(&root.tree, out).map_err(SlimError::Erofs)?;
    out.flush().map_err(SlimError::Write)?;
    lap("write");
    Ok(Done { users, epoch, disarmed, steps })
}

/// Reads, verifies and decodes packages.
fn decode(packages: &[(LockedPackage, PathBuf)]) -> Result<Vec<Deb>, SlimError> {
    let one = |(package, path): &(LockedPackage, PathBuf)| {
        let bytes = std::fs::read(path).map_err(|source| SlimError::Read { path: path.clone(), source })?;
        let found = Digest::of(&bytes);
        if found != package.sha256 {
            let (package, expected) = (package.name.clone(), package.sha256);
            return Err(SlimError::Mismatch { package, expected, found });
        }
        Deb::read(&bytes).map_err(|source| SlimError::Deb { package: package.name.clone(), source })
    };
    let (next, mut decoded) = (AtomicUsize::new(0), BTreeMap::new());
    std::thread::scope(|scope| {
        let (sender, results) = mpsc::channel();
        for _ in 0..DECODERS {
            let (sender, next, one) = (sender.clone(), &next, &one);
            scope.spawn(move || {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let Some(package) = packages.get(n) else { return };
                    if sender.send((n, one(package))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        decoded.extend(results);
    });
    // The first error in their order, whoever was faster.
    decoded.into_values().collect()
}

/// The root that is being made.
struct Root {
    tree: Tree,
    /// The time of what no package brings.
    epoch: i64,
    /// Which package a file is of.
    owners: HashMap<Vec<u8>, String>,
    /// `Replaces` of the packages so far.
    replaces: HashMap<String, HashSet<String>>,
}

impl Root {
    fn new(epoch: i64) -> Result<Self, SlimError> {
        let mut root = Self { tree: Tree::new(), epoch, owners: HashMap::new(), replaces: HashMap::new() };
        root.tree.insert(b"", Node::dir(0o755, epoch))?;
        root.tree.insert(b"usr", Node::dir(0o755, epoch))?;
        for name in MERGED {
            root.dir(&format!("usr/{name}"), 0o755)?;
            root.link(name, &format!("usr/{name}"))?;
        }
        Ok(root)
    }

    /// Puts the files of one package into the tree; their content is gone from `deb` afterwards.
    fn package(&mut self, deb: &mut Deb) -> Result<(), SlimError> {
        let package = deb.name().to_owned();
        let replaced = deb.field("Replaces").unwrap_or_default().split(',');
        let replaced = replaced.filter_map(|r| r.trim().split([' ', '(', ':']).next()).map(str::to_owned);
        self.replaces.insert(package.clone(), replaced.collect());
        for entry in &mut deb.entries {
            let own_path = text(&entry.path);
            let place = |why| SlimError::Place { package: package.clone(), path: own_path.clone(), why };
            if entry.path.is_empty() {
                continue;
            }
            let path = self.resolve(&entry.path).ok_or_else(|| place("its links lead in a circle"))?;
            self.parents(&path).map_err(|()| place("a directory above it is a file"))?;
            if entry.kind == DebKind::Dir {
                self.directory(entry, &path).map_err(|()| place("there is a file"))?;
            } else if self.take(&package, &path)? {
                let node =
                    self.node(entry).ok_or_else(|| place("it is a link to a file that is not there"))?;
                if self.tree.get(&path).is_some_and(|old| old.kind == Kind::Dir) {
                    return Err(place("there is a directory"));
                }
                self.tree.insert(&path, node)?;
            }
        }
        Ok(())
    }

    /// Where `path` is, once the links of the directories above it are followed; none if they lead in a circle.
    fn resolve(&self, path: &[u8]) -> Option<Vec<u8>> {
        let mut rest: Vec<Vec<u8>> = path.rsplit(|b| *b == b'/').map(<[u8]>::to_vec).collect();
        let (mut place, mut n_links) = (Vec::new(), 0);
        while let Some(part) = rest.pop() {
            match &part[..] {
                b"" | b"." => continue,
                b".." => {
                    place = tree::parent(&place).unwrap_or_default().to_vec();
                    continue;
                }
                _ => {}
            }
            let next = tree::join(&place, &part);
            match self.tree.get(&next).map(|node| &node.kind) {
                Some(Kind::Symlink(target)) if !rest.is_empty() => {
                    n_links += 1;
                    if n_links > LINKS_MAX {
                        return None;
                    }
                    if target.starts_with(b"/") {
                        place.clear();
                    }
                    rest.extend(target.rsplit(|b| *b == b'/').map(<[u8]>::to_vec));
                }
                _ => place = next,
            }
        }
        Some(place)
    }

    /// What is at `path` once all links are followed.
    fn get(&self, path: &[u8]) -> Option<(Vec<u8>, &Node)> {
        let mut path = path.to_vec();
        for _ in 0..LINKS_MAX {
            path = self.resolve(&path)?;
            match self.tree.get(&path)? {
                Node { kind: Kind::Symlink(target), .. } => {
                    path = match target.strip_prefix(b"/") {
                        Some(target) => target.to_vec(),
                        None => tree::join(tree::parent(&path)?, target),
                    };
                }
                node => return Some((path, node)),
            }
        }
        None
    }

    /// The content of the file at `path`.
    fn read(&self, path: &str) -> Option<&[u8]> {
        match &self.get(path.as_bytes())?.1.kind {
            Kind::File(Content::Bytes(bytes)) => Some(bytes),
            _ => None,
        }
    }

    fn has(&self, path: &str) -> bool {
        self.get(path.as_bytes()).is_some()
    }

    /// The files and links in the directory at `path`, which may be missing.
    fn list(&self, path: &str) -> Vec<Vec<u8>> {
        let Some((dir, _)) = self.get(path.as_bytes()) else { return vec![] };
        let inside = |p: &[u8]| tree::parent(p).is_some_and(|parent| parent == dir);
        let first = tree::join(&dir, b"");
        let nodes =
            self.tree.iter().filter(|(p, n)| p.starts_with(&first) && inside(p) && n.kind != Kind::Dir);
        nodes.map(|(path, _)| path.clone()).collect()
    }

    fn parents(&mut self, path: &[u8]) -> Result<(), ()> {
        let Some(parent) = tree::parent(path) else { return Ok(()) };
        match self.tree.get(parent).map(|node| node.kind == Kind::Dir) {
            Some(true) => Ok(()),
            Some(false) => Err(()),
            None => {
                self.parents(parent)?;
                self.tree.insert(parent, Node::dir(0o755, self.epoch)).map_err(|_| ())
            }
        }
    }

    /// A directory of several packages keeps what the first one said; through a link it is another's.
    fn directory(&mut self, entry: &Entry, path: &[u8]) -> Result<(), ()> {
        match self.get(path).map(|(_, node)| node.kind == Kind::Dir) {
            Some(true) => Ok(()),
            Some(false) => Err(()),
            None => {
                let node = metadata(entry, Kind::Dir);
                self.tree.insert(path, node).map_err(|_| ())
            }
        }
    }

    /// Whether `package` may have the file at `path`: not if a package that replaces it has it.
    fn take(&mut self, package: &str, path: &[u8]) -> Result<bool, SlimError> {
        let replaces = |a: &str, b: &str| self.replaces.get(a).is_some_and(|names| names.contains(b));
        match self.owners.get(path) {
            Some(other) if other != package && !replaces(package, other) => {
                if replaces(other, package) {
                    return Ok(false);
                }
                let (package, other) = (package.to_owned(), other.clone());
                return Err(SlimError::Twice { package, other, path: text(path) });
            }
            _ => {}
        }
        self.owners.insert(path.to_vec(), package.to_owned());
        Ok(true)
    }

    fn node(&self, entry: &mut Entry) -> Option<Node> {
        let kind = match &mut entry.kind {
            DebKind::Dir => Kind::Dir,
            DebKind::Symlink(target) => Kind::Symlink(target.clone()),
            DebKind::File(bytes) => Kind::File(Content::Bytes(std::mem::take(bytes).into())),
            // A second name of the same file; in the layer it is a file of its own with the same content.
            DebKind::Hardlink(target) => self.tree.get(&self.resolve(target)?)?.kind.clone(),
        };
        Some(metadata(entry, kind))
    }

    /// Makes a directory of root, unless there is one.
    fn dir(&mut self, path: &str, mode: u32) -> Result<(), SlimError> {
        if self.has(path) {
            return Ok(());
        }
        self.insert(path, Node::dir(mode, self.epoch))
    }

    /// Makes or replaces a file of root.
    fn file(&mut self, path: &str, bytes: &[u8], mode: u32) -> Result<(), SlimError> {
        self.insert(path, Node::file(Content::Bytes(bytes.into()), mode, self.epoch))
    }

    /// Makes a link, unless something is there.
    fn link(&mut self, path: &str, target: &str) -> Result<(), SlimError> {
        let place = self.resolve(path.as_bytes()).unwrap_or_default();
        if self.tree.get(&place).is_some() {
            return Ok(());
        }
        let node = Node { kind: Kind::Symlink(target.into()), ..Node::dir(0o777, self.epoch) };
        self.insert(path, node)
    }

    fn insert(&mut self, path: &str, node: Node) -> Result<(), SlimError> {
        let refused = |why| SlimError::Place { package: "kiln".into(), path: path.into(), why };
        let place = self.resolve(path.as_bytes()).ok_or_else(|| refused("its links lead in a circle"))?;
        self.parents(&place).map_err(|()| refused("a directory above it is a file"))?;
        Ok(self.tree.insert(&place, node)?)
    }
}

fn metadata(entry: &Entry, kind: Kind) -> Node {
    let (mode, uid, gid) = (entry.mode, entry.uid, entry.gid);
    Node { kind, mode, uid, gid, mtime: entry.mtime, xattrs: Xattrs::default() }
}

fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

#[cfg(test)]
mod tests;
