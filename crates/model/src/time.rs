//! Two clocks that are never mixed: [`Boot`] for deadlines, [`Wall`] for people.

use serde::{Deserialize, Serialize};
use std::ops::{Add, Sub};

/// A span of time in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    /// A span of whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds * 1000)
    }

    /// As the standard library's type.
    pub const fn duration(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }
}

impl std::fmt::Display for Millis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            ms if ms < 1000 => write!(f, "{ms} ms"),
            ms if ms < 120_000 => write!(f, "{}.{} s", ms / 1000, ms % 1000 / 100),
            ms if ms < 7_200_000 => write!(f, "{} min", ms / 60_000),
            ms => write!(f, "{} h", ms / 3_600_000),
        }
    }
}

/// Milliseconds since this host booted, suspend included (`CLOCK_BOOTTIME`). All deadlines are on this clock: the
/// wall clock may jump. Meaningless after a reboot; see [`crate::mutation::Mutation::Rebase`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Boot(pub u64);

impl Boot {
    /// The time that passed since `earlier`; zero if `earlier` is later.
    pub fn since(self, earlier: Boot) -> Millis {
        Millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Millis> for Boot {
    type Output = Boot;
    fn add(self, span: Millis) -> Boot {
        Boot(self.0.saturating_add(span.0))
    }
}

impl Sub<Millis> for Boot {
    type Output = Boot;
    fn sub(self, span: Millis) -> Boot {
        Boot(self.0.saturating_sub(span.0))
    }
}

/// Milliseconds since 1970-01-01 UTC, for display and records only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Wall(pub u64);
