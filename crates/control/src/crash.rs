//! Named crash points. `KILN_CRASH_AT=POINT:N` in the environment kills the process with SIGKILL when it passes that point
//! for the N-th time, so that a test can die at any step of a rollout. Without the variable a point costs one load.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Every point, in the order of a deploy.
pub const POINTS: &[&str] = &[
    "submit.before-commit",
    "submit.after-commit",
    "plan.before-commit",
    "plan.after-commit",
    "bake.before",
    "bake.after",
    "ensure.before",
    "ensure.after",
    "set-route.before",
    "set-route.after",
    "absent.before",
    "absent.after",
];

struct Wanted {
    point: String,
    nth: u64,
    passed: AtomicU64,
}

static WANTED: OnceLock<Option<Wanted>> = OnceLock::new();

fn wanted() -> Option<&'static Wanted> {
    let parse = || {
        let text = std::env::var("KILN_CRASH_AT").ok()?;
        let (point, nth) = text.rsplit_once(':').unwrap_or((&text, "1"));
        Some(Wanted { point: point.to_owned(), nth: nth.parse().ok()?, passed: AtomicU64::new(0) })
    };
    WANTED.get_or_init(parse).as_ref()
}

/// Whether the fault `name` is planted (`KILN_MUTANT=NAME`), so that a test can prove that it would see it. Never in a
/// release build.
pub fn planted(name: &str) -> bool {
    cfg!(debug_assertions) && std::env::var_os("KILN_MUTANT").is_some_and(|planted| planted == name)
}

/// Passes the point `NOUN.WHEN`.
pub fn point(noun: &str, when: &str) {
    let Some(wanted) = wanted() else { return };
    let here = wanted.point.split_once('.').is_some_and(|(n, w)| n == noun && w == when);
    if here && wanted.passed.fetch_add(1, Ordering::Relaxed) + 1 == wanted.nth {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
