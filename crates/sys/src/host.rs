//! What the host has, for whoever asks before relying on it: space, limits, the clock, parts of the kernel. And trials:
//! what instances are made of, made once and let go. Nothing stays of a trial but a module that the kernel loaded for it.

use crate::mount::{self, Attributes, ErofsBacking};
use crate::process::{Clone, Ended, Namespaces};
use crate::{CallError, Context, namespace, sandbox};
use rustix::process::{Resource, getrlimit};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

/// Room in a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that anybody may still use.
    pub free_bytes: u64,
    /// Files that can still be made; none if the file system does not count them.
    pub free_files: Option<u64>,
    /// Nothing can be written, however much room there is.
    pub is_read_only: bool,
}

/// The room in the file system of an existing file or directory.
pub fn space(path: &Path) -> Result<Space, CallError> {
    let found = rustix::fs::statvfs(path).context("statvfs", path.display())?;
    let free_files = (found.f_files > 0).then_some(found.f_favail);
    let is_read_only = found.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
    Ok(Space { free_bytes: found.f_bavail.saturating_mul(found.f_frsize), free_files, is_read_only })
}

/// How many files this process may raise its own limit to; none is no limit.
pub fn open_files_max() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}

/// Whether something keeps the clock right, as the kernel was told.
pub fn clock_is_synchronised() -> Result<bool, CallError> {
    /// `TIME_ERROR`: the clock is not synchronised.
    const ERROR: i32 = 5;
    // SAFETY: all zero is a valid value of this structure of numbers, and asks for nothing to be changed.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the structure outlives the call, which only writes to it.
    let answer = crate::error::check(unsafe { libc::adjtimex(&raw mut state) }.into());
    Ok(answer.context("adjtimex", "the clock")? != i64::from(ERROR))
}

/// How this kernel mounts layers.
#[derive(Debug)]
pub struct Layers {
    /// By the file, and whether that goes without a second copy in memory, and whether instances can have copies.
    pub by_file: Result<Direct, CallError>,
    /// By a loop device.
    pub by_loop: Result<(), CallError>,
    /// With the owners of an instance's ids; none if it could not be mounted at all.
    pub owners: Option<Result<(), CallError>>,
}

/// Of a layer that is mounted by its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Direct {
    /// Reads go to the disk directly: every page is in memory once.
    pub directio: bool,
    /// The mount can be copied.
    pub copied: bool,
}

/// Mounts `image`, an EROFS file, in every way, attached nowhere. The caller is root and has one thread.
pub fn try_layers(image: &File) -> Layers {
    let attributes = Attributes { read_only: true, ..Attributes::default() };
    let source = format!("/proc/self/fd/{}", image.as_raw_fd());
    let by_file = |more: &[(&str, Option<&str>)]| {
        mount::filesystem(
            "erofs",
            &[&[("source", Some(source.as_str())), ("ro", None)], more].concat(),
            attributes,
        )
    };
    let plain = by_file(&[]);
    let looped = mount::erofs_of(image, ErofsBacking::Loop);
    // The first id of a range that no distribution hands out.
    let owners = plain.as_ref().ok().or(looped.as_ref().ok()).map(|mount| {
        namespace::user_namespace(0x7000_0000, 65_536).and_then(|ids| mount::map_owners(mount, ids))
    });
    let by_file = plain.map(|mount| Direct {
        directio: by_file(&[("directio", None)]).is_ok(),
        copied: mount::copy_by(&mount, mount::Copying::Auto).is_ok(),
    });
    Layers { by_file, by_loop: looped.map(drop), owners }
}

/// Mounts /proc as an instance does: in user, pid and mount namespaces of its own, where the host's is out of sight. `over`
/// is any directory. The caller is root and has one thread.
pub fn try_proc(over: &str) -> Result<(), CallError> {
    const PATIENCE: Duration = Duration::from_secs(10);
    const WHAT: &str = "proc in a user namespace";
    // A status has room for an errno.
    let status = |done: Result<(), CallError>| done.map_or_else(|error| error.errno().clamp(1, 254), |()| 0);
    let outer = Clone::new(Namespaces::MOUNT).spawn(|| {
        crate::process::end_after(PATIENCE.as_secs() as u32);
        let inner = sandbox::enter_scratch(over, &[]).and_then(|()| {
            Clone::new(Namespaces::USER | Namespaces::PID | Namespaces::MOUNT)
                .spawn(|| status(mount::filesystem("proc", &[], Attributes::default()).map(drop)))
        });
        match inner.and_then(|inner| inner.wait(None)) {
            Ok(Some(Ended::Status(status))) => status,
            Ok(_) => 255,
            Err(error) => status(Err(error)),
        }
    })?;
    match outer.wait(Some(PATIENCE))? {
        Some(Ended::Status(0)) => Ok(()),
        Some(Ended::Status(errno)) => Err(io::Error::from_raw_os_error(errno)).context("mount", WHAT),
        _ => Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)).context("mount", WHAT),
    }
}

/// An EROFS file of one block: an empty directory, and nothing else.
pub fn empty_erofs() -> [u8; 4096] {
    const MAGIC: u32 = 0xE0F5_E1E2;
    const SUPERBLOCK: usize = 1024;
    /// In units of 32 bytes from the beginning.
    const ROOT: u8 = 36;
    let mut image = [0; 4096];
    let superblock = &mut image[SUPERBLOCK..];
    superblock[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    // Blocks of 2^12 bytes; the root's number; one inode; one block.
    (superblock[12], superblock[14], superblock[16], superblock[36]) = (12, ROOT, 1, 1);
    // A compact inode whose 27 bytes of data follow it: two entries of 12 bytes and their names.
    let inode = &mut image[usize::from(ROOT) * 32..];
    inode[0] = 2 << 1;
    inode[4..6].copy_from_slice(&0o040_755_u16.to_le_bytes());
    (inode[6], inode[8]) = (2, 27);
    inode[16..20].fill(0xFF);
    // Number, where the name begins, and that it is a directory.
    for (entry, name) in [(32, 24), (44, 25)] {
        (inode[entry], inode[entry + 8], inode[entry + 10]) = (ROOT, name, 2);
    }
    inode[56..59].copy_from_slice(b"...");
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_image_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("empty.erofs");
        std::fs::write(&path, empty_erofs()).unwrap();
        let answer = std::process::Command::new("fsck.erofs").arg(&path).output().unwrap();
        assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    }

    #[test]
    fn a_folder_has_room_and_a_missing_one_is_named() {
        let space = space(Path::new("/")).unwrap();
        assert!(space.free_bytes > 0 && space.free_files.is_none_or(|files| files > 0), "{space:?}");
        assert!(
            super::space(Path::new("/no/such/folder")).unwrap_err().to_string().contains("/no/such/folder")
        );
    }
}
