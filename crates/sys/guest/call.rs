//! The system calls that the guest's init makes, one safe function each. Declared by hand: this program is compiled without crates.

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_ulong, c_void};
use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};

unsafe extern "C" {
    fn mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn chroot(path: *const c_char) -> c_int;
    fn reboot(what: c_int) -> c_int;
    fn sync();
    fn syscall(number: c_long, ...) -> c_long;
    fn sethostname(name: *const c_char, size: usize) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, size: u32) -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
    fn alarm(seconds: u32) -> u32;
    fn signal(number: c_int, handler: usize) -> usize;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn prctl(option: c_int, ...) -> c_int;
    fn umask(mask: u32) -> u32;
    fn mknod(path: *const c_char, mode: u32, device: u64) -> c_int;
}

pub const MS_RDONLY: u64 = 1;
pub const MS_NOSUID: u64 = 2;
pub const MS_NODEV: u64 = 4;
pub const MS_NOEXEC: u64 = 8;
pub const MS_REMOUNT: u64 = 32;
pub const MS_BIND: u64 = 4096;
pub const MS_MOVE: u64 = 8192;
const SYS_FINIT_MODULE: c_long = 313;
const SYS_OPENAT2: c_long = 437;
const AT_FDCWD: c_int = -100;
const O_CLOEXEC: u64 = 0o2_000_000;
/// `openat2`: symbolic links stay below the root, and no magic one of /proc is followed.
const RESOLVE_IN_ROOT: u64 = 0x10;
const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
pub const O_PATH: u64 = 0o10_000_000;
pub const O_NONBLOCK: u64 = 0o4000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const RB_POWER_OFF: c_int = 0x4321_fedc;
const RB_DISABLE_CAD: c_int = 0;
const PR_SET_NO_NEW_PRIVS: c_int = 38;
const SIGINT: c_int = 2;
const SIGKILL: c_int = 9;
const SIGALRM: c_int = 14;
const SIGTERM: c_int = 15;
const SOL_SOCKET: c_int = 1;
const SO_BINDTODEVICE: c_int = 25;

fn done(result: c_int) -> Result<()> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

fn text(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::other("a NUL byte in a name"))
}

/// Mounts `source` at `target`.
pub fn mount_at(source: &str, target: &str, kind: &str, flags: u64, data: &str) -> Result<()> {
    let [source, target, kind, data] = [source, target, kind, data].map(|t| text(t.as_bytes()));
    let (source, target, kind, data) = (source?, target?, kind?, data?);
    // SAFETY: four strings that end in NUL and outlive the call.
    done(unsafe { mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) })
}

/// Makes `path` the root directory.
pub fn change_root(path: &Path) -> Result<()> {
    let path = text(path.as_os_str().as_bytes())?;
    // SAFETY: a string that ends in NUL and outlives the call.
    done(unsafe { chroot(path.as_ptr()) })
}

