//! Counts what a state folder has on this host, for tests of leaks and for `kiln doctor`.

use super::folder::{GONE, Record, Root, SPEC};
use super::mark::Mark;
use super::policy;
use super::shim::SHIM;
use kiln_sys::cgroup::{Choice, Trees};
use kiln_sys::netlink::Netlink;
use std::path::Path;

/// What there is. All zero means that nothing of any instance is left but black boxes and tombstones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Pids 1 of instances and their programs.
    pub processes: usize,
    /// Directories of instances' groups, the common parent included, in all trees.
    pub cgroups: usize,
    /// Interfaces of instances, and bridges, in this network namespace.
    pub links: usize,
    /// Tables of the packet filter, at most one.
    pub tables: usize,
    /// What instances may reach: elements of its sets.
    pub rules: usize,
    /// Addresses that are given to instances.
    pub addresses: usize,
    /// Mounts in this mount namespace whose place or source is in the state folder.
    pub mounts: usize,
    /// Folders of instances that are not gone.
    pub dirs: usize,
    /// Processes, group directories, interfaces and folders that belong to no instance: what a server keeps ready, or,
    /// without a server, what one left.
    pub spare: usize,
}

/// Counts. What cannot be read counts as nothing; run it as root.
pub fn inventory(state: &Path) -> Inventory {
    let Ok(state) = state.canonicalize() else { return Inventory::default() };
    let (root, mark) = (Root::of(&state), Mark::of(&state));
    let ids = root.ids().unwrap_or_default();
    let records: Vec<Record> = ids.iter().filter_map(|id| root.folder(id).read(SPEC)).collect();
    let mut out = Inventory::default();
    let (mut pids, mut spare) = (machines(&root.0), zygotes(&root.0));
    if let Ok(trees) = Trees::detect(Choice::Auto) {
        out.cgroups = trees.count(&mark.cgroup());
        for name in trees.children(&mark.cgroup()) {
            let group = trees.group(&mark.cgroup(), &name);
            if records.iter().any(|record| record.group() == name) {
                pids.extend(group.processes());
            } else {
                spare.extend(group.processes());
                let n_directories = group.count();
                out.cgroups -= n_directories;
                out.spare += n_directories;
            }
        }
    }
    for pids in [&mut pids, &mut spare] {
        pids.sort_unstable();
        pids.dedup();
    }
    out.processes = pids.len();
    out.spare += spare.len() + root.spare().unwrap_or_default().len();
    if let Ok(links) = Netlink::open().and_then(|host| host.links()) {
        let names: Vec<String> = records.iter().map(|record| record.link(&mark)).collect();
        for link in mark.own_links(&links) {
            let is_owned = mark.is_bridge(&link.name) || names.contains(&link.name);
            *(if is_owned { &mut out.links } else { &mut out.spare }) += 1;
        }
    }
    (out.tables, out.rules) = policy::count(&mark).unwrap_or_default();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let inside = format!("{}/", state.display());
    out.mounts = mounts.lines().filter(|line| line.contains(&inside)).count();
    for id in ids {
        let folder = root.folder(&id);
        if !folder.path.join(GONE).exists() {
            out.dirs += 1;
            out.addresses += usize::from(folder.path.join(super::folder::SPEC).exists());
        }
    }
    out
}

/// Parents of virtual machines are known by their command line, which names the instance's folder. They are in no group.
fn machines(root: &Path) -> Vec<i32> {
    let inside = format!("{}/", root.display());
    parts(|arguments| {
        arguments.get(1..3) == Some(&[b"internal", b"machine"])
            && arguments.get(3).is_some_and(|path| path.starts_with(inside.as_bytes()))
    })
}

/// Processes whose arguments `ours` knows. Zombies have none.
fn parts(ours: impl Fn(&[&[u8]]) -> bool) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return vec![] };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str().and_then(|n| n.parse().ok()));
    let is_it = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        ours(&line.split(|byte| *byte == 0).collect::<Vec<_>>())
    };
    pids.filter(is_it).collect()
}

/// Zygotes are known by their command line, which names the folder of all instances. What they cloned and nobody has given
/// a name to yet has the same, and is in a group.
fn zygotes(root: &Path) -> Vec<i32> {
    use std::os::unix::ffi::OsStrExt;
    let own = [&b"internal"[..], b"zygote", root.as_os_str().as_bytes()];
    let mut pids = parts(|arguments| arguments.get(1..4) == Some(&own));
    pids.retain(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() != SHIM)
    });
    pids
}
