//! Control groups: which tree has which controller, whether joining is fast, whether groups can be made.

use super::{Finding, Level, read};
use std::path::Path;

const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];
const NAME: &str = "cgroups";

pub(super) fn examine() -> Vec<Finding> {
    let mounts = read("/proc/self/mountinfo");
    let v2 = trees(&mounts).into_iter().find(|tree| tree.is_v2).map(|tree| tree.path.to_owned());
    let file = |name: &str| v2.as_ref().map(|path| read(&format!("{path}/{name}"))).unwrap_or_default();
    let layout = Layout::of(&mounts, &file("cgroup.controllers"));
    let mut findings = vec![layout.controllers()];
    findings.extend(layout.joins());
    if let Some(path) = &v2 {
        // The one group without this file is the root of all.
        let is_nested = Path::new(path).join("cgroup.type").exists();
        let root =
            Root { is_nested, enabled: file("cgroup.subtree_control"), processes: file("cgroup.procs") };
        findings.extend(root.finding(&layout));
    }
    findings
}

struct Tree<'a> {
    path: &'a str,
    is_v2: bool,
    options: &'a str,
}

fn trees(mounts: &str) -> Vec<Tree<'_>> {
    mounts.lines().filter_map(parse).collect()
}

fn parse(line: &str) -> Option<Tree<'_>> {
    let (head, tail) = line.split_once(" - ")?;
    let mut tail = tail.split(' ');
    let kind = tail.next()?;
    let options = tail.nth(1).unwrap_or("");
    let path = head.split(' ').nth(4)?;
    matches!(kind, "cgroup" | "cgroup2").then_some(Tree { path, is_v2: kind == "cgroup2", options })
}

/// Where each controller is.
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    v2: Option<String>,
    /// In the order of [`CONTROLLERS`]: `v2`, `v1`, or nowhere.
    places: [Option<&'static str>; 3],
    /// A v1 tree, to name in a command.
    v1: Option<String>,
    is_quick: bool,
}

impl Layout {
    fn of(mounts: &str, unified: &str) -> Self {
        let trees = trees(mounts);
        let v2 = trees.iter().find(|tree| tree.is_v2);
        let has = |tree: &Tree<'_>, name: &str| tree.options.split(',').any(|option| option == name);
        let places = CONTROLLERS.map(|name| {
            if v2.is_some() && unified.split_whitespace().any(|listed| listed == name) {
                return Some("v2");
            }
            trees.iter().any(|tree| !tree.is_v2 && has(tree, name)).then_some("v1")
        });
        let v1 = trees.iter().find(|tree| !tree.is_v2 && CONTROLLERS.iter().any(|name| has(tree, name)));
        Self {
            v2: v2.map(|tree| tree.path.to_owned()),
            v1: v1.map(|tree| tree.path.to_owned()),
            places,
            is_quick: trees.iter().any(|tree| has(tree, "favordynmods")),
        }
    }

    fn controllers(&self) -> Finding {
        let lacking: Vec<&str> =
            CONTROLLERS.iter().zip(self.places).filter(|(_, p)| p.is_none()).map(|(n, _)| *n).collect();
        if !lacking.is_empty() {
            let fix = "mount cgroup v2: `mount -t cgroup2 none /sys/fs/cgroup`, or boot with systemd; a kernel command line \
                 with `cgroup_disable=` or `cgroup_enable=` decides as well";
            return Finding::bad(NAME, Level::Missing, format!("no tree has {}", lacking.join(", ")), fix);
        }
        let layout = match (&self.v2, self.places.contains(&Some("v1"))) {
            (Some(_), false) => "v2",
            (Some(_), true) => "hybrid",
            (None, _) => "v1",
        };
        let each = CONTROLLERS
            .iter()
            .zip(self.places)
            .map(|(name, place)| format!("{name} {}", place.unwrap_or("none")));
        let found = format!("{layout}: {}", each.collect::<Vec<_>>().join(", "));
        if self.v2.is_none() {
            let fix = "`mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified`: instances are born in their \
                 group and killed as one";
            return Finding::bad(NAME, Level::Warning, found, fix);
        }
        Finding::ok(NAME, found)
    }

