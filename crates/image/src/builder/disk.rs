//! The disk of a builder: an empty ext4 file system in a sparse file, so that the kernel itself keeps a build within its
//! limit and whatever it writes is gone with the file. Written here because no program of the host is needed for a file
//! system without content: no journal, no checksums, one superblock.
//!
//! Numbers are those of `Documentation/filesystems/ext4` of the kernel.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const BLOCK: u64 = 4096;
/// Blocks that one block of bitmap can speak for.
const GROUP: u64 = 8 * BLOCK;
const INODE: u64 = 256;
/// One inode for that many bytes: source trees have many small files.
const BYTES_PER_INODE: u64 = 8192;
const DESCRIPTOR: u64 = 32;
/// Inodes that the format reserves, and the first after them, which is `lost+found`.
const RESERVED: u64 = 10;
const ROOT: u64 = 2;
const LOST_FOUND: u64 = RESERVED + 1;
/// A last group that is smaller than this is left out.
const GROUP_LEAST: u64 = 2048;

/// Extended attributes, hashed directories, superblocks only where said (nowhere else).
const COMPATIBLE: u32 = 0x8 | 0x20 | 0x200;
/// Types in directory entries, extents.
const INCOMPATIBLE: u32 = 0x2 | 0x40;
/// Files above 2 GiB, any number of subdirectories, large inodes.
const READ_ONLY_COMPATIBLE: u32 = 0x2 | 0x20 | 0x40;

/// Makes `file`, which is empty, an empty ext4 file system of at most `bytes`. Almost all of it stays a hole.
pub(super) fn format(file: &File, bytes: u64) -> io::Result<()> {
    Disk::new(bytes).write(file)
}

/// The geometry.
struct Disk {
    blocks: u64,
    groups: u64,
    inodes_per_group: u64,
}

/// Where the parts of one group lie, as block numbers.
struct Group {
    start: u64,
    blocks: u64,
    block_bitmap: u64,
    inode_bitmap: u64,
    inode_table: u64,
    /// The first block for data.
    data: u64,
}

impl Disk {
    fn new(bytes: u64) -> Self {
        // The format would hold more with another layout; nobody builds 16 TiB.
        let mut blocks = (bytes / BLOCK).min(u64::from(u32::MAX));
        if blocks > GROUP && blocks % GROUP < GROUP_LEAST {
            blocks -= blocks % GROUP;
        }
        let per_group = blocks.min(GROUP) * BLOCK / BYTES_PER_INODE;
        // Whole blocks of the table.
        let inodes_per_group = (per_group / (BLOCK / INODE)).max(1) * (BLOCK / INODE);
        Self { blocks, groups: blocks.div_ceil(GROUP), inodes_per_group }
    }

    fn descriptor_blocks(&self) -> u64 {
        (self.groups * DESCRIPTOR).div_ceil(BLOCK)
    }

    fn group(&self, n: u64) -> Group {
        let start = n * GROUP;
        let head = if n == 0 { 1 + self.descriptor_blocks() } else { 0 };
        let block_bitmap = start + head;
        let inode_table = block_bitmap + 2;
        let data = inode_table + self.inodes_per_group * INODE / BLOCK;
        let blocks = GROUP.min(self.blocks - start);
        Group { start, blocks, block_bitmap, inode_bitmap: block_bitmap + 1, inode_table, data }
    }

    fn write(&self, file: &File) -> io::Result<()> {
        file.set_len(self.blocks * BLOCK)?;
        let mut descriptors = vec![0; (self.descriptor_blocks() * BLOCK) as usize];
        let mut n_free = 0;
        for n in 0..self.groups {
            let group = self.group(n);
            // The blocks of the root and of `lost+found` follow the table of the first group.
            let (directories, inodes) = if n == 0 { (2, LOST_FOUND) } else { (0, 0) };
            let used = group.data - group.start + directories;
            let free = group.blocks - used;
            n_free += free;
            let at = (n * DESCRIPTOR) as usize;
            let places = [group.block_bitmap, group.inode_bitmap, group.inode_table];
            for (n, place) in places.into_iter().enumerate() {
                put32(&mut descriptors, at + 4 * n, place as u32);
            }
            put16(&mut descriptors, at + 12, free as u16);
            put16(&mut descriptors, at + 14, (self.inodes_per_group - inodes) as u16);
            put16(&mut descriptors, at + 16, directories as u16);
            file.write_all_at(&bitmap(used, group.blocks), group.block_bitmap * BLOCK)?;
            file.write_all_at(&bitmap(inodes, self.inodes_per_group), group.inode_bitmap * BLOCK)?;
        }
        file.write_all_at(&descriptors, BLOCK)?;
        let first = self.group(0);
        let (root, lost) = (first.data, first.data + 1);
        let entry = |inode| first.inode_table * BLOCK + (inode - 1) * INODE;
        file.write_all_at(&directory(0o755, 3, root), entry(ROOT))?;
        file.write_all_at(&directory(0o700, 2, lost), entry(LOST_FOUND))?;
        let names = [(ROOT, "."), (ROOT, ".."), (LOST_FOUND, "lost+found")];
        file.write_all_at(&entries(&names), root * BLOCK)?;
        file.write_all_at(&entries(&[(LOST_FOUND, "."), (ROOT, "..")]), lost * BLOCK)?;
        file.write_all_at(&self.superblock(n_free), 1024)
    }

