//! The kernel of virtual machines (`isolation = "vm"`): Debian's, fetched and verified like any package, once. It and the initial
//! RAM disk that goes with it lie in the content store; `STATE/kernel.json` says which they are.
//!
//! ```text
//! mirror ─ index, signed ─▶ linux-image-…-cloud-amd64.deb ─ modules, kiln's own init ─▶ kernel, initrd
//! ```
//! The package stays in the store as well: a kiln with another init makes a new initial RAM disk of it without a network.

use crate::debian::deb::{Deb, DebError, Entry, Kind};
use crate::debian::index::{Index, Listed, Package};
use crate::debian::{Mirror, MirrorError};
use crate::export::boot::{Boot, BootError, KERNEL_PACKAGE};
use crate::objects::{ObjectError, Objects, write_durable};
use crate::tree::{Content, Node, Tree, TreeError, parent};
use kiln_model::Digest;
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The release of Debian that it is taken from.
pub const RELEASE: &str = "bookworm";
/// The record's name in the state folder.
const RECORD: &str = "kernel.json";
/// What a kernel package is called, apart from its version.
const PREFIX: &str = "linux-image-";
/// Bytes of a package, a kernel or an initial RAM disk.
const BYTES_MAX: u64 = 512 << 20;
/// What is taken out of the package.
const FOLDERS: [&[u8]; 4] = [b"boot", b"lib", b"usr", b""];

/// Kernel and initial RAM disk, where QEMU can read them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestKernel {
    /// The version of the package.
    pub version: String,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: PathBuf,
}

/// There is no kernel for virtual machines.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The mirror.
    #[error("cannot fetch the kernel of virtual machines")]
    Mirror(#[from] Box<MirrorError>),
    /// The mirror has none.
    #[error("the mirror has no package `{KERNEL_PACKAGE}` for {RELEASE}")]
    None,
    /// The package is not one.
    #[error("the package of the kernel is damaged")]
    Package(#[from] DebError),
    /// Its files make no tree.
    #[error("the package of the kernel holds what no image can hold")]
    Tree(#[from] TreeError),
    /// No machine can boot it.
    #[error("the kernel cannot be used for virtual machines")]
    Boot(#[from] BootError),
    /// The content store.
    #[error("cannot keep the kernel of virtual machines")]
    Objects(#[from] ObjectError),
    /// A file of the state folder.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl KernelError {
    /// Whether another try may find it.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Mirror(_) | Self::Objects(_) | Self::Write { .. })
    }

    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Mirror(error) => error.hint(),
            Self::None => {
                "virtual machines boot Debian's cloud kernel; use a mirror that has it, as `--mirror http://deb.debian.org/debian`"
            }
            _ => "check the space and the rights of the state folder, and the mirror",
        }
    }
}

/// What is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    version: String,
    package: Digest,
    /// The init that the initial RAM disk was made with.
    init: Digest,
    kernel: Digest,
    initrd: Digest,
}

impl Record {
    fn read(state: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(state.join(RECORD)).ok()?).ok()
    }
}

/// What the record of a state folder leads to, with what it is.
pub fn objects_of(state: &Path) -> Vec<(Digest, &'static str)> {
    let Some(record) = Record::read(state) else { return vec![] };
    vec![
        (record.package, "package of the kernel of virtual machines"),
        (record.kernel, "kernel of virtual machines"),
        (record.initrd, "initial RAM disk of virtual machines"),
    ]
}

/// The kernel of a state folder, if it is there and is what it should be. Reads all of it.
pub fn known(state: &Path, objects: &Objects) -> Option<GuestKernel> {
    let record = Record::read(state)?;
    let is_current = record.init == Digest::of(kiln_sys::GUEST_INIT);
    let is_whole = is_current && objects.is_intact(record.kernel) && objects.is_intact(record.initrd);
    is_whole.then(|| found(objects, &record))
}

fn found(objects: &Objects, record: &Record) -> GuestKernel {
    GuestKernel {
        version: record.version.clone(),
        kernel: objects.path(record.kernel),
        initrd: objects.path(record.initrd),
    }
}

