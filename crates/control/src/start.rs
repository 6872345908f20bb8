//! Puts a control plane together: state lock, store, lease, workshop, provider, edge, loop. Data flows one way from here.

use crate::clock::HostClock;
use crate::execute::Engines;
use crate::handle::{Handle, Progress};
use crate::home::{self, HomeError};
use crate::keeper::{Keeper, KeeperConfig};
use crate::keys::{Keys, KeysError};
use crate::reconcile::{ReconcileError, Reconciler, Shared};
use crate::recover;
use crate::vault::{Vault, VaultError};
use crate::workshop::{GuestKernels, SharedWorkshop, Workshop, WorkshopConfig};
use kiln_edge::{EdgeClient, Listen, SpawnError, control_socket, program_identity};
use kiln_image::ObjectError;
use kiln_model::{Epoch, Incarnation};
use kiln_provider::local::{Forced, LocalConfig, LocalProvider, OpenError, Subnet};
use kiln_store::{LockedBy, SqliteStore, StateLock, Store, StoreError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

/// Lines about long work that a slow listener may lag behind.
const PROGRESS_BACKLOG: usize = 1024;

/// How a control plane works.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// The state folder.
    pub state: PathBuf,
    /// The kiln program that plays the other parts.
    pub program: PathBuf,
    /// Addresses of the edge for traffic.
    pub edge: Vec<SocketAddr>,
    /// The same over TLS.
    pub edge_tls: Vec<SocketAddr>,
    /// The folder of the edge's certificates; none means `STATE/edge/certificates`.
    pub certificates: Option<PathBuf>,
    /// Proxies in front of it whose PROXY protocol headers it believes.
    pub proxies: Vec<kiln_model::Cidr>,
    /// Addresses of instances.
    pub subnet: Subnet,
    /// Where packages come from; none takes the host's.
    pub mirror: Option<String>,
    /// Fallbacks that are taken although this host needs none.
    pub forced: Forced,
    /// The file with the credentials of registries.
    pub registry_auth: Option<PathBuf>,
    /// The keys that its package lists have to be signed with; none takes Debian's.
    pub keyring: Option<PathBuf>,
    /// The key that signs images; none takes the server's own, which is made at its first start.
    pub signing_key: Option<PathBuf>,
    /// The keys whose images may run; none takes the server's own keys.
    pub trust: Option<PathBuf>,
}

