//! The body of a request on its way to an instance, and what the edge must know of it while it waits for the answer:
//! whether it moves, who has to move it, and whether it failed on the client's side.

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

/// How far a body got.
#[derive(Debug)]
pub(crate) struct Progress {
    moves: AtomicU64,
    pub(crate) ended: AtomicBool,
    pub(crate) failed: AtomicBool,
    /// The instance takes more than the client sends; else the instance does not take what is there.
    pub(crate) starved: AtomicBool,
}

impl Progress {
    pub(crate) fn new(ended: bool) -> Self {
        let (ended, failed) = (AtomicBool::new(ended), AtomicBool::new(false));
        let starved = AtomicBool::new(false);
        Self { moves: AtomicU64::new(0), ended, failed, starved }
    }

    /// How often it moved: while the number grows, the instance has time.
    pub(crate) fn moves(&self) -> u64 {
        self.moves.load(Ordering::Relaxed)
    }
}

/// See the module. Without a stream it is empty.
#[derive(Debug)]
pub(crate) struct RequestBody(pub(crate) Option<(Incoming, Arc<Progress>)>);

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some((body, progress)) = &mut self.0 else { return Poll::Ready(None) };
        let polled = Pin::new(&mut *body).poll_frame(cx);
        progress.starved.store(polled.is_pending(), Ordering::Relaxed);
        match &polled {
            Poll::Pending => {}
            Poll::Ready(Some(Err(_))) => progress.failed.store(true, Ordering::Relaxed),
            Poll::Ready(frame) => {
                progress.moves.fetch_add(1, Ordering::Relaxed);
                if frame.is_none() || body.is_end_stream() {
                    progress.ended.store(true, Ordering::Relaxed);
                }
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|(body, _)| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or(SizeHint::with_exact(0), |(body, _)| body.size_hint())
    }
}
