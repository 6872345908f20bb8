//! What a machine needs to boot an image: a kernel with its modules, an initial RAM disk whose init starts one service, a command
//! line, and all of them in one program for UEFI. Kernel, modules and EFI stub are files of Debian packages in an image; the init
//! is kiln's own (`crates/sys/guest`).

use super::{cpio, pe};
use crate::debian::version::Version;
use crate::tree::{Kind, Tree, join, name};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

const KERNELS: &[u8] = b"boot/vmlinuz-";
/// The same folder in an image with and without merged /usr.
const MODULES: [&str; 2] = ["usr/lib/modules", "lib/modules"];
const STUB: &[u8] = b"usr/lib/systemd/boot/efi/linuxx64.efi.stub";
/// Modules of the usual virtual machine, each after those that it needs.
const FIRST: &[&str] =
    &["virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "erofs", "button", "evdev"];
/// Modules for disks and networks of other machines; loaded only where the first ones find none.
const REST: &[&str] = &[
    "virtio_scsi",
    "nvme",
    "ahci",
    "ata_piix",
    "sd_mod",
    "vmw_pvscsi",
    "vmxnet3",
    "ena",
    "gve",
    "hv_storvsc",
    "hv_netvsc",
    "xen_blkfront",
    "xen_netfront",
    "e1000",
    "e1000e",
];
/// Modules of a machine that is an instance (`isolation = "vm"`).
const INSTANCE: &[&str] =
    &["virtio_mmio", "virtio_blk", "virtio_console", "virtio_net", "virtio_rng", "erofs", "overlay"];
/// Both consoles; the last one is where the service prints. A panic restarts the machine.
const COMMAND_LINE: &str = "console=tty0 console=ttyS0 quiet panic=10";
/// Packages that an image takes a kernel from.
pub const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
/// The package with the program that UEFI starts.
pub const STUB_PACKAGE: &str = "systemd-boot-efi";

/// An image cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// It has no kernel, or no stub.
    #[error("the image has no {what}")]
    Missing {
        /// What is not there.
        what: &'static str,
        /// The package that brings it.
        package: &'static str,
    },
    /// Something of the kernel cannot be read.
    #[error("cannot read `/{path}` of the image")]
    Read {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel has no module that is needed.
    #[error("the kernel {version} has no module `{module}`")]
    Module {
        /// Of the kernel.
        version: String,
        /// Its name.
        module: String,
    },
    /// The stub is not one.
    #[error("`/{path}` is not a program for UEFI that sections can be added to")]
    Stub {
        /// Its path.
        path: String,
    },
    /// It does not fit on a disk.
    #[error("kernel and initial RAM disk are too large for an EFI system partition")]
    TooLarge,
}

impl BootError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let Self::Missing { package, .. } = self else { return None };
        Some(format!(
            "add `{package}` to `packages` of the image, or name an image that has it with `--kernel-image`"
        ))
    }
}

/// What the machine runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guest {
    /// The service's name, which becomes the host name.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Numeric user and group.
    pub user: (u32, u32),
    /// Directories that are a tmpfs.
    pub writable: Vec<String>,
    /// Bytes of each of them.
    pub writable_bytes: u64,
    /// The signal that ends the service.
    pub stop_signal: i32,
    /// Seconds until it is killed.
    pub stop_seconds: u64,
    /// `ADDRESS/BITS`; none asks DHCP.
    pub address: Option<String>,
    /// The way out.
    pub gateway: Option<String>,
}

