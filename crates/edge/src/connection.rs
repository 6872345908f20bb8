//! One client connection from its first byte to its last.

use crate::alarm::{Alarm, ConnectionTimer};
use crate::inside::Entrance;
use crate::limits::*;
use crate::proxy::Client;
use crate::proxy_protocol::Ends;
use crate::shared::{Open, Phase, Shared};
use crate::tap::{Notes, Tapped};
use crate::target::Outcome;
use http::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// Serves it in a task of its own.
pub(crate) fn serve_client(
    shared: &Arc<Shared>,
    thread: usize,
    stream: TcpStream,
    ends: Ends,
    entrance: Entrance,
) {
    let notes = Arc::new(Notes::default());
    let forwarded_for = HeaderValue::from_str(&ends.peer.ip().to_canonical().to_string());
    let forwarded_for = forwarded_for.unwrap_or_else(|_| HeaderValue::from_static("unknown"));
    let client =
        Client { shared: shared.clone(), thread, ends, forwarded_for, entrance, notes: notes.clone() };
    let stream = Tapped::new(stream, notes, shared.stall_timeout);
    tokio::spawn(http1(Arc::new(client), stream, Open::new(shared)));
}

/// HTTP/1.
async fn http1(client: Arc<Client>, stream: Tapped, _open: Open) {
    let shared = client.shared.clone();
    let thread = client.thread;
    let service = service_fn(move |request| {
        let client = client.clone();
        async move { Ok::<_, Infallible>(client.handle(request).await) }
    });
    let alarm = Alarm::new();
    let connection = http1::Builder::new()
        .writev(false)
        .timer(ConnectionTimer(alarm.clone()))
        .header_read_timeout(shared.head_timeout)
        .max_headers(HEADERS_MAX)
        .max_header_size(HEAD_BYTES_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let mut told = false;
    let result = poll_fn(|cx| {
        // While it idles it waits for the alarm, with which the thread wakes it when the phase changes. A future that
        // watches the phase would take a lock that all threads share, with every poll.
        if !told && shared.phase() == Phase::Closing {
            told = true;
            connection.as_mut().graceful_shutdown();
        }
        let polled = connection.as_mut().poll(cx);
        if polled.is_pending() && !told {
            alarm.watch(cx);
        }
        polled
    });
    // hyper has answered what it could not parse; the gate never saw it.
    if result.await.is_err_and(|e| e.is_parse()) {
        shared.unrouted.count(thread, Outcome::Answered, 400, Duration::ZERO);
    }
}
