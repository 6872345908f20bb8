//! From the archive of one OCI layer to a [`Tree`] that kiln's own layers are written from.
//!
//! Nothing is extracted: entries become nodes whose content is a part of the archive. A path that would leave the root, or
//! that leads through a link, is refused instead of followed. Whiteouts become kiln's.

use super::tar::{Entries, Entry, EntryKind, TarError};
use crate::erofs::Stack;
use crate::tree::{Content, Kind, Node, OPAQUE, SharedFile, Tree, TreeError, Xattrs, join, name, parent};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What the name of a whiteout begins with.
const WHITEOUT: &[u8] = b".wh.";
/// Hides everything of the directory that it lies in.
const OPAQUE_MARK: &[u8] = b".wh..wh..opq";
/// What else aufs keeps beside files; nothing of an image.
const AUFS: &[u8] = b".wh..wh.";
/// Directories above one file.
const DEPTH_MAX: usize = 256;
/// Bytes of the extended attributes of one file; they have to fit into one block of the file system image.
const XATTR_BYTES_MAX: usize = 3500;
/// Extended attributes that an image may carry. Everything else is of the host that made the layer, or, as
/// `trusted.overlay.*`, would steer the file system that joins the layers.
const XATTRS: &[&[u8]] = &[b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default"];
const XATTR_USER: &[u8] = b"user.";
const XATTR_OVERLAY: &[u8] = b"user.overlay.";
/// Paths that are told of in a note.
const NOTED_MAX: usize = 3;

/// A layer that is not acceptable.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The archive itself.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry that no image may have.
    #[error("it holds `{path}`, which {why}")]
    Entry {
        /// The path as it stands in the archive.
        path: String,
        /// Why it is refused.
        why: &'static str,
    },
    /// It is no tree.
    #[error("its files cannot be in an image")]
    Tree(#[from] TreeError),
    /// A layer below could not be read.
    #[error("cannot read the layers below")]
    Below(#[source] std::io::Error),
}

/// A layer, read.
#[derive(Debug)]
pub struct Layer {
    /// Its files.
    pub tree: Tree,
    /// What was left out, for people.
    pub notes: Vec<String>,
    /// Whether the layers below had a say in it, so that over others it would become another one.
    pub leans: bool,
}

/// Reads the archive in the first `size` bytes of `archive`, which goes over the layers `below`.
pub fn read(archive: &SharedFile, size: u64, below: &Stack) -> Result<Layer, LayerError> {
    let mut layer = Builder {
        archive,
        below,
        tree: Tree::new(),
        gone: BTreeSet::new(),
        opaque: BTreeSet::new(),
        specials: vec![],
        attributes: BTreeSet::new(),
        leans: false,
    };
    layer.tree.insert(b"", Node::dir(0o755, 0))?;
    for entry in Entries::new(&archive.0, size) {
        layer.add(&entry?)?;
    }
    layer.hide()?;
    Ok(Layer { notes: layer.notes(), tree: layer.tree, leans: layer.leans })
}

struct Builder<'a> {
    archive: &'a SharedFile,
    below: &'a Stack,
    tree: Tree,
    /// Paths of the layers below that are no more.
    gone: BTreeSet<Vec<u8>>,
    /// Directories that show nothing of the layers below.
    opaque: BTreeSet<Vec<u8>>,
    specials: Vec<String>,
    attributes: BTreeSet<String>,
    leans: bool,
}

fn refused(path: &[u8], why: &'static str) -> LayerError {
    LayerError::Entry { path: String::from_utf8_lossy(path).into_owned(), why }
}

/// The parts of a path of an archive, joined. Refuses what would leave the root.
fn place(path: &[u8]) -> Result<Vec<u8>, LayerError> {
    if path.starts_with(b"/") && path.iter().any(|b| *b != b'/') {
        return Err(refused(path, "is an absolute path"));
    }
    let parts: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".").collect();
    if parts.contains(&&b".."[..]) {
        return Err(refused(path, "leads out of its folder"));
    }
    if parts.len() > DEPTH_MAX {
        return Err(refused(path, "lies too deep"));
    }
    Ok(parts.join(&b'/'))
}

