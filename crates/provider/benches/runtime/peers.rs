//! The others: `crun` at its best, without a network, and `podman` as one takes it, each on a plain directory.

use crate::host::Host;
use crate::launcher::{Answer, Launcher};
use std::cell::{Cell, RefCell};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const CRUN: &str = "crun: user, pid, mount, uts, ipc, net and cgroup namespaces, no veth, read-only root of one directory, \
    no capabilities, no new privileges, the same seccomp list, cpu, memory and pids limits; keeps nothing";
const PODMAN: &str = "podman: its defaults, on its bridge or without a network; nothing pulled, no layers";
/// What this machine's rights need.
const PODMAN_LIMITS: [&str; 4] = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"];

pub struct Peers {
    launcher: RefCell<Launcher>,
    folder: PathBuf,
    number: Cell<u64>,
    pub has_crun: bool,
    pub has_podman: bool,
}

impl Peers {
    pub fn new(host: &Host) -> Self {
        let folder = host.state().join("peers");
        let rootfs = rootfs(host, &folder);
        // The root of crun's user namespace is nobody on the host, and has to come this far.
        std::fs::set_permissions(host.state(), PermissionsExt::from_mode(0o755)).unwrap();
        for (name, arguments) in [("run", &["/bin/true"][..]), ("idle", &["/bin/true", "for-ever"])] {
            let bundle = folder.join(name);
            std::fs::create_dir_all(&bundle).unwrap();
            std::fs::write(bundle.join("config.json"), crun_config(&rootfs, arguments)).unwrap();
        }
        let launcher = RefCell::new(Launcher::new());
        let mut peers = Self { launcher, folder, number: Cell::new(1), has_crun: true, has_podman: true };
        let tries = [("crun", peers.crun("run")), ("podman", peers.podman("none"))];
        for (name, command) in tries {
            let there = Command::new(name).arg("--version").output().is_ok();
            let works = there && {
                let answer = peers.run(&[command]);
                if !answer.errors.is_empty() {
                    println!("{name} does not run here: {:?}", answer.errors);
                }
                answer.errors.is_empty()
            };
            if !there {
                println!("{name} is left out: it is not installed");
            }
            *(if name == "crun" { &mut peers.has_crun } else { &mut peers.has_podman }) = works;
        }
        peers
    }

    pub fn describe(&self) {
        if self.has_crun {
            println!("{CRUN}");
        }
        if self.has_podman {
            println!("{PODMAN}");
        }
        println!();
    }

    /// Runs commands, all at once.
    pub fn run(&self, commands: &[Vec<String>]) -> Answer {
        self.launcher.borrow_mut().run(commands)
    }

    /// As [`Peers::run`], of one that has to work.
    pub fn one(&self, command: Vec<String>) -> f64 {
        let answer = self.run(&[command]);
        assert!(answer.errors.is_empty(), "{:?}", answer.errors);
        answer.all()
    }

    fn name(&self) -> String {
        format!("bench-{}-{}", std::process::id(), self.number.replace(self.number.get() + 1))
    }

    fn crun_base(&self) -> Vec<String> {
        vec!["crun".into(), "--root".into(), self.folder.join("crun").display().to_string()]
    }

    /// From nothing until it ended and is removed.
    pub fn crun(&self, bundle: &str) -> Vec<String> {
        let rest =
            ["run".into(), "--bundle".into(), self.folder.join(bundle).display().to_string(), self.name()];
        [self.crun_base(), rest.to_vec()].concat()
    }

    /// From nothing until its program is executed; and its name.
    pub fn crun_detached(&self, bundle: &str) -> (Vec<String>, String) {
        let mut command = self.crun(bundle);
        command.insert(4, "--detach".into());
        let name = command.last().unwrap().clone();
        (command, name)
    }

    /// Kills it and removes it.
    pub fn crun_delete(&self, name: &str) -> Vec<String> {
        [self.crun_base(), vec!["delete".into(), "--force".into(), name.into()]].concat()
    }

    /// The number of its process on the host.
    pub fn crun_pid(&self, name: &str) -> Option<i32> {
        let text = std::fs::read(self.folder.join("crun").join(name).join("status")).ok()?;
        let status: serde_json::Value = serde_json::from_slice(&text).ok()?;
        Some(status["pid"].as_i64()? as i32)
    }

    /// From nothing until it ended and is removed, on a network.
    pub fn podman(&self, network: &str) -> Vec<String> {
        let path = |name: &str| self.folder.join(name).display().to_string();
        let mut command: Vec<String> =
            ["podman".into(), "--root".into(), path("storage"), "--runroot".into()].to_vec();
        command.extend([path("running"), "--cgroup-manager=cgroupfs".into(), "run".into(), "--rm".into()]);
        command.extend(PODMAN_LIMITS.map(str::to_owned));
        command.extend([
            "--network".into(),
            network.into(),
            "--rootfs".into(),
            path("rootfs"),
            "/bin/true".into(),
        ]);
        command
    }

    pub fn end(self) {
        self.launcher.into_inner().end();
    }
}

/// The files of the image in one directory.
fn rootfs(host: &Host, folder: &Path) -> PathBuf {
    let rootfs = folder.join("rootfs");
    std::fs::create_dir_all(&rootfs).unwrap();
    for part in ["base", "app", "true"] {
        let from = host.state().join(part).join(".");
        assert!(Command::new("cp").arg("-a").arg(from).arg(&rootfs).status().unwrap().success());
    }
    std::fs::create_dir_all(rootfs.join("sys")).unwrap();
    rootfs
}

/// The names of the calls that kiln allows, from where they are written.
fn allowed() -> Vec<String> {
    let source = include_str!("../../../sys/src/seccomp.rs");
    let list = source.split_once("const ALLOWED").and_then(|(_, rest)| rest.split_once("];")).unwrap().0;
    let words = list.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let mut names: Vec<String> = words.filter_map(|w| w.strip_prefix("SYS_")).map(str::to_owned).collect();
    names.extend(["clone", "socket", "socketpair"].map(str::to_owned));
    assert!(names.len() > 250);
    names
}

fn crun_config(rootfs: &Path, arguments: &[&str]) -> String {
    let kinds = ["user", "pid", "network", "ipc", "uts", "mount", "cgroup"];
    let namespaces = kinds.map(|kind| serde_json::json!({ "type": kind }));
    let mount = |to: &str, kind: &str, options: &[&str]| serde_json::json!({ "destination": to, "type": kind, "source": kind, "options": options });
    let ids = serde_json::json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
    serde_json::json!({
        "ociVersion": "1.0.2",
        "root": { "path": rootfs, "readonly": true },
        "hostname": "bench",
        "process": {
            "terminal": false, "cwd": "/", "args": arguments, "env": ["PATH=/bin"],
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
            "namespaces": namespaces, "uidMappings": ids, "gidMappings": ids,
            "resources": {
                "memory": { "limit": 67_108_864 }, "pids": { "limit": 64 },
                "cpu": { "quota": 100_000, "period": 100_000 }
            },
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{ "names": allowed(), "action": "SCMP_ACT_ALLOW" }]
            }
        }
    })
    .to_string()
}
