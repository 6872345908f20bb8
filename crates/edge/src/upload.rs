//! The body of a request on its way to an instance, and what the edge must know of it while it waits for the answer:
//! whether it moves, who has to move it, and whether it failed on the client's side.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

/// How far a body got.
#[derive(Debug)]
pub(crate) struct Progress {
    moves: AtomicU64,
    pub(crate) ended: AtomicBool,
    pub(crate) failed: AtomicBool,
    /// The instance takes more than the client sends; else the instance does not take what is there.
    pub(crate) starved: AtomicBool,
    bytes: AtomicU64,
    /// Bytes that it may have.
    max: u64,
    pub(crate) too_large: AtomicBool,
}

impl Progress {
    pub(crate) fn new(ended: bool, max: u64) -> Self {
        let (ended, failed) = (AtomicBool::new(ended), AtomicBool::new(false));
        let starved = AtomicBool::new(false);
        let (moves, bytes, too_large) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
        Self { moves, ended, failed, starved, bytes, max, too_large }
    }

    /// Bytes that came.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Counts a frame that came; false if the body is too large with it.
    fn came(&self, frame: &Frame<Bytes>) -> bool {
        let n = frame.data_ref().map_or(0, |data| data.len() as u64);
        let fits = self.bytes.fetch_add(n, Ordering::Relaxed) + n <= self.max;
        if !fits {
            self.too_large.store(true, Ordering::Relaxed);
        }
        fits
    }

    /// How often it moved: while the number grows, the instance has time.
    pub(crate) fn moves(&self) -> u64 {
        self.moves.load(Ordering::Relaxed)
    }
}

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    #[error("it is larger than its route allows")]
    TooLarge,
    #[error("the rest did not come in time")]
    Late,
}

/// See the module. Without a stream it is what is held, if anything is.
#[derive(Debug, Default)]
pub(crate) struct RequestBody {
    /// What was read before anybody was asked.
    held: VecDeque<Frame<Bytes>>,
    rest: Option<(Incoming, Arc<Progress>)>,
}

impl RequestBody {
    /// One that streams.
    pub(crate) fn streamed(body: Incoming, progress: Arc<Progress>) -> Self {
        Self { held: VecDeque::new(), rest: Some((body, progress)) }
    }

    /// Reads until the body has ended or is larger than `most` bytes, so that one that is too large bothers nobody. False if the
    /// client sent nothing for `time`.
    pub(crate) async fn hold(&mut self, most: u64, time: Duration) -> bool {
        let Some((body, progress)) = &mut self.rest else { return true };
        while progress.bytes() <= most && !body.is_end_stream() {
            let frame = match tokio::time::timeout(time, body.frame()).await {
                Err(_) => return false,
                Ok(None) => break,
                Ok(Some(Err(_))) => {
                    progress.failed.store(true, Ordering::Relaxed);
                    break;
                }
                Ok(Some(Ok(frame))) => frame,
            };
            if !progress.came(&frame) {
                break;
            }
            self.held.push_back(frame);
        }
        true
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let (held, is_last) = (self.held.pop_front(), self.held.is_empty());
        let Some((body, progress)) = &mut self.rest else { return Poll::Ready(held.map(Ok)) };
        if let Some(frame) = held {
            progress.moves.fetch_add(1, Ordering::Relaxed);
            if is_last && body.is_end_stream() {
                progress.ended.store(true, Ordering::Relaxed);
            }
            return Poll::Ready(Some(Ok(frame)));
        }
        let polled = Pin::new(&mut *body).poll_frame(cx).map_err(BodyError::from);
        progress.starved.store(polled.is_pending(), Ordering::Relaxed);
        match &polled {
            Poll::Pending => {}
            Poll::Ready(Some(Err(_))) => progress.failed.store(true, Ordering::Relaxed),
            Poll::Ready(Some(Ok(frame))) if !progress.came(frame) => {
                return Poll::Ready(Some(Err(BodyError::TooLarge)));
            }
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
        self.held.is_empty() && self.rest.as_ref().is_none_or(|(body, _)| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let held: u64 = self.held.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum();
        let rest = self.rest.as_ref().map_or(SizeHint::with_exact(0), |(body, _)| body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + held);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + held);
        }
        hint
    }
}
