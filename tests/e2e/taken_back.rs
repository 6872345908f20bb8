//! Commits that are broken in four ways: each is taken back with exit code 1, `kiln why` names the cause with the
//! instance's last lines, and what served before is not touched.

use crate::tiny::{self, all_answered, environment, instances};
use kiln_tests::{Kiln, free_address};

pub fn run() {
    let kiln = Kiln::started(&free_address());
    let project = tiny::project();
    kiln.in_project(&project, &["deploy"]).expect(0);
    let before = instances(&environment(&kiln), &["serving"]);
    let load = tiny::load(&kiln, 200);
    // What is broken, in what, what becomes of it, and what `kiln why` must say.
    let broken = [
        (
            "it crashes at start",
            r#"command   = ["/bin/api"]"#,
            r#"command   = ["/bin/api", "--verbose"]"#,
            vec!["exited with status 2", "usage: api"],
        ),
        (
            "its health check fails",
            r#"health    = { http = "/api/healthz","#,
            r#"health    = { http = "/api/nowhere","#,
            vec!["/api/nowhere", "404"],
        ),
        (
            "its validation fails",
            r#"contains = "release-" }"#,
            r#"contains = "something else" }"#,
            vec!["something else", "/api/version"],
        ),
        (
            "it listens on the wrong port",
            r#"command   = ["/bin/api"]"#,
            r#"command   = ["/bin/api", "--port", "9999"]"#,
            vec!["9000", "api release-1 listens on 9999"],
        ),
    ];
    for (what, from, to, words) in broken {
        project.edit("kiln.toml", from, to);
        project.commit(what);
        let answer = kiln.in_project(&project, &["deploy"]).expect(1);
        let why = kiln.in_project(&project, &["why"]).expect(0).stdout;
        for word in words {
            assert!(
                why.contains(word),
                "{what}: `kiln why` does not say {word:?}:\n{why}\n{}",
                answer.stderr
            );
        }
        let id = why
            .split_whitespace()
            .find(|word| word.trim_matches(|c: char| !c.is_alphanumeric() && c != '-').starts_with("api-"));
        assert!(id.is_some(), "{what}: `kiln why` names no instance:\n{why}");
        assert_eq!(instances(&environment(&kiln), &["serving"]), before, "{what}: others serve now");
        println!(
            "{what}: taken back in {:.1} s: {}",
            answer.took.as_secs_f64(),
            why.lines().next().unwrap_or("")
        );
        project.write("kiln.toml", tiny::TOML);
    }
    let requests = all_answered(&load.stop());
    println!("meanwhile {requests} requests, 0 failed; the same instances serve");
    kiln.down();
}
