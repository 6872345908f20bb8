//! Processes: `clone3` with a closure, pidfds, identities that survive pid reuse, signals.
//!
//! [`Clone::spawn`] is fork-like and therefore refused in a process that has more than one thread: the child could
//! wait forever for a lock that a thread which it does not have holds.

use crate::error::check;
use crate::{CallError, Context};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal};
use std::ffi::CStr;
use std::io;
use std::ops::BitOr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// `CLONE_INTO_CGROUP`; the constant of the `libc` crate has too small a type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A set of kinds of namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Namespaces(u32);

impl Namespaces {
    /// Mounts.
    pub const MOUNT: Self = Self(libc::CLONE_NEWNS as u32);
    /// Users and capabilities.
    pub const USER: Self = Self(libc::CLONE_NEWUSER as u32);
    /// Process numbers.
    pub const PID: Self = Self(libc::CLONE_NEWPID as u32);
    /// Network.
    pub const NET: Self = Self(libc::CLONE_NEWNET as u32);
    /// Host name.
    pub const UTS: Self = Self(libc::CLONE_NEWUTS as u32);
    /// System V IPC and POSIX queues.
    pub const IPC: Self = Self(libc::CLONE_NEWIPC as u32);
    /// The view of the cgroup tree.
    pub const CGROUP: Self = Self(libc::CLONE_NEWCGROUP as u32);

    /// The kernel's flags.
    pub const fn bits(self) -> u32 {
        self.0
    }
}

impl BitOr for Namespaces {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// How a child is made.
#[derive(Debug, Default)]
pub struct Clone<'a> {
    namespaces: Namespaces,
    cgroup: Option<BorrowedFd<'a>>,
    owner: Option<u32>,
    is_sibling: bool,
}

impl<'a> Clone<'a> {
    /// A child in new namespaces of these kinds.
    pub fn new(namespaces: Namespaces) -> Self {
        Self { namespaces, cgroup: None, owner: None, is_sibling: false }
    }

    /// The child is born in this v2 cgroup, given by an open directory.
    #[must_use]
    pub fn into_cgroup(mut self, directory: BorrowedFd<'a>) -> Self {
        self.cgroup = Some(directory);
        self
    }

    /// The new user namespace belongs to this user of the host instead of root. The kernel counts what a user has of some
    /// things (inotify instances, pending signals, message queues, …) for the owner of the user's namespace as well: with
    /// root as the owner of all, one instance could take them from the host and from all others.
    #[must_use]
    pub fn owned_by(mut self, uid: u32) -> Self {
        self.owner = Some(uid);
        self
    }

    /// The child is one of this process's parent, which reaps it.
    #[must_use]
    pub fn sibling(mut self) -> Self {
        self.is_sibling = true;
        self
    }

    /// Makes the child, which runs `work` and ends with the status that it returns. The caller has one thread; a
    /// panic in the child ends it with status 101 and no destructor of the parent's values runs in it.
    pub fn spawn(self, work: impl FnOnce() -> i32) -> Result<Child, CallError> {
        // SAFETY: unshares nothing; the kernel refuses the flag if there is another thread. Works without /proc.
        check(unsafe { libc::unshare(libc::CLONE_THREAD) }.into())
            .context("clone3 in a process with", "threads")?;
        let mut pidfd: i32 = -1;
        let mut flags = u64::from(self.namespaces.bits()) | libc::CLONE_PIDFD as u64;
        let mut cgroup = 0;
        if let Some(directory) = self.cgroup {
            flags |= CLONE_INTO_CGROUP;
            cgroup = directory.as_raw_fd() as u64;
        }
        // SAFETY: all zero is a valid value of this structure of numbers.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = flags;
        args.pidfd = &raw mut pidfd as u64;
        if self.is_sibling {
            // With the signal that this process itself ends with.
            args.flags |= libc::CLONE_PARENT as u64;
        } else {
            args.exit_signal = libc::SIGCHLD as u64;
        }
        args.cgroup = cgroup;
        let clone = || {
            // SAFETY: like fork, as no flag shares memory; there is one thread (checked), so no lock is held by another.
            let pid =
                unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
            let pid = check(pid).context("clone3", format_args!("{:?}", self.namespaces))? as i32;
            if pid == 0 {
                let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(101);
                exit_now(status);
            }
            Ok(pid)
        };
        let pid = match self.owner {
            Some(uid) => crate::privilege::as_owner(uid, clone)??,
            None => clone()?,
        };
        // SAFETY: the kernel stored a new descriptor that nobody else owns.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Child { pid, pidfd })
    }
}

/// Ends the process at once: no destructors, no exit handlers.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: does not return.
    unsafe { libc::_exit(status) }
}

