//! Layers on their way from one store to another: whole and compressed, or as a zstd patch against a layer that the other store has.
//!
//! ```text
//! kiln layer 1\n {"layer", "size", "from"}\n  zstd stream (of the layer; with `from` as what stood before it, if there is one)
//! ```
//!
//! Nothing of it is believed: the result has to have the digest that names it, or it is not stored.

use crate::bake;
use crate::objects::{ObjectError, Objects};
use kiln_model::{Digest, ImageManifest, LayerRef};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};

const MAGIC: &[u8] = b"kiln layer 1\n";
/// Bytes of the line behind it.
const HEAD_BYTES_MAX: u64 = 4096;
/// Bytes of a layer that is patched, and that a patch stands on: both are in the window, the latter in memory.
const PATCH_BYTES_MAX: u64 = 384 << 20;
/// Bytes of any layer.
const LAYER_BYTES_MAX: u64 = 64 << 30;
/// As `zstd -3`: fast, and what was measured.
const LEVEL: i32 = 3;
/// Window sizes as powers of two: at least for a small layer, and for two layers of [`PATCH_BYTES_MAX`].
const WINDOW: std::ops::RangeInclusive<u32> = 20..=30;
/// Layers that a patch may stand on, of one role.
const CANDIDATES_MAX: usize = 8;

/// A layer could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum ReplicateError {
    /// It is not there.
    #[error("the store has no layer {0}")]
    Missing(Digest),
    /// What came is not a layer.
    #[error("what was received is no layer of kiln: {0}")]
    Format(String),
    /// It cannot be decompressed, or a file failed.
    #[error("cannot {step} layer {layer}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// Which layer.
        layer: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not what its name says.
    #[error("layer {layer} was damaged on its way")]
    Damaged {
        /// Which layer.
        layer: Digest,
        /// What it is instead.
        #[source]
        source: ObjectError,
    },
    /// The content store.
    #[error("the content store failed")]
    Objects(#[from] ObjectError),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    layer: Digest,
    size: u64,
    from: Option<Digest>,
}

/// Layers of `manifest` that are not in the store, each with those of its role that are there, the newest first: `known` are the
/// manifests of all images, the newest first.
pub fn missing(
    objects: &Objects,
    manifest: &ImageManifest,
    known: &[ImageManifest],
) -> Vec<(LayerRef, Vec<Digest>)> {
    let candidates = |layer: &LayerRef| {
        let mut found: Vec<Digest> = vec![];
        for old in known.iter().flat_map(|image| &image.layers).filter(|old| old.role == layer.role) {
            if found.len() < CANDIDATES_MAX && !found.contains(&old.digest) && objects.has(old.digest) {
                found.push(old.digest);
            }
        }
        found
    };
    let missing = manifest.layers.iter().filter(|layer| !objects.has(layer.digest));
    missing.map(|layer| (layer.clone(), candidates(layer))).collect()
}

/// Writes `layer` to `out`, as a patch against the first of `candidates` that is here as well.
///
/// # Errors
/// [`ReplicateError`]; what was written is then of no use.
pub fn send(
    objects: &Objects,
    layer: Digest,
    candidates: &[Digest],
    out: &mut dyn Write,
) -> Result<(), ReplicateError> {
    let failed = |source| ReplicateError::Io { step: "send", layer, source };
    let mut file = File::open(objects.path(layer)).map_err(|_| ReplicateError::Missing(layer))?;
    let size = file.metadata().map_err(failed)?.len();
    let length = |digest: &Digest| std::fs::metadata(objects.path(*digest)).map(|meta| meta.len());
    let fits = |digest: &&Digest| length(digest).is_ok_and(|length| length <= PATCH_BYTES_MAX);
    let from = candidates.iter().filter(|_| size <= PATCH_BYTES_MAX).find(fits).copied();
    let old = from.map(|from| prefix(objects, from)).transpose()?.unwrap_or_default();
    let head = serde_json::to_vec(&Head { layer, size, from }).unwrap_or_default();
    out.write_all(&[MAGIC, &head, b"\n"].concat()).map_err(failed)?;
    let mut encoder = zstd::stream::write::Encoder::with_ref_prefix(out, LEVEL, &old).map_err(failed)?;
    if from.is_some() {
        encoder.long_distance_matching(true).map_err(failed)?;
        encoder.window_log(window(size + old.len() as u64)).map_err(failed)?;
    }
    io::copy(&mut file, &mut encoder).map_err(failed)?;
    encoder.finish().map(|_| ()).map_err(failed)
}

