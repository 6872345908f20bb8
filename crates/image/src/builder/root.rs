//! The file system of a builder. What needs the host's root is made by the supervisor ([`Parts::make`]), as mounts that
//! are attached nowhere yet; pid 1 puts them together in its own user and mount namespaces ([`Parts::assemble`]).
//!
//! ```text
//! layers (EROFS, read-only, owners mapped) ─┐
//! disk (ext4 in an unlinked file, limited) ─┴─ overlay = the root; /src in it is a private copy
//! ```

use super::disk;
use super::protocol::{Failure, Job};
use super::supervise::{IDS, IDS_FIRST};
use kiln_sys::mount::{self, Attributes, ErofsBacking};
use kiln_sys::namespace;
use kiln_sys::sandbox::{self, PLACE};
use rustix::fs::{Gid, Mode, Uid};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Directories that every builder has, whatever its base, with their modes.
const DIRECTORIES: [(&str, u32); 7] = [
    ("dev", 0o755),
    ("proc", 0o555),
    ("etc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("tmp", 0o1777),
    ("src", 0o755),
];
/// Files that are the same in every builder.
const FILES: [(&str, &str); 3] = [
    ("/etc/hostname", "localhost\n"),
    ("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("/etc/resolv.conf", "# a build has no network\noptions timeout:1 attempts:1\n"),
];

/// The mounts that only the host's root can make.
pub(super) struct Parts {
    root: OwnedFd,
    dev: OwnedFd,
    shm: OwnedFd,
}

fn step<E: Into<io::Error>>(step: &str) -> impl Fn(E) -> Failure {
    let step = step.to_owned();
    move |error| Failure::step(&step, &error.into())
}

impl Parts {
    /// Makes them, and moves this process into a mount namespace without the host's file systems. Answers with the
    /// disk as well, to ask how full it is.
    pub(super) fn make(job: &Job) -> Result<(Self, OwnedFd), Failure> {
        let owners = namespace::user_namespace(IDS_FIRST, IDS)?;
        let mut layers = vec![];
        for path in &job.layers {
            let layer = mount::erofs(path, ErofsBacking::Auto)?;
            mount::map_owners(&layer, &owners)?;
            layers.push(layer);
        }
        let disk = make_disk(&job.disk_folder, job.disk)?;
        let dev = sandbox::dev()?;
        let attributes = Attributes { no_exec: true, ..Attributes::default() };
        let shm = mount::tmpfs("1777", job.memory, (IDS_FIRST, IDS_FIRST), attributes)?;
        sandbox::enter_scratch(&job.disk_folder.to_string_lossy(), &["disk"])?;
        let (root, disk) = overlay(layers, disk)?;
        Ok((Self { root, dev, shm }, disk))
    }

    /// Puts the root together and changes into it. Called by pid 1 as root of its user namespace.
    pub(super) fn assemble(self) -> Result<(), Failure> {
        mount::attach_at(&self.root, PLACE)?;
        let place = Path::new(PLACE);
        for (name, mode) in DIRECTORIES {
            match fs::create_dir(place.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Failure::step("make the root", &error));
                }
                Err(_) => {}
                Ok(()) => fs::set_permissions(place.join(name), fs::Permissions::from_mode(mode))
                    .map_err(step("make the root"))?,
            }
        }
        let attributes = Attributes { no_exec: true, ..Attributes::default() };
        // The host's own /proc is there to be copied from, but this one shows the builder's processes.
        mount::attach_at(mount::filesystem("proc", &[], attributes)?, &format!("{PLACE}/proc"))?;
        mount::attach_at(&self.dev, &format!("{PLACE}/dev"))?;
        mount::attach_at(&self.shm, &format!("{PLACE}/dev/shm"))?;
        sandbox::cover_proc(mount::directory(place)?)?;
        rustix::system::sethostname(b"localhost").map_err(step("set the host name"))?;
        mount::change_root(PLACE)?;
        for (path, text) in FILES {
            // A link of the base would lead to a file that is not there yet.
            let _ = fs::remove_file(path);
            fs::write(path, text).map_err(step(&format!("write `{path}`")))?;
        }
        Ok(())
    }
}

/// A file system of at most `bytes`. Its file has no name: whoever dies, nothing is left of it.
fn make_disk(folder: &Path, bytes: u64) -> Result<OwnedFd, Failure> {
    let path = folder.join(format!("builder-{}", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path);
    let file = file.map_err(step("make the builder's disk"))?;
    fs::remove_file(&path).map_err(step("make the builder's disk"))?;
    disk::format(&file, bytes).map_err(step("make the builder's disk"))?;
    Ok(mount::ext4(&file, Attributes::default())?)
}

/// The layers below, the disk above. The relative names are all that a build sees of it.
fn overlay(layers: Vec<OwnedFd>, disk: OwnedFd) -> Result<(OwnedFd, OwnedFd), Failure> {
    let mut names = vec![];
    for (n, layer) in layers.into_iter().enumerate() {
        let name = format!("l{n}");
        rustix::fs::mkdir(&name, Mode::from_raw_mode(0o755)).map_err(step("make the root"))?;
        mount::attach_at(layer, &name)?;
        names.insert(0, name);
    }
    if names.is_empty() {
        return Err(Failure::Unfit { text: "the builder has no layers".into() });
    }
    mount::attach_at(disk, "disk")?;
    for name in ["disk/upper", "disk/work"] {
        rustix::fs::mkdir(name, Mode::from_raw_mode(0o755)).map_err(step("make the root"))?;
    }
    let (uid, gid) = (Some(Uid::from_raw(IDS_FIRST)), Some(Gid::from_raw(IDS_FIRST)));
    rustix::fs::chown("disk/upper", uid, gid).map_err(step("make the root"))?;
    let disk = mount::directory("disk".as_ref())?;
    let lower = names.join(":");
    let options = [
        ("lowerdir", Some(lower.as_str())),
        ("upperdir", Some("disk/upper")),
        ("workdir", Some("disk/work")),
        // Nobody wants it after a crash, and none of its features is needed.
        ("volatile", None),
        ("index", Some("off")),
        ("metacopy", Some("off")),
        ("redirect_dir", Some("off")),
    ];
    Ok((mount::filesystem("overlay", &options, Attributes::default())?, disk))
}
