//! Asks one `git cat-file --batch` for objects, and spools them.

use super::{SourceError, finish, git, io, words};
use crate::tree::{Content, SharedFile};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

/// Bytes that are copied at a time.
const CHUNK: usize = 256 << 10;
/// Bytes of the line before an object.
const HEAD_BYTES_MAX: u64 = 4096;

/// An object of a repository, to be read once.
pub(super) struct Object<'a> {
    /// `blob`, `tree`, `commit` or `tag`.
    pub kind: &'a str,
    name: &'a str,
    size: u64,
    content: &'a mut dyn Read,
}

impl Object<'_> {
    fn check(&self, bytes_max: u64) -> Result<(), SourceError> {
        if self.size <= bytes_max {
            return Ok(());
        }
        Err(SourceError::FileTooLarge { path: self.name.to_owned(), limit: bytes_max })
    }

    /// All bytes of a small one.
    pub fn bytes(self, bytes_max: u64) -> Result<Vec<u8>, SourceError> {
        self.check(bytes_max)?;
        let mut bytes = vec![0; self.size as usize];
        self.content.read_exact(&mut bytes).map_err(io("read from git"))?;
        Ok(bytes)
    }
}

/// What is done with the answers: the number of the name, and the object if it is there.
type Each<'a> = dyn FnMut(usize, Option<Object<'_>>) -> Result<(), SourceError> + 'a;

/// Contents one after the other in a file that has no name, so that nothing is left of it whoever dies.
pub(super) struct Spool {
    file: Arc<File>,
    at: u64,
    parts: Vec<(u64, u64)>,
    /// What is not written yet: many files are small.
    buffer: Vec<u8>,
}

impl Spool {
    /// A spool on the file system of `dir`.
    pub fn new(dir: &Path) -> std::io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = match rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => File::from(file),
            // Not every file system has files without names.
            Err(_) => {
                let path = dir.join(format!(".spool-{}", std::process::id()));
                let file = File::options().read(true).write(true).create_new(true).open(&path)?;
                std::fs::remove_file(&path)?;
                file
            }
        };
        Ok(Self { file: Arc::new(file), at: 0, parts: vec![], buffer: Vec::with_capacity(CHUNK) })
    }

    /// Takes one object; all of them together have at most `bytes_max`.
    pub fn take(&mut self, object: Object<'_>, bytes_max: u64) -> Result<(), SourceError> {
        object.check(bytes_max)?;
        if self.at + object.size > bytes_max {
            return Err(SourceError::FileTooLarge {
                path: "the files that are copied".into(),
                limit: bytes_max,
            });
        }
        self.parts.push((self.at, object.size));
        self.at += object.size;
        let mut left = object.size as usize;
        while left > 0 {
            let start = self.buffer.len();
            let part = left.min(CHUNK - start);
            self.buffer.resize(start + part, 0);
            object.content.read_exact(&mut self.buffer[start..]).map_err(io("read from git"))?;
            left -= part;
            if self.buffer.len() == CHUNK {
                self.flush().map_err(io("write a temporary file"))?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        (&*self.file).write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// The contents in the order in which they came.
    pub fn finish(mut self) -> std::io::Result<Vec<Content>> {
        self.flush()?;
        let content = |(at, size)| Content::Slice { file: SharedFile(self.file.clone()), at, size };
        Ok(self.parts.into_iter().map(content).collect())
    }
}

/// Asks one `git cat-file --batch` for objects, in order. `each` gets nothing for one that is not there.
pub(super) fn batch(repository: &Path, names: &[String], each: &mut Each<'_>) -> Result<(), SourceError> {
    if names.is_empty() {
        return Ok(());
    }
    let mut child = git(repository)
        .args(["cat-file", "--batch", "--buffer"])
        .stdin(Stdio::piped())
        .spawn()
        .map_err(SourceError::Start)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let words = std::thread::spawn(move || words(stderr));
    let (Some(mut stdin), Some(stdout)) = (stdin, stdout) else {
        return Err(SourceError::Answer("no pipe"));
    };
    // More in the pipe means fewer switches between git and this process; without it, it only takes longer.
    let _ = rustix::pipe::fcntl_setpipe_size(&stdout, 1 << 20);
    let read = std::thread::scope(|scope| {
        scope.spawn(move || {
            for name in names {
                // If git ended early, the answers are cut off, which is noticed there.
                if stdin.write_all(name.as_bytes()).and_then(|()| stdin.write_all(b"\n")).is_err() {
                    return;
                }
            }
        });
        answers(&mut BufReader::with_capacity(CHUNK, stdout), names, each)
    });
    if read.is_err() {
        // It may wait for somebody to read the rest.
        let _ = child.kill();
        let _ = child.wait();
        return read;
    }
    finish(child, words, "cat-file")
}

fn answers(reader: &mut impl BufRead, names: &[String], each: &mut Each<'_>) -> Result<(), SourceError> {
    for (n, name) in names.iter().enumerate() {
        let mut head = String::new();
        reader.by_ref().take(HEAD_BYTES_MAX).read_line(&mut head).map_err(io("read from git"))?;
        if head.trim_end().ends_with(" missing") {
            each(n, None)?;
            continue;
        }
        let mut end = head.trim_end().rsplit(' ');
        let size: Option<u64> = end.next().and_then(|size| size.parse().ok());
        let (Some(size), Some(kind)) = (size, end.next()) else {
            return Err(SourceError::Answer("a malformed head of an object"));
        };
        let mut content = reader.by_ref().take(size);
        each(n, Some(Object { kind, name, size, content: &mut content }))?;
        // What was not wanted is skipped, with the end of line behind it.
        std::io::copy(&mut content, &mut std::io::sink()).map_err(io("read from git"))?;
        reader.read_exact(&mut [0]).map_err(io("read from git"))?;
    }
    Ok(())
}
