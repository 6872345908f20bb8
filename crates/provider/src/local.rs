//! Runs instances as sandboxes on this host, made of what the kernel offers: namespaces, EROFS, cgroups, a bridge.
//!
//! The provider itself only keeps the books: fences, tombstones, addresses, and which instance is in which state. A
//! process beside it, the zygote, clones a shim for each instance (shim.rs): pid 1, which runs it and outlives this
//! server; the next one finds it by its folder. See ARCHITECTURE.md for the whole picture.
//!
//! ```text
//! no folder ─ ensure ─▶ spec.json ─▶ process.json ─▶ exit.json
//!                       Starting      Running         Exited
//!                          └──────────────┴──────────────┴─ absent ─▶ gone.json
//! ```

pub(crate) mod blackbox;
mod check;
mod cloner;
pub(crate) mod etc;
pub mod exec;
mod fit;
pub(crate) mod folder;
pub(crate) mod forced;
mod http;
mod inventory;
mod layers;
mod machine;
pub(crate) mod mark;
pub(crate) mod network;
pub(crate) mod order;
mod policy;
mod pool;
pub(crate) mod program;
mod pump;
mod root;
mod rootfs;
mod secrets;
mod seed;
pub(crate) mod shim;
mod site;
mod slot;
mod start;
mod stop;
pub(crate) mod subnet;
pub(crate) mod supervise;
mod turn;
mod verify;
pub(crate) mod wire;
pub mod zygote;

pub use forced::{Forced, ForcedError};
pub use inventory::{Inventory, inventory};
pub use kiln_sys::mount::ErofsBacking;
pub use pool::Spare;
pub use stop::{SweepError, sweep};
pub use subnet::{Subnet, SubnetError};

use crate::vm::{Accelerator, MachineSource};
use crate::{Provider, ProviderError};
use async_trait::async_trait;
use cloner::Cloner;
use folder::{EXIT, Exit, FENCE, GONE, Gone, PROCESS, Process, Record, Root, SPEC};
use kiln_model::{
    Check, Epoch, Evidence, Fence, Incarnation, InstanceId, InstanceSpec, Memory, Millis, SecretValues, Seen,
    SeenState,
};
use kiln_sys::cgroup::Trees;
use kiln_sys::netlink::{Netlink, Route};
use kiln_sys::{CallError, process};
use layers::Layers;
use mark::Mark;
use order::Failure;
use policy::Policy;
use pool::Pool;
use root::{Layer, Roots};
use slot::Host;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use turn::{AtWork, Turn};

/// Debian's kernel takes 2 to 3 s when it is emulated on an idle processor.
const BOOT_MAX: Millis = Millis(60_000);

/// How a [`LocalProvider`] works.
#[derive(Debug, Clone)]
pub struct LocalConfig {
    /// The state folder.
    pub state: PathBuf,
    /// Addresses of instances; the first is the bridge's.
    pub subnet: Subnet,
    /// The content store that holds the layers: `OBJECTS/sha256/<2>/<62>`.
    pub objects: PathBuf,
    /// The kiln program, started as `PROGRAM internal zygote|exec`.
    pub program: PathBuf,
    /// Where the kernel of virtual machines comes from; without one there are none.
    pub machine: Option<Arc<dyn MachineSource>>,
    /// How long a virtual machine with a whole processor may take until its service runs; one with a part takes the longer.
    pub boot_max: Millis,
    /// What is kept ready for instances to come.
    pub spare: Spare,
    /// Fallbacks that are taken although they are not needed, for tests.
    pub forced: Forced,
}

impl LocalConfig {
    /// The defaults for a state folder.
    pub fn new(state: impl Into<PathBuf>) -> Self {
        let state = state.into();
        Self {
            objects: state.join("objects"),
            state,
            subnet: Subnet::default(),
            program: "/proc/self/exe".into(),
            machine: None,
            boot_max: BOOT_MAX,
            spare: Spare::default(),
            forced: Forced::default(),
        }
    }
}

/// Why a provider could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The state folder could not be used.
    #[error("cannot use the state folder `{path}`")]
    State {
        /// The path.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Another network of the host has these addresses, perhaps of another state folder.
    #[error("`{interface}` has addresses of `{subnet}` already")]
    SubnetTaken {
        /// The addresses that were asked for.
        subnet: Subnet,
        /// Who has them.
        interface: String,
    },
    /// The host lacks something; mostly the right to do it.
    #[error("cannot prepare this host to run instances")]
    Host(#[source] CallError),
}

impl OpenError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::State { .. } => "check the space and the rights of that folder",
            Self::SubnetTaken { .. } => "name another network, as in `--subnet 10.84.0.0/16`",
            Self::Host(_) => "`kiln doctor` says what this host lacks",
        }
    }
}

