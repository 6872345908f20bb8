//! The load balancer is replaced under load: by its command, by a newer kiln that starts, and by the keeper when it hangs.
//! Only what hangs may cost requests.

use crate::tiny::{self, all_answered};
use kiln_tests::{Kiln, free_address, kiln_program, run as run_program, wait_until};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Another build, as an upgrade of the package brings it.
fn other_build(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::copy(kiln_program(), &path).expect("a copy of kiln");
    path
}

/// Which process the server knows as the edge; it looks a few times a second.
fn edge_pid(kiln: &Kiln) -> u64 {
    let mut pid = None;
    wait_until("the server knows the edge", LIMIT, || {
        pid = tiny::status(kiln)["edge"]["pid"].as_u64();
        pid.is_some()
    });
    pid.expect("waited for")
}

/// The same, once it is another one than `before`.
fn edge_pid_after(kiln: &Kiln, before: u64) -> u64 {
    let mut pid = before;
    wait_until("another edge serves", LIMIT, || {
        pid = edge_pid(kiln);
        pid != before
    });
    pid
}

/// The one capability that it has is to listen on ports below 1024.
const RIGHTS: &str = "0000000000000400 0000000000000400 0000000000000400 1";

/// What a process may, as the kernel says; nothing of one that has ended.
fn rights(pid: u64) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let of = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
    };
    ["CapPrm:", "CapEff:", "CapBnd:", "NoNewPrivs:"].map(of).join(" ")
}

pub fn run() {
    let builds = tempfile::tempdir().expect("temporary folder");
    let mut kiln = Kiln::started(&free_address());
    let project = tiny::project();
    kiln.in_project(&project, &["deploy"]).expect(0);
    let first = edge_pid(&kiln);
    let load = tiny::load(&kiln, 200);
    assert_eq!(rights(first), RIGHTS);

    let dir = kiln.state.path().join("edge");
    let upgrade = |program: &Path| {
        run_program(Command::new(program).args(["edge", "--upgrade", "--dir"]).arg(&dir)).expect(0)
    };
    let said = upgrade(&other_build(builds.path(), "second")).stdout;
    let second = edge_pid_after(&kiln, first);
    assert_eq!(said.trim(), format!("upgraded: process {second} serves instead of {first}"));
    tiny::deploy(&kiln, &project, 2).expect(0);

    // A server that starts again with the same build leaves the edge alone; one of another build upgrades it.
    kiln.terminate();
    kiln.start_program(&builds.path().join("second"));
    assert_eq!(edge_pid(&kiln), second);
    assert!(!kiln.log().contains("of another build"), "{}", kiln.log());
    kiln.terminate();
    kiln.start_program(&other_build(builds.path(), "third"));
    let third = edge_pid_after(&kiln, second);
    assert_eq!(rights(third), RIGHTS);
    assert!(kiln.log().contains("is of another build of kiln; upgraded it"), "{}", kiln.log());
    tiny::deploy(&kiln, &project, 3).expect(0);

    let result = load.stop();
    println!("three edges: {} requests, {} failed", result["requests"], result["failed"]);
    all_answered(&result);

    // One that cannot take over.
    let why = run_program(Command::new(kiln_program()).args(["edge", "--upgrade", "--dir", "/nonexistent"]));
    assert!(why.stderr.contains("no edge to upgrade") && why.stderr.contains("hint:"), "{}", why.stderr);

    run_program(Command::new("kill").args(["-STOP", &third.to_string()])).expect(0);
    edge_pid_after(&kiln, third);
    tiny::deploy(&kiln, &project, 4).expect(0);
    let load = tiny::load(&kiln, 200);
    std::thread::park_timeout(Duration::from_millis(500));
    all_answered(&load.stop());
    kiln.down();
}
