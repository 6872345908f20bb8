//! Layer blobs: decompressed into a file of their own, verified on the way, and bounded in size and in ratio.

use crate::objects::{ObjectError, Objects, Pending};
use kiln_model::Digest;
use sha2::Digest as _;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// Bytes that one layer may have once decompressed.
pub const LAYER_BYTES_MAX: u64 = 8 << 30;
/// Up to this size a blob may be compressed as much as it likes; real layers of zeros stay below.
const RATIO_FREE_BYTES: u64 = 256 << 20;
/// How many times larger than its blob a larger layer may be.
const RATIO_MAX: u64 = 200;
/// log2 of the window that a zstd decoder may allocate.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
const CHUNK: usize = 1 << 20;

/// A blob that is not acceptable.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// It could not be read or decompressed.
    #[error("cannot decompress it")]
    Read(#[source] io::Error),
    /// It cannot be opened.
    #[error("cannot read `{}`", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Larger than [`LAYER_BYTES_MAX`], or far larger than its blob.
    #[error("it is larger than {limit} bytes once decompressed")]
    TooLarge {
        /// The bound, which depends on the size of the blob.
        limit: u64,
    },
    /// Neither tar, gzip nor zstd.
    #[error("it is compressed by {0}, not by gzip or zstd")]
    Compression(&'static str),
    /// Not what it is said to be.
    #[error("its {what} is {found}, not {expected}")]
    Mismatch {
        /// What was hashed.
        what: &'static str,
        /// As announced.
        expected: Digest,
        /// As it is.
        found: Digest,
    },
    /// The decompressed archive cannot be written.
    #[error("cannot write the decompressed layer")]
    Write(#[source] io::Error),
    /// The content store.
    #[error("the content store failed")]
    Objects(#[from] ObjectError),
}

/// Counts and hashes what passes.
struct Hashing<R> {
    inner: R,
    hasher: sha2::Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        Ok(n)
    }
}

/// Decompresses the blob at `path`, whose bytes are `blob` and whose archive is `diff_id`, if that is known. Answers with
/// the archive, which is gone when the answer is dropped, its size and its digest.
pub fn inflate(
    path: &Path,
    blob: Option<Digest>,
    diff_id: Option<Digest>,
    objects: &Objects,
) -> Result<(Pending, u64, Digest), BlobError> {
    let open = |source| BlobError::Open { path: path.to_owned(), source };
    let file = File::open(path).map_err(open)?;
    let compressed = file.metadata().map_err(open)?.len();
    let mut magic = [0; 6];
    let n = (&file).take(6).read(&mut magic).map_err(open)?;
    let input = File::open(path).map_err(open)?;
    let mut input = Hashing { inner: input, hasher: sha2::Sha256::new() };
    let mut pending = objects.create()?;
    let limit = LAYER_BYTES_MAX.min(RATIO_FREE_BYTES.max(compressed.saturating_mul(RATIO_MAX)));
    let (size, found) = match &magic[..n] {
        [0x1f, 0x8b, ..] => {
            let decoder = flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(CHUNK, &mut input));
            copy(decoder, limit, pending.file())?
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            let mut decoder = zstd::stream::read::Decoder::new(&mut input).map_err(BlobError::Read)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(BlobError::Read)?;
            copy(decoder, limit, pending.file())?
        }
        b"\xfd7zXZ\0" => return Err(BlobError::Compression("xz")),
        [b'B', b'Z', b'h', ..] => return Err(BlobError::Compression("bzip2")),
        _ => copy(&mut input, LAYER_BYTES_MAX, pending.file())?,
    };
    // A decoder may leave bytes behind its last frame.
    io::copy(&mut input, &mut io::sink()).map_err(BlobError::Read)?;
    verify("content", blob, Digest::from_bytes(input.hasher.finalize().into()))?;
    verify("archive", diff_id, found)?;
    Ok((pending, size, found))
}

fn verify(what: &'static str, expected: Option<Digest>, found: Digest) -> Result<(), BlobError> {
    match expected {
        Some(expected) if expected != found => Err(BlobError::Mismatch { what, expected, found }),
        _ => Ok(()),
    }
}

fn copy(mut from: impl Read, limit: u64, to: &mut File) -> Result<(u64, Digest), BlobError> {
    let mut hasher = sha2::Sha256::new();
    let (mut size, mut chunk) = (0, vec![0; CHUNK]);
    loop {
        let n = match from.read(&mut chunk) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => other.map_err(BlobError::Read)?,
        };
        if n == 0 {
            return Ok((size, Digest::from_bytes(hasher.finalize().into())));
        }
        size += n as u64;
        if size > limit {
            return Err(BlobError::TooLarge { limit });
        }
        hasher.update(&chunk[..n]);
        to.write_all(&chunk[..n]).map_err(BlobError::Write)?;
    }
}
