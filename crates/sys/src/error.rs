//! One error for every system call: which call, on what, and the kernel's answer.

use std::fmt::Display;
use std::io;

/// A system call that failed.
#[derive(Debug, thiserror::Error)]
#[error("{call} `{object}`")]
pub struct CallError {
    /// What was tried, in the kernel's words: `fsmount`, `write uid_map`.
    pub call: &'static str,
    /// On what: a path, an interface, a process.
    pub object: String,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

impl CallError {
    /// The error number, or 0 if there is none.
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }

    /// Whether the kernel may answer otherwise later: out of memory, busy, interrupted, a limit that is full now.
    pub fn may_pass(&self) -> bool {
        let passing = [
            libc::EAGAIN,
            libc::EBUSY,
            libc::EINTR,
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOMEM,
            libc::ENOSPC,
            libc::EUSERS,
            libc::EEXIST,
            libc::ENOBUFS,
        ];
        passing.contains(&self.errno())
    }

    /// The message with its cause, in one line.
    pub fn line(&self) -> String {
        format!("{self}: {}", self.source)
    }
}

/// Adds the call and its object to a failed result.
pub trait Context<T> {
    /// See [`CallError::call`] and [`CallError::object`].
    fn context(self, call: &'static str, object: impl Display) -> Result<T, CallError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, call: &'static str, object: impl Display) -> Result<T, CallError> {
        self.map_err(|error| {
            // Words take memory, and who has failed is about to tell and to end.
            crate::seal::lift();
            CallError { call, object: object.to_string(), source: error.into() }
        })
    }
}

/// The result of a raw call that answers -1 and sets `errno`.
pub(crate) fn check(answer: libc::c_long) -> io::Result<libc::c_long> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}
