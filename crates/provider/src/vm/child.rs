//! QEMU as a child of its watcher: how it gives up everything before it runs, and what its console says.

use super::clean;
use super::jail::Jail;
use crate::local::order::Failure;
use crate::local::shim::KILL;
use kiln_sys::exec::{self, Words};
use kiln_sys::privilege;
use kiln_sys::process::{self, Namespaces, SignalFd};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Bytes of the console that are kept, and that are told.
const CONSOLE_BYTES: usize = 8192;
const CONSOLE_TOLD_BYTES: usize = 1500;
/// What a kernel says first when it gives up.
const PANIC: &str = "Kernel panic";
/// QEMU's user in the namespace of its instance.
const USER: u32 = 65_534;
/// Open files of QEMU.
const FILES_MAX: u64 = 1024;

/// What the watcher has of QEMU.
pub(super) struct Machine {
    /// QEMU's arguments.
    pub arguments: Vec<String>,
    /// What QEMU inherits under the same numbers.
    pub inherited: Vec<OwnedFd>,
    /// Our end of the guest's port.
    pub port: UnixStream,
    /// QEMU's output, which has the guest's console in it.
    pub console: (PipeReader, PipeWriter),
    pub jail: Jail,
}

/// QEMU, as a child of this process, and what comes from it.
pub(super) struct Qemu {
    pub(super) pid: i32,
    pub(super) console: Option<PipeReader>,
    last: Vec<u8>,
}

impl Qemu {
    /// Changes into the jail and starts it. From here on this process has no rights but to signal, and no descriptors but
    /// `keep`, its signals and the console.
    pub(super) fn start(
        machine: Machine,
        keep: &[BorrowedFd<'_>],
    ) -> Result<(Self, UnixStream, SignalFd), Failure> {
        let Machine { arguments, inherited, port, console: (console, printed), jail } = machine;
        privilege::become_user(0, 0)?;
        kiln_sys::namespace::unshare(Namespaces::CGROUP)?;
        jail.enter()?;
        process::new_session()?;
        let signals = SignalFd::new(&[libc::SIGTERM, KILL, libc::SIGCHLD])?;
        let step = |error: io::Error| Failure::io("start QEMU", &error);
        let text = |text: String| CString::new(text).map_err(|error| step(error.into()));
        let arguments: Vec<CString> = arguments.into_iter().map(text).collect::<Result<_, _>>()?;
        let null = File::options().read(true).write(true).open("/dev/null").map_err(step)?;
        let child = process::Clone::new(Namespaces::default())
            .spawn(|| become_qemu(&arguments, &inherited, &null, &printed))?;
        let pid = child.pid();
        // Its descriptor is closed below with all that is not kept.
        std::mem::forget(child);
        let mut kept = vec![signals.as_fd(), port.as_fd(), console.as_fd()];
        kept.extend(keep);
        process::close_all_but(&kept)?;
        std::mem::forget((inherited, printed, null));
        for number in 0..3 {
            let null = File::options().read(true).write(true).open("/dev/null").map_err(step)?;
            process::set_standard(null, number)?;
        }
        privilege::drop_bounding_set()?;
        privilege::keep_capabilities(1 << privilege::CAP_KILL)?;
        privilege::no_new_privileges()?;
        privilege::not_dumpable()?;
        Ok((Self { pid, console: Some(console), last: vec![] }, port, signals))
    }

    /// Reads once what is on the console, and keeps the last of it. False: nothing will come any more.
    pub(super) fn read(&mut self) -> bool {
        let Some(console) = &mut self.console else { return false };
        let mut chunk = [0; 4096];
        match console.read(&mut chunk) {
            Ok(count @ 1..) => {
                self.last.extend(&chunk[..count]);
                self.last.drain(..self.last.len().saturating_sub(CONSOLE_BYTES));
                true
            }
            Ok(_) | Err(_) => {
                self.console = None;
                false
            }
        }
    }

    /// What the console says, for people: from where the kernel gave up, else the last of it.
    pub(super) fn console(&self) -> String {
        let text = String::from_utf8_lossy(&self.last);
        let text = text.trim();
        let tail = text.ceil_char_boundary(text.len().saturating_sub(CONSOLE_TOLD_BYTES));
        let from = text.rfind(PANIC).unwrap_or(tail);
        match clean(&text[from..], CONSOLE_TOLD_BYTES) {
            text if text.is_empty() => "the console is empty".to_owned(),
            text => format!("the console says: {text}"),
        }
    }

    /// Kills it, whatever it does.
    pub(super) fn kill(&mut self) {
        // Gone already is as good. This process is pid 1 and has no other child.
        let _ = process::signal_pid(self.pid, libc::SIGKILL);
        process::kill_namespace();
        // Its writers are dead.
        while self.read() {}
    }
}

/// In QEMU's process. Returns only on failure, which the end of the process tells.
fn become_qemu(arguments: &[CString], inherited: &[OwnedFd], null: &File, printed: &PipeWriter) -> i32 {
    let prepare = || -> Result<(), kiln_sys::CallError> {
        process::set_standard(null, 0)?;
        process::set_standard(printed, 1)?;
        process::set_standard(printed, 2)?;
        process::reset_signals();
        process::new_session()?;
        privilege::limit_resources(FILES_MAX)?;
        privilege::drop_bounding_set()?;
        privilege::become_user(USER, USER)?;
        privilege::keep_capabilities(0)?;
        privilege::no_new_privileges()?;
        process::close_on_exec()?;
        inherited.iter().try_for_each(|fd| {
            use kiln_sys::Context;
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).context("pass on", "a descriptor")
        })
    };
    let words: Vec<u8> =
        arguments.iter().flat_map(|argument| argument.as_bytes_with_nul()).copied().collect();
    let argv = Words::new(&words).unwrap_or_default();
    let error = match prepare() {
        Err(error) => error.line(),
        Ok(()) => exec::exec(argv, Words::default(), "", &mut exec::Room::default()).to_string(),
    };
    let mut printed = printed;
    let _ = writeln!(printed, "{error}");
    126
}