impl Guest {
    /// The records that the init reads (`crates/sys/guest/config.rs`). No value may hold a NUL; a command cannot.
    fn records(&self, superblock: &[u8]) -> Vec<u8> {
        let hex: String = superblock.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut rows = vec![("root", hex), ("name", self.name.clone())];
        rows.extend(self.command.iter().map(|argument| ("argument", argument.clone())));
        rows.extend(self.env.iter().map(|(name, value)| ("env", format!("{name}={value}"))));
        rows.push(("user", format!("{} {}", self.user.0, self.user.1)));
        rows.extend(self.writable.iter().map(|place| ("writable", place.clone())));
        rows.push(("writable-bytes", self.writable_bytes.to_string()));
        rows.push(("stop", format!("{} {}", self.stop_signal, self.stop_seconds)));
        rows.extend(self.address.clone().map(|address| ("address", address)));
        rows.extend(self.gateway.clone().map(|gateway| ("gateway", gateway)));
        rows.into_iter().flat_map(|(name, value)| format!("{name} {value}\0").into_bytes()).collect()
    }
}

/// Kernel, initial RAM disk and command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// The version of the kernel.
    pub version: String,
    /// The kernel.
    pub kernel: Vec<u8>,
    /// The initial RAM disk.
    pub initrd: Vec<u8>,
    /// The command line, without a line end.
    pub command_line: String,
}

impl Boot {
    /// With the newest kernel of `tree`, for the root file system that has `superblock` in its bytes from 1024 on.
    ///
    /// # Errors
    /// [`BootError`].
    pub fn new(tree: &Tree, superblock: &[u8], guest: &Guest) -> Result<Self, BootError> {
        let missing = BootError::Missing { what: "kernel", package: KERNEL_PACKAGE };
        let version = newest(tree).ok_or(missing)?;
        let kernel = read(tree, &[KERNELS, version.as_bytes()].concat())?;
        let modules = Modules::of(tree, &version);
        let mut archive = begin();
        archive.file("kiln/start", &guest.records(superblock));
        let mut known = BTreeSet::new();
        for (list, wanted, required) in [("first", FIRST, true), ("rest", REST, false)] {
            let order = modules.in_order(wanted, required, &mut known)?;
            modules.write(&mut archive, list, &order)?;
        }
        Ok(Self { version, kernel, initrd: archive.finish(), command_line: COMMAND_LINE.to_owned() })
    }

    /// With the newest kernel of `tree`, for machines that are told by their host what to run (`kiln_provider::vm`). Their
    /// command line is the host's to say.
    ///
    /// # Errors
    /// [`BootError`].
    pub fn instance(tree: &Tree) -> Result<Self, BootError> {
        let missing = BootError::Missing { what: "kernel", package: KERNEL_PACKAGE };
        let version = newest(tree).ok_or(missing)?;
        let kernel = read(tree, &[KERNELS, version.as_bytes()].concat())?;
        let modules = Modules::of(tree, &version);
        let mut archive = begin();
        let order = modules.in_order(INSTANCE, true, &mut BTreeSet::new())?;
        modules.write(&mut archive, "first", &order)?;
        Ok(Self { version, kernel, initrd: archive.finish(), command_line: String::new() })
    }

    /// All in one program for UEFI, a unified kernel image, with the stub of `tree`.
    ///
    /// # Errors
    /// [`BootError`] if there is no stub.
    pub fn unified(&self, tree: &Tree) -> Result<Vec<u8>, BootError> {
        let missing = BootError::Missing { what: "EFI stub", package: STUB_PACKAGE };
        let stub = if tree.get(STUB).is_some() { read(tree, STUB)? } else { return Err(missing) };
        let release = format!("ID=kiln\nNAME=kiln\nPRETTY_NAME=\"kiln\"\nVERSION_ID={}\n", self.version);
        let sections = [
            (".osrel", release.as_bytes()),
            (".cmdline", self.command_line.as_bytes()),
            (".initrd", &self.initrd),
            (".linux", &self.kernel),
        ];
        pe::with_sections(&stub, &sections)
            .ok_or_else(|| BootError::Stub { path: String::from_utf8_lossy(STUB).into_owned() })
    }
}

/// An archive with the init and with what it needs to be there.
fn begin() -> cpio::Archive {
    let mut archive = cpio::Archive::default();
    for path in ["proc", "sys", "dev", "root", "kiln", "kiln/modules"] {
        archive.dir(path);
    }
    archive.program("init", kiln_sys::GUEST_INIT);
    archive
}

