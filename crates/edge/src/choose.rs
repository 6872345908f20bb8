//! Which target of a pool gets a request, and whether a failed attempt may be repeated.

use crate::admission::Slot;
use crate::limits::{RETRY_TOKENS_MAX, RETRY_TOKENS_PER_REQUEST};
use crate::table::Upstream;
use crate::target::TargetState;
use kiln_model::policy::InFlight;
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

/// An instance for a request, and the place at it that the request holds if its route has a bound.
pub(crate) type Chosen = (Arc<TargetState>, Option<Slot>);

/// Why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoTarget {
    /// There is none that was not tried.
    Nobody,
    /// They all have as much as they may.
    Full,
}

/// For a request that comes: as [`admitted`], but nobody overtakes those who wait. `waited` tells that it is one of them.
pub(crate) fn first(
    pool: &Upstream,
    tried: &[u64],
    thread: usize,
    bound: Option<&InFlight>,
    waited: bool,
) -> Result<Chosen, NoTarget> {
    if bound.is_some() && !waited && pool.line.waiting() > 0 {
        return Err(if pool.targets.is_empty() { NoTarget::Nobody } else { NoTarget::Full });
    }
    admitted(pool, tried, thread, bound)
}

/// As [`target`], with a place if there is a bound.
pub(crate) fn admitted(
    pool: &Upstream,
    tried: &[u64],
    thread: usize,
    bound: Option<&InFlight>,
) -> Result<Chosen, NoTarget> {
    let Some(bound) = bound else {
        return target(pool, tried, thread).map(|t| (t, None)).ok_or(NoTarget::Nobody);
    };
    // Those who are full are as if they had been tried; but an ejected one is no way around them.
    let well_only = pool.targets.iter().any(|t| !tried.contains(&t.id) && !t.ejected());
    let mut out = tried.to_vec();
    let no_way =
        |t: &&Arc<TargetState>| t.admitted.load(Ordering::Relaxed) >= bound.max || (well_only && t.ejected());
    out.extend(pool.targets.iter().filter(no_way).map(|t| t.id));
    while let Some(target) = target(pool, &out, thread) {
        if let Some(slot) = Slot::take(&target, &pool.line, bound.max) {
            return Ok((target, Some(slot)));
        }
        // Another thread was faster.
        out.push(target.id);
    }
    let any = pool.targets.iter().any(|t| !tried.contains(&t.id));
    Err(if any { NoTarget::Full } else { NoTarget::Nobody })
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
