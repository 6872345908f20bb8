//! Something happens at each phase of a rollout: the server is stopped and goes on as another binary, or somebody scales. The
//! rollout comes to an end, and the next deploy is accepted.

use super::{deployed, in_phase, serving};
use crate::crashes::is_settled;
use crate::tiny::{self, all_answered, environment};
use kiln_tests::{Kiln, Project, kiln_program, wait_until};
use std::process::{Child, Stdio};
use std::time::Duration;

/// The phases that a test can find a rollout in; the rest of them are the crash points.
const PHASES: [&str; 3] = ["validating", "launching", "draining"];
const LIMIT: Duration = Duration::from_secs(60);

/// Those that are looked at: the longest in CI, all at night.
fn phases() -> &'static [&'static str] {
    &PHASES[..super::times(1, PHASES.len() as u64) as usize]
}

fn begin(kiln: &Kiln, project: &Project, n: u64) -> Child {
    project.release(n);
    project.commit(&format!("release {n}"));
    let mut command = kiln.command(project.dir.path(), &["deploy"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("kiln deploy starts")
}

/// A project whose rollouts take long enough to be found in a phase.
fn slow() -> (Kiln, Project) {
    let (kiln, project) = deployed();
    project.edit("kiln.toml", "grace = \"3s\"", "grace = \"30s\", healthy_after = 8");
    (kiln, project)
}

/// The number of the last rollout.
fn last(kiln: &Kiln) -> u64 {
    environment(kiln)["rollout"]["id"].as_u64().expect("a rollout")
}

/// The phase, or one after it if that was too quick to be seen.
fn reach(kiln: &Kiln, before: u64, phase: &str) {
    wait_until(phase, LIMIT, || {
        let rollout = environment(kiln)["rollout"].clone();
        if rollout["id"].as_u64() <= Some(before) {
            return false;
        }
        let now = rollout["phase"].as_str().unwrap_or_default().to_owned();
        let rank = |phase: &str| {
            ["planned", "baking", "launching", "validating", "switching", "draining", "succeeded"]
                .iter()
                .position(|p| *p == phase)
        };
        rank(&now) >= rank(phase)
    });
}

/// SIGTERM, and on with a copy of the program from elsewhere, as an upgrade does; then back again.
pub fn upgraded() {
    let (mut kiln, project) = slow();
    let folder = tempfile::tempdir().expect("temporary folder");
    let copy = folder.path().join("kiln-next");
    std::fs::copy(kiln_program(), &copy).expect("a copy of the program");
    let usual = kiln_program();
    let load = tiny::load(&kiln, 200);
    for (n, phase) in (2..).zip(phases()) {
        let before = last(&kiln);
        let client = begin(&kiln, &project, n);
        reach(&kiln, before, phase);
        kiln.terminate();
        kiln.start_program(if n % 2 == 0 { &copy } else { &usual });
        finish(&kiln, client, n, phase);
    }
    // The newest is always accepted, whatever the one before waits for.
    let older = begin(&kiln, &project, 10);
    in_phase(&kiln, "validating");
    kiln.terminate();
    kiln.start(&[]);
    let client = begin(&kiln, &project, 11);
    finish(&kiln, client, 11, "superseding");
    let _ = older.wait_with_output();
    println!(
        "went on as another binary in {:?}: {} requests, 0 failed",
        phases(),
        all_answered(&load.stop())
    );
    kiln.down();
}

fn finish(kiln: &Kiln, mut client: Child, n: u64, phase: &str) {
    assert!(client.wait().expect("the client ends").success(), "{phase}");
    wait_until(&format!("release {n} serves after {phase}"), LIMIT, || {
        environment(kiln)["serving"]["subject"] == format!("release {n}") && is_settled(kiln)
    });
}

/// Up and down in each phase.
pub fn scaled() {
    let (kiln, project) = slow();
    let load = tiny::load(&kiln, 200);
    for (n, phase) in (2..).zip(phases()) {
        for wanted in ["api=4", "api=1"] {
            let n = n * 10 + u64::from(wanted == "api=1");
            let before = last(&kiln);
            let mut client = begin(&kiln, &project, n);
            reach(&kiln, before, phase);
            kiln.in_project(&project, &["scale", wanted]).expect(0);
            assert!(client.wait().expect("the client ends").success(), "{wanted} in {phase}");
            serving(&kiln, if wanted == "api=4" { 4 } else { 1 });
            assert_eq!(environment(&kiln)["serving"]["subject"], format!("release {n}"));
        }
    }
    println!("scaled up and down in {:?}: {} requests, 0 failed", phases(), all_answered(&load.stop()));
    kiln.down();
}
