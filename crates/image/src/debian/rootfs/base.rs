//! Puts a base layer onto the root, as it was when it was written, and keeps its tree to compare with.
//!
//! An EROFS file cannot be mounted inside a user namespace, and nothing of the host is there to mount it, so its
//! entries are copied.

use super::sandbox::MOUNTED;
use super::unpack::set_time;
use crate::erofs::Reader;
use crate::tree::{FileId, Kind, Node, Tree};
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
    #[error("cannot write `/{path}` of the base layer")]
    Write {
        path: String,
        #[source]
        source: io::Error,
    },
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
    let tree = reader.tree().map_err(BaseError::Receive)?;
    let mut names = HashMap::new();
    for (path, node) in tree.iter() {
        let written = write(path, node, &mut names);
        written.map_err(|source| BaseError::Write { path: text(path), source })?;
    }
    // What is written into a directory changes its time, so theirs come last.
    for (path, node) in tree.iter().filter(|(_, node)| node.kind == Kind::Dir) {
        if !MOUNTED.iter().any(|name| path == name.as_bytes()) {
            own(&place(path), node).map_err(|source| BaseError::Write { path: text(path), source })?;
        }
    }
    Ok(tree)
}

fn place(path: &[u8]) -> PathBuf {
    Path::new("/").join(OsStr::from_bytes(path))
}

/// Writes one entry. `names` has the first name of each file.
fn write<'a>(path: &[u8], node: &'a Node, names: &mut HashMap<FileId<'a>, PathBuf>) -> io::Result<()> {
    let place = place(path);
    match &node.kind {
        Kind::Dir => match fs::create_dir(&place) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => Ok(()),
        },
        Kind::Symlink(target) => {
            symlink(OsStr::from_bytes(target), &place)?;
            own(&place, node)
        }
        Kind::File(content) => {
            if let Some(first) = content.file_id().and_then(|id| names.get(&id)) {
                return fs::hard_link(first, &place);
            }
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&place)?;
            file.write_all(&content.read()?)?;
            names.extend(content.file_id().map(|id| (id, place.clone())));
            own(&place, node)
        }
        Kind::Whiteout => Err(io::ErrorKind::Unsupported.into()),
    }
}

fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn own(place: &Path, node: &Node) -> io::Result<()> {
    lchown(place, Some(node.uid), Some(node.gid))?;
    if !matches!(node.kind, Kind::Symlink(_)) {
        fs::set_permissions(place, Permissions::from_mode(node.mode))?;
    }
    set_time(place, node.mtime)
}
