//! The edge that this one took over from, as long as it has connections: what it counts is added to what this one counts, it
//! follows every switch, and ends with this one.

use crate::limits::{HANDOVER_TIMEOUT, PREDECESSOR_TIMEOUT};
use crate::wire::{self, Answer, Ask};
use kiln_model::edge::EdgeStatus;
use kiln_model::{Fence, Generation, RouteTable};
use rustix::process::{Signal, pidfd_send_signal};
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::Mutex;

/// See the module.
#[derive(Debug)]
pub(crate) struct Predecessor {
    process: OwnedFd,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// None once it has ended.
    stream: Option<UnixStream>,
    last: EdgeStatus,
}

impl Predecessor {
    /// The edge at the other end, which answers in turn; `process` is its pidfd.
    pub(crate) fn new(stream: UnixStream, process: OwnedFd) -> Self {
        Self { process, state: Mutex::new(State { stream: Some(stream), last: EdgeStatus::default() }) }
    }

    /// What it has counted by now, or had when it ended.
    pub(crate) async fn status(&self) -> EdgeStatus {
        let mut state = self.state.lock().await;
        if let Some(Answer::Status { status }) = self.ask(&mut state, &Ask::Status, PREDECESSOR_TIMEOUT).await
        {
            let replaced = status.replaced + 1;
            state.last = EdgeStatus { replaced, ..*status };
        }
        state.last.clone()
    }

    /// Has it take the table into use as well: no request on its connections may meet a release that was retired. One that
    /// does not do so in time is ended.
    pub(crate) async fn follow(&self, fence: Fence, generation: Generation, table: &RouteTable) {
        let ask = Ask::Set { fence, generation, table: table.clone() };
        let mut state = self.state.lock().await;
        let answer = self.ask(&mut state, &ask, HANDOVER_TIMEOUT).await;
        if state.stream.is_some() && !matches!(answer, Some(Answer::Done)) {
            self.end(&mut state);
        }
    }

    /// Has it end as this one does.
    pub(crate) async fn stop(&self) {
        let mut state = self.state.lock().await;
        self.ask(&mut state, &Ask::Stop, PREDECESSOR_TIMEOUT).await;
    }

    /// Whether it has ended.
    pub(crate) async fn is_gone(&self) -> bool {
        self.state.lock().await.stream.is_none()
    }

    /// None if it has ended or ends upon this, as it gives no answer in time.
    async fn ask(&self, state: &mut State, ask: &Ask, limit: Duration) -> Option<Answer> {
        let stream = state.stream.as_mut()?;
        let exchange = async {
            // What it said last can still be read when it hears nothing any more.
            let _ = wire::send(stream, ask).await;
            wire::receive(stream).await
        };
        match tokio::time::timeout(limit, exchange).await {
            Ok(Ok(Answer::Ended { status })) => {
                (state.stream, state.last) = (None, *status);
                None
            }
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(_)) | Err(_) => {
                self.end(state);
                None
            }
        }
    }

    /// It is dead, or hangs: then its connections hang as well.
    fn end(&self, state: &mut State) {
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
        state.stream = None;
        (state.last.replaced, state.last.waiting) = (0, 0);
        state.last.targets.iter_mut().for_each(|target| target.in_flight = 0);
    }
}
