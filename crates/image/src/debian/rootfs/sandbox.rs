//! The room in which maintainer scripts run: namespaces of their own, a root of their own, nothing of the host.
//!
//! Two processes. The *outer* one makes the namespaces, waits until the bake has written its id maps, becomes root of
//! them and starts the *inner* one, which is pid 1 in there. The inner one builds an empty root on a tmpfs, moves into
//! it and lets go of the host's file systems before it reads the first byte of a package.

use rustix::fs::Mode;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Resource, Rlimit, Signal};
use rustix::thread::{Gid, Uid, UnshareFlags};
use std::ffi::CString;
use std::path::Path;

/// A step of the sandbox failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
pub(crate) struct SandboxError {
    step: String,
    #[source]
    source: std::io::Error,
}

pub(crate) fn step<T>(step: &str, result: Result<T, impl Into<std::io::Error>>) -> Result<T, SandboxError> {
    result.map_err(|source| SandboxError { step: step.to_owned(), source: source.into() })
}

/// Devices that scripts need; everything else of /dev does not exist in there.
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom"];
/// Links of /dev.
const DEVICE_LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];
/// Directories that every root has; what lies in them is never part of a layer.
pub(super) const MOUNT_POINTS: &[&str] = &["dev", "proc", "run", "sys", "tmp"];
/// Where the new root is mounted before it becomes the root; any directory that every host has.
const MOUNT_POINT: &str = "/tmp";

/// Directories of the root that something is mounted on while packages are installed.
pub(super) const MOUNTED: &[&str] = &["dev", "proc"];

/// What a process in a sandbox can reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// Nothing.
    None,
    /// What the host can reach.
    Host,
}

/// Moves this process (which has one thread) into new namespaces. The pid namespace holds its children only.
pub(crate) fn unshare(network: Network) -> Result<(), SandboxError> {
    let flags = UnshareFlags::NEWUSER
        | UnshareFlags::NEWNS
        | UnshareFlags::NEWPID
        | if network == Network::None { UnshareFlags::NEWNET } else { UnshareFlags::empty() }
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    #[expect(deprecated, reason = "it became `unsafe` for its FILES flag only, which is not among these")]
    let result = rustix::thread::unshare(flags);
    step("make new namespaces", result)
}

/// Becomes root of the user namespace, once its id maps are written.
pub(crate) fn become_root() -> Result<(), SandboxError> {
    step("set the groups", rustix::thread::set_thread_groups(&[]))?;
    step("set the group", rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT))?;
    step("set the user", rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT))
}

/// Asks the kernel to end this process when its parent ends.
pub(crate) fn die_with_parent() -> Result<(), SandboxError> {
    let result = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    step("set the death signal", result)
}

/// Replaces the root by an empty tmpfs of at most `bytes_max`, with /proc and a minimal /dev.
pub(super) fn enter_root(bytes_max: u64, process_bytes_max: u64) -> Result<(), SandboxError> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    step("make the mounts private", rustix::mount::mount_change("/", private))?;
    let root = Path::new(MOUNT_POINT);
    tmpfs(root, &format!("mode=755,size={bytes_max}"))?;
    // All others come with the packages.
    for dir in MOUNTED {
        step("make the root", std::fs::create_dir(root.join(dir)))?;
    }
    let dev = root.join("dev");
    tmpfs(&dev, "mode=755,size=64k")?;
    for name in DEVICES {
        let node = dev.join(name);
        step("make a device", std::fs::write(&node, ""))?;
        step(&format!("bind /dev/{name}"), rustix::mount::mount_bind(Path::new("/dev").join(name), &node))?;
    }
    for (name, target) in DEVICE_LINKS {
        step("make a device link", std::os::unix::fs::symlink(target, dev.join(name)))?;
    }
    for dir in ["shm", "pts"] {
        step("make /dev", std::fs::create_dir(dev.join(dir)))?;
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    step("mount /proc", rustix::mount::mount("proc", root.join("proc"), "proc", flags, None))?;
    step("enter the root", std::env::set_current_dir(root))?;
    step("change the root", rustix::process::pivot_root(".", "."))?;
    step("leave the host's root", rustix::mount::unmount(".", UnmountFlags::DETACH))?;
    step("enter the root", std::env::set_current_dir("/"))?;
    step("name the host", rustix::system::sethostname(b"localhost"))?;
    step("give up privileges", rustix::thread::set_no_new_privs(true))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    limit("address space", Resource::As, process_bytes_max)?;
    limit("core file", Resource::Core, 0)
}

/// Lowers a limit; one that is lower already stays.
fn limit(name: &str, resource: Resource, value: u64) -> Result<(), SandboxError> {
    let maximum = rustix::process::getrlimit(resource).maximum.map_or(value, |maximum| maximum.min(value));
    let wanted = Rlimit { current: Some(maximum), maximum: Some(maximum) };
    step(&format!("limit the {name}"), rustix::process::setrlimit(resource, wanted))
}

/// Ends every other process in here and removes /dev and /proc, so that the root holds only what is installed.
pub(super) fn leave_nothing_running() -> Result<(), SandboxError> {
    kiln_sys::process::kill_namespace();
    for path in ["/proc", "/dev"] {
        step(&format!("unmount {path}"), rustix::mount::unmount(path, UnmountFlags::DETACH))?;
    }
    Ok(())
}

fn tmpfs(target: &Path, options: &str) -> Result<(), SandboxError> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    let options = CString::new(options).unwrap_or_default();
    step("mount a tmpfs", rustix::mount::mount("tmpfs", target, "tmpfs", flags, Some(&*options)))
}
