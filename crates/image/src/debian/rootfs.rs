//! Installs Debian packages: starts the installer in a sandbox of its own, feeds it, and takes the layer that it
//! writes. Both sides are here; `rootfs/protocol.rs` says how they talk.
//!
//! A base layer is made from nothing. A packages layer holds only what differs from its base: it goes over it.

mod base;
mod child;
mod database;
mod normalise;
mod order;
mod protocol;
pub(crate) mod sandbox;
mod script;
mod unpack;

pub use child::main;
pub use protocol::Done;

use kiln_model::Digest;
use kiln_spec::lock::LockedPackage;
use protocol::{Failure, Job, JobPackage, Report};
use sha2::Digest as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// First id on the host of the installer's user namespace; the ids of instances start at the other end.
pub(crate) const IDS_FIRST: u32 = 0xFFFE_0000;
/// Ids that Debian's scripts may use.
pub(crate) const IDS: u32 = 65_536;
/// Bytes that are copied and hashed at a time.
const CHUNK: usize = 1 << 20;
/// Bytes of one report, or of one line that a crashing installer writes.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// Packages could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// The installer cannot be started.
    #[error("cannot start the package installer")]
    Start(#[source] io::Error),
    /// Its user namespace could not be set up.
    #[error("cannot map the ids of the package installer")]
    Map(#[source] kiln_sys::CallError),
    /// A package or the base layer cannot be read from the content store.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A package in the content store is not the one in the lock.
    #[error("the stored package `{package}` is {found}, not {expected}")]
    Mismatch {
        /// Its name.
        package: String,
        /// As locked.
        expected: Digest,
        /// As stored.
        found: Digest,
    },
    /// The installer could not do its work.
    #[error("{}{message}", package.as_ref().map(|name| format!("package `{name}`: ")).unwrap_or_default())]
    Failed {
        /// The step and its causes.
        message: String,
        /// The package at fault, if one is known.
        package: Option<String>,
        /// The last lines that its script printed.
        output: String,
    },
    /// The installer ended without a word.
    #[error("the package installer ended ({status})")]
    Ended {
        /// How.
        status: String,
        /// What it printed last.
        output: String,
    },
    /// It took too long.
    #[error("the package installer did not end within {} s", .0.as_secs())]
    Deadline(Duration),
}

impl RootfsError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Map(_) => Some("kiln needs root and user namespaces to install packages".into()),
            Self::Mismatch { .. } => Some(
                "the disk of the state folder may be damaged: remove the object to have it fetched anew"
                    .into(),
            ),
            Self::Failed { package: Some(_), .. } => {
                Some("the package may not fit into an image: remove it from `packages` in kiln.toml".into())
            }
            _ => None,
        }
    }

    /// The last lines that a script, or the installer itself, printed; empty if nothing is known.
    pub fn output(&self) -> &str {
        match self {
            Self::Failed { output, .. } | Self::Ended { output, .. } => output,
            _ => "",
        }
    }

    /// Whether it may work when it is tried again as it is.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Start(_) | Self::Ended { .. })
    }
}

/// Installs packages in a sandbox. The caller is root.
#[derive(Debug, Clone)]
pub struct Installer {
    /// Started as `PROGRAM internal rootfs`; has to call [`main`] then.
    pub program: PathBuf,
    /// Bytes that the root file system may hold; it lies in memory.
    pub tree_bytes_max: u64,
    /// Bytes of address space of each process inside.
    pub process_bytes_max: u64,
    /// How long one script, or dpkg with all its scripts, may take.
    pub script_time_max: Duration,
    /// How long all of it may take.
    pub deadline: Duration,
}

impl Installer {
    /// An installer with the usual limits.
    pub fn new(program: PathBuf) -> Self {
        Self {
            program,
            tree_bytes_max: 8 << 30,
            process_bytes_max: 8 << 30,
            script_time_max: Duration::from_secs(10 * 60),
            deadline: Duration::from_secs(15 * 60),
        }
    }

    /// Installs `packages`, each with its `.deb`, on the layer `base`; without one they have to be a base themselves.
    /// The layer is written to `out`, an empty file, from its position on.
    ///
    /// The same packages in the same order on the same base give the same bytes.
    ///
    /// # Errors
    /// [`RootfsError`]; what `out` holds is then of no use.
    pub fn install(
        &self,
        base: Option<&Path>,
        packages: &[(LockedPackage, PathBuf)],
        out: &File,
    ) -> Result<Done, RootfsError> {
        let base = base.map(open).transpose()?;
        let job = Job {
            base: base.as_ref().map(|base| base.size),
            packages: packages
                .iter()
                .map(|(p, _)| JobPackage { name: p.name.clone(), size: p.size })
                .collect(),
            tree_bytes_max: self.tree_bytes_max,
            process_bytes_max: self.process_bytes_max,
            script_seconds_max: self.script_time_max.as_secs(),
        };
        let mut child = Command::new(&self.program)
            .args(["internal", "rootfs"])
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(out.try_clone().map_err(RootfsError::Start)?)
            .stderr(Stdio::piped())
            .spawn()
            .map_err(RootfsError::Start)?;
        let result = self.talk(&mut child, &job, base, packages);
        if result.is_err() {
            // It may have ended by itself.
            let _ = child.kill();
        }
        let status = child.wait().map_err(RootfsError::Start)?;
        match result {
            Err(RootfsError::Ended { output, .. }) => {
                Err(RootfsError::Ended { status: status.to_string(), output })
            }
            Ok(_) if !status.success() => {
                Err(RootfsError::Ended { status: status.to_string(), output: String::new() })
            }
            result => result,
        }
    }

