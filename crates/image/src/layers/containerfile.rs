//! What buildah makes of a Containerfile of the commit: an OCI image, found again by the committed tree.

use super::{Below, LayersError, Room, oci};
use crate::containerfile::{self, Build};
use crate::objects::write_durable;
use crate::oci::Fetcher;
use crate::source::Sources;
use kiln_model::Digest;

/// Changes whenever buildah is called in another way.
const BUILDER: &str = "kiln containerfile 1";

pub(super) fn below(room: &mut Room<'_>, path: &str) -> Result<Below, LayersError> {
    let job = room.job;
    let failed = |source| LayersError::Containerfile { path: path.to_owned(), source: Box::new(source) };
    let sources = Sources::new(&job.state.join("repos"));
    let files = sources.list(&job.project, &job.commit).map_err(|e| failed(e.into()))?;
    let mut key = format!("{BUILDER}\n{path}\n").into_bytes();
    for file in &files {
        key.extend_from_slice(format!("{:o} {} ", file.mode, file.id).as_bytes());
        key.extend_from_slice(&file.path);
        key.push(0);
    }
    let key = Digest::of(&key);
    let _one_at_a_time = room.cache.lock(key)?;
    let fetcher = Fetcher { objects: room.objects, auth: None };
    let name = format!("containerfile:{path}");
    let place = room.cache.path(key);
    let known = std::fs::read_to_string(&place).ok().and_then(|text| text.parse::<Digest>().ok());
    let known = known.filter(|manifest| matches!(fetcher.missing(&name, *manifest), Ok(None)));
    let manifest = match known {
        Some(manifest) => manifest,
        None => {
            let build = Build { job, sources: &sources, files: &files, path };
            let manifest = containerfile::build(&build, &fetcher, room.progress).map_err(failed)?;
            let written = write_durable(&place, manifest.to_string().as_bytes());
            written.map_err(|source| LayersError::Cache { path: place, source })?;
            manifest
        }
    };
    let below = oci::import(room, &name, manifest)?;
    let why = format!("`{path}` is run by buildah, which does not pin what it takes");
    Ok(Below { unreproducible: Some(why), ..below })
}
