//! HTTP/2 with clients: one connection, its streams, and its limits.
//!
//! hyper asks for more of an answer only while the client takes some of it, and waits for ever otherwise. So each stream is a task
//! that this module wraps: it knows whose turn it is, and drops a stream (RST_STREAM with CANCEL) whose client has taken nothing
//! for as long as one of HTTP/1 may. A connection without streams is told to go (GOAWAY) and closed a little later.

use crate::alarm::Alarm;
use crate::limits::*;
use crate::proxy::Client;
use crate::shared::{Open, Phase};
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Sleep;

/// What the body of an answer tells its stream.
#[derive(Debug)]
pub(crate) struct Turn(AtomicU64);

impl Default for Turn {
    /// The instance's: there is no answer yet.
    fn default() -> Self {
        Self(AtomicU64::new(1))
    }
}

impl Turn {
    /// The body was asked for more and had it: the client's turn to take it. Else it is the instance's.
    pub(crate) fn asked(&self, had: bool) {
        let n = self.0.load(Ordering::Relaxed) | 1;
        self.0.store(n + if had { 1 } else { 2 }, Ordering::Relaxed);
    }

    /// Even while it is the client's turn; another number after each time that it took something.
    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The streams of one connection.
#[derive(Debug, Clone)]
struct Streams(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    n_open: AtomicUsize,
    /// Rings when there has been no stream for a while.
    idle: Arc<Alarm>,
    /// Of the request that hyper is about to make a stream of.
    next: Mutex<Option<Arc<Turn>>>,
    stall_timeout: Duration,
}

impl Streams {
    fn next(&self) -> Arc<Turn> {
        let turn = Arc::<Turn>::default();
        *self.0.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(turn.clone());
        turn
    }
}

impl<F: Future + Send + 'static> Executor<F> for Streams {
    fn execute(&self, task: F) {
        // hyper calls the service and makes its answer a stream in one go.
        let turn = self.0.next.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.0.n_open.fetch_add(1, Ordering::Relaxed);
        self.0.idle.clear();
        tokio::spawn(stream(task, turn.unwrap_or_default(), Counted(self.0.clone())));
    }
}

struct Counted(Arc<Inner>);

impl Drop for Counted {
    fn drop(&mut self) {
        if self.0.n_open.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.idle.set(HEAD_TIMEOUT);
        }
    }
}

/// One stream, from its request to the end of its answer.
async fn stream(task: impl Future, turn: Arc<Turn>, counted: Counted) {
    let mut task = pin!(task);
    // Runs while it is the client's turn, since the turn of that number.
    let mut stalled: Option<(Pin<Box<Sleep>>, u64)> = None;
    poll_fn(|cx| {
        if task.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let now = turn.now();
        if !now.is_multiple_of(2) {
            stalled = None;
            return Poll::Pending;
        }
        let (sleep, since) =
            stalled.get_or_insert_with(|| (Box::pin(tokio::time::sleep(counted.0.stall_timeout)), now));
        if *since != now {
            *since = now;
            *sleep = Box::pin(tokio::time::sleep(counted.0.stall_timeout));
        }
        sleep.as_mut().poll(cx)
    })
    .await;
}

/// Serves a connection until either side ends it.
pub(crate) async fn http2<S>(client: Arc<Client>, stream: S, _open: Open)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let shared = client.shared.clone();
    let idle = Alarm::new();
    let (n_open, next, stall_timeout) = (AtomicUsize::new(0), Mutex::default(), shared.stall_timeout);
    let streams = Streams(Arc::new(Inner { n_open, idle: idle.clone(), next, stall_timeout }));
    let own = streams.clone();
    let service = service_fn(move |request| {
        let (client, turn) = (client.clone(), own.next());
        // On its way into a task it is moved several times, and it is large.
        Box::pin(async move {
            let mut answer = client.handle(request).await;
            answer.body_mut().watched = Some(turn);
            Ok::<_, Infallible>(answer)
        })
    });
    let connection = http2::Builder::new(streams.clone())
        .max_concurrent_streams(H2_STREAMS_MAX)
        .initial_stream_window_size(H2_WINDOW_BYTES.0)
        .initial_connection_window_size(H2_WINDOW_BYTES.1)
        .max_send_buf_size(H2_SEND_BYTES_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .max_pending_accept_reset_streams(H2_PENDING_RESETS_MAX)
        .max_local_error_reset_streams(H2_OWN_RESETS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    idle.set(HEAD_TIMEOUT);
    let mut told = false;
    poll_fn(|cx| {
        let rings = idle.poll(cx).is_ready();
        let is_idle = streams.0.n_open.load(Ordering::Relaxed) == 0;
        if rings && is_idle && told {
            // It does not go by itself.
            return Poll::Ready(());
        }
        if !told && ((rings && is_idle) || shared.phase() != Phase::Open) {
            told = true;
            connection.as_mut().graceful_shutdown();
            if is_idle {
                idle.set(H2_LEAVE_TIMEOUT);
            }
        }
        // How it ended is the client's business; what was in flight is counted by its flight.
        connection.as_mut().poll(cx).map(drop)
    })
    .await;
}
