//! Mounts by descriptor. A mount that is only a descriptor ([`OwnedFd`]) is attached nowhere: no other process sees
//! it, and it is gone when the last descriptor is closed, whoever dies.

use crate::error::check;
use crate::{CallError, Context, text};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

mod again;

pub use again::{Copying, copy_by};

/// Properties of one mount, whatever the file system's own are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attributes {
    /// Nothing can be written.
    pub read_only: bool,
    /// Programs cannot be executed.
    pub no_exec: bool,
    /// Device files work. Off by default.
    pub devices: bool,
}

impl Attributes {
    fn flags(self) -> MountAttrFlags {
        let mut flags = MountAttrFlags::MOUNT_ATTR_NOSUID;
        flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, self.read_only);
        flags.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, self.no_exec);
        flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, !self.devices);
        flags
    }
}

/// A new file system of type `kind` with these options, as a detached mount. An option without a value is a flag.
/// setuid bits never work on it.
pub fn filesystem(
    kind: &str,
    options: &[(&str, Option<&str>)],
    attributes: Attributes,
) -> Result<OwnedFd, CallError> {
    let fs = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).context("fsopen", kind)?;
    for (key, value) in options {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(&fs, *key, *value)
                .context("fsconfig", format_args!("{kind} {key}={value}"))?,
            None => {
                rustix::mount::fsconfig_set_flag(&fs, *key)
                    .context("fsconfig", format_args!("{kind} {key}"))?;
            }
        }
    }
    rustix::mount::fsconfig_create(&fs).context("create file system", kind)?;
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes.flags()).context("fsmount", kind)
}

/// Bytes of memory for each file that a tmpfs may have: what the kernel needs for an empty one, so that files without
/// content are limited as those with content are.
const BYTES_PER_FILE: u64 = 1024;
/// The least that a tmpfs may have, however small it is.
const FILES_MIN: u64 = 64;

fn files_max(size_bytes: u64) -> u64 {
    (size_bytes / BYTES_PER_FILE).max(FILES_MIN)
}

/// An empty tmpfs as a detached mount.
pub fn tmpfs(
    mode: &str,
    size_bytes: u64,
    owner: (u32, u32),
    attributes: Attributes,
) -> Result<OwnedFd, CallError> {
    let mut room = [[0; 20]; 4];
    let [size, files, uid, gid] = &mut room;
    let options = [
        ("mode", Some(mode)),
        ("size", Some(text::format(size, format_args!("{size_bytes}")))),
        ("nr_inodes", Some(text::format(files, format_args!("{}", files_max(size_bytes))))),
        ("uid", Some(text::format(uid, format_args!("{}", owner.0)))),
        ("gid", Some(text::format(gid, format_args!("{}", owner.1)))),
    ];
    filesystem("tmpfs", &options, attributes)
}

/// An empty tmpfs as a detached mount, what of which is never written to a swap device where the kernel has that (6.4).
/// For a process of the host's own user namespace.
pub fn unswapped_tmpfs(
    mode: &str,
    size_bytes: u64,
    owner: (u32, u32),
    attributes: Attributes,
) -> Result<OwnedFd, CallError> {
    let [size, files, uid, gid] =
        [size_bytes, files_max(size_bytes), owner.0.into(), owner.1.into()].map(|number| number.to_string());
    let options = [
        ("mode", Some(mode)),
        ("size", Some(&*size)),
        ("nr_inodes", Some(&*files)),
        ("uid", Some(&*uid)),
        ("gid", Some(&*gid)),
        ("noswap", None),
    ];
    filesystem("tmpfs", &options, attributes)
        .or_else(|_| filesystem("tmpfs", &options[..options.len() - 1], attributes))
}

/// Gives the tmpfs that is mounted at `path`, without further attributes, another size.
pub fn resize_tmpfs(path: &str, size_bytes: u64) -> Result<(), CallError> {
    use rustix::mount::MountFlags;
    let mut room = [0; 64];
    // With its NUL: the kernel wants a string.
    let files = files_max(size_bytes);
    let size = text::format(&mut room, format_args!("size={size_bytes},nr_inodes={files}\0"));
    let size = CStr::from_bytes_with_nul(size.as_bytes()).unwrap_or(c"");
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount_remount(path, flags, size).context("remount", path)
}

/// How an EROFS file is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ErofsBacking {
    /// By the file if the kernel can mount it (6.12) and copy the mount (6.15), else by a loop device.
    #[default]
    Auto,
    /// Always by a loop device.
    Loop,
}

/// An EROFS image file, read-only, as a detached mount.
pub fn erofs(image: &Path, backing: ErofsBacking) -> Result<OwnedFd, CallError> {
    erofs_of(&File::open(image).context("open", image.display())?, backing)
}

