//! An instance's folder, `STATE/instances/ID/`: what is written before, while and after it lives.
//!
//! | file | written by | means |
//! |---|---|---|
//! | `spec.json` | server, before anything exists | [`Record`]: the specification, address and id range. Never changes |
//! | `fence.json` | server | the highest fence seen for this id |
//! | `lock` | supervisor and pid 1 hold it (`flock`), a server while it clears or buries | somebody is at work or alive |
//! | `door` | pid 1 listens on it | a socket: a restarted server connects, sees which process listens, and is told of the end |
//! | `process.json` | supervisor, before the program starts | [`Process`]: pid 1 as the host sees it |
//! | `out.0`, `out.1` | pid 1 | the black box, `kiln_model::frame` |
//! | `exit.json` | pid 1 | [`Exit`]; empty while it runs |
//! | `machine.sock` | watcher of a virtual machine | where checks are asked for |
//! | `gone.json` | server, after everything else is gone | [`Gone`], the tombstone |
//!
//! `spec.json`, the black box, `exit.json` and the tombstone stay.

use super::mark::{Mark, Tag};
use kiln_model::{ExitReason, Fence, InstanceId, InstanceSpec, Wall};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, fsync};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a supervisor of an earlier server may take until this one gives up waiting for it. More than its own
/// deadline.
const SETTLE: Duration = Duration::from_secs(35);

pub(crate) const SPEC: &str = "spec.json";
pub(crate) const FENCE: &str = "fence.json";
pub(crate) const LOCK: &str = "lock";
pub(crate) const PROCESS: &str = "process.json";
pub(crate) const OUT: [&str; 2] = ["out.0", "out.1"];
pub(crate) const DOOR: &str = "door";
pub(crate) const EXIT: &str = "exit.json";
pub(crate) const GONE: &str = "gone.json";

/// What is known of an instance before anything of it exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// What it is.
    #[serde(flatten)]
    pub spec: InstanceSpec,
    /// Its address.
    pub address: Ipv4Addr,
    /// The number that its address and ids come from.
    pub number: u32,
    /// The fence that it came with.
    pub fence: Fence,
    /// What its host objects are named by; none for one of an older server, whose id names them, and for one of which
    /// nothing was ever made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<Tag>,
}

impl Record {
    /// The name of its cgroup, below the mark's.
    pub(crate) fn group(&self) -> &str {
        self.tag.as_ref().map_or(self.spec.id.as_str(), Tag::as_str)
    }

    /// The name of the host end of its interface.
    pub(crate) fn link(&self, mark: &Mark) -> String {
        mark.link(&self.tag.clone().unwrap_or_else(|| Tag::of_id(&self.spec.id)))
    }
}

/// Pid 1 of an instance, in a form that survives pid reuse and reboots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// Its number on the host.
    pub pid: i32,
    /// When it started, in ticks since boot.
    pub started: u64,
    /// Of which boot.
    pub boot: String,
}

/// How an instance ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    /// When.
    pub at: Wall,
    /// How.
    #[serde(flatten)]
    pub reason: ExitReason,
}

/// That an instance is gone for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Gone {
    /// Who said so.
    pub fence: Fence,
    /// When.
    pub at: Wall,
}

/// What the names of folders begin with that are made ready for instances; no id begins so.
const SPARE: &str = ".spare-";

fn temporary(name: &str) -> String {
    format!(".{name}.new")
}

/// Writes a file so that after a crash it is there as a whole or not at all, and makes its name durable.
pub(crate) fn durable(directory: impl AsFd, name: &str, value: &impl Serialize) -> io::Result<()> {
    let temporary = temporary(name);
    write_new(&directory, &temporary, value)?.sync_all()?;
    rustix::fs::renameat(&directory, &temporary, &directory, name)?;
    fsync(&directory)?;
    Ok(())
}

/// Writes a file that nobody looks at yet.
pub(crate) fn write_new(directory: impl AsFd, name: &str, value: &impl Serialize) -> io::Result<File> {
    let bytes = serde_json::to_vec(value).map_err(io::Error::other)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let mut file: File = rustix::fs::openat(&directory, name, flags, Mode::from_raw_mode(0o640))?.into();
    file.write_all(&bytes)?;
    Ok(file)
}

/// Writes into a file that is empty, and that nobody looks at yet.
pub(crate) fn fill(mut file: &File, value: &impl Serialize) -> io::Result<()> {
    file.write_all(&serde_json::to_vec(value).map_err(io::Error::other)?)
}

/// The folder of all instances.
#[derive(Debug, Clone)]
pub(crate) struct Root(pub(crate) PathBuf);

impl Root {
    /// Below this state folder.
    pub(crate) fn of(state: &Path) -> Self {
        Self(state.join("instances"))
    }

