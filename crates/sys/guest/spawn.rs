//! Starts programs of an instance and waits for them. Made by hand instead of with `std::process`: this process is pid 1 and
//! reaps whatever dies, and a program is to give up everything between its birth and its first instruction.

use crate::call;
use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_long, c_void};
use std::fs::File;
use std::io::{Error, PipeWriter, Read, Result, pipe};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

unsafe extern "C" {
    fn fork() -> c_int;
    fn _exit(status: c_int) -> !;
    fn dup2(from: c_int, to: c_int) -> c_int;
    fn setsid() -> c_int;
    fn chroot(path: *const c_char) -> c_int;
    fn chdir(path: *const c_char) -> c_int;
    fn write(fd: c_int, bytes: *const c_void, count: usize) -> isize;
    fn execve(path: *const c_char, argv: *const *const c_char, envp: *const *const c_char) -> c_int;
    fn prctl(option: c_int, ...) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn signal(number: c_int, handler: usize) -> usize;
    fn setrlimit(resource: c_int, limit: *const [u64; 2]) -> c_int;
}

const SYS_CAPSET: c_long = 126;
const SYS_SETGROUPS: c_long = 116;
const SYS_SETRESUID: c_long = 117;
const SYS_SETRESGID: c_long = 119;
const PR_SET_KEEPCAPS: c_int = 8;
const PR_CAPBSET_DROP: c_int = 24;
const PR_SET_NO_NEW_PRIVS: c_int = 38;
const PR_CAP_AMBIENT: c_int = 47;
const PR_CAP_AMBIENT_RAISE: c_long = 2;
/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITIES_3: u32 = 0x2008_0522;
/// Capabilities that any kernel may have.
const CAPABILITIES: u32 = 64;
const RLIMIT_CORE: c_int = 4;
const RLIMIT_NOFILE: c_int = 7;
/// Open files of one process; the same as in a sandbox.
const FILES_MAX: u64 = 65_536;
const SIGNALS: c_int = 64;
pub const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const ENOENT: i32 = 2;
const EACCES: i32 = 13;
const ENOTDIR: i32 = 20;

/// What to start.
pub struct Program<'a> {
    /// Program and arguments.
    pub argv: &'a [String],
    /// Environment; a search path is added if it has none.
    pub env: &'a [(String, String)],
    /// Who it runs as.
    pub user: (u32, u32),
    /// Capabilities that it keeps, as a mask.
    pub capabilities: u64,
    /// The directory that it takes for the root.
    pub root: &'a str,
    /// What its number is written to: it joins that group.
    pub group: &'a File,
    /// Standard input, output and error.
    pub standard: [&'a dyn AsRawFd; 3],
}

/// Everything that the child needs, made before it is born: it may not allocate.
struct Prepared {
    /// What the pointers point to.
    _texts: [Vec<CString>; 2],
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    paths: Vec<CString>,
    root: CString,
    capabilities: [u32; 6],
    mask: u64,
    user: (u32, u32),
    group: RawFd,
    standard: [RawFd; 3],
    report: RawFd,
}

/// Children that somebody waits for, with how they ended.
#[derive(Default)]
pub struct Children {
    known: Mutex<HashMap<i32, Option<i32>>>,
    changed: Condvar,
}

impl Children {
    fn known(&self) -> MutexGuard<'_, HashMap<i32, Option<i32>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a program. An error is a text for the user: it could not be executed.
    pub fn start(&self, program: &Program<'_>) -> std::result::Result<i32, String> {
        let failed = |error: Error| format!("start the program: {error}");
        let (mut report, told) = pipe().map_err(failed)?;
        let prepared = Prepared::new(program, &told).map_err(failed)?;
        // Held until it is written down: whoever reaps it comes after that.
        let mut known = self.known();
        // SAFETY: the child makes only calls that are safe after a fork of a process with threads, and ends or becomes another
        // program.
        let pid = unsafe { fork() };
        if pid == 0 {
            // SAFETY: this is the child, and everything that it uses was made before.
            unsafe { prepared.become_program() };
        }
        if pid < 0 {
            return Err(failed(Error::last_os_error()));
        }
        known.insert(pid, None);
        drop(known);
        drop(told);
        let mut errno = vec![];
        let _ = report.read_to_end(&mut errno);
        match <[u8; 4]>::try_from(errno.as_slice()) {
            Err(_) => Ok(pid),
            Ok(bytes) => {
                self.wait(pid, None);
                Err(explain(program, i32::from_ne_bytes(bytes)))
            }
        }
    }