/// Opens `path` as a program whose root is the directory `root` sees it.
pub fn open_below(root: &File, path: &str, flags: u64) -> Result<File> {
    let path = text(path.as_bytes())?;
    // `struct open_how`: flags, mode, resolve.
    let how = [flags | O_CLOEXEC, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS];
    // SAFETY: a string that ends in NUL, and a structure of the size that is passed; both outlive the call.
    let fd = unsafe { syscall(SYS_OPENAT2, root.as_raw_fd(), path.as_ptr(), how.as_ptr(), size_of_val(&how)) }
        as c_int;
    done(fd)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// A directory, as a place to look below.
pub fn open_directory(path: &str) -> Result<File> {
    let path = text(path.as_bytes())?;
    let how = [O_PATH | O_CLOEXEC, 0, 0];
    // SAFETY: as above.
    let fd =
        unsafe { syscall(SYS_OPENAT2, AT_FDCWD, path.as_ptr(), how.as_ptr(), size_of_val(&how)) } as c_int;
    done(fd)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Makes a character device that everybody may use.
pub fn character_device(path: &str, major: u64, minor: u64) -> Result<()> {
    let path = text(path.as_bytes())?;
    // SAFETY: a string that ends in NUL and outlives the call; numbers.
    done(unsafe { mknod(path.as_ptr(), CHARACTER_DEVICE | 0o666, major << 8 | minor) })
}

/// Sends a signal to one of this process's children that was not waited for yet.
pub fn signal_child(pid: i32, number: i32) {
    if pid > 1 {
        // SAFETY: no memory is involved.
        unsafe { kill(pid, number) };
    }
}

/// Gives a module to the kernel.
pub fn load_module(file: &File) -> Result<()> {
    // SAFETY: an open descriptor, and an empty string of parameters.
    let result = unsafe { syscall(SYS_FINIT_MODULE, file.as_raw_fd(), c"".as_ptr(), 0 as c_int) };
    done(result as c_int)
}

/// Names the machine.
pub fn set_host_name(name: &str) -> Result<()> {
    // SAFETY: the pointer is valid for the length that is given with it.
    done(unsafe { sethostname(name.as_ptr().cast(), name.len()) })
}

/// Writes everything out and turns the machine off.
pub fn power_off() {
    // SAFETY: no memory is involved.
    unsafe {
        sync();
        reboot(RB_POWER_OFF);
    }
}

/// Ctrl-Alt-Del becomes a signal instead of a reset.
pub fn take_ctrl_alt_del() {
    // SAFETY: no memory is involved.
    unsafe { reboot(RB_DISABLE_CAD) };
}

/// From here on no program gains rights by being executed.
pub fn no_new_privileges() -> Result<()> {
    // SAFETY: no memory is involved; the unused arguments have to be zero.
    done(unsafe { prctl(PR_SET_NO_NEW_PRIVS, 1 as c_long, 0 as c_long, 0 as c_long, 0 as c_long) })
}

/// Which permission bits new files do not get.
pub fn set_umask(mask: u32) {
    // SAFETY: no memory is involved; it cannot fail.
    unsafe { umask(mask) };
}

/// A request about a socket with a structure of `N` bytes, which the kernel may change.
pub fn control<const N: usize>(socket: &impl AsRawFd, request: u64, data: &mut [u8; N]) -> Result<()> {
    // SAFETY: callers give the size of the request's structure as `N`; the descriptor is open.
    done(unsafe { ioctl(socket.as_raw_fd(), request, data.as_mut_ptr()) })
}

/// As [`control`], with a name that the structure points to at `at`.
pub fn control_named<const N: usize>(
    socket: &impl AsRawFd,
    request: u64,
    data: &mut [u8; N],
    at: usize,
    name: &CStr,
) -> Result<()> {
    data[at..at + 8].copy_from_slice(&(name.as_ptr() as usize).to_ne_bytes());
    control(socket, request, data)
}

/// A socket sends and hears through one interface only.
pub fn bind_to_device(socket: &impl AsRawFd, name: &str) -> Result<()> {
    // SAFETY: the pointer is valid for the length that is given with it.
    let result = unsafe {
        setsockopt(socket.as_raw_fd(), SOL_SOCKET, SO_BINDTODEVICE, name.as_ptr().cast(), name.len() as u32)
    };
    done(result)
}

/// The service, once it runs, with the signal that ends it and the seconds until it is killed.
static SERVICE: AtomicI32 = AtomicI32::new(0);
static STOP_SIGNAL: AtomicI32 = AtomicI32::new(SIGTERM);
static STOP_SECONDS: AtomicI32 = AtomicI32::new(10);

/// Asks the service to end. Only calls that a signal handler may make.
extern "C" fn on_stop(_: c_int) {
    let pid = SERVICE.load(Ordering::SeqCst);
    if pid > 0 {
        // SAFETY: no memory is involved.
        unsafe {
            kill(pid, STOP_SIGNAL.load(Ordering::SeqCst));
            alarm(STOP_SECONDS.load(Ordering::SeqCst).max(1) as u32);
        }
    }
}

extern "C" fn on_deadline(_: c_int) {
    let pid = SERVICE.load(Ordering::SeqCst);
    if pid > 0 {
        // SAFETY: no memory is involved.
        unsafe { kill(pid, SIGKILL) };
    }
}

/// SIGTERM and SIGINT stop the service `pid`.
pub fn forward_signals(pid: i32, stop_signal: i32, seconds: i32) {
    STOP_SIGNAL.store(stop_signal, Ordering::SeqCst);
    STOP_SECONDS.store(seconds, Ordering::SeqCst);
    SERVICE.store(pid, Ordering::SeqCst);
    // SAFETY: both handlers make only calls that are safe in one.
    unsafe {
        signal(SIGTERM, on_stop as extern "C" fn(c_int) as usize);
        signal(SIGINT, on_stop as extern "C" fn(c_int) as usize);
        signal(SIGALRM, on_deadline as extern "C" fn(c_int) as usize);
    }
}

/// As if somebody had sent SIGTERM to this process.
pub fn stop_service() {
    // SAFETY: no memory is involved.
    unsafe { kill(1, SIGTERM) };
}

/// Waits for any child; answers with its id and its raw status.
pub fn wait_any() -> Result<(i32, i32)> {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    let pid = unsafe { waitpid(-1, &mut status, 0) };
    done(pid)?;
    Ok((pid, status))
}
