//! The table on disk: `table.json`, replaced atomically, and `table.previous.json`. A digest tells a damaged one.

use kiln_model::{Digest, Fence, Generation, RouteTable};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) fence: Fence,
    pub(crate) generation: Generation,
    pub(crate) table: RouteTable,
    /// In which boot of the host its targets were validated. Empty in tables of an older kiln, whose checksum is without it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) boot: String,
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    checksum: Digest,
    kept: Kept,
}

/// Why a kept table was not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("`{path}` cannot be read")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{path}` is not a table")]
    Parse {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("`{path}` does not have its checksum")]
    Checksum { path: PathBuf },
}

/// Where the table is.
pub(crate) fn current(dir: &Path) -> PathBuf {
    dir.join("table.json")
}

/// Where the one before it is.
pub(crate) fn previous(dir: &Path) -> PathBuf {
    dir.join("table.previous.json")
}

/// Reads one file; none if there is none.
pub(crate) fn load(path: PathBuf) -> Result<Option<Kept>, LoadError> {
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(LoadError::Read { path, source }),
    };
    let envelope: Envelope = match serde_json::from_slice(&bytes) {
        Ok(envelope) => envelope,
        Err(source) => return Err(LoadError::Parse { path, source }),
    };
    if checksum(&envelope.kept)? != envelope.checksum {
        return Err(LoadError::Checksum { path });
    }
    Ok(Some(envelope.kept))
}

/// The fence of the table that an edge keeps in its folder; none if there is none that is whole.
pub fn kept_fence(dir: &Path) -> Option<Fence> {
    let kept = [current(dir), previous(dir)].into_iter().find_map(|path| load(path).ok().flatten());
    kept.map(|kept| kept.fence)
}

fn checksum(kept: &Kept) -> Result<Digest, LoadError> {
    let bytes = serde_json::to_vec(kept);
    bytes.map(|b| Digest::of(&b)).map_err(|source| LoadError::Parse { path: PathBuf::new(), source })
}

/// Makes `kept` durable. The file that was there becomes the previous one if it is sound.
pub(crate) fn save(dir: &Path, kept: &Kept) -> io::Result<()> {
    let checksum = Digest::of(&serde_json::to_vec(kept)?);
    let bytes = serde_json::to_vec(&Envelope { checksum, kept: kept.clone() })?;
    let new = dir.join("table.new");
    let mut file = File::create(&new)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    if matches!(load(current(dir)), Ok(Some(_))) {
        let link = dir.join("table.link");
        match fs::remove_file(&link) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => fs::hard_link(current(dir), &link)?,
        }
        fs::rename(&link, previous(dir))?;
    }
    fs::rename(&new, current(dir))?;
    File::open(dir)?.sync_all()
}
