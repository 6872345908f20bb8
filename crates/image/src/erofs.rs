//! Writes a tree as an uncompressed EROFS image, the same bytes for the same tree, and reads single entries back.
//!
//! Format: Linux `fs/erofs/erofs_fs.h`, checked against `fsck.erofs` and the kernel in tests. Blocks of 4096 bytes;
//! small files, links and directories lie inside the metadata right behind their inode. The rules that matter: the
//! root's number fits 16 bits; the entries of a directory are sorted by bytes, `.` and `..` among them; what lies behind
//! an inode does not cross a block; a compact inode carries the superblock's time.

mod read;
mod stack;

pub(crate) use read::entries;
pub use read::{Found, Reader};
pub use stack::{Seen, Stack};

use crate::tree::{FileId, Kind, Node, Tree, Xattrs, name, parent};
use std::collections::HashMap;
use std::io::Write;

const BLOCK: u64 = 4096;
const BLOCK_BITS: u8 = 12;
const MAGIC: u32 = 0xE0F5_E1E2;
const SUPERBLOCK_AT: usize = 1024;
const SUPERBLOCK_SIZE: usize = 128;
/// Inode numbers count slots of 32 bytes.
const SLOT: u64 = 32;
const DIRENT: usize = 12;
/// The superblock is checksummed; inodes carry modification times.
const FEATURES: u32 = 0x1 | 0x2;
const LAYOUT_PLAIN: u16 = 0;
const LAYOUT_INLINE: u16 = 2;
/// The head of the extended attributes of an inode, and of each of them.
const XATTR_HEAD: u64 = 12;
const XATTR_ENTRY: u64 = 4;
/// Namespaces of extended attributes with their numbers.
const XATTR_PREFIXES: &[(&[u8], u8)] = &[
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// A tree could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// It has no root.
    #[error("the tree has no root directory")]
    NoRoot,
    /// The content of a file could not be read.
    #[error("cannot read the content of `/{path}`")]
    Content {
        /// Its path in the image.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The image could not be written.
    #[error("cannot write the file system image")]
    Write(#[source] std::io::Error),
    /// An extended attribute of an unknown namespace, or too many of them.
    #[error("the extended attributes of `/{path}` do not fit into a file system image")]
    Xattrs {
        /// Its path in the image.
        path: String,
    },
    /// More than 16 TiB.
    #[error("the tree is too large for a file system image")]
    TooLarge,
}

struct Inode<'a> {
    path: &'a [u8],
    node: &'a Node,
    links: u32,
    size: u64,
    extended: bool,
    inline: bool,
    /// Its extended attributes as they are written.
    xattrs: Vec<u8>,
    /// Position in slots.
    number: u64,
    /// First block of its data.
    block: u64,
    parent: usize,
    children: Vec<(&'a [u8], usize)>,
}

impl Inode<'_> {
    /// Bytes before the data that lies inside.
    fn head(&self) -> u64 {
        (if self.extended { 64 } else { 32 }) + self.xattrs.len() as u64
    }

    fn is_dir(&self) -> bool {
        self.node.kind == Kind::Dir
    }

    fn blocks(&self) -> u64 {
        if self.inline { 0 } else { self.size.div_ceil(BLOCK) }
    }
}

/// Writes `tree`; answers with the number of bytes.
///
/// # Errors
/// [`ErofsError`]; what was written so far is then of no use.
pub fn write(tree: &Tree, out: &mut impl Write) -> Result<u64, ErofsError> {
    let mut inodes = number_inodes(tree)?;
    let epoch = inodes[0].node.mtime;
    for inode in &mut inodes {
        let node = inode.node;
        inode.extended = node.mtime != epoch
            || node.uid > 0xFFFF
            || node.gid > 0xFFFF
            || inode.size > u64::from(u32::MAX)
            || inode.links > 0xFFFF;
    }
    let metadata_size = place(&mut inodes);
    let mut block = metadata_size / BLOCK;
    for dirs in [true, false] {
        for inode in inodes.iter_mut().filter(|i| i.is_dir() == dirs) {
            if inode.blocks() > 0 {
                inode.block = block;
                block += inode.blocks();
            }
        }
    }
    let blocks = u32::try_from(block).map_err(|_| ErofsError::TooLarge)?;
    let metadata = metadata(&inodes, metadata_size, blocks)?;
    out.write_all(&metadata).map_err(ErofsError::Write)?;
    for dirs in [true, false] {
        for n in (0..inodes.len()).filter(|n| inodes[*n].is_dir() == dirs && inodes[*n].blocks() > 0) {
            let data = data(&inodes, n)?;
            out.write_all(&data).map_err(ErofsError::Write)?;
            let padding = (BLOCK - data.len() as u64 % BLOCK) % BLOCK;
            out.write_all(&[0; BLOCK as usize][..padding as usize]).map_err(ErofsError::Write)?;
        }
    }
    Ok(block * BLOCK)
}

/// One inode per node, the root first; files that are one file with several names get one inode.
fn number_inodes(tree: &Tree) -> Result<Vec<Inode<'_>>, ErofsError> {
    let mut inodes: Vec<Inode<'_>> = Vec::with_capacity(tree.len());
    let mut dirs: HashMap<&[u8], usize> = HashMap::new();
    let mut files: HashMap<FileId<'_>, usize> = HashMap::new();
    for (path, node) in tree.iter() {
        let up = parent(path).and_then(|p| dirs.get(p).copied());
        let file = match &node.kind {
            Kind::File(content) => content.file_id(),
            _ => None,
        };
        let shared = file.and_then(|file| files.get(&file).copied()).filter(|n| inodes[*n].node == node);
        let number = shared.unwrap_or(inodes.len());
        if shared.is_none() {
            let (links, size) = match &node.kind {
                Kind::Dir => (2, 0),
                Kind::File(content) => (1, content.size()),
                Kind::Symlink(target) => (1, target.len() as u64),
                Kind::Whiteout => (1, 0),
            };
            inodes.push(Inode {
                path,
                node,
                links,
                size,
                extended: false,
                inline: false,
                xattrs: xattrs(path, &node.xattrs)?,
                number: 0,
                block: 0,
                parent: up.unwrap_or(0),
                children: Vec::new(),
            });
            if node.kind == Kind::Dir {
                dirs.insert(path, number);
            }
            files.extend(file.map(|file| (file, number)));
        } else {
            inodes[number].links += 1;
        }
        match up {
            Some(up) => {
                inodes[up].children.push((name(path), number));
                inodes[up].links += u32::from(node.kind == Kind::Dir);
            }
            None if path.is_empty() => {}
            None => return Err(ErofsError::NoRoot),
        }
    }
    if inodes.is_empty() {
        return Err(ErofsError::NoRoot);
    }
    for n in 0..inodes.len() {
        if inodes[n].is_dir() {
            inodes[n].size = directory(&inodes, n).len() as u64;
        }
    }
    Ok(inodes)
}

