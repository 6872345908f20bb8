//! What is needed to go on with state that is older than the world: a backup that was restored, or a database that lost its
//! end. The world remembers of whom it heard, and each instance what it is of.

use crate::fence::Fence;
use crate::ids::InstanceId;
use crate::instance::InstanceSpec;
use crate::release::Release;
use crate::time::{Boot, Wall};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The recovery hold: the state is older than the world, or may be. Nothing begins and nothing is concluded until somebody
/// says `kiln recover`, or until both are seen to agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// What showed it, in one line.
    pub reason: String,
    /// Since when, for ages.
    pub since: Boot,
    /// Since when, for people.
    pub at: Wall,
}

/// What an instance is of: enough to write its row and the row of its release again. It lies with the instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Its release, as it was sealed. `served` is always false here: it changes, and a specification does not.
    pub release: Release,
    /// Which of the service's replicas.
    pub slot: u32,
}

impl Origin {
    /// Of a slot of a release.
    pub fn new(release: &Release, slot: u32) -> Self {
        Self { release: Release { served: false, ..release.clone() }, slot }
    }
}

/// What a provider remembers beside what it shows on every look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// The newest fence of any effect that it took.
    pub newest: Fence,
    /// The highest number of an instance that it ever had, also of those that were destroyed; 0 if it had none.
    pub last_instance: u64,
    /// What each instance that is there was started with.
    pub specs: BTreeMap<InstanceId, InstanceSpec>,
}
