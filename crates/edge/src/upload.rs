//! The body of a request on its way to an instance, and what the edge must know of it while it waits for the answer:
//! whether it moves, who has to move it, and whether it failed on the client's side.

use crate::replay::Kept;
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

    /// Notes what came of asking the client's body for more.
    pub(crate) fn saw(
        &self,
        polled: &Poll<Option<Result<Frame<Bytes>, hyper::Error>>>,
        at_end: impl FnOnce() -> bool,
    ) {
        self.starved.store(polled.is_pending(), Ordering::Relaxed);
        match polled {
            Poll::Pending => {}
            Poll::Ready(Some(Err(_))) => self.failed.store(true, Ordering::Relaxed),
            Poll::Ready(frame) => {
                self.moves.fetch_add(1, Ordering::Relaxed);
                if frame.is_none() || at_end() {
                    self.ended.store(true, Ordering::Relaxed);
                }
            }
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) enum RequestBody {
    Empty,
    Once(Incoming, Arc<Progress>),
    /// See [`crate::replay`].
    Kept(Kept),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Once(body, progress) => {
                let polled = Pin::new(&mut *body).poll_frame(cx);
                progress.saw(&polled, || body.is_end_stream());
                polled
            }
            Self::Kept(kept) => kept.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Once(body, _) => body.is_end_stream(),
            Self::Kept(kept) => kept.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Once(body, _) => body.size_hint(),
            Self::Kept(kept) => kept.size_hint(),
        }
    }
}
