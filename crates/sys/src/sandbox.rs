//! What the roots of instances and of builders have in common: where they are put together, their /dev, and what of
//! /proc they see. One list, so that what is hidden from the one is hidden from the other.

use crate::mount::{self, Attributes};
use crate::process::Namespaces;
use crate::{CallError, Context, namespace, path};
use rustix::fs::{FileType, Mode, OFlags};
use std::os::fd::{AsFd, OwnedFd};

/// Where a root is put together, in a mount namespace that holds nothing else but /proc ([`enter_scratch`]).
pub const PLACE: &str = "/r";

/// Devices of /dev with their numbers.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const DEVICE_LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Files and directories of /proc that tell of the host: they are covered.
const HIDDEN: [&str; 11] = [
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
    "kpagecount",
];
/// Those that can be read, never written.
const READ_ONLY: [&str; 6] = ["bus", "fs", "irq", "pressure", "sys", "sysrq-trigger"];

/// A read-only /dev, attached nowhere yet, with a directory `shm` to mount on.
pub fn dev() -> Result<OwnedFd, CallError> {
    let attributes = Attributes { no_exec: true, devices: true, ..Attributes::default() };
    let dev = mount::tmpfs("755", 64 * 1024, (0, 0), attributes)?;
    for (name, major, minor) in DEVICES {
        mount::character_device(&dev, name, major, minor)?;
    }
    for (name, target) in DEVICE_LINKS {
        rustix::fs::symlinkat(target, &dev, name).context("symlink", name)?;
    }
    rustix::fs::mkdirat(&dev, "shm", Mode::from_raw_mode(0o755)).context("mkdir", "shm")?;
    mount::make_read_only(&dev)?;
    Ok(dev)
}

/// Enters a mount namespace whose root is an empty tmpfs with [`PLACE`], /proc and the directories `more`; `over` is
/// any directory of the host. It keeps one /proc: the kernel lets a user namespace mount its own only where a whole
/// one can be seen already.
pub fn enter_scratch(over: &str, more: &[&str]) -> Result<(), CallError> {
    let attributes = Attributes::default();
    let scratch = mount::tmpfs("755", 64 * 1024, (0, 0), attributes)?;
    let proc = mount::filesystem("proc", &[], attributes)?;
    for name in ["proc", &PLACE[1..]].iter().chain(more) {
        rustix::fs::mkdirat(&scratch, *name, Mode::from_raw_mode(0o755)).context("mkdir", name)?;
    }
    namespace::unshare(Namespaces::MOUNT)?;
    mount::make_private()?;
    mount::attach_at(&scratch, over)?;
    mount::change_root(over)?;
    mount::attach_at(&proc, "/proc")
}

/// What of /proc is to be covered on this host, found once: it is the same for every instance.
#[derive(Debug, Clone)]
pub struct Covers {
    hidden: Vec<(&'static str, bool)>,
    read_only: Vec<&'static str>,
}

impl Covers {
    /// Looks at the host's own /proc.
    pub fn find() -> Self {
        let look = |name: &&str| std::fs::symlink_metadata(format!("/proc/{name}")).ok().map(|m| m.is_dir());
        let hidden = HIDDEN.iter().filter_map(|name| Some((*name, look(name)?))).collect();
        Self { hidden, read_only: READ_ONLY.iter().copied().filter(|name| look(name).is_some()).collect() }
    }

    /// Covers them in the /proc that is mounted at `proc` and that nobody but the kernel has written to. `empty` and
    /// `null` are a directory and a device to lie over them. Takes no memory from the heap.
    pub fn apply(&self, proc: impl AsFd, empty: &str, null: &str) -> Result<(), CallError> {
        // What went since, with a module of the kernel, tells nothing any more.
        let at = |name: &str| {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(&proc, name, flags, Mode::empty()) {
                Err(rustix::io::Errno::NOENT) => Ok(None),
                other => other.map(Some).context("open in /proc", name),
            }
        };
        for (name, is_directory) in &self.hidden {
            let cover = if *is_directory { empty } else { null };
            if let Some(place) = at(name)? {
                mount::attach(mount::copy_at(rustix::fs::CWD, cover)?, place)?;
            }
        }
        for name in &self.read_only {
            let Some(place) = at(name)? else { continue };
            let cover = mount::copy_at(&proc, name)?;
            mount::make_read_only(&cover)?;
            mount::attach(cover, place)?;
        }
        Ok(())
    }
}

/// A copy of what is mounted at `place` below `root`, found as the image's own programs will find it: a link of the image
/// must not lead to the /proc of the host that is beside the root while it is put together.
fn copy_in_root(root: impl AsFd, place: &str) -> Result<OwnedFd, CallError> {
    mount::copy(path::open_in_root(root, place, OFlags::PATH)?)
}

/// Covers what of the /proc below `root` tells of the host, and makes read-only what could change it. Both /proc and
/// /dev are mounted there already.
pub fn cover_proc(root: impl AsFd) -> Result<(), CallError> {
    let root = root.as_fd();
    for name in HIDDEN {
        let place = format!("/proc/{name}");
        let Ok(kind) = path::kind_in_root(root, &place) else { continue };
        let cover = if kind == FileType::Directory {
            let attributes = Attributes { read_only: true, no_exec: true, devices: false };
            mount::tmpfs("555", 4096, (0, 0), attributes)?
        } else {
            copy_in_root(root, "/dev/null")?
        };
        mount::attach(cover, path::open_in_root(root, &place, OFlags::PATH)?)?;
    }
    for name in READ_ONLY {
        let place = format!("/proc/{name}");
        if path::kind_in_root(root, &place).is_err() {
            continue;
        }
        let cover = copy_in_root(root, &place)?;
        mount::make_read_only(&cover)?;
        mount::attach(cover, path::open_in_root(root, &place, OFlags::PATH)?)?;
    }
    Ok(())
}
