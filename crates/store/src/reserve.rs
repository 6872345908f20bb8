//! Space on the disk that is kept for the database: a bake, a black box or anybody else may fill the disk, and what is true has
//! to be written all the same. Without it a deploy that does not fit would end the server, and again at each start, before
//! anybody could abort it.

use rustix::fs::FallocateFlags;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Bytes that are kept: some hundred commits, and a checkpoint of a database of a few thousand releases.
const BYTES: u64 = 4 << 20;

/// A file that takes up space, beside the database.
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
    kept: bool,
}

impl Reserve {
    /// The reserve of the database at `path`, kept if there is space for it.
    pub(crate) fn beside(path: &Path) -> Self {
        let mut reserve = Self { path: path.with_extension("reserve"), kept: false };
        reserve.keep();
        reserve
    }

    /// None, for a database that is on no disk.
    pub(crate) fn none() -> Self {
        Self { path: PathBuf::new(), kept: true }
    }

    /// Takes up the space, unless it is taken already. On a disk without that much it is tried again by the next call.
    pub(crate) fn keep(&mut self) {
        if self.kept {
            return;
        }
        let file = File::options().write(true).create(true).truncate(false).open(&self.path);
        self.kept =
            file.is_ok_and(|file| rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, BYTES).is_ok());
        if !self.kept {
            // Part of it would be of no use here, but is to whoever needs it now.
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Gives the space to the database. Answers whether there was any.
    pub(crate) fn give(&mut self) -> bool {
        let was_kept = std::mem::take(&mut self.kept);
        was_kept && fs::remove_file(&self.path).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_kept_given_once_and_kept_again() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("kiln.db");
        let mut reserve = Reserve::beside(&database);
        let file = dir.path().join("kiln.reserve");
        assert!(fs::metadata(&file).unwrap().blocks() * 512 >= BYTES, "blocks, not only a length");
        assert!(reserve.give());
        assert!(!file.exists() && !reserve.give());
        reserve.keep();
        assert!(Reserve::beside(&database).give(), "the next server finds and takes it over");
    }
}
