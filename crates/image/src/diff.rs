//! What differs between two images, as an instance would see it: packages, files, configuration, size. Two layers that both
//! images share are read once and are equal without a look at their bytes.

use crate::bake;
use crate::erofs::Reader;
use crate::objects::{ObjectError, Objects};
use crate::tree::{Content, Kind, Node, Tree, TreeError};
use kiln_model::{Digest, ImageManifest};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;

/// Bytes of a file of dpkg's database.
const STATUS_BYTES_MAX: u64 = 64 << 20;
/// Bytes that are compared at a time.
const CHUNK: usize = 1 << 18;

/// Two images could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// A manifest is not there or is damaged.
    #[error("cannot read the manifest of image {image}")]
    Manifest {
        /// Which image.
        image: Digest,
        /// Why.
        #[source]
        source: ObjectError,
    },
    /// A layer is not there or is damaged.
    #[error("cannot read layer {layer}")]
    Layer {
        /// Which layer.
        layer: Digest,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The layers do not fit over each other.
    #[error("the layers of image {image} do not fit over each other")]
    Merge {
        /// Which image.
        image: Digest,
        /// Why.
        #[source]
        source: TreeError,
    },
}

/// What differs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDiff {
    /// Debian packages by name.
    pub packages: BTreeMap<String, Change<String>>,
    /// Files by absolute path, with what differs of them.
    pub files: BTreeMap<String, FileChange>,
    /// Values of the configuration by name.
    pub config: BTreeMap<String, Change<String>>,
    /// Bytes of all layers, before and after.
    pub size: (u64, u64),
    /// Layers of the second image that the first does not have, with their bytes: what a host that has the first lacks.
    pub new_layers: Vec<(Digest, u64)>,
}

/// A value before and after; one of them is missing if it is new or gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change<T> {
    /// In the first image.
    pub before: Option<T>,
    /// In the second.
    pub after: Option<T>,
}

/// What became of one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileChange {
    /// It is new; its bytes.
    Added(u64),
    /// It is gone; the bytes that it had.
    Removed(u64),
    /// It differs; the names of what differs: `type`, `content`, `target`, `mode`, `owner`, `attributes`.
    Changed(Vec<String>),
}

impl ImageDiff {
    /// Whether the images are the same to whoever runs in them.
    pub fn is_empty(&self) -> bool {
        self.packages.is_empty() && self.files.is_empty() && self.config.is_empty()
    }
}

/// Compares two images of one store. Times of files are left out: they follow the commit.
///
/// # Errors
/// [`DiffError`] names the image or layer that cannot be read.
pub fn diff(objects: &Objects, before: Digest, after: Digest) -> Result<ImageDiff, DiffError> {
    let mut layers = Layers { objects, read: HashMap::new() };
    let (old, new) = (layers.image(before)?, layers.image(after)?);
    let size = |manifest: &ImageManifest| manifest.layers.iter().map(|layer| layer.size).sum();
    let has = |digest| old.manifest.layers.iter().any(|layer| layer.digest == digest);
    let new_layers = new.manifest.layers.iter().filter(|layer| !has(layer.digest));
    let unreadable = |source| DiffError::Layer { layer: after, source };
    Ok(ImageDiff {
        packages: changes(&packages(&old.tree), &packages(&new.tree)),
        files: files(&old.tree, &new.tree).map_err(unreadable)?,
        config: changes(&config(&old.manifest), &config(&new.manifest)),
        size: (size(&old.manifest), size(&new.manifest)),
        new_layers: new_layers.map(|layer| (layer.digest, layer.size)).collect(),
    })
}

/// An image with all that is in it.
#[derive(Debug)]
struct Opened {
    manifest: ImageManifest,
    tree: Tree,
}

/// Layers that were read, so that a shared one is the same file in both images.
struct Layers<'a> {
    objects: &'a Objects,
    read: HashMap<Digest, Tree>,
}

