//! `kiln doctor`: looks at the host, needs no server.

use crate::{Context, Failure};
use clap::Args;
use kiln_api::Code;
use serde::Serialize;
use std::path::Path;

/// Say whether this host is able to run kiln, and what to install.
#[derive(Debug, Args)]
pub struct DoctorArgs {}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    able: bool,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<&'static str>,
}

pub(crate) fn run(context: &Context<'_>, _: &DoctorArgs) -> Result<(), Failure> {
    let findings = look();
    let lacks = findings.iter().filter(|finding| !finding.able).count();
    let text = || {
        let line = |f: &Finding| {
            let mark = if f.able { "ok  " } else { "LACK" };
            let help = f.help.filter(|_| !f.able).map(|help| format!("\n     {help}")).unwrap_or_default();
            format!("{mark} {}: {}{help}\n", f.what, f.found)
        };
        findings.iter().map(line).collect::<String>()
    };
    if lacks == 0 {
        return context.out().answer(&serde_json::json!({ "findings": findings }), || {
            format!("{}this host is able to run kiln\n", text())
        });
    }
    if !context.out().is_json() {
        context.out().text(&text())?;
    }
    let failure = Failure::new(Code::HostUnable, format!("this host lacks {lacks} things"));
    Err(failure.hint("mend what is marked LACK").document(&serde_json::json!({ "findings": findings })))
}

fn look() -> Vec<Finding> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let status = read("/proc/self/status");
    let uid = status.lines().find_map(|l| l.strip_prefix("Uid:")).and_then(|l| l.split_whitespace().nth(1));
    let release = read("/proc/sys/kernel/osrelease").trim().to_owned();
    let filesystems = read("/proc/filesystems");
    let filesystem = |name: &str| {
        filesystems.lines().any(|line| line.split_whitespace().last() == Some(name))
            || has_module(&release, name)
    };
    let namespace = |name: &str| Path::new("/proc/self/ns").join(name).exists();
    let missing: Vec<&str> =
        ["user", "pid", "net", "mnt", "uts", "ipc", "cgroup"].into_iter().filter(|n| !namespace(n)).collect();
    let max_user: u64 = read("/proc/sys/user/max_user_namespaces").trim().parse().unwrap_or(0);
    let cgroups = cgroups(&read("/proc/self/mountinfo"), &read("/sys/fs/cgroup/cgroup.controllers"));
    let found = |able: bool| if able { "available" } else { "not available" }.to_owned();
    let git = git_version();
    vec![
        Finding {
            what: "root",
            able: uid == Some("0"),
            found: format!("uid {}", uid.unwrap_or("unknown")),
            help: Some("run `kiln serve` with sudo or as a system service"),
        },
        Finding {
            what: "kernel",
            able: version(&release) >= (6, 1),
            found: release.clone(),
            help: Some("Linux 6.1 or newer is needed, as in Debian 12"),
        },
        Finding {
            what: "namespaces",
            able: missing.is_empty() && max_user > 0,
            found: if missing.is_empty() { format!("all, at most {max_user} of users") } else { format!("no {}", missing.join(", ")) },
            help: Some("set the sysctl user.max_user_namespaces to a number above 0"),
        },
        Finding {
            what: "control groups for memory, cpu and pids",
            able: cgroups.1,
            found: cgroups.0,
            help: Some("boot with `systemd.unified_cgroup_hierarchy=1`, or mount the v1 controllers"),
        },
        Finding {
            what: "file system erofs",
            able: filesystem("erofs"),
            found: found(filesystem("erofs")),
            help: Some("load it: `modprobe erofs`"),
        },
        Finding {
            what: "file system overlay",
            able: filesystem("overlay"),
            found: found(filesystem("overlay")),
            help: Some("load it: `modprobe overlay`"),
        },
        Finding {
            what: "git",
            able: git.is_some(),
            found: git.unwrap_or_else(|| "not installed".into()),
            help: Some("apt install git"),
        },
    ]
}

fn git_version() -> Option<String> {
    let output = std::process::Command::new("git").arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn has_module(release: &str, name: &str) -> bool {
    let lists = ["modules.builtin", "modules.dep"];
    let text = |list: &&str| std::fs::read_to_string(format!("/lib/modules/{release}/{list}")).unwrap_or_default();
    lists.iter().any(|list| text(list).contains(&format!("/{name}.ko")))
}

/// What there is of control groups, and whether the three controllers are among them.
fn cgroups(mounts: &str, unified: &str) -> (String, bool) {
    const NEEDED: [&str; 3] = ["memory", "cpu", "pids"];
    if NEEDED.iter().all(|name| unified.split_whitespace().any(|c| c == *name)) {
        return ("version 2".into(), true);
    }
    let v1 = |name: &str| {
        mounts.lines().any(|line| {
            let options = line.split_once(" - cgroup ").map_or("", |(_, tail)| tail);
            options.split([' ', ',']).any(|option| option == name)
        })
    };
    let missing: Vec<&str> = NEEDED.into_iter().filter(|name| !v1(name)).collect();
    if missing.is_empty() {
        ("version 1".into(), true)
    } else {
        (format!("no {}", missing.join(", ")), false)
    }
}

fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(['.', '-']).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_of_both_versions_are_seen() {
        assert!(cgroups("", "cpuset cpu io memory pids").1);
        let v1 = "1 2 0:1 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                  1 2 0:1 / /x rw - cgroup cgroup rw,cpu,cpuacct\n1 2 0:1 / /y rw - cgroup cgroup rw,pids\n";
        assert!(cgroups(v1, "hugetlb").1);
        assert!(!cgroups(&v1[..60], "").1);
        assert_eq!(version("6.1.0-18-amd64"), (6, 1));
    }
}
