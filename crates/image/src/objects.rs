//! The content store: files named by the sha256 of what they hold. A file is there whole and durable, or not at all.

use kiln_model::Digest;
use sha2::Digest as _;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that are hashed at a time.
const CHUNK: usize = 1 << 20;

/// The content store could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// An object is not there.
    #[error("the content store has no {0}")]
    Missing(Digest),
    /// A file or folder of it cannot be read or written.
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
    /// What was to be stored is not what it was said to be.
    #[error("the content is {found}, not {expected}")]
    Mismatch {
        /// As announced.
        expected: Digest,
        /// As it is.
        found: Digest,
    },
}

fn io(step: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ObjectError {
    let path = path.to_owned();
    move |source| ObjectError::Io { step, path, source }
}

/// A content store in a folder.
#[derive(Debug, Clone)]
pub struct Objects {
    dir: PathBuf,
}

/// An object that is being written; dropped unfinished, it leaves nothing. What is written through [`Write`] is hashed on
/// the way.
#[derive(Debug)]
pub struct Pending {
    dir: PathBuf,
    path: PathBuf,
    file: File,
    /// The digest and the size of what was written; none once somebody wrote to the file directly.
    hashed: Option<(sha2::Sha256, u64)>,
    finished: bool,
}

static SERIAL: AtomicU64 = AtomicU64::new(0);

impl Objects {
    /// The store in `dir`, which is made if it is missing.
    pub fn open(dir: &Path) -> Result<Self, ObjectError> {
        for dir in [dir.join("sha256"), dir.join("tmp")] {
            fs::create_dir_all(&dir).map_err(io("make", &dir))?;
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// Removes what interrupted writers left. Only while nobody writes.
    pub fn sweep(&self) -> Result<(), ObjectError> {
        let tmp = self.dir.join("tmp");
        for entry in fs::read_dir(&tmp).map_err(io("read", &tmp))? {
            let path = entry.map_err(io("read", &tmp))?.path();
            fs::remove_file(&path).map_err(io("remove", &path))?;
        }
        Ok(())
    }

    /// The folder of the store.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where an object lies.
    pub fn path(&self, digest: Digest) -> PathBuf {
        let hex = digest.hex();
        self.dir.join("sha256").join(&hex[..2]).join(&hex[2..])
    }

    /// Whether it is there.
    pub fn has(&self, digest: Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Reads all of an object; an error unless it is what its name says. Answers with its size.
    pub fn check(&self, digest: Digest) -> Result<u64, ObjectError> {
        let path = self.path(digest);
        let mut file = match File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(ObjectError::Missing(digest)),
            other => other.map_err(io("open", &path))?,
        };
        let (found, size) = hash(&mut file).map_err(io("read", &path))?;
        if found == digest { Ok(size) } else { Err(ObjectError::Mismatch { expected: digest, found }) }
    }

    /// Whether it is there and is what its name says. A damaged one is removed, so that it is made or fetched again.
    pub fn is_intact(&self, digest: Digest) -> bool {
        match self.check(digest) {
            Ok(_) => true,
            Err(ObjectError::Missing(_)) => false,
            Err(_) => {
                // What cannot be removed is replaced by what is fetched.
                let _ = self.remove(digest);
                false
            }
        }
    }

    /// Removes an object; fine if it is not there. Who has it open or mounted keeps it.
    pub fn remove(&self, digest: Digest) -> Result<(), ObjectError> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io("remove", &path)(e)),
            _ => Ok(()),
        }
    }

    /// The content of a small object, verified.
    pub fn get(&self, digest: Digest, bytes_max: u64) -> Result<Vec<u8>, ObjectError> {
        let path = self.path(digest);
        let file = match File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(ObjectError::Missing(digest)),
            other => other.map_err(io("open", &path))?,
        };
        let mut bytes = Vec::new();
        file.take(bytes_max).read_to_end(&mut bytes).map_err(io("read", &path))?;
        let found = Digest::of(&bytes);
        if found != digest {
            return Err(ObjectError::Mismatch { expected: digest, found });
        }
        Ok(bytes)
    }

    /// Stores `bytes`.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, ObjectError> {
        let digest = Digest::of(bytes);
        if self.has(digest) {
            return Ok(digest);
        }
        let mut pending = self.create()?;
        pending.write_all(bytes).map_err(io("write", &pending.path))?;
        Ok(pending.finish()?.0)
    }

    /// Begins an object whose digest is not known yet.
    pub fn create(&self) -> Result<Pending, ObjectError> {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join("tmp").join(format!("{}-{serial}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(io("make", &path))?;
        let hashed = Some((sha2::Sha256::new(), 0));
        Ok(Pending { dir: self.dir.clone(), file, path, hashed, finished: false })
    }
}

impl Pending {
    /// Where it is until it is finished or dropped.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file, for one who cannot write through this: then it is read again to be hashed.
    pub fn file(&mut self) -> &mut File {
        self.hashed = None;
        &mut self.file
    }

    /// As [`Pending::finish`], if it is what was announced; otherwise nothing is kept.
    pub fn finish_as(mut self, expected: Digest) -> Result<u64, ObjectError> {
        let (found, size) = self.hashed()?;
        if found != expected {
            return Err(ObjectError::Mismatch { expected, found });
        }
        self.name(found)?;
        Ok(size)
    }

    /// Makes what was written durable and gives it its name; answers with the digest and the size.
    pub fn finish(mut self) -> Result<(Digest, u64), ObjectError> {
        let (digest, size) = self.hashed()?;
        self.name(digest)?;
        Ok((digest, size))
    }

    /// The digest and the size of what was written.
    fn hashed(&mut self) -> Result<(Digest, u64), ObjectError> {
        match self.hashed.take() {
            Some((hasher, size)) => Ok((Digest::from_bytes(hasher.finalize().into()), size)),
            None => hash(&mut self.file).map_err(io("read", &self.path)),
        }
    }

    fn name(mut self, digest: Digest) -> Result<(), ObjectError> {
        let target = Objects { dir: self.dir.clone() }.path(digest);
        let folder = target.parent().unwrap_or(&self.dir).to_owned();
        fs::create_dir_all(&folder).map_err(io("make", &folder))?;
        // Nobody has a reason to write to it ever again.
        let sealed = fs::Permissions::from_mode(0o444);
        self.file.set_permissions(sealed).map_err(io("seal", &self.path))?;
        self.file.sync_all().map_err(io("write", &self.path))?;
        fs::rename(&self.path, &target).map_err(io("rename", &self.path))?;
        self.finished = true;
        let synced = File::open(&folder).and_then(|f| f.sync_all());
        synced.map_err(io("write", &folder))
    }
}

impl Write for Pending {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        if let Some((hasher, size)) = &mut self.hashed {
            hasher.update(&bytes[..written]);
            *size += written as u64;
        }
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.finished {
            // The next sweep removes it if this does not.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn hash(file: &mut File) -> std::io::Result<(Digest, u64)> {
    file.seek(SeekFrom::Start(0))?;
    let mut hasher = sha2::Sha256::new();
    let (mut size, mut chunk) = (0, vec![0; CHUNK]);
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok((Digest::from_bytes(hasher.finalize().into()), size)),
            n => {
                hasher.update(&chunk[..n]);
                size += n as u64;
            }
        }
    }
}