/// What is known of one instance.
#[derive(Debug, Clone)]
struct Entry {
    record: Arc<Record>,
    fence: Fence,
    state: SeenState,
    /// Its pid 1 while it may run.
    process: Option<(Process, Arc<OwnedFd>)>,
    /// Keeps the layers mounted for others that need the same.
    layers: Vec<Arc<Layer>>,
    /// Where its pid 1 tells that the program has ended, if it does.
    told: Option<Arc<OwnedFd>>,
}

impl Entry {
    /// Of what is written down, and nothing more.
    fn starting(record: Arc<Record>) -> Self {
        let (fence, state) = (record.fence, SeenState::Starting);
        Self { record, fence, state, process: None, layers: vec![], told: None }
    }
}

#[derive(Debug, Default)]
struct Books {
    entries: BTreeMap<InstanceId, Entry>,
    gone: BTreeMap<InstanceId, Fence>,
    /// The highest server seen.
    server: (Incarnation, Epoch),
    /// One lock per instance that is worked on.
    work: HashMap<InstanceId, Arc<Mutex<()>>>,
}

#[derive(Debug)]
struct Inner {
    config: LocalConfig,
    turn: Arc<Turn>,
    host: Arc<Host>,
    roots: Arc<Roots>,
    layers: Layers,
    /// In force from the end of `open`.
    policy: OnceLock<Policy>,
    /// Held while the filter and the books are made to agree.
    filtering: Mutex<()>,
    books: Mutex<Books>,
    changed: Notify,
    /// What runs machines, once it was tried.
    accelerator: OnceLock<Accelerator>,
    runtime: tokio::runtime::Handle,
}

/// The provider. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LocalProvider {
    inner: Arc<Inner>,
    /// What is kept ready goes with the last of the provider's handles; tasks that wait for instances keep only the rest.
    pool: Arc<Pool>,
}

impl LocalProvider {
    /// Opens the state folder, adopts the instances that live, and removes what an earlier server left half-done and
    /// nobody owns. Inside a tokio runtime; takes some milliseconds and blocks.
    pub fn open(config: LocalConfig) -> Result<Self, OpenError> {
        let state = |source| OpenError::State { path: config.state.display().to_string(), source };
        std::fs::create_dir_all(config.state.join("instances")).map_err(state)?;
        let path = config.state.canonicalize().map_err(state)?;
        let mark = Mark::of(&path);
        // What cannot be read is not known to be taken.
        let routes = std::fs::read_to_string("/proc/self/net/route").unwrap_or_default();
        let subnet = config.subnet;
        if let Some(interface) = subnet.taken(&routes, |name| mark.is_bridge(name)) {
            return Err(OpenError::SubnetTaken { subnet, interface });
        }
        // Before anything is read: nobody else changes it from here on.
        let turn = Arc::new(Turn::take(&path.join("instances")).map_err(state)?);
        let trees = Trees::detect(config.forced.cgroups).map_err(OpenError::Host)?;
        let boot = kiln_sys::clock::boot_id().map_err(OpenError::Host)?;
        let root = Root::of(&path);
        let cloner = Cloner::new(config.program.clone(), root.0.clone());
        let host = Arc::new(Host::new(mark, subnet, trees, root, boot, cloner));
        let roots = Arc::new(Roots::open(config.forced, &host.root.0).map_err(OpenError::Host)?);
        let inner = Arc::new(Inner {
            turn: turn.clone(),
            layers: Layers::new(config.objects.clone(), config.forced.erofs, roots.clone()),
            host: host.clone(),
            roots,
            policy: OnceLock::new(),
            filtering: Mutex::default(),
            books: Mutex::default(),
            changed: Notify::new(),
            accelerator: OnceLock::new(),
            runtime: tokio::runtime::Handle::current(),
            config: LocalConfig { state: path, ..config },
        });
        let failed = |source| OpenError::State { path: host.root.0.display().to_string(), source };
        inner.adopt().map_err(failed)?;
        inner.make_bridge().map_err(OpenError::Host)?;
        inner.make_policy().map_err(OpenError::Host)?;
        inner.scavenge().map_err(OpenError::Host)?;
        for folder in host.root.spare().map_err(failed)? {
            std::fs::remove_dir_all(folder).map_err(failed)?;
        }
        // Not in the head of the loop: the guard would live as long as the loop, and `watch` takes the lock.
        let ids: Vec<_> = inner.books().entries.keys().cloned().collect();
        for id in ids {
            inner.watch(&id);
        }
        let pool = Pool::open(host.clone(), inner.roots.clone(), inner.config.spare, turn);
        let pool = Arc::new(pool.map_err(failed)?);
        inner.expect_again(&pool);
        Ok(Self { inner, pool })
    }

