//! A node: one place where a control plane runs, ends and is started again.

use crate::bakery::SimBakery;
use crate::disk::Disk;
use crate::edge::SimRouter;
use crate::host::SimProvider;
use crate::process::Process;
use kiln_control::Handle;
use kiln_control::clock::Clock;
use kiln_control::execute::Engines;
use kiln_control::reconcile::{Reconciler, Shared};
use kiln_control::recover::lead;
use kiln_store::Store;
use std::sync::{Arc, Mutex, PoisonError};

/// Without a sign of its holder for so long, the lease is free.
const LEASE_MS: u64 = 3_000;
/// How often somebody who waits for the lease looks.
const LOOK_MS: u64 = 250;

/// What a process that leads shows to those who ask it.
pub(crate) type Serving = Arc<Mutex<Option<(Handle, Arc<Shared>)>>>;

/// See the module.
pub(crate) struct Node {
    pub(crate) process: Option<Process>,
    pub(crate) serving: Serving,
    pub(crate) paused_until: u64,
    pub(crate) restart_at: u64,
}

impl Node {
    pub(crate) fn new(_: usize) -> Self {
        Self { process: None, serving: Arc::default(), paused_until: 0, restart_at: 0 }
    }

    /// What a process knew dies with it.
    pub(crate) fn forget(&mut self) {
        self.serving = Arc::default();
        self.paused_until = 0;
    }

    /// Whether the loop of the process has ended.
    pub(crate) fn main_ended(&self) -> bool {
        // It takes away what it shows when it ends; requests of clients end without that.
        let serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        serving.is_none()
    }
}

/// One process: waits for the lease, and leads until it fails.
pub(crate) async fn serve(process: Process, node: usize, store: Arc<dyn Store>, serving: Serving) {
    loop {
        let taken = process.act(|world| {
            let now = world.now;
            let free = world.lease.is_none_or(|(holder, renewed)| holder == node || renewed + LEASE_MS < now);
            if free {
                world.lease = Some((node, now));
            }
            free
        });
        if taken {
            break;
        }
        process.wait(LOOK_MS).await;
    }
    let disk = Arc::new(Disk::new(process.clone(), store));
    let (provider, router) = (SimProvider(process.clone()), SimRouter(process.clone()));
    let led = lead(&*disk, &provider, &router, &process, &format!("node {node}"), None).await;
    let Ok(server) = led else { return };
    process.act(|world| {
        world.truth.epoch = world.truth.epoch.max(server.1);
        // Another one may have been free to wait for it meanwhile.
        world.lease = Some((node, world.now));
        world.tell(|| format!("node {node} leads with epoch {}", server.1));
    });
    let shared = Arc::new(Shared::default());
    let clock: Arc<dyn Clock> = Arc::new(process.clone());
    let engines = Engines {
        vault: Arc::default(),
        provider: Arc::new(provider),
        router: Arc::new(router),
        bakery: Arc::new(SimBakery(process.clone())),
    };
    let progress = tokio::sync::broadcast::Sender::new(1);
    let handle = Handle::new(disk.clone(), clock.clone(), shared.clone(), server.1, progress);
    let show = |what| *serving.lock().unwrap_or_else(PoisonError::into_inner) = what;
    show(Some((handle, shared.clone())));
    let ended = Reconciler::new(disk, engines, clock, shared, server).run().await;
    if let Err(error) = ended {
        process.act(|world| world.tell(|| format!("node {node} ends: {error:?}")));
    }
    show(None);
}
