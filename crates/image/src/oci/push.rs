//! The pushing half of the OCI distribution specification: blobs that the registry lacks, each in one piece, then the manifest.

use super::reference::{Origin, Reference};
use super::registry::{Access, Registry, RegistryError, Repository};
use crate::export::oci::{MANIFEST_TYPE, OciImage};
use crate::objects::Objects;
use kiln_model::Digest;
use std::fs::File;
use std::io;
use ureq::SendBody;
use ureq::http::{Request, StatusCode, Uri, header};

/// An image could not be pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The reference is not one of a repository.
    #[error("`{0}` is not a place to push to")]
    Reference(String),
    /// The registry.
    #[error("cannot push to `{host}`")]
    Registry {
        /// Its host.
        host: String,
        /// Why.
        #[source]
        source: RegistryError,
    },
    /// The registry says to upload somewhere else.
    #[error("`{host}` wants uploads to go to `{location}`, which is another host")]
    Elsewhere {
        /// The registry.
        host: String,
        /// What it said.
        location: String,
    },
    /// The registry stored something else than was sent.
    #[error("`{host}` says that it stored {found}, not {sent}")]
    Other {
        /// The registry.
        host: String,
        /// What was sent.
        sent: Digest,
        /// What it said.
        found: String,
    },
}

impl PushError {
    /// What the user can do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Reference(_) => "name it as `HOST[:PORT]/NAME:TAG`".into(),
            Self::Registry { source: RegistryError::NotFound { .. }, .. } => {
                "does the repository have to be made first?".into()
            }
            Self::Registry { source, .. } => source.hint().into(),
            _ => "is this a registry, or a mirror of one? Push to the registry itself".into(),
        }
    }
}

/// What a push did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pushed {
    /// Bytes that were sent.
    pub sent: u64,
    /// Blobs that the registry had already.
    pub n_known: u32,
}

/// Pushes `image` to `reference`.
///
/// # Errors
/// [`PushError`]. What was uploaded by then stays in the registry, which removes what no manifest names.
pub fn push(
    registry: &Registry,
    objects: &Objects,
    image: &OciImage,
    reference: &str,
    progress: &mut dyn FnMut(String),
) -> Result<Pushed, PushError> {
    let parsed = Reference::parse(reference).map_err(|_| PushError::Reference(reference.to_owned()))?;
    let Reference { origin: Origin::Registry { host, name }, tag: Some(tag), digest: None } = parsed else {
        return Err(PushError::Reference(reference.to_owned()));
    };
    let to = Target { registry, repository: Repository { host: &host, name: &name } };
    let mut pushed = Pushed::default();
    let mut send = |digest: Digest, size: u64, body: &dyn Fn() -> io::Result<SendBody<'static>>| {
        if to.has(digest)? {
            pushed.n_known += 1;
            return Ok(());
        }
        progress(format!("sending {}, {} MB", digest.short(), size / 1_000_000));
        pushed.sent += size;
        to.upload(digest, size, body)
    };
    for blob in &image.layers {
        let path = objects.path(blob.digest);
        send(blob.digest, blob.size, &|| Ok(SendBody::from_owned_reader(File::open(&path)?)))?;
    }
    let config = &image.config;
    send(Digest::of(config), config.len() as u64, &|| Ok(owned(config)))?;
    pushed.sent += image.manifest.len() as u64;
    to.tag(&tag, &image.manifest)?;
    Ok(pushed)
}

fn owned(bytes: &[u8]) -> SendBody<'static> {
    SendBody::from_owned_reader(io::Cursor::new(bytes.to_vec()))
}

struct Target<'a> {
    registry: &'a Registry,
    repository: Repository<'a>,
}

impl Target<'_> {
    fn failed(&self) -> impl Fn(RegistryError) -> PushError + use<> {
        let host = self.repository.host.to_owned();
        move |source| PushError::Registry { host: host.clone(), source }
    }

    fn send(
        &self,
        request: ureq::http::request::Builder,
        body: &dyn Fn() -> io::Result<SendBody<'static>>,
        expected: &[StatusCode],
    ) -> Result<ureq::http::Response<ureq::Body>, PushError> {
        let url = request.uri_ref().map(Uri::to_string).unwrap_or_default();
        let unsent =
            |e: ureq::http::Error| RegistryError::Request { url: url.clone(), source: Box::new(e.into()) };
        let request = request.body(()).map_err(unsent).map_err(self.failed())?;
        let answer = self.registry.send(self.repository, Access::Push, &request, body);
        let answer = answer.map_err(self.failed())?;
        if expected.contains(&answer.status()) {
            return Ok(answer);
        }
        Err(self.failed()(super::registry::unexpected(self.repository, &url, answer)))
    }

    fn has(&self, digest: Digest) -> Result<bool, PushError> {
        let request = Request::head(self.registry.url(self.repository, &format!("blobs/{digest}")));
        let expected = [StatusCode::OK, StatusCode::NOT_FOUND];
        Ok(self.send(request, &|| Ok(SendBody::none()), &expected)?.status() == StatusCode::OK)
    }

    fn upload(
        &self,
        digest: Digest,
        size: u64,
        body: &dyn Fn() -> io::Result<SendBody<'static>>,
    ) -> Result<(), PushError> {
        let begin = self.registry.url(self.repository, "blobs/uploads/");
        let request = Request::post(&begin).header(header::CONTENT_LENGTH, 0);
        let answer = self.send(request, &|| Ok(owned(&[])), &[StatusCode::ACCEPTED])?;
        let location = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        let place = self.place(&begin, location.unwrap_or_default())?;
        let joint = if place.contains('?') { '&' } else { '?' };
        let request = Request::put(format!("{place}{joint}digest={digest}"))
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, size);
        self.send(request, body, &[StatusCode::CREATED]).map(|_| ())
    }

    /// Where an upload goes. Credentials are for one host, so it has to be that one.
    fn place(&self, begin: &str, location: &str) -> Result<String, PushError> {
        let elsewhere =
            || PushError::Elsewhere { host: self.repository.host.to_owned(), location: location.to_owned() };
        let begin: Uri = begin.parse().map_err(|_| elsewhere())?;
        let (Some(scheme), Some(authority)) = (begin.scheme_str(), begin.authority()) else {
            return Err(elsewhere());
        };
        if location.starts_with('/') && !location.starts_with("//") {
            return Ok(format!("{scheme}://{authority}{location}"));
        }
        let place: Uri = location.parse().map_err(|_| elsewhere())?;
        let same = place.authority() == Some(authority) && place.scheme_str() == Some(scheme);
        if same { Ok(location.to_owned()) } else { Err(elsewhere()) }
    }

    fn tag(&self, tag: &str, manifest: &[u8]) -> Result<(), PushError> {
        let request = Request::put(self.registry.url(self.repository, &format!("manifests/{tag}")))
            .header(header::CONTENT_TYPE, MANIFEST_TYPE)
            .header(header::CONTENT_LENGTH, manifest.len());
        let answer = self.send(request, &|| Ok(owned(manifest)), &[StatusCode::CREATED])?;
        let said = answer.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        let sent = Digest::of(manifest);
        match said {
            Some(found) if found != sent.to_string() => {
                let found = found.chars().take(80).collect();
                Err(PushError::Other { host: self.repository.host.to_owned(), sent, found })
            }
            _ => Ok(()),
        }
    }
}