    /// Waits until all is ready that is kept ready; for measuring.
    pub fn wait_until_ready(&self) {
        self.pool.wait_until_full();
    }
}

impl Inner {
    fn books(&self) -> MutexGuard<'_, Books> {
        // Every change of the books is one step; a panic elsewhere leaves them whole.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first one; the others are made when they are needed.
    fn make_bridge(&self) -> Result<(), CallError> {
        let Host { mark, subnet, trees, .. } = &*self.host;
        trees.create_parent(&mark.cgroup())?;
        let host = Netlink::open()?;
        let bridge = network::bridge(&host, mark, *subnet, 0)?;
        // Of the bridge, not of loopback: it goes when the bridge goes.
        let services = subnet.services();
        host.route(Route::Own(services.first(), services.prefix()), bridge)
    }

    fn records(&self) -> Vec<Arc<Record>> {
        self.books().entries.values().map(|entry| entry.record.clone()).collect()
    }

    fn make_policy(&self) -> Result<(), CallError> {
        let records = self.records();
        let live = records.iter().map(AsRef::as_ref);
        let _ = self.policy.set(Policy::open(&self.host.mark, self.host.subnet, live)?);
        Ok(())
    }

    fn policy(&self) -> Result<&Policy, Failure> {
        self.policy.get().ok_or_else(|| Failure::retry("find the packet filter", "the provider is not open"))
    }

    /// Puts the policy in force again if somebody removed it.
    fn keep_policy(&self) -> Result<(), Failure> {
        let policy = self.policy()?;
        let _filtering = self.filtering.lock().unwrap_or_else(PoisonError::into_inner);
        if !policy.is_enforced()? {
            eprintln!("kiln: warning: the packet filter table of instances was removed; making it anew");
            let records = self.records();
            policy.enforce(records.iter().map(AsRef::as_ref))?;
        }
        Ok(())
    }

    /// Reads all folders.
    fn adopt(&self) -> std::io::Result<()> {
        let mut books = self.books();
        let mut numbers = self.host.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.host.root.0.join(FENCE);
        let mut damaged = None;
        if let Ok(text) = std::fs::read(&path) {
            let read = serde_json::from_slice(&text);
            read.map_or_else(|error| damaged = Some(error), |server| books.server = server);
        }
        let mut latest = 0;
        for id in self.host.root.ids()? {
            let folder = self.host.root.folder(&id);
            let record: Option<Record> = folder.read(SPEC);
            if let Some(record) = &record
                && id.sequence() >= latest
            {
                (latest, numbers.previous) = (id.sequence(), record.number);
            }
            if let Some(gone) = folder.read::<Gone>(GONE) {
                // An earlier server may have died on the way.
                folder.strip()?;
                books.gone.insert(id, gone.fence);
            } else if let Some(record) = record {
                let fence = folder.read(FENCE).unwrap_or(record.fence).max(record.fence);
                let (state, process) = self.look(&id, Some(&record));
                numbers.in_use.insert(record.number);
                let record = Arc::new(record);
                let told = process.as_ref().and_then(|(process, _)| folder.knock(process)).map(Arc::new);
                let entry = Entry { record, fence, state, process, layers: vec![], told };
                books.entries.insert(id, entry);
            }
        }
        if let Some(error) = damaged {
            // Whoever changed anything left a fence of its own with what it changed: that is as good.
            let fences = books.entries.values().map(|entry| entry.fence).chain(books.gone.values().copied());
            books.server = fences.map(|fence| fence.server()).max().unwrap_or(books.server);
            eprintln!(
                "kiln: warning: `{}` is damaged ({error}); the newest fence of an instance takes its place",
                path.display()
            );
        }
        Ok(())
    }