/// The inline form of extended attributes, in the order of their names; empty if there are none.
fn xattrs(path: &[u8], xattrs: &Xattrs) -> Result<Vec<u8>, ErofsError> {
    if xattrs.is_empty() {
        return Ok(vec![]);
    }
    let refused = || ErofsError::Xattrs { path: String::from_utf8_lossy(path).into_owned() };
    let mut out = vec![0; XATTR_HEAD as usize];
    for (name, value) in xattrs.iter() {
        let prefix = XATTR_PREFIXES.iter().find(|(prefix, _)| name.starts_with(prefix));
        let (prefix, index) = prefix.ok_or_else(refused)?;
        let name = &name[prefix.len()..];
        out.push(u8::try_from(name.len()).map_err(|_| refused())?);
        out.push(*index);
        out.extend(u16::try_from(value.len()).map_err(|_| refused())?.to_le_bytes());
        out.extend_from_slice(name);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(XATTR_ENTRY as usize), 0);
    }
    // An inode with all that lies inside it has to fit into one block.
    if out.len() as u64 + 64 > BLOCK { Err(refused()) } else { Ok(out) }
}

/// Decides where each inode lies; answers with the size of the metadata, in whole blocks.
fn place(inodes: &mut [Inode<'_>]) -> u64 {
    let mut at = (SUPERBLOCK_AT + SUPERBLOCK_SIZE) as u64;
    for inode in inodes {
        inode.inline = inode.size > 0 && inode.head() + inode.size <= BLOCK;
        let length = inode.head() + if inode.inline { inode.size } else { 0 };
        at = at.next_multiple_of(SLOT);
        if at % BLOCK + length > BLOCK {
            at = at.next_multiple_of(BLOCK);
        }
        inode.number = at / SLOT;
        at += length;
    }
    at.next_multiple_of(BLOCK)
}

fn metadata(inodes: &[Inode<'_>], size: u64, blocks: u32) -> Result<Vec<u8>, ErofsError> {
    let mut out = vec![0; size as usize];
    for (n, inode) in inodes.iter().enumerate() {
        let at = (inode.number * SLOT) as usize;
        let head = inode_bytes(inode, n);
        out[at..at + head.len()].copy_from_slice(&head);
        if inode.inline {
            let data = data(inodes, n)?;
            out[at + head.len()..at + head.len() + data.len()].copy_from_slice(&data);
        }
    }
    let root = &inodes[0];
    let superblock = &mut out[SUPERBLOCK_AT..SUPERBLOCK_AT + SUPERBLOCK_SIZE];
    superblock[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    superblock[8..12].copy_from_slice(&FEATURES.to_le_bytes());
    superblock[12] = BLOCK_BITS;
    superblock[14..16].copy_from_slice(&(root.number as u16).to_le_bytes());
    superblock[16..24].copy_from_slice(&(inodes.len() as u64).to_le_bytes());
    superblock[24..32].copy_from_slice(&root.node.mtime.to_le_bytes());
    superblock[36..40].copy_from_slice(&blocks.to_le_bytes());
    // crc32c with the start value ~0 and without the final complement, over the rest of the block.
    let sum = !crc32c::crc32c(&out[SUPERBLOCK_AT..BLOCK as usize]);
    out[SUPERBLOCK_AT + 4..SUPERBLOCK_AT + 8].copy_from_slice(&sum.to_le_bytes());
    Ok(out)
}

fn inode_bytes(inode: &Inode<'_>, n: usize) -> Vec<u8> {
    let node = inode.node;
    let layout = if inode.inline { LAYOUT_INLINE } else { LAYOUT_PLAIN };
    let mode = (file_type(&node.kind).0 | node.mode & 0o7777) as u16;
    // A device's number, or the first block; an inode without blocks has the "nothing" address.
    let place: u32 = match node.kind {
        Kind::Whiteout => 0,
        _ if inode.blocks() > 0 => inode.block as u32,
        _ => u32::MAX,
    };
    let mut out = Vec::with_capacity(64);
    out.extend((u16::from(inode.extended) | layout << 1).to_le_bytes());
    let n_xattrs = match inode.xattrs.len() as u64 {
        0 => 0,
        size => (size - XATTR_HEAD) / XATTR_ENTRY + 1,
    };
    out.extend((n_xattrs as u16).to_le_bytes());
    out.extend(mode.to_le_bytes());
    let serial = (n as u32 + 1).to_le_bytes();
    if inode.extended {
        out.extend([0; 2]);
        out.extend(inode.size.to_le_bytes());
        out.extend(place.to_le_bytes());
        out.extend(serial);
        out.extend(node.uid.to_le_bytes());
        out.extend(node.gid.to_le_bytes());
        out.extend(node.mtime.to_le_bytes());
        out.extend(0_u32.to_le_bytes());
        out.extend(inode.links.to_le_bytes());
        out.extend([0; 16]);
    } else {
        out.extend((inode.links as u16).to_le_bytes());
        out.extend((inode.size as u32).to_le_bytes());
        out.extend([0; 4]);
        out.extend(place.to_le_bytes());
        out.extend(serial);
        out.extend((node.uid as u16).to_le_bytes());
        out.extend((node.gid as u16).to_le_bytes());
        out.extend([0; 4]);
    }
    out.extend_from_slice(&inode.xattrs);
    out
}

/// The type bits of a mode, and the type in a directory entry.
fn file_type(kind: &Kind) -> (u32, u8) {
    match kind {
        Kind::File(_) => (0o100_000, 1),
        Kind::Dir => (0o040_000, 2),
        Kind::Whiteout => (0o020_000, 3),
        Kind::Symlink(_) => (0o120_000, 7),
    }
}

fn data<'a>(inodes: &'a [Inode<'_>], n: usize) -> Result<std::borrow::Cow<'a, [u8]>, ErofsError> {
    let inode = &inodes[n];
    match &inode.node.kind {
        Kind::Dir => Ok(directory(inodes, n).into()),
        Kind::Symlink(target) => Ok(target.as_slice().into()),
        Kind::Whiteout => Ok((&[][..]).into()),
        Kind::File(content) => content.read().map_err(|source| ErofsError::Content {
            path: String::from_utf8_lossy(inode.path).into_owned(),
            source,
        }),
    }
}

/// The bytes of a directory: in each block first the entries, then the names; every block but the last is filled up.
fn directory(inodes: &[Inode<'_>], n: usize) -> Vec<u8> {
    let inode = &inodes[n];
    let mut entries: Vec<(&[u8], u64, u8)> = inode
        .children
        .iter()
        .map(|(name, child)| (*name, inodes[*child].number, file_type(&inodes[*child].node.kind).1))
        .collect();
    entries.push((b".", inode.number, 2));
    entries.push((b"..", inodes[inode.parent].number, 2));
    entries.sort_unstable();
    let mut out = Vec::new();
    let mut rest = entries.as_slice();
    while !rest.is_empty() {
        let mut used = 0;
        let fits = rest.iter().take_while(|(name, ..)| {
            used += DIRENT + name.len();
            used <= BLOCK as usize
        });
        let (block, after) = rest.split_at(fits.count());
        let mut name_at = block.len() * DIRENT;
        for (name, number, kind) in block {
            out.extend(number.to_le_bytes());
            out.extend((name_at as u16).to_le_bytes());
            out.extend([*kind, 0]);
            name_at += name.len();
        }
        block.iter().for_each(|(name, ..)| out.extend(*name));
        if !after.is_empty() {
            out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
        }
        rest = after;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Content;
    use std::fs::File;
    use std::process::Command;

    /// Sizes around every edge of the format, long names, many entries, foreign times and owners, a hard link.
    fn edges(dir: &std::path::Path) -> Tree {
        let mut tree = Tree::new();
        tree.insert(b"", Node::dir(0o755, 1_700_000_000)).unwrap();
        for size in [0_usize, 1, 4031, 4032, 4033, 4064, 4065, 4095, 4096, 4097, 10_000] {
            let body: Vec<u8> = (0..size).map(|n| (n * 7 + size) as u8).collect();
            let node = Node::file(Content::Bytes(body.into()), 0o644, 1_700_000_000 + (size % 2) as i64);
            tree.insert(format!("f{size}").as_bytes(), node).unwrap();
        }
        tree.insert(b"many", Node::dir(0o1777, 1_700_000_000)).unwrap();
        for n in 0..700 {
            let long = format!("many/{n:0200}");
            tree.insert(long.as_bytes(), Node::file(Content::Bytes([][..].into()), 0o600, 5)).unwrap();
        }
        let link = |target: &[u8]| Node { kind: Kind::Symlink(target.to_vec()), ..Node::dir(0o777, 9) };
        tree.insert(b"link", link(b"f1")).unwrap();
        tree.insert(b"far", link(&[b'x'; 3000])).unwrap();
        tree.insert(b"owned", Node { uid: 100_000, gid: 33, ..Node::dir(0o750, -1) }).unwrap();
        let rows =
            [("user.empty", ""), ("security.capability", "\u{1}\u{2}cap"), ("trusted.overlay.opaque", "y")];
        let rows = rows.map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
        for (path, size) in [("tagged", 10), ("tagged-large", 9000)] {
            let content = Content::Bytes(vec![7; size].into());
            let xattrs = std::sync::Arc::new(rows.clone().into());
            tree.insert(path.as_bytes(), Node { xattrs, ..Node::file(content, 0o755, 3) }).unwrap();
        }
        let host = dir.join("shared");
        std::fs::write(&host, vec![3; 5000]).unwrap();
        for path in ["one", "two"] {
            let content = Content::Path { path: host.clone(), size: 5000 };
            tree.insert(path.as_bytes(), Node::file(content, 0o4755, 1_700_000_000)).unwrap();
        }
        tree
    }

    #[test]
    fn images_are_stable_pass_fsck_and_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let tree = edges(dir.path());
        let (mut first, mut second) = (Vec::new(), Vec::new());
        let size = write(&tree, &mut first).unwrap();
        write(&tree, &mut second).unwrap();
        assert_eq!(first.len() as u64, size);
        assert_eq!(first, second);
        let path = dir.path().join("image");
        std::fs::write(&path, &first).unwrap();
        match Command::new("fsck.erofs").arg("--extract").arg(&path).output() {
            Ok(output) => {
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            }
            Err(_) => println!("SKIPPED: fsck.erofs is not installed"),
        }
        let reader = Reader::open(File::open(&path).unwrap()).unwrap();
        for (path, node) in tree.iter() {
            let found = reader.get(path).unwrap().unwrap_or_else(|| panic!("{path:?}"));
            assert_eq!(found.mode, file_type(&node.kind).0 | node.mode);
            assert_eq!((found.uid, found.gid, found.mtime), (node.uid, node.gid, node.mtime));
            match &node.kind {
                Kind::File(content) => assert_eq!(reader.read(&found).unwrap(), *content.read().unwrap()),
                Kind::Symlink(target) => assert_eq!(reader.read(&found).unwrap(), *target),
                _ => {}
            }
        }
        let back = reader.tree().unwrap();
        assert_eq!(back.len(), tree.len());
        for ((path, node), (at, found)) in tree.iter().zip(back.iter()) {
            assert_eq!((path, &node.xattrs), (at, &found.xattrs));
        }
        let mut third = Vec::new();
        write(&back, &mut third).unwrap();
        assert!(third == first, "what was read back is written as the same bytes");
        for absent in [&b"none"[..], b"many/0", b"f1/x", b"."] {
            assert!(absent == b"." || reader.get(absent).unwrap().is_none(), "{absent:?}");
        }
    }

    #[test]
    fn a_tree_without_root_is_refused() {
        assert!(matches!(write(&Tree::new(), &mut Vec::new()), Err(ErofsError::NoRoot)));
    }
}
