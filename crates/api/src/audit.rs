//! The ledger: who did what, when, why, with which result.

use kiln_model::{EnvName, EnvRef, ProjectName, Wall};
use serde::{Deserialize, Serialize};

/// Which entries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditQuery {
    /// Only of this project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectName>,
    /// Only of this environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<EnvName>,
    /// The newest so many; all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<usize>,
}

/// Entries, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditView {
    /// The entries.
    pub entries: Vec<EntryView>,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryView {
    /// From 1, without gaps.
    pub sequence: u64,
    /// When.
    pub at: Wall,
    /// Who.
    pub actor: String,
    /// Of which environment.
    pub env: Option<EnvRef>,
    /// What, in dotted words.
    pub kind: String,
    /// To what.
    pub subject: String,
    /// Why, or with which result.
    pub detail: String,
    /// Hash of this entry, which covers the hash of the one before it.
    pub hash: String,
}

/// Whether the chain of hashes holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyView {
    /// Entries that were checked and hold.
    pub verified: u64,
    /// The first one that does not hold, and why.
    pub broken: Option<BrokenView>,
}

/// The first entry that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokenView {
    /// Its number.
    pub sequence: u64,
    /// Why it does not hold.
    pub reason: String,
}