/// The window that reaches over `bytes`.
fn window(bytes: u64) -> u32 {
    (u64::BITS - bytes.leading_zeros()).clamp(*WINDOW.start(), *WINDOW.end())
}

/// A layer that a patch stands on, verified.
fn prefix(objects: &Objects, layer: Digest) -> Result<Vec<u8>, ReplicateError> {
    objects.get(layer, PATCH_BYTES_MAX).map_err(|source| ReplicateError::Damaged { layer, source })
}

/// Takes a layer into the store; answers with it and with its size. It is there whole, or not at all.
///
/// # Errors
/// [`ReplicateError`].
pub fn receive(objects: &Objects, from: &mut dyn Read) -> Result<(Digest, u64), ReplicateError> {
    let mut from = BufReader::new(from);
    let unread = |_| ReplicateError::Format("it ends too early".into());
    let mut magic = [0; MAGIC.len()];
    from.read_exact(&mut magic).map_err(unread)?;
    let mut line = vec![];
    from.by_ref().take(HEAD_BYTES_MAX).read_until(b'\n', &mut line).map_err(unread)?;
    let head: Option<Head> = serde_json::from_slice(&line).ok();
    let Some(Head { layer, size, from: old }) =
        head.filter(|head| magic == *MAGIC && head.size <= LAYER_BYTES_MAX)
    else {
        return Err(ReplicateError::Format("its head is not understood".into()));
    };
    let failed = |source| ReplicateError::Io { step: "receive", layer, source };
    let old = match old {
        Some(old) if !objects.has(old) => return Err(ReplicateError::Missing(old)),
        Some(old) => prefix(objects, old)?,
        None => vec![],
    };
    let mut decoder = zstd::stream::read::Decoder::with_ref_prefix(from, &old).map_err(failed)?;
    decoder.window_log_max(*WINDOW.end()).map_err(failed)?;
    let mut pending = objects.create()?;
    // One more, to notice that there is more.
    io::copy(&mut decoder.take(size + 1), pending.file()).map_err(failed)?;
    pending.finish_as(layer).map_err(|source| ReplicateError::Damaged { layer, source })?;
    Ok((layer, size))
}

/// Stores the manifest of an image whose layers are all there.
///
/// # Errors
/// [`ReplicateError`].
pub fn register(objects: &Objects, manifest: &ImageManifest) -> Result<Digest, ReplicateError> {
    if manifest.format != bake::FORMAT || manifest.architecture != bake::ARCHITECTURE {
        return Err(ReplicateError::Format("its manifest is of another kiln or machine".into()));
    }
    for layer in &manifest.layers {
        let found = std::fs::metadata(objects.path(layer.digest)).map(|meta| meta.len());
        if found.ok() != Some(layer.size) {
            return Err(ReplicateError::Missing(layer.digest));
        }
    }
    Ok(objects.put(&manifest.canonical())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u64) -> Vec<u8> {
        let mut state = seed;
        let byte = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..300_000).map(byte).collect()
    }

    #[test]
    fn a_patch_is_small_and_what_is_damaged_is_not_stored() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [here, there] = [0, 1].map(|n| Objects::open(dirs[n].path()).unwrap());
        let old = noise(1);
        let new = [&old[..1000], b"inserted", &old[1000..]].concat();
        let (old_name, name) = (here.put(&old).unwrap(), here.put(&new).unwrap());
        there.put(&old).unwrap();
        let sent = |candidates: &[Digest]| {
            let mut bytes = vec![];
            send(&here, name, candidates, &mut bytes).unwrap();
            bytes
        };
        let (whole, patch) = (sent(&[]), sent(&[Digest::of(b"unknown"), old_name]));
        assert!(whole.len() > 290_000 && patch.len() < 1500, "{} {}", whole.len(), patch.len());
        for at in [0, 20, patch.len() / 2, patch.len() - 1] {
            let mut bad = patch.clone();
            bad[at] ^= 1;
            assert!(receive(&there, &mut bad.as_slice()).is_err(), "{at}");
            assert!(receive(&there, &mut &patch[..at]).is_err(), "{at}");
            assert!(!there.has(name));
        }
        assert_eq!(receive(&there, &mut patch.as_slice()).unwrap(), (name, new.len() as u64));
        assert_eq!(there.get(name, 1 << 20).unwrap(), new);
        let empty = tempfile::tempdir().unwrap();
        let empty = Objects::open(empty.path()).unwrap();
        let refused = receive(&empty, &mut patch.as_slice());
        assert!(matches!(refused, Err(ReplicateError::Missing(digest)) if digest == old_name));
        receive(&empty, &mut whole.as_slice()).unwrap();
    }
}
