//! The mark: names of host objects carry a hash of the state folder's path, so that two state folders on one host do
//! not collide, and so that what a dead server left behind is known as its own.

use kiln_model::{Digest, InstanceId};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The mark of one state folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark(String);

impl Mark {
    /// Of the state folder at this canonical path.
    pub(crate) fn of(state: &Path) -> Self {
        use std::os::unix::ffi::OsStrExt;
        Self(Digest::of(state.as_os_str().as_bytes()).hex()[..8].to_owned())
    }

    /// The cgroup that holds those of all instances.
    pub(crate) fn cgroup(&self) -> String {
        format!("kiln-{}", self.0)
    }

    /// The bridge.
    pub(crate) fn bridge(&self) -> String {
        format!("kb{}", self.0)
    }

    /// The bridge's hardware address: locally administered, and stable.
    pub(crate) fn hardware(&self) -> [u8; 6] {
        let hash = u32::from_str_radix(&self.0, 16).unwrap_or(0).to_be_bytes();
        [0x02, 0x6b, hash[0], hash[1], hash[2], hash[3]]
    }

    /// What the names of all host ends of instances' interfaces start with.
    pub(crate) fn link_prefix(&self) -> String {
        format!("k{}", &self.0[..4])
    }

    /// The host end of an instance's interface. At most 15 bytes, the kernel's limit, up to sequence 9999999999.
    pub(crate) fn link(&self, id: &InstanceId) -> String {
        format!("{}{}", self.link_prefix(), id.sequence() % 10_000_000_000)
    }
}
