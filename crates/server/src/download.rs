//! Large answers: a thread that blocks writes them, as fast as the client takes them. If it fails, the body breaks off, and
//! the client knows that it is not whole.

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::Frame;
use std::io::{self, BufWriter, Write};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// Bytes of one piece, and pieces that wait for a slow client.
const PIECE: usize = 256 * 1024;
const BACKLOG: usize = 4;

struct Pieces(mpsc::Receiver<io::Result<Bytes>>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

struct Sender(mpsc::Sender<io::Result<Bytes>>);

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Answers with what `work` writes.
pub(crate) fn download(work: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static) -> Response {
    let (sender, receiver) = mpsc::channel(BACKLOG);
    tokio::task::spawn_blocking(move || {
        let mut out = BufWriter::with_capacity(PIECE, Sender(sender.clone()));
        if let Err(error) = work(&mut out).and_then(|()| out.flush()) {
            // The client may be the one that is gone.
            let _ = sender.blocking_send(Err(error));
        }
    });
    ([(CONTENT_TYPE, "application/octet-stream")], Body::new(Pieces(receiver))).into_response()
}
