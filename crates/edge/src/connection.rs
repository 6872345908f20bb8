//! One client connection from its first byte to its last.

use crate::alarm::{Alarm, ConnectionTimer};
use crate::guard::Guarded;
use crate::h2::http2;
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
use socket2::{SockRef, TcpKeepalive};
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// How a client of HTTP/2 begins (RFC 9113, section 3.4); no method of HTTP/1 does.
const PREFACE: &[u8] = b"PRI";

/// Serves it in a task of its own; `secure` is whether TLS comes first.
pub(crate) fn serve_client(
    shared: &Arc<Shared>,
    thread: usize,
    stream: TcpStream,
    ends: Ends,
    entrance: Entrance,
    secure: bool,
) {
    let notes = Arc::new(Notes::default());
    let forwarded_for = HeaderValue::from_str(&ends.peer.ip().to_canonical().to_string());
    let forwarded_for = forwarded_for.unwrap_or_else(|_| HeaderValue::from_static("unknown"));
    let make = |secure| Client {
        shared: shared.clone(),
        thread,
        ends,
        forwarded_for,
        entrance,
        notes: notes.clone(),
        secure,
        shown: None,
    };
    let open = Open::new(shared);
    let stream = Guarded::new(stream, notes.clone(), shared.stall_timeout);
    if secure {
        tokio::spawn(tls(make(true), stream, open));
    } else {
        tokio::spawn(plain(make(false), stream, open));
    }
}

/// HTTP over TLS.
async fn tls(client: Client, stream: Guarded, open: Open) {
    let Some(tls) = client.shared.tls.clone() else { return };
    let Some(secured) = tls.accept(stream).await else { return };
    let client = Arc::new(Client { shown: secured.certificate, ..client });
    if secured.is_h2 {
        keep_alive(secured.stream.get_ref().0.socket());
        Box::pin(http2(client, secured.stream, open)).await;
    } else {
        let notes = client.notes.clone();
        http1(client, Tapped::new(secured.stream, notes), open).await;
    }
}

/// HTTP without TLS: HTTP/2 if the client begins so, as gRPC between services does.
async fn plain(client: Client, stream: Guarded, open: Open) {
    let client = Arc::new(client);
    match begins_h2(&client.shared, stream.socket()).await {
        Some(true) => {
            keep_alive(stream.socket());
            // In the future of every connection there would be room for it.
            Box::pin(http2(client, stream, open)).await;
        }
        Some(false) => {
            let notes = client.notes.clone();
            http1(client, Tapped::new(stream, notes), open).await;
        }
        None => {}
    }
}

/// Looks at the first bytes without taking them. None if there are none: in time, before the edge closes, or at all.
async fn begins_h2(shared: &Shared, socket: &TcpStream) -> Option<bool> {
    let alarm = Alarm::new();
    alarm.set(HEAD_TIMEOUT);
    poll_fn(|cx| {
        let mut bytes = [0; PREFACE.len()];
        let mut buffer = tokio::io::ReadBuf::new(&mut bytes);
        match socket.poll_peek(cx, &mut buffer) {
            Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(None),
            Poll::Ready(Ok(_)) => Poll::Ready(Some(buffer.filled() == PREFACE)),
            Poll::Pending if alarm.poll(cx).is_ready() || shared.phase() >= Phase::Closing => {
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// A client that is gone without a word must not keep its streams for ever: the kernel asks, which costs no frame.
fn keep_alive(socket: &TcpStream) {
    let every = KEEPALIVE / 3;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(every).with_retries(3);
    let _ = SockRef::from(socket).set_tcp_keepalive(&keepalive);
}

/// HTTP/1.
async fn http1<S>(client: Arc<Client>, stream: Tapped<S>, _open: Open)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let shared = client.shared.clone();
    let thread = client.thread;
    let service = service_fn(move |request| {
        let client = client.clone();
        // hyper keeps room for one as long as the connection lives, and most connections idle.
        Box::pin(async move { Ok::<_, Infallible>(client.handle(request).await) })
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
        if !told && shared.phase() >= Phase::Closing {
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
