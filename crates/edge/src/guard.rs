//! The socket of a client's connection: the last layer before the kernel, below TLS, so that it sees what really moves. It ends a
//! client that takes nothing of what it is sent, and ends in a reset what must not look whole.

use crate::tap::Notes;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// See the module.
#[derive(Debug)]
pub(crate) struct Guarded {
    stream: TcpStream,
    notes: Arc<Notes>,
    stall_timeout: Duration,
    /// Runs while the client takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Guarded {
    pub(crate) fn new(stream: TcpStream, notes: Arc<Notes>, stall_timeout: Duration) -> Self {
        Self { stream, notes, stall_timeout, stalled: None }
    }

    /// The socket, to look at it.
    pub(crate) fn socket(&self) -> &TcpStream {
        &self.stream
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if self.notes.reset.load(Ordering::Relaxed) {
            let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let me = &mut *self;
        let polled = Pin::new(&mut me.stream).poll_write(cx, buf);
        if polled.is_ready() {
            me.stalled = None;
            return polled;
        }
        let stalled = me.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(me.stall_timeout)));
        stalled.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