    /// What the folder of an instance and the kernel say about it.
    fn look(&self, id: &InstanceId, record: Option<&Record>) -> (SeenState, Option<(Process, Arc<OwnedFd>)>) {
        let folder = self.host.root.folder(id);
        let process = folder.read::<Process>(PROCESS);
        let recorded = process.is_some();
        let alive = process
            .filter(|p| p.boot == self.host.boot)
            .and_then(|p| process::open_same(p.pid, p.started).map(|pidfd| (p, Arc::new(pidfd))));
        // Read after the look at the process. It is the last that pid 1 does, when all others are dead.
        let exit = folder.read::<Exit>(EXIT);
        let state = match (&alive, exit) {
            (_, Some(exit)) => SeenState::Exited(exit.reason),
            (Some(_), None) => SeenState::Running,
            (None, None) if recorded => {
                let group = record.map_or(id.as_str(), Record::group);
                SeenState::Exited(stop::untold(&self.host.trees.group(&self.host.mark.cgroup(), group)))
            }
            (None, None) => SeenState::Starting,
        };
        (state, alive)
    }

    /// Waits in the background for an instance to end: for the word of its shim, and for the shim's own end, which may come
    /// without a word.
    fn watch(self: &Arc<Self>, id: &InstanceId) {
        let ends = |entry: &Entry| Some((entry.told.clone(), entry.process.as_ref()?.1.clone()));
        let Some((told, pidfd)) = self.books().entries.get(id).and_then(ends) else { return };
        let (inner, id) = (self.clone(), id.clone());
        self.runtime.spawn(async move {
            for end in told.into_iter().chain([pidfd]) {
                #[expect(
                    deprecated,
                    reason = "its successor is unsafe; an `Arc<OwnedFd>` stays the same open descriptor"
                )]
                let registered = AsyncFd::with_interest(end, Interest::READABLE);
                let Ok(end) = registered else { continue };
                if end.readable().await.is_ok() {
                    inner.settle(&id);
                }
                if inner.seen(&id).is_none_or(|seen| matches!(seen.state, SeenState::Exited(_))) {
                    return;
                }
            }
        });
    }

    /// Looks again and writes down what is seen.
    fn settle(&self, id: &InstanceId) {
        let record = self.books().entries.get(id).map(|entry| entry.record.clone());
        let (state, process) = self.look(id, record.as_deref());
        if let Some(entry) = self.books().entries.get_mut(id) {
            (entry.state, entry.process) = (state, process);
        }
        self.changed.notify_one();
    }

    fn seen(&self, id: &InstanceId) -> Option<Seen> {
        self.books().entries.get(id).map(|entry| seen(id, entry))
    }

    /// The lock of one instance: ensure and absent never run at the same time for it.
    fn work(&self, id: &InstanceId) -> Arc<Mutex<()>> {
        let mut books = self.books();
        books.work.retain(|_, lock| Arc::strong_count(lock) > 1);
        books.work.entry(id.clone()).or_default().clone()
    }

    /// Begins to change something of the instance, if the books are still the newest.
    fn begin_work(&self, id: &InstanceId) -> Result<AtWork<'_>, ProviderError> {
        let stale =
            |error: std::io::Error| ProviderError::Stale { id: id.clone(), detail: error.to_string() };
        self.turn.begin().map_err(stale)
    }

    /// Refuses a server that is older than one seen, and remembers a newer one durably.
    fn admit(&self, fence: Fence, id: &InstanceId) -> Result<(), ProviderError> {
        let mut books = self.books();
        if fence.server() < books.server {
            let detail = format!("server {}.{} was seen", books.server.0, books.server.1);
            return Err(ProviderError::Stale { id: id.clone(), detail });
        }
        if fence.server() > books.server {
            let write = || {
                let directory = std::fs::File::open(&self.host.root.0)?;
                folder::durable(directory, FENCE, &fence.server())
            };
            write().map_err(|error| Failure::io("write `fence.json`", &error).of(id))?;
            books.server = fence.server();
        }
        Ok(())
    }

    /// Refuses a fence older than the one that the instance has, and remembers a newer one durably.
    fn raise(&self, fence: Fence, id: &InstanceId) -> Result<(), ProviderError> {
        let mut books = self.books();
        let Some(entry) = books.entries.get_mut(id) else { return Ok(()) };
        if fence.order() < entry.fence.order() {
            let detail = format!("{} came before", entry.fence);
            return Err(ProviderError::Stale { id: id.clone(), detail });
        }
        if fence.order() > entry.fence.order() {
            let written = self.host.root.folder(id).write(FENCE, &fence);
            written.map_err(|error| Failure::io("write `fence.json`", &error).of(id))?;
            entry.fence = fence;
        }
        Ok(())
    }
}

fn seen(id: &InstanceId, entry: &Entry) -> Seen {
    Seen { id: id.clone(), address: Some(entry.record.address.into()), state: entry.state.clone() }
}

