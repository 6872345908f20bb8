//! The mark: names of host objects carry a hash of the state folder's path, so that two state folders on one host do
//! not collide, and so that what a dead server left behind is known as its own.

use kiln_model::{Digest, InstanceId};
use kiln_sys::netlink::Link;
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

    /// The bridge of a block of addresses. The first has no number, so that all names begin with its name.
    pub(crate) fn bridge(&self, block: u32) -> String {
        let first = format!("kb{}", self.0);
        if block == 0 { first } else { format!("{first}s{block}") }
    }

    /// Whether an interface is one of the bridges.
    pub(crate) fn is_bridge(&self, name: &str) -> bool {
        let number = name.strip_prefix(&self.bridge(0)).map(|rest| rest.strip_prefix('s').unwrap_or(rest));
        number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
    }

    /// The hardware address of a bridge: locally administered, and stable.
    pub(crate) fn hardware(&self, block: u32) -> [u8; 6] {
        let hash = u32::from_str_radix(&self.0, 16).unwrap_or(0).to_be_bytes();
        [0x02, 0x6b, hash[0], hash[1], hash[2], hash[3] ^ block as u8]
    }

    /// The interfaces of this mark: its bridges and their ports. A port of another bridge belongs to another state folder
    /// whose mark begins alike.
    pub(crate) fn own_links(&self, links: &[Link]) -> Vec<Link> {
        let bridges: Vec<u32> = links.iter().filter(|l| self.is_bridge(&l.name)).map(|l| l.index).collect();
        let is_port = |link: &Link| {
            link.name.starts_with(&self.link_prefix()) && link.master.is_some_and(|m| bridges.contains(&m))
        };
        links.iter().filter(|link| self.is_bridge(&link.name) || is_port(link)).cloned().collect()
    }

    /// What the names of all host ends of instances' interfaces start with.
    pub(crate) fn link_prefix(&self) -> String {
        format!("k{}", &self.0[..4])
    }

    /// The host end of an instance's interface. At most 15 bytes, the kernel's limit.
    pub(crate) fn link(&self, tag: &Tag) -> String {
        format!("{}{}", self.link_prefix(), tag.0)
    }
}

/// What the host objects of one instance are named by: its cgroup and the host end of its interface. Never used twice, so
/// that what is still on its way out is not taken for what comes in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Tag(String);

impl Tag {
    /// Bytes that it has at most: an interface's name has 15, of which the mark takes five.
    const BYTES_MAX: usize = 10;

    /// Of a number that is never used twice while the host runs.
    pub(crate) fn of(mut number: u64) -> Self {
        const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
        let mut text = vec![];
        while text.len() < Self::BYTES_MAX && (number > 0 || text.is_empty()) {
            text.push(DIGITS[(number % 36) as usize]);
            number /= 36;
        }
        text.reverse();
        Self(String::from_utf8_lossy(&text).into_owned())
    }

    /// Of an instance of an older server.
    pub(crate) fn of_id(id: &InstanceId) -> Self {
        Self((id.sequence() % 10_000_000_000).to_string())
    }

    /// As a part of a name.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_into_what_the_kernel_takes() {
        let mark = Mark::of("/var/lib/kiln".as_ref());
        assert!(mark.link(&Tag::of(u64::MAX)).len() <= 15);
        assert!(mark.bridge(63).len() <= 15);
        assert!(mark.is_bridge(&mark.bridge(0)) && mark.is_bridge(&mark.bridge(63)));
        assert!(!mark.is_bridge(&format!("{}x", mark.bridge(0))));
        assert_eq!(Tag::of(36 * 36 + 35).as_str(), "10z");
    }
}
