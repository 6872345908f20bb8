//! One server per state folder, or several that take turns by a lease: a `flock` that ends with the process.

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the lock of a dead server is waited for: a process that it was just about to start has it until it executes its
/// program, which may take a moment where the processors are busy.
const WAIT: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(10);

/// Held while a server owns the state folder.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockedBy {
    /// Another server has it.
    #[error("`{path}` is in use by another `kiln serve` (pid {pid})")]
    Other {
        /// The state folder.
        path: String,
        /// Its process.
        pid: String,
    },
    /// The lock file could not be used.
    #[error("cannot lock `{path}`")]
    Io {
        /// The lock file.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl StateLock {
    /// Takes `STATE/lock`, or says who has it.
    pub fn take(state: &Path) -> Result<Self, LockedBy> {
        Self::lock(state, FlockOperation::NonBlockingLockExclusive)
    }

    /// Takes it together with others that do the same, or says who has it alone.
    pub fn share(state: &Path) -> Result<Self, LockedBy> {
        Self::lock(state, FlockOperation::NonBlockingLockShared)
    }

    fn lock(state: &Path, how: FlockOperation) -> Result<Self, LockedBy> {
        let path = state.join("lock");
        let io = |source| LockedBy::Io { path: path.display().to_string(), source };
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        let begun = Instant::now();
        while flock(&file, how).is_err() {
            let mut pid = String::new();
            file.rewind().and_then(|()| file.read_to_string(&mut pid)).map_err(io)?;
            let pid = pid.trim().to_owned();
            if begun.elapsed() > WAIT || !is_dead(&pid) {
                return Err(LockedBy::Other { path: state.display().to_string(), pid });
            }
            std::thread::sleep(AGAIN);
        }
        file.set_len(0).map_err(io)?;
        file.rewind().map_err(io)?;
        writeln!(file, "{}", std::process::id()).map_err(io)?;
        Ok(Self { _file: file })
    }
}

fn is_dead(pid: &str) -> bool {
    let pid = pid.parse().ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| test_kill_process(pid) == Err(Errno::SRCH))
}
