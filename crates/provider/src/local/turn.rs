//! Whose books count. Several servers may share a state folder, one after the other in the lead; the last of them that opened the
//! folder is its owner, and whatever an earlier one still wants to do to the host is refused: its books are old.
//!
//! Whoever changes anything holds a lock while it does. A new owner waits for it, and ends a server that keeps it too long: one
//! that was stopped half-way would go on half-way, which no book can make good, while one that dies half-way is provided for.

use kiln_sys::process;
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The file in the folder of all instances: who opened it last, as `PID START TAG`.
const OWNER: &str = "owner";
/// How long the last owner may finish what it is at. Everything but a gentle stop takes less.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long its end may take.
const KILL_MAX: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub(super) struct Turn {
    path: PathBuf,
    me: String,
    /// How many are at work, and the lock that they share.
    at_work: Mutex<(usize, Option<File>)>,
}

/// Somebody is at work.
#[derive(Debug)]
pub(super) struct AtWork<'a>(&'a Turn);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        let mut at_work = self.0.at_work.lock().unwrap_or_else(PoisonError::into_inner);
        at_work.0 -= 1;
        if at_work.0 == 0 {
            at_work.1 = None;
        }
    }
}

impl Turn {
    /// Becomes the owner of the folder of all instances.
    pub(super) fn take(folder: &Path) -> io::Result<Self> {
        let path = folder.join(OWNER);
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
        if !locked_within(&file, PATIENCE)? {
            end_owner(&mut file)?;
            if !locked_within(&file, KILL_MAX)? {
                return Err(io::Error::other(
                    "an earlier server is at work on the instances and does not end",
                ));
            }
        }
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let started = process::start_time(pid).map_err(|error| error.source)?;
        let me = format!("{pid} {started} {}", kiln_sys::clock::boot_us());
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(me.as_bytes())?;
        Ok(Self { path, me, at_work: Mutex::default() })
    }

    /// Begins to change something, until what this answers is dropped. Fails if another server is the owner by now.
    pub(super) fn begin(&self) -> io::Result<AtWork<'_>> {
        let mut at_work = self.at_work.lock().unwrap_or_else(PoisonError::into_inner);
        if at_work.1.is_none() {
            let mut file = File::open(&self.path)?;
            flock(&file, FlockOperation::LockExclusive)?;
            let mut owner = String::new();
            file.read_to_string(&mut owner)?;
            if owner != self.me {
                return Err(io::Error::other("another server has taken over the instances"));
            }
            at_work.1 = Some(file);
        }
        at_work.0 += 1;
        Ok(AtWork(self))
    }
}

fn locked_within(file: &File, limit: Duration) -> io::Result<bool> {
    let end = Instant::now() + limit;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Ends the process that the file names, which holds its lock.
fn end_owner(file: &mut File) -> io::Result<()> {
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    let mut words = text.split(' ');
    let number = words.next().and_then(|word| word.parse::<i32>().ok());
    let started = words.next().and_then(|word| word.parse::<u64>().ok());
    let (Some(pid), Some(started)) = (number, started) else { return Ok(()) };
    let Some(found) = process::open_same(pid, started) else { return Ok(()) };
    eprintln!("kiln: warning: the server that led before (pid {pid}) stopped half-way; ending it");
    process::signal(found.as_fd(), libc::SIGKILL).map_err(|error| error.source)?;
    process::wait_readable(found.as_fd(), Some(KILL_MAX)).map_err(|error| error.source)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn an_earlier_owner_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = Turn::take(folder.path()).unwrap();
        drop((first.begin().unwrap(), first.begin().unwrap()));
        let second = Turn::take(folder.path()).unwrap();
        assert!(first.begin().is_err());
        assert!(second.begin().is_ok());
    }

    #[test]
    fn one_that_stopped_half_way_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(OWNER);
        // Another process that holds the lock and never lets go.
        let mut child =
            Command::new("flock").arg(&path).args(["sleep", "600"]).stdin(Stdio::null()).spawn().unwrap();
        let pid = child.id() as i32;
        let is_held = || {
            File::open(&path).is_ok_and(|file| {
                flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(rustix::io::Errno::WOULDBLOCK)
            })
        };
        while !is_held() {
            std::thread::sleep(Duration::from_millis(5));
        }
        // `flock` gives the descriptor to its child as well: that one is the holder which is named.
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let sleeper: i32 = children.trim().parse().unwrap();
        std::fs::write(&path, format!("{sleeper} {} 1", process::start_time(sleeper).unwrap())).unwrap();
        assert!(Turn::take(folder.path()).unwrap().begin().is_ok());
        assert!(child.wait().unwrap().code().is_none_or(|code| code != 0));
    }
}
