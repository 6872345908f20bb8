//! One instance as the edge sees it: its address, its counters, its health. Lives across tables, so that neither
//! counts nor an ejection are lost by a switch.
//!
//! Counters are one cell per data-path thread: a thread writes only its own, without locks; `status` sums them up.

use crate::limits::{FAILURES_MAX, PROBE_DOUBLINGS_MAX, PROBE_PAUSE};
use http::HeaderValue;
use kiln_model::edge::{LATENCY_BUCKETS, Tally, TargetStatus};
use kiln_model::{CommitId, EnvRef, InstanceId, Millis, Protocol, ReleaseNumber, ServiceName};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Milliseconds since the process began, from 1: zero means never.
fn now() -> u64 {
    START.elapsed().as_millis() as u64 + 1
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The whole answer of an instance, or a refusal by the edge that is the client's fault.
    Answered,
    /// The edge answered with 502, 503 or 504.
    Failed,
    /// The instance went away in the middle.
    Cut,
    /// The client went away.
    Abandoned,
}

impl Outcome {
    /// For the access log.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Failed => "failed",
            Self::Cut => "cut",
            Self::Abandoned => "abandoned",
        }
    }
}

/// The latency bucket of a time.
pub(crate) fn bucket(took: Duration) -> usize {
    let micros = took.as_micros() as u64;
    (64 - (micros.max(1) - 1).leading_zeros() as usize).saturating_sub(7).min(LATENCY_BUCKETS - 1)
}

/// One thread's counts, on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Cell {
    pub(crate) in_flight: AtomicU64,
    requests: AtomicU64,
    failed: AtomicU64,
    cut: AtomicU64,
    abandoned: AtomicU64,
    errors: AtomicU64,
    connections: AtomicU64,
    bytes: AtomicU64,
    latency: [AtomicU64; LATENCY_BUCKETS],
}

/// Counts of one object over all threads.
#[derive(Debug)]
pub(crate) struct Cells(Box<[Cell]>);

impl Cells {
    pub(crate) fn new(n_threads: usize) -> Self {
        Self((0..n_threads.max(1)).map(|_| Cell::default()).collect())
    }

    pub(crate) fn of(&self, thread: usize) -> &Cell {
        &self.0[thread % self.0.len()]
    }

    /// Counts one request that ended. `requests` is written first and read last, so that no reader sees more failures
    /// than requests.
    pub(crate) fn count(&self, thread: usize, outcome: Outcome, status: u16, took: Duration) {
        let cell = self.of(thread);
        cell.latency[bucket(took)].fetch_add(1, Ordering::Relaxed);
        cell.requests.fetch_add(1, Ordering::Release);
        match outcome {
            Outcome::Answered if status >= 500 => cell.errors.fetch_add(1, Ordering::Release),
            Outcome::Answered => 0,
            Outcome::Failed => cell.failed.fetch_add(1, Ordering::Release),
            Outcome::Cut => cell.cut.fetch_add(1, Ordering::Release),
            Outcome::Abandoned => cell.abandoned.fetch_add(1, Ordering::Release),
        };
    }

    /// Counts what a raw connection carried, behind [`Cells::count`].
    pub(crate) fn carried(&self, thread: usize, bytes: u64) {
        let cell = self.of(thread);
        cell.connections.fetch_add(1, Ordering::Release);
        cell.bytes.fetch_add(bytes, Ordering::Release);
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.0.iter().map(|c| c.in_flight.load(Ordering::Acquire)).sum()
    }

    pub(crate) fn tally(&self) -> Tally {
        let sum = |f: fn(&Cell) -> &AtomicU64| self.0.iter().map(|c| f(c).load(Ordering::Acquire)).sum();
        let (failed, cut) = (sum(|c| &c.failed), sum(|c| &c.cut));
        let (abandoned, errors) = (sum(|c| &c.abandoned), sum(|c| &c.errors));
        let (connections, bytes) = (sum(|c| &c.connections), sum(|c| &c.bytes));
        Tally { requests: sum(|c| &c.requests), failed, cut, abandoned, errors, connections, bytes }
    }

    fn latency(&self) -> Vec<u64> {
        (0..LATENCY_BUCKETS)
            .map(|n| self.0.iter().map(|c| c.latency[n].load(Ordering::Relaxed)).sum())
            .collect()
    }
}

