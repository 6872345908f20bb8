//! A file tree in memory: what a layer will hold. The content of large files stays where it is until it is written.

use std::collections::btree_map::{self, BTreeMap};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Files and directories of one tree.
pub const NODES_MAX: usize = 1_000_000;
/// Bytes of a file that are read at a time.
pub(crate) const CHUNK: usize = 1 << 20;
/// Bytes of two files that are compared at a time.
const COMPARED: usize = 64 << 10;

/// Where the bytes of a file are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// In memory.
    Bytes(Arc<[u8]>),
    /// A part of an open file, such as a layer. Two files of one tree with the same part are one file with two names.
    Slice {
        /// The file.
        file: SharedFile,
        /// Where the part begins.
        at: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// In a file of the host. Two files of one tree with the same path and the same metadata are one file with two
    /// names (a hard link).
    Path {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
}

/// An open file that several contents are parts of. Two are equal if they are the same opened file.
#[derive(Debug, Clone)]
pub struct SharedFile(pub Arc<File>);

impl PartialEq for SharedFile {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for SharedFile {}

/// What makes two names the names of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum FileId<'a> {
    Path(&'a Path),
    Slice(*const File, u64),
}

impl Content {
    /// Bytes.
    pub fn size(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Path { size, .. } | Content::Slice { size, .. } => *size,
        }
    }

    /// The same for all names of one file; none for a content that is always a file of its own.
    pub(crate) fn file_id(&self) -> Option<FileId<'_>> {
        match self {
            Content::Bytes(_) => None,
            Content::Path { path, .. } => Some(FileId::Path(path)),
            // Empty files have no place of their own.
            Content::Slice { size: 0, .. } => None,
            Content::Slice { file, at, .. } => Some(FileId::Slice(Arc::as_ptr(&file.0), *at)),
        }
    }

    /// All bytes of a small file. An error if the file has another size by now.
    pub fn read(&self) -> std::io::Result<std::borrow::Cow<'_, [u8]>> {
        if let Content::Bytes(bytes) = self {
            return Ok((&**bytes).into());
        }
        let mut all = Vec::with_capacity(self.size() as usize);
        self.each_chunk(&mut vec![0; CHUNK], &mut |chunk| {
            all.extend_from_slice(chunk);
            Ok(())
        })?;
        Ok(all.into())
    }

    /// Hands its bytes to `each`, as many at a time as fit into `buffer`. An error if the file has another size by now.
    pub fn each_chunk(
        &self,
        buffer: &mut [u8],
        each: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        match self {
            Content::Bytes(bytes) => each(bytes),
            Content::Slice { file, at, size } => chunks(&file.0, *at, *size, buffer, each),
            Content::Path { path, size } => {
                let file = File::open(path)?;
                if file.metadata()?.len() != *size {
                    return Err(std::io::Error::other("its size changed while it was read"));
                }
                chunks(&file, 0, *size, buffer, each)
            }
        }
    }

    /// Whether two have the same bytes.
    pub fn same(&self, other: &Self) -> std::io::Result<bool> {
        if self == other || self.size() != other.size() {
            return Ok(self == other);
        }
        let (mine, theirs) = (self.reader()?, other.reader()?);
        let (mut a, mut b) = (vec![0; COMPARED], vec![0; COMPARED]);
        let (mut at, size) = (0, self.size());
        while at < size {
            let n = (size - at).min(COMPARED as u64) as usize;
            mine.read_at(&mut a[..n], at)?;
            theirs.read_at(&mut b[..n], at)?;
            if a[..n] != b[..n] {
                return Ok(false);
            }
            at += n as u64;
        }
        Ok(true)
    }

    fn reader(&self) -> std::io::Result<ContentReader<'_>> {
        Ok(match self {
            Content::Bytes(bytes) => ContentReader::Bytes(bytes),
            Content::Slice { file, at, .. } => ContentReader::File(file.0.clone(), *at),
            Content::Path { path, .. } => ContentReader::File(Arc::new(File::open(path)?), 0),
        })
    }
}

/// Reads parts of a content.
enum ContentReader<'a> {
    Bytes(&'a [u8]),
    File(Arc<File>, u64),
}

impl ContentReader<'_> {
    /// Fills `buffer` with the bytes from `at` on, which are there.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> std::io::Result<()> {
        match self {
            ContentReader::Bytes(bytes) => {
                buffer.copy_from_slice(&bytes[at as usize..][..buffer.len()]);
                Ok(())
            }
            ContentReader::File(file, start) => file.read_exact_at(buffer, start + at),
        }
    }
}