/// A child of this process.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    pidfd: OwnedFd,
}

impl Child {
    /// Its number in this process's pid namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its pidfd.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Waits until it ends, at most until `timeout`, and reaps it. None: it still runs.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<Option<Ended>, CallError> {
        if !wait_readable(self.pidfd.as_fd(), timeout)? {
            return Ok(None);
        }
        let status = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED)
            .context("waitid", self.pid)?;
        Ok(status.map(|s| match (s.exit_status(), s.terminating_signal()) {
            (Some(code), _) => Ended::Status(code),
            (None, signal) => Ended::Signal(signal.unwrap_or(0)),
        }))
    }

    /// Kills it and reaps it.
    pub fn kill_and_reap(self) -> Result<(), CallError> {
        signal(self.pidfd.as_fd(), libc::SIGKILL)?;
        self.wait(None)?;
        Ok(())
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
}

/// Reaps one child of this process that ended, without waiting.
pub fn reap() -> Option<(i32, Ended)> {
    let (pid, status) = rustix::process::wait(rustix::process::WaitOptions::NOHANG).ok()??;
    let ended = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Ended::Status(code),
        (None, signal) => Ended::Signal(signal.unwrap_or(0)),
    };
    Some((pid.as_raw_nonzero().get(), ended))
}

/// Kills every process that this one may signal, but itself; as pid 1 that is the whole pid namespace. Then reaps
/// them all.
pub fn kill_namespace() {
    if std::process::id() != 1 {
        return;
    }
    // SAFETY: takes plain numbers.
    unsafe { libc::kill(-1, libc::SIGKILL) };
    loop {
        match rustix::process::wait(rustix::process::WaitOptions::empty()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// Signals a process group whose leader is `pid`.
pub fn signal_group(pid: i32, signal: i32) -> Result<(), CallError> {
    // SAFETY: takes plain numbers.
    check(unsafe { libc::kill(-pid.max(2), signal) }.into()).context("kill process group", pid)?;
    Ok(())
}

/// Signals one of this process's own children, or another process of its pid namespace, by number.
pub fn signal_pid(pid: i32, signal: i32) -> Result<(), CallError> {
    // SAFETY: takes plain numbers.
    check(unsafe { libc::kill(pid.max(1), signal) }.into()).context("kill", pid)?;
    Ok(())
}

/// A pidfd of a process that is no child.
pub fn open_pid(pid: i32) -> Result<OwnedFd, CallError> {
    let number =
        Pid::from_raw(pid).ok_or(io::Error::from_raw_os_error(libc::ESRCH)).context("pidfd_open", pid)?;
    pidfd_open(number, PidfdFlags::empty()).context("pidfd_open", pid)
}

/// Opens a process that was recorded as (boot id, number, start time), if it is still that one and runs.
pub fn open_same(pid: i32, started: u64) -> Option<OwnedFd> {
    let pidfd = open_pid(pid).ok()?;
    // Compared after the descriptor is open: from here on it can mean no other process.
    if start_time(pid).ok()? != started || wait_readable(pidfd.as_fd(), Some(Duration::ZERO)).ok()? {
        return None;
    }
    Some(pidfd)
}

/// Signals by pidfd.
pub fn signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), CallError> {
    let number = Signal::from_named_raw(signal)
        .ok_or(io::Error::from_raw_os_error(libc::EINVAL))
        .context("pidfd_send_signal", signal)?;
    pidfd_send_signal(pidfd, number).context("pidfd_send_signal", signal)
}

/// Waits until `fd` is readable (a pidfd: until its process ended). False: the time-out came first.
pub fn wait_readable(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> Result<bool, CallError> {
    let end = timeout.map(|t| Instant::now() + t);
    loop {
        let left = end.map(|e| e.saturating_duration_since(Instant::now()));
        let left = left.map(|d| Timespec { tv_sec: d.as_secs() as i64, tv_nsec: d.subsec_nanos().into() });
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], left.as_ref()) {
            Ok(n) => return Ok(n > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("poll", fd.as_raw_fd()),
        }
    }
}

/// When a process started, in clock ticks since boot: with the boot id it tells a process from a later one with the
/// same number.
pub fn start_time(pid: i32) -> Result<u64, CallError> {
    let path = format!("/proc/{pid}/stat");
    // Longer than any: 52 numbers and a command of 64 bytes at most.
    let mut text = [0; 2048];
    let file = std::fs::File::open(&path);
    let length = file.and_then(|mut file| io::Read::read(&mut file, &mut text)).context("read", &path)?;
    let text = String::from_utf8_lossy(&text[..length]);
    // The command in parentheses may itself hold parentheses and blanks; start time is field 22.
    let field = text.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19));
    field
        .and_then(|f| f.parse().ok())
        .ok_or(io::Error::from_raw_os_error(libc::EINVAL))
        .context("read start time of", path)
}

