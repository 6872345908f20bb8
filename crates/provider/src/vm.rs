//! `isolation = "vm"`: an instance in a virtual machine with a kernel of its own, under QEMU. The books (fences, tombstones,
//! numbers, addresses, folders) are those of [`crate::local`]; only what runs differs.
//!
//! ```text
//! server ── posix_spawn ─▶ `internal machine DIR`: cgroups, tap on the bridge, QEMU's file system      (supervise.rs, jail.rs)
//!                             ├─ clone3 ─▶ watcher, pid 1 of namespaces without anything in them        (watch.rs)
//!                             │               ├─ QEMU, as a user without rights                        (child.rs)
//!                             │               │     └─ kernel, init of `crates/sys/guest`, the service
//!                             │               └─ speaks to the guest's init by a virtio-serial port    (guest.rs)
//!                             └─ passes on what the watcher reports, and ends; the watcher lives on
//! ```
//! The watcher is to a machine what pid 1 is to a sandbox: it is the process in `process.json`, holds the lock, writes the black
//! box and `exit.json`, takes SIGTERM as "stop" and SIGQUIT as "kill". If it dies the kernel kills QEMU with its namespace.
//!
//! Nothing that comes from a guest is believed: what it says is cut into frames of bounded length, texts are cut and cleaned, and
//! whoever breaks the protocol is ended.

pub(crate) mod ask;
mod child;
mod guest;
mod jail;
pub(crate) mod launch;
mod qemu;
mod records;
mod supervise;
mod watch;

pub use supervise::main;

use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use std::path::PathBuf;

/// Layers of an image that can be the root of a machine: each takes one of the machine's 24 slots.
pub(crate) const LAYERS_MAX: usize = 16;
/// What the guest's kernel and init get beside the memory of the service. They take 73 MiB (measured with 6.1); a kernel that
/// has nothing to spare when the service has used up its own memory panics.
const GUEST_BYTES: u64 = 112 << 20;
/// Of each so many bytes the guest's kernel takes one, to keep account of them (64 of each 4096).
const GUEST_SHARE: u64 = 64;
/// What QEMU takes beside the memory of the guest, most of it for translated code when it emulates. The host's limit is the
/// sum of all, so that a guest can use all of its own memory and not more.
const QEMU_BYTES: u64 = 192 << 20;
/// Processes and threads of QEMU and its watcher. What the service may have is limited inside.
const QEMU_PIDS: u32 = 256;

/// The step that fails if a guest says nothing at all in a third of the time that it has. An emulated kernel hangs now and then
/// before its init runs: seen once in about 400 boots on a host with four times as much to do as it has processors, and never
/// understood. Such a boot is tried once more.
pub(crate) const FIRST_WORD: &str = "wait for the machine's first word";

/// Kernel and initial RAM disk of machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The kernel. Everybody can read it.
    pub kernel: PathBuf,
    /// The initial RAM disk with the modules that a machine needs, and with [`kiln_sys::GUEST_INIT`] as its init. Everybody
    /// can read it.
    pub initrd: PathBuf,
}

/// Where they come from. Asked before each start of a machine, so it is fast when they are there.
pub trait MachineSource: Debug + Send + Sync {
    /// Where they lie, after they were fetched if need be. Blocks.
    ///
    /// # Errors
    /// [`MachineError`] if there are none.
    fn machine(&self) -> Result<Machine, MachineError>;
}

impl MachineSource for Machine {
    fn machine(&self) -> Result<Machine, MachineError> {
        Ok(self.clone())
    }
}

/// There is no kernel for machines.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MachineError(
    /// Why, with a hint.
    pub String,
);

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU, several times slower.
    Emulation,
}

/// Bytes of memory that the guest has, for a service that may use `memory_bytes`.
fn guest_memory(memory_bytes: u64) -> u64 {
    let wanted = memory_bytes + GUEST_BYTES + memory_bytes / GUEST_SHARE;
    wanted.next_multiple_of(1 << 20)
}

/// A text of a guest for people: cut, in one line, without what a terminal could take for commands.
fn clean(text: &str, bytes_max: usize) -> String {
    let text = &text[..text.floor_char_boundary(bytes_max)];
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(clean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_guests_are_cut_and_cleaned() {
        assert_eq!(clean("a\u{1b}[31m\nb", 100), "a [31m b");
        assert_eq!(clean("ää", 3), "ä");
    }
}
