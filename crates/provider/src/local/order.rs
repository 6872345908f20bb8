//! What a server and the processes that it starts say to each other: one JSON message each way over a socket that is
//! the process's standard input. Descriptors travel with the message, so that no other process that the server starts
//! at the same time can inherit them.

use kiln_model::Millis;
use kiln_sys::message;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes of one message.
const MESSAGE_BYTES_MAX: usize = 128 * 1024;

/// From a supervisor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    /// The program was started, or it could not be executed; the folder says which.
    Started,
    /// It was not started.
    Failed(Failure),
}

/// A step that failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// No use trying again.
    pub permanent: bool,
    /// The image is damaged: it has to be mended before the next try.
    #[serde(default)]
    pub damaged: bool,
    /// Which step, with its object.
    pub step: String,
    /// Why, with a hint if there is one.
    pub detail: String,
}

impl Failure {
    pub(crate) fn permanent(step: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { permanent: true, damaged: false, step: step.into(), detail: detail.into() }
    }

    pub(crate) fn retry(step: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { permanent: false, damaged: false, step: step.into(), detail: detail.into() }
    }

    /// With no more words than fit into a record: names in it may be as long as a path, or an argument.
    pub(crate) fn cut(mut self) -> Self {
        const TEXT_BYTES_MAX: usize = 1024;
        for text in [&mut self.step, &mut self.detail] {
            text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        }
        self
    }

    pub(crate) fn damaged(step: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { damaged: true, ..Self::retry(step, detail) }
    }

    /// A file operation of kiln's own that failed; disks fill up and empty again.
    pub(crate) fn io(step: impl Into<String>, error: &io::Error) -> Self {
        Self::retry(step, error.to_string())
    }
}

impl From<kiln_sys::CallError> for Failure {
    fn from(error: kiln_sys::CallError) -> Self {
        Self {
            permanent: !error.may_pass(),
            damaged: false,
            step: error.to_string(),
            detail: error.source.to_string(),
        }
    }
}

/// To an `exec` helper. With it come a pidfd of the instance's pid 1 and the files for joining its cgroups.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ExecOrder {
    pub argv: Vec<String>,
    /// `NAME=VALUE` each.
    pub environment: Vec<String>,
    /// Where a command without `/` is looked for.
    pub search: String,
    pub user: (u32, u32),
    /// A mask of capability numbers.
    pub capabilities: u64,
    pub timeout: Millis,
}

/// From an `exec` helper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ExecReport {
    Status(i32),
    Signal(i32),
    TimedOut,
    NotStarted(String),
}

/// Sends one message.
pub(crate) fn send(socket: impl AsFd, order: &impl Serialize, with: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(order).map_err(io::Error::other)?;
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(io::Error::other("message too long"));
    }
    message::send(socket, &[&bytes], with)
}

/// Waits for one message. None: the other end closed without one.
pub(crate) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let (length, descriptors) = message::receive(socket, &mut bytes)?;
    if length == 0 {
        return Ok(None);
    }
    let order = serde_json::from_slice(&bytes[..length]).map_err(io::Error::other)?;
    Ok(Some((order, descriptors.collect())))
}
