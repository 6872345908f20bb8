//! The lease: who may write. Each taking gives a new epoch, higher than any before, and a commit of an older one is refused by
//! the store in the very transaction that would write it. The lease's time only decides when another may take it: that a
//! holder who slept wakes late, or believes another clock, does no harm.
//!
//! ```text
//! free ── try_lease ─▶ held until … ── renew_lease ─▶ held until later
//!   ▲                     │     └── try_lease of the same holder ─▶ held, a new epoch
//!   └── release_lease, or its time passed
//! any ── take_lease ─▶ held without end (whoever has the state folder's lock needs no time)
//! ```

use kiln_model::{Epoch, Millis};

/// Who may write, as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Where the holder can be reached, or another name of it. Empty if there was none yet.
    pub holder: String,
    /// Its epoch. It stays when the lease is free: nobody has a higher one.
    pub epoch: Epoch,
    /// Time left, by the clock of the store; zero: it is free. None: without end.
    pub left: Option<Millis>,
}

impl Lease {
    /// Whether `holder` may take it: nobody has it, or one that has this name itself, and must have ended before it could ask.
    pub fn is_free_for(&self, holder: &str) -> bool {
        self.is_free() || self.holder == holder
    }

    /// Whether anybody may take it.
    pub fn is_free(&self) -> bool {
        self.epoch == Epoch(0) || self.left == Some(Millis(0))
    }
}
