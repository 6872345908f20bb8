//! Puts layers onto the root, as they were when they were written, and keeps their tree to compare with.
//!
//! An EROFS file cannot be mounted inside a user namespace, and nothing of the host is there to mount it, so its
//! entries are copied.

use super::sandbox::MOUNTED;
use super::unpack::set_time;
use crate::erofs::Reader;
use crate::tree::{FileId, Kind, Node, Tree, TreeError};
use rustix::fs::MemfdFlags;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

/// The layers below could not be put onto the root.
#[derive(Debug, thiserror::Error)]
pub(super) enum BaseError {
    #[error("cannot receive a layer")]
    Receive(#[source] io::Error),
    #[error("cannot write `/{path}` of the layers below")]
    Write {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("a layer is malformed")]
    Tree(#[source] TreeError),
}

/// Receives layers of these `sizes`, lowest first, from `source` and writes what they show together below `/`.
pub(super) fn restore(sizes: &[u64], source: &mut impl Read) -> Result<Tree, BaseError> {
    let layers = sizes.iter().map(|size| receive(*size, source)).collect::<Result<Vec<_>, _>>()?;
    let tree = Tree::merge(layers).map_err(BaseError::Tree)?;
    // The first name of each file.
    let mut names: HashMap<FileId<'_>, PathBuf> = HashMap::new();
    for (path, node) in tree.iter() {
        let place = Path::new("/").join(OsStr::from_bytes(path));
        let write = |source| BaseError::Write { path: text(path), source };
        make(&place, node, &mut names).map_err(write)?;
    }
    // What a directory holds changes its time, so directories come last, the innermost first.
    for (path, node) in tree.iter().collect::<Vec<_>>().into_iter().rev().filter(|(_, n)| n.kind == Kind::Dir)
    {
        if !MOUNTED.iter().any(|name| path == name.as_bytes()) {
            let place = Path::new("/").join(OsStr::from_bytes(path));
            own(&place, node).map_err(|source| BaseError::Write { path: text(path), source })?;
        }
    }
    Ok(tree)
}

/// The tree of one layer; its bytes stay in memory.
fn receive(size: u64, source: &mut impl Read) -> Result<Tree, BaseError> {
    let file = rustix::fs::memfd_create("layer", MemfdFlags::CLOEXEC);
    let mut file = File::from(file.map_err(|e| BaseError::Receive(e.into()))?);
    match io::copy(&mut source.take(size), &mut file) {
        Ok(n) if n == size => {}
        Ok(_) => return Err(BaseError::Receive(io::ErrorKind::UnexpectedEof.into())),
        Err(error) => return Err(BaseError::Receive(error)),
    }
    Reader::open(file).and_then(|reader| reader.tree()).map_err(BaseError::Receive)
}

fn make<'a>(place: &Path, node: &'a Node, names: &mut HashMap<FileId<'a>, PathBuf>) -> io::Result<()> {
    match &node.kind {
        Kind::Dir => match fs::create_dir(place) {
            // The root, and what is mounted upon.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        },
        Kind::Symlink(target) => {
            symlink(OsStr::from_bytes(target), place)?;
            own(place, node)
        }
        Kind::File(content) => {
            if let Some(first) = content.file_id().and_then(|id| names.get(&id)) {
                return fs::hard_link(first, place);
            }
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(place)?;
            file.write_all(&content.read()?)?;
            names.extend(content.file_id().map(|id| (id, place.to_owned())));
            own(place, node)
        }
        // A merged tree has none.
        Kind::Whiteout => Ok(()),
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
