//! Which objects of the content store may go: all that nothing leads to. What leads somewhere ([`Roots`]) is the caller's to
//! say; this follows it through manifests and package lists.

use crate::bake;
use crate::objects::{ObjectError, Objects};
use kiln_model::Digest;
use kiln_spec::Lock;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Bytes of a manifest of an OCI image.
const OCI_MANIFEST_BYTES_MAX: u64 = 4 << 20;

/// Where reachability starts, each with the reason that is told.
#[derive(Debug, Clone, Default)]
pub struct Roots {
    /// Images by digest.
    pub images: Vec<(Digest, String)>,
    /// Locks: their packages and bases, so that their commits can be baked again without a network.
    pub locks: Vec<(Lock, String)>,
    /// Other objects, with what they are.
    pub others: Vec<(Digest, String)>,
}

/// What becomes of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Which.
    pub object: Digest,
    /// Its bytes.
    pub size: u64,
    /// What it is, as far as it is known.
    pub what: String,
    /// Why it stays; none if nothing leads to it.
    pub kept_by: Option<String>,
}

/// Objects could not be collected.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// A manifest that a release needs is damaged: nothing is removed, for what it leads to is not known.
    #[error("cannot tell what image {image} is made of ({kept_by})")]
    Root {
        /// Which image.
        image: Digest,
        /// Why it matters.
        kept_by: String,
        /// Why.
        #[source]
        source: Box<ObjectError>,
    },
    /// The store cannot be read or written.
    #[error("cannot {step} `{}`", path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// Which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

fn io(step: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> GcError {
    let path = path.to_owned();
    move |source| GcError::Io { step, path, source }
}

/// Decides on every object of the store; `cache` is the folder of what was made before. What was written less than `young` ago stays: it may belong to a bake or a lock
/// that nothing refers to yet.
///
/// # Errors
/// [`GcError::Root`] if a root cannot be followed; an unreadable store.
pub fn plan(
    objects: &Objects,
    cache: &Path,
    roots: &Roots,
    young: Duration,
) -> Result<Vec<Verdict>, GcError> {
    let mut reached = reach(objects, roots)?;
    used_lately(cache, young, &mut reached);
    let dir = objects.dir().join("sha256");
    let now = SystemTime::now();
    let mut verdicts = vec![];
    for folder in std::fs::read_dir(&dir).map_err(io("read", &dir))? {
        let folder = folder.map_err(io("read", &dir))?.path();
        for entry in std::fs::read_dir(&folder).map_err(io("read", &folder))? {
            let path = entry.map_err(io("read", &folder))?.path();
            let Some(object) = digest_of(&path) else { continue };
            let meta = std::fs::metadata(&path).map_err(io("read", &path))?;
            let age = meta.modified().ok().and_then(|time| now.duration_since(time).ok());
            // A time in the future says nothing about the age.
            let is_young = age.is_none_or(|age| age < young);
            let (what, kept_by) = match reached.get(&object) {
                Some((what, reason)) => (what.clone(), Some(reason.clone())),
                None => ("object".to_owned(), is_young.then(|| "it is new".to_owned())),
            };
            verdicts.push(Verdict { object, size: meta.len(), what, kept_by });
        }
    }
    verdicts.sort_by(|a, b| (b.size, a.object).cmp(&(a.size, b.object)));
    Ok(verdicts)
}

/// Removes what a plan does not keep; answers with the bytes that became free. An object that is gone already counts as
/// removed.
///
/// # Errors
/// [`GcError::Io`] with the first object that could not be removed.
pub fn remove(objects: &Objects, verdicts: &[Verdict]) -> Result<u64, GcError> {
    let mut bytes = 0;
    for verdict in verdicts.iter().filter(|verdict| verdict.kept_by.is_none()) {
        let path = objects.path(verdict.object);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io("remove", &path)(e)),
            _ => bytes += verdict.size,
        }
    }
    Ok(bytes)
}

/// Adds what a bake, a build or an export found in the cache less than `young` ago. An entry that cannot be read keeps nothing.
fn used_lately(cache: &Path, young: Duration, reached: &mut Reached) {
    #[derive(Deserialize)]
    struct Cached {
        digest: Digest,
    }
    for path in std::fs::read_dir(cache).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let used = std::fs::metadata(&path).and_then(|meta| meta.modified()).ok();
        let age = used.and_then(|time| SystemTime::now().duration_since(time).ok());
        if age.is_some_and(|age| age >= young) {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap_or_default();
        if let Ok(Cached { digest }) = serde_json::from_slice(&bytes) {
            reached.entry(digest).or_insert(("cached layer".into(), "it was used lately".into()));
        }
    }
}

type Reached = BTreeMap<Digest, (String, String)>;

fn reach(objects: &Objects, roots: &Roots) -> Result<Reached, GcError> {
    let mut reached = Reached::new();
    for (image, kept_by) in &roots.images {
        let manifest = match bake::manifest(objects, *image) {
            // It was never baked here, or is gone already: there is nothing to keep.
            Err(ObjectError::Missing(_)) => continue,
            other => other.map_err(|source| GcError::Root {
                image: *image,
                kept_by: kept_by.clone(),
                source: Box::new(source),
            })?,
        };
        reached.entry(*image).or_insert(("manifest".into(), kept_by.clone()));
        for layer in &manifest.layers {
            reached.entry(layer.digest).or_insert((format!("{} layer", layer.role), kept_by.clone()));
        }
    }
    for (object, what) in &roots.others {
        reached.entry(*object).or_insert((what.clone(), "this server needs it".to_owned()));
    }
    for (lock, kept_by) in &roots.locks {
        for package in &lock.packages {
            let what = format!("package {} {}", package.name, package.version);
            reached.entry(package.sha256).or_insert((what, kept_by.clone()));
        }
        for (reference, base) in &lock.bases {
            reached.entry(base.manifest).or_insert((format!("oci:{reference}"), kept_by.clone()));
            for blob in blobs(objects, base.manifest) {
                reached.entry(blob).or_insert((format!("blob of oci:{reference}"), kept_by.clone()));
            }
        }
    }
    Ok(reached)
}