/// The same of an open file: what is mounted is this file, whatever its name means by now.
pub fn erofs_of(file: &File, backing: ErofsBacking) -> Result<OwnedFd, CallError> {
    let attributes = Attributes { read_only: true, ..Attributes::default() };
    if backing == ErofsBacking::Auto {
        // By a neutral name, so that the host's path is not in the mount table of an instance.
        let source = format!("/proc/self/fd/{}", file.as_raw_fd());
        let source = ("source", Some(source.as_str()));
        // `directio` (6.15) avoids caching every page twice.
        let tries: [&[_]; 2] = [&[source, ("ro", None), ("directio", None)], &[source, ("ro", None)]];
        for options in tries {
            match filesystem("erofs", options, attributes) {
                Ok(mount) if again::can_be_copied(&mount) => return Ok(mount),
                // From 6.12 to 6.14: an instance needs a copy of it, and only a device can give one.
                Ok(_) => break,
                Err(error) if [libc::EINVAL, libc::ENOTBLK, libc::EOPNOTSUPP].contains(&error.errno()) => {}
                Err(error) => return Err(error),
            }
        }
    }
    let (device, path) = loop_device(file, false)?;
    let mounted = filesystem("erofs", &[("source", Some(&path)), ("ro", None)], attributes);
    drop(device);
    mounted
}

/// A writable ext4 file system in `image`, as a detached mount by a loop device. Both are gone with the last use of the
/// mount. Nothing in it survives a crash of the host: nobody waits for its disk.
pub fn ext4(image: &File, attributes: Attributes) -> Result<OwnedFd, CallError> {
    let (device, path) = loop_device(image, true)?;
    let mounted = filesystem("ext4", &[("source", Some(&path)), ("nobarrier", None)], attributes);
    drop(device);
    mounted
}

/// A loop device over `file`. It vanishes when its descriptor is closed and no mount uses it.
fn loop_device(file: &File, writable: bool) -> Result<(File, String), CallError> {
    const GET_FREE: u64 = 0x4C82;
    const CONFIGURE: u64 = 0x4C0A;
    const READ_ONLY: u32 = 1;
    const AUTOCLEAR: u32 = 4;
    // Past the cache of the file, so that every page is in memory once; ignored where the file system cannot do it.
    const DIRECT_IO: u32 = 16;
    /// `struct loop_config`: two words, `struct loop_info64` (232 bytes, flags at 52), 64 reserved bytes.
    #[repr(C, align(8))]
    struct Config([u8; 304]);
    const CONTROL: &str = "/dev/loop-control";
    const TRIES: u32 = 32;
    let control = File::options().read(true).write(true).open(CONTROL).context("open", CONTROL)?;
    let flags = if writable { AUTOCLEAR } else { READ_ONLY | AUTOCLEAR | DIRECT_IO };
    let mut config = Config([0; 304]);
    config.0[0..4].copy_from_slice(&(file.as_raw_fd() as u32).to_ne_bytes());
    config.0[4..8].copy_from_slice(&4096u32.to_ne_bytes());
    config.0[8 + 52..8 + 56].copy_from_slice(&flags.to_ne_bytes());
    let mut last = io::Error::from_raw_os_error(libc::EBUSY);
    for _ in 0..TRIES {
        // SAFETY: takes no argument.
        let number = check(unsafe { libc::ioctl(control.as_raw_fd(), GET_FREE) }.into())
            .context("get a free loop device", CONTROL)?;
        let path = format!("/dev/loop{number}");
        let device = File::options().read(true).write(writable).open(&path).context("open", &path)?;
        // SAFETY: the kernel reads a `struct loop_config`, which is 304 bytes long.
        match check(unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE, config.0.as_ptr()) }.into()) {
            Ok(_) => return Ok((device, path)),
            // Somebody else took it between the two calls.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => last = error,
            Err(error) => return Err(error).context("configure", path),
        }
    }
    Err(last).context("configure", "a free loop device")
}

/// An overlay of several layers, lowest first, that are detached mounts (6.13 and later).
pub fn overlay(layers: &[OwnedFd]) -> Result<OwnedFd, CallError> {
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).context("fsopen", "overlay")?;
    for layer in layers.iter().rev() {
        rustix::mount::fsconfig_set_fd(&fs, "lowerdir+", layer).context("fsconfig", "overlay lowerdir+")?;
    }
    rustix::mount::fsconfig_create(&fs).context("create file system", "overlay")?;
    let attributes = Attributes { read_only: true, ..Attributes::default() };
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes.flags())
        .context("fsmount", "overlay")
}

/// Detaches what is mounted at `path`; it is gone when nobody uses it any more.
pub fn detach_at(path: &str) -> Result<(), CallError> {
    rustix::mount::unmount(path, UnmountFlags::DETACH).context("unmount", path)
}

/// The same of a mount that is given by its root.
pub fn detach(mount: impl AsFd) -> Result<(), CallError> {
    detach_at(&format!("/proc/self/fd/{}", mount.as_fd().as_raw_fd()))
}

/// A detached copy of a mount, given by a descriptor of it (a detached one, or any directory or file in it). See
/// [`copy_by`] for kernels that cannot copy a detached one.
pub fn copy(mount: impl AsFd) -> Result<OwnedFd, CallError> {
    copy_by(mount, Copying::Auto)
}

