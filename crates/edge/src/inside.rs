//! The way in for instances: listeners at the service addresses of environments.
//!
//! Whether a request comes from inside is said by the address that it was sent to, never by the listener that took it:
//! one of all addresses takes what is sent to service addresses as well.
//!
//! ```text
//! control: prepare (bind, all or none) ─▶ persist ─▶ switch ─▶ keep_only (what left the table closes)
//! thread:                                              └─ take its listeners, accept, acknowledge
//! ```

use crate::sockets::{Passed, Purpose, for_threads};
use kiln_model::network::INTERNAL_PORT;
use kiln_model::{NetworkNumber, RouteTable, ServiceRange};
use socket2::{Domain, Socket, Type};
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Connections that wait to be accepted, per listener.
const BACKLOG: i32 = 4096;

/// Where a connection came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entrance {
    /// At an address for the world.
    Outside,
    /// At the service address of an environment.
    Inside(NetworkNumber),
}

/// A service address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on `{address}`, where the services of an environment find each other: {source}; \
     hint: let no other program listen on port {INTERNAL_PORT} of all addresses"
)]
pub(crate) struct PrepareError {
    address: SocketAddr,
    source: io::Error,
}

/// Each with whose service address it listens at.
type Listeners = Vec<(NetworkNumber, TcpListener)>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Inside {
    range: Option<ServiceRange>,
    /// The environments that are listened for. A listener closes when its own is no longer among them.
    open: watch::Sender<BTreeSet<NetworkNumber>>,
    /// Listeners that their threads have not taken yet.
    waiting: Box<[Mutex<Listeners>]>,
    passed: Arc<Passed>,
}

impl Inside {
    pub(crate) fn new(range: Option<ServiceRange>, n_threads: usize, passed: Arc<Passed>) -> Self {
        let waiting = (0..n_threads).map(|_| Mutex::default()).collect();
        Self { range, open: watch::Sender::new(BTreeSet::new()), waiting, passed }
    }

    /// The range, for people.
    pub(crate) fn range(&self) -> Option<String> {
        self.range.map(|range| range.to_string())
    }

    /// Where a connection to this address of the host came in.
    pub(crate) fn entrance(&self, local: impl FnOnce() -> Option<IpAddr>) -> Entrance {
        let Some(range) = self.range else { return Entrance::Outside };
        match local() {
            // Its last address is nobody's, and not the world's either.
            Some(IpAddr::V4(local)) if range.contains(local) => {
                Entrance::Inside(range.network(local).unwrap_or_default())
            }
            _ => Entrance::Outside,
        }
    }

    fn of(&self, table: &RouteTable) -> BTreeSet<(NetworkNumber, SocketAddr)> {
        let address = |network| {
            let address = self.range.and_then(|range| range.address(network))?;
            Some((network, SocketAddr::new(address.into(), INTERNAL_PORT)))
        };
        table.internal.iter().filter_map(|route| address(route.network)).collect()
    }

    /// Listens for every environment of the table that is not listened for yet, or for none of them.
    pub(crate) fn prepare(&self, table: &RouteTable) -> Result<(), PrepareError> {
        let open = self.open.borrow().clone();
        let mut made = vec![];
        for (network, address) in self.of(table).into_iter().filter(|(network, _)| !open.contains(network)) {
            let passed = self.passed.take(Purpose::Inside(network), address);
            let listeners = for_threads(passed, self.waiting.len(), || bind(address));
            let listeners = listeners.map_err(|source| PrepareError { address, source })?;
            made.extend(listeners.into_iter().map(|(thread, listener)| (thread, network, listener)));
        }
        for (thread, network, listener) in made {
            self.open.send_if_modified(|open| open.insert(network));
            self.waiting(thread).push((network, listener));
        }
        Ok(())
    }

    /// Lets go of the environments that are not in the table.
    pub(crate) fn keep_only(&self, table: &RouteTable) {
        let wanted: BTreeSet<NetworkNumber> =
            self.of(table).into_iter().map(|(network, _)| network).collect();
        self.open.send_if_modified(|open| {
            let before = open.len();
            open.retain(|network| wanted.contains(network));
            open.len() != before
        });
    }

    /// The new listeners of a thread.
    pub(crate) fn take(&self, thread: usize) -> Listeners {
        std::mem::take(&mut *self.waiting(thread))
    }

    /// Ends when the environment is not listened for any more.
    pub(crate) async fn left(&self, network: NetworkNumber) {
        let mut open = self.open.subscribe();
        // An error means that the edge ends.
        let _ = open.wait_for(|open| !open.contains(&network)).await;
    }

    fn waiting(&self, thread: usize) -> MutexGuard<'_, Listeners> {
        self.waiting[thread].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    // One per thread, and beside the edge's own listener of all addresses.
    socket.set_reuse_port(true)?;
    // The host may own the address only later: the edge starts before the server.
    socket.set_freebind_v4(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_says_where_a_connection_came_in() {
        let inside = Inside::new(Some("10.83.224.0/19".parse().unwrap()), 1, Arc::default());
        let entrance = |text: &str| inside.entrance(|| text.parse().ok());
        assert_eq!(entrance("10.83.255.254"), Entrance::Inside(NetworkNumber(1)));
        assert_eq!(entrance("10.83.255.255"), Entrance::Inside(NetworkNumber(0)));
        for outside in ["10.83.0.1", "127.0.0.1", "::1", "unknown"] {
            assert_eq!(entrance(outside), Entrance::Outside, "{outside}");
        }
        assert_eq!(
            Inside::new(None, 1, Arc::default()).entrance(|| "10.83.255.254".parse().ok()),
            Entrance::Outside
        );
    }
}
