//! Reads what [`super::write()`] wrote: single entries, or the whole tree. Images come from other hosts too, so nothing in them
//! is believed: what does not fit is an error.

use super::stack::Seen;
use super::{
    BLOCK, BLOCK_BITS, DIRENT, LAYOUT_INLINE, LAYOUT_PLAIN, MAGIC, SLOT, SUPERBLOCK_AT, SUPERBLOCK_SIZE,
    XATTR_ENTRY, XATTR_HEAD, XATTR_PREFIXES,
};
use crate::tree::{Content, Kind, Node, SharedFile, Tree, Xattrs};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

fn damaged(what: &str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, format!("the file system image has {what}"))
}

/// What [`Reader::get`] finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Bytes.
    pub size: u64,
    /// Bytes of its extended attributes, which lie right before what is inline.
    xattrs: u64,
    layout: u16,
    block: u32,
    data_at: u64,
}

impl Found {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }

    /// Whether it is a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.mode & 0o170_000 == 0o120_000
    }

    /// Whether it hides what is below.
    pub fn is_whiteout(&self) -> bool {
        self.mode & 0o170_000 == 0o020_000
    }
}

/// Reads entries of an image that [`super::write()`] made.
#[derive(Debug)]
pub struct Reader {
    file: Arc<File>,
    size: u64,
    root: u64,
    epoch: i64,
}

/// Bytes of one directory or link that a reader takes.
const READ_BYTES_MAX: u64 = 64 << 20;

