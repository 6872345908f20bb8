//! What the ledger records: who did what to what, when, why, with which result.

use crate::ids::EnvRef;
use crate::time::Wall;
use serde::{Deserialize, Serialize};

/// One act. Never holds a secret value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub at: Wall,
    /// Who: `uid 1000 (ann)`, or `kiln` for the planner.
    pub actor: String,
    /// Whose environment, if of one.
    pub env: Option<EnvRef>,
    /// What, in dotted words: `rollout.taken_back`.
    pub kind: String,
    /// To what: `release 4`, `instance web-17`.
    pub subject: String,
    /// Why, or with which result, in one line.
    pub detail: String,
}
