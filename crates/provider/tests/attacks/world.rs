//! A host with a provider, things of value that must stay as they are, and hostile instances.

use crate::fingerprint::Fingerprint;
use crate::host::Host;
use crate::images;
use kiln_model::frame::Stream;
use kiln_model::*;
use kiln_provider::Provider;
use kiln_provider::conformance::until;
use kiln_provider::local::{self, Inventory, LocalProvider, inventory};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a condition may take to come true. Never waited for when all is well.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// What only the host's files say.
pub const SECRET: &str = "a secret of the host";

/// Ends what a failed case left, so that nothing hostile outlives the test.
struct Sweeper(PathBuf);

impl Drop for Sweeper {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = local::sweep(&self.0);
        }
    }
}

pub struct World {
    _sweeper: Sweeper,
    pub host: Host,
    pub provider: LocalProvider,
    /// A folder of the host's that images point at.
    pub canary: PathBuf,
    /// A name in the abstract namespace of sockets on which the host listens.
    pub socket: String,
    /// A word of the command line of [`World::bystander`].
    pub marker: String,
    bystander: std::cell::RefCell<Child>,
    _listener: std::os::unix::net::UnixListener,
    sequence: Cell<u64>,
    before: Fingerprint,
}

impl World {
    pub fn new() -> Self {
        use std::os::linux::net::SocketAddrExt;
        let mut host = Host::new();
        let hostile = images::tree(host.state(), "hostile", |_| {});
        let layer = images::layer(host.state(), &hostile, "hostile");
        host.manifest.layers.push(layer);
        let canary = host.state().join("canary");
        std::fs::create_dir(&canary).unwrap();
        // Whoever comes through may write, so that nothing but kiln is in the way.
        let everybody: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        for path in [host.state(), &canary] {
            std::fs::set_permissions(path, everybody.clone()).unwrap();
        }
        for name in ["canary", "hosts", "hostname", "resolv.conf", "core_pattern"] {
            std::fs::write(canary.join(name), SECRET).unwrap();
            std::fs::set_permissions(canary.join(name), everybody.clone()).unwrap();
        }
        let marker = format!("marker-{}", std::process::id());
        let mut bystander = Command::new(std::env::current_exe().unwrap());
        // It waits for its input to end, so that it goes with this process also after a failure.
        let bystander = bystander.args(["bystander", &marker]).stdin(Stdio::piped()).stdout(Stdio::null());
        let bystander = bystander.stderr(Stdio::null()).spawn().unwrap();
        let socket = format!("kiln-attacks-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&socket).unwrap();
        let listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
        let provider = host.provider();
        let before = Fingerprint::take(&canary);
        Self {
            _sweeper: Sweeper(host.state().to_owned()),
            provider,
            canary,
            socket,
            marker,
            bystander: bystander.into(),
            _listener: listener,
            sequence: Cell::new(1),
            before,
            host,
        }
    }

    fn next(&self) -> u64 {
        self.sequence.replace(self.sequence.get() + 1)
    }

    /// An instance of the default image.
    pub fn spec(&self, command: &[&str]) -> InstanceSpec {
        self.host.spec(self.next(), command)
    }

    /// An instance of another image.
    pub fn spec_of(&self, manifest: &ImageManifest, command: &[&str]) -> InstanceSpec {
        let mut spec = self.spec(command);
        spec.manifest = manifest.clone();
        spec.image = manifest.digest();
        spec
    }

    /// An image with these layers and the users of the default one.
    pub fn image(&self, layers: Vec<LayerRef>) -> ImageManifest {
        ImageManifest { layers, ..self.host.manifest.clone() }
    }

    pub async fn start(&self, spec: &InstanceSpec) -> Seen {
        self.provider.ensure(fence(), spec, &NO_SECRETS).await.unwrap()
    }

    pub async fn ended(&self, id: &InstanceId) -> ExitReason {
        match until(&self.provider, id, |state| matches!(state, SeenState::Exited(_))).await {
            SeenState::Exited(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    pub async fn remove(&self, id: &InstanceId) {
        tokio::time::timeout(PATIENCE, self.provider.absent(fence(), id))
            .await
            .expect("absent ends")
            .unwrap();
    }

    /// Runs a hostile program to its end, in which every attempt has to be refused.
    pub async fn all_refused(&self, spec: &InstanceSpec) -> Vec<String> {
        self.start(spec).await;
        let reason = self.ended(&spec.id).await;
        let lines = self.host.printed(&spec.id, Stream::Out);
        let errors = self.host.printed(&spec.id, Stream::Err);
        let broken: Vec<&String> = lines.iter().filter(|line| line.starts_with("BROKEN")).collect();
        assert!(broken.is_empty(), "as user {}, {:?}: {broken:#?}", spec.user, spec.command);
        assert_eq!(reason, ExitReason::Status { code: 0 }, "{errors:?}");
        assert_eq!(lines.last().map(String::as_str), Some("ends"));
        self.remove(&spec.id).await;
        lines
    }

    /// The same as the program of a check.
    pub async fn all_refused_in_a_check(&self, id: &InstanceId, argv: &[&str]) {
        let evidence = self.check(id, argv, 20_000).await;
        assert!(evidence.passed && evidence.detail.ends_with("ends"), "{evidence:?}");
    }

    pub async fn check(&self, id: &InstanceId, argv: &[&str], timeout: u64) -> Evidence {
        let argv = argv.iter().map(|a| (*a).to_owned()).collect();
        self.look(id, CheckKind::Command { argv }, timeout).await
    }

    pub async fn look(&self, id: &InstanceId, kind: CheckKind, timeout: u64) -> Evidence {
        let check = Check { kind, timeout: Millis(timeout) };
        let limit = Duration::from_millis(timeout) + PATIENCE;
        tokio::time::timeout(limit, self.provider.check(id, &check)).await.expect("a check ends")
    }

    /// Waits until an instance printed this line.
    pub async fn printed(&self, id: &InstanceId, wanted: &str) {
        wait_for(wanted, || self.host.printed(id, Stream::Out).iter().any(|line| line == wanted)).await;
    }

    /// What the kernel says of an instance's pid 1.
    pub fn pid_1(&self, id: &InstanceId) -> i32 {
        let path = local::instance_folder(self.host.state(), id).join("process.json");
        let process: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        process["pid"].as_i64().unwrap() as i32
    }

    /// The host is what it was before anything hostile ran, and nothing of it is left.
    pub async fn is_as_before(&self, case: &str) {
        let running = self.bystander.borrow_mut().try_wait().unwrap();
        assert!(running.is_none(), "{case}: a process of the host was ended: {running:?}");
        wait_for("nothing is left", || {
            let left = inventory(self.host.state());
            // The bridge, and the parents of the groups in the trees of v2, memory, cpu and pids. What a provider keeps
            // ready for the next instance is no instance's.
            let of_instances = left.processes + left.addresses + left.mounts + left.dirs;
            of_instances == 0 && left.links <= 1 && left.cgroups <= 4
        })
        .await;
        // The kernel removes interfaces a moment after the last process that saw them.
        let mut changed = BTreeMap::new();
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            changed = self.before.changes(&Fingerprint::take(&self.canary));
            if changed.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{case}: the host was changed: {changed:#?}");
    }

    pub async fn end(self) {
        let mut bystander = self.bystander.into_inner();
        bystander.kill().unwrap();
        bystander.wait().unwrap();
        drop(self.provider);
        local::sweep(self.host.state()).unwrap();
        assert_eq!(inventory(self.host.state()), Inventory::default());
    }
}

pub fn fence() -> Fence {
    Fence { incarnation: Incarnation(1), epoch: Epoch(9), revision: Revision(100), op: OpId(1) }
}

/// Waits for a condition on which no event can be waited for.
pub async fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The first number of a file such as `/proc/sys/fs/aio-nr`.
pub fn number(path: impl AsRef<Path>) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}
