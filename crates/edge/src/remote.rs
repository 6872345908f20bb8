//! The client's side: the edge behind a Unix socket, and starting one.

use crate::client::{Router, RouterError};
use crate::limits::{CALL_TIMEOUT, START_TIMEOUT, UPGRADE_TIMEOUT};
use crate::server::{StartFailure, control_socket, failure_path};
use crate::wire::{self, Answer, Ask};
use async_trait::async_trait;
use kiln_model::edge::EdgeStatus;
use kiln_model::{Cidr, Fence, Generation, RouteTable, ServiceRange};
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::net::UnixStream;

/// An edge of another process. One connection per call, so that an edge that was started again is found at once.
#[derive(Debug, Clone)]
pub struct EdgeClient {
    socket: PathBuf,
}

impl EdgeClient {
    /// The edge that listens on `socket`, `DIR/control.sock`. Nothing is connected yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Asks the edge to end as SIGTERM would. `Ok` means that it will.
    pub async fn stop(&self) -> Result<(), RouterError> {
        match self.call(&Ask::Stop).await? {
            Answer::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Has the edge start `program` in its place and waits until that serves: sockets, table and counts go over, and no
    /// connection is lost. Without `listen` it takes the addresses of the old one. If it comes to nothing, the old one serves
    /// on, and the error says why.
    pub async fn upgrade(&self, program: &Path, listen: Option<&Listen>) -> Result<(), RouterError> {
        let arguments = listen.map(Listen::arguments).unwrap_or_default();
        let ask = Ask::Upgrade { program: program.to_owned(), arguments };
        match self.call_within(&ask, UPGRADE_TIMEOUT).await? {
            Answer::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// The process that listens on the socket, whether it answers or not; none if nobody does. It is whoever made the
    /// socket, as the kernel says, so it lives as long as a connection is possible.
    pub async fn holder(&self) -> Option<i32> {
        let stream = UnixStream::connect(&self.socket).await.ok()?;
        stream.peer_cred().ok()?.pid()
    }

    async fn call(&self, ask: &Ask) -> Result<Answer, RouterError> {
        self.call_within(ask, CALL_TIMEOUT).await
    }

    async fn call_within(&self, ask: &Ask, limit: Duration) -> Result<Answer, RouterError> {
        let exchange = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            wire::send(&mut stream, ask).await?;
            wire::receive(&mut stream).await
        };
        let answer: io::Result<Answer> = match tokio::time::timeout(limit, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        answer.map_err(|e| RouterError::Unreachable { detail: format!("`{}`: {e}", self.socket.display()) })
    }
}

fn unexpected(answer: &Answer) -> RouterError {
    let detail = match answer {
        Answer::Failed { detail } => detail.clone(),
        other => format!("unexpected answer {other:?}"),
    };
    RouterError::Unreachable { detail }
}

#[async_trait]
impl Router for EdgeClient {
    async fn status(&self) -> Result<EdgeStatus, RouterError> {
        match self.call(&Ask::Status).await? {
            Answer::Status { status } => Ok(*status),
            other => Err(unexpected(&other)),
        }
    }

    async fn set(&self, fence: Fence, generation: Generation, table: &RouteTable) -> Result<(), RouterError> {
        match self.call(&Ask::Set { fence, generation, table: table.clone() }).await? {
            Answer::Done => Ok(()),
            Answer::Stale { detail } => Err(RouterError::Stale { generation, detail }),
            Answer::Invalid { detail } => Err(RouterError::Invalid { generation, detail }),
            other => Err(unexpected(&other)),
        }
    }
}

/// Why no edge could be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The program cannot be started.
    #[error("`{program}` cannot be started as the edge")]
    Program {
        /// The program.
        program: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The folder cannot be made.
    #[error("the edge's folder `{path}` cannot be made")]
    Dir {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// None runs, and nobody said where one should listen. Hint for users: give an address with `--edge`.
    #[error("no edge runs in `{dir}`, and without an address for traffic none can be started")]
    NoAddress {
        /// Its folder.
        dir: PathBuf,
    },
    /// Another program listens there. Hint for users: stop it, or give another address with `--edge`.
    #[error("the edge cannot listen on `{address}`: another program does")]
    InUse {
        /// The address.
        address: SocketAddr,
    },
    /// It ended at its start.
    #[error("the edge ended at its start: {detail}")]
    Ended {
        /// Its own words.
        detail: String,
    },
    /// It runs but does not answer; it was killed.
    #[error("the edge did not answer within {} s", START_TIMEOUT.as_secs())]
    Silent,
}

/// Where an edge shall listen.
#[derive(Debug, Clone, Default)]
pub struct Listen {
    /// Addresses for traffic.
    pub plain: Vec<SocketAddr>,
    /// The same over TLS.
    pub tls: Vec<SocketAddr>,
    /// The folder of certificates; none means `DIR/certificates`.
    pub certificates: Option<PathBuf>,
    /// The service addresses of environments.
    pub internal: Option<ServiceRange>,
    /// Proxies whose PROXY protocol headers it believes.
    pub proxies: Vec<Cidr>,
}

impl Listen {
    /// As options of `kiln edge`.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut all = vec![];
        let mut add = |name: &str, value: String| all.extend([name.to_owned(), value]);
        self.plain.iter().for_each(|address| add("--listen", address.to_string()));
        self.tls.iter().for_each(|address| add("--listen-tls", address.to_string()));
        // The command line takes no folder with another name.
        self.certificates.iter().for_each(|dir| add("--certificates", dir.to_string_lossy().into_owned()));
        self.internal.iter().for_each(|range| add("--internal", range.to_string()));
        self.proxies.iter().for_each(|block| add("--proxy-protocol", block.to_string()));
        all
    }
}

/// How an edge begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    Fresh,
    /// In the place of the one that runs.
    TakeOver,
}

/// Starts `PROGRAM edge --dir DIR --listen ADDR…` with no terminal, in a session of its own, and waits until it answers. The
/// caller may drop the child: the edge lives on.
pub async fn spawn_edge(program: &Path, dir: &Path, listen: &Listen) -> Result<Child, SpawnError> {
    if listen.plain.is_empty() && listen.tls.is_empty() {
        return Err(SpawnError::NoAddress { dir: dir.to_owned() });
    }
    spawn(program, dir, &listen.arguments(), Start::Fresh).await
}

/// See [`spawn_edge`].
pub(crate) async fn spawn(
    program: &Path,
    dir: &Path,
    arguments: &[String],
    start: Start,
) -> Result<Child, SpawnError> {
    let broken = |source| SpawnError::Dir { path: dir.to_owned(), source };
    std::fs::create_dir_all(dir).map_err(broken)?;
    let _ = std::fs::remove_file(failure_path(dir));
    let panics = File::create(dir.join("stderr.txt")).map_err(broken)?;
    let mut command = Command::new(program);
    command.arg("edge").arg("--dir").arg(dir).args(arguments);
    if start == Start::TakeOver {
        command.arg("--take-over");
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(panics).current_dir("/");
    let started = command.spawn();
    let mut child = started.map_err(|source| SpawnError::Program { program: program.to_owned(), source })?;
    let client = EdgeClient::new(control_socket(dir));
    let deadline = tokio::time::Instant::now() + START_TIMEOUT;
    while tokio::time::Instant::now() < deadline {
        if client.status().await.is_ok_and(|s| s.pid == child.id()) {
            return Ok(child);
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(start_failure(dir, &status.to_string()));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let _ = child.kill();
    let _ = child.wait();
    Err(SpawnError::Silent)
}

fn start_failure(dir: &Path, status: &str) -> SpawnError {
    let told =
        std::fs::read(failure_path(dir)).ok().and_then(|b| serde_json::from_slice::<StartFailure>(&b).ok());
    match told {
        Some(StartFailure { in_use: Some(address), .. }) => SpawnError::InUse { address },
        Some(StartFailure { detail, .. }) => SpawnError::Ended { detail },
        None => {
            let text = std::fs::read_to_string(dir.join("stderr.txt")).unwrap_or_default();
            let line = text.lines().last().unwrap_or_default();
            SpawnError::Ended { detail: format!("{status} {line}").trim_end().to_owned() }
        }
    }
}
