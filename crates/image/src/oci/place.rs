//! Images in files of the server: an OCI layout in a folder, the same in a tar file, or a Docker archive.

use super::blob::{self, BlobError};
use super::manifest::DOCUMENT_BYTES_MAX;
use super::tar::{Entries, Entry, EntryKind, TarError};
use crate::objects::{ObjectError, Objects, Pending};
use kiln_model::Digest;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Bytes of one blob of an image.
pub const BLOB_BYTES_MAX: u64 = 8 << 30;
/// Links that are followed inside of an archive.
const LINKS_MAX: u32 = 4;

/// An image cannot be read from a file.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The file itself.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A pipe, a device or something else that is no file.
    #[error("`{}` is neither a file nor a folder", path.display())]
    Special {
        /// Which.
        path: PathBuf,
    },
    /// An archive that cannot be decompressed.
    #[error("cannot decompress `{}`", path.display())]
    Inflate {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: BlobError,
    },
    /// An archive that is no tar.
    #[error("`{}` is no archive of an image", path.display())]
    Tar {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: TarError,
    },
    /// A part is larger than it may be.
    #[error("`{name}` of the image has more than {limit} bytes")]
    TooLarge {
        /// Its name in the layout or archive.
        name: String,
        /// The bound.
        limit: u64,
    },
    /// The content store.
    #[error("the content store failed")]
    Objects(#[from] ObjectError),
}

/// The files of an image.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    files: Files,
}

#[derive(Debug)]
enum Files {
    Folder,
    Archive {
        file: File,
        entries: BTreeMap<Vec<u8>, Entry>,
        /// What was decompressed is gone with this.
        _inflated: Option<Pending>,
    },
}

/// A part of the image that was found.
struct Part {
    file: File,
    size: u64,
}

impl Place {
    /// Opens a folder or an archive.
    pub fn open(path: &Path, objects: &Objects) -> Result<Self, PlaceError> {
        let read = |source| PlaceError::Read { path: path.to_owned(), source };
        let meta = std::fs::metadata(path).map_err(read)?;
        if meta.is_dir() {
            return Ok(Self { path: path.to_owned(), files: Files::Folder });
        }
        if !meta.is_file() {
            return Err(PlaceError::Special { path: path.to_owned() });
        }
        let mut magic = [0; 4];
        let mut file = File::open(path).map_err(read)?;
        let n = file.by_ref().take(4).read(&mut magic).map_err(read)?;
        let compressed = magic[..n].starts_with(&[0x1f, 0x8b]) || magic[..n] == [0x28, 0xb5, 0x2f, 0xfd];
        let (file, size, inflated) = if compressed {
            let inflate = |source| PlaceError::Inflate { path: path.to_owned(), source };
            let (mut pending, size, _) = blob::inflate(path, None, None, objects).map_err(inflate)?;
            (pending.file().try_clone().map_err(read)?, size, Some(pending))
        } else {
            (file, meta.len(), None)
        };
        let mut entries = BTreeMap::new();
        for entry in Entries::new(&file, size) {
            let entry = entry.map_err(|source| PlaceError::Tar { path: path.to_owned(), source })?;
            let name = entry.path.strip_prefix(b"./").unwrap_or(&entry.path).to_vec();
            entries.insert(name, entry);
        }
        let files = Files::Archive { file, entries, _inflated: inflated };
        Ok(Self { path: path.to_owned(), files })
    }

    fn part(&self, name: &str) -> Result<Option<Part>, PlaceError> {
        match &self.files {
            Files::Folder => {
                let path = self.path.join(name);
                let read = |source| PlaceError::Read { path: path.clone(), source };
                match std::fs::metadata(&path) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(e) => return Err(read(e)),
                    Ok(meta) if !meta.is_file() => return Err(PlaceError::Special { path }),
                    Ok(_) => {}
                }
                let file = File::open(&path).map_err(read)?;
                let size = file.metadata().map_err(read)?.len();
                Ok(Some(Part { file, size }))
            }
            Files::Archive { file, entries, .. } => {
                let Some(entry) = follow(entries, name.as_bytes()) else { return Ok(None) };
                let read = |source| PlaceError::Read { path: self.path.clone(), source };
                let mut file = file.try_clone().map_err(read)?;
                file.seek(SeekFrom::Start(entry.at)).map_err(read)?;
                Ok(Some(Part { file, size: entry.size }))
            }
        }
    }

    /// The bytes of a document; none if it is not there.
    pub fn small(&self, name: &str) -> Result<Option<Vec<u8>>, PlaceError> {
        let Some(part) = self.part(name)? else { return Ok(None) };
        if part.size > DOCUMENT_BYTES_MAX {
            return Err(PlaceError::TooLarge { name: name.to_owned(), limit: DOCUMENT_BYTES_MAX });
        }
        let mut bytes = vec![];
        let read = |source| PlaceError::Read { path: self.path.join(name), source };
        part.file.take(part.size).read_to_end(&mut bytes).map_err(read)?;
        Ok(Some(bytes))
    }

    /// Copies a part into the content store, if it is what is `expected`; none if it is not there.
    pub fn store(
        &self,
        name: &str,
        expected: Option<Digest>,
        objects: &Objects,
    ) -> Result<Option<(Digest, u64)>, PlaceError> {
        let Some(part) = self.part(name)? else { return Ok(None) };
        if part.size > BLOB_BYTES_MAX {
            return Err(PlaceError::TooLarge { name: name.to_owned(), limit: BLOB_BYTES_MAX });
        }
        let mut pending = objects.create()?;
        let read = |source| PlaceError::Read { path: self.path.join(name), source };
        io::copy(&mut part.file.take(part.size), pending.file()).map_err(read)?;
        Ok(Some(match expected {
            Some(digest) => (digest, pending.finish_as(digest)?),
            None => pending.finish()?,
        }))
    }
}

/// The file at `name`; Docker links equal layers to each other.
fn follow<'a>(entries: &'a BTreeMap<Vec<u8>, Entry>, name: &[u8]) -> Option<&'a Entry> {
    let mut name = name.to_vec();
    for _ in 0..LINKS_MAX {
        let entry = entries.get(&name)?;
        name = match entry.kind {
            EntryKind::File => return Some(entry),
            EntryKind::HardLink => entry.link.clone(),
            EntryKind::Symlink => {
                let mut place: Vec<&[u8]> = name.split(|b| *b == b'/').collect();
                place.pop();
                for part in entry.link.split(|b| *b == b'/') {
                    match part {
                        b".." => drop(place.pop()),
                        b"" | b"." => {}
                        part => place.push(part),
                    }
                }
                place.join(&b'/')
            }
            _ => return None,
        };
    }
    None
}
