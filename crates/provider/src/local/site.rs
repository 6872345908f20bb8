//! Sites: where an instance is going to live. A site has a number and an address, a network, control groups, a folder, and a
//! seed that clones the instance's pid 1. Nothing of it outlives the server unless it becomes a slot and then an instance.

use super::folder::{DOOR, EXIT, LOCK, OUT, PROCESS, SPEC};
use super::network::Network;
use super::order::Failure;
use super::slot::Host;
use super::wire::READY;
use super::zygote::Request;
use kiln_sys::cgroup::{Group, Limits};
use kiln_sys::{message, process};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a seed or a shim may take for what takes it a few milliseconds.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(30);
/// How long what was killed may take to be gone.
pub(super) const KILL_MAX: Duration = Duration::from_secs(5);

/// Files that a shim writes, opened before it exists.
#[derive(Debug)]
pub(super) struct Files {
    /// Empty until it is known which instance it is.
    pub spec: File,
    /// Empty until there is a pid 1.
    pub process: File,
    pub lock: File,
    pub out: [File; 2],
    pub exit: File,
    pub door: OwnedFd,
    pub oom: Option<File>,
}

/// One that is ready.
#[derive(Debug)]
pub(super) struct Site {
    pub network: Network,
    pub group: Group,
    pub folder: PathBuf,
    pub files: Files,
    seed: OwnedFd,
    /// Where the seed listens.
    socket: OwnedFd,
}

/// A process that a seed cloned.
#[derive(Debug)]
pub(super) struct Cloned {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub users: OwnedFd,
    /// On which nobody but it listens.
    pub socket: OwnedFd,
}

impl Site {
    /// Makes one on a network. If that fails nothing is left of it, and the number is still taken.
    pub(super) fn make(host: &Host, network: Network) -> Result<Self, Failure> {
        let group = host.trees.create(&host.mark.cgroup(), network.tag.as_str())?;
        // Only to have limits: the first one of a kind on a host takes the kernel a while, a change does not.
        group.limit(&host.trees, Limits { cpu_milli: 1_000_000, memory_bytes: 1 << 40, pids: 1000 })?;
        let folder = host.root.spare_of(&network.tag);
        let once = || sow(host, &network, &group);
        // The zygote may have been killed since the last one; what it may have cloned for that waits on another socket.
        let sown = once().or_else(|failure| if failure.permanent { Err(failure) } else { once() });
        let made = sown.and_then(|sown| {
            let files = make_files(&folder, &group);
            Ok((sown, files.map_err(|error| Failure::io("make the instance's folder", &error))?))
        });
        match made {
            Ok(((seed, socket), files)) => Ok(Self { network, group, folder, files, seed, socket }),
            Err(failure) => {
                clear(&group, &folder);
                Err(failure)
            }
        }
    }

    /// Whether its seed still waits.
    pub(super) fn is_alive(&self) -> bool {
        is_alive(&self.seed)
    }

    /// Has its pid 1 cloned, which ends the seed.
    pub(super) fn clone_shim(&self) -> Result<Cloned, Failure> {
        let (socket, theirs) = message::pair().map_err(|error| Failure::io("make a socket", &error))?;
        message::send(&self.socket, &[b"c"], &[theirs.as_fd()])
            .map_err(|error| Failure::io("ask the seed", &error))?;
        let (bytes, mut descriptors) = hear(&self.socket)?;
        match (bytes.as_slice().try_into().map(i32::from_ne_bytes), descriptors.next(), descriptors.next()) {
            (Ok(pid), Some(pidfd), Some(users)) => Ok(Cloned { pid, pidfd, users, socket }),
            _ => Err(failure_of(&bytes)),
        }
    }

    /// Ends one that is not needed. Its number can be given back afterwards.
    pub(super) fn discard(self) {
        end(&self.seed);
        clear(&self.group, &self.folder);
    }
}

/// A seed that is where it belongs, and the socket on which nobody but it listens.
fn sow(host: &Host, network: &Network, group: &Group) -> Result<(OwnedFd, OwnedFd), Failure> {
    let (doors, birthplace) = (group.doors(false)?, group.birthplace()?);
    let (socket, theirs) = message::pair().map_err(|error| Failure::io("make a socket", &error))?;
    let mut with: Vec<BorrowedFd<'_>> = vec![theirs.as_fd(), network.namespace.as_fd()];
    with.extend(birthplace.as_ref().map(AsFd::as_fd));
    with.extend(doors.iter().map(AsFd::as_fd));
    let request = Request { number: network.number, has_birthplace: birthplace.is_some() };
    let seed = host.cloner.clone_seed(request, &with)?;
    drop(theirs);
    match hear(&socket)?.0.as_slice() {
        [READY] => Ok((seed, socket)),
        other => Err(failure_of(other)),
    }
}

/// The next thing that is said on a socket.
pub(super) fn hear(socket: &OwnedFd) -> Result<(Vec<u8>, message::Descriptors), Failure> {
    if !process::wait_readable(socket.as_fd(), Some(ANSWER_MAX))? {
        return Err(Failure::retry("start the instance", "pid 1 does not answer"));
    }
    let mut buffer = vec![0; 16 * 1024];
    let received = message::receive(socket, &mut buffer);
    let (length, descriptors) = received.map_err(|error| Failure::io("hear from pid 1", &error))?;
    buffer.truncate(length);
    Ok((buffer, descriptors))
}

pub(super) fn failure_of(bytes: &[u8]) -> Failure {
    serde_json::from_slice(bytes).unwrap_or_else(|_| Failure::retry("start the program", "pid 1 was killed"))
}

pub(super) fn is_alive(pidfd: &OwnedFd) -> bool {
    process::wait_readable(pidfd.as_fd(), Some(Duration::ZERO)).is_ok_and(|has_ended| !has_ended)
}

/// Kills a process and waits until it is gone. Gone already is as good.
pub(super) fn end(pidfd: &OwnedFd) {
    let _ = process::signal(pidfd.as_fd(), libc::SIGKILL);
    let _ = process::wait_readable(pidfd.as_fd(), Some(KILL_MAX));
}

/// Best effort: what stays carries the mark and has no owner, and goes when the next server opens.
pub(super) fn clear(group: &Group, folder: &Path) {
    if group.kill(KILL_MAX).is_ok_and(|is_empty| is_empty) {
        let _ = group.remove();
    }
    let _ = std::fs::remove_dir_all(folder);
}

fn make_files(folder: &Path, group: &Group) -> io::Result<Files> {
    std::fs::create_dir(folder)?;
    let open = |name: &str| {
        let mut options = File::options();
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o640);
        options.write(true).create_new(true).open(folder.join(name))
    };
    let (spec, lock) = (open(SPEC)?, open(LOCK)?);
    // Kept by the shim, so that it is held as long as anything of the instance lives.
    flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    let home = File::open(folder)?;
    let door = message::bind_in(&home, DOOR)?;
    let oom = group.oom_file().map_err(|error| error.source)?;
    let process = open(PROCESS)?;
    Ok(Files { spec, process, lock, out: [open(OUT[0])?, open(OUT[1])?], exit: open(EXIT)?, door, oom })
}