/// A detached mount of the file or directory at `path` below `directory`.
pub fn copy_at(directory: impl AsFd, path: &str) -> Result<OwnedFd, CallError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(&directory, path, flags).context("open_tree", path)
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

fn set_attributes(mount: BorrowedFd<'_>, attributes: &MountAttr) -> io::Result<()> {
    let size = size_of::<MountAttr>();
    // SAFETY: the path is an empty C string and the structure has the size that is passed.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            std::ptr::from_ref(attributes),
            size,
        )
    };
    check(answer).map(|_| ())
}

/// Shows the files of a detached mount with the ids of a user namespace: its uid 0 owns what uid 0 owns on disk.
pub fn map_owners(mount: impl AsFd, user_namespace: impl AsFd) -> Result<(), CallError> {
    let attributes = MountAttr {
        set: libc::MOUNT_ATTR_IDMAP,
        clear: 0,
        propagation: 0,
        user_namespace: user_namespace.as_fd().as_raw_fd() as u64,
    };
    set_attributes(mount.as_fd(), &attributes).context("mount_setattr", "idmap")
}

/// Makes one mount read-only.
pub fn make_read_only(mount: impl AsFd) -> Result<(), CallError> {
    let attributes = MountAttr { set: libc::MOUNT_ATTR_RDONLY, clear: 0, propagation: 0, user_namespace: 0 };
    set_attributes(mount.as_fd(), &attributes).context("mount_setattr", "read-only")
}

/// Lets no program be executed from one mount.
pub fn make_no_exec(mount: impl AsFd) -> Result<(), CallError> {
    let attributes = MountAttr { set: libc::MOUNT_ATTR_NOEXEC, clear: 0, propagation: 0, user_namespace: 0 };
    set_attributes(mount.as_fd(), &attributes).context("mount_setattr", "no execution")
}

/// Attaches a detached mount on the open file or directory `target`.
pub fn attach(mount: impl AsFd, target: impl AsFd) -> Result<(), CallError> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(&mount, "", &target, "", flags).context("move_mount", "a mount")
}

/// Attaches a detached mount at `path`.
pub fn attach_at(mount: impl AsFd, path: &str) -> Result<(), CallError> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&mount, "", rustix::fs::CWD, path, flags).context("move_mount", path)
}

/// Moves what is mounted at `from` on the open file or directory `target`, with all that is mounted below.
pub fn move_to(from: &str, target: impl AsFd) -> Result<(), CallError> {
    let flags = MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(rustix::fs::CWD, from, &target, "", flags).context("move_mount", from)
}

/// Makes the mounted directory `path` the root of this process, over what the root of this mount namespace was. Nothing
/// is unmounted, which would wait for other processors; what lies below can be reached by nobody who cannot mount.
pub fn cover_root(path: &str) -> Result<(), CallError> {
    rustix::process::chdir(path).context("chdir", path)?;
    rustix::mount::mount_move(".", "/").context("move", path)?;
    rustix::process::chroot(".").context("chroot", path)?;
    rustix::process::chdir("/").context("chdir", "/")
}

/// Makes what another process of this mount namespace laid over the root ([`cover_root`]) the root of this one: a path that
/// begins with a root stays below what lies on it, but one that comes back to it does not.
pub fn enter_covered_root() -> Result<(), CallError> {
    rustix::process::chroot("/..").context("chroot", "the covered root")?;
    rustix::process::chdir("/").context("chdir", "/")
}

/// Nothing that is mounted from here on in this mount namespace shows up in another one, and vice versa.
pub fn make_private() -> Result<(), CallError> {
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags).context("make private", "/")
}

/// Makes the mounted directory `path` the root of this mount namespace and lets go of everything that was mounted
/// before. The working directory is the new root.
pub fn change_root(path: &str) -> Result<(), CallError> {
    rustix::process::chdir(path).context("chdir", path)?;
    match rustix::process::pivot_root(".", ".") {
        Ok(()) => {
            // The old root lies on the new one, at the same place.
            rustix::mount::unmount(".", UnmountFlags::DETACH).context("unmount", "the old root")?;
        }
        // The host's root is an initramfs, which cannot be pivoted away: cover it.
        Err(rustix::io::Errno::INVAL) => {
            rustix::mount::mount_move(".", "/").context("move", path)?;
            rustix::process::chroot(".").context("chroot", path)?;
        }
        Err(error) => return Err(error).context("pivot_root", path),
    }
    rustix::process::chdir("/").context("chdir", "/")
}

/// A character device in an open directory, usable by everybody.
pub fn character_device(directory: impl AsFd, name: &str, major: u32, minor: u32) -> Result<(), CallError> {
    let mode = Mode::from_raw_mode(0o666);
    let device = rustix::fs::makedev(major, minor);
    rustix::fs::mknodat(&directory, name, FileType::CharacterDevice, mode, device).context("mknod", name)?;
    rustix::fs::chmodat(&directory, name, mode, AtFlags::empty()).context("chmod", name)
}

/// Opens a directory as a place to attach to or to look in.
pub fn directory(path: &Path) -> Result<OwnedFd, CallError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).context("open", path.display())
}
