//! Images as disks of virtual machines: the merged layers as one file system, a kernel that finds it, and a partition table around
//! both. Nothing is mounted, no other program is run, and the same image and options give the same bytes.

use super::boot::{Boot, BootError, Guest};
use super::fat::{EfiPartition, zeros};
use super::gpt::{self, Partition};
use super::{ExportError, qcow2};
use crate::bake;
use crate::erofs::{self, Reader};
use crate::objects::{Objects, write_durable};
use crate::tree::Tree;
use kiln_model::{Digest, LayerRef};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Changes whenever the same layers would give another file system.
const FORMAT: &str = "sealed-1";
/// The superblock, which has the checksum of the first block.
const SUPERBLOCK: (u64, usize) = (1024, 128);
/// Bytes that are gathered before they are written.
const BUFFER: usize = 1 << 20;

/// A virtual machine that is ready to be written.
#[derive(Debug)]
pub struct Machine {
    image: Digest,
    boot: Boot,
    /// Kernel and all in one; none if it is not started by UEFI.
    unified: Option<Vec<u8>>,
    root: LayerRef,
    root_path: PathBuf,
}

/// Prepares `image` as a machine that runs `guest`, with the kernel of `kernel_image` (often the same one). `uefi` says whether it
/// is to be a disk that boots by itself.
///
/// # Errors
/// [`ExportError`].
pub fn prepare(
    state: &Path,
    objects: &Objects,
    image: Digest,
    kernel_image: Digest,
    uefi: bool,
    guest: &Guest,
    progress: &mut dyn FnMut(String),
) -> Result<Machine, ExportError> {
    progress("joining the layers".into());
    let root = sealed(state, objects, image)?;
    let root_path = objects.path(root.digest);
    let mut superblock = [0; SUPERBLOCK.1];
    let read = File::open(&root_path).and_then(|file| file.read_exact_at(&mut superblock, SUPERBLOCK.0));
    read.map_err(|source| ExportError::Layer { layer: root.digest, source })?;
    progress("reading the kernel".into());
    let tree = merged(objects, kernel_image)?;
    let boot = Boot::new(&tree, &superblock, guest).map_err(ExportError::Boot)?;
    let unified = uefi.then(|| boot.unified(&tree)).transpose().map_err(ExportError::Boot)?;
    Ok(Machine { image, boot, unified, root, root_path })
}

/// What an instance of the image sees.
fn merged(objects: &Objects, image: Digest) -> Result<Tree, ExportError> {
    let own = bake::manifest(objects, image).map_err(|source| ExportError::Manifest { image, source })?;
    let mut trees = vec![];
    for layer in &own.layers {
        let failed = |source| ExportError::Layer { layer: layer.digest, source };
        super::blob::verify(&objects.path(layer.digest), layer.digest).map_err(failed)?;
        let reader = File::open(objects.path(layer.digest)).and_then(Reader::open).map_err(failed)?;
        trees.push(reader.tree().map_err(failed)?);
    }
    Tree::merge(trees).map_err(|error| ExportError::Seal(io::Error::other(error)))
}

/// All layers of an image as one file system; it lies in the content store, and is made if it is not there.
fn sealed(state: &Path, objects: &Objects, image: Digest) -> Result<LayerRef, ExportError> {
    let own = bake::manifest(objects, image).map_err(|source| ExportError::Manifest { image, source })?;
    if let [only] = own.layers.as_slice() {
        let failed = |source| ExportError::Layer { layer: only.digest, source };
        super::blob::verify(&objects.path(only.digest), only.digest).map_err(failed)?;
        return Ok(only.clone());
    }
    let record = state.join("cache").join(format!("{}.{FORMAT}", image.hex()));
    let known: Option<LayerRef> =
        std::fs::read(&record).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    if let Some(layer) = known.filter(|layer| objects.has(layer.digest)) {
        return Ok(layer);
    }
    let tree = merged(objects, image)?;
    let mut pending = objects.create()?;
    let mut out = BufWriter::with_capacity(BUFFER, pending.file());
    erofs::write(&tree, &mut out).map_err(|error| ExportError::Seal(io::Error::other(error)))?;
    out.flush().map_err(ExportError::Seal)?;
    drop(out);
    let (digest, size) = pending.finish()?;
    let layer = LayerRef { digest, size, role: "sealed".into() };
    let bytes = serde_json::to_vec(&layer).unwrap_or_default();
    write_durable(&record, &bytes).map_err(|source| ExportError::Write { path: record, source })?;
    Ok(layer)
}

impl Machine {
    fn partition(&self) -> Result<EfiPartition<'_>, BootError> {
        let digest = self.image.hex();
        let serial = u32::from_str_radix(&digest[..8], 16).unwrap_or_default();
        EfiPartition::new(self.unified.as_deref().unwrap_or_default(), serial).ok_or(BootError::TooLarge)
    }

    /// Writes a disk that UEFI boots.
    ///
    /// # Errors
    /// What `out` says, or that the root file system cannot be read.
    pub fn raw(&self, out: &mut impl Write) -> io::Result<()> {
        let efi = self.partition().map_err(io::Error::other)?;
        let partitions = [
            Partition { kind: gpt::EFI_SYSTEM, name: "efi", size: efi.size(), attributes: 0 },
            Partition {
                kind: gpt::ROOT_X86_64,
                name: "root",
                size: self.root.size,
                attributes: gpt::READ_ONLY,
            },
        ];
        let disk = gpt::Disk::new(&partitions, self.image.hex().as_bytes());
        out.write_all(&disk.head)?;
        zeros(out, disk.starts[0] - disk.head.len() as u64)?;
        efi.write(out)?;
        zeros(out, disk.starts[1] - disk.starts[0] - efi.size())?;
        let copied = io::copy(&mut File::open(&self.root_path)?, out)?;
        if copied != self.root.size {
            return Err(io::Error::other("the root file system has another size than before"));
        }
        zeros(out, disk.size - disk.starts[1] - copied - disk.tail.len() as u64)?;
        out.write_all(&disk.tail)
    }

    /// Writes the same disk as a file of QEMU.
    ///
    /// # Errors
    /// As [`Machine::raw`].
    pub fn qcow2(&self, out: &mut impl Write) -> io::Result<()> {
        let mut map = qcow2::Map::default();
        self.raw(&mut map)?;
        let mut writer = qcow2::Writer::new(&map, out)?;
        self.raw(&mut writer)?;
        writer.finish().map(|_| ())
    }

    /// Writes an archive of what a machine is started from without a boot loader: `vmlinuz`, `initrd`, `cmdline`, `root.erofs`.
    ///
    /// # Errors
    /// As [`Machine::raw`].
    pub fn kernel(&self, out: &mut impl Write) -> io::Result<()> {
        let line = format!("{}\n", self.boot.command_line);
        super::oci::bytes(out, "vmlinuz", &self.boot.kernel)?;
        super::oci::bytes(out, "initrd", &self.boot.initrd)?;
        super::oci::bytes(out, "cmdline", line.as_bytes())?;
        super::oci::member(out, "root.erofs", self.root.size, &mut File::open(&self.root_path)?)?;
        out.write_all(&[0; 1024])
    }

    /// Bytes of kernel, initial RAM disk and root file system.
    pub fn size(&self) -> u64 {
        self.root.size + (self.boot.kernel.len() + self.boot.initrd.len()) as u64
    }

    /// The file system that is its root.
    pub fn root(&self) -> Digest {
        self.root.digest
    }
}
