//! Named points at which a process may be interrupted. The binary dies at one of them if `KILN_CRASH_AT=POINT:N` says so;
//! the simulator yields at each and may end the task there. Both have the same list, so that coverage can be counted.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! points {
    ($($(#[$doc:meta])* $point:ident = $name:literal,)*) => {
        /// A named point of the control plane.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Point {
            $($(#[$doc])* $point,)*
        }

        impl Point {
            /// Every point, in the order of a deploy.
            pub const ALL: &[Point] = &[$(Point::$point,)*];

            /// Its name, as `KILN_CRASH_AT` has it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Point::$point => $name,)*
                }
            }
        }
    };
}

points! {
    /// A command was decided on.
    SubmitBeforeCommit = "submit.before-commit",
    /// A command is durable, and nobody was told.
    SubmitAfterCommit = "submit.after-commit",
    /// The world was observed, and desired state not loaded yet.
    Observed = "plan.observed",
    /// A plan was made and found safe.
    PlanBeforeCommit = "plan.before-commit",
    /// A plan is durable, and none of its effects has begun.
    PlanAfterCommit = "plan.after-commit",
    /// A bake is about to begin.
    BakeBefore = "bake.before",
    /// A bake ended, and nobody knows.
    BakeAfter = "bake.after",
    /// An instance is about to be started.
    EnsureBefore = "ensure.before",
    /// An instance was started, and nobody knows.
    EnsureAfter = "ensure.after",
    /// A check is about to run.
    ProbeBefore = "probe.before",
    /// A check ran, and nobody knows.
    ProbeAfter = "probe.after",
    /// A table is about to be sent.
    SetRouteBefore = "set-route.before",
    /// A table was acknowledged, and nobody knows.
    SetRouteAfter = "set-route.after",
    /// An instance is about to be ended.
    AbsentBefore = "absent.before",
    /// An instance was ended, and nobody knows.
    AbsentAfter = "absent.after",
}

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

/// Dies with SIGKILL if this is where the environment wants it. Without the variable a point costs one load.
pub(crate) fn here(point: Point) {
    at(point.name());
}

/// The same at a point of a command that is not part of the control plane.
pub(crate) fn at(name: &str) {
    let Some(wanted) = wanted() else { return };
    let here = wanted.point == name;
    if here && wanted.passed.fetch_add(1, Ordering::Relaxed) + 1 == wanted.nth {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
