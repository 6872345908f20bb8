//! The world of one run: time, what waits for its turn, the receivers and the disk. It outlives every process of kiln.

use crate::edge::Edge;
use crate::faults::Faults;
use crate::host::Host;
use crate::rng::Rng;
use crate::truth::Truth;
use kiln_model::{Boot, Wall};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

/// The wall clock when a run begins.
const EPOCH_MS: i64 = 1_700_000_000_000;

/// Somebody who stands at a named point until the scheduler lets him go on.
pub(crate) struct Waiting {
    pub(crate) id: u64,
    /// Of which process; 0 is the world itself.
    pub(crate) process: u64,
    pub(crate) name: &'static str,
    pub(crate) go: Arc<AtomicBool>,
    pub(crate) waker: Waker,
}

/// What happened, as a hash of everything, and as text if somebody wants to read it.
#[derive(Default)]
pub(crate) struct Trace {
    pub(crate) hash: u64,
    pub(crate) lines: Option<Vec<String>>,
}

impl Trace {
    pub(crate) fn mix(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// See the module.
pub(crate) struct World {
    /// Milliseconds since the run began.
    pub(crate) now: u64,
    /// Steps since the run began.
    pub(crate) steps: u64,
    pub(crate) boots: u64,
    booted_at: u64,
    wall_offset: i64,
    pub(crate) rng: Rng,
    pub(crate) faults: Faults,
    next_id: u64,
    pub(crate) waiting: Vec<Waiting>,
    pub(crate) timers: BTreeMap<(u64, u64), Waker>,
    pub(crate) host: Host,
    pub(crate) edge: Edge,
    pub(crate) truth: Truth,
    /// Effects that arrive later, in no order.
    pub(crate) delayed: Vec<(u64, Delayed)>,
    /// Names of points that were passed.
    pub(crate) passed: BTreeSet<&'static str>,
    pub(crate) trace: Trace,
    pub(crate) violation: Option<String>,
    /// Something changed that invariants are about.
    pub(crate) dirty: bool,
    /// Effects that reached a receiver.
    pub(crate) applied: u64,
    /// Which node holds the lease, and when it was last renewed.
    pub(crate) lease: Option<(usize, u64)>,
}

/// An effect on its way.
pub(crate) type Delayed = Box<dyn FnOnce(&mut World) + Send>;

/// A world that tasks share. One thread, so that a lock never waits.
#[derive(Clone)]
pub(crate) struct Sim(Arc<Mutex<World>>);

impl Sim {
    pub(crate) fn new(seed: u64, faults: Faults, trace: bool) -> Self {
        Self(Arc::new(Mutex::new(World {
            now: 0,
            steps: 0,
            boots: 1,
            booted_at: 0,
            wall_offset: EPOCH_MS,
            rng: Rng::new(seed),
            faults,
            next_id: 1,
            waiting: vec![],
            timers: BTreeMap::new(),
            host: Host::default(),
            edge: Edge::default(),
            truth: Truth::default(),
            delayed: vec![],
            passed: BTreeSet::new(),
            trace: Trace { hash: 0xcbf2_9ce4_8422_2325, lines: trace.then(Vec::new) },
            violation: None,
            dirty: true,
            applied: 0,
            lease: None,
        })))
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl World {
    pub(crate) fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(crate) fn boot(&self) -> Boot {
        Boot(self.now - self.booted_at)
    }

    pub(crate) fn wall(&self) -> Wall {
        Wall((self.now as i64 + self.wall_offset).max(0) as u64)
    }

    pub(crate) fn boot_id(&self) -> String {
        format!("boot-{}", self.boots)
    }

    /// Writes down what happened.
    pub(crate) fn tell(&mut self, text: impl FnOnce() -> String) {
        // The text is part of the hash: what reads alike is alike.
        let text = text();
        self.trace.mix(&self.now.to_le_bytes());
        self.trace.mix(text.as_bytes());
        let now = self.now;
        if let Some(lines) = &mut self.trace.lines {
            lines.push(format!("{now:>7} {text}"));
        }
    }

    /// Adds a line for readers.
    pub(crate) fn note(&mut self, text: String) {
        if let Some(lines) = &mut self.trace.lines {
            lines.push(format!("        {text}"));
        }
    }

    /// Notes that an invariant is broken; the first one counts.
    pub(crate) fn broken(&mut self, text: impl FnOnce() -> String) {
        if self.violation.is_none() {
            let text = text();
            self.tell(|| format!("BROKEN {text}"));
            self.violation = Some(text);
        }
    }

    /// Lets somebody go on who stands at a point.
    pub(crate) fn release(&mut self, index: usize) -> Waiting {
        let waiting = self.waiting.swap_remove(index);
        waiting.go.store(true, Relaxed);
        self.passed.insert(waiting.name);
        self.trace.mix(waiting.name.as_bytes());
        self.trace.mix(&[waiting.process as u8]);
        waiting
    }

    /// The host starts anew: every program is gone, time since boot begins anew.
    pub(crate) fn reboot(&mut self) {
        self.boots += 1;
        self.booted_at = self.now.saturating_sub(5);
        let boots = self.boots;
        self.tell(|| format!("host boots, number {boots}"));
        self.host.reboot();
        let boot = self.boots;
        Edge::restart(self, boot);
        self.truth.excused_until = self.now + 30_000;
        self.dirty = true;
    }

    /// The wall clock jumps by up to a day, either way.
    pub(crate) fn jump(&mut self) {
        let day = 24 * 3600 * 1000;
        self.wall_offset += self.rng.below(2 * day) as i64 - day as i64;
        self.tell(|| "the wall clock jumps".into());
    }

    /// Delivers what is due.
    pub(crate) fn deliver(&mut self) {
        while let Some(index) = self.delayed.iter().position(|(due, _)| *due <= self.now) {
            let (_, effect) = self.delayed.swap_remove(index);
            effect(self);
        }
    }
}
