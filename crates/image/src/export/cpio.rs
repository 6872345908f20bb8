//! An initial RAM disk: an uncompressed archive in the `newc` format that the kernel unpacks (its
//! `Documentation/driver-api/early-userspace/buffer-format.rst`). Owners are root, times are 0, the order is the caller's.

const DIR: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const TRAILER: &str = "TRAILER!!!";

/// The archive, so far.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    n_entries: u32,
}

impl Archive {
    /// A directory; its parent comes before it.
    pub fn dir(&mut self, path: &str) {
        self.entry(path, DIR, &[]);
    }

    /// A file.
    pub fn file(&mut self, path: &str, content: &[u8]) {
        self.entry(path, FILE, content);
    }

    /// A file that can be executed.
    pub fn program(&mut self, path: &str, content: &[u8]) {
        self.entry(path, PROGRAM, content);
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.n_entries += 1;
        let inode = if mode == 0 { 0 } else { self.n_entries };
        let links = if mode == DIR { 2 } else { 1 };
        let (size, name_size) = (content.len() as u32, path.len() as u32 + 1);
        // Inode, mode, owner, group, links, time, size, two numbers each of two devices, size of the name, checksum.
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
