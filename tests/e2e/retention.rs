//! `kiln image diff` and `kiln image gc`: what differs is told, what no release needs goes, and nothing that serves, is on its
//! way or could be gone back to is lost, also if objects are collected while releases come and go.

use crate::tiny::{self, all_answered, environment};
use kiln_tests::{Kiln, Project, free_address, run as run_program};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The digest of the one image of the commit that the project stands on.
fn bake(kiln: &Kiln, project: &Project) -> String {
    let answer = kiln.in_project(project, &["bake", "--json"]).expect(0).json();
    answer["images"]["api"].as_str().expect("digest").to_owned()
}

fn collect(kiln: &Kiln, more: &[&str]) -> Value {
    let arguments = [&["image", "gc", "--json", "--older-than", "0s"][..], more].concat();
    kiln.cli(Path::new("/"), &arguments).expect(0).json()
}

/// Makes the record of an image an hour old.
fn age(kiln: &Kiln, image: &str) {
    let record =
        kiln.state.path().join("images").join(format!("{}.json", image.trim_start_matches("sha256:")));
    run_program(Command::new("touch").args(["-d", "1 hour ago"]).arg(record)).expect(0);
}

pub fn run() {
    let kiln = Kiln::started(&free_address());
    let project = tiny::project();
    let first = bake(&kiln, &project);
    kiln.in_project(&project, &["deploy"]).expect(0);
    tiny::deploy(&kiln, &project, 2).expect(0);
    let second = bake(&kiln, &project);
    project.write("api/more.txt", "more");
    project.edit("kiln.toml", "copy = [", "copy = [{ from = \"api/more.txt\", to = \"/srv/more\" }, ");
    project.commit("never deployed");
    let stray = bake(&kiln, &project);

    let diff = kiln.in_project(&project, &["image", "diff", &first, &second, "--json"]).expect(0).json();
    assert_eq!(diff["files"]["/srv/version"]["changed"][0], "content", "{diff}");
    assert_eq!(diff["files"].as_object().map(serde_json::Map::len), Some(1), "{diff}");
    let text = kiln.in_project(&project, &["image", "diff", &second, &stray]).expect(0).stdout;
    assert!(text.contains("+ /srv/more (4 B)"), "{text}");

    let lately = collect(&kiln, &[]);
    assert_eq!(lately["freed"], 0, "what was baked lately stays: {lately}");
    for image in [&first, &second, &stray] {
        age(&kiln, image);
    }
    let plan = collect(&kiln, &["--plan"]);
    assert!(plan["freed"].as_u64() > Some(0) && plan["plan"] == true, "{plan}");
    kiln.in_project(&project, &["image", "show", &stray]).expect(0);
    let explained = kiln.in_project(&project, &["image", "gc", "--plan", "--explain", "--older-than", "0s"]);
    let explained = explained.expect(0).stdout;
    for why in
        ["release 1 of shop/production (served before)", "release 2 of shop/production (serving)", "goes:"]
    {
        assert!(explained.contains(why), "no {why:?} in\n{explained}");
    }
    let done = collect(&kiln, &[]);
    assert_eq!(done["freed"], plan["freed"]);
    kiln.in_project(&project, &["image", "show", &stray]).expect(1);
    assert_eq!(bake(&kiln, &project), stray, "it can be baked again");
    let audit = kiln.cli(Path::new("/"), &["audit"]).expect(0).stdout;
    assert!(audit.contains("image.collected"), "{audit}");
    kiln.in_project(&project, &["rollback", "--to", "1"]).expect(0);
    while_releases_come_and_go(&kiln, &project);
    println!(
        "{} B of {} B freed",
        done["freed"],
        done["freed"].as_u64().unwrap_or(0) + done["kept"].as_u64().unwrap_or(0)
    );
    kiln.down();
}

fn while_releases_come_and_go(kiln: &Kiln, project: &Project) {
    let (stop, n_collected) = (AtomicBool::new(false), AtomicU64::new(0));
    let load = tiny::load(kiln, 200);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                collect(kiln, &[]);
                n_collected.fetch_add(1, Ordering::Relaxed);
            }
        });
        for n in 10..15 {
            tiny::deploy(kiln, project, n).expect(0);
            kiln.in_project(project, &["rollback"]).expect(0);
        }
        stop.store(true, Ordering::Relaxed);
    });
    let requests = all_answered(&load.stop());
    let n = n_collected.load(Ordering::Relaxed);
    assert!(n > 5, "only {n} collections");
    assert!(environment(kiln)["serving"].is_object());
    println!("{n} collections during 5 deploys and 5 rollbacks, {requests} requests, 0 failed");
}
