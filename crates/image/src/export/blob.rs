//! Layers as blobs of other tools: tar archives, compressed or not. Compression depends on versions of libraries, so a blob's
//! digest is never an image's identity; it is made on the first export and found again by the layer's digest.

use crate::erofs::Reader;
use crate::export::{ExportError, tarball};
use crate::objects::{Objects, write_durable};
use kiln_model::{Digest, LayerRef};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Changes whenever the same layer would give another archive.
const FORMAT: &str = "tar-2";
/// Bytes that are gathered before they are written.
const BUFFER: usize = 1 << 20;
/// As `gzip -6` and `zstd -3`: the level that people expect, and the one that was measured best in time for size.
const GZIP_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 3;

/// How blobs are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all; what docker archives hold.
    None,
    /// Understood by everything.
    Gzip,
    /// Smaller and faster; podman, containerd, skopeo from 1.14 on.
    Zstd,
}

impl Compression {
    /// The media type of a layer.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::None => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// A layer as other tools take it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// sha256 of the blob.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// sha256 of the archive that is compressed in it.
    pub diff_id: Digest,
    /// How it is compressed.
    pub compression: Compression,
}

/// The blob of `layer`, made if it is not there; it lies in the content store. The layer is verified while it is read.
///
/// # Errors
/// [`ExportError`] with the layer.
pub fn blob(
    state: &Path,
    objects: &Objects,
    layer: &LayerRef,
    compression: Compression,
) -> Result<Blob, ExportError> {
    let name = format!("{}.{FORMAT}.{}", layer.digest.hex(), compression.word());
    let record = state.join("cache").join(name);
    let known: Option<Blob> =
        std::fs::read(&record).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    if let Some(blob) = known.filter(|blob| objects.has(blob.digest)) {
        return Ok(blob);
    }
    let failed = |source| ExportError::Layer { layer: layer.digest, source };
    verify(&objects.path(layer.digest), layer.digest).map_err(failed)?;
    let reader = File::open(objects.path(layer.digest)).and_then(Reader::open).map_err(failed)?;
    let tree = reader.tree().map_err(failed)?;
    let mut pending = objects.create()?;
    let diff_id = compress(&tree, pending.file(), compression).map_err(failed)?;
    let (digest, size) = pending.finish()?;
    let blob = Blob { digest, size, diff_id, compression };
    let bytes = serde_json::to_vec(&blob).unwrap_or_default();
    write_durable(&record, &bytes).map_err(|source| ExportError::Write { path: record, source })?;
    Ok(blob)
}

fn compress(tree: &crate::tree::Tree, file: &mut File, compression: Compression) -> io::Result<Digest> {
    let file = BufWriter::with_capacity(BUFFER, file);
    let mut hashed = match compression {
        Compression::None => write(tree, file)?,
        Compression::Gzip => {
            let level = flate2::Compression::new(GZIP_LEVEL);
            let encoder = flate2::GzBuilder::new().mtime(0).write(file, level);
            let Hashed { inner, hasher } = write(tree, encoder)?;
            Hashed { inner: inner.finish()?, hasher }
        }
        Compression::Zstd => {
            let encoder = zstd::Encoder::new(file, ZSTD_LEVEL)?;
            let Hashed { inner, hasher } = write(tree, encoder)?;
            Hashed { inner: inner.finish()?, hasher }
        }
    };
    hashed.inner.flush()?;
    Ok(Digest::from_bytes(hashed.hasher.finalize().into()))
}

fn write<W: Write>(tree: &crate::tree::Tree, out: W) -> io::Result<Hashed<W>> {
    let mut hashed = Hashed { inner: out, hasher: sha2::Sha256::new() };
    tarball::write(tree, &mut hashed)?;
    Ok(hashed)
}

/// Hashes what passes through.
struct Hashed<W> {
    inner: W,
    hasher: sha2::Sha256,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Reads a stored file whole and compares it with its name.
pub(crate) fn verify(path: &Path, expected: Digest) -> io::Result<()> {
    let mut hasher = Hashed { inner: io::sink(), hasher: sha2::Sha256::new() };
    io::copy(&mut File::open(path)?, &mut hasher)?;
    let found = Digest::from_bytes(hasher.hasher.finalize().into());
    if found == expected {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("its content is {found}")))
}