    fn superblock(&self, n_free: u64) -> Vec<u8> {
        let mut block = vec![0; 1024];
        let inodes = self.inodes_per_group * self.groups;
        let words = [
            (0x00, inodes as u32),
            (0x04, self.blocks as u32),
            (0x0C, n_free as u32),
            (0x10, (inodes - LOST_FOUND) as u32),
            (0x18, 2),
            (0x1C, 2),
            (0x20, GROUP as u32),
            (0x24, GROUP as u32),
            (0x28, self.inodes_per_group as u32),
            (0x4C, 1),
            (0x54, LOST_FOUND as u32),
            (0x5C, COMPATIBLE),
            (0x60, INCOMPATIBLE),
            (0x64, READ_ONLY_COMPATIBLE),
            (0x160, 1),
        ];
        for (at, value) in words {
            put32(&mut block, at, value);
        }
        // Never checked for its age; the magic number; clean; errors go on; size of inodes and of what they have more.
        let halves = [
            (0x36, 0xFFFF),
            (0x38, 0xEF53),
            (0x3A, 1),
            (0x3C, 1),
            (0x58, INODE as u16),
            (0x15C, 32),
            (0x15E, 32),
        ];
        for (at, value) in halves {
            put16(&mut block, at, value);
        }
        // The kernel wants an identity and a seed, and nobody ever looks at either.
        block[0x68..0x78].copy_from_slice(b"kiln builder\0\0\0\0");
        block[0xEC..0xFC].copy_from_slice(b"kiln builder\0\0\0\0");
        block[0xFC] = 1;
        block
    }
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// The first `used` bits are set, and those from `end` on, which stand for nothing.
fn bitmap(used: u64, end: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK as usize];
    for bit in (0..used).chain(end..8 * BLOCK) {
        bytes[(bit / 8) as usize] |= 1 << (bit % 8);
    }
    bytes
}

/// An inode of a directory with one block.
fn directory(mode: u16, links: u16, block: u64) -> Vec<u8> {
    let mut inode = vec![0; INODE as usize];
    put16(&mut inode, 0, 0o040_000 | mode);
    put32(&mut inode, 4, BLOCK as u32);
    put16(&mut inode, 26, links);
    put32(&mut inode, 28, (BLOCK / 512) as u32);
    put32(&mut inode, 40, block as u32);
    put16(&mut inode, 128, 32);
    inode
}

/// The one block of a directory.
fn entries(names: &[(u64, &str)]) -> Vec<u8> {
    const DIRECTORY: u8 = 2;
    let mut block = vec![0; BLOCK as usize];
    let mut at = 0;
    for (n, (inode, name)) in names.iter().enumerate() {
        let last = n + 1 == names.len();
        let size = if last { BLOCK as usize - at } else { (8 + name.len()).next_multiple_of(4) };
        put32(&mut block, at, *inode as u32);
        put16(&mut block, at + 4, size as u16);
        block[at + 6] = name.len() as u8;
        block[at + 7] = DIRECTORY;
        block[at + 8..at + 8 + name.len()].copy_from_slice(name.as_bytes());
        at += size;
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    /// The format's own checker finds nothing to mend, whatever the size.
    #[test]
    fn e2fsck_accepts_every_size() {
        let sizes = [16 << 20, (17 << 20) + 5000, 128 << 20, (128 << 20) + 4096, 300 << 20, 17 << 30];
        for size in sizes {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("disk");
            let file = File::create_new(&path).unwrap();
            format(&file, size).unwrap();
            let meta = file.metadata().unwrap();
            assert!(meta.len() <= size && meta.len() + GROUP_LEAST * BLOCK > size, "{size}: {}", meta.len());
            assert!(meta.blocks() * 512 < size / 1000 + (1 << 20), "{size}: {} blocks", meta.blocks());
            let output = Command::new("/sbin/e2fsck").args(["-f", "-n"]).arg(&path).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{size}: {text}");
        }
    }
}
