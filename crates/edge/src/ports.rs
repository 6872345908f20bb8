//! The listeners of raw TCP routes: each of their ports, at every address that the edge has for the world.
//!
//! ```text
//! control: prepare (bind, all or none) ─▶ persist ─▶ switch ─▶ keep_only (what left the table closes)
//! thread:                                              └─ take its listeners, accept, acknowledge
//! ```

use crate::bind::{bind, probe};
use crate::sockets::{Passed, Purpose, for_threads};
use kiln_model::{RouteTable, TcpRoute};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::watch;

/// A port of a route cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on `{address}` for the `tcp` route of {owner}: {source}; hint: let no other program listen there, or give the \
     route another port"
)]
pub(crate) struct PortError {
    address: SocketAddr,
    owner: String,
    source: io::Error,
}

/// Lives as long as anybody listens on a port, a thread that is just closing it included.
pub(crate) type Held = Arc<u16>;

/// Listeners that a thread has not taken yet, each with its port.
type Waiting = Vec<(Held, TcpListener)>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Ports {
    addresses: Vec<IpAddr>,
    /// The ports that are listened on. A listener closes when its own is no longer among them.
    open: watch::Sender<BTreeSet<u16>>,
    held: Mutex<HashMap<u16, Weak<u16>>>,
    waiting: Box<[Mutex<Waiting>]>,
    /// What could not be listened on when the table of the last run was restored: somebody else may let go of it.
    missing: Mutex<Vec<TcpRoute>>,
    passed: Arc<Passed>,
}

impl Ports {
    /// For an edge that takes traffic at `listen`.
    pub(crate) fn new(listen: &[SocketAddr], n_threads: usize, passed: Arc<Passed>) -> Self {
        let addresses: BTreeSet<IpAddr> = listen.iter().map(SocketAddr::ip).collect();
        let waiting = (0..n_threads).map(|_| Mutex::default()).collect();
        let open = watch::Sender::new(BTreeSet::new());
        let addresses = addresses.into_iter().collect();
        let (held, missing) = (Mutex::default(), Mutex::default());
        Self { addresses, open, held, waiting, missing, passed }
    }

    /// The ports that are listened on.
    pub(crate) fn open(&self) -> Vec<u16> {
        self.open.borrow().iter().copied().collect()
    }

    /// Listens on every port of the table that is not listened on yet, or on none of them.
    pub(crate) fn prepare(&self, table: &RouteTable) -> Result<(), PortError> {
        let open = self.open.borrow().clone();
        let mut made = vec![];
        for route in table.tcp.iter().filter(|route| !open.contains(&route.port)) {
            let held = self.hold(route.port);
            let failed = |address, source| {
                let owner = route.pools.first().and_then(|p| table.pools.get(p.pool));
                let owner = owner.map(|p| format!("service `{}` of `{}`", p.service, p.env));
                PortError { address, owner: owner.unwrap_or_else(|| "nobody".into()), source }
            };
            let addresses: Vec<SocketAddr> =
                self.addresses.iter().map(|ip| SocketAddr::new(*ip, route.port)).collect();
            let passed = addresses.iter().map(|address| (*address, self.passed.take(Purpose::Raw, *address)));
            let passed: Vec<_> = passed.collect();
            // While this edge still closes its own listener of before, asking would find only itself.
            if Arc::strong_count(&held) == 1 {
                for (address, _) in passed.iter().filter(|(_, listeners)| listeners.is_empty()) {
                    probe(*address).map_err(|e| failed(*address, e))?;
                }
            }
            for (address, listeners) in passed {
                let listeners = for_threads(listeners, self.waiting.len(), || bind(address));
                let listeners = listeners.map_err(|e| failed(address, e))?;
                made.extend(listeners.into_iter().map(|(thread, one)| (thread, held.clone(), one)));
            }
        }
        for (thread, held, listener) in made {
            self.open.send_if_modified(|open| open.insert(*held));
            lock(&self.waiting[thread]).push((held, listener));
        }
        Ok(())
    }

    /// Listens on as many ports of a restored table as possible, and remembers the others for [`Ports::retry`].
    pub(crate) fn restore(&self, table: &RouteTable) -> Vec<PortError> {
        let mut errors = vec![];
        for route in &table.tcp {
            let one =
                RouteTable { tcp: vec![route.clone()], pools: table.pools.clone(), ..RouteTable::default() };
            if let Err(e) = self.prepare(&one) {
                lock(&self.missing).push(route.clone());
                errors.push(e);
            }
        }
        errors
    }

    /// Tries again what [`Ports::restore`] could not; true if there are new listeners.
    pub(crate) fn retry(&self) -> bool {
        let mut missing = lock(&self.missing);
        let before = missing.len();
        missing.retain(|route| {
            let one = RouteTable { tcp: vec![route.clone()], ..RouteTable::default() };
            self.prepare(&one).is_err()
        });
        missing.len() < before
    }

    /// Lets go of the ports that are not among `wanted`.
    pub(crate) fn keep_only(&self, wanted: &BTreeSet<u16>) {
        self.open.send_if_modified(|open| {
            let before = open.len();
            open.retain(|port| wanted.contains(port));
            open.len() != before
        });
        lock(&self.missing).retain(|route| wanted.contains(&route.port));
        for waiting in &self.waiting {
            lock(waiting).retain(|(held, _)| wanted.contains(held));
        }
    }

    /// The new listeners of a thread.
    pub(crate) fn take(&self, thread: usize) -> Waiting {
        std::mem::take(&mut *lock(&self.waiting[thread]))
    }

    /// Ends when the port is not listened on any more.
    pub(crate) async fn left(&self, port: u16) {
        let mut open = self.open.subscribe();
        // An error means that the edge ends.
        let _ = open.wait_for(|open| !open.contains(&port)).await;
    }

    fn hold(&self, port: u16) -> Held {
        let mut all = lock(&self.held);
        all.retain(|_, held| held.strong_count() > 0);
        if let Some(held) = all.get(&port).and_then(Weak::upgrade) {
            return held;
        }
        let held = Arc::new(port);
        all.insert(port, Arc::downgrade(&held));
        held
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