impl Reader {
    /// Opens an image.
    pub fn open(file: File) -> std::io::Result<Self> {
        let mut head = [0; SUPERBLOCK_SIZE];
        file.read_exact_at(&mut head, SUPERBLOCK_AT as u64)?;
        if u32_at(&head, 0) != MAGIC || head[12] != BLOCK_BITS {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                "not a file system image of kiln",
            ));
        }
        let size = file.metadata()?.len();
        Ok(Self {
            file: Arc::new(file),
            size,
            root: u64::from(u16_at(&head, 14)),
            epoch: u64_at(&head, 24) as i64,
        })
    }

    /// The entry at `path` (relative to the root), without following links.
    pub fn get(&self, path: &[u8]) -> std::io::Result<Option<Found>> {
        let mut at = self.inode(self.root)?;
        for part in path.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
            if !at.is_dir() {
                return Ok(None);
            }
            let directory = self.read(&at)?;
            match entries(&directory).find(|(name, _)| *name == part) {
                Some((_, number)) => at = self.inode(number)?,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// What this layer says of `path` (relative to the root) to those below it, without following links.
    pub fn see(&self, path: &[u8]) -> std::io::Result<Seen> {
        let mut at = self.inode(self.root)?;
        let mut opaque = false;
        for part in path.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
            if !at.is_dir() {
                return Ok(Seen::Hidden);
            }
            let directory = self.read(&at)?;
            match entries(&directory).find(|(name, _)| *name == part) {
                Some((_, number)) => at = self.inode(number)?,
                None if opaque => return Ok(Seen::Hidden),
                None => return Ok(Seen::Nothing),
            }
            opaque = opaque || at.is_dir() && self.xattrs(&at)?.contains_key(crate::tree::OPAQUE.0);
        }
        Ok(if at.is_whiteout() { Seen::Hidden } else { Seen::Here(at) })
    }

    /// An entry of this layer as a node of a tree; the content of a file stays in the layer until it is read.
    pub fn node(&self, found: &Found) -> std::io::Result<Node> {
        let kind = match found.mode & 0o170_000 {
            0o040_000 => Kind::Dir,
            0o100_000 => {
                let at = self.place(found)?;
                Kind::File(Content::Slice { file: SharedFile(self.file.clone()), at, size: found.size })
            }
            0o120_000 => Kind::Symlink(self.read(found)?),
            0o020_000 => Kind::Whiteout,
            _ => return Err(damaged("an entry that is neither a file, a directory nor a link")),
        };
        let xattrs = self.xattrs(found)?;
        let (mode, uid, gid, mtime) = (found.mode & 0o7777, found.uid, found.gid, found.mtime);
        Ok(Node { kind, mode, uid, gid, mtime, xattrs })
    }

    /// The bytes of a small entry: a link's target, a file such as `/etc/passwd`.
    pub fn read(&self, found: &Found) -> std::io::Result<Vec<u8>> {
        if found.size > READ_BYTES_MAX {
            return Err(std::io::Error::from(std::io::ErrorKind::FileTooLarge));
        }
        let at = self.place(found)?;
        let mut bytes = vec![0; found.size as usize];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    /// Where the data of an entry begins. All of it is inside the image.
    fn place(&self, found: &Found) -> std::io::Result<u64> {
        let at = match found.layout {
            LAYOUT_INLINE => found.data_at,
            LAYOUT_PLAIN if found.size == 0 => 0,
            LAYOUT_PLAIN => u64::from(found.block) * BLOCK,
            _ => return Err(damaged("a layout that kiln does not write")),
        };
        match at.checked_add(found.size) {
            Some(end) if end <= self.size => Ok(at),
            _ => Err(damaged("an entry that reaches beyond the end")),
        }
    }

    /// Everything that is in the image. The content of files stays in it until it is read; several names of one file
    /// stay one file.
    pub fn tree(&self) -> std::io::Result<Tree> {
        let mut tree = Tree::new();
        let mut queue = vec![(Vec::new(), self.root)];
        while let Some((path, number)) = queue.pop() {
            let found = self.inode(number)?;
            if found.is_dir() {
                let bytes = self.read(&found)?;
                for (name, number) in entries(&bytes).filter(|(name, _)| !matches!(*name, b"." | b"..")) {
                    queue.push((crate::tree::join(&path, name), number));
                }
            }
            let node = self.node(&found)?;
            tree.insert(&path, node).map_err(std::io::Error::other)?;
        }
        Ok(tree)
    }

    /// The extended attributes of an entry.
    fn xattrs(&self, found: &Found) -> std::io::Result<Xattrs> {
        if found.xattrs == 0 {
            return Ok(Xattrs::default());
        }
        let mut bytes = vec![0; found.xattrs as usize];
        self.file.read_exact_at(&mut bytes, found.data_at - found.xattrs)?;
        let mut xattrs = std::collections::BTreeMap::new();
        let mut rest = bytes.get(XATTR_HEAD as usize..).unwrap_or_default();
        while rest.len() >= XATTR_ENTRY as usize {
            let (name_size, index, size) = (usize::from(rest[0]), rest[1], usize::from(u16_at(rest, 2)));
            let end = XATTR_ENTRY as usize + name_size + size;
            let body = rest.get(XATTR_ENTRY as usize..end).ok_or_else(|| damaged("a torn attribute"))?;
            let prefix = XATTR_PREFIXES.iter().find(|(_, number)| *number == index);
            let (prefix, _) = prefix.ok_or_else(|| damaged("an attribute of an unknown namespace"))?;
            xattrs.insert([*prefix, &body[..name_size]].concat(), body[name_size..].to_vec());
            rest = rest.get(end.next_multiple_of(XATTR_ENTRY as usize)..).unwrap_or_default();
        }
        Ok(Arc::new(xattrs))
    }

    fn inode(&self, number: u64) -> std::io::Result<Found> {
        let at = number.checked_mul(SLOT).ok_or_else(|| damaged("an impossible inode number"))?;
        let mut head = [0; 32];
        self.file.read_exact_at(&mut head, at)?;
        let format = u16_at(&head, 0);
        let (layout, mode) = (format >> 1, u32::from(u16_at(&head, 4)));
        let xattrs = match u64::from(u16_at(&head, 2)) {
            0 => 0,
            count => XATTR_HEAD + (count - 1) * XATTR_ENTRY,
        };
        if format & 1 == 0 {
            return Ok(Found {
                mode,
                uid: u32::from(u16_at(&head, 24)),
                gid: u32::from(u16_at(&head, 26)),
                mtime: self.epoch,
                size: u64::from(u32_at(&head, 8)),
                xattrs,
                layout,
                block: u32_at(&head, 16),
                data_at: at + 32 + xattrs,
            });
        }
        let mut more = [0; 32];
        self.file.read_exact_at(&mut more, at + 32)?;
        Ok(Found {
            mode,
            uid: u32_at(&head, 24),
            gid: u32_at(&head, 28),
            mtime: u64_at(&more, 0) as i64,
            size: u64_at(&head, 8),
            xattrs,
            layout,
            block: u32_at(&head, 16),
            data_at: at + 64 + xattrs,
        })
    }
}

/// Names and inode numbers in the bytes of a directory that [`super::write()`] made, in their order, `.` and `..` among them.
pub(crate) fn entries(directory: &[u8]) -> impl Iterator<Item = (&[u8], u64)> {
    directory.chunks(BLOCK as usize).flat_map(|block| {
        let entry = move |n: usize| block.get(n * DIRENT..(n + 1) * DIRENT);
        let count = entry(0).map_or(0, |first| usize::from(u16_at(first, 8)) / DIRENT);
        (0..count).filter_map(move |n| {
            let start = usize::from(u16_at(entry(n)?, 8));
            let end = if n + 1 < count { usize::from(u16_at(entry(n + 1)?, 8)) } else { block.len() };
            let name = block.get(start..end)?;
            // The last name of a block that is not the last is followed by zeros.
            let name = &name[..name.iter().position(|b| *b == 0).unwrap_or(name.len())];
            Some((name, u64_at(entry(n)?, 0)))
        })
    })
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
