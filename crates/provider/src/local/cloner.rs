//! The server's side of its zygote: starts it, asks it, starts it again when it died.

use super::order::Failure;
use super::zygote::Request;
use kiln_sys::{message, process};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long an answer may take. It takes a fraction of a millisecond; a zygote that is slower is stopped or lost.
const ANSWER_MAX: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    child: Child,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // It has nothing to lose, and whoever waits for it is in a hurry.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One zygote at a time.
#[derive(Debug)]
pub(super) struct Cloner {
    program: PathBuf,
    /// The folder of all instances.
    folder: PathBuf,
    connection: Mutex<Option<Connection>>,
}

impl Cloner {
    pub(super) fn new(program: PathBuf, folder: PathBuf) -> Self {
        Self { program, folder, connection: Mutex::default() }
    }

    /// Has a seed cloned, and answers its pidfd. A zygote that is dead is replaced first; one that dies over this request is an error that may
    /// pass, as it may have cloned a seed that nobody knows: whoever asks again does so with other descriptors.
    pub(super) fn clone_seed(&self, request: Request, with: &[BorrowedFd<'_>]) -> Result<OwnedFd, Failure> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.as_mut().is_some_and(|living| !matches!(living.child.try_wait(), Ok(None))) {
            *connection = None;
        }
        if connection.is_none() {
            *connection = Some(self.start()?);
        }
        let answer = connection.as_ref().map(|living| living.ask(request, with));
        match answer {
            Some(Ok(answer)) => answer,
            Some(Err(failure)) => {
                *connection = None;
                Err(failure)
            }
            None => Err(Failure::retry("ask the zygote", "there is none")),
        }
    }

    /// Ends the zygote; seeds and shims go on.
    pub(super) fn end(&self) {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn start(&self) -> Result<Connection, Failure> {
        let io = |step: &'static str| move |error: std::io::Error| Failure::io(step, &error);
        let (socket, theirs) = message::pair().map_err(io("make a socket"))?;
        let child = Command::new(&self.program)
            .args(["internal", "zygote"])
            .arg(&self.folder)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn()
            .map_err(io("start the zygote"))?;
        Ok(Connection { socket, child })
    }
}

impl Connection {
    /// The outer failure: it does not answer.
    fn ask(&self, request: Request, with: &[BorrowedFd<'_>]) -> Result<Result<OwnedFd, Failure>, Failure> {
        let lost = |detail: String| Failure::retry("ask the zygote", detail);
        // One that could not get ready has said why before it ended.
        let sent = message::send(&self.socket, &[&request.encode()], with);
        let mut buffer = vec![0; 4096];
        if !process::wait_readable(self.socket.as_fd(), Some(ANSWER_MAX))? {
            return Err(lost("it does not answer".into()));
        }
        let (length, mut descriptors) =
            message::receive(&self.socket, &mut buffer).map_err(|error| lost(error.to_string()))?;
        let bytes = &buffer[..length];
        if bytes.is_empty() {
            return Err(lost(sent.err().map_or_else(|| "it was killed".into(), |error| error.to_string())));
        }
        if let Some(pidfd) = descriptors.next() {
            return Ok(Ok(pidfd));
        }
        match serde_json::from_slice::<Failure>(bytes) {
            Ok(failure) => Ok(Err(failure)),
            Err(error) => Err(lost(error.to_string())),
        }
    }
}
