//! Counts what a state folder has on this host, for tests of leaks and for `kiln doctor`.

use super::folder::{GONE, Root};
use super::mark::Mark;
use kiln_sys::cgroup::{Choice, Trees};
use kiln_sys::netlink::Netlink;
use std::path::Path;

/// What there is. All zero means that nothing of any instance is left but black boxes and tombstones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Supervisors, pids 1, and processes in instances' groups.
    pub processes: usize,
    /// Directories of groups, the common parent included, in all trees.
    pub cgroups: usize,
    /// Interfaces, the bridge included, in this network namespace.
    pub links: usize,
    /// Addresses that are given to instances.
    pub addresses: usize,
    /// Mounts in this mount namespace whose place or source is in the state folder.
    pub mounts: usize,
    /// Folders of instances that are not gone.
    pub dirs: usize,
}

/// Counts. What cannot be read counts as nothing; run it as root.
pub fn inventory(state: &Path) -> Inventory {
    let Ok(state) = state.canonicalize() else { return Inventory::default() };
    let (root, mark) = (Root::of(&state), Mark::of(&state));
    let mut out = Inventory::default();
    let mut pids = supervisors(&root.0);
    if let Ok(trees) = Trees::detect(Choice::Auto) {
        for name in trees.children(&mark.cgroup()) {
            pids.extend(trees.group(&mark.cgroup(), &name).processes());
        }
        out.cgroups = trees.count(&mark.cgroup());
    }
    pids.sort_unstable();
    pids.dedup();
    out.processes = pids.len();
    if let Ok(links) = Netlink::open().and_then(|host| host.links()) {
        let bridge = links.iter().find(|l| l.name == mark.bridge()).map(|l| l.index);
        let ours = |l: &&kiln_sys::netlink::Link| {
            l.name == mark.bridge()
                || l.name.starts_with(&mark.link_prefix()) && (bridge.is_none() || l.master == bridge)
        };
        out.links = links.iter().filter(ours).count();
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let inside = format!("{}/", state.display());
    out.mounts = mounts.lines().filter(|line| line.contains(&inside)).count();
    for id in root.ids().unwrap_or_default() {
        let folder = root.folder(&id);
        if !folder.path.join(GONE).exists() {
            out.dirs += 1;
            out.addresses += usize::from(folder.path.join(super::folder::SPEC).exists());
        }
    }
    out
}

/// Supervisors and pids 1 are known by their command line, which names the instance's folder. Zombies have none.
fn supervisors(root: &Path) -> Vec<i32> {
    let inside = format!("{}/", root.display());
    let Ok(entries) = std::fs::read_dir("/proc") else { return vec![] };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str().and_then(|n| n.parse().ok()));
    let ours = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments: Vec<&[u8]> = line.split(|b| *b == 0).collect();
        arguments.get(1) == Some(&&b"internal"[..])
            && arguments.get(2).is_some_and(|part| [&b"supervise"[..], b"machine"].contains(part))
            && arguments.get(3).is_some_and(|path| path.starts_with(inside.as_bytes()))
    };
    pids.filter(ours).collect()
}
