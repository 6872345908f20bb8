//! The installer itself, from the first system call to the last byte of the layer.

use super::base::{self, BaseError};
use super::database::{self, DatabaseError};
use super::normalise::{NormaliseError, normalise};
use super::order::stages;
use super::protocol::{Done, Failure, JOB_BYTES_MAX, Job, Report};
use super::sandbox::{self, SandboxError};
use super::script::{Runner, ScriptError};
use super::unpack::{self, UnpackError, Writer};
use crate::debian::deb::Deb;
use crate::erofs::{self, ErofsError};
use crate::tree::{Tree, TreeError};
use crate::worker::chain;
use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

/// The argument that makes this process the inner one.
const INNER: &str = "inner";
/// Directories of a merged `/usr`, which Debian's packages rely on and none of them makes.
const MERGED: &[&str] = &["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// What keeps the scripts from starting daemons.
const POLICY: &str = "/usr/sbin/policy-rc.d";
/// dpkg, without syncs, taking the package's side where a conffile differs.
const DPKG: &[&str] = &["dpkg", "--force-unsafe-io", "--force-confnew", "--log=/dev/null"];

#[derive(Debug, thiserror::Error)]
enum ChildError {
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("cannot read the job")]
    Job(#[source] io::Error),
    #[error("cannot start the inner installer")]
    Inner(#[source] io::Error),
    #[error("the inner installer ended ({0})")]
    Ended(String),
    #[error(transparent)]
    Base(#[from] BaseError),
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error("cannot prepare `{path}`")]
    Prepare {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot run its `preinst`")]
    Preinst {
        package: String,
        #[source]
        source: ScriptError,
    },
    #[error("cannot configure the packages")]
    Configure(#[source] ScriptError),
    #[error("it is not installed in the end")]
    Unfinished(String),
    #[error(transparent)]
    Normalise(#[from] NormaliseError),
    #[error("cannot read the result")]
    Scan(#[source] TreeError),
    #[error("cannot write the layer")]
    Erofs(#[source] ErofsError),
    #[error("cannot write the layer")]
    Flush(#[source] io::Error),
    #[error("cannot read `/etc/passwd` of the result")]
    Passwd(#[source] io::Error),
}

impl ChildError {
    fn failure(&self) -> Failure {
        let script = match self {
            Self::Preinst { source, .. } | Self::Configure(source) => Some(source),
            _ => None,
        };
        let output = match script {
            Some(ScriptError::Failed { output, .. }) => output.clone(),
            _ => String::new(),
        };
        let package = match self {
            Self::Preinst { package, .. } | Self::Unfinished(package) => Some(package.clone()),
            // dpkg ends with a list of the packages at fault.
            Self::Configure(_) => {
                let list = output.split_once("Errors were encountered while processing:");
                list.and_then(|(_, list)| list.lines().map(str::trim).find(|l| !l.is_empty()))
                    .map(str::to_owned)
            }
            _ => None,
        };
        Failure { message: chain(self), package, output }
    }
}

/// Plays the installer: `kiln internal rootfs`, with the arguments after that.
pub fn main(args: impl IntoIterator<Item = String>) -> ExitCode {
    let inner = args.into_iter().next().is_some_and(|arg| arg == INNER);
    let result = if inner { install().map(Report::Done) } else { outer() };
    let (report, code) = match result {
        Ok(report) => (report, ExitCode::SUCCESS),
        Err(error) => (Report::Failed(error.failure()), ExitCode::FAILURE),
    };
    // The outer one has nothing to say if all went well: the inner one did.
    if inner || matches!(report, Report::Failed(_)) {
        say(&report);
    }
    code
}

/// One line. If nobody listens any more, this process is about to be ended anyway.
fn say(report: &Report) {
    let mut line = serde_json::to_vec(report).unwrap_or_default();
    line.push(b'\n');
    let _ = io::stderr().write_all(&line);
}

/// Makes the namespaces and starts the inner installer in them.
fn outer() -> Result<Report, ChildError> {
    sandbox::die_with_parent()?;
    sandbox::unshare(sandbox::Network::None)?;
    say(&Report::Unshared);
    let mut go = [0];
    match rustix::io::read(io::stdin().as_fd(), &mut go) {
        Ok(1) => {}
        Ok(_) => return Err(ChildError::Job(io::ErrorKind::UnexpectedEof.into())),
        Err(error) => return Err(ChildError::Job(error.into())),
    }
    sandbox::become_root()?;
    // A change of user clears it.
    sandbox::die_with_parent()?;
    let status = Command::new("/proc/self/exe").args(["internal", "rootfs", INNER]).env_clear().status();
    let status = status.map_err(ChildError::Inner)?;
    // Status 1 is a failure that it has reported.
    match status.code() {
        Some(0) => Ok(Report::Unshared),
        Some(1) => std::process::exit(1),
        _ => Err(ChildError::Ended(status.to_string())),
    }
}

/// How long each step took.
struct Clock {
    steps: Vec<(String, u64)>,
    since: Instant,
}

impl Clock {
    fn lap(&mut self, step: &str) {
        let ms = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        match self.steps.iter_mut().find(|(name, _)| name == step) {
            Some((_, sum)) => *sum += ms,
            None => self.steps.push((step.to_owned(), ms)),
        }
        self.since = Instant::now();
    }
}

fn install() -> Result<Done, ChildError> {
    sandbox::die_with_parent()?;
    let mut stdin = BufReader::with_capacity(1 << 20, io::stdin().lock());
    let job = read_job(&mut stdin).map_err(ChildError::Job)?;
    sandbox::enter_root(job.tree_bytes_max, job.process_bytes_max)?;
    let mut clock = Clock { steps: vec![], since: Instant::now() };
    let base = match job.base {
        Some(size) => Some(base::restore(size, &mut stdin)?),
        None => None,
    };
    clock.lap("base");
    let mut debs = unpack::receive(&job.packages, &mut stdin)?;
    clock.lap("decode");
    let epoch = newest(&debs, base.as_ref());
    let runner = Runner { epoch, seconds_max: job.script_seconds_max };
    match base {
        None => install_base(&mut debs, &runner, &mut clock)?,
        Some(_) => install_over(&mut debs, &runner, &mut clock)?,
    }
    if let Some(package) = database::unfinished()? {
        return Err(ChildError::Unfinished(package));
    }
    sandbox::leave_nothing_running()?;
    normalise(epoch, base.as_ref())?;
    clock.lap("normalise");
    let mut tree = Tree::scan(Path::new("/")).map_err(ChildError::Scan)?;
    if let Some(base) = &base {
        tree = Tree::difference(base, &tree).map_err(ChildError::Scan)?;
    }
    clock.lap("compare");
    let out = io::stdout().as_fd().try_clone_to_owned().map_err(ChildError::Flush)?;
    let mut out = io::BufWriter::with_capacity(1 << 20, File::from(out));
    erofs::write(&tree, &mut out).map_err(ChildError::Erofs)?;
    out.flush().map_err(ChildError::Flush)?;
    clock.lap("write");
    Ok(Done { users: users().map_err(ChildError::Passwd)?, epoch, steps: clock.steps })
}

fn read_job(from: &mut impl Read) -> io::Result<Job> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > JOB_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut json = vec![0; length as usize];
    from.read_exact(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}

/// The newest time of a file in the packages and in the base below them.
fn newest(debs: &[Deb], base: Option<&Tree>) -> i64 {
    let packages = debs.iter().flat_map(|deb| &deb.entries).map(|entry| entry.mtime);
    let base = base.into_iter().flat_map(Tree::iter).map(|(_, node)| node.mtime);
    packages.chain(base).max().unwrap_or(0)
}

/// From nothing: no script can run until everything is unpacked.
fn install_base(debs: &mut [Deb], runner: &Runner, clock: &mut Clock) -> Result<(), ChildError> {
    for name in MERGED {
        prepare(name, |_| fs::create_dir_all(format!("/usr/{name}")))?;
        prepare(name, |_| symlink(format!("usr/{name}"), format!("/{name}")))?;
    }
    let mut writer = Writer::new();
    for deb in debs.iter_mut() {
        writer.package(deb)?;
    }
    writer.finish()?;
    clock.lap("unpack");
    database::create()?;
    for deb in debs.iter() {
        database::write_control(deb)?;
    }
    database::record(&debs.iter().collect::<Vec<_>>())?;
    // What the first scripts need, and what later ones make themselves: users, and an `awk`.
    for name in ["passwd", "group"] {
        let path = format!("/etc/{name}");
        if !Path::new(&path).exists() {
            prepare(&path, |path| fs::copy(format!("/usr/share/base-passwd/{name}.master"), path).map(drop))?;
        }
    }
    let awk = Path::new("/usr/bin/awk");
    let lends_awk = fs::symlink_metadata(awk).is_err();
    if lends_awk {
        prepare("/usr/bin/awk", |path| symlink("mawk", path))?;
    }
    let policy = Policy::set()?;
    for deb in debs.iter() {
        preinst(deb, runner)?;
    }
    if lends_awk {
        prepare("/usr/bin/awk", |path| fs::remove_file(path))?;
    }
    clock.lap("preinst");
    configure(runner, clock)?;
    policy.unset()
}

/// Over a base: each package's `preinst` runs before it is unpacked, as with dpkg.
fn install_over(debs: &mut [Deb], runner: &Runner, clock: &mut Clock) -> Result<(), ChildError> {
    let mut writer = Writer::new();
    let policy = Policy::set()?;
    for stage in stages(debs) {
        for n in &stage {
            database::write_control(&debs[*n])?;
            preinst(&debs[*n], runner)?;
            writer.package(&mut debs[*n])?;
        }
        writer.finish()?;
        let unpacked: Vec<&Deb> = stage.iter().map(|n| &debs[*n]).collect();
        database::record(&unpacked)?;
        clock.lap("unpack");
        configure(runner, clock)?;
    }
    policy.unset()
}

fn prepare(path: &str, work: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), ChildError> {
    work(Path::new(path)).map_err(|source| ChildError::Prepare { path: path.to_owned(), source })
}

/// Forbids scripts to start daemons while it is set; what was there before comes back.
struct Policy {
    before: Option<Vec<u8>>,
}

impl Policy {
    fn set() -> Result<Self, ChildError> {
        let before = fs::read(POLICY).ok();
        prepare(POLICY, |path| {
            fs::write(path, "#!/bin/sh\nexit 101\n")?;
            fs::set_permissions(path, Permissions::from_mode(0o755))
        })?;
        Ok(Self { before })
    }

    fn unset(self) -> Result<(), ChildError> {
        prepare(POLICY, |path| match self.before {
            Some(bytes) => fs::write(path, bytes),
            None => fs::remove_file(path),
        })
    }
}

fn preinst(deb: &Deb, runner: &Runner) -> Result<(), ChildError> {
    if !deb.control.contains_key("preinst") {
        return Ok(());
    }
    let path = database::control_path(deb, "preinst");
    let variables = [
        ("DPKG_MAINTSCRIPT_NAME", "preinst"),
        ("DPKG_MAINTSCRIPT_PACKAGE", deb.name()),
        ("DPKG_MAINTSCRIPT_ARCH", deb.field("Architecture").unwrap_or_default()),
        ("DPKG_MAINTSCRIPT_PACKAGE_REFCOUNT", "1"),
        ("DPKG_ADMINDIR", "/var/lib/dpkg"),
    ];
    let run = runner.run(&[&path.to_string_lossy(), "install"], &variables);
    run.map_err(|source| ChildError::Preinst { package: deb.name().to_owned(), source })
}

/// Configures all that is unpacked, with the triggers once at the end. Where a package waits for the triggers of
/// another, dpkg gives up; then it goes on with triggers in between.
fn configure(runner: &Runner, clock: &mut Clock) -> Result<(), ChildError> {
    let dpkg = |args: &[&str]| runner.run(&[DPKG, args].concat(), &[]);
    if dpkg(&["--no-triggers", "--configure", "-a"]).is_err() {
        dpkg(&["--configure", "-a"]).map_err(ChildError::Configure)?;
    }
    clock.lap("configure");
    dpkg(&["--triggers-only", "-a"]).map_err(ChildError::Configure)?;
    clock.lap("triggers");
    Ok(())
}

/// The users of the result.
fn users() -> io::Result<BTreeMap<String, (u32, u32)>> {
    let text = fs::read_to_string("/etc/passwd")?;
    let row = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let (name, uid, gid) = (fields.first()?, fields.get(2)?, fields.get(3)?);
        Some(((*name).to_owned(), (uid.parse().ok()?, gid.parse().ok()?)))
    };
    // The first row of a name counts, as for the C library.
    Ok(text.lines().rev().filter_map(row).collect())
}
