//! The body of a request to an instance that speaks HTTP/2. Such an instance may say that it has not begun a request
//! (REFUSED_STREAM, GOAWAY), which then goes to another one whatever its method is, as long as its body can be had again: what was
//! sent of it is kept up to a limit.

use crate::limits::REPLAY_BYTES_MAX;
use crate::upload::{Polled, Progress, RequestBody, Streamed, longer};
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::Notify;

/// How long whoever sent the body may take to let go of it after the request was refused.
const LET_GO_MAX: Duration = Duration::from_secs(1);

/// What is known of a body.
#[derive(Debug)]
struct State {
    rest: Streamed,
    sent: Vec<Bytes>,
    n_bytes: usize,
    /// More was sent than is kept.
    is_over: bool,
}

/// Where the body is while nobody sends it.
#[derive(Debug, Default)]
struct Home {
    state: Mutex<Option<State>>,
    back: Notify,
}

/// Gives the body out again.
#[derive(Debug)]
pub(crate) struct Again(Arc<Home>);

impl Again {
    /// Waits until it is back from the last attempt. None if it cannot be had again.
    pub(crate) async fn body(&self) -> Option<RequestBody> {
        let back = async {
            loop {
                let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner).take();
                match state {
                    Some(state) => return state,
                    None => self.0.back.notified().await,
                }
            }
        };
        let state = tokio::time::timeout(LET_GO_MAX, back).await.ok().filter(|state| !state.is_over)?;
        Some(RequestBody::Kept(Kept { state: Some(state), home: self.0.clone(), next: 0 }))
    }
}

/// A body on its way that can be had again.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Gone only when it is dropped.
    state: Option<State>,
    home: Arc<Home>,
    /// Which of what was sent before comes next.
    next: usize,
}

impl Kept {
    /// A body that nothing was sent of, and what gives it out again.
    pub(crate) fn keep(rest: Incoming, progress: Arc<Progress>) -> (RequestBody, Again) {
        let rest = Streamed::new(rest, progress);
        let state = State { rest, sent: vec![], n_bytes: 0, is_over: false };
        let home = Arc::<Home>::default();
        let kept = Self { state: Some(state), home: home.clone(), next: 0 };
        (RequestBody::Kept(kept), Again(home))
    }

    /// What was not sent yet.
    pub(crate) fn rest(&mut self) -> Option<&mut Streamed> {
        self.state.as_mut().map(|state| &mut state.rest)
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Polled {
        let Some(state) = &mut self.state else { return Poll::Ready(None) };
        if let Some(bytes) = state.sent.get(self.next) {
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(bytes.clone()))));
        }
        let polled = state.rest.poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) if !state.is_over => match frame.data_ref() {
                Some(bytes) if state.n_bytes + bytes.len() <= REPLAY_BYTES_MAX => {
                    state.n_bytes += bytes.len();
                    state.sent.push(bytes.clone());
                    self.next += 1;
                }
                // Trailers are not kept either: hardly any request has them.
                _ => {
                    state.is_over = true;
                    state.sent = vec![];
                }
            },
            _ => {}
        }
        polled
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.state.as_ref().is_none_or(|s| self.next >= s.sent.len() && s.rest.is_end_stream())
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        let Some(state) = &self.state else { return SizeHint::with_exact(0) };
        let before: u64 = state.sent.iter().skip(self.next).map(|bytes| bytes.len() as u64).sum();
        longer(&state.rest.size_hint(), before)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        *self.home.state.lock().unwrap_or_else(PoisonError::into_inner) = self.state.take();
        self.home.back.notify_one();
    }
}