/// Signals that arrive as reads instead of handlers. They stay blocked in this thread.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Blocks these signals and takes them.
    pub fn new(signals: &[i32]) -> Result<Self, CallError> {
        // SAFETY: sigemptyset makes the zeroed set valid, and all pointers are to that local set.
        let fd = unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in signals {
                libc::sigaddset(&raw mut set, *signal);
            }
            check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()).into())
                .context("sigprocmask", format_args!("{signals:?}"))?;
            check(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK).into())
                .context("signalfd", format_args!("{signals:?}"))?
        };
        // SAFETY: a new descriptor that nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// The next signal that came, without waiting.
    pub fn next(&self) -> Option<i32> {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.0, &mut info) {
            Ok(n) if n == info.len() => Some(u32::from_ne_bytes([info[0], info[1], info[2], info[3]]) as i32),
            _ => None,
        }
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Every signal at its default and none blocked, as a new program expects it.
pub fn reset_signals() {
    // SAFETY: SIG_DFL is a valid disposition for every signal; those that refuse it (SIGKILL, SIGSTOP) are left.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
    unblock_signals();
}

/// Children that end from here on leave nothing behind; nobody has to wait for them.
pub fn forget_children() {
    // SAFETY: SIG_IGN is a valid disposition for this signal.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Takes [`forget_children`] back, in a child that wants to know of its own.
pub fn remember_children() {
    // SAFETY: SIG_DFL is a valid disposition for this signal.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// No signal is blocked, as a new program expects it.
pub fn unblock_signals() {
    // SAFETY: sigemptyset makes the zeroed set valid; the pointer is to that local set.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// What this process is called in lists of processes.
pub fn set_name(name: &CStr) {
    // SAFETY: the kernel reads a string that ends with NUL, and cuts it at 15 bytes. It cannot fail.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// The kernel kills this process after that many seconds. For a step that must not hang for ever.
pub fn end_after(seconds: u32) {
    // SAFETY: takes a number. 0 would switch the alarm off.
    unsafe { libc::alarm(seconds.max(1)) };
}

/// Takes [`end_after`] back.
pub fn end_never() {
    // SAFETY: takes a number.
    unsafe { libc::alarm(0) };
}

/// Leads a new session and process group.
pub fn new_session() -> Result<(), CallError> {
    rustix::process::setsid().map(|_| ()).context("setsid", "self")
}

/// This process is killed when its parent ends.
pub fn die_with_parent() -> Result<(), CallError> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context("set", "parent death signal")
}

/// Makes `from` the standard descriptor 0, 1 or 2.
pub fn set_standard(from: impl AsFd, number: i32) -> Result<(), CallError> {
    // SAFETY: replaces a standard descriptor, which nothing owns.
    check(unsafe { libc::dup2(from.as_fd().as_raw_fd(), number.clamp(0, 2)) }.into())
        .context("dup2", number)?;
    Ok(())
}

/// Closes every descriptor from 3 up at the next exec.
pub fn close_on_exec() -> Result<(), CallError> {
    // SAFETY: changes flags only.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })
        .context("close_range", "3 and up")?;
    Ok(())
}

/// Closes descriptors in a fresh child that its parent owns: the child has copies of them, and its parent's values
/// are never dropped in it.
pub fn close_here(descriptors: &[BorrowedFd<'_>]) -> Result<(), CallError> {
    for fd in descriptors {
        // SAFETY: the caller's promise: a fresh child, in which nothing uses or drops them.
        check(unsafe { libc::close(fd.as_raw_fd()) }.into()).context("close", fd.as_raw_fd())?;
    }
    Ok(())
}

/// Closes every descriptor from 3 up but `keep`. Only in a fresh child that never uses its parent's other ones again.
pub fn close_all_but(keep: &[BorrowedFd<'_>]) -> Result<(), CallError> {
    let mut from = 3u32;
    loop {
        // The lowest that is still to be kept; there are few, and sorting would take memory.
        let fd = keep.iter().map(|fd| fd.as_raw_fd() as u32).filter(|fd| *fd >= from).min();
        let to = fd.map_or(u32::MAX, |fd| fd - 1);
        if from <= to {
            // SAFETY: the caller's promise: nothing uses the others again.
            check(unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) })
                .context("close_range", format_args!("{from} to {to}"))?;
        }
        let Some(fd) = fd else { return Ok(()) };
        from = fd + 1;
    }
}
