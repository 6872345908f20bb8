//! kiln's side: a provider in this process, as in the server, with an image of three layers.

use crate::host::{self, Host};
use kiln_model::*;
use kiln_provider::conformance::until;
use kiln_provider::local::{self, LocalConfig, LocalProvider};
use kiln_provider::{Provider, ProviderError};
use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Warm slots of the provider that has some.
pub const SLOTS: usize = 8;
/// What is on in every start.
pub const ENFORCES: &str = "kiln: user, pid, mount, uts, ipc, net and cgroup namespaces, veth on a bridge, read-only root of \
    three layers with owners mapped, no capabilities, no new privileges, seccomp, cpu, memory and pids limits; keeps the \
    output, the exit reason and a durable record of each";

/// Starts and stops of instances.
pub struct Kiln {
    pub host: Host,
    pub provider: LocalProvider,
    sequence: Cell<u64>,
}

/// The static program that does nothing, or with an argument nothing for ever; compiled once.
fn program() -> PathBuf {
    const SOURCE: &str =
        "int pause(void); int main(int n, char **v) { (void)v; while (n > 1) pause(); return 0; }\n";
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-true");
    let text = out.with_extension("c");
    if std::fs::read_to_string(&text).is_ok_and(|t| t == SOURCE) && out.exists() {
        return out;
    }
    std::fs::write(&text, SOURCE).unwrap();
    let status =
        Command::new("gcc").args(["-O2", "-static", "-s", "-o"]).args([&out, &text]).status().unwrap();
    assert!(status.success());
    out
}

impl Kiln {
    /// A host and a provider with this many warm slots; none: every start takes the cold path.
    pub fn new(slots: usize) -> Self {
        let mut host = Host::new();
        let tree = host.state().join("true");
        std::fs::create_dir_all(tree.join("bin")).unwrap();
        std::fs::copy(program(), tree.join("bin/true")).unwrap();
        let layer = host::layer(&host.state().join("objects"), &tree, "true");
        host.manifest.layers.push(layer);
        let mut config = LocalConfig::new(host.state());
        config.program = std::env::current_exe().unwrap();
        config.subnet = if slots == 0 { "10.84.0.0/16" } else { "10.85.0.0/16" }.parse().unwrap();
        (config.spare.slots, config.spare.fitted) = (slots, slots);
        let provider = LocalProvider::open(config).unwrap();
        Self { host, provider, sequence: Cell::new(1) }
    }

    pub fn spec(&self, command: &[&str]) -> InstanceSpec {
        let sequence = self.sequence.replace(self.sequence.get() + 1);
        let mut spec = self.host.spec(sequence, command);
        spec.writable = vec![];
        // Ended at once, not asked: what is measured is kiln's own work.
        spec.stop = Stop { signal: 9, timeout: Millis(5_000) };
        spec
    }

    /// From the call until its program is executed.
    pub async fn start(&self, spec: &InstanceSpec) -> Duration {
        let begun = Instant::now();
        let seen = self.provider.ensure(fence(), spec, &NO_SECRETS).await.unwrap();
        let took = begun.elapsed();
        assert!(seen.state != SeenState::Starting, "{seen:?}");
        took
    }

    /// As [`Kiln::start`], in the background. As the server does, it asks again after an answer that says so.
    pub fn start_in_background(&self, spec: InstanceSpec) -> tokio::task::JoinHandle<u32> {
        let provider = self.provider.clone();
        tokio::spawn(async move {
            for again in 0..100 {
                match provider.ensure(fence(), &spec, &NO_SECRETS).await {
                    Ok(_) => return again,
                    Err(ProviderError::Retry { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            panic!("`{}` is never started", spec.id);
        })
    }

    pub async fn ended(&self, id: &InstanceId) {
        let state = until(&self.provider, id, |state| matches!(state, SeenState::Exited(_))).await;
        assert_eq!(state, SeenState::Exited(ExitReason::Status { code: 0 }));
    }

    /// From the call until nothing is left.
    pub async fn remove(&self, id: &InstanceId) -> Duration {
        let begun = Instant::now();
        self.provider.absent(fence(), id).await.unwrap();
        begun.elapsed()
    }

    /// One whole life: until executed, until its end was seen, until nothing was left.
    pub async fn life(&self) -> [Duration; 3] {
        let spec = self.spec(&["/bin/true"]);
        let begun = Instant::now();
        let started = self.start(&spec).await;
        self.ended(&spec.id).await;
        let ended = begun.elapsed();
        self.remove(&spec.id).await;
        [started, ended, begun.elapsed()]
    }

    /// As long as a command line takes that is started for it: a process, a request by a socket, the answer. Its program is
    /// executed when the client ends.
    pub async fn by_a_client(&self) -> Duration {
        let spec = self.spec(&["/bin/true"]);
        let path = self.host.state().join("bench.sock");
        let _ = std::fs::remove_file(&path);
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let begun = Instant::now();
        let mut client = Command::new(std::env::current_exe().unwrap());
        let mut client = client.arg("client").arg(&path).stdin(Stdio::null()).spawn().unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        // Not left unread: closing would reset the connection.
        let mut asked = [0; 5];
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut asked).await.unwrap();
        self.start(&spec).await;
        stream.writable().await.unwrap();
        stream.try_write(b"r").unwrap();
        drop(stream);
        assert!(client.wait().unwrap().success());
        let took = begun.elapsed();
        self.ended(&spec.id).await;
        self.remove(&spec.id).await;
        took
    }

    pub fn end(self) {
        drop(self.provider);
        local::sweep(self.host.state()).unwrap();
    }
}

/// What [`Kiln::by_a_client`] starts.
pub fn client(socket: &str) -> ExitCode {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(b"start").unwrap();
    let mut answer = [0];
    stream.read_exact(&mut answer).unwrap();
    ExitCode::SUCCESS
}

pub fn fence() -> Fence {
    Fence { incarnation: Incarnation(1), epoch: Epoch(9), revision: Revision(1), op: OpId(1) }
}
