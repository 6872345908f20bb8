//! QEMU's file system: its own program and libraries from the host, read-only, a handful of devices, kernel and initial RAM
//! disk. No /proc, no /sys, nothing that can be written. As for a sandbox, what needs the host's root is made first and the
//! rest by the watcher in its own namespaces.

use super::Accelerator;
use crate::local::order::Failure;
use kiln_sys::mount::{self, Attributes};
use kiln_sys::path;
use kiln_sys::sandbox::{self, PLACE};
use rustix::fs::{CWD, Mode, OFlags};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Where they lie.
pub(super) const KERNEL: &str = "/kernel";
pub(super) const INITRD: &str = "/initrd";
/// What programs and libraries are made of; each is a directory or a link.
const PROGRAMS: [&str; 5] = ["usr", "lib", "lib64", "bin", "sbin"];
/// What the loader looks at.
const SETTINGS: [&str; 2] = ["etc/ld.so.cache", "etc/alternatives"];

/// The mounts that only the host's root can make.
pub(super) struct Jail {
    root: OwnedFd,
    /// What is attached in it, and where.
    parts: Vec<(String, OwnedFd)>,
}

fn io(step: &str) -> impl Fn(rustix::io::Errno) -> Failure {
    let step = step.to_owned();
    move |error| Failure::io(step.clone(), &error.into())
}

impl Jail {
    /// Makes them, and moves this process into a mount namespace without the host's file systems; `scratch` is any directory of
    /// the host.
    pub(super) fn make(
        kernel: &File,
        initrd: &File,
        accelerator: Accelerator,
        scratch: &str,
    ) -> Result<Self, Failure> {
        let step = "make QEMU's root";
        let root = mount::tmpfs("755", 64 * 1024, (0, 0), Attributes::default())?;
        let mode = Mode::from_raw_mode(0o755);
        let make_directory = |name: &str| rustix::fs::mkdirat(&root, name, mode).map_err(io(step));
        let make_file = |name: &str| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
            rustix::fs::openat(&root, name, flags, Mode::from_raw_mode(0o644)).map(drop).map_err(io(step))
        };
        let mut parts = vec![];
        make_directory("etc")?;
        for name in PROGRAMS.into_iter().chain(SETTINGS) {
            let host = Path::new("/").join(name);
            let Ok(meta) = host.symlink_metadata() else { continue };
            if meta.is_symlink() {
                let target = std::fs::read_link(&host).map_err(|error| Failure::io(step, &error))?;
                rustix::fs::symlinkat(target, &root, name).map_err(io(step))?;
                continue;
            }
            if meta.is_dir() { make_directory(name) } else { make_file(name) }?;
            let copy = mount::copy_at(CWD, &host.to_string_lossy())?;
            mount::make_read_only(&copy)?;
            parts.push((format!("/{name}"), copy));
        }
        for (name, file) in [(KERNEL, kernel), (INITRD, initrd)] {
            make_file(&name[1..])?;
            let copy = mount::copy(file)?;
            mount::make_read_only(&copy)?;
            parts.push((name.to_owned(), copy));
        }
        make_directory("dev")?;
        parts.push(("/dev".to_owned(), devices(accelerator)?));
        mount::make_read_only(&root)?;
        sandbox::enter_scratch(scratch, &[])?;
        Ok(Self { root, parts })
    }

    /// Puts them together and changes into them. Called by the watcher as root of its user namespace.
    pub(super) fn enter(self) -> Result<(), Failure> {
        mount::attach_at(&self.root, PLACE)?;
        let root = mount::directory(PLACE.as_ref())?;
        for (name, part) in &self.parts {
            mount::attach(part, path::open_in_root(root.as_fd(), name, OFlags::PATH)?)?;
        }
        Ok(mount::change_root(PLACE)?)
    }
}

fn devices(accelerator: Accelerator) -> Result<OwnedFd, Failure> {
    let attributes = Attributes { no_exec: true, devices: true, ..Attributes::default() };
    let dev = mount::tmpfs("755", 64 * 1024, (0, 0), attributes)?;
    for (name, major, minor) in [("null", 1, 3), ("zero", 1, 5), ("random", 1, 8), ("urandom", 1, 9)] {
        mount::character_device(&dev, name, major, minor)?;
    }
    if accelerator == Accelerator::Kvm {
        mount::character_device(&dev, "kvm", 10, 232)?;
    }
    mount::make_read_only(&dev)?;
    Ok(dev)
}
