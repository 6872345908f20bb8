//! What a host looks like, so that a change can be seen: mounts, interfaces, settings, control groups, files, the clock.

use kiln_model::Digest;
use kiln_sys::netlink::Netlink;
use std::collections::BTreeMap;
use std::path::Path;

/// Settings that change by themselves, or by what others on this machine do.
const RESTLESS: [&str; 11] = [
    "fs/dentry-state",
    "fs/inode-nr",
    "fs/inode-state",
    "fs/file-nr",
    "fs/quota/",
    "kernel/ns_last_pid",
    "kernel/random/",
    "kernel/pty/nr",
    "kernel/tainted",
    "net/netfilter/nf_conntrack_count",
    "vm/stat_refresh",
];
/// Milliseconds by which the clock may drift from that of the boot.
const DRIFT_MS: u64 = 2_000;

pub struct Fingerprint {
    facts: BTreeMap<String, String>,
    clock: u64,
}

impl Fingerprint {
    pub fn take(canary: &Path) -> Self {
        let mut facts = BTreeMap::new();
        let mut fact = |name: String, value: String| drop(facts.insert(name, value));
        for line in std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines() {
            fact(format!("mount {line}"), String::new());
        }
        // Ports of the bridge come and go with instances, and the inventory counts them.
        for link in Netlink::open().unwrap().links().unwrap().iter().filter(|link| link.master.is_none()) {
            fact(format!("link {}", link.name), format!("{:?}", link.master));
        }
        settings(Path::new("/proc/sys"), &mut fact);
        groups(&mut fact);
        files(canary, &mut fact);
        let program = std::env::current_exe().unwrap();
        let own =
            ["/etc/passwd", "/etc/shadow", "/etc/group", "/etc/hosts", "/etc/ld.so.cache"].map(Path::new);
        for path in own.into_iter().chain([program.as_path()]) {
            let text = std::fs::read(path).map(|bytes| Digest::of(&bytes).to_string());
            fact(format!("file {}", path.display()), format!("{text:?}"));
        }
        for entry in std::fs::read_dir("/dev").unwrap().flatten() {
            use std::os::unix::fs::MetadataExt;
            // Loop devices come and go with other tests.
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Ok(data) = entry.metadata().filter_loops(&name) {
                fact(format!("device {name}"), format!("{:o} {} {}", data.mode(), data.rdev(), data.uid()));
            }
        }
        fact("swaps".into(), std::fs::read_to_string("/proc/swaps").unwrap_or_default());
        Self { facts, clock: kiln_sys::clock::wall_ms() - kiln_sys::clock::boot_ms() }
    }

    /// What is different later: name, and both values.
    pub fn changes(&self, later: &Self) -> BTreeMap<String, [Option<String>; 2]> {
        let names = self.facts.keys().chain(later.facts.keys());
        let both = |name: &String| [self.facts.get(name).cloned(), later.facts.get(name).cloned()];
        let mut out: BTreeMap<_, _> =
            names.map(|n| (n.clone(), both(n))).filter(|(_, [a, b])| a != b).collect();
        if self.clock.abs_diff(later.clock) > DRIFT_MS {
            out.insert("clock".into(), [self.clock, later.clock].map(|c| Some(c.to_string())));
        }
        out
    }
}

trait FilterLoops: Sized {
    fn filter_loops(self, name: &str) -> Self;
}

impl FilterLoops for std::io::Result<std::fs::Metadata> {
    fn filter_loops(self, name: &str) -> Self {
        match name.starts_with("loop") {
            true => Err(std::io::ErrorKind::Other.into()),
            false => self,
        }
    }
}

/// All of `/proc/sys` that can be read, but what belongs to an interface that comes and goes.
fn settings(directory: &Path, fact: &mut impl FnMut(String, String)) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let name = path.strip_prefix("/proc/sys").unwrap().to_string_lossy().into_owned();
        let of_a_link = ["/conf/", "/neigh/"].iter().any(|part| {
            let link = name.split_once(part).map(|(_, rest)| rest.split('/').next().unwrap_or(""));
            link.is_some_and(|link| !["all", "default", "lo"].contains(&link))
        });
        if of_a_link || RESTLESS.iter().any(|r| name.starts_with(r)) {
            continue;
        }
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => settings(&path, fact),
            Ok(kind) if kind.is_file() => {
                if let Ok(value) = std::fs::read_to_string(&path) {
                    fact(format!("setting {name}"), value);
                }
            }
            _ => {}
        }
    }
}

/// What the roots of the trees of control groups say. Groups come and go with other tests.
fn groups(fact: &mut impl FnMut(String, String)) {
    let trees = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|e| e.path());
    for tree in trees.chain(["/sys/fs/cgroup".into()]) {
        for name in ["release_agent", "notify_on_release", "cgroup.clone_children"] {
            if let Ok(value) = std::fs::read_to_string(tree.join(name)) {
                fact(format!("group {}/{name}", tree.display()), value);
            }
        }
    }
}

fn files(directory: &Path, fact: &mut impl FnMut(String, String)) {
    use std::os::unix::fs::MetadataExt;
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let data = entry.metadata().unwrap();
        let text = std::fs::read(entry.path()).map(|bytes| Digest::of(&bytes).to_string());
        let value = format!("{:o} {} {} {text:?}", data.mode(), data.uid(), data.gid());
        fact(format!("file {}", entry.path().display()), value);
    }
}
