//! A health check that fails one time in ten, for no reason: no deploy fails for it, and nothing is replaced.

use super::{deployed, serving, times};
use crate::tiny::{self, all_answered, environment, instances};
use kiln_tests::{compiled, root};
use std::path::PathBuf;

/// The shop's API, whose health check fails one time in ten.
fn flaky_api() -> PathBuf {
    const SOUND: &str = r#"("GET", "/api/healthz") => ("200 OK", "ok".to_owned()),"#;
    const FLAKY: &str = r#"("GET", "/api/healthz") if ASKED.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 10 == 9 => {
                ("503 Flaky", "no".to_owned())
            }"#;
    let sound = std::fs::read_to_string(root().join("examples/shop/api/src/main.rs")).expect("the API");
    assert!(sound.contains(SOUND), "the API has another health check now");
    let counter = "static ASKED: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);";
    let text = format!("{}\n{counter}\n", sound.replace(SOUND, &format!("{FLAKY}\n{SOUND}")));
    let source = root().join("target/example-flaky.rs");
    // Compiled once per change.
    if std::fs::read_to_string(&source).ok().as_ref() != Some(&text) {
        std::fs::write(&source, text).expect("target/");
    }
    compiled(&source, "example-flaky")
}

pub fn run() {
    let (kiln, project) = deployed();
    std::fs::copy(flaky_api(), project.path("bin/api")).expect("bin/api");
    // Two passes in a row are asked for, so that a failure in between costs time and nothing else.
    project.edit("kiln.toml", "grace = \"3s\"", "grace = \"10s\", healthy_after = 2, every = \"100ms\"");
    project.edit("kiln.toml", "keep_previous = \"10m\"", "keep_previous = \"0s\"");
    let load = tiny::load(&kiln, 100);
    let n = times(3, 1000);
    for number in 2..2 + n {
        tiny::deploy(&kiln, &project, number).expect(0);
    }
    serving(&kiln, 2);
    let before = instances(&environment(&kiln), &["serving"]);
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert_eq!(
        instances(&environment(&kiln), &["serving"]),
        before,
        "nothing is replaced for a failed check"
    );
    println!(
        "{n} deploys with a flaky check: none failed; {} requests, 0 failed",
        all_answered(&load.stop())
    );
    kiln.down();
}
