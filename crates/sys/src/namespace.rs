//! Namespaces: leaving and entering them, uid maps, and a private network for tests.
//!
//! ```no_run
//! // First thing in a test that opens sockets, before any thread exists:
//! kiln_sys::namespace::enter_private_net()?;
//! # Ok::<(), kiln_sys::CallError>(())
//! ```

use crate::error::check;
use crate::process::{self, Clone, Namespaces};
use crate::{CallError, Context, text};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Moves the calling thread into new namespaces. A new user or pid namespace is made by [`crate::process::Clone`] instead.
pub fn unshare(namespaces: Namespaces) -> Result<(), CallError> {
    // SAFETY: takes plain flags; no flag of `Namespaces` unshares memory or descriptors.
    check(unsafe { libc::unshare(namespaces.bits() as i32) }.into())
        .context("unshare", format_args!("{namespaces:?}"))?;
    Ok(())
}

/// The calling thread gets a working directory and a root of its own, as it must before it may have a mount namespace of
/// its own.
pub fn unshare_files() -> Result<(), CallError> {
    // SAFETY: takes a plain flag; descriptors and memory stay shared.
    check(unsafe { libc::unshare(libc::CLONE_FS) }.into()).context("unshare", "working directory")?;
    Ok(())
}

/// Enters one namespace, given by its file (`/proc/PID/ns/…`), or those of a process, given by its pidfd.
pub fn enter(target: impl AsFd, namespaces: Namespaces) -> Result<(), CallError> {
    // SAFETY: takes a descriptor and plain flags.
    check(unsafe { libc::setns(target.as_fd().as_raw_fd(), namespaces.bits() as i32) }.into())
        .context("setns", format_args!("{namespaces:?}"))?;
    Ok(())
}

/// The calling thread's network namespace.
pub fn current_net() -> Result<OwnedFd, CallError> {
    const PATH: &str = "/proc/thread-self/ns/net";
    Ok(File::open(PATH).context("open", PATH)?.into())
}

/// Maps the ids 0 to `count - 1` of the user namespace of `pid` to `base` and up. Needs the host's root.
pub fn map_ids(pid: i32, base: u32, count: u32) -> Result<(), CallError> {
    let (mut room, mut path_room) = ([0; 40], [0; 40]);
    let map = text::format(&mut room, format_args!("0 {base} {count}"));
    for file in ["uid_map", "gid_map"] {
        let path = text::format(&mut path_room, format_args!("/proc/{pid}/{file}"));
        std::fs::write(path, map).context("write", path)?;
    }
    Ok(())
}

/// The user namespace of a process.
pub fn user_of(pid: i32) -> Result<OwnedFd, CallError> {
    let mut room = [0; 40];
    let path = text::format(&mut room, format_args!("/proc/{pid}/ns/user"));
    Ok(File::open(path).context("open", path)?.into())
}

/// A user namespace that nobody lives in, for an idmapped mount. The caller has one thread.
pub fn user_namespace(base: u32, count: u32) -> Result<OwnedFd, CallError> {
    // The child must not outlive a parent that is killed here: it has copies of all of its descriptors. The alarm is for
    // a parent that died before the child could ask for its own death.
    const LIFE_SECONDS: u32 = 5;
    let child = Clone::new(Namespaces::USER).spawn(|| {
        process::end_after(LIFE_SECONDS);
        if process::die_with_parent().is_err() {
            return 1;
        }
        loop {
            // SAFETY: waits for a signal; the child is killed by its parent below, or dies with it.
            unsafe { libc::pause() };
        }
    })?;
    let made = map_ids(child.pid(), base, count).and_then(|()| user_of(child.pid()));
    child.kill_and_reap()?;
    made
}

/// Moves the calling thread, and all that it starts, into a network namespace of its own with a working loopback.
/// For tests: call it first in `main`, before any other thread exists. Needs root.
pub fn enter_private_net() -> Result<(), CallError> {
    unshare(Namespaces::NET)?;
    let route = crate::netlink::Netlink::open()?;
    let loopback = route.index("lo")?;
    route.up(loopback)
}
