//! Copies of detached mounts, also where the kernel makes none: before Linux 6.15 `open_tree` copies only what is attached
//! in the caller's own mount namespace. A file system on a loop device can be had by mounting the device once more
//! instead: the kernel finds that it is mounted already, and both mounts share its memory. The device stays bound as
//! long as one of them exists.

use super::{Attributes, filesystem};
use crate::{CallError, Context};
use rustix::mount::OpenTreeFlags;
use std::os::fd::{AsFd, OwnedFd};

/// The major number of loop devices (`Documentation/admin-guide/devices.txt`).
const LOOP_MAJOR: u32 = 7;

/// How a detached mount is copied; other than `Auto` for tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Copying {
    /// By the kernel if it can (6.15 and later), else by its loop device.
    #[default]
    Auto,
    /// Always by its loop device, which it must have.
    Again,
}

/// A detached copy of a mount. By way of a loop device it is one of an EROFS file system, without the attributes that the
/// other has.
pub fn copy_by(mount: impl AsFd, copying: Copying) -> Result<OwnedFd, CallError> {
    let copied = match copying {
        Copying::Auto => open_tree(&mount),
        Copying::Again => Err(rustix::io::Errno::INVAL),
    };
    match (copied, loop_device(&mount)) {
        (Err(rustix::io::Errno::INVAL), Some(path)) => {
            let attributes = Attributes { read_only: true, ..Attributes::default() };
            filesystem("erofs", &[("source", Some(&path)), ("ro", None)], attributes)
        }
        (copied, _) => copied.context("open_tree", "a mount"),
    }
}

/// Whether the kernel copies this detached mount.
pub(super) fn can_be_copied(mount: impl AsFd) -> bool {
    open_tree(&mount).is_ok()
}

fn open_tree(mount: impl AsFd) -> rustix::io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    rustix::mount::open_tree(&mount, "", flags)
}

/// The loop device that a file system is on.
fn loop_device(mount: impl AsFd) -> Option<String> {
    let device = rustix::fs::fstat(mount).ok()?.st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    (major == LOOP_MAJOR).then(|| format!("/dev/loop{minor}"))
}