    /// How a child ended, as `waitpid` says it. None: the time-out came first.
    pub fn wait(&self, pid: i32, timeout: Option<Duration>) -> Option<i32> {
        let until = timeout.map(|timeout| std::time::Instant::now() + timeout);
        let mut known = self.known();
        loop {
            if let Some(status) = known.get(&pid).copied().flatten() {
                known.remove(&pid);
                return Some(status);
            }
            known = match until {
                None => self.changed.wait(known).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.checked_duration_since(std::time::Instant::now())?;
                    self.changed.wait_timeout(known, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Sends a signal to a child that has not been reaped.
    pub fn signal(&self, pid: i32, number: i32) {
        if self.known().get(&pid) == Some(&None) {
            call::signal_child(pid, number);
        }
    }

    /// Nobody waits for a child any more.
    pub fn forget(&self, pid: i32) {
        self.known().remove(&pid);
    }

    /// Reaps everything that dies, for ever.
    pub fn reap(&self) {
        loop {
            match call::wait_any() {
                Ok((pid, status)) => {
                    if let Some(known) = self.known().get_mut(&pid) {
                        *known = Some(status);
                    }
                    self.changed.notify_all();
                }
                // There is no child now.
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

/// What a program's user is told; the same words as in a sandbox.
fn explain(program: &Program<'_>, errno: i32) -> String {
    let name = program.argv.first().map_or("", String::as_str);
    match errno {
        ENOENT if !name.contains('/') => {
            format!("command `{name}` is not in the image (looked in {})", search(program.env))
        }
        ENOENT => {
            format!("command `{name}` is not in the image, or the interpreter or loader it names is not")
        }
        EACCES => format!("command `{name}` may not be executed by user {}", program.user.0),
        errno => format!("command `{name}`: {}", Error::from_raw_os_error(errno)),
    }
}

fn search(env: &[(String, String)]) -> &str {
    env.iter().rfind(|(name, _)| name == "PATH").map_or(PATH_DEFAULT, |(_, value)| value)
}

/// An array of pointers as `execve` wants it.
fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
}

impl Prepared {
    fn new(program: &Program<'_>, report: &PipeWriter) -> Result<Self> {
        let text = |text: String| CString::new(text).map_err(|_| Error::other("a NUL byte in it"));
        let name = program.argv.first().cloned().unwrap_or_default();
        let search = search(program.env);
        let paths = if name.contains('/') {
            vec![text(name)?]
        } else {
            let folders = search.split(':').filter(|folder| !folder.is_empty());
            folders.map(|folder| text(format!("{folder}/{name}"))).collect::<Result<_>>()?
        };
        let mut env: Vec<_> = program.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        if !program.env.iter().any(|(name, _)| name == "PATH") {
            env.push(format!("PATH={PATH_DEFAULT}"));
        }
        let argv = program.argv.iter().cloned().map(text).collect::<Result<Vec<_>>>()?;
        let env = env.into_iter().map(text).collect::<Result<Vec<_>>>()?;
        let (low, high) = (program.capabilities as u32, (program.capabilities >> 32) as u32);
        Ok(Self {
            argv: pointers(&argv),
            env: pointers(&env),
            _texts: [argv, env],
            paths,
            root: text(program.root.to_owned())?,
            // Effective, permitted, inheritable, twice.
            capabilities: [low, low, low, high, high, high],
            mask: program.capabilities,
            user: program.user,
            group: program.group.as_raw_fd(),
            standard: program.standard.map(AsRawFd::as_raw_fd),
            report: report.as_raw_fd(),
        })
    }

    /// # Safety
    /// In a fresh child only.
    unsafe fn become_program(&self) -> ! {
        // SAFETY: numbers, and pointers to what `self` owns; the arrays of pointers end with a null.
        unsafe {
            let mut errno = self.prepare();
            if errno == 0 {
                errno = ENOENT;
                for path in &self.paths {
                    execve(path.as_ptr(), self.argv.as_ptr(), self.env.as_ptr());
                    match Error::last_os_error().raw_os_error().unwrap_or(0) {
                        ENOENT | ENOTDIR => {}
                        other => errno = other,
                    }
                }
            }
            write(self.report, (&raw const errno).cast(), 4);
            _exit(126)
        }
    }

    /// Gives up everything. Answers with an error number.
    ///
    /// # Safety
    /// In a fresh child only.
    unsafe fn prepare(&self) -> i32 {
        let last = || Error::last_os_error().raw_os_error().unwrap_or(-1);
        // SAFETY: numbers, and pointers to what `self` or this function owns.
        unsafe {
            for number in 1..=SIGNALS {
                signal(number, 0);
            }
            for (number, from) in (0..).zip(self.standard) {
                if dup2(from, number) < 0 {
                    return last();
                }
            }
            if write(self.group, c"0".as_ptr().cast(), 1) < 0 || setsid() < 0 {
                return last();
            }
            if chroot(self.root.as_ptr()) < 0 || chdir(c"/".as_ptr()) < 0 {
                return last();
            }
            setrlimit(RLIMIT_CORE, &[0, 0]);
            setrlimit(RLIMIT_NOFILE, &[FILES_MAX, FILES_MAX]);
            call::set_umask(0o022);
            for capability in (0..CAPABILITIES).filter(|c| self.mask & (1 << c) == 0) {
                // The first number that the kernel does not know ends the list.
                if prctl(PR_CAPBSET_DROP, c_long::from(capability), 0 as c_long, 0 as c_long, 0 as c_long) < 0
                {
                    break;
                }
            }
            let (uid, gid) = (c_long::from(self.user.0), c_long::from(self.user.1));
            prctl(PR_SET_KEEPCAPS, 1 as c_long, 0 as c_long, 0 as c_long, 0 as c_long);
            if syscall(SYS_SETGROUPS, 0 as c_long, 0 as c_long) < 0
                || syscall(SYS_SETRESGID, gid, gid, gid) < 0
                || syscall(SYS_SETRESUID, uid, uid, uid) < 0
            {
                return last();
            }
            let header = [CAPABILITIES_3, 0];
            if syscall(SYS_CAPSET, header.as_ptr(), self.capabilities.as_ptr()) < 0 {
                return last();
            }
            for capability in (0..CAPABILITIES).filter(|c| self.mask & (1 << c) != 0) {
                let capability = c_long::from(capability);
                if prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0 as c_long, 0 as c_long) < 0 {
                    return last();
                }
            }
            if prctl(PR_SET_NO_NEW_PRIVS, 1 as c_long, 0 as c_long, 0 as c_long, 0 as c_long) < 0 {
                return last();
            }
            0
        }
    }
}
