//! Opening paths below a root whose content is not trusted: symbolic links, `..` and absolute paths stay inside, and
//! no magic link of `/proc` is followed.

use crate::{CallError, Context};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

/// Opens `path` below `root`, which is an open directory.
pub fn open_in_root(root: impl AsFd, path: &str, flags: OFlags) -> Result<OwnedFd, CallError> {
    resolve(root, path, flags).context("open", path)
}

/// The kernel gives up on a path with `..` while anything on the host is renamed or mounted, and says so; it is soon over.
fn resolve(root: impl AsFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    const TRIES: u32 = 1000;
    let beneath = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    for _ in 1..TRIES {
        match openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), beneath) {
            Err(Errno::AGAIN) => std::thread::yield_now(),
            found => return found,
        }
    }
    Err(Errno::AGAIN)
}

/// Reads the first `max` bytes of a regular file below `root`. Anything else is refused, so that a pipe or a device
/// of a hostile file system cannot hold the reader up.
pub fn read_in_root(root: impl AsFd, path: &str, max: u64) -> Result<Vec<u8>, CallError> {
    let fd = open_in_root(root, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
    let kind = FileType::from_raw_mode(fstat(&fd).context("stat", path)?.st_mode);
    if kind != FileType::RegularFile {
        return Err(std::io::Error::from_raw_os_error(libc::EINVAL)).context("read as a regular file", path);
    }
    let mut bytes = Vec::new();
    std::fs::File::from(fd).take(max).read_to_end(&mut bytes).context("read", path)?;
    Ok(bytes)
}

/// The directory at `path` below `root`, links followed, as a place to mount on. An error is no reason to take memory.
pub fn directory_in_root(root: impl AsFd, path: &str) -> Result<OwnedFd, Errno> {
    resolve(root, path, OFlags::PATH | OFlags::DIRECTORY)
}

/// The regular file at `path` below `root`, links followed, as a place to mount on; none if there is none.
pub fn file_in_root(root: impl AsFd, path: &str) -> Option<OwnedFd> {
    let file = resolve(root, path, OFlags::PATH).ok()?;
    let kind = FileType::from_raw_mode(fstat(&file).ok()?.st_mode);
    (kind == FileType::RegularFile).then_some(file)
}

/// Whether the root of a proc file system is at `path` below `root`, links followed.
pub fn is_procfs_in_root(root: impl AsFd, path: &str) -> bool {
    /// `PROC_SUPER_MAGIC` and `PROC_ROOT_INO` of the kernel.
    const MAGIC: i64 = 0x9fa0;
    const ROOT: u64 = 1;
    let found = resolve(root, path, OFlags::PATH | OFlags::DIRECTORY);
    found.is_ok_and(|found| {
        let kind = rustix::fs::fstatfs(&found).map(|fs| fs.f_type);
        kind == Ok(MAGIC) && fstat(&found).is_ok_and(|stat| stat.st_ino == ROOT)
    })
}

/// The kind of what is at `path` below `root`, links followed.
pub fn kind_in_root(root: impl AsFd, path: &str) -> Result<FileType, CallError> {
    let fd = open_in_root(root, path, OFlags::PATH)?;
    Ok(FileType::from_raw_mode(fstat(&fd).context("stat", path)?.st_mode))
}
