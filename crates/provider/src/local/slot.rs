//! Slots: everything of an instance that does not depend on what it runs, made ready before it is needed. A slot has its
//! number and address, its network, its cgroups, its folder, and a shim that waits for what to run. Nothing of it outlives
//! the server unless it becomes an instance.

use super::cloner::{Cloned, Cloner};
use super::folder::{self, DOOR, EXIT, Folder, LOCK, OUT, PROCESS, Process, Record, Root};
use super::mark::{Mark, Tag};
use super::network::Network;
use super::order::Failure;
use super::subnet::Subnet;
use super::wire::{NOT_EXECUTED, READY, START_BYTES_MAX, STARTED, Start};
use super::zygote::Request;
use kiln_sys::cgroup::{Group, Limits, Trees};
use kiln_sys::netlink::Netlink;
use kiln_sys::{message, process};
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a shim may take for what takes it a fraction of a millisecond.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// How long the kernel may take to remove the interface of a namespace that ended.
const DEPARTURE_MAX: Duration = Duration::from_secs(1);
/// How long a killed shim may take to be gone.
const KILL_MAX: Duration = Duration::from_secs(5);

/// What slots are made of.
#[derive(Debug)]
pub(super) struct Host {
    pub mark: Mark,
    pub subnet: Subnet,
    pub trees: Trees,
    pub root: Root,
    pub boot: String,
    pub cloner: Cloner,
    pub numbers: Mutex<Numbers>,
    /// Interfaces on their way out, with their numbers and since when.
    departing: Mutex<Vec<(Instant, String, u32)>>,
    tags: AtomicU64,
}

/// The numbers that instances and slots have.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    pub in_use: BTreeSet<u32>,
    /// The one given last.
    pub previous: u32,
}

impl Host {
    pub(super) fn new(
        mark: Mark,
        subnet: Subnet,
        trees: Trees,
        root: Root,
        boot: String,
        cloner: Cloner,
    ) -> Self {
        let tags = AtomicU64::new(kiln_sys::clock::boot_us());
        let (numbers, departing) = Default::default();
        Self { mark, subnet, trees, root, boot, cloner, numbers, departing, tags }
    }

    /// A name that no other object of this boot has. An earlier server began at an earlier time, and did not make an
    /// object a microsecond.
    pub(super) fn tag(&self) -> Tag {
        Tag::of(self.tags.fetch_add(1, Ordering::Relaxed))
    }

