//! What happens on the emulated host, by the real programs: doctor, serve, deploy, deploy, rollback, down.

use super::reboot;
use crate::tiny;
use kiln_tests::{Kiln, free_address, kiln_program, run as run_program, wait_until};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Everything is emulated, on cores that others use as well.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Where the local provider's suite is, if it is to run as well.
pub const SUITE: &str = "/suite";

/// Asks the edge for the version; empty if there is no answer.
pub fn version(edge: &str) -> String {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(edge)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET /api/version HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    ask().unwrap_or_default()
}

#[track_caller]
fn serves(kiln: &Kiln, marker: &str) {
    for _ in 0..5 {
        let answer = version(&kiln.edge);
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(marker), "{marker}: {answer:?}");
    }
}

/// The host is what the case promises to test.
fn is_old() {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("osrelease");
    assert!(release.starts_with("6.1."), "{release}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let groups: Vec<&str> = mounts.lines().filter(|line| line.contains(" - cgroup")).collect();
    assert!(matches!(groups[..], [one] if one.contains(" - cgroup2 ")), "{groups:?}");
    println!("host: Linux {}, cgroup v2 alone", release.trim());
}

/// Doctor names what is missing with the command that mends it; that command is run as it stands, and then nothing is.
fn doctor() {
    let examine = || run_program(Command::new(kiln_program()).args(["doctor", "--json"]));
    assert!(!Path::new("/dev/loop-control").exists(), "nobody loaded `loop` yet");
    let before = examine().expect(1).json();
    let findings = before["findings"].as_array().expect("findings");
    let missing: Vec<_> = findings.iter().filter(|finding| finding["level"] == "missing").collect();
    assert!(matches!(missing[..], [one] if one["name"] == "layers"), "{missing:#?}");
    let fix = missing[0]["fix"].as_str().expect("a fix");
    let mut words = fix.split('`').nth(1).expect("a command").split(' ');
    run_program(Command::new(words.next().expect("a program")).args(words)).expect(0);
    let after = examine().expect(0).json();
    for finding in after["findings"].as_array().expect("findings") {
        println!("doctor: {} {}: {}", finding["level"], finding["name"], finding["found"]);
    }
    assert_eq!(after["able"], true, "{after:#}");
}

/// The status that asks for another boot.
pub const AGAIN: i32 = 77;

pub fn run() {
    if reboot::is_second() {
        return reboot::after();
    }
    first_boot();
    std::process::exit(AGAIN);
}

fn first_boot() {
    let start = Instant::now();
    let step = |what: &str| println!("{what}: {:.1} s", start.elapsed().as_secs_f64());
    is_old();
    doctor();
    step("doctor");
    let kiln = Kiln::started(&free_address());
    step("serve");
    let project = tiny::project();
    project.edit("kiln.toml", "grace = \"3s\"", "grace = \"60s\", timeout = \"10s\"");
    project.edit("kiln.toml", "deadline = \"20s\"", "deadline = \"120s\"");
    project.commit("patience");
    kiln.in_project(&project, &["deploy"]).expect(0);
    serves(&kiln, "release-1");
    step("first deploy");
    tiny::deploy(&kiln, &project, 2).expect(0);
    serves(&kiln, "release-2");
    step("second deploy");
    kiln.in_project(&project, &["rollback"]).expect(0);
    serves(&kiln, "release-1");
    step("rollback");
    wait_until("two serve", LIMIT, || tiny::instances(&tiny::environment(&kiln), &["serving"]).len() == 2);
    // Asserts that nothing is left.
    kiln.down();
    step("down, and nothing is left");
    if Path::new(SUITE).exists() {
        let suite = run_program(&mut Command::new(SUITE));
        println!("{}{}", suite.stdout, suite.stderr);
        assert_eq!(suite.code, 0, "the provider's suite failed");
        step("the provider's suite");
    }
    // Validating takes a second at least, so that the reboot has something to show.
    project.edit("kiln.toml", "timeout = \"10s\"", "timeout = \"10s\", healthy_after = 100");
    project.commit("slow to be ready");
    reboot::before(&project);
    step("ready for the power to go");
}
