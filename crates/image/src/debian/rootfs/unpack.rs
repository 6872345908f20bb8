//! Puts packages onto the root: two threads decode them, one writes them, in one order, so that the result does not
//! depend on who was faster.

use super::protocol::JobPackage;
use super::sandbox::MOUNTED;
use crate::debian::deb::{Deb, DebError, Entry, Kind};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, mpsc};

/// Threads that decode.
const DECODERS: usize = 2;
/// Packages that wait for them.
const QUEUE: usize = 4;

/// Packages could not be put onto the root.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnpackError {
    #[error("cannot receive package `{package}`")]
    Receive {
        package: String,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot read package `{package}`")]
    Deb {
        package: String,
        #[source]
        source: DebError,
    },
    #[error("cannot write `/{path}` of package `{package}`")]
    Write {
        package: String,
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("`/{path}` is in package `{package}` and in package `{other}`")]
    Twice { package: String, other: String, path: String },
}

/// Receives and decodes `packages` from `source`. Hands each one to `take`, in their order, while the next ones are
/// still being decoded, so that an error does not depend on who was faster either.
pub(super) fn receive(
    packages: &[JobPackage],
    source: &mut impl Read,
    mut take: impl FnMut(&mut Deb) -> Result<(), UnpackError>,
) -> Result<Vec<Deb>, UnpackError> {
    let (jobs, queue) = mpsc::sync_channel::<(usize, Vec<u8>)>(QUEUE);
    let queue = Mutex::new(queue);
    std::thread::scope(|scope| {
        let (sender, results) = mpsc::channel();
        for _ in 0..DECODERS {
            let (sender, queue) = (sender.clone(), &queue);
            scope.spawn(move || {
                loop {
                    let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((n, bytes)) = job else { return };
                    if sender.send((n, Deb::read(&bytes))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        // Dropped whenever this closure ends: then the decoders end too.
        let jobs = jobs;
        let (mut early, mut debs) = (BTreeMap::new(), Vec::with_capacity(packages.len()));
        let mut in_order = |early: &mut BTreeMap<usize, Result<Deb, DebError>>| -> Result<(), UnpackError> {
            while let Some(deb) = early.remove(&debs.len()) {
                let package = &packages[debs.len()].name;
                let mut deb = deb.map_err(|source| UnpackError::Deb { package: package.clone(), source })?;
                take(&mut deb)?;
                debs.push(deb);
            }
            Ok(())
        };
        for (n, package) in packages.iter().enumerate() {
            let failed = |source| UnpackError::Receive { package: package.name.clone(), source };
            let mut bytes = Vec::new();
            source.by_ref().take(package.size).read_to_end(&mut bytes).map_err(failed)?;
            if bytes.len() as u64 != package.size {
                return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
            }
            // The decoders live as long as this closure.
            let _ = jobs.send((n, bytes));
            early.extend(results.try_iter());
            in_order(&mut early)?;
        }
        drop(jobs);
        for result in results {
            early.extend([result]);
            in_order(&mut early)?;
        }
        Ok(debs)
    })
}

/// Writes the entries of packages below `/`.
pub(super) struct Writer {
    /// Which package a file belongs to, by path relative to the root.
    owners: HashMap<Vec<u8>, String>,
    /// `Replaces` of the packages so far.
    replaces: HashMap<String, HashSet<String>>,
    /// `dpkg-divert`: the path, where it goes, and the package that is exempt.
    diversions: HashMap<Vec<u8>, (Vec<u8>, String)>,
    /// Times of directories, set when nothing is written into them any more.
    dir_times: BTreeMap<PathBuf, i64>,
}

impl Writer {
    /// Knows what the base has.
    pub fn new() -> Self {
        let (owners, diversions) = (installed_files(), HashMap::new());
        Self { owners, diversions, replaces: HashMap::new(), dir_times: BTreeMap::new() }
    }

    /// Writes the files of one package; their content is gone from `deb` afterwards.
    pub fn package(&mut self, deb: &mut Deb) -> Result<(), UnpackError> {
        let name = &deb.name().to_owned();
        // A script that ran before may have added one.
        self.diversions = diversions();
        let names = |field: &str| -> HashSet<String> {
            let relations = deb.field(field).unwrap_or_default().split(',');
            relations.filter_map(|r| r.trim().split([' ', '(', ':']).next()).map(str::to_owned).collect()
        };
        self.replaces.insert(name.clone(), names("Replaces"));
        let conffiles: HashSet<Vec<u8>> = deb.conffiles().map(|path| path.as_bytes().to_vec()).collect();
        for entry in &mut deb.entries {
            let path = match self.diversions.get(&entry.path) {
                Some((to, exempt)) if exempt != name => to.clone(),
                _ => entry.path.clone(),
            };
            if entry.kind != Kind::Dir && !self.take(name, &path)? {
                continue;
            }
            let is_conffile = conffiles.contains(&entry.path);
            self.entry(entry, &path, is_conffile).map_err(|source| UnpackError::Write {
                package: name.clone(),
                path: String::from_utf8_lossy(&path).into_owned(),
                source,
            })?;
            if let Kind::File(bytes) = &mut entry.kind {
                *bytes = Vec::new();
            }
        }
        Ok(())
    }

    /// Whether `name` may write the file at `path`: it may not if a package that replaces it has done so.
    fn take(&mut self, name: &str, path: &[u8]) -> Result<bool, UnpackError> {
        let replaces = |a: &str, b: &str| self.replaces.get(a).is_some_and(|names| names.contains(b));
        match self.owners.get(path) {
            Some(other) if other != name && !replaces(name, other) => {
                if replaces(other, name) {
                    return Ok(false);
                }
                let path = String::from_utf8_lossy(path).into_owned();
                return Err(UnpackError::Twice { package: name.to_owned(), other: other.clone(), path });
            }
            _ => {}
        }
        self.owners.insert(path.to_vec(), name.to_owned());
        Ok(true)
    }

    fn entry(&mut self, entry: &Entry, path: &[u8], is_conffile: bool) -> std::io::Result<()> {
        let mut target = Path::new("/").join(OsStr::from_bytes(path));
        if entry.kind == Kind::Dir {
            return self.dir(entry, target);
        }
        self.parents(&target, entry.mtime)?;
        if is_conffile {
            // As dpkg does: `--configure` moves it to its place and notes its checksum.
            let mut name = target.into_os_string();
            name.push(".dpkg-new");
            target = PathBuf::from(name);
        }
        match fs::symlink_metadata(&target) {
            Ok(old) if old.is_dir() => return Err(std::io::ErrorKind::IsADirectory.into()),
            Ok(_) => fs::remove_file(&target)?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        match &entry.kind {
            Kind::Dir => {}
            Kind::Hardlink(other) => {
                return fs::hard_link(Path::new("/").join(OsStr::from_bytes(other)), &target);
            }
            Kind::Symlink(to) => std::os::unix::fs::symlink(OsStr::from_bytes(to), &target)?,
            Kind::File(bytes) => {
                let mut file =
                    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target)?;
                std::io::Write::write_all(&mut file, bytes)?;
            }
        }
        std::os::unix::fs::lchown(&target, Some(entry.uid), Some(entry.gid))?;
        if matches!(entry.kind, Kind::File(_)) {
            fs::set_permissions(&target, fs::Permissions::from_mode(entry.mode))?;
        }
        set_time(&target, entry.mtime)
    }

    fn dir(&mut self, entry: &Entry, target: PathBuf) -> std::io::Result<()> {
        // Something is mounted there; what the layer has in its place is decided at the end.
        if MOUNTED.iter().any(|name| entry.path == name.as_bytes()) {
            return Ok(());
        }
        match fs::metadata(&target) {
            Ok(old) if old.is_dir() && target != Path::new("/") => {
                // A directory of several packages keeps what the first one said; through a link it is another's.
                if fs::symlink_metadata(&target)?.is_dir() {
                    self.dir_times.entry(target).or_insert(entry.mtime);
                }
                return Ok(());
            }
            Ok(old) if old.is_dir() => {}
            Ok(_) => return Err(std::io::ErrorKind::NotADirectory.into()),
            Err(_) => {
                self.parents(&target, entry.mtime)?;
                fs::create_dir(&target)?;
            }
        }
        std::os::unix::fs::chown(&target, Some(entry.uid), Some(entry.gid))?;
        fs::set_permissions(&target, fs::Permissions::from_mode(entry.mode))?;
        self.dir_times.insert(target, entry.mtime);
        Ok(())
    }

    /// Makes the directories above `target` that no package has made.
    fn parents(&mut self, target: &Path, mtime: i64) -> std::io::Result<()> {
        let Some(parent) = target.parent() else { return Ok(()) };
        if fs::metadata(parent).is_ok_and(|m| m.is_dir()) {
            return Ok(());
        }
        self.parents(parent, mtime)?;
        fs::create_dir(parent)?;
        self.dir_times.insert(parent.to_owned(), mtime);
        Ok(())
    }

    /// Gives the directories that were written into the times that their packages say.
    pub fn finish(&mut self) -> Result<(), UnpackError> {
        for (path, mtime) in std::mem::take(&mut self.dir_times).into_iter().rev() {
            set_time(&path, mtime).map_err(|source| UnpackError::Write {
                package: String::new(),
                path: path.to_string_lossy().into_owned(),
                source,
            })?;
        }
        Ok(())
    }
}

/// Sets the modification time of a file, a directory or a link itself.
pub(super) fn set_time(path: &Path, seconds: i64) -> std::io::Result<()> {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// The files of the packages of the base, by dpkg's lists.
fn installed_files() -> HashMap<Vec<u8>, String> {
    let mut owners = HashMap::new();
    for entry in fs::read_dir("/var/lib/dpkg/info").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(package) = name.strip_suffix(".list") else { continue };
        let package = package.split(':').next().unwrap_or(package);
        let list = fs::read(entry.path()).unwrap_or_default();
        for path in list.split(|b| *b == b'\n').filter_map(|line| line.strip_prefix(b"/")) {
            owners.insert(path.to_vec(), package.to_owned());
        }
    }
    owners
}

/// The diversions of the base: three lines each, the path, where it goes, the package.
fn diversions() -> HashMap<Vec<u8>, (Vec<u8>, String)> {
    let text = fs::read("/var/lib/dpkg/diversions").unwrap_or_default();
    let lines: Vec<&[u8]> = text.split(|b| *b == b'\n').collect();
    let path = |line: &[u8]| line.strip_prefix(b"/").unwrap_or(line).to_vec();
    let row = |row: &[&[u8]]| (path(row[0]), (path(row[1]), String::from_utf8_lossy(row[2]).into_owned()));
    lines.chunks_exact(3).map(row).collect()
}
