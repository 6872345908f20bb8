//! The smallest project: the shop's API alone, on an empty image. It bakes in milliseconds and needs no packages.

use kiln_tests::{Answer, Inventory, Kiln, Load, Project};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// Its kiln.toml, with the parts of the service that tests change.
pub const TOML: &str = r#"name = "shop"

[images.api]
base = "scratch"
copy = [{ from = "bin/api", to = "/bin/api", mode = "0755" }, { from = "api/version.txt", to = "/srv/version" }]

[services.api]
image     = "api"
command   = ["/bin/api"]
instances = 2
port      = 9000
resources = { cpu = 1.0, memory = "64MiB", pids = 256 }
health    = { http = "/api/healthz", grace = "3s" }
validate  = [{ http = "/api/version", contains = "release-" }]
rollout   = { drain = "10s", keep_previous = "10m", deadline = "20s" }

[[routes]]
path = "/"
service = "api"
"#;

/// A project with release marker 1, committed.
pub fn project() -> Project {
    let project = Project::from_example("shop");
    project.write("kiln.toml", TOML);
    project.release(1);
    project.commit("tiny");
    project
}

/// The load of one page only.
pub fn load(kiln: &Kiln, rate: u64) -> Load {
    let rate = rate.to_string();
    Load::start(&kiln.edge, &["--page", "/api/version", "--keepalive", "4", "--fresh", "2", "--rate", &rate])
}

/// Commits marker `n` and deploys it.
pub fn deploy(kiln: &Kiln, project: &Project, n: u64) -> Answer {
    project.release(n);
    project.commit(&format!("release {n}"));
    kiln.in_project(project, &["deploy", "--json"])
}

/// `kiln status --json` of all projects.
pub fn status(kiln: &Kiln) -> Value {
    kiln.cli(Path::new("/"), &["status", "--json"]).expect(0).json()
}

/// The environment `production` of the one project.
pub fn environment(kiln: &Kiln) -> Value {
    status(kiln)["environments"][0].clone()
}

/// The instances in one of `states`, by id.
pub fn instances(environment: &Value, states: &[&str]) -> BTreeSet<String> {
    let all = environment["instances"].as_array().expect("instances");
    let wanted = all.iter().filter(|i| states.contains(&i["state"].as_str().unwrap_or("")));
    wanted.map(|i| i["id"].as_str().expect("id").to_owned()).collect()
}

/// What an inventory counts. Descriptions have process ids in them, so only numbers are compared.
pub fn counts(kiln: &Kiln) -> [usize; 5] {
    let found = Inventory::take(kiln.state.path());
    [found.processes.len(), found.mounts.len(), found.links.len(), found.cgroups.len(), found.instances.len()]
}

/// Asserts that a load client saw nothing wrong; answers how many requests it made.
#[track_caller]
pub fn all_answered(report: &Value) -> u64 {
    assert_eq!(report["failed"], 0, "{:#}", report["failures"]);
    let requests = report["requests"].as_u64().expect("requests");
    assert!(requests > 0, "no request was made");
    requests
}