    /// A process is moved into a v1 group, and that waits for all processors unless the host is told not to.
    fn joins(&self) -> Option<Finding> {
        const NAME: &str = "cgroup joins";
        let v1 = self.v1.as_ref()?;
        if self.is_quick {
            return Some(Finding::ok(NAME, "quick (`favordynmods`)"));
        }
        let tree = self.v2.as_ref().unwrap_or(v1);
        let found = "slow: joining a v1 group may take 12 ms, unless `favordynmods` is on (some kernels do not show it)";
        let fix = format!("`mount -o remount,favordynmods {tree}`, after each boot");
        Some(Finding::bad(NAME, Level::Warning, found, &fix))
    }
}

/// What is seen of the root of the v2 tree.
struct Root {
    /// It is a group of a larger tree, as in a container.
    is_nested: bool,
    enabled: String,
    processes: String,
}

impl Root {
    /// Only in a nested tree something can be amiss: there, a group that has processes cannot hand on controllers.
    fn finding(&self, layout: &Layout) -> Option<Finding> {
        const NAME: &str = "cgroup root";
        if !self.is_nested {
            return None;
        }
        let enabled = |name: &&str| self.enabled.split_whitespace().any(|listed| listed == *name);
        let wanted = CONTROLLERS.iter().zip(layout.places).filter(|(_, place)| *place == Some("v2"));
        let lacking: Vec<&str> = wanted.map(|(name, _)| *name).filter(|name| !enabled(name)).collect();
        if lacking.is_empty() || self.processes.trim().is_empty() {
            return Some(Finding::ok(NAME, "a group of a larger tree, which hands on its controllers"));
        }
        let found = format!(
            "a group of a larger tree: processes in it keep {} from groups below",
            lacking.join(", ")
        );
        let fix = "run the container with the host's cgroup namespace (`--cgroupns=host`), or move those processes into a \
             group of their own first";
        Some(Finding::bad(NAME, Level::Missing, found, fix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str =
        "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot";
    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";

    #[test]
    fn layouts_are_told_apart() {
        let v1 = HYBRID.rsplit_once('\n').unwrap().0;
        let cases = [
            (V2, "cpuset cpu io memory pids", Level::Ok, "v2: memory v2, cpu v2, pids v2"),
            (HYBRID, "hugetlb", Level::Ok, "hybrid: memory v1, cpu v1, pids v1"),
            (HYBRID, "pids", Level::Ok, "hybrid: memory v1, cpu v1, pids v2"),
            (v1, "", Level::Warning, "v1: memory v1, cpu v1, pids v1"),
            (V2, "cpu pids", Level::Missing, "no tree has memory"),
            ("", "", Level::Missing, "no tree has memory, cpu, pids"),
        ];
        for (mounts, unified, level, found) in cases {
            let finding = Layout::of(mounts, unified).controllers();
            assert_eq!((finding.level, finding.found.as_str()), (level, found));
        }
    }

    #[test]
    fn joins_of_v1_groups_are_slow_unless_told_otherwise() {
        assert_eq!(Layout::of(V2, "memory cpu pids").joins(), None);
        let slow = Layout::of(HYBRID, "hugetlb").joins().unwrap();
        let fix = slow.fix.unwrap();
        assert!(fix.starts_with("`mount -o remount,favordynmods /sys/fs/cgroup/unified`"), "{fix}");
        let quick = HYBRID.replace("cgroup2 cgroup2 rw", "cgroup2 cgroup2 rw,favordynmods");
        assert_eq!(Layout::of(&quick, "hugetlb").joins().unwrap().level, Level::Ok);
        let v1 = HYBRID.rsplit_once('\n').unwrap().0;
        assert!(
            Layout::of(v1, "")
                .joins()
                .unwrap()
                .fix
                .unwrap()
                .contains("favordynmods /sys/fs/cgroup/cpu,cpuacct`")
        );
    }

    #[test]
    fn a_nested_root_must_hand_on_its_controllers() {
        let layout = Layout::of(V2, "memory cpu pids");
        let finding = |is_nested, enabled: &str, processes: &str| {
            let (enabled, processes) = (enabled.to_owned(), processes.to_owned());
            Root { is_nested, enabled, processes }.finding(&layout)
        };
        assert_eq!(finding(false, "", "1\n"), None);
        assert_eq!(finding(true, "cpu memory pids", "1\n").unwrap().level, Level::Ok);
        assert_eq!(finding(true, "", "").unwrap().level, Level::Ok);
        let stuck = finding(true, "cpu", "1\n").unwrap();
        assert!(stuck.level == Level::Missing && stuck.found.contains("keep memory, pids from"), "{stuck:?}");
    }
}
