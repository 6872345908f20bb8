//! A service with `isolation = "vm"`: deployed, served, redeployed under load and taken back like any other, in virtual machines
//! that are emulated here.

use crate::tiny::{self, all_answered, environment};
use kiln_tests::{Inventory, Kiln, free_address, wait_until};
use std::path::Path;
use std::time::{Duration, Instant};

/// Emulated machines share their cores with all other tests.
const PATIENCE: Duration = Duration::from_secs(300);

pub fn run() {
    let kiln = Kiln::started(&free_address());
    let project = tiny::project();
    let toml = tiny::TOML
        .replace("image     = \"api\"\n", "image     = \"api\"\nisolation = \"vm\"\n")
        .replace("grace = \"3s\"", "timeout = \"10s\", grace = \"60s\"")
        .replace("contains = \"release-\" }]", "contains = \"release-\", timeout = \"20s\" }, { listening = 9000 }, { file = \"/srv/version\", contains = \"release-\" }]")
        .replace("instances = 2", "instances = 1")
        .replace("deadline = \"20s\"", "deadline = \"300s\"");
    assert_eq!(toml.matches("isolation = \"vm\"").count(), 1);
    project.write("kiln.toml", &toml);
    project.commit("in a virtual machine");
    let start = Instant::now();
    kiln.in_project(&project, &["deploy"]).expect(0);
    println!("first deploy, kernel included: {:.1} s", start.elapsed().as_secs_f64());
    let inventory = Inventory::take(kiln.state.path());
    let is_machine = |line: &String| line.contains("internal machine");
    assert!(inventory.processes.iter().any(is_machine), "{inventory:#?}");
    let record = kiln.state.path().join("kernel.json");
    assert!(record.exists(), "{}", record.display());

    let mut load = tiny::load(&kiln, 20);
    wait_until("the client asks", PATIENCE, || load.snapshot()["requests"].as_u64() > Some(20));
    tiny::deploy(&kiln, &project, 2).expect(0);
    let count = |load: &mut kiln_tests::Load, marker: &str| {
        load.snapshot()["releases"][marker]["count"].as_u64().unwrap_or(0)
    };
    wait_until("release 2 answers", PATIENCE, || count(&mut load, "release-2") > 20);
    let before = count(&mut load, "release-1");
    kiln.in_project(&project, &["rollback"]).expect(0);
    wait_until("release 1 answers again", PATIENCE, || count(&mut load, "release-1") > before + 20);
    let requests = all_answered(&load.stop());
    println!("deploy, redeploy and rollback of virtual machines: {requests} requests, none failed");
    assert_eq!(environment(&kiln)["serving"]["release"], 1, "{:#}", environment(&kiln)["serving"]);
    // The kernel is nothing that a collection takes away.
    kiln.cli(Path::new("/"), &["image", "gc", "--older-than", "0s"]).expect(0);
    let text = std::fs::read_to_string(&record).expect("a record");
    let record: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    for part in ["package", "kernel", "initrd"] {
        let name = record[part].as_str().expect("a digest");
        let hex = name.trim_start_matches("sha256:");
        let path = kiln.state.path().join("objects/sha256").join(&hex[..2]).join(&hex[2..]);
        assert!(path.exists(), "{part} is collected");
    }
    kiln.down();
}
