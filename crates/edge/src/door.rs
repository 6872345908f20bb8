//! Where a connection comes in: it says who may be believed, and how the connection is served.

use crate::connection::serve_client;
use crate::inside::Entrance;
use crate::ports::Held;
use crate::proxy_protocol::{self, Ends};
use crate::shared::{Open, Shared};
use crate::sockets::Purpose;
use crate::target::Outcome;
use crate::tcp;
use kiln_model::NetworkNumber;
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// What a listener is for.
#[derive(Debug, Clone)]
pub(crate) enum Door {
    /// HTTP for the world, over TLS if it is `secure`.
    World { secure: bool },
    /// HTTP for the instances of an environment.
    Inside(NetworkNumber),
    /// A raw TCP route.
    Port(Held),
}

impl Door {
    /// As the next edge will know it.
    pub(crate) fn purpose(&self) -> Purpose {
        match self {
            Self::World { secure: false } => Purpose::Plain,
            Self::World { secure: true } => Purpose::Tls,
            Self::Inside(network) => Purpose::Inside(*network),
            Self::Port(_) => Purpose::Raw,
        }
    }

    /// Ends when the table has no use for it any more.
    pub(crate) async fn left(&self, shared: &Shared) {
        match self {
            Self::World { .. } => std::future::pending().await,
            Self::Inside(network) => shared.inside.left(*network).await,
            Self::Port(port) => shared.ports.left(**port).await,
        }
    }

    /// Serves a connection in a task of its own.
    pub(crate) fn admit(&self, shared: &Arc<Shared>, thread: usize, stream: TcpStream, peer: SocketAddr) {
        let Ok(local) = stream.local_addr() else { return };
        let ends = Ends { peer, local };
        // By the real address: what a header says must not lead inside.
        let entrance = shared.inside.entrance(|| Some(local.ip()));
        if entrance != Entrance::Outside || !shared.trusts(peer.ip()) {
            return self.serve(shared, thread, stream, ends, entrance);
        }
        let (door, shared, mut stream) = (self.clone(), shared.clone(), stream);
        tokio::spawn(async move {
            let open = Open::new(&shared);
            match proxy_protocol::read(&mut stream).await {
                Ok(told) => door.serve(&shared, thread, stream, told.unwrap_or(ends), entrance),
                Err(e) => {
                    shared.unrouted.count(thread, Outcome::Answered, 400, Duration::ZERO);
                    let fields = json!({ "peer": peer.to_string(), "problem": e.to_string() });
                    shared.log.seldom("warn", "a connection of a trusted proxy was refused", fields);
                }
            }
            drop(open);
        });
    }

    fn serve(&self, shared: &Arc<Shared>, thread: usize, stream: TcpStream, ends: Ends, entrance: Entrance) {
        let _ = stream.set_nodelay(true);
        match self {
            Self::World { secure } => serve_client(shared, thread, stream, ends, entrance, *secure),
            Self::Inside(_) => serve_client(shared, thread, stream, ends, entrance, false),
            Self::Port(port) => drop(tokio::spawn(tcp::serve(shared.clone(), thread, **port, stream, ends))),
        }
    }
}
