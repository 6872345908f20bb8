//! Pieces that the end-to-end suites share: a project made from an example, a kiln server on a throw-away folder, the load
//! client, and a count of everything that could be left behind.

pub mod postgres;

use serde_json::Value;
use sha2::Digest as _;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The root of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_owned()
}

/// The program under test: `KILN_BIN` or the one beside this test.
pub fn kiln_program() -> PathBuf {
    program("KILN_BIN", "kiln")
}

fn program(variable: &str, name: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let own = std::env::current_exe().expect("own path");
    // target/debug/deps/e2e-… → target/debug/kiln
    own.parent().and_then(Path::parent).expect("target folder").join(name)
}

/// The folder with the Debian packages that tests bake from, filled by `kiln internal mirror` before.
pub fn mirror() -> PathBuf {
    root().join("target/mirror")
}

/// Where a suite in a network namespace of its own finds which one it was started from. A process that it starts without
/// this variable takes another one.
pub const OUTSIDE_NETWORK: &str = "KILN_TESTS_NETNS";

/// Starts this program again in a network namespace of its own, unless it is there already, and brings loopback up. Answers
/// whether the caller may go on: without root it says loudly that nothing is tested.
pub fn own_network() -> bool {
    if !Path::new("/proc/self/ns/net").exists() || !is_root() {
        eprintln!("SKIPPED: this suite needs root and network namespaces; nothing was tested");
        return false;
    }
    let outside = std::env::var_os(OUTSIDE_NETWORK);
    let here = std::fs::read_link("/proc/self/ns/net").expect("/proc/self/ns/net").into_os_string();
    // The mark names the namespace outside, so that an inherited one cannot pass for being inside.
    if outside.is_none_or(|outside| outside == here) {
        let program = std::env::current_exe().expect("own path");
        let mut command = Command::new("unshare");
        command
            .args(["--net", "--"])
            .arg(program)
            .args(std::env::args_os().skip(1))
            .env(OUTSIDE_NETWORK, here);
        panic!("unshare: {}", std::os::unix::process::CommandExt::exec(&mut command));
    }
    run(Command::new("ip").args(["link", "set", "lo", "up"])).expect(0);
    true
}

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    line.split_whitespace().nth(1) == Some("0")
}

/// An address of loopback that nothing listens on now.
pub fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback is up");
    listener.local_addr().expect("bound").to_string()
}

/// Waits until `condition` holds. The limit is a guard against hanging, never what is tested.
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "gave up waiting until {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// What a command answered.
#[derive(Debug)]
pub struct Answer {
    /// Exit code; -1 if it was killed.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Answer {
    /// Asserts the exit code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}\n{}", self.stdout, self.stderr))
    }
}

/// Runs a program to its end.
pub fn run(command: &mut Command) -> Answer {
    let start = Instant::now();
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    Answer {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        took: start.elapsed(),
    }
}

/// A throw-away git repository made from an example.
pub struct Project {
    /// Its work tree.
    pub dir: TempDir,
    n_commits: Cell<u64>,
}

/// The time of a project's first commit, seconds since 1970; each further one is a minute later. File times of images are
/// the commit's time, so that equal projects give equal images.
const FIRST_COMMIT: u64 = 1_700_000_000;

impl Project {
    /// Copies `examples/NAME`, adds its compiled parts, and commits.
    pub fn from_example(name: &str) -> Self {
        let dir = tempfile::tempdir().expect("temporary folder");
        run(Command::new("cp").arg("-r").arg(root().join("examples").join(name).join(".")).arg(dir.path()))
            .expect(0);
        let project = Self { dir, n_commits: Cell::new(0) };
        if name == "shop" {
            std::fs::create_dir_all(project.path("bin")).expect("bin/");
            std::fs::copy(compiled_api(), project.path("bin/api")).expect("bin/api");
        }
        project.git(&["init", "-q", "-b", "main"]);
        project.commit("first");
        project
    }

