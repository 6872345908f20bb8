//! The file system of an instance, put together by its shim in its own user and mount namespaces, where nothing that it
//! does can reach the host. What needs the host's root was made before: the root itself (root.rs) and, by the zygote, the
//! [`Templates`] that lie in every instance's scratch namespace.

use super::order::Failure;
use super::wire::{Shape, Start};
use kiln_model::secret::SECRETS_DIR;
use kiln_sys::mount::{self, Attributes};
use kiln_sys::sandbox::{self, Covers, PLACE};
use kiln_sys::{CallError, path, text};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Where a shim keeps its /proc and /dev until it has a root, and what is in memory. That is one file system, of which every
/// place is a directory: each file system costs time, and memory in every control group of the host.
const PROC: &str = "/p";
const DEV: &str = "/d";
const MEMORY: &str = "/w";
/// The directory in it for the files of /etc.
const ETC: &str = "etc";
/// The template of every /dev, and what is laid over directories.
const DEV_TEMPLATE: &str = "/dev";
const EMPTY: &str = "/e";
const NULL: &str = "/dev/null";
/// Bytes of what is in memory, until it is known.
const MEMORY_BYTES: u64 = 1 << 20;

/// What all instances have in common.
pub(super) struct Templates(Covers);

impl Templates {
    /// Makes them, in a mount namespace of this process that holds nothing else. `over` is any directory of the host.
    pub(super) fn enter(over: &str) -> Result<Self, CallError> {
        let covers = Covers::find();
        let dev = sandbox::dev()?;
        let places = [PROC, DEV, MEMORY, DEV_TEMPLATE, EMPTY].map(|place| &place[1..]);
        sandbox::enter_scratch(over, &places)?;
        mount::attach_at(&dev, DEV_TEMPLATE)?;
        let attributes = Attributes { read_only: true, no_exec: true, devices: false };
        mount::attach_at(mount::tmpfs("555", 4096, (0, 0), attributes)?, EMPTY)?;
        mount::make_read_only(mount::directory("/".as_ref())?)?;
        Ok(Self(covers))
    }

    /// Makes the /proc and the /dev of one instance, before it is known which.
    pub(super) fn prepare(&self) -> Result<(), CallError> {
        let attributes = Attributes { no_exec: true, ..Attributes::default() };
        // A process sees those of its own user only; pid 1 belongs to another.
        let proc = mount::filesystem("proc", &[("hidepid", Some("invisible"))], attributes)
            .or_else(|_| mount::filesystem("proc", &[("hidepid", Some("2"))], attributes))?;
        mount::attach_at(proc, PROC)?;
        self.0.apply(mount::directory(PROC.as_ref())?, EMPTY, NULL)?;
        mount::attach_at(mount::copy_at(CWD, DEV_TEMPLATE)?, DEV)?;
        mount::attach_at(mount::tmpfs("755", MEMORY_BYTES, (0, 0), Attributes::default())?, MEMORY)
    }
}

/// What is filled in when it is known which instance it is.
pub(super) struct Blanks {
    /// The files of [`ETC_FILES`], open for writing, as far as the image has them. What is mounted cannot be written to.
    etc: [Option<OwnedFd>; ETC_FILES.len()],
    /// Where the secrets go.
    secrets: Option<OwnedFd>,
}

impl Blanks {
    /// The descriptors, for keeping them open.
    pub(super) fn descriptors(&self) -> [Option<&OwnedFd>; ETC_FILES.len() + 1] {
        let [a, b, c] = self.etc.each_ref().map(Option::as_ref);
        [a, b, c, self.secrets.as_ref()]
    }

    /// Makes it that instance's.
    pub(super) fn fill(self, secrets: Option<OwnedFd>, start: &Start<'_>) -> Result<(), Failure> {
        let texts = [[start.hosts, ""], [start.host_name, "\n"], [start.resolver, ""]];
        for (file, texts) in self.etc.iter().zip(texts) {
            let Some(file) = file else { continue };
            write(file, texts).map_err(|error| Failure::io("make /etc", &error.into()))?;
        }
        if let Some(secrets) = secrets {
            let missing = || Failure::permanent("mount the secrets", "none were expected");
            mount::attach(secrets, self.secrets.as_ref().ok_or_else(missing)?)?;
        }
        rustix::system::sethostname(start.host_name.as_bytes())
            .map_err(|error| Failure::io("set the host name", &error.into()))
    }
}

/// Puts the root together and changes into it.
pub(super) fn assemble(root: OwnedFd, shape: &Shape<'_>) -> Result<Blanks, Failure> {
    mount::attach_at(root, PLACE)?;
    let root = mount::directory(PLACE.as_ref())?;
    let root = root.as_fd();
    mount::move_to(PROC, mount_point(root, "/proc")?)?;
    mount::move_to(DEV, mount_point(root, "/dev")?)?;
    mount::resize_tmpfs(MEMORY, shape.memory_bytes)?;
    let memory = mount::directory(MEMORY.as_ref())?;
    for (n, place) in shape.writable.iter().filter_map(|place| place.to_str().ok()).enumerate() {
        mount_writable(root, place, new_directory(&memory, n, place, shape.user)?)?;
    }
    let secrets = if shape.has_secrets {
        make_directory(root, SECRETS_DIR);
        Some(mount_point(root, SECRETS_DIR)?)
    } else {
        None
    };
    // With links of the image in the way, one of them may lie on the other.
    if !path::kind_in_root(root, "/dev/null").is_ok_and(|kind| kind == FileType::CharacterDevice) {
        let detail = "something else is mounted there; hint: `/dev` must not be a link in the image";
        return Err(Failure::permanent("mount `/dev`", detail));
    }
    if !path::is_procfs_in_root(root, "/proc") {
        let detail = "something else is there; hint: `/proc` must not be a link in the image";
        return Err(Failure::permanent("mount `/proc`", detail));
    }
    let etc = mount_etc(root, &memory)?;
    mount::cover_root(PLACE)?;
    Ok(Blanks { etc, secrets })
}

