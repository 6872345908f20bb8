//! Connections to instances that speak HTTP/2, per thread: each carries many requests. The key is the target's identity, as in
//! [`crate::pool`]. Of those who need a new connection at the same time one makes it and all share it.

use crate::alarm::Alarm;
use crate::limits::{HEAD_BYTES_MAX, LINK_IDLE_MAX, LINK_STREAMS_MAX, LINKS_MAX};
use crate::pool::{Link, Sender};
use crate::upload::RequestBody;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::watch;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What became of an attempt to connect.
type Attempt = watch::Receiver<Option<Result<(), (io::ErrorKind, String)>>>;

/// One connection.
#[derive(Debug)]
struct Shared {
    connection: SendRequest<RequestBody>,
    usage: Arc<Usage>,
}

#[derive(Debug)]
struct Usage {
    n_streams: AtomicUsize,
    /// As many as the instance allows at a time.
    n_streams_max: AtomicUsize,
    /// When the last stream ended, in milliseconds from `START`.
    idle_since: AtomicU64,
}

/// The right to one stream of a connection.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) connection: SendRequest<RequestBody>,
    usage: Arc<Usage>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.usage.idle_since.store(START.elapsed().as_millis() as u64, Ordering::Relaxed);
        self.usage.n_streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    fn lease(&self) -> Sender {
        self.usage.n_streams.fetch_add(1, Ordering::Relaxed);
        let lease = Lease { connection: self.connection.clone(), usage: self.usage.clone() };
        Sender { connection: Link::Http2(lease), alarm: Alarm::new(), own: false }
    }

    fn n_streams(&self) -> usize {
        self.usage.n_streams.load(Ordering::Relaxed)
    }

    fn has_room(&self) -> bool {
        self.n_streams() < self.usage.n_streams_max.load(Ordering::Relaxed)
    }

    fn is_of_use(&self) -> bool {
        let since = START.elapsed().as_millis() as u64 - self.usage.idle_since.load(Ordering::Relaxed);
        !self.connection.is_closed() && (self.n_streams() > 0 || since < LINK_IDLE_MAX.as_millis() as u64)
    }
}

/// The connections to one target.
#[derive(Debug, Default)]
struct Target {
    links: Vec<Shared>,
    attempt: Option<Attempt>,
}

thread_local! {
    static TARGETS: RefCell<HashMap<u64, Target>> = RefCell::default();
}

/// A stream on a connection that has room, and whether that is an old one; a new one if none has, or with `fresh_only`, made
/// within `time`.
pub(crate) async fn reach(
    id: u64,
    address: SocketAddr,
    time: Duration,
    fresh_only: bool,
) -> io::Result<(Sender, bool)> {
    if !fresh_only && let Some(sender) = existing(id) {
        return Ok((sender, true));
    }
    let mut attempt = TARGETS.with_borrow_mut(|targets| {
        let target = targets.entry(id).or_default();
        target.attempt.get_or_insert_with(|| begin(id, address, time)).clone()
    });
    let result = attempt.wait_for(Option::is_some).await.map(|result| result.clone());
    match result {
        Ok(Some(Err((kind, text)))) => Err(io::Error::new(kind, text)),
        Ok(_) => newest(id).map(|sender| (sender, false)).ok_or_else(|| io::ErrorKind::NotConnected.into()),
        Err(_) => Err(io::ErrorKind::NotConnected.into()),
    }
}

fn existing(id: u64) -> Option<Sender> {
    TARGETS.with_borrow_mut(|targets| {
        let links = &mut targets.get_mut(&id)?.links;
        links.retain(|link| !link.connection.is_closed());
        let free = links.iter().find(|link| link.has_room());
        // With as many connections as there may be, streams wait on the one with the fewest.
        let full = || links.iter().min_by_key(|link| link.n_streams()).filter(|_| links.len() >= LINKS_MAX);
        free.or_else(full).map(Shared::lease)
    })
}

fn newest(id: u64) -> Option<Sender> {
    TARGETS.with_borrow(|targets| targets.get(&id)?.links.last().map(Shared::lease))
}

/// Connects in a task of its own: whoever began it may go away.
fn begin(id: u64, address: SocketAddr, time: Duration) -> Attempt {
    let (told, attempt) = watch::channel(None);
    tokio::spawn(async move {
        let result = connect(address, time).await;
        TARGETS.with_borrow_mut(|targets| {
            let target = targets.entry(id).or_default();
            target.attempt = None;
            let result = result.map(|link| target.links.push(link));
            told.send_replace(Some(result.map_err(|e| (e.kind(), e.to_string()))));
        });
    });
    attempt
}

async fn connect(address: SocketAddr, time: Duration) -> io::Result<Shared> {
    let stream = tokio::time::timeout(time, TcpStream::connect(address)).await;
    let stream = stream.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let _ = stream.set_nodelay(true);
    let mut builder = http2::Builder::new(TokioExecutor::new());
    // Until the instance has told how many it allows.
    builder.max_header_list_size(HEAD_BYTES_MAX as u32).initial_max_send_streams(1);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let usage = Arc::new(Usage {
        n_streams: AtomicUsize::new(0),
        n_streams_max: AtomicUsize::new(LINK_STREAMS_MAX),
        idle_since: AtomicU64::new(START.elapsed().as_millis() as u64),
    });
    let link = Shared { connection: sender, usage: usage.clone() };
    tokio::spawn(async move {
        let mut connection = pin!(connection);
        // Its end is seen by whoever holds a lease.
        let _ = poll_fn(|cx| {
            let allowed = connection.current_max_send_streams().clamp(1, LINK_STREAMS_MAX);
            usage.n_streams_max.store(allowed, Ordering::Relaxed);
            connection.as_mut().poll(cx)
        })
        .await;
    });
    Ok(link)
}

/// Closes what has idled too long.
pub(crate) fn sweep() {
    TARGETS.with_borrow_mut(|targets| {
        for target in targets.values_mut() {
            target.links.retain(Shared::is_of_use);
        }
        targets.retain(|_, target| !target.links.is_empty() || target.attempt.is_some());
    });
}

/// Lets go of the connections of targets that left the table; each ends with its last stream.
pub(crate) fn keep_only(ids: &HashSet<u64>) {
    TARGETS.with_borrow_mut(|targets| targets.retain(|id, _| ids.contains(id)));
}
