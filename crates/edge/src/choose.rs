//! Which target of a pool gets a request, and whether a failed attempt may be repeated.

use crate::limits::{RETRY_TOKENS_MAX, RETRY_TOKENS_PER_REQUEST};
use crate::table::Upstream;
use crate::target::TargetState;
use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering;

thread_local! {
    static RANDOM: Cell<u64> = Cell::new(RandomState::new().hash_one(0) | 1);
    static TOKENS: Cell<f64> = const { Cell::new(RETRY_TOKENS_MAX) };
}

/// A number of the thread's xorshift64* generator: for spreading, not for secrets.
pub(crate) fn random() -> u64 {
    RANDOM.with(|state| {
        let mut x = state.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        state.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    })
}

/// Every request pays a little into the budget.
pub(crate) fn earn() {
    TOKENS.set((TOKENS.get() + RETRY_TOKENS_PER_REQUEST).min(RETRY_TOKENS_MAX));
}

/// Takes a retry out of the budget, if there is one.
pub(crate) fn spend() -> bool {
    let left = TOKENS.get() - 1.0;
    if left >= 0.0 {
        TOKENS.set(left);
    }
    left >= 0.0
}

/// The one with fewer requests in flight of two random targets that are not ejected. If all are, any: an unhealthy
/// instance may answer, none cannot. Never one of `tried`.
pub(crate) fn target(pool: &Upstream, tried: &[u64], thread: usize) -> Option<Arc<TargetState>> {
    let fresh = |t: &&Arc<TargetState>| !tried.contains(&t.id);
    let n_well = pool.targets.iter().filter(fresh).filter(|t| !t.ejected()).count();
    let n_any = pool.targets.iter().filter(fresh).count();
    let (well, n) = if n_well > 0 { (true, n_well) } else { (false, n_any) };
    if n == 0 {
        return None;
    }
    let nth = |k: u64| pool.targets.iter().filter(fresh).filter(|t| !well || !t.ejected()).nth(k as usize);
    let first = random() % n as u64;
    let second = if n > 1 { (first + 1 + random() % (n as u64 - 1)) % n as u64 } else { first };
    // A target may be ejected by another thread between counting and here; then the other one is taken.
    let (a, b) = match (nth(first), nth(second)) {
        (Some(a), Some(b)) => (a, b),
        (Some(t), None) | (None, Some(t)) => (t, t),
        (None, None) => return pool.targets.iter().find(fresh).cloned(),
    };
    let load = |t: &Arc<TargetState>| t.cells.of(thread).in_flight.load(Ordering::Relaxed);
    Some(if load(b) < load(a) { b.clone() } else { a.clone() })
}
