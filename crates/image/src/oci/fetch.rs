//! Brings an image into the content store, whole: what a bake takes is there, and nothing else is asked for.

use super::manifest::{
    CONFIG_TYPE, Descriptor, Document, LAYER_TYPE, MANIFEST_TYPE, Manifest, ManifestError,
};
use super::place::{BLOB_BYTES_MAX, Place, PlaceError};
use super::reference::{Origin, Reference, ReferenceError};
use super::registry::{Registry, RegistryError, Repository};
use crate::objects::{ObjectError, Objects};
use kiln_model::Digest;
use serde::Deserialize;
use std::path::Path;

/// Bytes of all blobs of one image.
const IMAGE_BYTES_MAX: u64 = 16 << 30;
/// Indexes that list indexes.
const NESTED_MAX: u32 = 3;
/// Names of images that are told of.
const NAMED_MAX: usize = 8;

/// An image cannot be brought in.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A file of the server.
    #[error("base `oci:{reference}`")]
    Place {
        /// Which base.
        reference: String,
        /// Why.
        #[source]
        source: Box<PlaceError>,
    },
    /// A registry.
    #[error("base `oci:{reference}`")]
    Registry {
        /// Which base.
        reference: String,
        /// Why.
        #[source]
        source: Box<RegistryError>,
    },
    /// A manifest, an index or a configuration.
    #[error("base `oci:{reference}`: cannot use its {what}")]
    Document {
        /// Which base.
        reference: String,
        /// Which document.
        what: &'static str,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// There is no such image, or more than one.
    #[error("base `oci:{reference}`: {why}")]
    Which {
        /// Which base.
        reference: String,
        /// What is there instead.
        why: String,
    },
    /// A part of it is not there any more.
    #[error("base `oci:{reference}`: {digest} is neither in the content store nor where the base is")]
    Gone {
        /// Which base.
        reference: String,
        /// What is missing.
        digest: Digest,
    },
    /// The content store.
    #[error("base `oci:{reference}`: cannot store it")]
    Objects {
        /// Which base.
        reference: String,
        /// Why.
        #[source]
        source: ObjectError,
    },
}

impl FetchError {
    /// What the user can do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Registry { source, .. } => source.hint().to_owned(),
            Self::Which { .. } => "name one of its images: `oci:PATH:TAG`".to_owned(),
            Self::Place { .. } => {
                "`oci:` with a path takes an OCI layout folder, an OCI archive or a Docker archive on the server".to_owned()
            }
            Self::Gone { .. } => {
                "bring the image back, or take the one that is there by `kiln lock --update`".to_owned()
            }
            _ => "check the base in kiln.toml".to_owned(),
        }
    }

    /// Whether it may work when it is tried again as it is.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Registry { source, .. } if source.may_pass())
    }
}

/// Brings images in.
#[derive(Debug)]
pub struct Fetcher<'a> {
    /// Where they go.
    pub objects: &'a Objects,
    /// The file with the credentials of registries.
    pub auth: Option<&'a Path>,
}

/// One image on its way.
struct Job<'a> {
    text: &'a str,
    reference: Reference,
    objects: &'a Objects,
    from: From,
}

enum From {
    Place(Place),
    Registry(Registry),
}

/// A row of a Docker archive's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Fetcher<'_> {
    /// Brings in what stands behind `oci:`, or of it the image with the manifest `pinned`. Answers with the digest of the
    /// manifest for this machine; when it does, every blob is in the content store.
    ///
    /// # Errors
    /// [`FetchError`].
    pub fn fetch(
        &self,
        text: &str,
        pinned: Option<Digest>,
        progress: &mut dyn FnMut(String),
    ) -> Result<Digest, FetchError> {
        if let Some(manifest) = pinned
            && self.missing(text, manifest)?.is_none()
        {
            return Ok(manifest);
        }
        self.fetch_reference(text, Reference::parse(text)?, pinned, progress)
    }

    /// As [`Fetcher::fetch`], of a reference that is called `text` in what is told of it.
    ///
    /// # Errors
    /// [`FetchError`].
    pub fn fetch_reference(
        &self,
        text: &str,
        reference: Reference,
        pinned: Option<Digest>,
        progress: &mut dyn FnMut(String),
    ) -> Result<Digest, FetchError> {
        progress(format!("fetching base `oci:{text}`"));
        let from = match &reference.origin {
            Origin::Path(path) => {
                let place = Place::open(path, self.objects);
                From::Place(place.map_err(|source| FetchError::Place {
                    reference: text.to_owned(),
                    source: source.into(),
                })?)
            }
            Origin::Registry { .. } => {
                let registry = Registry::new(self.auth);
                let failed = |source: RegistryError| FetchError::Registry {
                    reference: text.to_owned(),
                    source: source.into(),
                };
                From::Registry(registry.map_err(failed)?)
            }
        };
        let job = Job { text, reference, objects: self.objects, from };
        if let From::Place(place) = &job.from
            && job.document(place, "index.json")?.is_none()
        {
            return job.docker(place, pinned);
        }
        let (digest, bytes) = job.manifest(pinned)?;
        let manifest = Manifest::parse(&bytes).map_err(|e| job.bad("manifest", e))?;
        job.blobs(&manifest, progress)?;
        // Last, so that a manifest in the store means that all is there.
        job.objects.put(&bytes).map_err(|e| job.store(e))?;
        Ok(digest)
    }

    /// The first part of an image that the content store lacks.
    pub fn missing(&self, text: &str, manifest: Digest) -> Result<Option<Digest>, FetchError> {
        if !self.objects.has(manifest) {
            return Ok(Some(manifest));
        }
        let manifest = stored_manifest(self.objects, text, manifest)?;
        Ok(manifest.blobs().map(|blob| blob.digest).find(|digest| !self.objects.has(*digest)))
    }
}

