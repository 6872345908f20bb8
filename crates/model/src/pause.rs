//! What does not move although it is desired: a pause, which somebody asked for, and a hold, which kiln puts on what it
//! cannot read or plan, so that it delays nothing else.

use crate::ids::{EnvRef, InstanceId};
use crate::time::{Boot, Millis, Wall};
use serde::{Deserialize, Serialize};

/// Somebody stopped effects: no bake, start, destroy or switch begins. Observation goes on and the edge serves on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// Who asked.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// Since when, for deadlines.
    pub since: Boot,
    /// Since when, for people.
    pub at: Wall,
}

impl Pause {
    /// The time by which the end of this pause at `now` moves deadlines, if `other` holds on: what both cover is left to
    /// the other.
    pub fn span(&self, now: Boot, other: Option<&Pause>) -> Millis {
        other.map_or(now.since(self.since), |other| other.since.since(self.since))
    }
}

/// Why an environment is left as it is, by kiln itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Since when.
    pub since: Boot,
    /// What cannot be done with it, in one line.
    pub reason: String,
}

/// A row of the store that cannot be read. Its environment is held: what is not known is neither used nor removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// Whose; none if that is not known either, and then every environment is held.
    pub env: Option<EnvRef>,
    /// The instance whose row it is, if it is one's.
    pub instance: Option<InstanceId>,
    /// Which row, in words: `release 4`.
    pub what: String,
    /// Why it cannot be read.
    pub error: String,
}
