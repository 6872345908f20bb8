//! Idle connections to instances, per thread. The key is the target's identity, which contains its release: a
//! connection of a retired release is never used for another one, even if the address is.

use crate::alarm::Alarm;
use crate::limits::{IDLE_CONNECTIONS_MAX, IDLE_MAX};
use crate::mux::Lease;
use crate::upload::RequestBody;
use futures_util::future::Either;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// One connection to an instance.
#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) connection: Link,
    /// For the answer that is waited for.
    pub(crate) alarm: Arc<Alarm>,
    /// It began with the PROXY protocol header of one client: nobody else's request may go over it.
    pub(crate) own: bool,
}

/// What carries a request.
#[derive(Debug)]
pub(crate) enum Link {
    Http1(http1::SendRequest<RequestBody>),
    Http2(Lease),
}

impl Link {
    /// Sends a request; an error has it back if nothing of it was sent. It is on its way when this returns: the future has no
    /// copy of it.
    pub(crate) fn try_send_request(
        &mut self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> + use<> {
        match self {
            Self::Http1(connection) => Either::Left(connection.try_send_request(request)),
            Self::Http2(lease) => Either::Right(Box::pin(lease.connection.try_send_request(request))),
        }
    }

    /// Whether it may not be kept for another request: one of HTTP/2 is never out of its pool.
    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(connection) => connection.is_closed(),
            Self::Http2(_) => true,
        }
    }

    fn is_ready(&self) -> bool {
        matches!(self, Self::Http1(connection) if connection.is_ready())
    }
}

thread_local! {
    static IDLE: RefCell<HashMap<u64, Vec<(Sender, Instant)>>> = RefCell::default();
}

/// The most recently used connection that has idled for less than `idle_max`.
pub(crate) fn get(id: u64, idle_max: Duration) -> Option<Sender> {
    IDLE.with_borrow_mut(|pools| {
        let pool = pools.get_mut(&id)?;
        let mut busy = vec![];
        let found = loop {
            let Some((sender, since)) = pool.pop() else { break None };
            if sender.connection.is_closed() {
                continue;
            }
            if since.elapsed() >= idle_max {
                // So have all below it.
                pool.push((sender, since));
                break None;
            }
            if sender.connection.is_ready() {
                break Some(sender);
            }
            // It still sends the body of a request that was answered early.
            busy.push((sender, since));
        };
        pool.extend(busy.into_iter().rev());
        found
    })
}

/// Keeps a connection whose answer has ended.
pub(crate) fn put(id: u64, sender: Sender) {
    if sender.own || sender.connection.is_closed() {
        return;
    }
    // At the end of the thread the pool may be gone already; then so is the need for it.
    let _ = IDLE.try_with(|pools| {
        let mut pools = pools.borrow_mut();
        let pool = pools.entry(id).or_default();
        if pool.len() < IDLE_CONNECTIONS_MAX {
            pool.push((sender, Instant::now()));
        }
    });
}

/// Closes what has idled too long.
pub(crate) fn sweep() {
    IDLE.with_borrow_mut(|pools| {
        for pool in pools.values_mut() {
            pool.retain(|(sender, since)| !sender.connection.is_closed() && since.elapsed() < IDLE_MAX);
        }
        pools.retain(|_, pool| !pool.is_empty());
    });
}

/// Closes the connections of targets that left the table.
pub(crate) fn keep_only(ids: &HashSet<u64>) {
    IDLE.with_borrow_mut(|pools| pools.retain(|id, _| ids.contains(id)));
}

/// A new connection within `time`, with a PROXY protocol header if there is one.
pub(crate) async fn connect(
    address: SocketAddr,
    time: Duration,
    header: Option<Vec<u8>>,
) -> io::Result<Sender> {
    let own = header.is_some();
    let connected = async {
        let mut stream = TcpStream::connect(address).await?;
        let _ = stream.set_nodelay(true);
        if let Some(header) = header {
            stream.write_all(&header).await?;
        }
        Ok::<_, io::Error>(stream)
    };
    let stream = tokio::time::timeout(time, connected).await;
    let stream = stream.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let mut builder = http1::Builder::new();
    builder.writev(false);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(async move {
        // Its end is seen by whoever holds the sender.
        let _ = connection.with_upgrades().await;
    });
    Ok(Sender { connection: Link::Http1(sender), alarm: Alarm::new(), own })
}