    /// A path in the work tree.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file of the work tree.
    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap_or_else(|e| panic!("{name}: {e}"));
    }

    /// Replaces text in a file of the work tree; it must be there.
    pub fn edit(&self, name: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(text.contains(from), "{name} does not contain {from:?}");
        self.write(name, &text.replace(from, to));
    }

    /// Sets the release marker of the example, such as `release-2`, in every file that has one. Commits nothing.
    pub fn release(&self, number: u64) {
        for name in ["site/index.html", "api/version.txt", "app/version.txt"] {
            let Ok(text) = std::fs::read_to_string(self.path(name)) else { continue };
            let (head, tail) = text.split_once("release-").expect("the file has a release marker");
            let rest = tail.trim_start_matches(|c: char| c.is_ascii_alphanumeric());
            self.write(name, &format!("{head}release-{number}{rest}"));
        }
    }

    /// Runs git in it, with none of the host's configuration.
    pub fn git(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("git");
        command.arg("-C").arg(self.dir.path()).args(arguments);
        let date = format!("{} +0000", FIRST_COMMIT + 60 * self.n_commits.get());
        for who in ["AUTHOR", "COMMITTER"] {
            command
                .env(format!("GIT_{who}_NAME"), "tests")
                .env(format!("GIT_{who}_EMAIL"), "tests@kiln.test");
            command.env(format!("GIT_{who}_DATE"), &date);
        }
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
        run(&mut command).expect(0).stdout.trim().to_owned()
    }

    /// Commits everything; answers with the commit's id.
    pub fn commit(&self, message: &str) -> String {
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", message]);
        self.n_commits.set(self.n_commits.get() + 1);
        self.git(&["rev-parse", "HEAD"])
    }
}

/// The example's API, compiled statically.
pub fn compiled_api() -> PathBuf {
    compiled(&root().join("examples/shop/api/src/main.rs"), "example-api")
}

/// A program of one file, compiled statically to `target/NAME`, once per change of its source.
pub fn compiled(source: &Path, name: &str) -> PathBuf {
    let binary = root().join("target").join(name);
    let modified = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    if modified(&binary) < modified(source) {
        let mut rustc = Command::new("rustc");
        rustc.args(["--edition", "2021", "-O", "-C", "target-feature=+crt-static"]);
        rustc.args(["-C", "panic=abort", "-C", "strip=symbols", "-o"]);
        std::fs::create_dir_all(root().join("target")).expect("target/");
        // Moved into place, so that another suite never copies half of it.
        let part = binary.with_extension(std::process::id().to_string());
        run(rustc.arg(&part).arg(source)).expect(0);
        std::fs::rename(&part, &binary).unwrap_or_else(|e| panic!("target/{name}: {e}"));
    }
    binary
}

/// A kiln server on a throw-away state folder.
pub struct Kiln {
    /// The state folder.
    pub state: TempDir,
    /// Where the edge listens.
    pub edge: String,
    /// Addresses of instances; no two servers of one test have the same.
    subnet: String,
    /// More options of `kiln serve`.
    options: Vec<String>,
    server: Option<Child>,
}

impl Kiln {
    /// Makes the folder; starts nothing.
    pub fn new(edge: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let subnet = format!("10.{}.{}.0/24", 84 + n / 256, n % 256);
        let state = tempfile::tempdir().expect("temporary folder");
        Self { state, edge: edge.to_owned(), subnet, options: vec![], server: None }
    }

    /// Makes the folder and starts the server.
    pub fn started(edge: &str) -> Self {
        let mut kiln = Self::new(edge);
        kiln.start(&[]);
        kiln
    }

    /// The socket of the API.
    pub fn socket(&self) -> PathBuf {
        self.state.path().join("kiln.sock")
    }

    /// The command that starts the server.
    pub fn serve_command(&self) -> Command {
        let mut command = Command::new(kiln_program());
        command.arg("serve").arg("--state").arg(self.state.path());
        command.arg("--listen").arg(format!("unix:{}", self.socket().display()));
        command.args(["--subnet", &self.subnet]);
        command.arg("--edge").arg(&self.edge).arg("--mirror").arg(format!("file:{}", mirror().display()));
        command.args(&self.options);
        command
    }