    /// Takes a number that nobody has, also if the last one that had it is only just leaving.
    pub(super) fn take_number(&self) -> Result<u32, Failure> {
        // A full network is the exception: then it is worth waiting for a busy kernel.
        let end = Instant::now() + 10 * DEPARTURE_MAX;
        loop {
            if let Some(number) = self.free_number() {
                return Ok(number);
            }
            if !self.see_off() || Instant::now() >= end {
                let retry = || Failure::retry("allocate an address", format!("{} is full", self.subnet));
                return self.free_number().ok_or_else(retry);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn free_number(&self) -> Option<u32> {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let Numbers { in_use, previous } = &mut *numbers;
        *previous = self.subnet.next(*previous, |number| in_use.contains(&number))?;
        in_use.insert(*previous);
        Some(*previous)
    }

    pub(super) fn give_back(&self, number: u32) {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner).in_use.remove(&number);
    }

    /// Takes note of an interface whose namespace has ended. Its number is given back when it is gone.
    pub(super) fn depart(&self, link: String, number: u32) {
        let mut departing = self.departing.lock().unwrap_or_else(PoisonError::into_inner);
        departing.push((Instant::now(), link, number));
    }

    /// Looks after those that departed, and helps along what has been on its way for too long. Whether there are any.
    pub(super) fn see_off(&self) -> bool {
        let departing = || self.departing.lock().unwrap_or_else(PoisonError::into_inner);
        // Looked after outside of the lock: the kernel takes its time.
        let mut leaving = std::mem::take(&mut *departing());
        if leaving.is_empty() {
            return false;
        }
        let Ok(host) = Netlink::open() else {
            departing().extend(leaving);
            return true;
        };
        leaving.retain(|(since, link, number)| {
            let found = match host.find(link) {
                Err(error) if error.errno() == libc::ENODEV => None,
                Err(_) => return true,
                Ok(found) => Some(found),
            };
            // What somebody keeps alive all the same is cut off.
            let helped = found
                .as_ref()
                .is_some_and(|found| since.elapsed() >= DEPARTURE_MAX && host.delete(found.index).is_ok());
            let is_gone = found.is_none() || helped;
            if is_gone {
                self.give_back(*number);
            }
            !is_gone
        });
        let mut departing = departing();
        departing.extend(leaving);
        !departing.is_empty()
    }

    /// A network with a number of its own.
    pub(super) fn network(&self) -> Result<Network, Failure> {
        let number = self.take_number()?;
        self.network_of(number).inspect_err(|_| self.give_back(number))
    }

    /// A network for a number that is taken.
    pub(super) fn network_of(&self, number: u32) -> Result<Network, Failure> {
        Network::make(&self.mark, self.subnet, number, self.tag())
    }
}

/// Files that a shim writes, opened before it exists.
#[derive(Debug)]
struct Files {
    lock: File,
    out: [File; 2],
    exit: File,
    door: OwnedFd,
    oom: Option<File>,
}

/// One that is ready.
#[derive(Debug)]
pub(super) struct Slot {
    pub network: Network,
    pub process: Process,
    pub pidfd: OwnedFd,
    /// The user namespace of the shim.
    pub users: OwnedFd,
    group: Group,
    folder: PathBuf,
    files: Files,
    socket: OwnedFd,
}

/// What becomes of a program that was to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begun {
    Runs,
    /// It could not be executed; `exit.json` says why.
    Ended,
}

impl Slot {
    /// Makes one on a network. If that fails nothing is left of it, and the number is still taken.
    pub(super) fn make(host: &Host, network: Network) -> Result<Self, Failure> {
        let tag = network.tag.clone();
        let group = host.trees.create(&host.mark.cgroup(), tag.as_str())?;
        // Only to have limits: the first one of a kind on a host takes the kernel a while, a change does not.
        group.limit(&host.trees, Limits { cpu_milli: 1_000_000, memory_bytes: 1 << 40, pids: 1000 })?;
        let folder = host.root.spare_of(&tag);
        let made = Self::fill(host, network, group.clone(), folder.clone());
        if made.is_err() {
            sweep_up(&group, &folder);
        }
        made
    }

    fn fill(host: &Host, network: Network, group: Group, folder: PathBuf) -> Result<Self, Failure> {
        let once = || Self::clone_shim(host, &network, &group);
        // The zygote may have been killed since the last one; what it may have cloned for that waits on another socket.
        let cloned = once().or_else(|failure| if failure.permanent { Err(failure) } else { once() })?;
        let (socket, Cloned { pid, pidfd, users }) = cloned;
        // The one reason for not finding it is that it is dead.
        let started = process::start_time(pid)
            .map_err(|error| Failure::retry("find pid 1", error.source.to_string()))?;
        let process = Process { pid, started, boot: host.boot.clone() };
        let files = make_files(&folder, &process, &group);
        let files = files.map_err(|error| Failure::io("make the instance's folder", &error))?;
        let slot = Self { network, process, pidfd, users, group, folder, files, socket };
        match slot.hear()?.as_slice() {
            [READY] => Ok(slot),
            other => Err(failure_of(other)),
        }
    }

    /// A shim, and the socket on which nobody but it listens.
    fn clone_shim(host: &Host, network: &Network, group: &Group) -> Result<(OwnedFd, Cloned), Failure> {
        let (doors, birthplace) = (group.doors(false)?, group.birthplace()?);
        let (socket, theirs) = message::pair().map_err(|error| Failure::io("make a socket", &error))?;
        let mut with: Vec<BorrowedFd<'_>> = vec![theirs.as_fd(), network.namespace.as_fd()];
        with.extend(birthplace.as_ref().map(AsFd::as_fd));
        with.extend(doors.iter().map(AsFd::as_fd));
        let request = Request { number: network.number, has_birthplace: birthplace.is_some() };
        Ok((socket, host.cloner.clone_shim(request, &with)?))
    }

