//! The body of a request on its way to an instance, and what the edge must know of it while it waits for the answer:
//! whether it moves, who has to move it, and whether it failed on the client's side.

use crate::replay::Kept;
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

    fn mark(&self) {
        self.moves.fetch_add(1, Ordering::Relaxed);
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

pub(crate) type Polled = Poll<Option<Result<Frame<Bytes>, BodyError>>>;

/// What a client sends, with what was read of it before anybody was asked.
#[derive(Debug)]
pub(crate) struct Streamed {
    held: VecDeque<Frame<Bytes>>,
    rest: Incoming,
    progress: Arc<Progress>,
}

impl Streamed {
    pub(crate) fn new(rest: Incoming, progress: Arc<Progress>) -> Self {
        Self { held: VecDeque::new(), rest, progress }
    }

    async fn hold(&mut self, most: u64, time: Duration) -> bool {
        let progress = &self.progress;
        while progress.bytes() <= most && !self.rest.is_end_stream() {
            let frame = match tokio::time::timeout(time, self.rest.frame()).await {
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

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Polled {
        let progress = &self.progress;
        if let Some(frame) = self.held.pop_front() {
            progress.mark();
            if self.held.is_empty() && self.rest.is_end_stream() {
                progress.ended.store(true, Ordering::Relaxed);
            }
            return Poll::Ready(Some(Ok(frame)));
        }
        let polled = Pin::new(&mut self.rest).poll_frame(cx).map_err(BodyError::from);
        progress.starved.store(polled.is_pending(), Ordering::Relaxed);
        match &polled {
            Poll::Pending => {}
            Poll::Ready(Some(Err(_))) => progress.failed.store(true, Ordering::Relaxed),
            Poll::Ready(Some(Ok(frame))) if !progress.came(frame) => {
                return Poll::Ready(Some(Err(BodyError::TooLarge)));
            }
            Poll::Ready(frame) => {
                progress.mark();
                if frame.is_none() || self.rest.is_end_stream() {
                    progress.ended.store(true, Ordering::Relaxed);
                }
            }
        }
        polled
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.rest.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        let held = self.held.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum();
        longer(&self.rest.size_hint(), held)
    }
}

/// What is known of the length of something with `more` bytes before it.
pub(crate) fn longer(hint: &SizeHint, more: u64) -> SizeHint {
    let mut longer = SizeHint::new();
    longer.set_lower(hint.lower() + more);
    if let Some(upper) = hint.upper() {
        longer.set_upper(upper + more);
    }
    longer
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) enum RequestBody {
    #[default]
    Empty,
    Once(Streamed),
    /// See [`crate::replay`].
    Kept(Kept),
}

impl RequestBody {
    /// Reads until the body has ended or is larger than `most` bytes, so that one that is too large bothers nobody. False if the
    /// client sent nothing for `time`.
    pub(crate) async fn hold(&mut self, most: u64, time: Duration) -> bool {
        match self {
            Self::Empty => true,
            Self::Once(body) => body.hold(most, time).await,
            Self::Kept(kept) => match kept.rest() {
                Some(body) => body.hold(most, time).await,
                None => true,
            },
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Once(body) => body.poll_frame(cx),
            Self::Kept(kept) => kept.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Once(body) => body.is_end_stream(),
            Self::Kept(kept) => kept.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Once(body) => body.size_hint(),
            Self::Kept(kept) => kept.size_hint(),
        }
    }
}