impl Failure {
    /// As the trait's error.
    fn of(self, id: &InstanceId) -> ProviderError {
        let Failure { permanent, damaged, step, detail } = self;
        if damaged {
            ProviderError::Damaged { id: id.clone(), step, detail }
        } else if permanent {
            ProviderError::Permanent { id: id.clone(), step, detail }
        } else {
            ProviderError::Retry { id: id.clone(), step, detail }
        }
    }
}

/// Runs blocking work for an instance; what becomes of it is unknown if the runtime ends.
async fn blocking<T: Send + 'static>(
    id: &InstanceId,
    work: impl FnOnce() -> Result<T, ProviderError> + Send + 'static,
) -> Result<T, ProviderError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Failure::retry("run", error.to_string()).of(id)))
}

#[async_trait]
impl Provider for LocalProvider {
    async fn list(&self) -> Result<Vec<Seen>, ProviderError> {
        // What cannot be mended now is tried again with the next look, and a start does not go on without it.
        if let Ok(_at_work) = self.inner.turn.begin()
            && let Err(Failure { step, detail, .. }) = self.inner.keep_policy()
        {
            eprintln!("kiln: error: the packet filter of instances is not in force: {step}: {detail}");
        }
        Ok(self.inner.books().entries.iter().map(|(id, entry)| seen(id, entry)).collect())
    }

    async fn memory(&self) -> Result<Memory, ProviderError> {
        let books = self.inner.books();
        let fences = books.entries.values().map(|entry| entry.fence).chain(books.gone.values().copied());
        let (incarnation, epoch) = books.server;
        let server = Fence { incarnation, epoch, ..Fence::default() };
        let ids = books.entries.keys().chain(books.gone.keys());
        Ok(Memory {
            newest: fences.fold(server, Fence::max),
            last_instance: ids.map(InstanceId::sequence).max().unwrap_or(0),
            specs: books.entries.iter().map(|(id, entry)| (id.clone(), entry.record.spec.clone())).collect(),
        })
    }

    async fn ensure(
        &self,
        fence: Fence,
        spec: &InstanceSpec,
        secrets: &SecretValues,
    ) -> Result<Seen, ProviderError> {
        let (inner, pool, spec) = (self.inner.clone(), self.pool.clone(), spec.clone());
        let secrets = secrets.clone();
        blocking(&spec.id.clone(), move || inner.ensure(&pool, fence, spec, &secrets)).await
    }

    async fn absent(&self, fence: Fence, id: &InstanceId) -> Result<(), ProviderError> {
        let (inner, own) = (self.inner.clone(), id.clone());
        let gone = blocking(id, move || inner.absent(fence, &own)).await;
        self.pool.look_after();
        gone
    }

    async fn check(&self, id: &InstanceId, check: &Check) -> Evidence {
        let begun = Instant::now();
        let outcome = match self.inner.target(id) {
            Ok(target) => check::run(target, check).await,
            Err(detail) => Err(detail),
        };
        check::evidence(check, begun, outcome)
    }

    async fn changed(&self) {
        self.inner.changed.notified().await;
    }
}

impl Inner {
    fn target(&self, id: &InstanceId) -> Result<check::Target, String> {
        let books = self.books();
        let entry = books.entries.get(id).ok_or("there is no such instance")?;
        let (process, _) = entry.process.clone().ok_or_else(|| match &entry.state {
            SeenState::Exited(reason) => format!("the instance {reason}"),
            _ => "the instance is being created".to_owned(),
        })?;
        Ok(check::Target {
            address: entry.record.address,
            process,
            spec: entry.record.spec.clone(),
            group: self.host.trees.group(&self.host.mark.cgroup(), entry.record.group()),
            ids: subnet::ids_of(entry.record.number),
            program: self.config.program.clone(),
            folder: self.host.root.folder(id).path,
        })
    }
}

/// The newest server that the instances of a state folder heard of, without opening it; none if there were none.
pub fn newest_server(state: &Path) -> Option<(Incarnation, Epoch)> {
    let root = Root::of(state);
    let own = std::fs::read(root.0.join(FENCE)).ok();
    let own: Option<(Incarnation, Epoch)> = own.and_then(|text| serde_json::from_slice(&text).ok());
    let ids = root.ids().unwrap_or_default();
    let fences = ids.iter().filter_map(|id| {
        let folder = root.folder(id);
        let gone = folder.read::<Gone>(GONE).map(|gone| gone.fence);
        folder.read::<Fence>(FENCE).max(gone).map(|fence| fence.server())
    });
    fences.chain(own).max()
}

/// The folder of an instance of a state folder, for reading its black box.
pub fn instance_folder(state: &Path, id: &InstanceId) -> PathBuf {
    Root::of(state).folder(id).path
}