    /// The next thing that the shim says.
    fn hear(&self) -> Result<Vec<u8>, Failure> {
        if !process::wait_readable(self.socket.as_fd(), Some(ANSWER_MAX))? {
            return Err(Failure::retry("start the instance", "pid 1 does not answer"));
        }
        let mut buffer = vec![0; 16 * 1024];
        let received = message::receive(&self.socket, &mut buffer);
        let (length, _) = received.map_err(|error| Failure::io("hear from pid 1", &error))?;
        buffer.truncate(length);
        Ok(buffer)
    }

    /// Whether its shim still waits.
    pub(super) fn is_alive(&self) -> bool {
        process::wait_readable(self.pidfd.as_fd(), Some(Duration::ZERO)).is_ok_and(|has_ended| !has_ended)
    }

    /// Makes it the instance of a record: the folder gets its name, and the groups get their limits.
    pub(super) fn move_in(&self, host: &Host, folder: &Folder, record: &Record) -> Result<(), Failure> {
        let resources = record.spec.resources;
        let limits = Limits {
            cpu_milli: resources.cpu_milli,
            memory_bytes: resources.memory_bytes,
            pids: resources.pids,
        };
        self.group.limit(&host.trees, limits)?;
        folder.move_in(&self.folder, record).map_err(|error| Failure::io("write `spec.json`", &error))
    }

    /// Has the program started.
    pub(super) fn begin(
        &self,
        start: &Start<'_>,
        root: OwnedFd,
        secrets: Option<OwnedFd>,
    ) -> Result<Begun, Failure> {
        let bytes = start.encode();
        if bytes.len() > START_BYTES_MAX {
            let detail = format!(
                "its command and environment have {} bytes, at most {START_BYTES_MAX} are possible",
                bytes.len()
            );
            return Err(Failure::permanent("start the program", detail));
        }
        let Files { lock, out: [a, b], exit, door, oom } = &self.files;
        let mut with = vec![root.as_fd(), a.as_fd(), b.as_fd(), exit.as_fd(), lock.as_fd(), door.as_fd()];
        with.extend(secrets.as_ref().map(AsFd::as_fd));
        with.extend(oom.as_ref().map(AsFd::as_fd));
        message::send(&self.socket, &[&bytes], &with)
            .map_err(|error| Failure::io("start the program", &error))?;
        drop((root, secrets));
        match self.hear()?.as_slice() {
            [STARTED] => Ok(Begun::Runs),
            [NOT_EXECUTED] => Ok(Begun::Ended),
            other => Err(failure_of(other)),
        }
    }

    /// What is left to look at when it runs: the process, and the socket that says when the program has ended. Everything
    /// else is the shim's alone from here on.
    pub(super) fn let_go(self) -> (Process, OwnedFd, OwnedFd) {
        (self.process, self.pidfd, self.socket)
    }

    /// Ends one that no instance has become. Its number can be given back afterwards.
    pub(super) fn discard(self) {
        let Self { pidfd, group, folder, .. } = self;
        // Gone already is as good.
        let _ = process::signal(pidfd.as_fd(), libc::SIGKILL);
        let _ = process::wait_readable(pidfd.as_fd(), Some(KILL_MAX));
        sweep_up(&group, &folder);
    }
}

/// Best effort: what stays carries the mark and has no owner, and goes when the next server opens.
fn sweep_up(group: &Group, folder: &Path) {
    if group.kill(KILL_MAX).is_ok_and(|is_empty| is_empty) {
        let _ = group.remove();
    }
    let _ = std::fs::remove_dir_all(folder);
}

fn failure_of(bytes: &[u8]) -> Failure {
    serde_json::from_slice(bytes).unwrap_or_else(|_| Failure::retry("start the program", "pid 1 was killed"))
}

fn make_files(folder: &Path, process: &Process, group: &Group) -> io::Result<Files> {
    std::fs::create_dir(folder)?;
    let open = |name: &str| {
        let mut options = File::options();
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o640);
        options.write(true).create_new(true).open(folder.join(name))
    };
    let lock = open(LOCK)?;
    // Kept by the shim, so that it is held as long as anything of the instance lives.
    flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    let home = File::open(folder)?;
    folder::write_new(&home, PROCESS, process)?;
    let door = message::bind_in(&home, DOOR)?;
    let oom = group.oom_file().map_err(|error| error.source)?;
    Ok(Files { lock, out: [open(OUT[0])?, open(OUT[1])?], exit: open(EXIT)?, door, oom })
}
