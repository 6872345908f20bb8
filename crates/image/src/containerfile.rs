//! Runs `buildah bud` over the committed tree, in a sandbox: a Containerfile is a program of whoever may push a commit.
//!
//! Two processes of kiln stand between the bake and buildah. The *outer* one makes the namespaces, puts the folder of the
//! build at `/mnt`, hides what the host configures for containers, waits until the bake has written its id maps, and becomes
//! root of them: on the host it is nobody. The *inner* one is pid 1 in there and starts buildah. The network stays the
//! host's, because `FROM` and `RUN` fetch; that is one reason why such an image is not reproducible.

use crate::bake::BakeJob;
use crate::debian::rootfs::sandbox::{self, Network, SandboxError};
use crate::debian::rootfs::{IDS, IDS_FIRST};
use crate::oci::reference::Origin;
use crate::oci::{FetchError, Fetcher, Reference};
use crate::source::{SourceError, SourceFile, Sources};
use crate::worker::chain;
use kiln_model::Digest;
use rustix::mount::{MountFlags, MountPropagationFlags};
use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Folder of the state in which builds have theirs. What is in it when no bake runs is left over.
pub const FOLDER: &str = "buildah";
/// How long one build may take.
const DEADLINE: Duration = Duration::from_secs(15 * 60);
/// Where the folder of a build is inside; any directory that every host has.
const INSIDE: &str = "/mnt";
/// What the host has for containers and for its users; nothing of it is seen inside.
const HIDDEN: &[&str] = &["/etc/containers", "/root", "/home", "/run/containers", "/var/lib/containers"];
/// Lines that buildah said last, for the message.
const SAID_LINES: usize = 12;
/// Bytes of one line that are told.
const LINE_BYTES_MAX: u64 = 2000;
/// Files of the commit that are read at a time.
const FILES_AT_ONCE: usize = 256;
/// The argument that makes this process the inner one.
const INNER: &str = "inner";
/// The outer process has its namespaces.
const READY: &str = "kiln: ready";
/// What the image is called in the layout, and in buildah's storage.
const IMAGE: &str = "kiln";
const TAG: &str = "localhost/kiln";

/// A Containerfile could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ContainerfileError {
    /// There is no buildah.
    #[error("this host has no `buildah`")]
    NoBuildah,
    /// The source.
    #[error("cannot read the commit")]
    Source(#[from] SourceError),
    /// The commit has no such file, or something in it cannot be exported.
    #[error("`{path}` of the commit {why}")]
    Commit {
        /// The path in the commit.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The folder of the build.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The sandbox could not be started.
    #[error("cannot start the sandbox of buildah")]
    Start(#[source] io::Error),
    /// Its user namespace could not be set up.
    #[error("cannot map the ids of the sandbox of buildah")]
    Map(#[source] kiln_sys::CallError),
    /// buildah failed.
    #[error("buildah failed (it said: {output})")]
    Failed {
        /// Its last lines.
        output: String,
    },
    /// It took too long.
    #[error("buildah did not end within {} s", DEADLINE.as_secs())]
    Deadline,
    /// What it made is no image.
    #[error("cannot take the image that buildah made")]
    Fetch(#[from] FetchError),
}

impl ContainerfileError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoBuildah => Some("install it on the server: `apt-get install buildah`".into()),
            Self::Commit { .. } => Some("correct `base` in kiln.toml, or commit the file".into()),
            Self::Failed { .. } => Some(
                "buildah sees the committed files, and pulls without credentials and without the configuration of this host"
                    .into(),
            ),
            _ => None,
        }
    }
}

/// What to build.
pub struct Build<'a> {
    /// The bake that wants it.
    pub job: &'a BakeJob,
    /// Where the commit is.
    pub sources: &'a Sources,
    /// The files of the commit.
    pub files: &'a [SourceFile],
    /// The Containerfile among them.
    pub path: &'a str,
}

