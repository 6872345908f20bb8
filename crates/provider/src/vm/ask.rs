//! Checks that need to look inside: the server asks the watcher by a socket in the instance's folder, and the watcher asks the
//! guest. Here is what the server does.

use crate::local::order;
use kiln_model::limits::EVIDENCE_BYTES_MAX;
use kiln_model::{CheckKind, Millis};
use kiln_sys::process;
use kiln_sys::wire::Question;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// The socket's name in the folder of an instance.
pub(crate) const SOCKET: &str = "machine.sock";
/// Servers that may wait for an answer at the same time, until they are seen.
const BACKLOG: i32 = 16;
/// How long an answer may take beyond what the check itself may.
const GRACE: Duration = Duration::from_secs(2);

/// To a watcher.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ask {
    pub kind: CheckKind,
    pub timeout: Millis,
}

impl Ask {
    /// What the guest is asked. None: it is asked from outside.
    pub(super) fn question(self) -> Option<Question> {
        match self.kind {
            CheckKind::File { path, contains } => Some(Question::File { path, contains }),
            CheckKind::Listening { port } => Some(Question::Listening(port)),
            CheckKind::Command { argv } => Some(Question::Command(argv)),
            CheckKind::Http { .. } | CheckKind::Tcp { .. } => None,
        }
    }
}

/// From a watcher.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Told {
    pub passed: bool,
    pub detail: String,
}

/// A name of a file in an open directory that is short enough for a socket, whatever the directory's own is.
fn name_in(directory: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd())
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// The watcher's end, in an open directory. One that an earlier watcher left is replaced.
pub(super) fn listen(directory: &OwnedFd) -> io::Result<OwnedFd> {
    let socket = socket()?;
    match rustix::fs::unlinkat(directory, SOCKET, rustix::fs::AtFlags::empty()) {
        Err(rustix::io::Errno::NOENT) | Ok(()) => {}
        Err(error) => return Err(error.into()),
    }
    rustix::net::bind(&socket, &SocketAddrUnix::new(name_in(directory))?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Asks. An answer that does not come in time is one that did not pass.
pub(crate) fn ask(folder: &Path, kind: CheckKind, timeout: Millis) -> Result<String, String> {
    let ended = |_| "the instance has ended".to_owned();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty()).map_err(ended)?;
    let text = |error: io::Error| error.to_string();
    let socket = socket().map_err(text)?;
    let address = SocketAddrUnix::new(name_in(&folder)).map_err(|error| text(error.into()))?;
    rustix::net::connect(&socket, &address).map_err(ended)?;
    order::send(&socket, &Ask { kind, timeout }, &[]).map_err(text)?;
    let limit = timeout.duration() + GRACE;
    if !process::wait_readable(socket.as_fd(), Some(limit)).map_err(|error| error.line())? {
        return Err(format!("the machine did not answer in {timeout}"));
    }
    let told = order::receive::<Told>(&socket).map_err(text)?;
    let (mut told, _) = told.ok_or("the instance has ended")?;
    told.detail.truncate(told.detail.floor_char_boundary(EVIDENCE_BYTES_MAX));
    if told.passed { Ok(told.detail) } else { Err(told.detail) }
}