/// A directory to mount on. The image must have it: its root is read-only.
fn mount_point(root: BorrowedFd<'_>, place: &str) -> Result<OwnedFd, Failure> {
    path::open_in_root(root, place, OFlags::PATH | OFlags::DIRECTORY).map_err(|error| missing(place, &error))
}

fn missing(place: &str, error: &CallError) -> Failure {
    let detail = match error.errno() {
        libc::ENOENT => format!(
            "the image has no directory `{place}`; hint: add it to the image, or take it out of `writable`"
        ),
        libc::ENOTDIR => {
            format!("`{place}` is no directory in the image; hint: change the image, or `writable`")
        }
        _ => error.source.to_string(),
    };
    Failure { permanent: !error.may_pass(), damaged: false, step: format!("mount `{place}`"), detail }
}

/// What is in memory in every instance.
pub(super) const WRITABLE: [&str; 3] = ["/tmp", "/run", "/dev/shm"];
/// The mode of a place in memory, and whether programs cannot be executed there.
fn mode_of(place: &str) -> (u32, bool) {
    match place {
        "/dev/shm" => (0o1777, true),
        "/tmp" => (0o1777, false),
        _ => (0o755, false),
    }
}

/// A mount of a new directory of `memory` for one place, its `n`th.
fn new_directory(memory: &OwnedFd, n: usize, place: &str, owner: (u32, u32)) -> Result<OwnedFd, Failure> {
    let mut room = [0; 20];
    let name = text::format(&mut room, format_args!("{n}"));
    let (mode, no_exec) = mode_of(place);
    let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
    // The zygote has no mask of modes.
    rustix::fs::mkdirat(memory, name, Mode::from_raw_mode(mode))
        .and_then(|()| rustix::fs::chownat(memory, name, Some(uid), Some(gid), AtFlags::empty()))
        .map_err(|error| Failure::io("make a place in memory", &error.into()))?;
    // Of the attached one: older kernels copy no mount that is nowhere.
    let copy = mount::copy_at(memory, name)?;
    if no_exec {
        mount::make_no_exec(&copy)?;
    }
    Ok(copy)
}

fn mount_writable(root: BorrowedFd<'_>, place: &str, memory: OwnedFd) -> Result<(), Failure> {
    // Below a place in memory it can be made.
    let here = match path::directory_in_root(root, place) {
        Ok(here) => here,
        Err(_) => {
            make_directory(root, place);
            mount_point(root, place)?
        }
    };
    if is_same(root, &here)? {
        let detail = "it is the root of the image, which is read-only; hint: name a directory in it";
        return Err(Failure::permanent(format!("mount `{place}`"), detail));
    }
    Ok(mount::attach(memory, here)?)
}

/// Whether both are one directory.
fn is_same(a: impl AsFd, b: impl AsFd) -> Result<bool, Failure> {
    let number = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    let both = number(a.as_fd()).and_then(|a| Ok((a, number(b.as_fd())?)));
    both.map(|(a, b)| a == b).map_err(|error| Failure::io("look at a mount point", &error.into()))
}

/// Makes a directory and its parents, as far as the file system lets it.
fn make_directory(root: BorrowedFd<'_>, place: &str) -> bool {
    let Some((parent, name)) = place.trim_end_matches('/').rsplit_once('/') else { return false };
    if name.is_empty() || name == ".." || name == "." {
        return false;
    }
    let parent = if parent.is_empty() { "/" } else { parent };
    let open = || path::directory_in_root(root, parent);
    let directory = open().or_else(|error| if make_directory(root, parent) { open() } else { Err(error) });
    directory.is_ok_and(|d| rustix::fs::mkdirat(d, name, Mode::from_raw_mode(0o755)).is_ok())
}

/// kiln's own files in /etc: their names where they are made, and where they go.
const ETC_FILES: [(&str, &str); 3] =
    [("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")];

/// Lays kiln's own files over those that the image has, empty and read-only, and gives what fills them.
fn mount_etc(root: BorrowedFd<'_>, memory: &OwnedFd) -> Result<[Option<OwnedFd>; ETC_FILES.len()], Failure> {
    let failed = |error: Errno| Failure::io("make /etc", &error.into());
    rustix::fs::mkdirat(memory, ETC, Mode::from_raw_mode(0o755)).map_err(failed)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(memory, ETC, flags, Mode::empty()).map_err(failed)?;
    let mut files = [const { None }; ETC_FILES.len()];
    let covered = ETC_FILES.map(|(_, place)| path::file_in_root(root, place));
    for (((name, _), covered), file) in ETC_FILES.iter().zip(covered).zip(&mut files) {
        let Some(covered) = covered else { continue };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
        // The zygote has no mask of modes.
        let made = rustix::fs::openat(&directory, *name, flags, Mode::from_raw_mode(0o644));
        *file = Some(made.map_err(failed)?);
        let copy = mount::copy_at(&directory, name)?;
        mount::make_read_only(&copy)?;
        mount::make_no_exec(&copy)?;
        mount::attach(copy, covered)?;
    }
    Ok(files)
}

fn write(file: &OwnedFd, texts: [&str; 2]) -> rustix::io::Result<()> {
    for text in texts {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let n = rustix::io::write(file, rest)?;
            rest = &rest[n..];
        }
    }
    Ok(())
}
