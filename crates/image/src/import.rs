//! Images of other tools, or that kiln exported, become images of kiln: each archive a layer, and a manifest over them.
//!
//! What kiln exported comes back as the very same image: its archives hold all that its layers hold, and the rest stands in the
//! configuration. Whether it does is not believed but computed: the digest of the manifest that results is the image's name.

use crate::attest;
use crate::bake::{self, ARCHITECTURE, FORMAT};
use crate::erofs::{Reader, Stack};
use crate::layers::{LayersError, import_layer};
use crate::objects::{ObjectError, Objects, write_durable};
use crate::oci::manifest::{Config, DOCUMENT_BYTES_MAX, Manifest, ManifestError};
use crate::oci::reference::{Origin, Reference};
use crate::oci::{FetchError, Fetcher};
use kiln_model::{Digest, ImageConfig, ImageManifest, LayerRef};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

/// The role of a layer that does not say what it is for.
const ROLE: &str = "imported";
/// Bytes of a role.
const ROLE_BYTES_MAX: usize = 32;
/// The name of an image that no kiln.toml names, and what git writes where there is no commit.
const NAME: &str = "imported";
const NO_COMMIT: &str = "0000000000000000000000000000000000000000";

/// An image could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It did not arrive, or there is no room for it.
    #[error("cannot keep the archive")]
    Upload(#[source] std::io::Error),
    /// It cannot be read.
    #[error("cannot read the image")]
    Fetch(#[source] Box<FetchError>),
    /// Its configuration.
    #[error("the configuration of the image cannot be used")]
    Config(#[from] ManifestError),
    /// One of its layers.
    #[error("cannot import the image")]
    Layer(#[source] Box<LayersError>),
    /// A layer that was just written cannot be read.
    #[error("cannot read layer {layer}")]
    Read {
        /// Which one.
        layer: Digest,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The content store.
    #[error("the content store failed")]
    Objects(#[from] ObjectError),
    /// The record beside the image.
    #[error("cannot write the record of the image")]
    Record(#[source] std::io::Error),
}

/// An image that was imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Imported {
    /// What names it.
    pub image: Digest,
    /// Bytes of its layers.
    pub size: u64,
    /// Which image of kiln it says that it is.
    pub said: Option<Digest>,
}

/// What kiln writes into a configuration beside what runs it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Extra {
    created: Option<String>,
    history: Vec<History>,
    config: Option<Labelled>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct History {
    created_by: Option<String>,
    empty_layer: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Labelled {
    labels: Option<BTreeMap<String, String>>,
}

impl Extra {
    /// The roles of `n` layers.
    fn roles(&self, n: usize) -> Vec<String> {
        let rows: Vec<_> = self.history.iter().filter(|row| !row.empty_layer).collect();
        let role = |row: &History| {
            let word = row.created_by.as_deref()?.strip_prefix("kiln ")?.strip_suffix(" layer")?;
            let legal = word.len() <= ROLE_BYTES_MAX && word.bytes().all(|b| b.is_ascii_lowercase());
            legal.then(|| word.to_owned())
        };
        let known = |at: usize| rows.get(at).filter(|_| rows.len() == n).and_then(|row| role(row));
        (0..n).map(|at| known(at).unwrap_or_else(|| ROLE.to_owned())).collect()
    }

    fn label(&self, name: &str) -> Option<&str> {
        self.config.as_ref()?.labels.as_ref()?.get(name).map(String::as_str)
    }
}

/// Imports the one image in the OCI layout, OCI archive or Docker archive at `path`, which is called `called` in its record.
///
/// # Errors
/// [`ImportError`].
pub fn import(
    state: &Path,
    objects: &Objects,
    path: &Path,
    called: &str,
    progress: &mut dyn FnMut(String),
) -> Result<Imported, ImportError> {
    let fetcher = Fetcher { objects, auth: None };
    let reference = Reference { origin: Origin::Path(path.to_owned()), tag: None, digest: None };
    let fetched = fetcher.fetch_reference(called, reference, None, progress);
    let manifest = fetched.map_err(|e| ImportError::Fetch(e.into()))?;
    let manifest = Manifest::parse(&objects.get(manifest, DOCUMENT_BYTES_MAX)?)?;
    let bytes = objects.get(manifest.config.digest, DOCUMENT_BYTES_MAX)?;
    let config = Config::parse(&bytes, manifest.layers.len())?;
    let extra: Extra = serde_json::from_slice(&bytes).map_err(ManifestError::Json)?;
    let (mut stack, mut layers) = (Stack::default(), vec![]);
    let roles = extra.roles(manifest.layers.len());
    for ((blob, archive), role) in manifest.layers.iter().zip(&config.rootfs.diff_ids).zip(roles) {
        progress(format!("importing layer {} of {}", layers.len() + 1, manifest.layers.len()));
        let written = import_layer(objects, blob.digest, *archive, &stack, progress);
        let (_, (digest, size)) = written.map_err(|e| ImportError::Layer(e.into()))?;
        let reader = File::open(objects.path(digest)).and_then(Reader::open);
        stack.push(reader.map_err(|source| ImportError::Read { layer: digest, source })?);
        layers.push(LayerRef { digest, size, role });
    }
    let users =
        users(&stack).map_err(|source| ImportError::Read { layer: manifest.config.digest, source })?;
    let created: Option<jiff::Timestamp> = extra.created.as_deref().and_then(|text| text.parse().ok());
    let epoch = created.map_or(0, jiff::Timestamp::as_second);
    let size = layers.iter().map(|layer| layer.size).sum();
    let config = ImageConfig { epoch, users };
    let own = ImageManifest { format: FORMAT, architecture: ARCHITECTURE.into(), layers, config };
    let image = objects.put(&own.canonical())?;
    record(state, image, called, extra.label("org.opencontainers.image.revision"))?;
    let said = extra.label("kiln.image").and_then(|text| text.strip_prefix("sha256:")?.parse().ok());
    Ok(Imported { image, size, said })
}

fn users(stack: &Stack) -> std::io::Result<BTreeMap<String, (u32, u32)>> {
    match stack.get(b"etc/passwd")? {
        Some((found, reader)) if !found.is_dir() && !found.is_symlink() => {
            Ok(bake::parse_users(&String::from_utf8_lossy(&reader.read(&found)?)))
        }
        _ => Ok(BTreeMap::new()),
    }
}

/// Writes the record of an image that was not baked here, unless there is one.
fn record(state: &Path, image: Digest, called: &str, revision: Option<&str>) -> Result<(), ImportError> {
    let path = attest::note_path(state, image);
    if path.exists() {
        return Ok(());
    }
    let is_commit =
        |text: &&str| text.len() == NO_COMMIT.len() && text.bytes().all(|b| b.is_ascii_hexdigit());
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let record = json!({
        "image": image,
        "name": NAME,
        "commit": revision.filter(is_commit).unwrap_or(NO_COMMIT),
        "imported_at": since.unwrap_or_default().as_secs(),
        "imported_from": called,
        "importer": format!("kiln {}", env!("CARGO_PKG_VERSION")),
    });
    let bytes = serde_json::to_vec_pretty(&record).unwrap_or_default();
    write_durable(&path, &bytes).map_err(ImportError::Record)
}

#[cfg(test)]
mod tests {
    use crate::erofs::{self, Reader, Stack};
    use crate::export::tarball;
    use crate::oci::layer;
    use crate::tree::{Content, Kind, Node, OPAQUE, SharedFile, Tree};
    use std::fs::File;
    use std::io::Write;
    use std::sync::Arc;

    fn written(tree: &Tree) -> (Vec<u8>, File) {
        let mut bytes = vec![];
        erofs::write(tree, &mut bytes).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        (bytes, file)
    }

    fn node(tree: &mut Tree, path: &str, node: Node) {
        tree.insert(path.as_bytes(), node).unwrap();
    }

    fn file(text: &str, mode: u32, mtime: i64) -> Node {
        Node::file(Content::Bytes(text.as_bytes().into()), mode, mtime)
    }

    /// Whatever a layer can hold: odd roots, links, owners, times, attributes, whiteouts, opaque directories.
    fn layers() -> [Tree; 2] {
        let mut base = Tree::new();
        node(&mut base, "", Node { uid: 5, ..Node::dir(0o711, 1_700_000_123) });
        for dir in ["a", "gone", "gone/deep", "hidden", &"n".repeat(150)] {
            node(&mut base, dir, Node::dir(0o755, -7));
        }
        node(&mut base, "a/setuid", Node { gid: 70_000, ..file("x", 0o4755, 1_700_000_123) });
        node(&mut base, "a/empty", file("", 0o600, 3));
        let far = Kind::Symlink(vec![b'y'; 300]);
        node(&mut base, "a/far", Node { kind: far, ..Node::dir(0o777, 9) });
        let long = format!("{}/{}", "n".repeat(150), "m".repeat(200));
        node(&mut base, &long, file(&"z".repeat(10_000), 0o644, 1_700_000_123));
        let mut capable = file("ping", 0o755, 1_700_000_123);
        capable.xattrs = Arc::new([(b"security.capability".to_vec(), vec![1, 0, 0, 2])].into());
        node(&mut base, "a/ping", capable);
        let shared = SharedFile(Arc::new(tempfile::tempfile().unwrap()));
        shared.0.set_len(8192).unwrap();
        for name in ["a/one", "a/two"] {
            let content = Content::Slice { file: shared.clone(), at: 0, size: 8192 };
            node(&mut base, name, Node::file(content, 0o644, 11));
        }
        let mut top = Tree::new();
        node(&mut top, "", Node::dir(0o755, 1_700_000_999));
        node(&mut top, "gone", Node { kind: Kind::Whiteout, ..Node::dir(0, 0) });
        let mut opaque = Node::dir(0o700, 4);
        opaque.xattrs = Arc::new([(OPAQUE.0.to_vec(), OPAQUE.1.to_vec())].into());
        node(&mut top, "hidden", opaque);
        node(&mut top, "hidden/new", file("new", 0o644, 4));
        [base, top]
    }

    #[test]
    fn a_layer_comes_back_from_its_archive_byte_for_byte() {
        let mut stack = Stack::default();
        for tree in layers() {
            let (bytes, image) = written(&tree);
            // As an export reads it: from the layer, not from what the layer was made of.
            let stored = Reader::open(image.try_clone().unwrap()).unwrap().tree().unwrap();
            let mut archive = vec![];
            tarball::write(&stored, &mut archive).unwrap();
            let mut kept = tempfile::tempfile().unwrap();
            kept.write_all(&archive).unwrap();
            let read = layer::read(&SharedFile(Arc::new(kept)), archive.len() as u64, &stack).unwrap();
            assert_eq!(read.notes, Vec::<String>::new());
            assert!(written(&read.tree).0 == bytes, "{:#?}", read.tree);
            stack.push(Reader::open(image).unwrap());
        }
    }
}
