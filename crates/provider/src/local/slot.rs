//! Slots: everything of an instance that does not depend on what it runs, made ready before it is needed. A slot has what a
//! site has, a folder, and a shim that waits for what to run. Nothing of it outlives the server unless it becomes an
//! instance.

use super::cloner::Cloner;
use super::fit::Fit;
use super::folder::{self, Folder, Process, Record, Root};
use super::mark::{Mark, Tag};
use super::network::Network;
use super::order::Failure;
use super::root::Roots;
use super::site::{self, Cloned, Files, Site};
use super::subnet::Subnet;
use super::wire::{FITTED, NOT_EXECUTED, READY, START_BYTES_MAX, STARTED, Start};
use kiln_sys::cgroup::{Group, Trees};
use kiln_sys::netlink::Netlink;
use kiln_sys::{message, process};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the kernel may take to remove the interface of a namespace that ended.
const DEPARTURE_MAX: Duration = Duration::from_secs(1);

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

    /// Whether every number is taken.
    pub(super) fn is_full(&self) -> bool {
        let numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        self.subnet.next(numbers.previous, |number| numbers.in_use.contains(&number)).is_none()
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

    /// A site with a number of its own.
    pub(super) fn site(&self) -> Result<Site, Failure> {
        let number = self.take_number()?;
        self.site_of(number).inspect_err(|_| self.give_back(number))
    }

    /// A site for a number that is taken.
    pub(super) fn site_of(&self, number: u32) -> Result<Site, Failure> {
        Site::make(self, Network::make(&self.mark, self.subnet, number, self.tag())?)
    }
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
    /// Its shim has said so.
    is_ready: bool,
    /// What it was made to fit.
    fit: Option<Fit>,
}

/// What becomes of a program that was to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begun {
    Runs,
    /// It could not be executed; `exit.json` says why.
    Ended,
}

impl Slot {
    /// Makes one on a site. If that fails nothing is left of it, and the number is still taken.
    pub(super) fn make(host: &Host, site: Site) -> Result<Self, Failure> {
        match site.clone_shim().and_then(|cloned| Ok((record(host, &site, cloned.pid)?, cloned))) {
            Ok((process, cloned)) => {
                let Cloned { pidfd, users, socket, .. } = cloned;
                let Site { network, group, folder, files, .. } = site;
                let (is_ready, fit) = Default::default();
                Ok(Self { network, process, pidfd, users, group, folder, files, socket, is_ready, fit })
            }
            Err(failure) => {
                site.discard();
                Err(failure)
            }
        }
    }

    /// Waits for its shim.
    pub(super) fn get_ready(&mut self) -> Result<(), Failure> {
        if !self.is_ready {
            self.expect(READY)?;
        }
        self.is_ready = true;
        Ok(())
    }

    fn expect(&self, word: u8) -> Result<(), Failure> {
        match self.hear()?.as_slice() {
            [said] if *said == word => Ok(()),
            other => Err(site::failure_of(other)),
        }
    }

    /// The next thing that the shim says.
    fn hear(&self) -> Result<Vec<u8>, Failure> {
        site::hear(&self.socket).map(|(bytes, _)| bytes)
    }

    /// Whether its shim still waits.
    pub(super) fn is_alive(&self) -> bool {
        site::is_alive(&self.pidfd)
    }

    /// Whether it was made to fit this.
    pub(super) fn fits(&self, fit: &Fit) -> bool {
        self.fit.as_ref() == Some(fit)
    }

    /// Makes it one that fits, while there is time.
    pub(super) fn prepare(&mut self, host: &Host, roots: &Roots, fit: &Fit) -> Result<(), Failure> {
        self.offer(host, roots, fit)?;
        self.get_ready()?;
        self.expect(FITTED)?;
        self.fit = Some(fit.clone());
        Ok(())
    }

    /// Gives it its limits and its root.
    fn offer(&self, host: &Host, roots: &Roots, fit: &Fit) -> Result<(), Failure> {
        self.group.limit(&host.trees, fit.limits)?;
        let root = roots.join(&fit.layers, self.users.as_fd())?;
        self.send(&fit.shape, &[root.as_fd()])
    }

    fn send(&self, order: &[u8], with: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        if order.len() > START_BYTES_MAX {
            let detail = format!(
                "its command and environment have {} bytes, at most {START_BYTES_MAX} are possible",
                order.len()
            );
            return Err(Failure::permanent("start the program", detail));
        }
        message::send(&self.socket, &[order], with).map_err(|error| Failure::io("start the program", &error))
    }

    /// Makes it the instance of a record: the folder gets its name.
    pub(super) fn move_in(&self, folder: &Folder, record: &Record) -> Result<(), Failure> {
        let moved = folder.move_in(&self.folder, &self.files.spec, record);
        moved.map_err(|error| Failure::io("write `spec.json`", &error))
    }

    /// Has the program started. One that was not made to fit before becomes so at once.
    pub(super) fn begin(
        &mut self,
        host: &Host,
        roots: &Roots,
        fit: &Fit,
        start: &Start<'_>,
        secrets: Option<OwnedFd>,
    ) -> Result<Begun, Failure> {
        let is_fitted = self.fits(fit);
        if !is_fitted {
            self.offer(host, roots, fit)?;
        }
        let Files { lock, out: [a, b], exit, door, oom, .. } = &self.files;
        let mut with = vec![a.as_fd(), b.as_fd(), exit.as_fd(), lock.as_fd(), door.as_fd()];
        with.extend(secrets.as_ref().map(AsFd::as_fd));
        with.extend(oom.as_ref().map(AsFd::as_fd));
        // Both orders at once: what went wrong with the first one is told in the answer to the second as well.
        self.send(&start.encode(), &with)?;
        self.get_ready()?;
        if !is_fitted
            && let Err(failure) = self.expect(FITTED)
            && !failure.permanent
        {
            return Err(failure);
        }
        match self.hear()?.as_slice() {
            [STARTED] => Ok(Begun::Runs),
            [NOT_EXECUTED] => Ok(Begun::Ended),
            other => Err(site::failure_of(other)),
        }
    }

    /// What is left to look at when it runs: the process, and the socket that says when the program has ended. Everything
    /// else is the shim's alone from here on.
    pub(super) fn let_go(self) -> (Process, OwnedFd, OwnedFd) {
        (self.process, self.pidfd, self.socket)
    }

    /// Ends one that no instance has become. Its number can be given back afterwards.
    pub(super) fn discard(self) {
        site::end(&self.pidfd);
        site::clear(&self.group, &self.folder);
    }
}

/// Writes down which process is pid 1.
fn record(host: &Host, site: &Site, pid: i32) -> Result<Process, Failure> {
    // The one reason for not finding it is that it is dead.
    let started =
        process::start_time(pid).map_err(|error| Failure::retry("find pid 1", error.source.to_string()))?;
    let process = Process { pid, started, boot: host.boot.clone() };
    folder::fill(&site.files.process, &process)
        .map_err(|error| Failure::io("write `process.json`", &error))?;
    Ok(process)
}