/// Makes sure that a state folder has a kernel: the one that is there, or the newest of the mirror. Blocks.
///
/// # Errors
/// [`KernelError`].
pub fn ensure(
    state: &Path,
    objects: &Objects,
    mirror: impl FnOnce() -> Result<Mirror, MirrorError>,
    progress: &mut dyn FnMut(String),
) -> Result<GuestKernel, KernelError> {
    if let Some(known) = known(state, objects) {
        return Ok(known);
    }
    let kept = Record::read(state).filter(|record| objects.is_intact(record.package));
    let (version, bytes) = match kept {
        Some(record) => (record.version, objects.get(record.package, BYTES_MAX)?),
        None => {
            progress(format!("fetching the kernel of virtual machines, `{KERNEL_PACKAGE}`"));
            fetch(&mirror().map_err(Box::new)?)?
        }
    };
    let boot = unpack(&bytes)?;
    let keep = |bytes: &[u8]| -> Result<Digest, KernelError> {
        let digest = objects.put(bytes)?;
        let path = objects.path(digest);
        // QEMU runs as nobody.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        let readable = std::fs::set_permissions(&path, mode);
        readable.map(|()| digest).map_err(|source| KernelError::Write { path, source })
    };
    let record = Record {
        version,
        package: objects.put(&bytes)?,
        init: Digest::of(kiln_sys::GUEST_INIT),
        kernel: keep(&boot.kernel)?,
        initrd: keep(&boot.initrd)?,
    };
    let path = state.join(RECORD);
    let text = serde_json::to_vec(&record).unwrap_or_default();
    write_durable(&path, &text).map_err(|source| KernelError::Write { path, source })?;
    Ok(found(objects, &record))
}

/// The newest kernel package of a mirror, with its version.
fn fetch(mirror: &Mirror) -> Result<(String, Vec<u8>), KernelError> {
    let (index, _) = mirror.index(RELEASE).map_err(Box::new)?;
    let package = newest(&index).ok_or(KernelError::None)?;
    let expected = Listed { digest: package.sha256, size: package.size };
    let bytes = mirror.read_verified(&package.suite, &package.path, expected).map_err(Box::new)?;
    Ok((package.version.as_str().to_owned(), bytes))
}

/// The package that the newest `linux-image-cloud-amd64`, which is empty, depends on.
fn newest(index: &Index) -> Option<&Package> {
    let all = index.versions(KERNEL_PACKAGE).first()?;
    let wanted = all.depends.split(',').map(|relation| relation.split_whitespace().next().unwrap_or(""));
    let name = wanted.filter(|name| name.starts_with(PREFIX)).find(|name| *name != KERNEL_PACKAGE)?;
    index.versions(name).iter().find(|package| package.version == all.version)
}

/// What a machine boots, of the bytes of a kernel package.
fn unpack(bytes: &[u8]) -> Result<Boot, KernelError> {
    let mut tree = Tree::new();
    for Entry { path, kind, mode, mtime, .. } in Deb::read(bytes)?.entries {
        if !FOLDERS.contains(&path.split(|byte| *byte == b'/').next().unwrap_or_default()) {
            continue;
        }
        let node = match kind {
            Kind::Dir => Node::dir(mode, mtime),
            Kind::File(content) => Node::file(Content::Bytes(content.into()), mode, mtime),
            // Nothing that a machine boots is a link.
            Kind::Symlink(_) | Kind::Hardlink(_) => continue,
        };
        // A folder of a package may have been made by another one.
        let mut missing = vec![];
        let mut above = parent(&path);
        while let Some(folder) = above.filter(|folder| tree.get(folder).is_none()) {
            missing.push(folder.to_owned());
            above = parent(folder);
        }
        for folder in missing.into_iter().rev() {
            tree.insert(&folder, Node::dir(0o755, mtime))?;
        }
        tree.insert(&path, node)?;
    }
    Ok(Boot::instance(&tree)?)
}

/// `kiln internal kernel DIR [--from MIRROR]`: writes `DIR/vmlinuz` and `DIR/initrd`, for tests.
pub fn main(args: impl IntoIterator<Item = String>) -> ExitCode {
    let args: Vec<String> = args.into_iter().collect();
    let run = || -> Result<(), Box<dyn Error>> {
        let [dir, rest @ ..] = args.as_slice() else {
            return Err("usage: `kernel DIR [--from MIRROR]`".into());
        };
        let from = rest.iter().position(|word| word == "--from").and_then(|at| rest.get(at + 1));
        let mirror = Mirror::open(from.map(String::as_str), RELEASE, None)?;
        let boot = unpack(&fetch(&mirror)?.1)?;
        std::fs::create_dir_all(dir)?;
        for (name, bytes) in [("vmlinuz", &boot.kernel), ("initrd", &boot.initrd)] {
            std::fs::write(Path::new(dir).join(name), bytes)?;
        }
        Ok(())
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
