//! What operators do all day: scale, look, heal, read logs of what is gone, roll back, abort, destroy, audit; and the edge
//! lives when the server does not.

use crate::tiny::{self, environment, instances};
use kiln_tests::{Kiln, free_address, run as run_program, wait_until};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

pub fn run() {
    let mut kiln = Kiln::started(&free_address());
    let project = tiny::project();
    let first = kiln.in_project(&project, &["deploy", "--json"]).expect(0).json();
    assert_eq!(first["to"], 1);
    let again = kiln.in_project(&project, &["deploy"]).expect(0);
    assert!(again.stdout.contains("release 1") || again.stderr.contains("release 1"), "{}", again.stdout);

    kiln.in_project(&project, &["scale", "api=4"]).expect(0);
    wait_until("four serve", LIMIT, || instances(&environment(&kiln), &["serving"]).len() == 4);
    kiln.in_project(&project, &["scale", "api=default"]).expect(0);
    wait_until("two serve", LIMIT, || environment(&kiln)["instances"].as_array().map(Vec::len) == Some(2));

    heal(&kiln);
    tiny::deploy(&kiln, &project, 2).expect(0);
    tiny::deploy(&kiln, &project, 3).expect(0);
    logs_of_the_gone(&kiln, &project);
    edge_without_server(&mut kiln);

    let back = kiln.in_project(&project, &["rollback", "--to", "1", "--json"]).expect(0).json();
    assert_eq!(back["to"], 1);
    kiln.in_project(&project, &["rollback", "--to", "99"]).expect(1);
    kiln.in_project(&project, &["abort"]).expect(1);

    let releases = kiln.in_project(&project, &["release", "list", "--json"]).expect(0).json();
    assert_eq!(releases["releases"].as_array().map(Vec::len), Some(3));
    kiln.in_project(&project, &["release", "show", "2"]).expect(0);
    let images = kiln.in_project(&project, &["image", "list", "--json"]).expect(0).json();
    let digest = images["images"][0]["digest"].as_str().expect("digest").to_owned();
    let image = kiln.in_project(&project, &["image", "show", &digest, "--json"]).expect(0).json();
    assert_eq!(image["provenance"]["name"], "api");
    assert_eq!(image["manifest"]["layers"][0]["role"], "app");
    project.release(9);
    let commit = project.commit("only baked");
    let baked = kiln.in_project(&project, &["bake", "--json"]).expect(0).json();
    let digest = baked["images"]["api"].as_str().expect("digest").to_owned();
    let image = kiln.in_project(&project, &["image", "show", &digest, "--json"]).expect(0).json();
    assert_eq!((&image["commit"], &image["used_by"]), (&commit.into(), &serde_json::json!([])));

    kiln.in_project(&project, &["destroy", "--env", "production", "--yes"]).expect(0);
    wait_until("nothing is left", LIMIT, || {
        environment(&kiln)["instances"].as_array().map(Vec::len) == Some(0)
    });
    let verified = kiln.in_project(&project, &["audit", "verify", "--json"]).expect(0).json();
    assert!(verified["verified"].as_u64() > Some(10), "{verified}");
    let audit = kiln.in_project(&project, &["audit"]).expect(0).stdout;
    assert!(audit.contains("root"), "the ledger names who: {audit}");
    println!("scale, heal, logs, rollback, destroy, audit: {} ledger entries verified", verified["verified"]);
    kiln.down();
}

/// A killed program is replaced by a new instance, never restarted.
fn heal(kiln: &Kiln) {
    let before = instances(&environment(kiln), &["serving"]);
    let victim = before.iter().next().expect("an instance").clone();
    let process =
        std::fs::read_to_string(kiln.state.path().join("instances").join(&victim).join("process.json"));
    let process: serde_json::Value = serde_json::from_str(&process.expect("process.json")).expect("JSON");
    run_program(Command::new("kill").args(["-KILL", &process["pid"].to_string()])).expect(0);
    wait_until("it is replaced", LIMIT, || {
        let now = instances(&environment(kiln), &["serving"]);
        now.len() == 2 && !now.contains(&victim)
    });
    println!("{victim} was killed and replaced by {:?}", instances(&environment(kiln), &["serving"]));
}

fn logs_of_the_gone(kiln: &Kiln, project: &kiln_tests::Project) {
    wait_until("release 1 is gone", LIMIT, || {
        let environment = environment(kiln);
        let all = environment["instances"].as_array().expect("instances");
        all.iter().all(|i| i["release"] != 1)
    });
    let text = kiln.in_project(project, &["logs", "api", "--release", "1"]).expect(0).stdout;
    assert!(text.contains("api release-1 listens on 9000"), "{text}");
    let none =
        kiln.in_project(project, &["logs", "--release", "1", "--grep", "no such text"]).expect(0).stdout;
    assert_eq!(none.trim(), "");
    let gone = kiln.in_project(project, &["instance", "list", "--gone", "--json"]);
    if gone.code == 0 {
        assert!(gone.json()["instances"].as_array().map(Vec::len) > Some(4));
    }
}

/// Traffic flows while the server is dead, and the server starts another edge if that dies.
fn edge_without_server(kiln: &mut Kiln) {
    let mut load = tiny::load(kiln, 200);
    answered(&mut load, 20);
    kiln.kill();
    answered(&mut load, 100);
    kiln.start(&[]);
    let requests = tiny::all_answered(&load.stop());
    println!("{requests} requests around a dead server, 0 failed");
    let state = kiln.state.path().canonicalize().expect("state");
    let pattern = format!("edge --dir {}", state.display());
    let edge = || run_program(Command::new("pgrep").args(["-o", "-f", &pattern])).stdout.trim().to_owned();
    let pid = edge();
    run_program(Command::new("kill").args(["-KILL", &pid])).expect(0);
    wait_until("another edge serves", LIMIT, || {
        ![String::new(), pid.clone()].contains(&edge()) && std::net::TcpStream::connect(&kiln.edge).is_ok()
    });
    let mut load = tiny::load(kiln, 200);
    answered(&mut load, 50);
    tiny::all_answered(&load.stop());
}

/// Waits until the client had that many more answers.
fn answered(load: &mut kiln_tests::Load, more: u64) {
    let requests = |load: &mut kiln_tests::Load| load.snapshot()["requests"].as_u64().expect("requests");
    let before = requests(load);
    wait_until("the client had more answers", LIMIT, || requests(load) >= before + more);
}