/// A manifest of the content store.
pub fn stored_manifest(objects: &Objects, text: &str, manifest: Digest) -> Result<Manifest, FetchError> {
    let stored = objects.get(manifest, super::manifest::DOCUMENT_BYTES_MAX);
    let bytes = stored.map_err(|source| FetchError::Objects { reference: text.to_owned(), source })?;
    Manifest::parse(&bytes).map_err(|source| FetchError::Document {
        reference: text.to_owned(),
        what: "manifest",
        source,
    })
}

impl Job<'_> {
    fn bad(&self, what: &'static str, source: ManifestError) -> FetchError {
        FetchError::Document { reference: self.text.to_owned(), what, source }
    }

    fn place(&self, source: PlaceError) -> FetchError {
        FetchError::Place { reference: self.text.to_owned(), source: source.into() }
    }

    fn registry(&self, source: RegistryError) -> FetchError {
        FetchError::Registry { reference: self.text.to_owned(), source: source.into() }
    }

    fn store(&self, source: ObjectError) -> FetchError {
        FetchError::Objects { reference: self.text.to_owned(), source }
    }

    fn which(&self, why: impl Into<String>) -> FetchError {
        FetchError::Which { reference: self.text.to_owned(), why: why.into() }
    }

    fn gone(&self, digest: Digest) -> FetchError {
        FetchError::Gone { reference: self.text.to_owned(), digest }
    }

    fn document(&self, place: &Place, name: &str) -> Result<Option<Vec<u8>>, FetchError> {
        place.small(name).map_err(|e| self.place(e))
    }

    fn repository(&self) -> Repository<'_> {
        match &self.reference.origin {
            Origin::Registry { host, name } => Repository { host, name },
            Origin::Path(_) => Repository { host: "", name: "" },
        }
    }

    /// A document by its digest, verified.
    fn by_digest(&self, digest: Digest) -> Result<Vec<u8>, FetchError> {
        let bytes = match &self.from {
            From::Place(place) => {
                self.document(place, &blob_path(digest))?.ok_or_else(|| self.gone(digest))?
            }
            From::Registry(registry) => {
                let read = registry.manifest(self.repository(), &digest.to_string());
                read.map_err(|e| match e {
                    RegistryError::NotFound { .. } => self.gone(digest),
                    e => self.registry(e),
                })?
            }
        };
        let found = Digest::of(&bytes);
        if found == digest {
            Ok(bytes)
        } else {
            Err(self.store(ObjectError::Mismatch { expected: digest, found }))
        }
    }

    /// The manifest for this machine.
    fn manifest(&self, pinned: Option<Digest>) -> Result<(Digest, Vec<u8>), FetchError> {
        let mut tag = self.reference.tag.as_deref();
        let mut bytes = match (pinned.or(self.reference.digest), &self.from) {
            (Some(digest), _) => {
                tag = None;
                self.by_digest(digest)?
            }
            (None, From::Place(place)) => {
                self.document(place, "index.json")?.ok_or_else(|| self.which("it has no `index.json`"))?
            }
            (None, From::Registry(registry)) => {
                let read = registry.manifest(self.repository(), tag.take().unwrap_or("latest"));
                read.map_err(|e| self.registry(e))?
            }
        };
        for _ in 0..NESTED_MAX {
            let index = match Document::parse(&bytes).map_err(|e| self.bad("manifest", e))? {
                Document::Manifest(_) => return Ok((Digest::of(&bytes), bytes)),
                Document::Index(index) => index,
            };
            let mut found = index.candidates(tag.take());
            found.dedup_by_key(|d| d.digest);
            // Several in an index that somebody named are variants; in a layout they are different images.
            let several = found.len() > 1 && matches!(self.from, From::Place(_));
            let chosen = match found[..] {
                [one, ..] if !several => one.digest,
                [] => {
                    return Err(self
                        .which(format!("it has no such image for linux/amd64{}", names(&index.manifests))));
                }
                _ => return Err(self.which(format!("it has more than one image{}", names(&index.manifests)))),
            };
            bytes = self.by_digest(chosen)?;
        }
        Err(self.which("its indexes are nested too deep"))
    }

    fn blobs(&self, manifest: &Manifest, progress: &mut dyn FnMut(String)) -> Result<(), FetchError> {
        let too_large =
            |what: &str| self.bad("manifest", ManifestError::Invalid(format!("{what} is too large")));
        if manifest.blobs().any(|blob| blob.size > BLOB_BYTES_MAX) {
            return Err(too_large("a layer"));
        }
        let missing: Vec<&Descriptor> = manifest.blobs().filter(|b| !self.objects.has(b.digest)).collect();
        // No sum of [`LAYERS_MAX`] of them overflows.
        let bytes: u64 = missing.iter().map(|blob| blob.size).sum();
        if bytes > IMAGE_BYTES_MAX {
            return Err(too_large("the image"));
        }
        if !missing.is_empty() {
            progress(format!(
                "fetching {} parts of `oci:{}`, {} MB",
                missing.len(),
                self.text,
                bytes / 1_000_000
            ));
        }
        for blob in missing {
            self.blob(blob)?;
        }
        Ok(())
    }

    fn blob(&self, blob: &Descriptor) -> Result<(), FetchError> {
        match &self.from {
            From::Place(place) => {
                let stored = place.store(&blob_path(blob.digest), Some(blob.digest), self.objects);
                stored.map_err(|e| self.place(e))?.ok_or_else(|| self.gone(blob.digest))?;
            }
            From::Registry(registry) => {
                let mut pending = self.objects.create().map_err(|e| self.store(e))?;
                let read = registry.blob(self.repository(), blob, pending.file());
                read.map_err(|e| match e {
                    RegistryError::NotFound { .. } => self.gone(blob.digest),
                    e => self.registry(e),
                })?;
                pending.finish_as(blob.digest).map_err(|e| self.store(e))?;
            }
        }
        Ok(())
    }

    /// An image of a Docker archive, which has no manifest: one is written, always the same for the same image.
    fn docker(&self, place: &Place, pinned: Option<Digest>) -> Result<Digest, FetchError> {
        let bytes = self.document(place, "manifest.json")?;
        let bytes = bytes.ok_or_else(|| self.which("it has neither `index.json` nor `manifest.json`"))?;
        let bad = |e: serde_json::Error| self.bad("manifest", e.into());
        let images: Vec<DockerImage> = serde_json::from_slice(&bytes).map_err(bad)?;
        let tag = self.reference.tag.as_deref();
        let has = |image: &&DockerImage| match tag {
            None => true,
            Some(tag) => {
                let tags = image.repo_tags.iter().flatten();
                tags.into_iter().any(|t| t.rsplit_once(':').is_some_and(|(_, t)| t == tag))
            }
        };
        let mut found = images.iter().filter(has);
        let (Some(image), None) = (found.next(), found.next()) else {
            let all: Vec<String> =
                images.iter().flat_map(|i| i.repo_tags.iter().flatten().cloned()).collect();
            return Err(self.which(format!("exactly one of its images has to fit ({})", all.join(", "))));
        };
        let store = |name: &str, media_type: &str| {
            let stored = place.store(name, None, self.objects).map_err(|e| self.place(e))?;
            let (digest, size) = stored.ok_or_else(|| self.which(format!("it lacks `{name}`")))?;
            Ok::<_, FetchError>(Descriptor {
                media_type: media_type.to_owned(),
                digest,
                size,
                platform: None,
                annotations: None,
            })
        };
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(MANIFEST_TYPE.to_owned()),
            config: store(&image.config, CONFIG_TYPE)?,
            layers: image.layers.iter().map(|name| store(name, LAYER_TYPE)).collect::<Result<_, _>>()?,
        };
        let bytes = serde_json::to_vec(&manifest).map_err(bad)?;
        Manifest::parse(&bytes).map_err(|e| self.bad("manifest", e))?;
        let digest = Digest::of(&bytes);
        match pinned.or(self.reference.digest) {
            Some(expected) if expected != digest => Err(self.gone(expected)),
            _ => self.objects.put(&bytes).map_err(|e| self.store(e)),
        }
    }
}

fn blob_path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// What a layout has, for people.
fn names(manifests: &[Descriptor]) -> String {
    let tags: Vec<&str> = manifests.iter().filter_map(Descriptor::tag).take(NAMED_MAX).collect();
    if tags.is_empty() { String::new() } else { format!(": it has {}", tags.join(", ")) }
}
