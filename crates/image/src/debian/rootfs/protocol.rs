//! What the bake and the sandboxed installer say to each other.
//!
//! To the installer, on its stdin: one byte once its id maps are written, a length (4 bytes, little endian) and a
//! [`Job`] as JSON, then the bytes of the layers below, of each package in the job's order, and of each file of a playbook.
//! From the installer:
//! the layer on its stdout, which is a file; one [`Report`] a line as JSON on its stderr. No path and no descriptor
//! of the host is ever handed over besides these three.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Bytes of a job's JSON.
pub(super) const JOB_BYTES_MAX: u32 = 4 << 20;

/// What to install.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    /// Bytes of each layer to install on, lowest first; none makes a base.
    pub below: Vec<u64>,
    /// The packages in the order in which they follow.
    pub packages: Vec<JobPackage>,
    /// Bytes that the root file system may hold.
    pub tree_bytes_max: u64,
    /// Bytes of address space of each process inside.
    pub process_bytes_max: u64,
    /// Seconds that one script, or dpkg with all its scripts, may take.
    pub script_seconds_max: u64,
    /// A playbook to run, instead of installing packages.
    pub provision: Option<ProvisionJob>,
}

/// A playbook.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ProvisionJob {
    /// Its path among its files.
    pub playbook: String,
    /// The group of hosts that the image belongs to.
    pub group: String,
    /// All files of its folder, in the order in which they follow.
    pub files: Vec<JobFile>,
}

/// A file of a playbook.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct JobFile {
    /// Its path in the folder.
    pub path: String,
    /// git's mode.
    pub mode: u32,
    /// Its size in bytes.
    pub size: u64,
}

/// One package of a job.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct JobPackage {
    /// Its name, for errors.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
}

/// A message of the installer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Report {
    /// Its namespaces exist; it waits for its id maps.
    Unshared,
    /// The layer is written.
    Done(Done),
    /// It gave up.
    Failed(Failure),
}

/// What else the bake needs to know of the result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// User names of `/etc/passwd` with (uid, gid).
    pub users: BTreeMap<String, (u32, u32)>,
    /// The time that files made by scripts carry: the newest file time in the packages, in seconds since 1970.
    pub epoch: i64,
    /// Files that lost their set-id bits or capabilities.
    #[serde(default)]
    pub disarmed: u64,
    /// Milliseconds that each step took, for people.
    pub steps: Vec<(String, u64)>,
}

/// Why the installer gave up.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Failure {
    /// The step and its causes, for people.
    pub message: String,
    /// The package at fault, if one is.
    pub package: Option<String>,
    /// The last lines that its script printed.
    pub output: String,
}
