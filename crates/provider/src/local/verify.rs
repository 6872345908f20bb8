//! Whether a layer file still is what its name says, so that no instance starts from a damaged or changed one.
//!
//! A file is read as a whole (sha256, about 1.2 GB/s) the first time that this server uses it, and again whenever its
//! device, inode, size, modification or change time differs from then. Otherwise a start costs one `fstat`.
//!
//! What this detects: every change that goes through the file system of the state folder, and every damage of the disk that
//! was there when the file was read. What it does not: who writes to the block device below the file system, or sets the
//! host's clock back and restores the change time, or changes the file between the look and a later read by a running
//! instance, which reads its pages as it needs them; all three need root on this host, who can change the server as well.

use kiln_model::Digest;
use rustix::fs::{Timespec, fstat};
use sha2::Digest as _;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

/// Bytes that are hashed at a time.
const CHUNK: usize = 1 << 20;
/// A file that changed so shortly before it was read may change again within the same tick of its change time: what was
/// read is not remembered. A tick is at most 10 ms.
const SETTLED: Duration = Duration::from_millis(25);

/// What says that a file is the same as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: i64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let stat = fstat(file)?;
        Ok(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec as i64),
            changed: (stat.st_ctime, stat.st_ctime_nsec as i64),
        })
    }

    /// Whether it lies far enough back that every later change shows.
    fn is_settled(&self) -> bool {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let Timespec { tv_sec, tv_nsec } = now;
        let now = Duration::new(tv_sec.max(0) as u64, tv_nsec as u32);
        let changed = Duration::new(self.changed.0.max(0) as u64, self.changed.1 as u32);
        now.checked_sub(changed).is_some_and(|age| age >= SETTLED)
    }
}

/// What is known of layer files.
#[derive(Debug, Default)]
pub(crate) struct Verified {
    /// The stamp of each file when it was read, and what it held: also what was wrong is not read again until it changes.
    read: HashMap<Digest, (Stamp, Digest)>,
    /// Files that were read as a whole.
    pub(crate) n_read: u64,
}

impl Verified {
    /// The digest of what `file` holds; it should be `expected`.
    pub(crate) fn digest(&mut self, expected: Digest, file: &File) -> io::Result<Digest> {
        let stamp = Stamp::of(file)?;
        if let Some((known, found)) = self.read.get(&expected)
            && *known == stamp
        {
            return Ok(*found);
        }
        let settled = stamp.is_settled();
        let found = hash(file)?;
        self.n_read += 1;
        // What changed while it was read is whatever it is: not what it should be, and not to be remembered.
        if settled && Stamp::of(file)? == stamp {
            self.read.insert(expected, (stamp, found));
        } else {
            self.read.remove(&expected);
        }
        Ok(found)
    }
}

fn hash(file: &File) -> io::Result<Digest> {
    let (mut hasher, mut chunk, mut at) = (sha2::Sha256::new(), vec![0; CHUNK], 0);
    loop {
        match file.read_at(&mut chunk, at)? {
            0 => return Ok(Digest::from_bytes(hasher.finalize().into())),
            n => {
                hasher.update(&chunk[..n]);
                at += n as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits until a change of `file` would show.
    fn settle(file: &File) {
        while !Stamp::of(file).unwrap().is_settled() {
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_file_is_read_once_and_again_when_anything_of_it_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer");
        std::fs::write(&path, "content").unwrap();
        let expected = Digest::of(b"content");
        let mut verified = Verified::default();
        let mut look = |path: &std::path::Path| {
            let file = File::open(path).unwrap();
            settle(&file);
            let found = verified.digest(expected, &file).unwrap();
            (found, verified.n_read)
        };
        assert_eq!(look(&path), (expected, 1));
        assert_eq!(look(&path), (expected, 1), "remembered");
        // The same size and the same modification time: the change time shows it.
        let before = std::fs::metadata(&path).unwrap().modified().unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.write_at(b"C", 0).unwrap();
        file.set_modified(before).unwrap();
        let changed = Digest::of(b"Content");
        assert_eq!(look(&path), (changed, 2));
        assert_eq!(look(&path), (changed, 2), "what is wrong is remembered as well");
        // Another file in its place.
        let other = dir.path().join("other");
        std::fs::write(&other, "content").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(look(&path), (expected, 3));
    }

    #[test]
    fn what_was_just_written_is_not_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer");
        let expected = Digest::of(b"content");
        let mut verified = Verified::default();
        // A change time in the future never settles while the test runs, whatever the machine does meanwhile.
        std::fs::write(&path, "content").unwrap();
        let file = File::open(&path).unwrap();
        let mut stamp = Stamp::of(&file).unwrap();
        stamp.changed.0 += 3600;
        assert!(!stamp.is_settled());
        stamp.changed.0 -= 2 * 3600;
        assert!(stamp.is_settled());
        settle(&file);
        assert_eq!(verified.digest(expected, &file).unwrap(), expected);
        assert_eq!(verified.digest(Digest::of(b"another"), &file).unwrap(), expected);
    }
}
