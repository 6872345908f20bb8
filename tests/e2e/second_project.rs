//! A project that shares nothing with the shop: Python from Debian's packages. It deploys, redeploys under load, is taken
//! back when its validation fails, and rolls back.

use crate::tiny::{all_answered, environment, instances};
use kiln_tests::{Kiln, Load, Project, free_address};

pub fn run() {
    let kiln = Kiln::started(&free_address());
    let project = Project::from_example("guestbook");
    project.release(1);
    project.commit("without a lock");
    let first = kiln.in_project(&project, &["deploy"]).expect(0);
    let unpinned = kiln.in_project(&project, &["release", "show", "1", "--json"]).expect(0).json();
    assert_eq!(unpinned["pinned"], false, "{unpinned}");
    // The lock that the server resolved lies there now; it alone makes no work tree dirty.
    assert!(project.path("kiln.lock").is_file(), "{}", first.stderr);
    kiln.in_project(&project, &["deploy"]).expect(0);
    let resolved = std::fs::read_to_string(project.path("kiln.lock")).expect("kiln.lock");
    kiln.in_project(&project, &["lock"]).expect(0);
    assert_eq!(std::fs::read_to_string(project.path("kiln.lock")).expect("kiln.lock"), resolved);
    project.commit("locked");
    let marker = "guestbook MARKER\n";
    let arguments = [
        "--host",
        "guestbook.test",
        "--page",
        "/",
        "--version",
        "/version",
        "--echo",
        "/echo",
        "--keepalive",
        "4",
        "--fresh",
        "2",
        "--rate",
        "150",
        "--version-text",
        marker,
    ];
    let load = Load::start(&kiln.edge, &arguments);
    project.release(2);
    project.commit("second");
    let second = kiln.in_project(&project, &["deploy"]).expect(0);
    let before = instances(&environment(&kiln), &["serving"]);
    project.edit("kiln.toml", r#"contains = "guestbook""#, r#"contains = "a guest list""#);
    project.commit("broken");
    kiln.in_project(&project, &["deploy"]).expect(1);
    let why = kiln.in_project(&project, &["why"]).expect(0).stdout;
    assert!(why.contains("a guest list"), "{why}");
    assert_eq!(instances(&environment(&kiln), &["serving"]), before);
    let back = kiln.in_project(&project, &["rollback"]).expect(0);
    let requests = all_answered(&load.stop());
    println!(
        "deploy {:.1} s (base and packages baked), redeploy {:.2} s, taken back, rollback {:.2} s; {requests} requests, 0 failed",
        first.took.as_secs_f64(),
        second.took.as_secs_f64(),
        back.took.as_secs_f64()
    );
    kiln.down();
}