/// A folder that is removed in the end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // The next start of the server removes it if this does not.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Builds; answers with the manifest of the image, whose blobs are then in the content store.
///
/// # Errors
/// [`ContainerfileError`].
pub fn build(
    build: &Build<'_>,
    fetcher: &Fetcher<'_>,
    progress: &mut dyn FnMut(String),
) -> Result<Digest, ContainerfileError> {
    let buildah = buildah().ok_or(ContainerfileError::NoBuildah)?;
    if !build.files.iter().any(|file| file.path == build.path.as_bytes() && file.mode != 0o160_000) {
        return Err(ContainerfileError::Commit { path: build.path.to_owned(), why: "is not there" });
    }
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let name = format!("{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
    let folder = Folder(build.job.state.join(FOLDER).join(name));
    prepare(&folder.0)?;
    export(build, &folder.0.join("context"))?;
    let epoch = build.sources.info(&build.job.project, &build.job.commit)?.time;
    progress(format!("buildah bud {}", build.path));
    run(build, &folder.0, &buildah, epoch, progress)?;
    let origin = Origin::Path(folder.0.join("out"));
    let reference = Reference { origin, tag: Some(IMAGE.to_owned()), digest: None };
    let name = format!("containerfile:{}", build.path);
    Ok(fetcher.fetch_reference(&name, reference, None, &mut |_| {})?)
}

fn buildah() -> Option<PathBuf> {
    ["/usr/local/bin", "/usr/bin", "/bin"]
        .iter()
        .map(|dir| Path::new(dir).join("buildah"))
        .find(|p| p.is_file())
}

/// The folders of a build and the configuration that stands in for the host's: nothing but what is said here.
fn prepare(folder: &Path) -> Result<(), ContainerfileError> {
    let write = |path: PathBuf| move |source| ContainerfileError::Write { path, source };
    fs::create_dir_all(folder).map_err(write(folder.to_owned()))?;
    for name in ["context", "out", "storage", "run", "home", "tmp"] {
        let path = folder.join(name);
        fs::create_dir(&path).map_err(write(path.clone()))?;
        own(&path)?;
    }
    let files = [
        ("policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#),
        ("auth.json", "{}"),
        ("registries.conf", ""),
        ("containers.conf", ""),
        (
            "storage.conf",
            "[storage]\ndriver = \"vfs\"\nrunroot = \"/mnt/run\"\ngraphroot = \"/mnt/storage\"\n",
        ),
    ];
    for (name, text) in files {
        let path = folder.join(name);
        fs::write(&path, text).map_err(write(path.clone()))?;
        own(&path)?;
    }
    own(folder)
}

/// Gives a file to the root of the sandbox.
fn own(path: &Path) -> Result<(), ContainerfileError> {
    let failed = |source| ContainerfileError::Write { path: path.to_owned(), source };
    lchown(path, Some(IDS_FIRST), Some(IDS_FIRST)).map_err(failed)
}

/// Writes the commit, without filters.
fn export(build: &Build<'_>, folder: &Path) -> Result<(), ContainerfileError> {
    for files in build.files.chunks(FILES_AT_ONCE) {
        let ids: Vec<String> = files.iter().map(|file| file.id.clone()).collect();
        if let Some(file) = files.iter().find(|file| file.mode == 0o160_000) {
            let path = String::from_utf8_lossy(&file.path).into_owned();
            return Err(ContainerfileError::Commit { path, why: "is a submodule" });
        }
        for (file, bytes) in files.iter().zip(build.sources.contents(&build.job.project, &ids)?) {
            one(folder, file, &bytes)?;
        }
    }
    Ok(())
}

fn one(folder: &Path, file: &SourceFile, bytes: &[u8]) -> Result<(), ContainerfileError> {
    // git refuses such names when a pack is checked; here they would be written outside.
    let legal = |part: &[u8]| !matches!(part, b"" | b"." | b"..");
    if !file.path.split(|b| *b == b'/').all(legal) {
        let path = String::from_utf8_lossy(&file.path).into_owned();
        return Err(ContainerfileError::Commit { path, why: "has an impossible name" });
    }
    let path = folder.join(std::ffi::OsStr::from_bytes(&file.path));
    let failed = |source| ContainerfileError::Write { path: path.clone(), source };
    let mut made = folder.to_owned();
    for part in path.parent().and_then(|p| p.strip_prefix(folder).ok()).into_iter().flat_map(Path::components)
    {
        made.push(part);
        // A link that stands here is no folder, so nothing is ever written through one.
        match fs::symlink_metadata(&made) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(failed(io::ErrorKind::NotADirectory.into())),
            Err(_) => {
                fs::create_dir(&made).map_err(failed)?;
                own(&made)?;
            }
        }
    }
    if file.mode == 0o120_000 {
        symlink(std::ffi::OsStr::from_bytes(bytes), &path).map_err(failed)?;
    } else {
        let mut out = fs::File::options().write(true).create_new(true).open(&path).map_err(failed)?;
        out.write_all(bytes).map_err(failed)?;
        fs::set_permissions(&path, Permissions::from_mode(file.mode & 0o777)).map_err(failed)?;
    }
    own(&path)
}

/// Runs buildah in the sandbox and hands on what it says.
fn run(
    build: &Build<'_>,
    folder: &Path,
    buildah: &Path,
    epoch: i64,
    progress: &mut dyn FnMut(String),
) -> Result<(), ContainerfileError> {
    let (reader, writer) = io::pipe().map_err(ContainerfileError::Start)?;
    let mut command = Command::new(&build.job.program);
    command
        .args(["internal", "containerfile"])
        .arg(folder)
        .arg(buildah)
        .args([build.path, &epoch.to_string()])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(writer.try_clone().map_err(ContainerfileError::Start)?)
        .stderr(writer);
    let mut child = command.spawn().map_err(ContainerfileError::Start)?;
    // The command holds the write ends; without this the output would never end.
    drop(command);
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || forward(reader, &sender));
    let until = Instant::now() + DEADLINE;
    let mut said: Vec<String> = vec![];
    let result = loop {
        match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) if line == READY => {
                let pid = i32::try_from(child.id()).unwrap_or(0);
                let mapped = kiln_sys::namespace::map_ids(pid, IDS_FIRST, IDS);
                if let Err(error) = mapped {
                    break Err(ContainerfileError::Map(error));
                }
                if let Some(mut stdin) = child.stdin.take() {
                    // If it has ended, its output does too.
                    let _ = stdin.write_all(&[0]);
                }
            }
            Ok(line) => {
                if line.starts_with("STEP ") {
                    progress(line.clone());
                }
                said.push(line);
                let surplus = said.len().saturating_sub(SAID_LINES);
                said.drain(..surplus);
            }
            Err(mpsc::RecvTimeoutError::Timeout) => break Err(ContainerfileError::Deadline),
            Err(mpsc::RecvTimeoutError::Disconnected) => break Ok(()),
        }
    };
    if result.is_err() {
        let _ = child.kill();
    }
    let status = child.wait().map_err(ContainerfileError::Start)?;
    result?;
    if status.success() { Ok(()) } else { Err(ContainerfileError::Failed { output: said.join(" | ") }) }
}

