//! What all threads of the edge share.

use crate::inside::Inside;
use crate::log::Log;
use crate::ports::Ports;
use crate::server::EdgeConfig;
use crate::sockets::{Passed, Sockets};
use crate::table::{Compiled, Registry};
use crate::tls::Tls;
use arc_swap::ArcSwap;
use kiln_model::Cidr;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// How far the edge is on its way to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Serving.
    Open,
    /// No new connections; answers carry `Connection: close`.
    LameDuck,
    /// Idle connections are closed.
    Closing,
    /// What is left is cut.
    Ended,
}

/// What is made before the threads are.
pub(crate) struct Parts {
    /// Every address that takes traffic, with and without TLS.
    pub(crate) listening: Vec<SocketAddr>,
    pub(crate) n_threads: usize,
    /// See [`Shared::connections_max`].
    pub(crate) connections_max: usize,
    pub(crate) log: Log,
    pub(crate) access: Option<Arc<Log>>,
    pub(crate) tls: Option<Arc<Tls>>,
    /// Where plain HTTP is sent to; none for the port that needs no telling.
    pub(crate) https_port: Option<u16>,
    /// Listeners of the edge before.
    pub(crate) passed: Arc<Passed>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The folder of the edge.
    pub(crate) dir: PathBuf,
    /// The table in use. A request loads it once.
    pub(crate) table: ArcSwap<Compiled>,
    /// Not for the data path.
    registry: Mutex<Registry>,
    /// Counts requests that no environment is known for.
    pub(crate) unrouted: Arc<crate::target::Cells>,
    /// Listeners for instances.
    pub(crate) inside: Inside,
    /// Listeners of raw TCP routes.
    pub(crate) ports: Ports,
    /// What the threads accept from.
    pub(crate) sockets: Arc<Sockets>,
    /// Whose PROXY protocol headers are believed.
    proxies: Vec<Cidr>,
    pub(crate) log: Log,
    pub(crate) access: Option<Arc<Log>>,
    pub(crate) answer_timeout: Duration,
    pub(crate) head_timeout: Duration,
    pub(crate) stall_timeout: Duration,
    /// None if nothing listens for it.
    pub(crate) tls: Option<Arc<Tls>>,
    /// Where plain HTTP is sent to; none for the port that needs no telling.
    pub(crate) https_port: Option<u16>,
    /// For those who wait for a change.
    pub(crate) phase: watch::Sender<Phase>,
    /// For every request: reading the other one takes a lock.
    phase_now: AtomicU8,
    /// Client connections that may be there at a time, listeners included.
    pub(crate) connections_max: usize,
    /// Client connections and tunnels.
    pub(crate) n_connections: AtomicUsize,
    /// Bumped after every switch; each thread answers by writing it into its cell of `seen`.
    pub(crate) switch: watch::Sender<u64>,
    seen: Box<[AtomicU64]>,
    seen_changed: Notify,
}

impl Shared {
    pub(crate) fn new(config: &EdgeConfig, parts: Parts) -> Self {
        let Parts { listening, n_threads, connections_max, log, access, tls, https_port, passed } = parts;
        let registry = Registry::new(n_threads);
        Self {
            dir: config.dir.clone(),
            table: ArcSwap::from_pointee(Compiled::default()),
            unrouted: registry.unrouted.clone(),
            registry: Mutex::new(registry),
            inside: Inside::new(config.internal, n_threads, passed.clone()),
            ports: Ports::new(&listening, n_threads, passed),
            sockets: Arc::default(),
            proxies: config.proxies.clone(),
            log,
            access,
            answer_timeout: config.answer_timeout,
            head_timeout: config.head_timeout,
            stall_timeout: config.stall_timeout,
            tls,
            https_port,
            phase: watch::Sender::new(Phase::Open),
            phase_now: AtomicU8::new(Phase::Open as u8),
            connections_max,
            n_connections: AtomicUsize::new(0),
            switch: watch::Sender::new(0),
            seen: (0..n_threads).map(|_| AtomicU64::new(0)).collect(),
            seen_changed: Notify::new(),
        }
    }

    /// Whether connections from there begin with a PROXY protocol header.
    pub(crate) fn trusts(&self, peer: IpAddr) -> bool {
        self.proxies.iter().any(|block| block.contains(peer))
    }

    pub(crate) fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a table into use and returns the number of the switch.
    pub(crate) fn switch(&self, table: Compiled) -> u64 {
        self.table.store(Arc::new(table));
        let mut number = 0;
        self.switch.send_modify(|n| {
            *n += 1;
            number = *n;
        });
        number
    }

    /// Has every thread look for new listeners.
    pub(crate) fn nudge(&self) {
        self.switch.send_modify(|n| *n += 1);
    }

    /// Called by a data-path thread between two requests.
    pub(crate) fn saw(&self, thread: usize, number: u64) {
        self.seen[thread].store(number, Ordering::Release);
        self.seen_changed.notify_one();
    }

    /// Waits until every thread saw switch `number`.
    pub(crate) async fn all_saw(&self, number: u64) {
        while self.seen.iter().any(|s| s.load(Ordering::Acquire) < number) {
            self.seen_changed.notified().await;
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.phase_now.load(Ordering::Acquire) {
            0 => Phase::Open,
            1 => Phase::LameDuck,
            2 => Phase::Closing,
            _ => Phase::Ended,
        }
    }

    /// Goes on to the next one and tells everybody.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase_now.store(phase as u8, Ordering::Release);
        self.phase.send_replace(phase);
    }
}

/// Counts a connection for as long as it lives.
pub(crate) struct Open(Arc<Shared>);

impl Open {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        shared.n_connections.fetch_add(1, Ordering::AcqRel);
        Self(shared.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.n_connections.fetch_sub(1, Ordering::AcqRel);
    }
}