impl Builder<'_> {
    fn add(&mut self, entry: &Entry) -> Result<(), LayerError> {
        let path = place(&entry.path)?;
        let last = name(&path);
        if last.starts_with(WHITEOUT) {
            let folder = parent(&path).unwrap_or(b"").to_vec();
            if last == OPAQUE_MARK {
                self.opaque.insert(folder);
            } else if !last.starts_with(AUFS) {
                let hidden = &last[WHITEOUT.len()..];
                if matches!(hidden, b"" | b"." | b"..") {
                    return Err(refused(&entry.path, "hides nothing that can be"));
                }
                self.gone.insert(join(&folder, hidden));
            }
            return Ok(());
        }
        let node = |kind| Node {
            kind,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs: Xattrs::default(),
        };
        let mut node = match entry.kind {
            EntryKind::Dir => node(Kind::Dir),
            EntryKind::File => node(Kind::File(self.content(entry))),
            EntryKind::Symlink if entry.link.is_empty() => {
                return Err(refused(&entry.path, "links to nothing"));
            }
            EntryKind::Symlink => Node { mode: 0o777, ..node(Kind::Symlink(entry.link.clone())) },
            EntryKind::HardLink => self.linked(entry)?,
            EntryKind::Special => {
                self.specials.push(String::from_utf8_lossy(&path).into_owned());
                return Ok(());
            }
        };
        if entry.kind != EntryKind::HardLink {
            node.xattrs = self.xattrs(entry)?;
        }
        if path.is_empty() && node.kind != Kind::Dir {
            return Err(refused(&entry.path, "would be the root"));
        }
        self.folder(parent(&path), &entry.path)?;
        let was_dir = self.tree.get(&path).is_some_and(|old| old.kind == Kind::Dir);
        if was_dir && node.kind != Kind::Dir {
            self.tree.remove(&path);
        }
        Ok(self.tree.insert(&path, node)?)
    }

    fn content(&self, entry: &Entry) -> Content {
        match entry.size {
            0 => Content::Bytes([][..].into()),
            size => Content::Slice { file: self.archive.clone(), at: entry.at, size },
        }
    }

    /// The file that a hard link is another name of.
    fn linked(&mut self, entry: &Entry) -> Result<Node, LayerError> {
        let target = place(&entry.link)?;
        let why = "is another name of a file that is not there";
        match self.tree.get(&target) {
            Some(node) if matches!(node.kind, Kind::File(_) | Kind::Symlink(_)) => return Ok(node.clone()),
            Some(_) => return Err(refused(&entry.path, "is another name of something that is no file")),
            None => {}
        }
        self.leans = true;
        let found = self.below.get(&target).map_err(LayerError::Below)?;
        let (found, reader) = found.ok_or_else(|| refused(&entry.path, why))?;
        match reader.node(&found).map_err(LayerError::Below)? {
            node if matches!(node.kind, Kind::File(_) | Kind::Symlink(_)) => Ok(node),
            _ => Err(refused(&entry.path, "is another name of something that is no file")),
        }
    }

    fn xattrs(&mut self, entry: &Entry) -> Result<Xattrs, LayerError> {
        let (mut kept, mut bytes) = (std::collections::BTreeMap::new(), 0);
        for (name, value) in &entry.xattrs {
            let is_user = name.starts_with(XATTR_USER) && !name.starts_with(XATTR_OVERLAY);
            if !is_user && !XATTRS.contains(&name.as_slice()) {
                self.attributes.insert(String::from_utf8_lossy(name).chars().take(80).collect());
                continue;
            }
            bytes += name.len() + value.len() + 8;
            if bytes > XATTR_BYTES_MAX
                || name.len() > 255
                || name.contains(&0)
                || name.len() == XATTR_USER.len()
            {
                return Err(refused(&entry.path, "has more extended attributes than an image can hold"));
            }
            kept.insert(name.clone(), value.clone());
        }
        Ok(Arc::new(kept))
    }

    /// Makes sure that `path` is a directory. One that this layer does not bring is repeated as it is below, because
    /// the highest layer decides on owner and mode.
    fn folder(&mut self, path: Option<&[u8]>, of: &[u8]) -> Result<(), LayerError> {
        let Some(path) = path else { return Ok(()) };
        match self.tree.get(path).map(|node| &node.kind) {
            Some(Kind::Dir) => return Ok(()),
            Some(Kind::Symlink(_)) => return Err(refused(of, "leads through a link")),
            Some(_) => return Err(refused(of, "lies in something that is no folder")),
            None => {}
        }
        self.folder(parent(path), of)?;
        self.leans = true;
        let node = match self.below.get(path).map_err(LayerError::Below)? {
            Some((found, reader)) if found.is_dir() => {
                let mut node = reader.node(&found).map_err(LayerError::Below)?;
                if node.is_opaque() {
                    Arc::make_mut(&mut node.xattrs).remove(OPAQUE.0);
                }
                node
            }
            Some((found, _)) if found.is_symlink() => {
                return Err(refused(of, "leads through a link of a layer below"));
            }
            Some(_) => return Err(refused(of, "lies in something that is no folder in a layer below")),
            None => Node::dir(0o755, 0),
        };
        Ok(self.tree.insert(path, node)?)
    }

    /// Puts the whiteouts in. What this layer brings itself is never hidden by it.
    fn hide(&mut self) -> Result<(), LayerError> {
        for path in std::mem::take(&mut self.opaque) {
            match self.tree.get(&path).map(|node| node.kind == Kind::Dir) {
                // The root of a layer cannot hide those of others as a whole.
                Some(true) if path.is_empty() => {
                    self.leans = true;
                    self.gone.extend(self.below.names().map_err(LayerError::Below)?);
                }
                Some(true) => self.make_opaque(&path),
                Some(false) => {}
                None => {
                    if self.is_below(&path)? == Some(true) {
                        self.folder(Some(&path), &path)?;
                        self.make_opaque(&path);
                    }
                }
            }
        }
        for path in std::mem::take(&mut self.gone) {
            match self.tree.get(&path).map(|node| node.kind == Kind::Dir) {
                // Gone, and made again.
                Some(true) => self.make_opaque(&path),
                Some(false) => {}
                None => self.whiteout(&path)?,
            }
        }
        Ok(())
    }

    fn whiteout(&mut self, path: &[u8]) -> Result<(), LayerError> {
        let folder = parent(path).unwrap_or(b"");
        match self.tree.get(folder).map(|node| node.kind == Kind::Dir) {
            Some(true) => {}
            // Its folder is no folder any more, or never was one.
            Some(false) => return Ok(()),
            None if self.is_below(folder)? != Some(true) => return Ok(()),
            None => self.folder(Some(folder), path)?,
        }
        Ok(self.tree.insert(path, Node { kind: Kind::Whiteout, ..Node::dir(0, 0) })?)
    }

    /// Whether there is a directory at `path` below; none if there is nothing.
    fn is_below(&mut self, path: &[u8]) -> Result<Option<bool>, LayerError> {
        self.leans = true;
        let found = self.below.get(path).map_err(LayerError::Below)?;
        Ok(found.map(|(found, _)| found.is_dir()))
    }

    fn make_opaque(&mut self, path: &[u8]) {
        if let Some(node) = self.tree.get_mut(path) {
            Arc::make_mut(&mut node.xattrs).insert(OPAQUE.0.to_vec(), OPAQUE.1.to_vec());
        }
    }

    fn notes(&self) -> Vec<String> {
        let list = |all: &[String]| {
            let shown = all.iter().take(NOTED_MAX).cloned().collect::<Vec<_>>().join(", ");
            if all.len() > NOTED_MAX { format!("{shown}, …") } else { shown }
        };
        let mut notes = vec![];
        if !self.specials.is_empty() {
            let n = self.specials.len();
            notes.push(format!("left out {n} devices or pipes: {}", list(&self.specials)));
        }
        if !self.attributes.is_empty() {
            let names: Vec<String> = self.attributes.iter().cloned().collect();
            notes.push(format!("left out extended attributes: {}", list(&names)));
        }
        notes
    }
}
