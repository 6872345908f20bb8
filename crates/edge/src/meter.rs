//! Counts of one route and release, for metrics. One cell per data-path thread, which alone writes it, as in
//! [`crate::target`]; that has the counts that rollouts are judged by.

use crate::target::{Outcome, bucket};
use kiln_model::edge::{LATENCY_BUCKETS, RouteStatus};
use kiln_model::{EnvRef, ReleaseNumber, ServiceName};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// What a meter is of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct MeterKey {
    pub(crate) env: EnvRef,
    /// Host and path, `tcp:PORT`, or the name inside.
    pub(crate) route: String,
    pub(crate) service: ServiceName,
    pub(crate) release: ReleaseNumber,
}

/// What one request adds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counted {
    pub(crate) outcome: Outcome,
    pub(crate) status: u16,
    pub(crate) took: Duration,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) retries: u32,
    pub(crate) refused: Option<Refused>,
}

/// A request that the edge did not pass on although somebody was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Every instance was full, and so was the line, or the turn did not come.
    Shed,
    /// The client asked too often.
    Limited,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Cell {
    /// By first digit; 0 is a raw connection.
    statuses: [AtomicU64; 6],
    failed: AtomicU64,
    cut: AtomicU64,
    abandoned: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    retries: AtomicU64,
    shed: AtomicU64,
    limited: AtomicU64,
    micros: AtomicU64,
    latency: [AtomicU64; LATENCY_BUCKETS],
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Meter {
    pub(crate) key: MeterKey,
    cells: Box<[Cell]>,
}

/// Without a locked instruction: nobody else writes here.
fn add(to: &AtomicU64, n: u64) {
    if n > 0 {
        to.store(to.load(Relaxed) + n, Relaxed);
    }
}

impl Meter {
    pub(crate) fn new(key: MeterKey, n_threads: usize) -> Self {
        Self { key, cells: (0..n_threads.max(1)).map(|_| Cell::default()).collect() }
    }

    /// Counts one request that ended, on its own thread.
    pub(crate) fn count(&self, thread: usize, one: Counted) {
        let cell = &self.cells[thread % self.cells.len()];
        add(&cell.statuses[usize::from(one.status / 100).min(5)], 1);
        match one.outcome {
            Outcome::Answered => {}
            Outcome::Failed => add(&cell.failed, 1),
            Outcome::Cut => add(&cell.cut, 1),
            Outcome::Abandoned => add(&cell.abandoned, 1),
        }
        match one.refused {
            None => {}
            Some(Refused::Shed) => add(&cell.shed, 1),
            Some(Refused::Limited) => add(&cell.limited, 1),
        }
        add(&cell.bytes_in, one.bytes_in);
        add(&cell.bytes_out, one.bytes_out);
        add(&cell.retries, one.retries.into());
        add(&cell.micros, one.took.as_micros() as u64);
        add(&cell.latency[bucket(one.took)], 1);
    }

    /// What `status` tells of it.
    pub(crate) fn report(&self, in_table: bool) -> RouteStatus {
        let sum = |of: fn(&Cell) -> &AtomicU64| self.cells.iter().map(|c| of(c).load(Relaxed)).sum::<u64>();
        let each = |n: usize| self.cells.iter().map(|c| c.latency[n].load(Relaxed)).sum::<u64>();
        RouteStatus {
            route: self.key.route.clone(),
            env: self.key.env.clone(),
            service: self.key.service.clone(),
            release: self.key.release,
            in_table,
            statuses: (0..6).map(|n| self.cells.iter().map(|c| c.statuses[n].load(Relaxed)).sum()).collect(),
            failed: sum(|c| &c.failed),
            cut: sum(|c| &c.cut),
            abandoned: sum(|c| &c.abandoned),
            bytes_in: sum(|c| &c.bytes_in),
            bytes_out: sum(|c| &c.bytes_out),
            retries: sum(|c| &c.retries),
            shed: sum(|c| &c.shed),
            limited: sum(|c| &c.limited),
            micros: sum(|c| &c.micros),
            latency: (0..LATENCY_BUCKETS).map(each).collect(),
        }
    }
}