/// Writes a small file whole and durable, or not at all.
pub fn write_durable(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{}-{serial}.part", std::process::id()));
    let part = PathBuf::from(part);
    let written = (|| {
        let mut file = File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&part, path)?;
        File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        // It may not exist at all.
        let _ = fs::remove_file(&part);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_whole_or_absent() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::open(dir.path()).unwrap();
        let digest = objects.put(b"one").unwrap();
        assert_eq!(objects.get(digest, 10).unwrap(), b"one");
        assert!(matches!(objects.get(Digest::of(b"two"), 10), Err(ObjectError::Missing(_))));
        let mut pending = objects.create().unwrap();
        pending.file().write_all(b"half").unwrap();
        drop(pending);
        std::mem::forget(objects.create().unwrap());
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 1, "the forgotten one");
        objects.sweep().unwrap();
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
        assert!(!objects.has(Digest::of(b"half")));
        let mut mixed = objects.create().unwrap();
        mixed.write_all(b"on").unwrap();
        mixed.file().write_all(b"e").unwrap();
        assert_eq!(
            mixed.finish().unwrap(),
            (digest, 3),
            "hashed again, for the file was written to directly"
        );
        assert_eq!(objects.check(digest).unwrap(), 3);
        assert_eq!(fs::metadata(objects.path(digest)).unwrap().permissions().mode() & 0o777, 0o444);
        fs::remove_file(objects.path(digest)).unwrap();
        fs::write(objects.path(digest), "changed").unwrap();
        assert!(matches!(objects.get(digest, 10), Err(ObjectError::Mismatch { .. })));
        assert!(matches!(objects.check(digest), Err(ObjectError::Mismatch { .. })));
        // `put` would take its name for its content.
        assert!(objects.has(digest) && !objects.is_intact(digest) && !objects.has(digest));
        assert!(matches!(objects.check(digest), Err(ObjectError::Missing(_))));
        assert_eq!(objects.put(b"one").unwrap(), digest);
    }
}