fn chunks(
    file: &File,
    at: u64,
    size: u64,
    buffer: &mut [u8],
    each: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut done = 0;
    while done < size {
        let n = (size - done).min(buffer.len() as u64) as usize;
        file.read_exact_at(&mut buffer[..n], at + done)?;
        each(&buffer[..n])?;
        done += n as u64;
    }
    Ok(())
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file.
    File(Content),
    /// A symbolic link with its target.
    Symlink(Vec<u8>),
    /// Says that the lower layers have nothing here (a character device 0:0, as overlayfs wants it).
    Whiteout,
}

/// A file, a directory or a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Extended attributes by full name, such as `security.capability`.
    pub xattrs: Xattrs,
}

/// Extended attributes; shared, because most files have none.
pub type Xattrs = Arc<BTreeMap<Vec<u8>, Vec<u8>>>;

impl Node {
    /// A directory of root.
    pub fn dir(mode: u32, mtime: i64) -> Self {
        Self { kind: Kind::Dir, mode, uid: 0, gid: 0, mtime, xattrs: Xattrs::default() }
    }

    /// A file of root.
    pub fn file(content: Content, mode: u32, mtime: i64) -> Self {
        Self { kind: Kind::File(content), mode, uid: 0, gid: 0, mtime, xattrs: Xattrs::default() }
    }
}

/// A path that cannot be in a tree, or a tree that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The parent is missing or not a directory.
    #[error("`/{path}` has no parent directory")]
    Parent {
        /// The path.
        path: String,
    },
    /// A path with an empty part, `.`, `..`, a zero byte, or a name that is too long.
    #[error("`/{path}` is not a path that an image can hold")]
    Path {
        /// The path.
        path: String,
    },
    /// More than [`NODES_MAX`].
    #[error("an image holds at most {NODES_MAX} files and directories")]
    TooMany,
    /// A file of the host could not be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A socket, a pipe or a device.
    #[error("`{}` is neither a file, a directory nor a link", path.display())]
    Special {
        /// The file.
        path: PathBuf,
    },
}

/// Nodes by path relative to the root, without a leading slash; the root is the empty path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    nodes: BTreeMap<Vec<u8>, Node>,
}

/// The path of the directory that holds `path`; none for the root.
pub fn parent(path: &[u8]) -> Option<&[u8]> {
    if path.is_empty() {
        return None;
    }
    Some(path.iter().rposition(|b| *b == b'/').map_or(&b""[..], |at| &path[..at]))
}

/// The last part of `path`.
pub fn name(path: &[u8]) -> &[u8] {
    path.iter().rposition(|b| *b == b'/').map_or(path, |at| &path[at + 1..])
}

/// `name` in the directory `path`.
pub fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(path.len() + 1 + name.len());
    joined.extend_from_slice(path);
    if !path.is_empty() {
        joined.push(b'/');
    }
    joined.extend_from_slice(name);
    joined
}

/// Says that nothing of a directory below a layer shows through.
pub const OPAQUE: (&[u8], &[u8]) = (b"trusted.overlay.opaque", b"y");

impl Node {
    /// Whether it is a directory that hides the one of the layers below.
    pub fn is_opaque(&self) -> bool {
        self.xattrs.get(OPAQUE.0).is_some_and(|value| value == OPAQUE.1)
    }
}

impl Tree {
    /// What an instance sees of `layers`, lowest first, when they are laid over each other.
    pub fn merge(layers: impl IntoIterator<Item = Self>) -> Result<Self, TreeError> {
        let mut merged = Self::new();
        for layer in layers {
            for (path, mut node) in layer.nodes {
                let below = merged.get(&path);
                let both_dirs = node.kind == Kind::Dir && below.is_some_and(|below| below.kind == Kind::Dir);
                if below.is_some() && (!both_dirs || node.is_opaque()) && !path.is_empty() {
                    merged.remove(&path);
                }
                if node.kind != Kind::Whiteout {
                    if node.is_opaque() {
                        Arc::make_mut(&mut node.xattrs).remove(OPAQUE.0);
                    }
                    merged.insert(&path, node)?;
                }
            }
        }
        Ok(merged)
    }

    /// A tree without even a root.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `node` at `path`, in place of what was there. Its parent must exist.
    pub fn insert(&mut self, path: &[u8], node: Node) -> Result<(), TreeError> {
        let text = || String::from_utf8_lossy(path).into_owned();
        if let Some(parent) = parent(path) {
            let legal =
                |part: &[u8]| !matches!(part, b"" | b"." | b"..") && part.len() <= 255 && !part.contains(&0);
            if !path.split(|b| *b == b'/').all(legal) {
                return Err(TreeError::Path { path: text() });
            }
            if !self.nodes.get(parent).is_some_and(|p| p.kind == Kind::Dir) {
                return Err(TreeError::Parent { path: text() });
            }
        }
        if self.nodes.len() >= NODES_MAX {
            return Err(TreeError::TooMany);
        }
        self.nodes.insert(path.to_vec(), node);
        Ok(())
    }

