//! Ties a state folder to a database. Instances, images and the edge's table are in the folder, what is wanted is in the database:
//! with another database every instance would be a stranger and be destroyed, and with another folder every one would be missing.

use kiln_store::{PostgresStore, StoreError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The file of a state folder whose truth is in PostgreSQL: a name that nobody else gives to a folder.
const FILE: &str = "database";
/// The database of a state folder that has its truth itself.
const SQLITE: &str = "kiln.db";

/// The folder and the database do not belong together.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// The folder has a truth of its own.
    #[error("the state folder `{}` keeps its state in `kiln.db`", .0.display())]
    HasOwn(PathBuf),
    /// The folder's truth is in PostgreSQL.
    #[error("the state folder `{}` keeps its state in a PostgreSQL database", .0.display())]
    IsElsewhere(PathBuf),
    /// The database is another folder's.
    #[error("the PostgreSQL database belongs to another state folder than `{}`", .0.display())]
    OtherFolder(PathBuf),
    /// The file cannot be read or written.
    #[error("cannot use `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl HomeError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::HasOwn(_) => "start `kiln serve` without `--store`, or name a new folder with `--state`",
            Self::IsElsewhere(_) => {
                "name the database with `--store` as before, or another folder with `--state`"
            }
            Self::OtherFolder(_) => {
                "all servers of one database use one state folder on one host; give this one a database of its own"
            }
            Self::Io { .. } => "check the space and the rights of that folder",
            Self::Store(_) => "check that PostgreSQL runs and lets this user in",
        }
    }
}

/// The name of the state folder, made up at its first use with PostgreSQL.
pub fn name_of(state: &Path) -> Result<String, HomeError> {
    if state.join(SQLITE).exists() {
        return Err(HomeError::HasOwn(state.to_owned()));
    }
    let path = state.join(FILE);
    read_or_make(state, &path).map_err(|source| HomeError::Io { path, source })
}

fn read_or_make(state: &Path, path: &Path) -> io::Result<String> {
    let read = |()| std::fs::read_to_string(path).map(|text| text.trim().to_owned());
    match read(()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        known => return known,
    }
    let name = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    let part = state.join(format!(".{FILE}.{}", std::process::id()));
    let mut file = std::fs::File::create(&part)?;
    file.write_all(name.as_bytes())?;
    file.sync_all()?;
    // Of servers that start together one gives the name: a link does not replace what is there.
    let linked = std::fs::hard_link(&part, path);
    std::fs::remove_file(&part)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => std::fs::File::open(state)?.sync_all()?,
    }
    read(())
}

/// Makes the database that of the state folder called `name`, or finds that it is.
pub fn claim(store: &PostgresStore, state: &Path, name: &str) -> Result<(), HomeError> {
    if store.claim(name)? == name { Ok(()) } else { Err(HomeError::OtherFolder(state.to_owned())) }
}

/// Refuses a state folder whose truth is in PostgreSQL.
pub(crate) fn keeps_its_own(state: &Path) -> Result<(), HomeError> {
    if state.join(FILE).exists() { Err(HomeError::IsElsewhere(state.to_owned())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_name_and_one_kind_of_store() {
        let folder = tempfile::tempdir().unwrap();
        assert!(keeps_its_own(folder.path()).is_ok());
        let name = name_of(folder.path()).unwrap();
        assert_eq!((name.len(), name_of(folder.path()).unwrap()), (36, name));
        assert!(matches!(keeps_its_own(folder.path()), Err(HomeError::IsElsewhere(_))));
        let other = tempfile::tempdir().unwrap();
        std::fs::write(other.path().join(SQLITE), "").unwrap();
        assert!(matches!(name_of(other.path()), Err(HomeError::HasOwn(_))));
    }
}