    /// The folder of one of them.
    pub(crate) fn folder(&self, id: &InstanceId) -> Folder {
        Folder { root: self.0.clone(), path: self.0.join(id.as_str()) }
    }

    /// The folders that were made ready for instances, of this server or of an earlier one.
    pub(crate) fn spare(&self) -> io::Result<Vec<PathBuf>> {
        let mut folders = vec![];
        for entry in std::fs::read_dir(&self.0)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(SPARE) {
                folders.push(entry.path());
            }
        }
        Ok(folders)
    }

    /// Where one is made ready.
    pub(crate) fn spare_of(&self, tag: &Tag) -> PathBuf {
        self.0.join(format!("{SPARE}{}", tag.as_str()))
    }

    /// The ids that have a folder.
    pub(crate) fn ids(&self) -> io::Result<Vec<InstanceId>> {
        let mut ids = vec![];
        for entry in std::fs::read_dir(&self.0)? {
            ids.extend(entry?.file_name().to_string_lossy().parse::<InstanceId>());
        }
        Ok(ids)
    }
}

/// The folder of one instance.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    root: PathBuf,
    pub(crate) path: PathBuf,
}

impl Folder {
    /// The folder at this path.
    pub(crate) fn at(path: &Path) -> Self {
        Self { root: path.parent().unwrap_or(path).to_owned(), path: path.to_owned() }
    }

    /// Makes it, durably.
    pub(crate) fn create(&self) -> io::Result<()> {
        match std::fs::create_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
            Ok(()) => File::open(&self.root)?.sync_all(),
        }
    }

    /// Takes over what was made ready in `spare`, which has everything but the record in its file `spec`. It appears at once,
    /// with the record and the process, or, if the folder is there from an earlier try, file by file, the process last.
    ///
    /// Nothing here is made durable: no instance outlives its host, and after the death of a process all of it is there.
    pub(crate) fn move_in(&self, spare: &Path, spec: &File, record: &Record) -> io::Result<()> {
        fill(spec, record)?;
        match std::fs::rename(spare, &self.path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            other => return other,
        }
        for name in [SPEC, LOCK, OUT[0], OUT[1], EXIT, DOOR, PROCESS] {
            std::fs::rename(spare.join(name), self.path.join(name))?;
        }
        std::fs::remove_dir(spare)
    }

    /// Writes one of its files durably.
    pub(crate) fn write(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        durable(File::open(&self.path)?, name, value)
    }

    /// Reads one of its files; none if it is missing, empty or damaged.
    pub(crate) fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&std::fs::read(self.path.join(name)).ok()?).ok()
    }

    /// Connects to pid 1, which is to be the process that was recorded.
    pub(crate) fn knock(&self, process: &Process) -> Option<OwnedFd> {
        let (door, peer) = kiln_sys::message::connect_in(File::open(&self.path).ok()?, DOOR).ok()?;
        (peer == process.pid).then_some(door)
    }

    /// Whether a supervisor or pid 1 holds the lock.
    pub(crate) fn is_locked(&self) -> bool {
        File::open(self.path.join(LOCK)).is_ok_and(|file| {
            flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
        })
    }

    /// Waits while a supervisor is at work that nobody can find yet: it has the lock, and no process is written down.
    pub(crate) fn wait_for_others(&self) {
        let end = Instant::now() + SETTLE;
        while self.is_locked() && !self.path.join(PROCESS).exists() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Takes the lock, and the folder with it: as long as it is held no supervisor can begin, however late it comes. None:
    /// somebody else has it.
    pub(crate) fn claim(&self) -> io::Result<Option<File>> {
        self.create()?;
        let file = File::options().write(true).create(true).truncate(false).open(self.path.join(LOCK))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a supervisor that holds the lock must not begin: the instance was started or ended before it came.
    pub(crate) fn is_spent(&self) -> bool {
        let has_ended = std::fs::metadata(self.path.join(EXIT)).is_ok_and(|exit| exit.len() > 0);
        has_ended || [GONE, PROCESS].iter().any(|name| self.path.join(name).exists())
    }

    /// Removes one of its files; fine if it is not there.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Writes the tombstone and leaves only what stays. The tombstone first: from there on it is gone. The caller holds
    /// the lock.
    pub(crate) fn bury(&self, gone: &Gone) -> io::Result<()> {
        self.write(GONE, gone)?;
        self.strip()
    }

    /// Removes what does not stay beside a tombstone, halves of files included.
    pub(crate) fn strip(&self) -> io::Result<()> {
        let halves = [SPEC, FENCE, PROCESS, EXIT, GONE].map(temporary);
        let halves = halves.iter().map(String::as_str);
        [FENCE, LOCK, DOOR, PROCESS, crate::vm::ask::SOCKET]
            .into_iter()
            .chain(halves)
            .try_for_each(|name| self.remove(name))
    }
}
