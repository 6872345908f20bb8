//! A seed: a process that has joined the control groups and the network of an instance to be, and clones the instance's
//! pid 1 when it is needed. Joining a v1 group waits for all processors, which takes the kernel some milliseconds; who is
//! cloned by a member is one from the start.
//!
//! ```text
//! cloned by the zygote ─▶ joins its cgroups, enters its network ─ "ready" ─▶ waits for the shim's socket, or ends with the
//!                         server ─▶ clone3 ─▶ shim (shim.rs), a child of the zygote ─ [pid; pidfd, user namespace] ─▶ ends
//! ```

use super::order::Failure;
use super::rootfs::Templates;
use super::shim::{self, Kit};
use super::subnet::{IDS_EACH, ids_of};
use super::wire::READY;
use super::zygote::refuse;
use kiln_sys::message::{self, Descriptors};
use kiln_sys::process::{self, Child, Namespaces};
use kiln_sys::{CallError, Context, namespace, seal};
use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

const NAME: &std::ffi::CStr = c"kiln-seed";
/// v1 cgroups of one instance: memory, cpu, pids.
const DOORS_MAX: usize = 3;

/// Where it belongs.
pub(super) struct Place {
    /// The number that the ids of its instance come from.
    pub number: u32,
    pub net: OwnedFd,
    /// The files for joining its v1 cgroups.
    pub doors: Descriptors,
}

/// The life of a seed. The status is seen by nobody.
pub(super) fn main(kit: &mut Kit, templates: &Templates, socket: OwnedFd, place: Place) -> i32 {
    process::set_name(NAME);
    let number = place.number;
    let told = match settle(&socket, place) {
        Ok(()) => message::send(&socket, &[&[READY]], &[]),
        Err(error) => refuse(&socket, &error.into()),
    };
    // What it waits for is one byte, and the socket of the shim.
    let heard = told.and_then(|()| message::receive(&socket, &mut [0]));
    let Ok((1, mut descriptors)) = heard else { return 1 };
    let Some(theirs) = descriptors.next() else { return 1 };
    let cloned = clone_shim(kit, templates, number, theirs);
    let told = match &cloned {
        Ok((child, users)) => {
            message::send(&socket, &[&child.pid().to_ne_bytes()], &[child.pidfd(), users.as_fd()])
        }
        Err(failure) => {
            seal::lift();
            refuse(&socket, failure)
        }
    };
    i32::from(told.is_err())
}

fn settle(socket: &OwnedFd, place: Place) -> Result<(), CallError> {
    let Place { net, mut doors, .. } = place;
    let doors: [Option<File>; DOORS_MAX] = std::array::from_fn(|_| doors.next().map(File::from));
    let [a, b, c] = doors.each_ref().map(|door| door.as_ref().map_or(socket.as_fd(), |door| door.as_fd()));
    process::close_all_but(&[socket.as_fd(), net.as_fd(), a, b, c])?;
    for mut door in doors.into_iter().flatten() {
        door.write_all(b"0").context("join", "a cgroup")?;
    }
    // Owned by the host's user namespace: no process of the instance can ever change its network.
    namespace::enter(&net, Namespaces::NET)
}

fn clone_shim(
    kit: &mut Kit,
    templates: &Templates,
    number: u32,
    socket: OwnedFd,
) -> Result<(Child, OwnedFd), Failure> {
    let (go_read, mut go_write) = io::pipe().context("pipe", "a shim's start")?;
    let ids = ids_of(number);
    let namespaces =
        Namespaces::USER | Namespaces::PID | Namespaces::MOUNT | Namespaces::UTS | Namespaces::IPC;
    // A child of the zygote, which reaps it.
    let clone = process::Clone::new(namespaces).owned_by(ids).sibling();
    let go = Go(go_read);
    let child = clone.spawn(|| shim::main(kit, templates, socket, go))?;
    let ready = namespace::map_ids(child.pid(), ids, IDS_EACH)
        .and_then(|()| namespace::user_of(child.pid()))
        .and_then(|users| {
            go_write.write_all(b"g").context("write", "a shim's start")?;
            Ok(users)
        });
    match ready {
        Ok(users) => Ok((child, users)),
        Err(error) => {
            let was_killed = process::wait_readable(child.pidfd(), Some(Duration::ZERO)).unwrap_or(false);
            let _ = process::signal(child.pidfd(), libc::SIGKILL);
            match was_killed {
                true => Err(Failure::retry("clone a shim", "it was killed")),
                false => Err(error.into()),
            }
        }
    }
}

/// What a shim waits for: until its ids are mapped it is nobody.
pub(super) struct Go(PipeReader);

impl Go {
    /// The descriptor, for keeping it open.
    pub(super) fn file(&self) -> &PipeReader {
        &self.0
    }

    /// False: the seed is dead, and nobody would ever find this process again.
    pub(super) fn wait(mut self) -> bool {
        self.0.read_exact(&mut [0]).is_ok()
    }
}
