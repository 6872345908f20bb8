//! `absent`, and the other ways in which instances go: what a dead server left behind, and `kiln down`.

use super::Inner;
use super::folder::{EXIT, Exit, FENCE, GONE, Gone, PROCESS, Process, Record, Root, SPEC};
use super::mark::Mark;
use super::order::Failure;
use super::{policy, shim};
use crate::ProviderError;
use kiln_model::{ExitReason, Fence, InstanceId, Stop, Wall};
use kiln_sys::cgroup::{self, Choice, Group, Trees};
use kiln_sys::netlink::Netlink;
use kiln_sys::{CallError, process};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// How long a killed process may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// How long pid 1 may take to write down what a killed program said last. More than its own drain takes.
const LAST_WORDS_PATIENCE: Duration = Duration::from_secs(5);
/// How long supervisors may keep coming for an instance that is being removed.
const TAKE_PATIENCE: Duration = Duration::from_secs(35);

/// What is needed to take an instance away: no server, only the host and the folder.
struct Hands<'a> {
    trees: &'a Trees,
    mark: &'a Mark,
    root: &'a Root,
}

impl Hands<'_> {
    /// The record of an instance, if anything was ever made of it.
    fn record(&self, id: &InstanceId) -> Option<Record> {
        self.root.folder(id).read(SPEC)
    }

    fn group(&self, id: &InstanceId) -> Group {
        let record = self.record(id);
        self.trees.group(&self.mark.cgroup(), record.as_ref().map_or(id.as_str(), Record::group))
    }

    /// Ends everything that runs for the instance, and keeps out every supervisor that may still come while what this
    /// answers is held.
    fn take(&self, id: &InstanceId, stop: Option<Stop>) -> Result<File, Failure> {
        let folder = self.root.folder(id);
        let end = Instant::now() + TAKE_PATIENCE;
        loop {
            folder.wait_for_others();
            self.end(id, stop)?;
            if let Some(lock) =
                folder.claim().map_err(|error| Failure::io("lock the instance's folder", &error))?
            {
                return Ok(lock);
            }
            if Instant::now() >= end {
                return Err(Failure::retry("lock the instance's folder", "somebody else holds it"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the instance's processes, gently at first if `stop` says how.
    fn end(&self, id: &InstanceId, stop: Option<Stop>) -> Result<(), Failure> {
        let boot = kiln_sys::clock::boot_id()?;
        let process = self.root.folder(id).read::<Process>(PROCESS).filter(|p| p.boot == boot);
        if let Some(pidfd) = process.and_then(|p| process::open_same(p.pid, p.started)) {
            let pidfd = pidfd.as_fd();
            let mut ended = false;
            if let Some(stop) = stop {
                // Pid 1 passes it on as the signal that the service asked for.
                let _ = process::signal(pidfd, libc::SIGTERM);
                ended = process::wait_readable(pidfd, Some(stop.timeout.duration()))?;
                if !ended {
                    // Pid 1 kills all others, and still has a moment for their last lines and for the reason.
                    let _ = process::signal(pidfd, shim::KILL);
                    ended = process::wait_readable(pidfd, Some(LAST_WORDS_PATIENCE))?;
                }
            }
            if !ended {
                let _ = process::signal(pidfd, libc::SIGKILL);
                if !process::wait_readable(pidfd, Some(KILL_PATIENCE))? {
                    return Err(Failure::retry("end the processes", "pid 1 does not end after SIGKILL"));
                }
            }
        }
        let group = self.group(id);
        if !group.kill(KILL_PATIENCE)? {
            return Err(Failure::retry("end the processes", "the cgroup does not become empty"));
        }
        Ok(group.remove()?)
    }

    /// Removes the interface. It mostly went with its namespace already. One that is at another bridge belongs to another
    /// state folder whose mark begins alike.
    fn unplug(&self, id: &InstanceId) -> Result<(), Failure> {
        let Some(record) = self.record(id) else { return Ok(()) };
        let host = Netlink::open()?;
        let link = match host.find(&record.link(self.mark)) {
            Err(error) if error.errno() == libc::ENODEV => return Ok(()),
            found => found?,
        };
        match link.master.is_some_and(|master| host.name(master).is_ok_and(|name| self.mark.is_bridge(&name)))
        {
            true => Ok(host.delete(link.index)?),
            false => Ok(()),
        }
    }

    fn bury(&self, id: &InstanceId, fence: Fence, reason: ExitReason) -> Result<(), Failure> {
        let folder = self.root.folder(id);
        let at = Wall(kiln_sys::clock::wall_ms());
        // A kill from outside leaves an exit record without content; readers would take it for running.
        if folder.read::<Exit>(EXIT).is_none() && folder.path.join(SPEC).exists() {
            let exit = Exit { at, reason };
            folder.write(EXIT, &exit).map_err(|error| Failure::io("write `exit.json`", &error))?;
        }
        folder.bury(&Gone { fence, at }).map_err(|error| Failure::io("write `gone.json`", &error))
    }
}

/// Why an instance ended whose pid 1 did not live to tell: the kernel may have killed that for want of memory, too, if
/// the program made it the better choice.
pub(super) fn untold(group: &Group) -> ExitReason {
    match group.oom_file() {
        Ok(Some(file)) if cgroup::oom_kills(&file) > 0 => ExitReason::OutOfMemory,
        _ => ExitReason::Unknown,
    }
}

impl Inner {
    fn hands(&self) -> Hands<'_> {
        Hands { trees: &self.host.trees, mark: &self.host.mark, root: &self.host.root }
    }

    pub(super) fn absent(&self, fence: Fence, id: &InstanceId) -> Result<(), ProviderError> {
        let _at_work = self.begin_work(id)?;
        let work = self.work(id);
        let _work = work.lock().unwrap_or_else(PoisonError::into_inner);
        self.admit(fence, id)?;
        if self.books().gone.contains_key(id) {
            return Ok(());
        }
        self.raise(fence, id)?;
        let record = self.books().entries.get(id).map(|entry| entry.record.clone());
        let stop = record.as_ref().map(|record| record.spec.stop);
        let hands = self.hands();
        let gone = (|| {
            let reason = untold(&hands.group(id));
            let _lock = hands.take(id, stop)?;
            if let Some(record) = &record {
                self.policy()?.forget(record)?;
            }
            // The interface goes with its namespace, which the kernel removes a little later; the pool sees to that.
            hands.bury(id, fence, reason)
        })();
        gone.map_err(|failure| failure.of(id))?;
        let mut books = self.books();
        let entry = books.entries.remove(id);
        books.gone.insert(id.clone(), fence);
        drop(books);
        if let Some(entry) = entry {
            // Once more: a filter that was made anew meanwhile was made with it. What fails here was done above.
            let _filtering = self.filtering.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = self.policy().and_then(|policy| policy.forget(&entry.record));
            self.host.depart(entry.record.link(&self.host.mark), entry.record.number);
        }
        self.changed.notify_one();
        Ok(())
    }

    /// Removes what is left of an earlier try to start an instance.
    pub(super) fn clear(&self, id: &InstanceId) -> Result<(), Failure> {
        let _lock = self.hands().take(id, None)?;
        let removed = self.host.root.folder(id).remove(PROCESS);
        removed.map_err(|error| Failure::io("remove `process.json`", &error))?;
        self.hands().unplug(id)
    }

    /// Removes groups and interfaces that carry our mark and that no folder owns.
    pub(super) fn scavenge(&self) -> Result<(), CallError> {
        let live: Vec<Arc<Record>> =
            self.books().entries.values().map(|entry| entry.record.clone()).collect();
        scavenge(&self.host.trees, &self.host.mark, &live)
    }
}

/// Removes the groups and interfaces that carry the mark and belong to none of the `live`.
fn scavenge(trees: &Trees, mark: &Mark, live: &[Arc<Record>]) -> Result<(), CallError> {
    let groups: BTreeSet<&str> = live.iter().map(|record| record.group()).collect();
    for name in trees.children(&mark.cgroup()) {
        if !groups.contains(name.as_str()) {
            let group = trees.group(&mark.cgroup(), &name);
            group.kill(KILL_PATIENCE)?;
            group.remove()?;
        }
    }
    let host = Netlink::open()?;
    let names: BTreeSet<String> = live.iter().map(|record| record.link(mark)).collect();
    for link in mark.own_links(&host.links()?) {
        if !names.contains(&link.name) && !mark.is_bridge(&link.name) {
            host.delete(link.index)?;
        }
    }
    Ok(())
}

/// Why a sweep did not remove everything. It may be repeated.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The state folder could not be read.
    #[error("cannot read the instances in `{path}`")]
    State {
        /// The path.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// An instance stays.
    #[error("cannot remove `{id}`: {step}: {detail}")]
    Instance {
        /// Which.
        id: InstanceId,
        /// What failed.
        step: String,
        /// Why.
        detail: String,
    },
    /// A group, interface or bridge stays.
    #[error("cannot remove what instances left on the host")]
    Host(#[source] CallError),
}

/// Ends and removes every instance of a state folder, its groups, its interfaces and its bridge; no server may run on
/// it. Black boxes and tombstones stay. A state folder that does not exist is fine. Blocks until the slowest instance
/// has ended; they are asked to end all at once.
pub fn sweep(state: &Path) -> Result<(), SweepError> {
    let Ok(state) = state.canonicalize() else { return Ok(()) };
    let (root, mark) = (Root::of(&state), Mark::of(&state));
    let trees = Trees::detect(Choice::Auto).map_err(SweepError::Host)?;
    let hands = Hands { trees: &trees, mark: &mark, root: &root };
    let failed = |source| SweepError::State { path: root.0.display().to_string(), source };
    let ids = if root.0.exists() { root.ids().map_err(failed)? } else { vec![] };
    let removed = std::thread::scope(|scope| {
        let threads: Vec<_> = ids.iter().map(|id| scope.spawn(|| remove(&hands, id))).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(removed) => removed,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    });
    clean_host(&trees, &mark, &root)?;
    // Told last: an instance that ended and cannot be written down, as on a full disk, keeps nothing on the host.
    removed
}

/// Removes what instances left on the host, and what they shared.
fn clean_host(trees: &Trees, mark: &Mark, root: &Root) -> Result<(), SweepError> {
    scavenge(trees, mark, &[]).map_err(SweepError::Host)?;
    trees.remove_parent(&mark.cgroup()).map_err(SweepError::Host)?;
    let host = Netlink::open().map_err(SweepError::Host)?;
    for link in host.links().map_err(SweepError::Host)? {
        if mark.is_bridge(&link.name) {
            host.delete(link.index).map_err(SweepError::Host)?;
        }
    }
    // Last: as long as there is a bridge somebody may be behind it.
    policy::remove(mark).map_err(SweepError::Host)?;
    for folder in root.spare().unwrap_or_default() {
        let failed = |source| SweepError::State { path: folder.display().to_string(), source };
        std::fs::remove_dir_all(&folder).map_err(failed)?;
    }
    Ok(())
}

fn remove(hands: &Hands<'_>, id: &InstanceId) -> Result<(), SweepError> {
    let folder = hands.root.folder(id);
    if folder.read::<Gone>(GONE).is_some() {
        return Ok(());
    }
    let record = folder.read::<Record>(SPEC);
    let fence = folder.read(FENCE).or(record.as_ref().map(|r| r.fence)).unwrap_or_default();
    let reason = untold(&hands.group(id));
    hands
        .take(id, record.map(|r| r.spec.stop))
        .and_then(|_lock| hands.unplug(id).and_then(|()| hands.bury(id, fence, reason)))
        .map_err(|Failure { step, detail, .. }| SweepError::Instance { id: id.clone(), step, detail })
}