/// What the manifest of an OCI image leads to; nothing if it is not there, for then it has to be fetched anew anyway.
fn blobs(objects: &Objects, manifest: Digest) -> Vec<Digest> {
    #[derive(Deserialize)]
    struct Blob {
        digest: Digest,
    }
    #[derive(Deserialize)]
    struct Manifest {
        config: Blob,
        layers: Vec<Blob>,
    }
    let bytes = objects.get(manifest, OCI_MANIFEST_BYTES_MAX).unwrap_or_default();
    let manifest: Option<Manifest> = serde_json::from_slice(&bytes).ok();
    manifest
        .into_iter()
        .flat_map(|m| m.layers.into_iter().chain([m.config]))
        .map(|blob| blob.digest)
        .collect()
}

fn digest_of(path: &Path) -> Option<Digest> {
    let name = path.file_name()?.to_str()?;
    let folder = path.parent()?.file_name()?.to_str()?;
    format!("{folder}{name}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_model::{ImageConfig, ImageManifest, LayerRef};
    use std::collections::BTreeSet;

    fn image(objects: &Objects, layers: &[&[u8]]) -> Digest {
        let layer = |bytes: &&[u8]| LayerRef {
            digest: objects.put(bytes).unwrap(),
            size: bytes.len() as u64,
            role: "app".into(),
        };
        let layers = layers.iter().map(layer).collect();
        let config = ImageConfig::default();
        let manifest = ImageManifest { format: 1, architecture: "amd64".into(), layers, config };
        objects.put(&manifest.canonical()).unwrap()
    }

    #[test]
    fn what_nothing_leads_to_goes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::open(dir.path()).unwrap();
        let (kept, lost) = (image(&objects, &[b"shared", b"one"]), image(&objects, &[b"shared", b"two"]));
        let deb = objects.put(b"a package").unwrap();
        let oci = ["config", "layer"].map(|text| objects.put(text.as_bytes()).unwrap());
        let manifest =
            format!(r#"{{"config":{{"digest":"{}"}},"layers":[{{"digest":"{}"}}]}}"#, oci[0], oci[1]);
        let manifest = objects.put(manifest.as_bytes()).unwrap();
        let stray = objects.put(b"stray").unwrap();
        let package = kiln_spec::lock::LockedPackage {
            name: "a".into(),
            version: "1".into(),
            architecture: "all".into(),
            sha256: deb,
            size: 9,
            path: "pool/a".into(),
            suite: "bookworm".into(),
            used_by: BTreeSet::new(),
        };
        let bases = [("x.test/y".to_owned(), kiln_spec::lock::LockedBase { manifest })].into();
        let lock = Lock { packages: vec![package], bases, ..Lock::default() };
        let kernel = objects.put(b"a kernel").unwrap();
        let roots = Roots {
            others: vec![(kernel, "kernel".into())],
            images: vec![(kept, "release 3".into()), (Digest::of(b"never baked"), "release 1".into())],
            locks: vec![(lock, "release 3".into())],
        };
        let cache = dir.path().join("cache");
        std::fs::create_dir(&cache).unwrap();
        let cached = objects.put(b"cached").unwrap();
        std::fs::write(cache.join("key"), format!(r#"{{"digest":"{cached}","size":6,"role":"x"}}"#)).unwrap();
        let hour = Duration::from_secs(3600);
        let mut reached = Reached::new();
        used_lately(&cache, hour, &mut reached);
        assert_eq!(reached.keys().collect::<Vec<_>>(), [&cached]);
        let plan = |roots: &Roots, young| super::plan(&objects, &cache, roots, young);
        let young = plan(&roots, hour).unwrap();
        assert!(young.iter().all(|verdict| verdict.kept_by.is_some()), "{young:?}");
        let verdicts = plan(&roots, Duration::ZERO).unwrap();
        let gone: BTreeSet<Digest> =
            verdicts.iter().filter(|v| v.kept_by.is_none()).map(|v| v.object).collect();
        assert_eq!(gone, [lost, Digest::of(b"two"), stray, cached].into());
        assert!(verdicts.iter().any(|v| v.what == "package a 1"));
        let bytes = remove(&objects, &verdicts).unwrap();
        assert_eq!(bytes, verdicts.iter().filter(|v| v.kept_by.is_none()).map(|v| v.size).sum::<u64>());
        for there in [kept, Digest::of(b"shared"), Digest::of(b"one"), deb, manifest, oci[0], oci[1], kernel]
        {
            assert!(objects.has(there), "{there}");
        }
        assert!(!objects.has(lost) && !objects.has(stray));
        std::fs::write(objects.path(kept), "damaged").unwrap();
        assert!(matches!(plan(&roots, Duration::ZERO), Err(GcError::Root { .. })));
    }
}
