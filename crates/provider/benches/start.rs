//! How long one instance takes from nothing to "its program ended and nothing is left", against `crun run` and `podman run` of
//! the same root file system, alternating. Prints medians in milliseconds, ratios, and which limits each side enforces.
//! `bench/run` starts it where crun can work.

#[path = "../tests/local/host.rs"]
mod host;

use host::Host;
use kiln_model::*;
use kiln_provider::Provider;
use kiln_provider::conformance::until;
use kiln_provider::local::{self, LocalProvider};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

const ROUNDS: u64 = 30;

fn main() -> ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    let word = |n: usize| args.get(n).and_then(|a| a.to_str()).unwrap_or("");
    match (word(0), word(1)) {
        ("internal", "zygote") => return local::zygote::main(args.into_iter().skip(2)),
        ("internal", "exec") => return local::exec::main(),
        _ => {}
    }
    if !args.iter().any(|a| a == "--bench") {
        // `cargo test --benches` builds and starts it, and wants no figures.
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(all());
    ExitCode::SUCCESS
}

async fn all() {
    let host = Host::new();
    let provider = host.provider();
    let peers = [Peer::crun(&host), Peer::podman(&host)];
    let (mut started, mut whole) = (vec![], vec![]);
    let mut others: Vec<Vec<f64>> = vec![vec![]; peers.len()];
    for round in 0..ROUNDS {
        let (start, all) = kiln(&host, &provider, 1000 + round).await;
        started.push(start);
        whole.push(all);
        for (peer, figures) in peers.iter().zip(&mut others) {
            figures.extend(peer.as_ref().map(|peer| peer.run(round)));
        }
    }
    drop(provider);
    local::sweep(host.state()).unwrap();
    println!(
        "kiln   start to running {:6.1} ms; run to its end and removed {:6.1} ms",
        median(&mut started),
        median(&mut whole)
    );
    println!(
        "       enforces: user, pid, mount, uts, ipc, net and cgroup namespaces, veth on a bridge, read-only root,"
    );
    println!(
        "       no capabilities, no new privileges, seccomp, cpu, memory and pids limits; keeps output and exit reason"
    );
    for (peer, mut figures) in peers.iter().zip(others) {
        let Some(peer) = peer else { continue };
        let theirs = median(&mut figures);
        println!(
            "{:6} run to its end and removed {theirs:6.1} ms: {:.1} times kiln's",
            peer.name,
            theirs / median(&mut whole)
        );
        println!("       enforces: {}", peer.enforces);
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Milliseconds to "running", and to "ended and gone".
async fn kiln(host: &Host, provider: &LocalProvider, sequence: u64) -> (f64, f64) {
    let spec = host.spec(sequence, &["probe", "true"]);
    let fence = |revision| Fence {
        incarnation: Incarnation(1),
        epoch: Epoch(9),
        revision: Revision(revision),
        op: OpId(revision),
    };
    let begun = Instant::now();
    provider.ensure(fence(2 * sequence), &spec).await.unwrap();
    let started = begun.elapsed();
    until(provider, &spec.id, |state| matches!(state, SeenState::Exited(_))).await;
    provider.absent(fence(2 * sequence + 1), &spec.id).await.unwrap();
    (started.as_secs_f64() * 1e3, begun.elapsed().as_secs_f64() * 1e3)
}

/// Another way to run the same program on the same files.
struct Peer {
    name: &'static str,
    enforces: &'static str,
    arguments: Vec<String>,
    folder: PathBuf,
}

impl Peer {
    fn crun(host: &Host) -> Option<Self> {
        let folder = host.state().join("crun");
        let rootfs = rootfs(host, &folder);
        std::fs::write(folder.join("config.json"), crun_config(&rootfs)).unwrap();
        Self {
            name: "crun",
            enforces: "the same namespaces but a user's, no network, read-only root, no capabilities, no new privileges, \
                       cpu, memory and pids limits; no seccomp; keeps nothing",
            arguments: vec!["run".into(), "--bundle".into(), folder.display().to_string()],
            folder,
        }
        .checked()
    }

    fn podman(host: &Host) -> Option<Self> {
        let folder = host.state().join("podman");
        let rootfs = rootfs(host, &folder);
        let text = |path: &str| folder.join(path).display().to_string();
        let mut arguments: Vec<String> = vec![
            "--root".into(),
            text("root"),
            "--runroot".into(),
            text("run"),
            "--cgroup-manager=cgroupfs".into(),
        ];
        let fixed = "run --rm --network none --read-only --cap-drop ALL --security-opt no-new-privileges --memory 64m --cpus 1 \
                     --pids-limit 64 --ulimit nofile=1024:1024 --ulimit nproc=4096:4096 --log-driver none --rootfs";
        arguments.extend(fixed.split_whitespace().map(str::to_owned));
        arguments.extend([rootfs.display().to_string(), "/bin/probe".into(), "true".into()]);
        Self {
            name: "podman",
            enforces: "the same namespaces but a user's, no network, read-only root, no capabilities, no new privileges, \
                       seccomp, cpu, memory and pids limits; keeps nothing",
            arguments,
            folder,
        }
        .checked()
    }

    /// Itself, if it works here.
    fn checked(self) -> Option<Self> {
        let output = self.command(0).output();
        match output {
            Ok(output) if output.status.success() => Some(self),
            Ok(output) => {
                println!(
                    "{}: does not run here: {}",
                    self.name,
                    String::from_utf8_lossy(&output.stderr).trim()
                );
                None
            }
            Err(error) => {
                println!("{}: left out: {error}", self.name);
                None
            }
        }
    }

    fn command(&self, round: u64) -> Command {
        let mut command = Command::new(self.name);
        command.args(&self.arguments).current_dir(&self.folder).stdin(Stdio::null()).stdout(Stdio::null());
        if self.name == "crun" {
            command.arg(format!("bench-{}-{round}", std::process::id()));
        }
        command.stderr(Stdio::piped());
        command
    }

    fn run(&self, round: u64) -> f64 {
        let begun = Instant::now();
        let output = self.command(round + 1).output().unwrap();
        assert!(output.status.success(), "{}: {}", self.name, String::from_utf8_lossy(&output.stderr));
        begun.elapsed().as_secs_f64() * 1e3
    }
}

/// The files of the image in one directory.
fn rootfs(host: &Host, folder: &Path) -> PathBuf {
    let rootfs = folder.join("rootfs");
    std::fs::create_dir_all(&rootfs).unwrap();
    for part in ["base", "app"] {
        let from = host.state().join(part).join(".");
        assert!(Command::new("cp").arg("-a").arg(from).arg(&rootfs).status().unwrap().success());
    }
    rootfs
}

fn crun_config(rootfs: &Path) -> String {
    let namespaces =
        ["pid", "network", "ipc", "uts", "mount", "cgroup"].map(|kind| serde_json::json!({ "type": kind }));
    let mount = |to: &str, kind: &str, options: &[&str]| serde_json::json!({ "destination": to, "type": kind, "source": kind, "options": options });
    serde_json::json!({
        "ociVersion": "1.0.2",
        "root": { "path": rootfs, "readonly": true },
        "hostname": "bench",
        "process": {
            "terminal": false, "cwd": "/", "args": ["/bin/probe", "true"], "env": ["PATH=/bin"],
            "user": { "uid": 1000, "gid": 1000 }, "noNewPrivileges": true,
            "capabilities": { "bounding": [], "effective": [], "permitted": [] }
        },
        "mounts": [
            mount("/proc", "proc", &[]),
            mount("/dev", "tmpfs", &["nosuid", "mode=755", "size=65536k"]),
            mount("/tmp", "tmpfs", &["nosuid", "nodev"]),
            mount("/run", "tmpfs", &["nosuid", "nodev"])
        ],
        "linux": {
            "namespaces": namespaces,
            "resources": {
                "memory": { "limit": 67_108_864 }, "pids": { "limit": 64 },
                "cpu": { "quota": 100_000, "period": 100_000 }
            }
        }
    })
    .to_string()
}
