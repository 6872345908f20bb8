//! The file system of an instance. It is made in two places: what needs the host's root ([`Parts::make`]) by the
//! supervisor, as mounts that are attached nowhere yet, and the rest ([`Parts::assemble`]) by pid 1 in its own user
//! and mount namespaces, where nothing that it does can reach the host.

use super::folder::Record;
use super::order::Failure;
use super::subnet::{IDS_EACH, ids_of};
use kiln_sys::mount::{self, Attributes};
use kiln_sys::sandbox::{self, PLACE};
use kiln_sys::{CallError, namespace, path};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// An instance's /etc/resolv.conf: it has no route to a name server; do not let libraries wait for one.
pub(crate) const RESOLVER: &str = "# instances reach nothing but their host\noptions timeout:1 attempts:1\n";

/// The mounts that only the host's root can make.
pub(crate) struct Parts {
    root: OwnedFd,
    dev: OwnedFd,
    /// Files of /etc that kiln writes, where the image has one of that name.
    etc: Vec<(&'static str, OwnedFd)>,
}

fn io(step: &str) -> impl Fn(rustix::io::Errno) -> Failure {
    let step = step.to_owned();
    move |error| Failure::io(step.clone(), &error.into())
}

impl Parts {
    /// Makes them, and moves this process into a mount namespace without the host's file systems. `layers` are the
    /// image's, lowest first; `scratch` is any directory of the host.
    pub(crate) fn make(record: &Record, layers: &[OwnedFd], scratch: &str) -> Result<Self, Failure> {
        let owners = namespace::user_namespace(ids_of(record.number), IDS_EACH)?;
        let mut mapped = vec![];
        for layer in layers {
            let copy = mount::copy(layer)?;
            mount::map_owners(&copy, &owners)?;
            mapped.push(copy);
        }
        let (dev, etc) = (sandbox::dev()?, make_etc(record)?);
        sandbox::enter_scratch(scratch, &[])?;
        let root = match mapped.len() {
            0 => return Err(Failure::permanent("mount the image", "it has no layers")),
            1 => mapped.remove(0),
            _ => overlay(mapped)?,
        };
        Ok(Self { root, dev, etc })
    }

    /// Puts the root together and changes into it. Called by pid 1 as root of its user namespace.
    pub(crate) fn assemble(self, record: &Record, user: (u32, u32)) -> Result<(), Failure> {
        mount::attach_at(&self.root, PLACE)?;
        let root = mount::directory(PLACE.as_ref())?;
        let root = root.as_fd();
        mount_proc(root)?;
        let here = mount_point(root, "/dev")?;
        mount::attach(&self.dev, here)?;
        sandbox::cover_proc(root)?;
        mount_writable(root, record, user)?;
        for (name, file) in self.etc {
            let place = format!("/etc/{name}");
            if path::kind_in_root(root, &place).is_ok_and(|kind| kind == FileType::RegularFile) {
                mount::attach(file, path::open_in_root(root, &place, OFlags::PATH)?)?;
            }
        }
        let id = record.spec.id.as_str();
        rustix::system::sethostname(id.as_bytes()).map_err(io("set the host name"))?;
        Ok(mount::change_root(PLACE)?)
    }
}

fn make_etc(record: &Record) -> Result<Vec<(&'static str, OwnedFd)>, Failure> {
    let id = &record.spec.id;
    let hosts = format!("127.0.0.1 localhost\n::1 localhost\n{} {id}\n", record.address);
    let files = [("hosts", hosts), ("hostname", format!("{id}\n")), ("resolv.conf", RESOLVER.to_owned())];
    let attributes = Attributes { no_exec: true, ..Attributes::default() };
    let directory = mount::tmpfs("755", 64 * 1024, (0, 0), attributes)?;
    for (name, text) in &files {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&directory, *name, flags, Mode::from_raw_mode(0o644));
        File::from(file.map_err(io("make /etc"))?)
            .write_all(text.as_bytes())
            .map_err(|e| Failure::io("make /etc", &e))?;
        let mode = Mode::from_raw_mode(0o644);
        rustix::fs::chmodat(&directory, *name, mode, AtFlags::empty()).map_err(io("make /etc"))?;
    }
    mount::make_read_only(&directory)?;
    files.iter().map(|(name, _)| Ok((*name, mount::copy_at(&directory, name)?))).collect()
}

/// One root from several layers, in the scratch namespace. The relative names are all that an instance's mount table
/// shows of it.
fn overlay(layers: Vec<OwnedFd>) -> Result<OwnedFd, Failure> {
    let mut names = vec![];
    for (n, layer) in layers.into_iter().enumerate() {
        let name = format!("l{n}");
        rustix::fs::mkdir(&name, Mode::from_raw_mode(0o755)).map_err(io("make the root"))?;
        mount::attach_at(layer, &name)?;
        names.insert(0, name);
    }
    let lower = names.join(":");
    let attributes = Attributes { read_only: true, ..Attributes::default() };
    Ok(mount::filesystem("overlay", &[("lowerdir", Some(&lower))], attributes)?)
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

fn mount_proc(root: BorrowedFd<'_>) -> Result<(), Failure> {
    let attributes = Attributes { no_exec: true, ..Attributes::default() };
    // A process sees those of its own user only; pid 1 belongs to another.
    let proc = mount::filesystem("proc", &[("hidepid", Some("invisible"))], attributes)
        .or_else(|_| mount::filesystem("proc", &[("hidepid", Some("2"))], attributes))?;
    Ok(mount::attach(proc, mount_point(root, "/proc")?)?)
}

fn mount_writable(root: BorrowedFd<'_>, record: &Record, user: (u32, u32)) -> Result<(), Failure> {
    let size = record.spec.resources.memory_bytes;
    let mut places: Vec<(&str, &str, bool)> =
        vec![("/dev/shm", "1777", true), ("/run", "755", false), ("/tmp", "1777", false)];
    for place in &record.spec.writable {
        if !places.iter().any(|(p, ..)| p == place) {
            places.push((place, "755", false));
        }
    }
    // Parents first.
    places.sort_by_key(|(place, ..)| place.len());
    for (place, mode, no_exec) in places {
        let fs = mount::tmpfs(mode, size, user, Attributes { no_exec, ..Attributes::default() })?;
        let here = match mount_point(root, place) {
            // Below a tmpfs of ours it can be made.
            Err(_) if make_directory(root, place) => mount_point(root, place),
            here => here,
        }?;
        mount::attach(fs, here)?;
    }
    Ok(())
}

/// Makes a directory and its parents, as far as the file system lets it.
fn make_directory(root: BorrowedFd<'_>, place: &str) -> bool {
    let Some((parent, name)) = place.trim_end_matches('/').rsplit_once('/') else { return false };
    if name.is_empty() || name == ".." || name == "." {
        return false;
    }
    let parent = if parent.is_empty() { "/" } else { parent };
    let open = || path::open_in_root(root, parent, OFlags::PATH | OFlags::DIRECTORY);
    let directory = open().or_else(|error| if make_directory(root, parent) { open() } else { Err(error) });
    directory.is_ok_and(|d| rustix::fs::mkdirat(d, name, Mode::from_raw_mode(0o755)).is_ok())
}