/// The version of the newest kernel.
fn newest(tree: &Tree) -> Option<String> {
    let files = tree.iter().filter(|(_, node)| matches!(node.kind, Kind::File(_)));
    let texts = files.filter_map(|(path, _)| std::str::from_utf8(path.strip_prefix(KERNELS)?).ok());
    let versions = texts.filter(|text| !text.contains('/')).filter_map(|text| text.parse::<Version>().ok());
    versions.max().map(|version| version.as_str().to_owned())
}

fn read(tree: &Tree, path: &[u8]) -> Result<Vec<u8>, BootError> {
    let failed = |source| BootError::Read { path: String::from_utf8_lossy(path).into_owned(), source };
    match tree.get(path).map(|node| &node.kind) {
        Some(Kind::File(content)) => content.read().map(std::borrow::Cow::into_owned).map_err(failed),
        _ => Err(failed(io::ErrorKind::NotFound.into())),
    }
}

/// The modules of one kernel.
struct Modules<'a> {
    tree: &'a Tree,
    version: &'a str,
    paths: BTreeMap<String, &'a [u8]>,
}

impl<'a> Modules<'a> {
    fn of(tree: &'a Tree, version: &'a str) -> Self {
        let folders = MODULES.map(|folder| join(&join(folder.as_bytes(), version.as_bytes()), b"kernel/"));
        let files = tree.iter().filter(|(path, _)| folders.iter().any(|folder| path.starts_with(folder)));
        let paths = files.filter_map(|(path, _)| {
            let name = std::str::from_utf8(name(path).strip_suffix(b".ko")?).ok()?;
            Some((name.replace('-', "_"), path.as_slice()))
        });
        Self { tree, version, paths: paths.collect() }
    }

    fn read(&self, module: &str) -> Result<Vec<u8>, BootError> {
        let path = self.paths.get(module).ok_or_else(|| BootError::Module {
            version: self.version.to_owned(),
            module: module.to_owned(),
        })?;
        read(self.tree, path)
    }

    /// Puts modules into an archive, with the list of them that the init follows.
    fn write(&self, archive: &mut cpio::Archive, list: &str, order: &[String]) -> Result<(), BootError> {
        let mut names = String::new();
        for module in order {
            let file = format!("{module}.ko");
            archive.file(&format!("kiln/modules/{file}"), &self.read(module)?);
            names.push_str(&format!("{file}\n"));
        }
        archive.file(&format!("kiln/modules.{list}"), names.as_bytes());
        Ok(())
    }

    /// `wanted` with what they need before them, without those that are `known` already. Those of the kernel itself, or of
    /// hardware that it does not know, are not there, unless they are `required`.
    fn in_order(
        &self,
        wanted: &[&str],
        required: bool,
        known: &mut BTreeSet<String>,
    ) -> Result<Vec<String>, BootError> {
        let mut order = vec![];
        for module in wanted {
            // Only what the root file system is read with cannot be done without.
            let needed = required && *module == "erofs";
            if self.paths.contains_key(*module) || needed {
                self.add(module, known, &mut order)?;
            }
        }
        Ok(order)
    }

    fn add(
        &self,
        module: &str,
        known: &mut BTreeSet<String>,
        order: &mut Vec<String>,
    ) -> Result<(), BootError> {
        if !known.insert(module.to_owned()) {
            return Ok(());
        }
        for needed in depends(&self.read(module)?) {
            self.add(&needed, known, order)?;
        }
        order.push(module.to_owned());
        Ok(())
    }
}

/// What a module says that it needs.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let at = module.windows(KEY.len()).position(|window| window == KEY);
    let rest = at.map(|at| &module[at + KEY.len()..]).unwrap_or_default();
    let value = &rest[..rest.iter().position(|byte| *byte == 0).unwrap_or(0)];
    let names = String::from_utf8_lossy(value).replace('-', "_");
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}