    /// Starts the server and waits until it answers, or has died again.
    pub fn start(&mut self, environment: &[(&str, &str)]) {
        let command = self.serve_command();
        self.start_command(command, environment);
    }

    /// Starts the server as another program, as an upgrade does.
    pub fn start_program(&mut self, program: &Path) {
        let usual = self.serve_command();
        let mut command = Command::new(program);
        command.args(usual.get_args());
        self.start_command(command, &[]);
    }

    /// Starts it with the mirror in `dir` instead of the usual one.
    pub fn start_with_mirror(&mut self, dir: &Path) {
        let usual = self.serve_command();
        let own: Vec<_> = usual.get_args().take_while(|argument| *argument != "--mirror").collect();
        let mut command = Command::new(usual.get_program());
        command.args(own).arg("--mirror").arg(format!("file:{}", dir.display()));
        self.start_command(command, &[]);
    }

    fn start_command(&mut self, mut command: Command, environment: &[(&str, &str)]) {
        let log =
            File::options().create(true).append(true).open(self.state.path().join("serve.log")).expect("log");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("log")).stderr(log);
        command.envs(environment.iter().copied());
        self.server = Some(command.spawn().expect("kiln serve starts"));
        let mut dead = false;
        wait_until("the server answers", Duration::from_secs(30), || {
            dead = self.exited();
            dead || self.cli(Path::new("/"), &["status", "--json"]).code == 0
        });
        assert!(!dead || !environment.is_empty(), "the server died: {}", self.log());
    }

    /// Starts the server with more options, now and ever after.
    pub fn start_with(&mut self, options: &[&str]) {
        self.options = options.iter().map(|option| (*option).to_owned()).collect();
        self.start(&[]);
    }

    /// What the server printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.state.path().join("serve.log")).unwrap_or_default()
    }

    /// Whether the server has ended.
    pub fn exited(&mut self) -> bool {
        self.server.as_mut().is_none_or(|server| server.try_wait().expect("wait").is_some())
    }

    /// Asks the server to end and waits until it has; edge and instances go on.
    pub fn terminate(&mut self) {
        let Some(server) = self.server.as_mut() else { return };
        run(Command::new("kill").args(["-TERM", &server.id().to_string()])).expect(0);
        wait_until("the server ends", Duration::from_secs(30), || self.exited());
        self.server = None;
    }

    /// Kills the server with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    /// A `kiln` command in `dir` against this server.
    pub fn command(&self, dir: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(kiln_program());
        command
            .arg("-C")
            .arg(dir)
            .args(arguments)
            .env("KILN_ADDR", format!("unix:{}", self.socket().display()));
        command
    }

    /// Runs a `kiln` command in `dir`.
    pub fn cli(&self, dir: &Path, arguments: &[&str]) -> Answer {
        run(&mut self.command(dir, arguments))
    }

    /// Runs a `kiln` command in a project.
    pub fn in_project(&self, project: &Project, arguments: &[&str]) -> Answer {
        self.cli(project.dir.path(), arguments)
    }

    /// Ends server, edge and instances, and asserts that nothing is left.
    pub fn down(mut self) {
        self.kill();
        run(Command::new(kiln_program()).arg("down").arg("--state").arg(self.state.path())).expect(0);
        let left = Inventory::take(self.state.path());
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

impl Drop for Kiln {
    fn drop(&mut self) {
        self.kill();
        let _ = run(Command::new(kiln_program()).arg("down").arg("--state").arg(self.state.path()));
        if std::thread::panicking() {
            eprintln!("--- kiln serve said:\n{}", self.log());
        }
    }
}

/// Everything on this host that belongs to a state folder and runs or is mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Processes that name the folder on their command line.
    pub processes: Vec<String>,
    /// Mounts in any process's mount namespace that name the folder.
    pub mounts: Vec<String>,
    /// Network interfaces of the folder in this namespace.
    pub links: Vec<String>,
    /// Tables of the packet filter and routes of the folder in this namespace.
    pub rules: Vec<String>,
    /// Control groups of the folder, in every hierarchy.
    pub cgroups: Vec<String>,
    /// Folders of instances that were not destroyed.
    pub instances: Vec<String>,
}

