//! Two services of which one asks the other by its name at each request: under load, over deploys and rollbacks, no request
//! fails, what is asked switches with what asks, and another environment of the same project is never seen.

use crate::tiny::{all_answered, environment};
use kiln_tests::{Kiln, Load, Project, compiled, free_address, root, wait_until};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const DEPLOYS: u64 = 5;
const ROLLBACKS: u64 = 2;
/// The release marker of the other environment, which nobody of this one may meet.
const STAGED: u64 = 7777;

const TOML: &str = r#"name = "shop"

[images.web]
base = "scratch"
copy = [{ from = "bin/front", to = "/bin/front", mode = "0755" }]

[images.api]
base = "scratch"
copy = [{ from = "bin/api", to = "/bin/api", mode = "0755" }, { from = "api/version.txt", to = "/srv/version" }]

[services.web]
image     = "web"
command   = ["/bin/front"]
instances = 2
port      = 8080
resources = { cpu = 1.0, memory = "64MiB", pids = 256 }
health    = { http = "/front/healthz", grace = "3s" }
rollout   = { drain = "10s", deadline = "20s" }

[services.api]
image     = "api"
command   = ["/bin/api"]
instances = 2
port      = 9000
resources = { cpu = 1.0, memory = "64MiB", pids = 256 }
health    = { http = "/api/healthz", grace = "3s" }
rollout   = { drain = "10s", deadline = "20s" }

[[routes]]
path = "/"
service = "web"

[environments.staging]
services.web.instances = 1
services.api.instances = 1
routes = [{ host = "staging.test", service = "web" }]
"#;

fn project() -> Project {
    let project = Project::from_example("shop");
    let source = root().join("tests/e2e/internal_names/front.rs");
    std::fs::copy(compiled(&source, "internal-names-front"), project.path("bin/front")).expect("bin/front");
    project.write("kiln.toml", TOML);
    project
}

/// What a host of the edge answers to one request: status line and body.
fn get(kiln: &Kiln, host: &str) -> (String, String) {
    let mut stream = TcpStream::connect(&kiln.edge).expect("the edge listens");
    write!(stream, "GET /api/version HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("answered");
    let (head, body) = text.split_once("\r\n\r\n").expect("an answer");
    (head.lines().next().unwrap_or_default().to_owned(), body.trim().to_owned())
}

fn count(load: &mut Load, marker: &str) -> u64 {
    load.snapshot()["releases"][marker]["count"].as_u64().unwrap_or(0)
}

/// Waits until the client has had answers of `marker` that it asked for after `moment_ms`, and asserts that since then
/// nothing else answered.
fn only(load: &mut Load, moment_ms: u64, marker: &str) {
    let before = count(load, marker);
    wait_until("the client had more answers", Duration::from_secs(20), || count(load, marker) > before + 20);
    let report = load.snapshot();
    for (name, release) in report["releases"].as_object().expect("releases") {
        let begun = release["last_begun_ms"].as_u64().expect("last_begun_ms");
        assert!(
            name == marker || begun <= moment_ms,
            "{name} answered a request begun {begun} > {moment_ms}"
        );
    }
}

/// How many requests the edge sent to a service: those of the world, and those from inside.
fn requests_of(kiln: &Kiln) -> u64 {
    environment(kiln)["requests"]["requests"].as_u64().unwrap_or(0)
}

pub fn run() {
    let kiln = Kiln::started(&free_address());
    let project = project();
    let deploy = |n: u64, arguments: &[&str]| {
        project.release(n);
        project.commit(&format!("release {n}"));
        let arguments: Vec<&str> = ["deploy", "--json"].iter().chain(arguments).copied().collect();
        kiln.in_project(&project, &arguments).expect(0)
    };
    deploy(1, &[]);
    deploy(STAGED, &["--env", "staging"]);
    let staged = format!("release-{STAGED}");
    assert_eq!(get(&kiln, "staging.test").1, staged);
    assert_eq!(get(&kiln, "any.test").1, "release-1");
    // The world cannot ask for a name: this is the public route of any host, by way of `web`.
    assert_eq!(get(&kiln, "api.internal").1, "release-1");
    let mut load = Load::start(
        &kiln.edge,
        &["--page", "/api/version", "--keepalive", "6", "--fresh", "2", "--rate", "300"],
    );
    wait_until("the client asks", Duration::from_secs(20), || count(&mut load, "release-1") > 0);
    let mut served = vec![1];
    let mut n_rollbacks = 0;
    for n in 2..2 + DEPLOYS {
        deploy(n, &[]);
        let done_ms = load.snapshot()["at_ms"].as_u64().expect("at_ms");
        only(&mut load, done_ms, &format!("release-{n}"));
        served.push(n);
        if n.is_multiple_of(2) && n_rollbacks < ROLLBACKS {
            kiln.in_project(&project, &["rollback"]).expect(0);
            let done_ms = load.snapshot()["at_ms"].as_u64().expect("at_ms");
            served.pop();
            only(&mut load, done_ms, &format!("release-{}", served.last().expect("an earlier one")));
            n_rollbacks += 1;
        }
    }
    let report: Value = load.stop();
    let requests = all_answered(&report);
    assert_eq!(report["releases"][&staged], Value::Null, "production met staging");
    assert_eq!(get(&kiln, "staging.test").1, staged);
    // Each request of the world made one inside, and the edge counted both.
    wait_until("the edge has counted everything", Duration::from_secs(20), || {
        requests_of(&kiln) >= 2 * requests
    });
    assert_eq!(n_rollbacks, ROLLBACKS);
    println!(
        "{DEPLOYS} deploys, {n_rollbacks} rollbacks: {requests} requests through two services, {} failed; longest gap {} ms, \
         p50 {} us, p99 {} us",
        report["failed"], report["longest_gap_ms"], report["p50_us"], report["p99_us"]
    );
    kiln.down();
}