    fn talk(
        &self,
        child: &mut Child,
        job: &Job,
        base: Option<Opened>,
        packages: &[(LockedPackage, PathBuf)],
    ) -> Result<Done, RootfsError> {
        let until = Instant::now() + self.deadline;
        let (Some(stdin), Some(stderr)) = (child.stdin.take(), child.stderr.take()) else {
            return Err(RootfsError::Start(io::ErrorKind::BrokenPipe.into()));
        };
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || forward(stderr, &sender));
        let mut said = Said { lines, until, limit: self.deadline, output: String::new() };
        match said.next()? {
            Report::Unshared => {}
            Report::Failed(failure) => return Err(failed(failure)),
            Report::Done(_) => return Err(said.ended()),
        }
        let pid = i32::try_from(child.id()).unwrap_or(0);
        kiln_sys::namespace::map_ids(pid, IDS_FIRST, IDS).map_err(RootfsError::Map)?;
        std::thread::scope(|scope| {
            let feeder = scope.spawn(move || feed(stdin, job, base, packages));
            let report = said.next();
            if report.is_err() {
                // The feeder's pipe has to break before it can be waited for.
                let _ = child.kill();
            }
            let fed = feeder.join().unwrap_or(Ok(()));
            let report = fed.and(report);
            match report? {
                Report::Done(done) => Ok(done),
                Report::Failed(failure) => Err(failed(failure)),
                Report::Unshared => Err(said.ended()),
            }
        })
    }
}

fn failed(failure: Failure) -> RootfsError {
    let Failure { message, package, output } = failure;
    RootfsError::Failed { message, package, output }
}

/// What the installer says on its stderr.
struct Said {
    lines: mpsc::Receiver<String>,
    until: Instant,
    limit: Duration,
    /// Lines that are no report: it is crashing.
    output: String,
}

impl Said {
    fn next(&mut self) -> Result<Report, RootfsError> {
        loop {
            match self.lines.recv_timeout(self.until.saturating_duration_since(Instant::now())) {
                Ok(line) => match serde_json::from_str(&line) {
                    Ok(report) => return Ok(report),
                    Err(_) => self.output.push_str(&line),
                },
                Err(mpsc::RecvTimeoutError::Timeout) => return Err(RootfsError::Deadline(self.limit)),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(self.ended()),
            }
            if self.output.len() as u64 > LINE_BYTES_MAX {
                return Err(self.ended());
            }
        }
    }

    fn ended(&mut self) -> RootfsError {
        RootfsError::Ended { status: String::new(), output: std::mem::take(&mut self.output) }
    }
}

/// Hands on the lines of the installer until it ends.
fn forward(stderr: ChildStderr, sender: &mpsc::Sender<String>) {
    let mut reader = BufReader::new(stderr);
    loop {
        let mut line = Vec::new();
        match reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(n) if n > 0 => {}
            _ => return,
        }
        if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
            return;
        }
    }
}

struct Opened {
    file: File,
    path: PathBuf,
    size: u64,
}

fn open(path: &Path) -> Result<Opened, RootfsError> {
    let opened = File::open(path).and_then(|file| {
        let size = file.metadata()?.len();
        Ok(Opened { file, path: path.to_owned(), size })
    });
    opened.map_err(|source| RootfsError::Read { path: path.to_owned(), source })
}

/// Gives the installer its job and its bytes. That it hangs up early is no error here: it has said why.
fn feed(
    mut to: ChildStdin,
    job: &Job,
    base: Option<Opened>,
    packages: &[(LockedPackage, PathBuf)],
) -> Result<(), RootfsError> {
    let json = serde_json::to_vec(job).unwrap_or_default();
    let length = u32::try_from(json.len()).unwrap_or(u32::MAX).to_le_bytes();
    let mut head = vec![0];
    head.extend_from_slice(&length);
    head.extend_from_slice(&json);
    if to.write_all(&head).is_err() {
        return Ok(());
    }
    if let Some(base) = base {
        // Layers are verified where they are written, and again where an instance starts from them.
        copy(base, &mut to)?;
    }
    for (package, path) in packages {
        let found = copy(open(path)?, &mut to)?;
        if found.is_some_and(|found| found != package.sha256) {
            let found = found.unwrap_or(package.sha256);
            let package_name = package.name.clone();
            return Err(RootfsError::Mismatch { package: package_name, expected: package.sha256, found });
        }
    }
    Ok(())
}

/// Copies a file and hashes it; none if the receiver is gone.
fn copy(mut from: Opened, to: &mut ChildStdin) -> Result<Option<Digest>, RootfsError> {
    let mut hasher = sha2::Sha256::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = from.file.read(&mut chunk);
        let n = read.map_err(|source| RootfsError::Read { path: from.path.clone(), source })?;
        if n == 0 {
            return Ok(Some(Digest::from_bytes(hasher.finalize().into())));
        }
        hasher.update(&chunk[..n]);
        if to.write_all(&chunk[..n]).is_err() {
            return Ok(None);
        }
    }
}