fn forward(reader: impl Read, sender: &mpsc::Sender<String>) {
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = vec![];
        match reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(n) if n > 0 => {}
            _ => return,
        }
        let line: String =
            String::from_utf8_lossy(&line).trim_end().chars().filter(|c| !c.is_control()).collect();
        if !line.is_empty() && sender.send(line).is_err() {
            return;
        }
    }
}

/// Plays the sandbox: `kiln internal containerfile FOLDER BUILDAH PATH EPOCH`, or `… inner BUILDAH PATH EPOCH`.
pub fn main(args: impl IntoIterator<Item = String>) -> ExitCode {
    let args: Vec<String> = args.into_iter().collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args[..] {
        [INNER, buildah, path, epoch] => inner(buildah, path, epoch),
        [folder, buildah, path, epoch] => outer(Path::new(folder), &[buildah, path, epoch]),
        _ => return ExitCode::from(64),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn outer(folder: &Path, args: &[&str]) -> Result<bool, SandboxError> {
    sandbox::die_with_parent()?;
    sandbox::unshare(Network::Host)?;
    println!("{READY}");
    let mut go = [0];
    sandbox::step("wait for the id maps", io::stdin().read_exact(&mut go))?;
    // Still with the rights of the host's root on files: only it can reach the state folder.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    sandbox::step("make the mounts private", rustix::mount::mount_change("/", private))?;
    sandbox::step("bind the folder of the build", rustix::mount::mount_bind(folder, INSIDE))?;
    for hidden in HIDDEN.iter().filter(|path| Path::new(path).is_dir()) {
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        let mounted = rustix::mount::mount("tmpfs", *hidden, "tmpfs", flags, Some(c"mode=755,size=1m"));
        sandbox::step(&format!("hide {hidden}"), mounted)?;
    }
    sandbox::become_root()?;
    // A change of user clears it.
    sandbox::die_with_parent()?;
    let mut command = Command::new("/proc/self/exe");
    command.args(["internal", "containerfile", INNER]).args(args).env_clear().stdin(Stdio::null());
    Ok(sandbox::step("start the inner process", command.status())?.success())
}

fn inner(buildah: &str, path: &str, epoch: &str) -> Result<bool, SandboxError> {
    sandbox::die_with_parent()?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    sandbox::step("mount /proc", rustix::mount::mount("proc", "/proc", "proc", flags, None))?;
    sandbox::step("name the host", rustix::system::sethostname(b"localhost"))?;
    let file = format!("{INSIDE}/context/{path}");
    let build = ["bud", "--isolation", "chroot", "--timestamp", epoch, "--format", "oci", "--no-cache"];
    let build =
        [&build[..], &["--authfile", "/mnt/auth.json", "--tag", TAG, "--file", &file, "/mnt/context"]];
    if !call(buildah, &build.concat())? {
        return Ok(false);
    }
    // Uncompressed, because nobody keeps it.
    call(buildah, &["push", "--quiet", "--disable-compression", TAG, &format!("oci:/mnt/out:{IMAGE}")])
}

fn call(buildah: &str, args: &[&str]) -> Result<bool, SandboxError> {
    let (command, rest) = args.split_first().unwrap_or((&"", &[]));
    let mut program = Command::new(buildah);
    program
        .args(["--root", "/mnt/storage", "--runroot", "/mnt/run", "--storage-driver", "vfs"])
        .args(["--registries-conf", "/mnt/registries.conf"])
        .args([command, "--signature-policy", "/mnt/policy.json"])
        .args(rest)
        .current_dir("/mnt")
        .env_clear()
        .envs([
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ("HOME", "/mnt/home"),
            ("TMPDIR", "/mnt/tmp"),
            ("XDG_RUNTIME_DIR", "/mnt/run"),
            ("CONTAINERS_CONF", "/mnt/containers.conf"),
            ("CONTAINERS_STORAGE_CONF", "/mnt/storage.conf"),
            ("REGISTRY_AUTH_FILE", "/mnt/auth.json"),
            // It is root of a user namespace already, and shall not make another.
            ("_CONTAINERS_USERNS_CONFIGURED", "done"),
            ("LC_ALL", "C.UTF-8"),
            ("TZ", "UTC"),
        ]);
    Ok(sandbox::step("start buildah", program.status())?.success())
}
