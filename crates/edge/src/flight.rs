//! One request from its head to the end of its answer, and the body of that answer. Every request is counted exactly
//! once, when its [`Flight`] is dropped.
//!
//! hyper drops a body when its last byte is in the connection's buffer and before that buffer is flushed. So a client
//! that has read a whole answer finds it in the counts: no status can be asked for in between.

use crate::access::Record;
use crate::admission::Slot;
use crate::choose::Chosen;
use crate::h2::Turn;
use crate::meter::{Counted, Meter, Refused};
use crate::pool::{self, Sender};
use crate::tap::Notes;
use crate::target::{Cells, Outcome, TargetState};
use crate::upload::{BodyError, Progress};
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// See the module.
#[derive(Debug)]
pub(crate) struct Flight {
    thread: usize,
    start: Instant,
    /// Counts it while no target has it.
    pub(crate) lost: Arc<Cells>,
    target: Option<Arc<TargetState>>,
    /// The place at the target, on a route with a bound.
    slot: Option<Slot>,
    /// Counts it for the metrics, once its route is known.
    pub(crate) meter: Option<Arc<Meter>>,
    /// The body of the request, if it has one.
    pub(crate) upload: Option<Arc<Progress>>,
    pub(crate) retries: u32,
    pub(crate) refused: Option<Refused>,
    pub(crate) status: u16,
    pub(crate) outcome: Outcome,
    pub(crate) record: Option<Box<Record>>,
    pub(crate) raw: bool,
    /// Bytes to the client, without heads; and from it, on a raw connection.
    pub(crate) bytes: u64,
    pub(crate) bytes_in: u64,
    /// What counts as its latency, if that is not all of its time.
    pub(crate) latency: Option<Duration>,
}

impl Flight {
    pub(crate) fn new(thread: usize, lost: Arc<Cells>) -> Self {
        Self {
            thread,
            start: Instant::now(),
            lost,
            target: None,
            slot: None,
            meter: None,
            upload: None,
            retries: 0,
            refused: None,
            status: 0,
            outcome: Outcome::Abandoned,
            record: None,
            raw: false,
            bytes: 0,
            bytes_in: 0,
            latency: None,
        }
    }

    /// Who has it.
    pub(crate) fn target(&self) -> Option<Arc<TargetState>> {
        self.target.clone()
    }

    pub(crate) fn start(&self) -> Instant {
        self.start
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Moves it to `target`. The new one counts it before the old one forgets it, so it is never in neither.
    pub(crate) fn retarget(&mut self, (target, slot): Chosen) {
        target.cells.of(self.thread).in_flight.fetch_add(1, Ordering::AcqRel);
        if let Some(old) = self.target.replace(target) {
            old.cells.of(self.thread).in_flight.fetch_sub(1, Ordering::AcqRel);
        }
        self.slot = slot;
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let took = self.start.elapsed();
        if let Some(mut record) = self.record.take() {
            record.bytes = self.bytes;
            record.write(self.target.as_deref(), self.status, self.outcome, took);
        }
        let cells = self.target.as_ref().map_or(&*self.lost, |target| &target.cells);
        cells.count(self.thread, self.outcome, self.status, self.latency.unwrap_or(took));
        if self.raw {
            cells.carried(self.thread, self.bytes + self.bytes_in);
        }
        if let Some(meter) = &self.meter {
            let one = Counted {
                outcome: self.outcome,
                status: self.status,
                took: self.latency.unwrap_or(took),
                bytes_in: self.bytes_in + self.upload.as_ref().map_or(0, |upload| upload.bytes()),
                bytes_out: self.bytes,
                retries: self.retries,
                refused: self.refused,
            };
            meter.count(self.thread, one);
        }
        if let Some(target) = &self.target {
            target.cells.of(self.thread).in_flight.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Where a body comes from.
enum Source {
    Instance(Incoming),
    Edge(Option<Bytes>),
}

/// The body of an answer.
pub(crate) struct AnswerBody {
    source: Source,
    ended: bool,
    flight: Option<Flight>,
    /// Goes back to the pool at a clean end.
    sender: Option<(u64, Sender)>,
    /// Set if the client can only tell the end by the end of the connection.
    until_close: Option<Arc<Notes>>,
    /// Told whether there was more whenever more is asked for.
    pub(crate) watched: Option<Arc<Turn>>,
    /// How long it may carry nothing, and when all of it has to be there.
    idle: Duration,
    until: Option<Instant>,
    /// The alarm is set for what is waited for.
    armed: bool,
}

impl AnswerBody {
    /// An instance's answer.
    pub(crate) fn instance(
        body: Incoming,
        flight: Flight,
        sender: (u64, Sender),
        until_close: Option<Arc<Notes>>,
        (idle, until): (Duration, Option<Instant>),
    ) -> Self {
        Self {
            source: Source::Instance(body),
            ended: false,
            flight: Some(flight),
            sender: Some(sender),
            until_close,
            watched: None,
            idle,
            until,
            armed: false,
        }
    }

    /// The edge's own answer; `flight` has its outcome.
    pub(crate) fn edge(text: Bytes, flight: Option<Flight>) -> Self {
        let text = Some(text).filter(|t| !t.is_empty());
        Self {
            source: Source::Edge(text),
            ended: false,
            flight,
            sender: None,
            until_close: None,
            idle: Duration::ZERO,
            until: None,
            armed: false,
            watched: None,
        }
    }
}

impl AnswerBody {
    /// Ready with an error if what is waited for should be there by now.
    fn too_late(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some((_, sender)) = &self.sender else { return Poll::Pending };
        if !self.armed {
            self.armed = true;
            let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
            sender.alarm.set(left.map_or(self.idle, |left| left.min(self.idle)));
        }
        sender.alarm.poll(cx).map(|()| Some(Err(BodyError::Late)))
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let me = &mut *self;
        let body = match &mut me.source {
            Source::Edge(text) => {
                if let Some(turn) = &me.watched {
                    turn.asked(true);
                }
                return Poll::Ready(text.take().map(|t| Ok(Frame::data(t))));
            }
            Source::Instance(body) => body,
        };
        let mut polled = Pin::new(body).poll_frame(cx).map_err(BodyError::from);
        if polled.is_pending() {
            polled = me.too_late(cx);
        } else {
            me.armed = false;
        }
        if let Some(turn) = &me.watched {
            turn.asked(polled.is_ready());
        }
        match &polled {
            Poll::Ready(None) => me.ended = true,
            Poll::Ready(Some(Err(_))) => {
                if let Some(flight) = &mut me.flight {
                    flight.outcome = Outcome::Cut;
                }
                if let Some(notes) = &me.until_close {
                    notes.reset.store(true, Ordering::Relaxed);
                }
            }
            Poll::Ready(Some(Ok(frame))) => {
                let n = frame.data_ref().map_or(0, |d| d.len() as u64);
                if let Some(flight) = &mut me.flight {
                    flight.bytes += n;
                }
            }
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Edge(text) => text.is_none(),
            Source::Instance(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Edge(text) => SizeHint::with_exact(text.as_ref().map_or(0, |t| t.len() as u64)),
            Source::Instance(body) => body.size_hint(),
        }
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        if let Source::Instance(body) = &self.source
            && (self.ended || body.is_end_stream())
        {
            if let Some(flight) = &mut self.flight {
                flight.outcome = Outcome::Answered;
            }
            if let Some((id, sender)) = self.sender.take() {
                sender.alarm.clear();
                pool::put(id, sender);
            }
        }
    }
}
