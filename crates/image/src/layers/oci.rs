//! An OCI image: one layer for each of its own, by the digest of the archive that it was made of.

use super::{BaseRecord, Below, LayersError, Room};
use crate::erofs::{self, Reader, Stack};
use crate::objects::{ObjectError, Objects};
use crate::oci::blob;
use crate::oci::manifest::{Config, DOCUMENT_BYTES_MAX, Manifest, ManifestError};
use crate::oci::{Fetcher, layer};
use crate::tree::SharedFile;
use kiln_model::{Digest, LayerRef};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::Arc;

/// Changes whenever an archive becomes another layer.
const IMPORTER: &str = "kiln importer 1";
const BASE: &str = "base";
/// Bytes of all layers of a base.
const IMAGE_BYTES_MAX: u64 = 32 << 30;

pub(super) fn below(room: &mut Room<'_>, reference: &str) -> Result<Below, LayersError> {
    let locked = room.job.lock.as_ref().and_then(|lock| lock.bases.get(reference));
    let manifest = locked.ok_or_else(|| LayersError::NoBase(reference.to_owned()))?.manifest;
    let fetcher = Fetcher { objects: room.objects, auth: room.job.registry_auth.as_deref() };
    let fetched = fetcher.fetch(reference, Some(manifest), room.progress);
    fetched.map_err(|e| LayersError::Base(e.into()))?;
    import(room, reference, manifest)
}

/// The layers of the image whose blobs are all in the content store.
pub(super) fn import(room: &mut Room<'_>, reference: &str, digest: Digest) -> Result<Below, LayersError> {
    let bad = |source: ManifestError| LayersError::Config { reference: reference.to_owned(), source };
    let manifest = Manifest::parse(&room.objects.get(digest, DOCUMENT_BYTES_MAX)?).map_err(bad)?;
    let config = room.objects.get(manifest.config.digest, DOCUMENT_BYTES_MAX)?;
    let config = Config::parse(&config, manifest.layers.len()).map_err(bad)?;
    let mut stack = Stack::default();
    let mut layers: Vec<LayerRef> = vec![];
    for (n, (blob, archive)) in manifest.layers.iter().zip(&config.rootfs.diff_ids).enumerate() {
        let keys = keys(*archive, &layers);
        let _one_at_a_time = room.cache.lock(keys[0])?;
        let layer = match keys.iter().find_map(|key| room.cache.get(*key)) {
            Some(layer) => layer,
            None => {
                (room.progress)(format!("importing layer {} of {}", n + 1, manifest.layers.len()));
                let (leans, written) = write(room.objects, blob.digest, *archive, &stack, room.progress)?;
                room.cache.put(keys[usize::from(leans)], BASE, written)?
            }
        };
        let reader = File::open(room.objects.path(layer.digest)).and_then(Reader::open);
        let reader = reader.map_err(|source| ObjectError::Io {
            step: "read",
            path: room.objects.path(layer.digest),
            source,
        })?;
        stack.push(reader);
        layers.push(layer);
        if layers.iter().map(|layer| layer.size).sum::<u64>() > IMAGE_BYTES_MAX {
            let text = format!("its layers have more than {IMAGE_BYTES_MAX} bytes");
            return Err(bad(ManifestError::Invalid(text)));
        }
    }
    let base = Some(BaseRecord { manifest: digest, run: config.config.unwrap_or_default() });
    Ok(Below { layers, base, unreproducible: None })
}

/// What a layer is made of: an archive, and for one that leans on the layers below also those.
fn keys(archive: Digest, layers: &[LayerRef]) -> [Digest; 2] {
    let alone = format!("{IMPORTER}\n{archive}\n");
    let below: String = layers.iter().map(|layer| format!("below {}\n", layer.digest)).collect();
    [Digest::of(alone.as_bytes()), Digest::of(format!("{alone}{below}leans\n").as_bytes())]
}

/// Writes the layer of one archive; answers with whether it leans on those below, and what was written.
pub(crate) fn write(
    objects: &Objects,
    blob: Digest,
    archive: Digest,
    below: &Stack,
    progress: &mut dyn FnMut(String),
) -> Result<(bool, (Digest, u64)), LayersError> {
    let path = objects.path(blob);
    let inflated = blob::inflate(&path, Some(blob), Some(archive), objects);
    // The archive is removed when the layer is written.
    let (mut inflated, size, _) = inflated.map_err(|source| LayersError::Blob { layer: archive, source })?;
    let file =
        inflated.file().try_clone().map_err(|source| ObjectError::Io { step: "read", path, source })?;
    let read = layer::read(&SharedFile(Arc::new(file)), size, below);
    let read = read.map_err(|source| LayersError::Layer { layer: archive, source })?;
    for note in &read.notes {
        progress(note.clone());
    }
    let mut pending = objects.create()?;
    let failed = |source| LayersError::Write { layer: archive, source };
    let mut out = BufWriter::with_capacity(1 << 20, pending.file());
    erofs::write(&read.tree, &mut out).map_err(failed)?;
    // What is left to write is lost without a word when a writer is dropped.
    out.flush().map_err(|e| failed(erofs::ErofsError::Write(e)))?;
    drop(out);
    Ok((read.leans, pending.finish()?))
}