    /// The node at `path`.
    pub fn get(&self, path: &[u8]) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// The node at `path`, to be changed.
    pub fn get_mut(&mut self, path: &[u8]) -> Option<&mut Node> {
        self.nodes.get_mut(path)
    }

    /// Takes out the node at `path` with all that is below it.
    pub fn remove(&mut self, path: &[u8]) {
        if path.is_empty() {
            return self.nodes.clear();
        }
        self.nodes.remove(path);
        let first = join(path, b"");
        let below = self.nodes.range(first.clone()..).take_while(|(p, _)| p.starts_with(&first));
        for path in below.map(|(path, _)| path.clone()).collect::<Vec<_>>() {
            self.nodes.remove(&path);
        }
    }

    /// All nodes; a directory comes before what it holds.
    pub fn iter(&self) -> btree_map::Iter<'_, Vec<u8>, Node> {
        self.nodes.iter()
    }

    /// Files, directories and links.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is not even a root.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The tree below `root`, on one file system. Owners, modes and times are taken as they are.
    ///
    /// # Errors
    /// [`TreeError`] names what could not be read and what is no file, directory or link.
    pub fn scan(root: &Path) -> Result<Self, TreeError> {
        let mut tree = Self::new();
        let device = std::fs::symlink_metadata(root)
            .map_err(|source| TreeError::Read { path: root.to_owned(), source })?
            .dev();
        let mut links = std::collections::HashMap::new();
        let mut queue = vec![(root.to_owned(), Vec::new())];
        while let Some((place, path)) = queue.pop() {
            let read = |source| TreeError::Read { path: place.clone(), source };
            let meta = std::fs::symlink_metadata(&place).map_err(read)?;
            let kind = if meta.is_dir() {
                Kind::Dir
            } else if meta.is_symlink() {
                Kind::Symlink(std::fs::read_link(&place).map_err(read)?.as_os_str().as_bytes().to_vec())
            } else if meta.is_file() {
                let first = links.entry(meta.ino()).or_insert_with(|| place.clone());
                Kind::File(Content::Path { path: first.clone(), size: meta.len() })
            } else {
                return Err(TreeError::Special { path: place });
            };
            if meta.dev() != device {
                continue;
            }
            if kind == Kind::Dir {
                let mut names = Vec::new();
                for entry in std::fs::read_dir(&place).map_err(read)? {
                    names.push(entry.map_err(read)?.file_name());
                }
                // The stack gives the first name first, so that of several links it is the first that counts.
                names.sort_by(|a, b| b.cmp(a));
                for name in names {
                    let mut below = path.clone();
                    if !below.is_empty() {
                        below.push(b'/');
                    }
                    below.extend_from_slice(name.as_bytes());
                    queue.push((place.join(&name), below));
                }
            }
            let (uid, gid) = (meta.uid(), meta.gid());
            let (mode, mtime, xattrs) = (meta.mode() & 0o7777, meta.mtime(), Xattrs::default());
            tree.insert(&path, Node { kind, mode, uid, gid, mtime, xattrs })?;
        }
        Ok(tree)
    }

    /// The layer that turns `base` into `full` when it is laid over it: what is new or differs, the directories above,
    /// and whiteouts of what is gone. Files are compared by content.
    pub fn difference(base: &Self, full: &Self) -> Result<Self, TreeError> {
        let mut layer = Self::new();
        for (path, node) in &full.nodes {
            let same = match base.get(path) {
                Some(old) => same(old, node).map_err(|source| TreeError::Read {
                    path: PathBuf::from(String::from_utf8_lossy(path).into_owned()),
                    source,
                })?,
                None => false,
            };
            if !same {
                layer.insert_with_parents(full, path, node.clone())?;
            }
        }
        for path in base.nodes.keys() {
            let parent_stays = parent(path).is_some_and(|p| full.get(p).is_some_and(|n| n.kind == Kind::Dir));
            if full.get(path).is_none() && parent_stays {
                let node = Node { kind: Kind::Whiteout, ..Node::dir(0, 0) };
                layer.insert_with_parents(full, path, node)?;
            }
        }
        if layer.is_empty() {
            layer.nodes.extend(full.nodes.get(&b""[..]).map(|root| (Vec::new(), root.clone())));
        }
        Ok(layer)
    }

    fn insert_with_parents(&mut self, full: &Self, path: &[u8], node: Node) -> Result<(), TreeError> {
        let mut missing = Vec::new();
        let mut at = path;
        while let Some(up) = parent(at) {
            if self.nodes.contains_key(up) {
                break;
            }
            missing.push(up);
            at = up;
        }
        for up in missing.into_iter().rev() {
            if let Some(directory) = full.get(up) {
                self.insert(up, directory.clone())?;
            }
        }
        self.insert(path, node)
    }
}

