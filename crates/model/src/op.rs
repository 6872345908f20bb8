//! Effects on the world. An [`Op`] row is durable before its effect starts, and gone when its effect is known to
//! have happened.

use crate::digest::Digest;
use crate::fence::{OpId, Revision};
use crate::ids::{EnvRef, ImageName, InstanceId, ReleaseNumber};
use crate::route::Generation;
use crate::time::Boot;
use serde::{Deserialize, Serialize};

/// What is done, to what. At most one effect of a key is under way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum OpKey {
    /// Bake an image of a release.
    Bake {
        /// Whose.
        env: EnvRef,
        /// Of which release.
        release: ReleaseNumber,
        /// Which.
        image: ImageName,
    },
    /// Make an instance exist.
    Ensure {
        /// Which.
        instance: InstanceId,
    },
    /// Make an instance not exist.
    Absent {
        /// Which.
        instance: InstanceId,
    },
    /// Give the edge a table.
    SetRoute {
        /// Which.
        generation: Generation,
        /// Its content.
        digest: Digest,
    },
}

impl OpKey {
    /// The word for the ledger and crash points.
    pub fn word(&self) -> &'static str {
        match self {
            OpKey::Bake { .. } => "bake",
            OpKey::Ensure { .. } => "ensure",
            OpKey::Absent { .. } => "absent",
            OpKey::SetRoute { .. } => "set-route",
        }
    }
}

/// The intent row of an effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Op {
    /// Names this effect.
    pub id: OpId,
    /// What it does.
    pub key: OpKey,
    /// The plan that asked for it.
    pub revision: Revision,
    /// How often it was tried.
    pub attempts: u32,
    /// Not to be tried before.
    pub not_before: Boot,
    /// Why the last try failed.
    pub last_error: Option<String>,
}
