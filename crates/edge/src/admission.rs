//! A bound on what each instance has at once, and the short line in front of it: who finds every instance full waits for a turn,
//! and is sent away if the line is full or the turn does not come in time. To wait longer than that helps nobody, and to send
//! more to an instance that is full makes all of its answers late.

use crate::limits::TURN_TICK;
use crate::target::TargetState;
use kiln_model::policy::InFlight;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;
use tokio::sync::Notify;

/// Those who wait for an instance of one service.
#[derive(Debug, Default)]
pub(crate) struct Line {
    waiting: AtomicU32,
    freed: Notify,
}

impl Line {
    pub(crate) fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Acquire)
    }
}

/// A place at an instance. It is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    target: Arc<TargetState>,
    line: Arc<Line>,
}

impl Slot {
    /// Takes a place if the instance has fewer than `max` in use.
    pub(crate) fn take(target: &Arc<TargetState>, line: &Arc<Line>, max: u32) -> Option<Self> {
        let more = |n: u32| (n < max).then_some(n + 1);
        target.admitted.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Self { target: target.clone(), line: line.clone() })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.target.admitted.fetch_sub(1, Ordering::AcqRel);
        if self.line.waiting() > 0 {
            self.line.freed.notify_one();
        }
    }
}

/// One who waits.
#[derive(Debug)]
pub(crate) struct Turn {
    line: Arc<Line>,
    until: Instant,
}

impl Turn {
    /// Joins the line; none if it is full.
    pub(crate) fn new(line: &Arc<Line>, bound: InFlight) -> Option<Self> {
        let more = |n: u32| (n < bound.queue).then_some(n + 1);
        line.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Self { line: line.clone(), until: Instant::now() + bound.wait.duration() })
    }

    /// Waits until it is worth to look again; false if the time is up. A place may also be there because an instance came
    /// back or a table was switched, which nobody tells the line: hence the tick.
    pub(crate) async fn wait(&self) -> bool {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let _ = tokio::time::timeout(left.min(TURN_TICK), self.line.freed.notified()).await;
        true
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.line.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}
