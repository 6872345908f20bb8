//! What makes a stale or repeated effect harmless.

use crate::ids::number;
use serde::{Deserialize, Serialize};
use std::fmt;

number!(
    /// Counts restores of kiln's own state from a backup. Higher than any seen before means: a new history began.
    Incarnation
);
number!(
    /// Counts servers that held the lease of a state folder; a new server has a higher one.
    Epoch
);
number!(
    /// Counts commits to the store. A plan names the revision that it was made from.
    Revision
);
number!(
    /// Names one effect for ever.
    OpId
);

/// Carried by every effect. A receiver keeps the highest it has seen for an object and refuses older ones, and the
/// same one with other content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fence {
    /// History.
    pub incarnation: Incarnation,
    /// Server.
    pub epoch: Epoch,
    /// Plan.
    pub revision: Revision,
    /// Effect. Not compared by receivers, kept for the trace.
    pub op: OpId,
}

impl Fence {
    /// The part that receivers compare.
    pub fn order(&self) -> (Incarnation, Epoch, Revision) {
        (self.incarnation, self.epoch, self.revision)
    }

    /// The part that tells one server from a later one.
    pub fn server(&self) -> (Incarnation, Epoch) {
        (self.incarnation, self.epoch)
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}/{}", self.incarnation, self.epoch, self.revision, self.op)
    }
}
