//! What a supervisor that is a program of its own needs of an instance's folder and of the server: that of a virtual
//! machine. Sandboxes have a slot instead.

use super::folder::{EXIT, Folder, LOCK, OUT};
use super::order::{self, Failure, Report};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

fn failed(step: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::io(step, &error)
}

/// The files that pid 1 writes, opened before it exists.
pub(crate) struct Files {
    pub lock: File,
    pub out: [File; 2],
    pub exit: File,
    pub oom: Option<File>,
}

impl Files {
    pub(crate) fn open(directory: &Path) -> Result<Self, Failure> {
        let open = |name: &str| {
            let mut options = File::options();
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o640);
            options.write(true).create(true).truncate(true).open(directory.join(name))
        };
        let lock = open(LOCK).map_err(failed("open the lock"))?;
        // Kept by pid 1, so that it is held as long as anything of the instance lives.
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| Failure::io("lock the instance's folder", &e.into()))?;
        // The server that ordered this may be dead, and its successor may have gone on without it.
        if Folder::at(directory).is_spent() {
            let detail = "it was started, or ended, by another supervisor before this one came";
            return Err(Failure::retry("start the instance", detail));
        }
        let exit = open(EXIT).map_err(failed("open `exit.json`"))?;
        let out = [open(OUT[0]), open(OUT[1])];
        let [a, b] = out.map(|file| file.map_err(failed("open the black box")));
        Ok(Self { lock, out: [a?, b?], exit, oom: None })
    }
}

/// What pid 1 reports once the program runs or could not be executed.
pub(crate) fn hear(socket: &OwnedFd) -> Result<(), Failure> {
    match order::receive::<Report>(socket).map_err(failed("hear from pid 1"))? {
        Some((Report::Started, _)) => Ok(()),
        Some((Report::Failed(failure), _)) => Err(failure),
        None => Err(Failure::retry("start the program", "pid 1 was killed")),
    }
}

pub(crate) fn join(doors: &[File], pid: i32) -> Result<(), Failure> {
    for mut door in doors {
        door.write_all(pid.to_string().as_bytes()).map_err(failed("join the cgroup"))?;
    }
    Ok(())
}

/// Waits for `go`. False: the supervisor is dead, and nobody would ever find this process again.
pub(crate) fn wait_for_go(mut pipe: &io::PipeReader) -> bool {
    let mut byte = [0];
    pipe.read_exact(&mut byte).is_ok()
}