impl Layers<'_> {
    fn image(&mut self, image: Digest) -> Result<Opened, DiffError> {
        let manifest = bake::manifest(self.objects, image);
        let manifest = manifest.map_err(|source| DiffError::Manifest { image, source })?;
        let mut trees = vec![];
        for layer in manifest.layers.iter().map(|layer| layer.digest) {
            let tree = match self.read.get(&layer) {
                Some(tree) => tree.clone(),
                None => {
                    let open = File::open(self.objects.path(layer)).and_then(Reader::open);
                    let tree = open.and_then(|reader| reader.tree());
                    let tree = tree.map_err(|source| DiffError::Layer { layer, source })?;
                    self.read.entry(layer).or_insert(tree).clone()
                }
            };
            trees.push(tree);
        }
        let tree = Tree::merge(trees).map_err(|source| DiffError::Merge { image, source })?;
        Ok(Opened { manifest, tree })
    }
}

/// The installed packages with their versions, as dpkg's database in the tree says.
pub fn packages(tree: &Tree) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let single = tree.get(b"var/lib/dpkg/status").into_iter();
    let folder = tree.iter().filter(|(path, _)| path.starts_with(b"var/lib/dpkg/status.d/"));
    for node in single.chain(folder.map(|(_, node)| node)) {
        let Kind::File(content) = &node.kind else { continue };
        if content.size() > STATUS_BYTES_MAX {
            continue;
        }
        // A database that cannot be read lists nothing; its file shows as changed.
        let bytes = content.read().unwrap_or_default();
        for stanza in String::from_utf8_lossy(&bytes).split("\n\n") {
            let field = |name: &str| {
                let line = stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                line.map(|value| value.trim().to_owned())
            };
            let gone = field("Status").is_some_and(|status| !status.ends_with(" installed"));
            if let (Some(name), Some(version), false) = (field("Package"), field("Version"), gone) {
                found.insert(name, version);
            }
        }
    }
    found
}

fn config(manifest: &ImageManifest) -> BTreeMap<String, String> {
    let users = manifest.config.users.iter();
    let mut values: BTreeMap<String, String> =
        users.map(|(name, (uid, gid))| (format!("user {name}"), format!("{uid}:{gid}"))).collect();
    values.insert("architecture".into(), manifest.architecture.clone());
    values.insert("epoch".into(), manifest.config.epoch.to_string());
    values
}

fn changes(
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
) -> BTreeMap<String, Change<String>> {
    let names = before.keys().chain(after.keys());
    let change = |name: &String| {
        let change = Change { before: before.get(name).cloned(), after: after.get(name).cloned() };
        (change.before != change.after).then(|| (name.clone(), change))
    };
    names.filter_map(change).collect()
}

fn files(before: &Tree, after: &Tree) -> std::io::Result<BTreeMap<String, FileChange>> {
    let mut found = BTreeMap::new();
    let size = |node: &Node| if let Kind::File(content) = &node.kind { content.size() } else { 0 };
    let text = |path: &[u8]| format!("/{}", String::from_utf8_lossy(path));
    for (path, node) in before.iter().filter(|(path, _)| after.get(path).is_none()) {
        found.insert(text(path), FileChange::Removed(size(node)));
    }
    for (path, node) in after.iter() {
        match before.get(path) {
            None => drop(found.insert(text(path), FileChange::Added(size(node)))),
            Some(old) => {
                let what = differences(old, node)?;
                if !what.is_empty() {
                    found.insert(text(path), FileChange::Changed(what));
                }
            }
        }
    }
    Ok(found)
}

fn differences(old: &Node, new: &Node) -> std::io::Result<Vec<String>> {
    let kind = match (&old.kind, &new.kind) {
        (Kind::File(a), Kind::File(b)) => (!same_bytes(a, b)?).then_some("content"),
        (Kind::Symlink(a), Kind::Symlink(b)) => (a != b).then_some("target"),
        (a, b) => (a != b).then_some("type"),
    };
    let rows = [
        kind,
        (old.mode != new.mode).then_some("mode"),
        ((old.uid, old.gid) != (new.uid, new.gid)).then_some("owner"),
        (old.xattrs != new.xattrs).then_some("attributes"),
    ];
    Ok(rows.into_iter().flatten().map(str::to_owned).collect())
}

