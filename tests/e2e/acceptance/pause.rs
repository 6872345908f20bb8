//! A pause of an environment and of the whole server, at rest and in the middle of a rollout: nothing begins, traffic flows,
//! what was asked for comes true afterwards with the time it had left.

use super::{LIMIT, deployed, in_phase, pid_of, serving, signal};
use crate::tiny::{self, all_answered, environment, instances};
use kiln_tests::{Kiln, wait_until};
use std::time::Duration;

/// Time in which an effect would have begun if nothing held it: several passes of the loop.
fn several_passes() {
    std::thread::sleep(Duration::from_millis(900));
}

fn revision(kiln: &Kiln) -> u64 {
    tiny::status(kiln)["server"]["revision"].as_u64().expect("revision")
}

pub fn run() {
    let (mut kiln, project) = deployed();
    let load = tiny::load(&kiln, 200);
    let before = instances(&environment(&kiln), &["serving"]);

    kiln.in_project(&project, &["pause", "--reason", "  "]).expect(64);
    kiln.in_project(&project, &["resume"]).expect(1);
    let said = kiln.in_project(&project, &["pause", "--env", "production", "--reason", "a move"]).expect(0);
    assert!(said.stdout.contains("is paused by root"), "{}", said.stdout);
    let scaled = kiln.in_project(&project, &["scale", "api=3"]).expect(0);
    assert!(scaled.stderr.contains("waits for `kiln resume --env production`"), "{}", scaled.stderr);
    let dead = before.iter().next().expect("an instance").clone();
    // The edge ejects it on its own; what it was sent meanwhile is tried elsewhere.
    signal(&pid_of(&kiln, &dead), "-KILL");
    wait_until("its death is seen", LIMIT, || instances(&environment(&kiln), &["failed"]).contains(&dead));
    several_passes();
    let rest = revision(&kiln);
    kiln.kill();
    kiln.start(&[]);
    several_passes();
    assert_eq!(revision(&kiln), rest, "a pause outlives the server, and nothing is written in it");
    let why = kiln.in_project(&project, &["why"]).expect(0).stdout;
    for words in ["is paused by root: a move", "kiln resume --env production", "has 1 of 3 instances"] {
        assert!(why.contains(words), "{words}: {why}");
    }
    kiln.in_project(&project, &["resume", "--env", "production"]).expect(0);
    serving(&kiln, 3);
    kiln.in_project(&project, &["scale", "api=default"]).expect(0);
    serving(&kiln, 2);
    all_answered(&load.stop());

    in_the_middle(&kiln, &project);
    let audit = kiln.in_project(&project, &["audit"]).expect(0).stdout;
    assert!(audit.contains("a move") && audit.contains("resume"), "{audit}");
    kiln.down();
}

/// The whole server is paused while a rollout validates, for longer than its deadline.
fn in_the_middle(kiln: &Kiln, project: &kiln_tests::Project) {
    project.edit("kiln.toml", "grace = \"3s\"", "grace = \"30s\", healthy_after = 20");
    project.edit("kiln.toml", "deadline = \"20s\"", "deadline = \"2s\"");
    let load = tiny::load(kiln, 200);
    project.release(2);
    project.commit("release 2");
    let mut client = kiln.command(project.dir.path(), &["deploy"]).spawn().expect("kiln deploy starts");
    in_phase(kiln, "validating");
    kiln.in_project(project, &["pause", "--reason", "look first"]).expect(0);
    wait_until("the deadline would be over", LIMIT, || {
        let why = kiln.in_project(project, &["why", "--json"]).expect(0).json();
        let reasons = why["reasons"].as_array().expect("reasons").iter();
        let rollout = reasons.filter(|r| r["what"].as_str().is_some_and(|what| what.starts_with("rollout ")));
        rollout.map(|r| r["since_ms"].as_u64()).next().flatten() > Some(3000)
    });
    assert_eq!(environment(kiln)["rollout"]["phase"], "validating", "time does not run in a pause");
    assert_eq!(environment(kiln)["serving"]["release"], 1);
    assert_eq!(tiny::status(kiln)["paused"]["reason"], "look first");
    kiln.in_project(project, &["resume"]).expect(0);
    assert!(client.wait().expect("the client ends").success(), "it went on with the time it had left");
    assert_eq!(environment(kiln)["serving"]["release"], 2);
    println!("paused in the middle: {} requests, 0 failed", all_answered(&load.stop()));
}
