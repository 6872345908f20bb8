//! An image in the forms of the OCI image specification 1.1 and of `docker save`: configuration, manifest, layout.

use super::ExportError;
use super::blob::{Blob, Compression, blob};
use crate::bake;
use crate::objects::Objects;
use kiln_model::{Digest, ImageManifest};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::Path;

const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// Bytes that are copied at a time.
const CHUNK: usize = 1 << 20;

/// How another tool starts what is in the image; an image of kiln itself has no command, its service does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunAs {
    /// The program with its arguments.
    pub command: Vec<String>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// `uid:gid` or a name.
    pub user: Option<String>,
    /// The port that it listens on.
    pub port: Option<u16>,
}

/// What describes the image to whoever receives it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// `NAME:TAG` or a tag alone; none leaves it without a name.
    pub reference: Option<String>,
    /// The commit that it was baked from.
    pub revision: Option<String>,
}

/// An image as other tools take it: its layers lie in the content store, the rest is in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OciImage {
    /// The configuration.
    pub config: Vec<u8>,
    /// The manifest.
    pub manifest: Vec<u8>,
    /// The layers, lowest first.
    pub layers: Vec<Blob>,
    /// What it is called.
    pub labels: Labels,
}

/// Prepares `image` for other tools; its layers are compressed if they were not yet.
///
/// # Errors
/// [`ExportError`] with the layer or manifest at fault.
pub fn prepare(
    state: &Path,
    objects: &Objects,
    image: Digest,
    compression: Compression,
    run_as: &RunAs,
    labels: &Labels,
    progress: &mut dyn FnMut(String),
) -> Result<OciImage, ExportError> {
    let own: ImageManifest =
        bake::manifest(objects, image).map_err(|source| ExportError::Manifest { image, source })?;
    let mut layers = vec![];
    for layer in &own.layers {
        progress(format!("preparing the {} layer, {} MB", layer.role, layer.size / 1_000_000));
        layers.push(blob(state, objects, layer, compression)?);
    }
    let created = timestamp(own.config.epoch);
    let config = config(&own, image, &layers, run_as, labels, &created);
    let config = serde_json::to_vec(&config).unwrap_or_default();
    let descriptor =
        |kind: &str, digest: Digest, size: u64| json!({ "mediaType": kind, "digest": digest, "size": size });
    let rows = layers.iter().map(|blob| descriptor(blob.compression.media_type(), blob.digest, blob.size));
    let mut annotations = BTreeMap::from([("org.opencontainers.image.created", created)]);
    annotations.extend(labels.revision.clone().map(|text| ("org.opencontainers.image.revision", text)));
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor(CONFIG_TYPE, Digest::of(&config), config.len() as u64),
        "layers": rows.collect::<Vec<_>>(),
        "annotations": annotations,
    });
    let manifest = serde_json::to_vec(&manifest).unwrap_or_default();
    Ok(OciImage { config, manifest, layers, labels: labels.clone() })
}

fn config(
    own: &ImageManifest,
    image: Digest,
    layers: &[Blob],
    run_as: &RunAs,
    labels: &Labels,
    created: &str,
) -> Value {
    let mut env = vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
    env.extend(run_as.env.iter().map(|(name, value)| format!("{name}={value}")));
    let mut runs = json!({ "Env": env, "Labels": { "kiln.image": image } });
    if !run_as.command.is_empty() {
        runs["Cmd"] = json!(run_as.command);
    }
    if let Some(user) = &run_as.user {
        runs["User"] = json!(user);
    }
    if let Some(port) = run_as.port {
        let name = format!("{port}/tcp");
        runs["ExposedPorts"] = json!({ name: {} });
    }
    if let Some(revision) = &labels.revision {
        runs["Labels"]["org.opencontainers.image.revision"] = json!(revision);
    }
    let history = own.layers.iter().map(|layer| {
        json!({ "created": created, "created_by": format!("kiln {} layer", layer.role), "comment": layer.digest })
    });
    json!({
        "created": created,
        "architecture": own.architecture,
        "os": "linux",
        "config": runs,
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|blob| blob.diff_id).collect::<Vec<_>>() },
        "history": history.collect::<Vec<_>>(),
    })
}

/// RFC 3339 of seconds since 1970, as far as the calendar goes.
fn timestamp(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

/// Writes the OCI layout as one tar archive (`oci-archive`).
///
/// # Errors
/// What `out` says, or that a layer cannot be read.
pub fn archive(objects: &Objects, image: &OciImage, out: &mut impl Write) -> io::Result<()> {
    let manifest = Digest::of(&image.manifest);
    let mut row = json!({
        "mediaType": MANIFEST_TYPE, "digest": manifest, "size": image.manifest.len(),
        "platform": { "architecture": "amd64", "os": "linux" },
    });
    if let Some(reference) = &image.labels.reference {
        row["annotations"] = json!({ "org.opencontainers.image.ref.name": reference });
    }
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [row] });
    let path = |digest: Digest| format!("blobs/sha256/{}", digest.hex());
    bytes(out, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    bytes(out, "index.json", &serde_json::to_vec(&index).unwrap_or_default())?;
    bytes(out, &path(manifest), &image.manifest)?;
    bytes(out, &path(Digest::of(&image.config)), &image.config)?;
    let mut written = std::collections::BTreeSet::new();
    for blob in image.layers.iter().filter(|blob| written.insert(blob.digest)) {
        object(out, &path(blob.digest), objects, blob)?;
    }
    out.write_all(&[0; 1024])
}

/// Writes what `docker save` writes and `docker load` takes (`docker-archive`). The layers are uncompressed ones.
///
/// # Errors
/// What `out` says, or that a layer cannot be read.
pub fn docker_archive(objects: &Objects, image: &OciImage, out: &mut impl Write) -> io::Result<()> {
    let config = format!("{}.json", Digest::of(&image.config).hex());
    let path = |blob: &Blob| format!("{}.tar", blob.digest.hex());
    let layers: Vec<_> = image.layers.iter().map(path).collect();
    let tags: Vec<_> = image.labels.reference.iter().collect();
    let manifest = json!([{ "Config": config, "RepoTags": tags, "Layers": layers }]);
    bytes(out, "manifest.json", &serde_json::to_vec(&manifest).unwrap_or_default())?;
    bytes(out, &config, &image.config)?;
    let mut written = std::collections::BTreeSet::new();
    for blob in image.layers.iter().filter(|blob| written.insert(blob.digest)) {
        object(out, &path(blob), objects, blob)?;
    }
    out.write_all(&[0; 1024])
}

pub(super) fn bytes(out: &mut impl Write, path: &str, bytes: &[u8]) -> io::Result<()> {
    member(out, path, bytes.len() as u64, &mut &bytes[..])
}

fn object(out: &mut impl Write, path: &str, objects: &Objects, blob: &Blob) -> io::Result<()> {
    member(out, path, blob.size, &mut std::fs::File::open(objects.path(blob.digest))?)
}

/// One file of an archive.
pub(super) fn member(out: &mut impl Write, path: &str, size: u64, from: &mut impl Read) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_path(path)?;
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_cksum();
    out.write_all(header.as_bytes())?;
    let (mut rest, mut chunk) = (size, vec![0; CHUNK.min(size as usize)]);
    while rest > 0 {
        let part = &mut chunk[..CHUNK.min(rest as usize)];
        from.read_exact(part)?;
        out.write_all(part)?;
        rest -= part.len() as u64;
    }
    out.write_all(&[0; 512][..((512 - size % 512) % 512) as usize])
}
