//! Who runs it: root, with which capabilities, in or outside of a container.

use super::{Finding, Level, read};
use std::path::Path;

/// Capabilities that `kiln serve` needs, by number (linux/capability.h).
const CAPABILITIES: [(u32, &str); 11] = [
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (3, "CAP_FOWNER"),
    (5, "CAP_KILL"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (8, "CAP_SETPCAP"),
    (12, "CAP_NET_ADMIN"),
    (18, "CAP_SYS_CHROOT"),
    (21, "CAP_SYS_ADMIN"),
    (27, "CAP_MKNOD"),
];

/// A field of /proc/self/status.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

pub(super) fn is_root(status: &str) -> bool {
    // Real, effective, saved and file system user.
    field(status, "Uid").and_then(|ids| ids.split_whitespace().nth(1)) == Some("0")
}

pub(super) fn rights(status: &str) -> Finding {
    if !is_root(status) {
        return Finding::bad("root", Level::Missing, "not root", "run it with `sudo`");
    }
    let held = field(status, "CapEff").and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
    let lacking: Vec<&str> =
        CAPABILITIES.iter().filter(|(bit, _)| held & (1 << bit) == 0).map(|(_, name)| *name).collect();
    if lacking.is_empty() {
        return Finding::ok("root", "root with all capabilities that are needed");
    }
    let found = format!("root without {}", lacking.join(", "));
    let fix = "run it outside of a container, or give the container these capabilities";
    Finding::bad("root", Level::Missing, found, fix)
}

pub(super) fn container() -> Option<Finding> {
    let marks = ["/.dockerenv", "/run/.containerenv"].into_iter().find(|path| Path::new(path).exists());
    contained(marks, &read("/run/systemd/container"), &read("/proc/self/uid_map"))
}

/// Being contained is no lack by itself: what it takes away is found by the trials.
fn contained(mark: Option<&str>, manager: &str, ids: &str) -> Option<Finding> {
    const NAME: &str = "container";
    let fix = "run it on the host itself; in a container it is not tested";
    // The host's own map: all ids, as they are.
    let is_mapped = !ids.is_empty() && ids.split_whitespace().ne(["0", "0", "4294967295"]);
    if is_mapped {
        return Some(Finding::bad(NAME, Level::Missing, "root of a user namespace, not of the host", fix));
    }
    let inside = Some(manager.trim()).filter(|manager| !manager.is_empty()).or(mark)?;
    Some(Finding::ok(NAME, format!("inside one (`{inside}`); what that takes away is found by the trials")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_read_from_the_status() {
        let root = "Name:\tx\nUid:\t0\t0\t0\t0\nCapEff:\t000001fffeffffff\n";
        assert_eq!(rights(root).level, Level::Ok);
        let container = root.replace("000001fffeffffff", "00000000a80425fb");
        let finding = rights(&container);
        assert!(finding.level == Level::Missing && finding.found.contains("CAP_SYS_ADMIN"), "{finding:?}");
        assert!(!finding.found.contains("CAP_CHOWN"), "{finding:?}");
        assert_eq!(rights("Uid:\t1000\t1000\t1000\t1000\n").found, "not root");
        assert_eq!(rights("").level, Level::Missing);
    }

    #[test]
    fn containers_are_seen() {
        let host = "         0          0 4294967295\n";
        let level = |finding: Option<Finding>| finding.map(|finding| finding.level);
        assert_eq!(level(contained(None, "", host)), None);
        assert_eq!(level(contained(Some("/.dockerenv"), "", host)), Some(Level::Ok));
        assert!(contained(None, "lxc\n", host).unwrap().found.contains("`lxc`"));
        assert_eq!(level(contained(None, "", "0 100000 65536\n")), Some(Level::Missing));
    }
}