/// Compares in pieces, so that large files are not held in memory.
fn same_bytes(a: &Content, b: &Content) -> std::io::Result<bool> {
    if a == b {
        return Ok(true);
    }
    if a.size() != b.size() {
        return Ok(false);
    }
    let (mut one, mut other) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut at = 0;
    while at < a.size() {
        let length = CHUNK.min((a.size() - at) as usize);
        a.read_at(&mut one[..length], at)?;
        b.read_at(&mut other[..length], at)?;
        if one[..length] != other[..length] {
            return Ok(false);
        }
        at += length as u64;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_model::{ImageConfig, LayerRef};

    fn layer(objects: &Objects, rows: &[(&str, Node)]) -> LayerRef {
        let mut tree = Tree::new();
        tree.insert(b"", Node::dir(0o755, 0)).unwrap();
        for (path, node) in rows {
            tree.insert(path.as_bytes(), node.clone()).unwrap();
        }
        let mut bytes = vec![];
        crate::erofs::write(&tree, &mut bytes).unwrap();
        let digest = objects.put(&bytes).unwrap();
        LayerRef { digest, size: bytes.len() as u64, role: "app".into() }
    }

    fn file(text: &str) -> Node {
        Node::file(Content::Bytes(text.as_bytes().into()), 0o644, 7)
    }

    fn image(objects: &Objects, layers: &[&LayerRef], epoch: i64) -> Digest {
        let config = ImageConfig { epoch, ..ImageConfig::default() };
        let layers = layers.iter().copied().cloned().collect();
        let manifest = ImageManifest { format: 1, architecture: "amd64".into(), layers, config };
        objects.put(&manifest.canonical()).unwrap()
    }

    #[test]
    fn every_kind_of_difference_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::open(dir.path()).unwrap();
        let status = |version: &str| {
            file(&format!(
                "Package: a\nStatus: install ok installed\nVersion: {version}\n\nPackage: b\nStatus: deinstall ok \
                 config-files\nVersion: 1\n"
            ))
        };
        let below = |version: &str| {
            let dirs = ["var", "var/lib", "var/lib/dpkg"].map(|path| (path, Node::dir(0o755, 7)));
            layer(&objects, &[&dirs[..], &[("var/lib/dpkg/status", status(version))]].concat())
        };
        let link = Node { kind: Kind::Symlink(b"x".to_vec()), ..Node::dir(0o777, 7) };
        let other_link = Node { kind: Kind::Symlink(b"y".to_vec()), ..link.clone() };
        let large = "z".repeat(CHUNK + 5);
        let old = layer(
            &objects,
            &[
                ("gone", file("123")),
                ("kept", file("1")),
                ("large", file(&large)),
                ("link", link.clone()),
                ("mode", file("1")),
                ("text", file("1")),
                ("type", file("1")),
            ],
        );
        let new = layer(
            &objects,
            &[
                ("kept", Node { mtime: 99, ..file("1") }),
                ("large", file(&format!("{}!", &large[1..]))),
                ("link", other_link),
                ("mode", Node { mode: 0o600, uid: 5, ..file("1") }),
                ("new", file("12")),
                ("text", file("2")),
                ("type", link),
            ],
        );
        let (one, two) = (below("1.0"), below("1.1"));
        let (a, b) = (image(&objects, &[&one, &old], 5), image(&objects, &[&two, &new], 6));
        let found = diff(&objects, a, b).unwrap();
        let change = |words: &[&str]| FileChange::Changed(words.iter().map(|w| (*w).to_owned()).collect());
        let expected = [
            ("/gone", FileChange::Removed(3)),
            ("/large", change(&["content"])),
            ("/link", change(&["target"])),
            ("/mode", change(&["mode", "owner"])),
            ("/new", FileChange::Added(2)),
            ("/text", change(&["content"])),
            ("/type", change(&["type", "mode"])),
            ("/var/lib/dpkg/status", change(&["content"])),
        ];
        assert_eq!(found.files, expected.map(|(path, change)| (path.to_owned(), change)).into());
        let version = Change { before: Some("1.0".to_owned()), after: Some("1.1".to_owned()) };
        assert_eq!(found.packages, [("a".to_owned(), version)].into());
        assert_eq!(found.config.keys().collect::<Vec<_>>(), ["epoch"]);
        assert_eq!(found.new_layers.len(), 2);
        assert!(diff(&objects, a, a).unwrap().is_empty());
        let same = diff(&objects, a, image(&objects, &[&one, &new], 5)).unwrap();
        assert!(same.packages.is_empty() && same.new_layers.len() == 1);
    }
}
