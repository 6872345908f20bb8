//! What goes wrong, and how often. A seed draws each rate from {never, sometimes, often}: uniform rates hide what only shows
//! when one fault is rare or absent.

use crate::rng::Rng;

/// Rates out of 100,000: of calls, or of steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// A call fails before its effect.
    pub error: u32,
    /// A call's effect happens and its answer is lost.
    pub lost: u32,
    /// A call is given up by the caller, and its effect happens later, up to minutes.
    pub late: u32,
    /// A call's effect happens, and again later.
    pub twice: u32,
    /// A call takes seconds.
    pub slow: u32,
    /// The provider cannot say what there is.
    pub blind: u32,
    /// A check fails by chance.
    pub flap: u32,
    /// An image is found damaged.
    pub damaged: u32,
    /// A commit fails, written or not; the process ends.
    pub commit: u32,
    /// The process dies at a step.
    pub crash: u32,
    /// The leader is not scheduled for longer than its lease.
    pub pause: u32,
    /// An instance ends by itself or by lack of memory.
    pub death: u32,
    /// An instance runs and answers nothing.
    pub hang: u32,
    /// Somebody else removes an instance without a trace.
    pub forget: u32,
    /// Something is there that no row owns, as after a restore of older state.
    pub stray: u32,
    /// The edge starts anew.
    pub edge_restart: u32,
    /// The edge starts anew with the table before the last one, or with none.
    pub edge_loss: u32,
    /// The edge does not answer for seconds.
    pub edge_hang: u32,
    /// The host starts anew.
    pub reboot: u32,
    /// The wall clock jumps.
    pub clock_jump: u32,
    /// The store goes back to an older state: a backup is restored, or its files are.
    pub store_rollback: u32,
}

impl Faults {
    /// The profile of a seed.
    pub fn swarm(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0xFA17);
        let mut rate = |often: u32| [0, often.div_ceil(6), often][rng.below(3)];
        Self {
            error: rate(12_000),
            lost: rate(15_000),
            late: rate(15_000),
            twice: rate(10_000),
            slow: rate(5_000),
            blind: rate(8_000),
            flap: rate(6_000),
            damaged: rate(4_000),
            commit: rate(1_500),
            crash: rate(1_000),
            pause: rate(250),
            death: rate(500),
            hang: rate(150),
            forget: rate(100),
            stray: rate(60),
            edge_restart: rate(250),
            edge_loss: rate(80),
            edge_hang: rate(100),
            reboot: rate(40),
            clock_jump: rate(100),
            store_rollback: rate(60),
        }
    }

    /// Whether requests may fail by what the world does, and not only by what kiln does.
    pub fn breaks_requests(&self) -> bool {
        self.death + self.hang + self.forget + self.edge_loss + self.reboot + self.edge_restart > 0
    }
}
