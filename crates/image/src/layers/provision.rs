//! What a playbook of the commit changes, as a layer of its own. Ansible comes in a layer between, which the image does not
//! get.

use super::debian::{fetch, packages};
use super::{LayersError, Room};
use crate::debian::rootfs::{Installer, Playbook, PlaybookFile};
use crate::source::{SourceError, SourceFile, Sources};
use crate::tree::Content;
use kiln_model::{Digest, LayerRef};
use kiln_spec::lock::LockedPackage;
use kiln_spec::{Base, RecipeName};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Changes whenever the same playbook gives another layer.
const PROVISIONER: &str = "kiln provisioner 1";
const ROLE: &str = "provision";
const TOOLS: &str = "tools";

/// The layer that the playbook at `path` of the commit makes over `below`.
pub(super) fn over(room: &mut Room<'_>, below: &[LayerRef], path: &str) -> Result<LayerRef, LayersError> {
    let mut below = below.to_vec();
    below.extend(tools(room, &below)?);
    let job = room.job;
    let sources = Sources::new(&job.state.join("repos"));
    let read = |source| LayersError::Playbook { path: path.to_owned(), source };
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let all = sources.list(&job.project, &job.commit).map_err(read)?;
    let files: Vec<(&SourceFile, String)> =
        all.iter().filter_map(|f| Some((f, inside(f, folder)?))).collect();
    let name = path.rsplit('/').next().unwrap_or(path);
    if !files.iter().any(|(_, file)| file == name) {
        return Err(LayersError::NoPlaybook(path.to_owned()));
    }
    let mut key = format!("{PROVISIONER}\n{} {name}\n", job.recipe.name);
    below.iter().for_each(|layer| key.push_str(&format!("below {}\n", layer.digest)));
    files.iter().for_each(|(file, path)| key.push_str(&format!("{:o} {} {path}\0", file.mode, file.id)));
    let key = Digest::of(key.as_bytes());
    let _one_at_a_time = room.cache.lock(key)?;
    if let Some(layer) = room.cache.get(key) {
        return Ok(layer);
    }
    let ids: Vec<String> = files.iter().map(|(file, _)| file.id.clone()).collect();
    let contents = sources.contents(&job.project, &ids).map_err(read)?;
    let spooled = |source| read(SourceError::Io { step: "read a temporary file", source });
    let file = |((file, path), content): ((&SourceFile, String), Content)| {
        let bytes = content.read().map_err(spooled)?.into_owned();
        Ok(PlaybookFile { path, mode: file.mode, bytes })
    };
    let files = files.into_iter().zip(contents).map(file).collect::<Result<_, LayersError>>()?;
    // Names of groups have no `-`.
    let playbook =
        Playbook { path: name.to_owned(), group: job.recipe.name.as_str().replace('-', "_"), files };
    (room.progress)(format!("running playbook {path}"));
    let paths: Vec<PathBuf> = below.iter().map(|layer| room.objects.path(layer.digest)).collect();
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    let mut layer = room.objects.create()?;
    let done = Installer::new(job.program.clone()).provision(&paths, &playbook, layer.file());
    done.map_err(|source| LayersError::Provision { path: path.to_owned(), source })?;
    room.cache.put(key, ROLE, layer.finish()?)
}

/// Its path in the folder of the playbook; none if it is not there, or is no file.
fn inside(file: &SourceFile, folder: &str) -> Option<String> {
    let path = std::str::from_utf8(&file.path).ok().filter(|_| file.mode != 0o160_000)?;
    match folder {
        "" => Some(path.to_owned()),
        folder => Some(path.strip_prefix(folder)?.strip_prefix('/')?.to_owned()),
    }
}

/// The layer with Ansible; none if the image has to bring it itself.
fn tools(room: &mut Room<'_>, below: &[LayerRef]) -> Result<Option<LayerRef>, LayersError> {
    let Base::Debian { suite } = &room.job.recipe.base else { return Ok(None) };
    let name = RecipeName::provisioner(&room.job.recipe.name);
    let lock = room.job.lock.as_ref().ok_or_else(|| LayersError::NoLock(name.to_string()))?;
    let own: BTreeSet<&str> = lock.used_by(room.job.recipe.name.as_str()).map(|p| p.name.as_str()).collect();
    let rows: Vec<&LockedPackage> =
        lock.used_by(name.as_str()).filter(|row| !own.contains(row.name.as_str())).collect();
    if rows.is_empty() {
        return Ok(None);
    }
    let key = super::debian::key(TOOLS, &rows, below.last().map(|layer| layer.digest));
    let _one_at_a_time = room.cache.lock(key)?;
    if let Some(layer) = room.cache.get(key) {
        return Ok(Some(layer));
    }
    fetch(room.job, room.objects, suite, &rows, room.progress)?;
    (room.progress)(format!("installing {} packages for the playbook", rows.len()));
    let paths: Vec<PathBuf> = below.iter().map(|layer| room.objects.path(layer.digest)).collect();
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    let mut layer = room.objects.create()?;
    let packages = packages(room.objects, &rows);
    let done = Installer::new(room.job.program.clone()).install_over(&paths, &packages, layer.file());
    done.map_err(|source| LayersError::Install { source })?;
    room.cache.put(key, TOOLS, layer.finish()?).map(Some)
}