/// A control plane could not be started. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state folder cannot be used.
    #[error("cannot use the state folder `{}`", path.display())]
    State {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Another server uses it.
    #[error(transparent)]
    Locked(LockedBy),
    /// The state is kept elsewhere.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The store.
    #[error("the state cannot be read")]
    Store(#[from] StoreError),
    /// The content store.
    #[error("the content store cannot be used")]
    Objects(#[from] ObjectError),
    /// The host lacks something.
    #[error(transparent)]
    Provider(#[from] OpenError),
    /// The edge.
    #[error(transparent)]
    Edge(#[from] SpawnError),
    /// The keys.
    #[error("the keys of images cannot be used")]
    Keys(#[from] KeysError),
    /// The key of secrets.
    #[error("the key of secrets cannot be used")]
    Vault(#[from] VaultError),
}

/// A running control plane.
pub struct Control {
    /// Commands, snapshots and what is known.
    pub handle: Handle,
    /// Sources, bakes and logs.
    pub workshop: Arc<Workshop>,
    /// Seals secrets and opens them.
    pub vault: Arc<Vault>,
    /// Ends when it was asked to stop, or when the store failed.
    pub reconciler: JoinHandle<Result<(), ReconcileError>>,
    keeper: JoinHandle<()>,
    _lock: StateLock,
}

impl Control {
    /// Starts one with the lock that [`take_state`] gave. The caller is in a tokio runtime.
    pub async fn start(config: ControlConfig, lock: StateLock) -> Result<Self, StartError> {
        home::keeps_its_own(&config.state)?;
        let store = Arc::new(SqliteStore::open(&config.state.join("kiln.db"))?);
        // The lock says that nobody else has it.
        Self::start_on(config, lock, store, None).await
    }

    /// The same on a store that several servers share, as the holder of its lease; without one it is taken.
    pub async fn start_on(
        config: ControlConfig,
        lock: StateLock,
        store: Arc<dyn Store>,
        server: Option<(Incarnation, Epoch)>,
    ) -> Result<Self, StartError> {
        let unusable = |source| StartError::State { path: config.state.clone(), source };
        let state = config.state.canonicalize().map_err(unusable)?;
        crate::backup::clean(&state);
        let clock = Arc::new(HostClock::new().map_err(unusable)?);
        let (progress, _) = broadcast::channel::<Progress>(PROGRESS_BACKLOG);
        let keys = Arc::new(Keys::open(&state, config.signing_key.as_deref(), config.trust.as_deref())?);
        let vault = Arc::new(Vault::open(&state)?);
        let n_unreadable = vault.unreadable(&*store.load()?)?;
        if n_unreadable > 0 {
            eprintln!(
                "kiln: warning: {n_unreadable} versions of secrets are sealed with a key that is not in `keys/secrets.age`"
            );
        }
        let workshop = WorkshopConfig {
            state: state.clone(),
            program: config.program.clone(),
            mirror: config.mirror.clone(),
            registry_auth: config.registry_auth.clone(),
            keyring: config.keyring.clone(),
        };
        let workshop = Arc::new(Workshop::open(workshop, keys.clone(), progress.clone())?);
        let local = LocalConfig {
            subnet: config.subnet,
            program: config.program.clone(),
            forced: config.forced,
            machine: Some(Arc::new(GuestKernels(workshop.clone()))),
            ..LocalConfig::new(&state)
        };
        let provider = Arc::new(LocalProvider::open(local)?);
        let dir = state.join("edge");
        let keeper = KeeperConfig {
            program: config.program,
            identity: program_identity(),
            dir: dir.clone(),
            listen: Listen {
                plain: config.edge.clone(),
                tls: config.edge_tls.clone(),
                certificates: config.certificates.clone(),
                internal: Some(config.subnet.services()),
                proxies: config.proxies.clone(),
            },
        };
        let keeper = Keeper::start(keeper).await?;
        // Only now: whoever could not start has not taken the lease from anybody.
        let router = Arc::new(EdgeClient::new(control_socket(&dir)));
        let holder = format!("pid {}", std::process::id());
        let server = recover::lead(&*store, &*provider, &*router, &*clock, &holder, server).await?;
        let shared = Arc::new(Shared::default());
        let engines = Engines {
            provider,
            router,
            bakery: Arc::new(SharedWorkshop(workshop.clone())),
            vault: vault.clone(),
        };
        let reconciler = Reconciler::new(store.clone(), engines, clock.clone(), shared.clone(), server);
        let keeper = tokio::spawn(keeper.run(shared.stop.subscribe()));
        let handle = Handle::new(store, clock, shared, server.1, progress);
        keys.record_changes(|kind, subject, detail| handle.record("kiln", kind, subject, detail))?;
        let reconciler = tokio::spawn(reconciler.run());
        Ok(Self { handle, workshop, vault, reconciler, keeper, _lock: lock })
    }

    /// Asks everything to end and waits. Edge and instances go on.
    pub async fn stop(self) {
        self.handle.stop();
        // Both end by themselves; a panic in one was reported when it happened. The caller may have waited for the loop
        // already, and a second time is not possible.
        if !self.reconciler.is_finished() {
            let _ = self.reconciler.await;
        }
        let _ = self.keeper.await;
    }
}

/// Makes the state folder, for root alone because it holds the sources of every project, and takes its lock.
pub fn take_state(path: &Path) -> Result<StateLock, StartError> {
    locked(path, StateLock::take)
}

/// The same for one of several servers that take turns by a lease: it keeps out all others.
pub fn share_state(path: &Path) -> Result<StateLock, StartError> {
    locked(path, StateLock::share)
}

fn locked(path: &Path, take: impl Fn(&Path) -> Result<StateLock, LockedBy>) -> Result<StateLock, StartError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    let unusable = |source| StartError::State { path: path.to_owned(), source };
    made.map_err(unusable)?;
    take(path).map_err(|error| match error {
        LockedBy::Io { source, .. } => unusable(source),
        LockedBy::Other { .. } => StartError::Locked(error),
    })
}