fn same(a: &Node, b: &Node) -> std::io::Result<bool> {
    if (a.mode, a.uid, a.gid, a.mtime, &a.xattrs) != (b.mode, b.uid, b.gid, b.mtime, &b.xattrs) {
        return Ok(false);
    }
    match (&a.kind, &b.kind) {
        (Kind::File(a), Kind::File(b)) => a.same(b),
        (a, b) => Ok(a == b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Content {
        Content::Bytes(text.as_bytes().into())
    }

    #[test]
    fn paths_that_no_file_system_holds_are_refused() {
        let mut tree = Tree::new();
        tree.insert(b"", Node::dir(0o755, 0)).unwrap();
        let file = || Node::file(bytes("x"), 0o644, 0);
        tree.insert(b"a", file()).unwrap();
        for bad in [&b"b/c"[..], b"a/c"] {
            assert!(matches!(tree.insert(bad, file()), Err(TreeError::Parent { .. })));
        }
        for bad in [&b"/a"[..], b"..", b".", b"a//b", b"a\0b", b"a/", &[b'x'; 256]] {
            assert!(matches!(tree.insert(bad, file()), Err(TreeError::Path { .. })), "{bad:?}");
        }
    }

    #[test]
    fn a_difference_holds_what_is_new_with_its_parents_and_whiteouts() {
        let build = |rows: &[(&str, Option<&str>)]| {
            let mut tree = Tree::new();
            for (path, text) in rows {
                let node = match text {
                    Some(text) => Node::file(bytes(text), 0o644, 5),
                    None => Node::dir(0o755, 5),
                };
                tree.insert(path.as_bytes(), node).unwrap();
            }
            tree
        };
        let base = build(&[
            ("", None),
            ("a", None),
            ("a/gone", None),
            ("a/gone/x", Some("1")),
            ("a/same", Some("1")),
            ("b", None),
        ]);
        let full =
            build(&[("", None), ("a", None), ("a/same", Some("1")), ("b", None), ("b/new", Some("2"))]);
        let layer = Tree::difference(&base, &full).unwrap();
        let rows: Vec<_> = layer
            .iter()
            .map(|(p, n)| (String::from_utf8_lossy(p).into_owned(), n.kind == Kind::Whiteout))
            .collect();
        let expected = [("", false), ("a", false), ("a/gone", true), ("b", false), ("b/new", false)]
            .map(|(p, w)| (p.to_owned(), w));
        assert_eq!(rows, expected);
        assert_eq!(Tree::difference(&full, &full).unwrap().len(), 1, "only the root");
    }

    #[test]
    fn layers_hide_what_is_below() {
        let layer = |rows: &[(&str, &str)]| {
            let mut tree = Tree::new();
            for (path, what) in rows {
                let mut node = Node::dir(0o755, 5);
                match *what {
                    "dir" => {}
                    "opaque" => node.xattrs = Arc::new([(OPAQUE.0.to_vec(), OPAQUE.1.to_vec())].into()),
                    "gone" => node.kind = Kind::Whiteout,
                    text => node.kind = Kind::File(bytes(text)),
                }
                tree.insert(path.as_bytes(), node).unwrap();
            }
            tree
        };
        let merged = Tree::merge([
            layer(&[
                ("", "dir"),
                ("a", "dir"),
                ("a/x", "1"),
                ("a-b", "1"),
                ("b", "dir"),
                ("b/x", "1"),
                ("c", "1"),
            ]),
            layer(&[("", "dir"), ("a", "opaque"), ("a/y", "2"), ("b", "gone"), ("c", "dir"), ("c/z", "2")]),
        ]);
        let expected =
            layer(&[("", "dir"), ("a", "dir"), ("a/y", "2"), ("a-b", "1"), ("c", "dir"), ("c/z", "2")]);
        assert_eq!(merged.unwrap(), expected);
    }

    #[test]
    fn a_scan_sees_links_and_refuses_pipes() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "1").unwrap();
        std::fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("c")).unwrap();
        let tree = Tree::scan(dir.path()).unwrap();
        assert_eq!(tree.get(b"a").unwrap().kind, tree.get(b"b").unwrap().kind, "one file with two names");
        assert_eq!(tree.get(b"c").unwrap().kind, Kind::Symlink(b"a".to_vec()));
        let _listener = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
        assert!(matches!(Tree::scan(dir.path()), Err(TreeError::Special { .. })));
    }
}
