//! Puts a base layer onto the root, as it was when it was written, and keeps its tree to compare with.
//!
//! An EROFS file cannot be mounted inside a user namespace, and nothing of the host is there to mount it, so its
//! entries are read one by one.

use super::sandbox::MOUNTED;
use super::unpack::set_time;
use crate::erofs::{Found, Reader, entries};
use crate::tree::{Content, Kind, Node, Tree, TreeError};
use rustix::fs::MemfdFlags;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

/// A base layer could not be put onto the root.
#[derive(Debug, thiserror::Error)]
pub(super) enum BaseError {
    #[error("cannot receive the base layer")]
    Receive(#[source] io::Error),
    #[error("cannot read `/{path}` of the base layer")]
    Read {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot write `/{path}` of the base layer")]
    Write {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("the base layer is malformed")]
    Tree(#[source] TreeError),
}

/// Receives the `size` bytes of a layer from `source` and writes its files below `/`.
pub(super) fn restore(size: u64, source: &mut impl Read) -> Result<Tree, BaseError> {
    let file = rustix::fs::memfd_create("base", MemfdFlags::CLOEXEC);
    let mut file = File::from(file.map_err(|e| BaseError::Receive(e.into()))?);
    match io::copy(&mut source.take(size), &mut file) {
        Ok(n) if n == size => {}
        Ok(_) => return Err(BaseError::Receive(io::ErrorKind::UnexpectedEof.into())),
        Err(error) => return Err(BaseError::Receive(error)),
    }
    let reader = Reader::open(file).map_err(BaseError::Receive)?;
    let mut base = Base { reader, tree: Tree::new(), names: HashMap::new() };
    let root = base.get(b"")?;
    base.directory(b"", &root)?;
    Ok(base.tree)
}

struct Base {
    reader: Reader,
    tree: Tree,
    /// The first name of each file, by inode number.
    names: HashMap<u64, PathBuf>,
}

impl Base {
    fn get(&self, path: &[u8]) -> Result<Found, BaseError> {
        let found = self.reader.get(path).and_then(|found| found.ok_or(io::ErrorKind::NotFound.into()));
        found.map_err(|source| BaseError::Read { path: text(path), source })
    }

    fn read(&self, path: &[u8], found: &Found) -> Result<Vec<u8>, BaseError> {
        self.reader.read(found).map_err(|source| BaseError::Read { path: text(path), source })
    }

    fn insert(&mut self, path: &[u8], found: &Found, kind: Kind) -> Result<(), BaseError> {
        let mode = found.mode & 0o7777;
        let xattrs = crate::tree::Xattrs::default();
        let node = Node { kind, mode, uid: found.uid, gid: found.gid, mtime: found.mtime, xattrs };
        self.tree.insert(path, node).map_err(BaseError::Tree)
    }

    fn directory(&mut self, path: &[u8], found: &Found) -> Result<(), BaseError> {
        let write = |source| BaseError::Write { path: text(path), source };
        let place = Path::new("/").join(OsStr::from_bytes(path));
        match fs::create_dir(&place) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(write(e)),
            _ => {}
        }
        self.insert(path, found, Kind::Dir)?;
        let directory = self.read(path, found)?;
        for (name, number) in entries(&directory).filter(|(name, _)| !matches!(*name, b"." | b"..")) {
            let path = [path, name].into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join(&b'/');
            let found = self.get(&path)?;
            if found.is_dir() {
                self.directory(&path, &found)?;
            } else {
                self.file(&path, &found, number)?;
            }
        }
        let is_mounted = MOUNTED.iter().any(|name| path == name.as_bytes());
        if is_mounted { Ok(()) } else { own(&place, found).map_err(write) }
    }

    fn file(&mut self, path: &[u8], found: &Found, number: u64) -> Result<(), BaseError> {
        let write = |source| BaseError::Write { path: text(path), source };
        let place = Path::new("/").join(OsStr::from_bytes(path));
        let bytes = self.read(path, found)?;
        if found.is_symlink() {
            symlink(OsStr::from_bytes(&bytes), &place).map_err(write)?;
            own(&place, found).map_err(write)?;
            return self.insert(path, found, Kind::Symlink(bytes));
        }
        if let Some(first) = self.names.get(&number) {
            fs::hard_link(first, &place).map_err(write)?;
        } else {
            let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&place);
            file.and_then(|mut file| file.write_all(&bytes)).map_err(write)?;
            own(&place, found).map_err(write)?;
            self.names.insert(number, place);
        }
        self.insert(path, found, Kind::File(Content::Bytes(bytes.into())))
    }
}

fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn own(place: &Path, found: &Found) -> io::Result<()> {
    lchown(place, Some(found.uid), Some(found.gid))?;
    if !found.is_symlink() {
        fs::set_permissions(place, Permissions::from_mode(found.mode & 0o7777))?;
    }
    set_time(place, found.mtime)
}
