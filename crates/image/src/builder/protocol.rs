//! What the bake, the supervisor of a build and pid 1 of its builder say to each other.
//!
//! To the supervisor, on its stdin: a length (4 bytes, little endian) and a [`Job`] as JSON, then each file of the
//! commit: a [`Head`] as JSON with its length before it, and the file's bytes. The bake keeps the pipe open until it has
//! its answer: that the pipe breaks is how the supervisor knows that nobody waits any more. From the supervisor: one
//! [`Report`] a line as JSON on its stderr; what is copied out of the builder, as an EROFS image, on its stdout, which
//! is a file. Pid 1 says [`Word`]s to the supervisor, one a line as JSON.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::PathBuf;

/// Bytes of a job's or a head's JSON.
const JSON_BYTES_MAX: u32 = 4 << 20;

/// What to build.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    /// Files of the builder's layers, lowest first.
    pub layers: Vec<PathBuf>,
    /// The folder in which the builder's disk is made.
    pub disk_folder: PathBuf,
    /// The control group below which the build's own is made.
    pub group: String,
    /// Commands, given to `/bin/sh -e -c` one after the other.
    pub run: Vec<String>,
    /// The whole environment.
    pub environment: BTreeMap<String, String>,
    /// What is copied out, as `from` of kiln.toml names it, without `build:`.
    pub from: Vec<String>,
    /// The time that all files carry, going in and coming out, in seconds since 1970.
    pub epoch: i64,
    /// Milliseconds that all commands together may take.
    pub time_ms: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Processes and threads.
    pub pids: u32,
    /// Bytes that it may write.
    pub disk: u64,
    /// Files of the commit that follow.
    pub n_files: u64,
}

/// What precedes the bytes of one file of the commit.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Head {
    /// Its path in the commit.
    pub path: Vec<u8>,
    /// git's mode.
    pub mode: u32,
    /// Its size in bytes.
    pub size: u64,
}

/// A message of the supervisor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Report {
    /// A line of output, or about what is done.
    Line(String),
    /// The image on stdout is whole.
    Done {
        /// What all commands printed, shortened in the middle.
        log: String,
    },
    /// It ended without one.
    Failed {
        /// Why.
        failure: Failure,
        /// The last lines of the output.
        said: String,
    },
}

/// A message of pid 1.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Word {
    /// A command begins.
    Run(usize),
    /// It ended well: the image is written.
    Done,
    /// It did not.
    Failed(Failure),
}

/// Why a build failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Failure {
    /// A command ended with another status than 0.
    Command {
        /// Which, from 0.
        number: usize,
        /// How it ended.
        status: String,
    },
    /// A limit of kiln.toml was met.
    Limit {
        /// The command that met it, from 0; none before the first.
        number: Option<usize>,
        /// Which limit.
        limit: Limit,
    },
    /// What is to be copied is not there.
    Missing {
        /// As in kiln.toml.
        from: String,
        /// The nearest folder on the way that is there.
        folder: String,
        /// What is in it.
        names: Vec<String>,
    },
    /// What is to be copied cannot be in an image.
    Unfit {
        /// What is wrong with it.
        text: String,
    },
    /// The builder could not be made, or broke.
    Sandbox {
        /// The step with its causes.
        text: String,
        /// Whether the disk of the state folder is full.
        disk_full: bool,
        /// Whether it may work when it is tried again as it is.
        may_pass: bool,
    },
}

/// A limit of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Limit {
    Time,
    Memory,
    Pids,
    Disk,
}

impl Failure {
    /// Something that nobody foresees, such as a process that was killed from outside: the next try may go well.
    pub(super) fn broken(text: impl Into<String>) -> Self {
        Self::Sandbox { text: text.into(), disk_full: false, may_pass: true }
    }

    /// A step of the sandbox.
    pub(super) fn step(step: &str, error: &io::Error) -> Self {
        Self::Sandbox { text: format!("cannot {step}: {error}"), disk_full: is_full(error), may_pass: false }
    }
}

impl From<kiln_sys::CallError> for Failure {
    fn from(error: kiln_sys::CallError) -> Self {
        let disk_full = is_full(&error.source);
        Self::Sandbox { text: error.line(), disk_full, may_pass: error.may_pass() && !disk_full }
    }
}

pub(super) fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::StorageFull
}

/// Writes a message with its length before it.
pub(super) fn write_json(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_vec(message)?;
    let length = u32::try_from(json.len()).map_err(io::Error::other)?;
    to.write_all(&[&length.to_le_bytes(), json.as_slice()].concat())
}

/// Reads a message with its length before it.
pub(super) fn read_json<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > JSON_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut json = vec![0; length as usize];
    from.read_exact(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}

/// Writes a message as one line. That nobody listens is no failure of the speaker: it is about to be ended.
pub(super) fn say(mut to: impl Write, message: &impl Serialize) {
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    let _ = to.write_all(&line);
}