/// What makes a target the same one in two tables.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TargetKey {
    pub(crate) env: EnvRef,
    pub(crate) service: ServiceName,
    pub(crate) release: ReleaseNumber,
    pub(crate) instance: InstanceId,
    pub(crate) address: SocketAddr,
    pub(crate) protocol: Protocol,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct TargetState {
    /// Names it in the pools of connections: two releases never share one.
    pub(crate) id: u64,
    pub(crate) key: TargetKey,
    /// `x-kiln-release` and `x-kiln-instance`, made once.
    pub(crate) marks: (HeaderValue, HeaderValue),
    /// What the access log says of it, behind the outcome.
    pub(crate) access: String,
    pub(crate) cells: Cells,
    /// Wakes the health task when the data path ejected it.
    pub(crate) ejection: Notify,
    ejected_at: AtomicU64,
    /// Since it last answered, for the pauses of probes.
    ejections: AtomicU32,
    n_ejections: AtomicU64,
    /// Requests that it has from routes with a bound.
    pub(crate) admitted: AtomicU32,
    failures: AtomicU32,
    reason: Mutex<Option<String>>,
}

impl TargetState {
    pub(crate) fn new(id: u64, key: TargetKey, commit: &CommitId, n_threads: usize) -> Self {
        let instance = HeaderValue::from_str(key.instance.as_str());
        let instance = instance.unwrap_or_else(|_| HeaderValue::from_static("-"));
        let fields = json!({
            "env": key.env.to_string(), "service": key.service.as_str(), "release": key.release.0,
            "commit": commit.as_str(), "instance": key.instance.as_str(),
        });
        let access = format!("\",{}\n", &fields.to_string()[1..]);
        Self {
            id,
            marks: (HeaderValue::from(key.release.0), instance),
            access,
            key,
            cells: Cells::new(n_threads),
            ejection: Notify::new(),
            ejected_at: AtomicU64::new(0),
            ejections: AtomicU32::new(0),
            n_ejections: AtomicU64::new(0),
            admitted: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            reason: Mutex::new(None),
        }
    }

    pub(crate) fn ejected(&self) -> bool {
        self.ejected_at.load(Ordering::Relaxed) != 0
    }

    /// Takes it out of rotation; true if it was in.
    pub(crate) fn eject(&self, reason: &str) -> bool {
        let first = self.ejected_at.compare_exchange(0, now(), Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if first {
            *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
            self.ejections.fetch_add(1, Ordering::Relaxed);
            self.n_ejections.fetch_add(1, Ordering::Relaxed);
            self.ejection.notify_one();
        }
        first
    }

    /// Puts it back; true if it was out.
    pub(crate) fn readmit(&self) -> bool {
        self.failures.store(0, Ordering::Relaxed);
        let out = self.ejected_at.swap(0, Ordering::AcqRel) != 0;
        if out {
            *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        out
    }

    /// A reset or an early end; true if this one ejected it.
    pub(crate) fn failure(&self, reason: &str) -> bool {
        self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES_MAX && self.eject(reason)
    }

    /// An answer came.
    pub(crate) fn success(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        if self.ejections.load(Ordering::Relaxed) != 0 && !self.ejected() {
            self.ejections.store(0, Ordering::Relaxed);
        }
    }

    /// How long to wait before the next probe of an ejected target.
    pub(crate) fn probe_pause(&self) -> Duration {
        let n = self.ejections.load(Ordering::Relaxed).saturating_sub(1).min(PROBE_DOUBLINGS_MAX);
        PROBE_PAUSE * (1 << n)
    }

    /// What `status` tells of it. In flight is read before the counts: a request is seen in at least one of them.
    pub(crate) fn report(&self, in_table: bool) -> TargetStatus {
        let in_flight = self.cells.in_flight();
        let at = self.ejected_at.load(Ordering::Acquire);
        TargetStatus {
            instance: self.key.instance.clone(),
            env: self.key.env.clone(),
            service: self.key.service.clone(),
            release: self.key.release,
            in_table,
            in_flight,
            ejected: at != 0,
            ejected_for: Millis(if at == 0 { 0 } else { now().saturating_sub(at) }),
            ejections: self.n_ejections.load(Ordering::Relaxed),
            reason: self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            tally: self.cells.tally(),
            latency: self.cells.latency(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_buckets_are_powers_of_two_from_128_us() {
        for (micros, bucket) in [
            (0, 0),
            (128, 0),
            (129, 1),
            (256, 1),
            (257, 2),
            (67_108_864, 19),
            (67_108_865, 20),
            (u64::MAX >> 20, 20),
        ] {
            let cells = Cells::new(1);
            cells.count(0, Outcome::Answered, 200, Duration::from_micros(micros));
            assert_eq!(cells.latency()[bucket], 1, "{micros} us");
        }
    }
}