impl Inventory {
    /// Looks at everything.
    pub fn take(state: &Path) -> Self {
        let state = state.canonicalize().unwrap_or(state.to_owned());
        let needle = state.display().to_string();
        let mut inventory = Self::default();
        let mut mounts = BTreeMap::new();
        for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
            let pid = entry.file_name().to_string_lossy().into_owned();
            if !pid.bytes().all(|b| b.is_ascii_digit()) || pid == std::process::id().to_string() {
                continue;
            }
            let cmdline = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
            if cmdline.contains(&needle) {
                inventory.processes.push(format!("{pid}: {cmdline}"));
            }
            for line in std::fs::read_to_string(entry.path().join("mountinfo")).unwrap_or_default().lines() {
                if line.contains(&needle) {
                    mounts.entry(line.to_owned()).or_insert_with(|| pid.clone());
                }
            }
        }
        inventory.mounts = mounts.into_iter().map(|(line, pid)| format!("{pid}: {line}")).collect();
        let names = |path: &str| -> Vec<String> {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
        };
        // Names of host objects carry the first 8 hex digits of the sha256 of the folder's path.
        let hash = sha2::Sha256::digest(needle.as_bytes());
        let mark: String = hash[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        // Not /sys/class/net: that shows the namespace in which /sys was mounted.
        let links = std::fs::read_to_string("/proc/self/net/dev").expect("/proc/self/net/dev");
        let links = links.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim());
        let own = |name: &&str| *name == format!("kb{mark}") || name.starts_with(&format!("k{}", &mark[..4]));
        inventory.links = links.filter(own).map(str::to_owned).collect();
        let tables = run(Command::new("nft").args(["list", "tables"])).expect(0).stdout;
        let routes = run(Command::new("ip").args(["route", "show", "table", "all"])).expect(0).stdout;
        let own = |line: &&str| line.contains(&mark);
        inventory.rules = tables.lines().chain(routes.lines()).filter(own).map(str::to_owned).collect();
        inventory.cgroups = cgroup_folders(&mark);
        let instances = state.join("instances");
        for id in names(&instances.display().to_string()) {
            if instances.join(&id).is_dir() && !instances.join(&id).join("gone.json").exists() {
                inventory.instances.push(id);
            }
        }
        inventory
    }

    /// Whether nothing is there.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Control groups named after a state folder, wherever a hierarchy is mounted, with all below them.
fn cgroup_folders(mark: &str) -> Vec<String> {
    fn walk(folder: &Path, depth: usize, found: &mut Vec<String>, mark: &str) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.path().to_string_lossy().contains(&format!("kiln-{mark}")) {
                    found.push(entry.path().display().to_string());
                }
                if depth > 0 {
                    walk(&entry.path(), depth - 1, found, mark);
                }
            }
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("/proc/self/mountinfo");
    let is_cgroup = |line: &&str| line.split_once(" - ").is_some_and(|(_, tail)| tail.starts_with("cgroup"));
    let mut found = vec![];
    for root in mounts.lines().filter(is_cgroup).filter_map(|line| line.split(' ').nth(4)) {
        walk(Path::new(root), 3, &mut found, mark);
    }
    found
}

/// The load client, running.
pub struct Load {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Load {
    /// Starts it with more arguments.
    pub fn start(target: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(program("KILN_LOAD", "load"));
        command.arg("--target").arg(target).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the load client starts");
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, stdin, stdout }
    }

    /// Its counts now.
    pub fn snapshot(&mut self) -> Value {
        let stdin = self.stdin.as_mut().expect("not stopped");
        writeln!(stdin, "snapshot").expect("the load client lives");
        self.line()
    }

    /// Ends it and answers its last counts.
    pub fn stop(mut self) -> Value {
        drop(self.stdin.take());
        let last = self.line();
        let _ = self.child.wait();
        last
    }

    /// Waits until it ends by itself and answers its last counts.
    pub fn wait(&mut self) -> Value {
        let last = self.line();
        let _ = self.child.wait();
        last
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("the load client lives");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
