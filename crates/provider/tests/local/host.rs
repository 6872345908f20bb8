//! A state folder with one image of two layers, and what tests want to do to it.

use kiln_model::frame::{Frame, Stream};
use kiln_model::*;
use kiln_provider::conformance::{self, Behaviour, Subject};
use kiln_provider::local::{Forced, Inventory, LocalConfig, LocalProvider, inventory};
use kiln_provider::vm::MachineSource;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub struct Host {
    folder: tempfile::TempDir,
    pub manifest: ImageManifest,
    pub forced: Forced,
    /// How its instances are kept apart; for machines with the kernel that they boot.
    pub isolation: Isolation,
    pub machine: Option<Arc<dyn MachineSource>>,
    pub boot_max: Option<Millis>,
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The static test program.
pub fn probe() -> PathBuf {
    program("tests/local/probe.rs")
}

/// A static program of one file of this crate, compiled once per content.
pub fn program(source: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    let digest = Digest::of(&std::fs::read(&source).unwrap());
    let name = format!("{}-{}", source.file_stem().unwrap().display(), digest.short());
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // What has parts of others may have changed although its own text has not.
    if !out.exists() || source.ends_with("hostile_init.rs") {
        let new = out.with_extension(std::process::id().to_string());
        run(Command::new("rustc")
            .args(["--edition=2024", "-O", "-C", "target-feature=+crt-static", "-C", "panic=abort", "-o"])
            .args([&new, &source]));
        std::fs::rename(new, &out).unwrap();
    }
    out
}

pub fn layer(objects: &Path, tree: &Path, role: &str) -> LayerRef {
    let file = objects.join(format!("{role}.new"));
    run(Command::new("mkfs.erofs").arg("--all-root").args([&file, &tree.to_path_buf()]));
    let bytes = std::fs::read(&file).unwrap();
    let digest = Digest::of(&bytes);
    let folder = objects.join("sha256").join(&digest.hex()[..2]);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::rename(file, folder.join(&digest.hex()[2..])).unwrap();
    LayerRef { digest, size: bytes.len() as u64, role: role.into() }
}

impl Host {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let objects = folder.path().join("objects");
        let (base, app) = (folder.path().join("base"), folder.path().join("app"));
        for dir in ["bin", "dev", "proc", "tmp", "run", "etc", "data"] {
            std::fs::create_dir_all(base.join(dir)).unwrap();
        }
        for file in ["hosts", "hostname", "resolv.conf"] {
            std::fs::write(base.join("etc").join(file), "").unwrap();
        }
        std::os::unix::fs::symlink("/../../../../etc/passwd", base.join("etc/outside")).unwrap();
        std::fs::create_dir_all(app.join("bin")).unwrap();
        std::fs::create_dir_all(&objects).unwrap();
        std::fs::copy(probe(), app.join("bin/probe")).unwrap();
        std::fs::write(app.join("bin/plain"), "no program").unwrap();
        let layers = vec![layer(&objects, &base, "base"), layer(&objects, &app, "app")];
        let config = ImageConfig { epoch: 0, users: [("web".to_owned(), (1000, 1000))].into() };
        let manifest = ImageManifest { format: 1, architecture: "amd64".into(), layers, config };
        Self {
            folder,
            manifest,
            forced: Forced::default(),
            isolation: Isolation::Sandbox,
            machine: None,
            boot_max: None,
        }
    }

    /// An image of one layer that holds everything, for the way without an overlay.
    pub fn flatten(&mut self) {
        let tree = self.folder.path().join("base");
        std::fs::copy(probe(), tree.join("bin/probe")).unwrap();
        self.manifest.layers = vec![layer(&self.folder.path().join("objects"), &tree, "base")];
    }

    /// Where a layer lies.
    pub fn object(&self, digest: Digest) -> PathBuf {
        let hex = digest.hex();
        self.folder.path().join("objects/sha256").join(&hex[..2]).join(&hex[2..])
    }

    pub fn state(&self) -> &Path {
        self.folder.path()
    }

    pub fn provider(&self) -> LocalProvider {
        let mut config = LocalConfig::new(self.state());
        config.program = std::env::current_exe().unwrap();
        config.forced = self.forced;
        config.machine = self.machine.clone();
        config.boot_max = self.boot_max.unwrap_or(config.boot_max);
        LocalProvider::open(config).unwrap()
    }

    pub fn spec(&self, sequence: u64, command: &[&str]) -> InstanceSpec {
        let mut spec = conformance::spec(sequence);
        spec.manifest = self.manifest.clone();
        spec.image = self.manifest.digest();
        spec.command = command.iter().map(|s| (*s).to_owned()).collect();
        spec.user = "web".into();
        spec.confinement.isolation = self.isolation;
        spec.writable = vec!["/data".into(), "/run/deep/er".into()];
        spec
    }

    /// What looks after an instance, as the host numbers it.
    pub fn supervisor(&self, id: &InstanceId) -> i32 {
        let folder = kiln_provider::local::instance_folder(self.state(), id);
        let text = std::fs::read(folder.join("process.json")).unwrap();
        let process: serde_json::Value = serde_json::from_slice(&text).unwrap();
        process["pid"].as_i64().unwrap() as i32
    }

    /// Waits until nothing of any instance is there: with a server only the bridge, the packet filter and the parents of the
    /// groups. The kernel removes interfaces a little later.
    pub async fn nothing_is_left(&self) {
        /// In the v2 tree, and in those of memory, cpu and pids.
        const PARENTS_MAX: usize = 4;
        let expected = Inventory { links: 1, tables: 1, ..Inventory::default() };
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let left = inventory(self.state());
            if left.cgroups <= PARENTS_MAX && (Inventory { cgroups: 0, spare: 0, ..left }) == expected {
                return;
            }
            assert!(Instant::now() < end, "{left:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// What an instance printed, oldest first.
    pub fn lines(&self, id: &InstanceId) -> Vec<(Stream, String)> {
        let folder = kiln_provider::local::instance_folder(self.state(), id);
        let mut frames = vec![];
        for name in ["out.0", "out.1"] {
            let bytes = std::fs::read(folder.join(name)).unwrap();
            let mut rest = &bytes[..];
            while let Some((frame, n)) = Frame::decode(rest) {
                frames.push(frame);
                rest = &rest[n..];
            }
            assert!(rest.is_empty(), "a damaged frame");
        }
        frames.sort_by_key(|f| f.sequence);
        assert!(frames.iter().enumerate().all(|(n, f)| f.sequence == n as u64 && f.dropped == 0));
        frames.into_iter().map(|f| (f.stream, String::from_utf8_lossy(&f.line).into_owned())).collect()
    }

    /// The program's lines of one stream.
    pub fn printed(&self, id: &InstanceId, stream: Stream) -> Vec<String> {
        self.lines(id).into_iter().filter(|(s, _)| *s == stream).map(|(_, line)| line).collect()
    }
}

impl Subject for &Host {
    type Provider = LocalProvider;

    fn open(&mut self) -> LocalProvider {
        self.provider()
    }

    fn spec(&self, sequence: u64, behaviour: Behaviour) -> InstanceSpec {
        let code;
        let command: &[&str] = match behaviour {
            Behaviour::Serve => &["/bin/probe", "serve", "8080"],
            Behaviour::Stubborn => &["probe", "stubborn"],
            Behaviour::Abort => &["probe", "abort"],
            Behaviour::Missing => &["missing"],
            Behaviour::Broken => &["probe", "sleep"],
            Behaviour::Exit(status) => {
                code = status.to_string();
                &["probe", "print", "3", &code]
            }
        };
        let mut spec = Host::spec(self, sequence, command);
        if behaviour == Behaviour::Broken {
            spec.writable = vec!["/nowhere".into()];
        }
        spec
    }

    fn kill_supervisor(&mut self, id: &InstanceId) {
        kiln_sys::process::signal_pid(self.supervisor(id), 9).unwrap();
    }

    fn patience(&self) -> Duration {
        match self.isolation {
            Isolation::Sandbox => Duration::from_secs(30),
            // Emulated, on a machine that does other things as well.
            Isolation::Vm => Duration::from_secs(180),
        }
    }
}
