//! Locks: exactly what a project is made of.

use serde::{Deserialize, Serialize};

/// Resolve a kiln.toml.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRequest {
    /// The text of kiln.toml.
    pub toml: String,
    /// The text of the kiln.lock that is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    /// Take the newest versions instead of keeping those that are locked.
    #[serde(default)]
    pub update: bool,
}

/// A resolved lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockView {
    /// The text of the new kiln.lock.
    pub text: String,
    /// What differs from the previous one, by name.
    pub changes: Vec<LockChange>,
    /// The sums.
    pub total: LockTotal,
}

/// A package, or an OCI base, that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockChange {
    /// Its name; for an OCI base `oci:REFERENCE`.
    pub name: String,
    /// What happens to it.
    pub kind: LockChangeKind,
    /// As it was; none if it is new.
    pub before: Option<LockedView>,
    /// As it is to be; none if it goes.
    pub after: Option<LockedView>,
    /// What uses it: images, builders as `NAME.build`, and bases as `debian:bookworm`.
    pub images: Vec<String>,
}

/// What happens to a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockChangeKind {
    /// It is new.
    Added,
    /// It goes.
    Removed,
    /// To a newer version, or to another build of the same.
    Upgraded,
    /// To an older version.
    Downgraded,
}

/// A version in a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedView {
    /// The version; for an OCI base the digest of its manifest.
    pub version: String,
    /// Bytes to fetch; 0 where that is not known.
    pub size: u64,
}

/// What a new lock changes, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockTotal {
    /// Packages in the new lock.
    pub packages: usize,
    /// Changes of this kind.
    pub added: usize,
    /// Changes of this kind.
    pub removed: usize,
    /// Changes of this kind.
    pub upgraded: usize,
    /// Changes of this kind.
    pub downgraded: usize,
    /// Bytes of all packages of the previous lock.
    pub bytes_before: u64,
    /// Bytes of all packages of the new lock.
    pub bytes_after: u64,
}
