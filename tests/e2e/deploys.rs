//! Twenty deploys and ten rollbacks of the shop under load: no request fails, the edge's receipts agree with the client,
//! and after "done" nothing old answers. A planted mutant proves that this can turn red.

use crate::tiny::{all_answered, environment, status};
use kiln_tests::{Kiln, Load, Project, free_address, wait_until};
use serde_json::Value;
use std::time::Duration;

const DEPLOYS: u64 = 20;
const ROLLBACKS: u64 = 10;
/// Requests a second that the client asks for, and the least that it must have made.
const RATE: &str = "600";
const RATE_MIN: u64 = 500;

fn load(kiln: &Kiln, project: &Project) -> Load {
    let page = project.path("site/index.html");
    let page = page.to_str().expect("a path of text");
    let arguments = ["--keepalive", "16", "--fresh", "4", "--rate", RATE, "--expect-page", page];
    let mut load = Load::start(&kiln.edge, &arguments);
    // It reads the page before it asks for anything, and the page is about to change.
    wait_until("the client asks", Duration::from_secs(20), || load.snapshot()["requests"].as_u64() > Some(0));
    load
}

/// The whole shop: lock, commit, first deploy.
fn shop(kiln: &Kiln) -> Project {
    let project = Project::from_example("shop");
    kiln.in_project(&project, &["lock"]).expect(0);
    project.release(1);
    project.commit("locked");
    kiln.in_project(&project, &["deploy"]).expect(0);
    project
}

/// Waits until the client has had answers to requests that it began after `moment_ms`, and asserts that all of them
/// were of `marker`.
fn only_new_answers(load: &mut Load, moment_ms: u64, marker: &str) {
    let count = |report: &Value| report["releases"][marker]["count"].as_u64().unwrap_or(0);
    let before = count(&load.snapshot());
    let mut report = Value::Null;
    wait_until("the client had more answers", Duration::from_secs(20), || {
        report = load.snapshot();
        count(&report) > before + 20
    });
    for (name, release) in report["releases"].as_object().expect("releases") {
        let begun = release["last_begun_ms"].as_u64().expect("last_begun_ms");
        assert!(
            name == marker || begun <= moment_ms,
            "{name} answered a request begun {begun} > {moment_ms}"
        );
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

pub fn run() {
    let kiln = Kiln::started(&free_address());
    let project = shop(&kiln);
    let mut load = load(&kiln, &project);
    let (mut deploy_s, mut rollback_s, mut switch_ms, mut back_ms) = (vec![], vec![], vec![], vec![]);
    let mut served = vec!["release-1".to_owned()];
    let mut n_rollbacks = 0;
    for n in 2..2 + DEPLOYS {
        project.release(n);
        project.commit(&format!("release {n}"));
        let answer = kiln.in_project(&project, &["deploy", "--json"]).expect(0);
        let done_ms = load.snapshot()["at_ms"].as_u64().expect("at_ms");
        deploy_s.push(answer.took.as_secs_f64());
        switch_ms.extend(answer.json()["switched_after_ms"].as_f64());
        only_new_answers(&mut load, done_ms, &format!("release-{n}"));
        served.push(format!("release-{n}"));
        if n % 2 == 1 && n_rollbacks < ROLLBACKS {
            let answer = kiln.in_project(&project, &["rollback", "--json"]).expect(0);
            let done_ms = load.snapshot()["at_ms"].as_u64().expect("at_ms");
            rollback_s.push(answer.took.as_secs_f64());
            back_ms.extend(answer.json()["switched_after_ms"].as_f64());
            served.pop();
            only_new_answers(&mut load, done_ms, served.last().expect("an earlier one"));
            n_rollbacks += 1;
        }
    }
    let report = load.stop();
    let requests = all_answered(&report);
    let rate = requests * 1000 / report["at_ms"].as_u64().expect("at_ms").max(1);
    assert!(rate >= RATE_MIN, "only {rate} requests a second");
    let receipts = receipts(&kiln, &project, requests);
    println!(
        "{DEPLOYS} deploys, {n_rollbacks} rollbacks, {requests} requests at {rate}/s: {} failed; longest gap {} ms; \
         p50 {} us, p99 {} us; receipts count {receipts}",
        report["failed"], report["longest_gap_ms"], report["p50_us"], report["p99_us"],
    );
    println!(
        "medians: deploy {:.2} s (bake included; request to switch {:.0} ms), rollback {:.2} s (to switch {:.0} ms)",
        median(&mut deploy_s),
        median(&mut switch_ms),
        median(&mut rollback_s),
        median(&mut back_ms)
    );
    assert_eq!(n_rollbacks, ROLLBACKS);
    kiln.down();
}

/// The sum of all receipts. A last rollback closes the one that the load ended in.
fn receipts(kiln: &Kiln, project: &Project, requests: u64) -> u64 {
    wait_until("the edge has counted everything", Duration::from_secs(20), || {
        environment(kiln)["requests"]["requests"].as_u64() == Some(requests)
    });
    kiln.in_project(project, &["rollback"]).expect(0);
    let rollouts = status(kiln)["environments"][0]["rollout"]["id"].as_u64().expect("id");
    let mut sum = 0;
    for id in 1..=rollouts {
        let socket = kiln.socket();
        let rollout = get(&socket, &format!("/v1/rollout/{id}"));
        for period in ["before", "during", "after"] {
            let tally = &rollout["receipt"][period];
            sum += tally["requests"].as_u64().expect("requests");
            for bad in ["failed", "cut", "errors"] {
                assert_eq!(tally[bad], 0, "rollout {id}, {period}: {bad}");
            }
        }
    }
    assert_eq!(sum, requests, "the receipts of {rollouts} rollouts against the client");
    sum
}

/// One request to the server's API, which no command shows in this form.
fn get(socket: &std::path::Path, path: &str) -> Value {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(socket).expect("the server listens");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: kiln\r\nConnection: close\r\n\r\n").expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("answered");
    let (_, body) = text.split_once("\r\n\r\n").expect("an answer");
    serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// The mutant stops old instances before the edge has acknowledged the table without them.
pub fn mutant() {
    let mut kiln = Kiln::new(&free_address());
    kiln.start(&[("KILN_MUTANT", "stop-before-acknowledgement")]);
    let project = crate::tiny::project();
    kiln.in_project(&project, &["deploy"]).expect(0);
    let load = crate::tiny::load(&kiln, 600);
    for n in 2..10 {
        crate::tiny::deploy(&kiln, &project, n);
    }
    let report = load.stop();
    let failed = report["failed"].as_u64().expect("failed");
    println!("mutant: {failed} of {} requests failed", report["requests"]);
    assert!(failed > 0, "the load client did not see the mutant");
    kiln.down();
}
