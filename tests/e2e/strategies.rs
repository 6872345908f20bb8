//! Canary and rolling rollouts on the real binary, under load: what is good takes over, what is bad is taken back by itself,
//! what cannot be judged waits, and nobody but the candidate's own share of the requests is harmed.

use crate::tiny::{self, all_answered, environment, instances};
use kiln_tests::{Answer, Kiln, Load, Project, compiled, free_address, root, wait_until};
use serde_json::Value;
use std::process::{Child, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
const CANARY: &str = r#"strategy = "canary", steps = [{ weight = 20, for = "1s" }, { weight = 50, for = "1s" }], analysis = { min_requests = 40, latency_floor = "20ms", hold = "2s" }"#;
const ROLLING: &str = r#"strategy = "rolling", max_surge = 1, min_ready = "200ms""#;

/// The tiny project, of a program whose answers can be spoilt by its environment.
fn project(rollout: &str, instances: u32) -> Project {
    let source = std::fs::read_to_string(root().join("examples/shop/api/src/main.rs")).expect("the example");
    let spoilt = r#"        let spoilt = |name| std::env::var(name).ok().and_then(|n: String| n.parse::<u64>().ok()).unwrap_or(0);
        static ASKED: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        if !line.contains("healthz") && ASKED.fetch_add(1, std::sync::atomic::Ordering::Relaxed) > 3 {
            std::thread::sleep(std::time::Duration::from_millis(spoilt("SLOW_MS")));
            if spoilt("FAILS") > 0 {
                let _ = stream.get_mut().write_all(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n");
                continue;
            }
        }
        let mut words = line.split(' ');"#;
    let begin = r#"    if let (Ok(last), Ok(own)) = (std::env::var("LAST"), std::env::var("KILN_INSTANCE")) {
        let own: u64 = own.trim_start_matches("api-").parse().unwrap();
        assert!(own <= last.parse().unwrap(), "{own} is not to start");
    }
    let version = std::fs"#;
    let source = source.replace("        let mut words = line.split(' ');", spoilt);
    let source = source.replacen("    let version = std::fs", begin, 1);
    assert!(source.contains("SLOW_MS") && source.contains("is not to start"), "the example changed");
    let path = root().join("target/spoilt-api.rs");
    if std::fs::read_to_string(&path).ok().as_ref() != Some(&source) {
        std::fs::create_dir_all(root().join("target")).expect("target/");
        std::fs::write(&path, source).expect("target/spoilt-api.rs");
    }
    let project = tiny::project();
    std::fs::copy(compiled(&path, "spoilt-api"), project.path("bin/api")).expect("bin/api");
    project.edit(
        "kiln.toml",
        "drain = \"10s\", keep_previous = \"10m\"",
        &format!("drain = \"5s\", {rollout}"),
    );
    project.edit("kiln.toml", "instances = 2", &format!("instances = {instances}"));
    project.commit("spoilt");
    project
}

/// Commits marker `n` with variables and deploys it; `kiln deploy` goes on in the background.
fn begin(kiln: &Kiln, project: &Project, n: u64, env: &str) -> Child {
    project.release(n);
    let text = std::fs::read_to_string(project.path("kiln.toml")).expect("kiln.toml");
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("env ")).collect();
    let port = lines.iter().position(|line| line.starts_with("port ")).expect("port");
    let own = format!("env       = {{ {env} }}");
    let lines = lines[..port].iter().copied().chain([own.as_str()]).chain(lines[port..].iter().copied());
    project.write("kiln.toml", &(lines.collect::<Vec<_>>().join("\n") + "\n"));
    project.commit(&format!("release {n}"));
    let mut command = kiln.command(project.dir.path(), &["deploy", "--json"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("kiln deploy")
}

fn end(child: Child) -> Answer {
    let output = child.wait_with_output().expect("kiln deploy ends");
    Answer {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        took: Duration::ZERO,
    }
}

fn deploy(kiln: &Kiln, project: &Project, n: u64, env: &str) -> Answer {
    end(begin(kiln, project, n, env))
}

/// Waits until the last rollout's step is as asked.
fn until(kiln: &Kiln, release: u64, what: &str, is: impl Fn(&Value) -> bool) {
    let mut last = Value::Null;
    wait_until(what, LIMIT, || {
        last = environment(kiln)["rollout"].clone();
        let own = last["to"].as_u64() == Some(release);
        assert!(!own || last["ended"] != true, "it ended before {what}: {last:#}");
        own && is(&last["step"])
    });
}

/// The requests that the edge counted of a release while it shared the traffic, and those that were answered badly.
fn shared(rollout: &Value, release: u64) -> (u64, u64) {
    let tally = &rollout["receipt"]["shared"][release.to_string()];
    let count = |key: &str| tally[key].as_u64().unwrap_or(0);
    (count("requests"), count("errors") + count("failed") + count("cut"))
}

fn load(kiln: &Kiln) -> Load {
    let mut load = tiny::load(kiln, 400);
    wait_until("the client asks", LIMIT, || load.snapshot()["requests"].as_u64() > Some(0));
    load
}

pub fn canary() {
    let kiln = Kiln::started(&free_address());
    let project = project(CANARY, 2);
    deploy(&kiln, &project, 1, "").expect(0);

    // A good one, with its plan before.
    let traffic = load(&kiln);
    let plan = kiln.in_project(&project, &["deploy", "--plan"]).expect(0).stdout;
    assert!(plan.contains("serves already"), "{plan}");
    project.write("notes.txt", "another commit");
    project.commit("to be planned");
    let plan = kiln.in_project(&project, &["deploy", "--plan"]).expect(0).stdout;
    for word in ["step 1: 20 % of the requests", "step 2: 50 %", "launch 2 new instances", "drain and remove"]
    {
        assert!(plan.contains(word), "{word:?} is not in the plan:\n{plan}");
    }
    let before = environment(&kiln)["rollout"]["id"].clone();
    let answer = deploy(&kiln, &project, 2, "").expect(0).json();
    assert_eq!(answer["id"].as_u64(), before.as_u64().map(|id| id + 1), "the plan changed nothing");
    let (old, new) = (shared(&answer, 1), shared(&answer, 2));
    assert!(old.0 > 0 && new.0 > 0 && old.1 + new.1 == 0, "{:#}", answer["receipt"]);
    assert_eq!(answer["rollback"]["to"], 1);
    let requests = all_answered(&traffic.stop());
    println!("a good canary: {requests} requests, 0 failed; shared: old {}, new {}", old.0, new.0);

    // One that answers with 500, and one that is slow: each is taken back by itself.
    let serving = instances(&environment(&kiln), &["serving"]);
    let mut errors = 0;
    for (n, env, word) in [(3, "FAILS = \"1\"", "failed"), (4, "SLOW_MS = \"40\"", "slow")] {
        let traffic = load(&kiln);
        let answer = deploy(&kiln, &project, n, env).expect(1);
        let rollout = environment(&kiln)["rollout"].clone();
        let reason = rollout["reason"].as_str().expect("reason");
        assert!(reason.contains("worse than its baseline") && reason.contains(word), "{reason}");
        assert!(answer.stderr.contains("worse than its baseline"), "{}", answer.stderr);
        let why = kiln.in_project(&project, &["why"]).expect(0).stdout;
        assert!(why.contains("api: candidate"), "no figures:\n{why}");
        let report = traffic.stop();
        let (own, bad) = shared(&rollout, n);
        // The edge counted as many answers of instances with 500, and nothing of its own.
        wait_until("the edge has counted everything", LIMIT, || {
            environment(&kiln)["requests"]["errors"].as_u64() == report["failed"].as_u64().map(|n| n + errors)
        });
        let tally = environment(&kiln)["requests"].clone();
        errors = tally["errors"].as_u64().expect("errors");
        assert_eq!((tally["failed"].as_u64(), tally["cut"].as_u64()), (Some(0), Some(0)), "{tally:#}");
        assert_eq!(bad > 0, word == "failed", "{rollout:#}");
        assert_eq!(instances(&environment(&kiln), &["serving"]), serving, "the same instances serve");
        println!(
            "a {word} canary: taken back after {own} of its requests of {}; {reason}",
            report["requests"]
        );
    }

    // Nobody asks: it holds, says so, and is taken back in the end.
    let child = begin(&kiln, &project, 5, "");
    until(&kiln, 5, "it holds", |step| step["hold"].is_string());
    let why = kiln.in_project(&project, &["why"]).expect(0).stdout;
    assert!(why.contains("on hold") && why.contains("else it is taken back (within"), "{why}");
    let answer = end(child).expect(1);
    assert!(answer.stderr.contains("could not be judged"), "{}", answer.stderr);

    // A rollback in mid-canary.
    let traffic = load(&kiln);
    let child = begin(&kiln, &project, 6, "");
    until(&kiln, 6, "it has requests", |step| step["weight"].as_u64() == Some(20));
    let back = kiln.in_project(&project, &["rollback", "--json"]).expect(0).json();
    assert_eq!(back["to"], 2, "back to what serves: {back:#}");
    end(child).expect(1);
    assert_eq!(instances(&environment(&kiln), &["serving"]), serving, "the same instances serve");
    all_answered(&traffic.stop());
    kiln.down();
}

pub fn rolling() {
    let kiln = Kiln::started(&free_address());
    let project = project(ROLLING, 4);
    deploy(&kiln, &project, 1, "").expect(0);
    let traffic = load(&kiln);
    // While it goes on: at most one instance more than wanted, and never fewer in the edge's table.
    let watch = |mut child: Child| {
        let (mut most, mut least, mut mixed) = (0, usize::MAX, 0);
        while child.try_wait().expect("wait").is_none() {
            let now = environment(&kiln);
            let all = now["instances"].as_array().expect("instances");
            let routed = all.iter().filter(|i| i["traffic"]["in_table"] == true).count();
            (most, least) = (most.max(all.len()), least.min(routed));
            mixed += usize::from(now["rollout"]["phase"] == "shifting");
        }
        (end(child), most, least, mixed)
    };
    let (answer, most, least, mixed) = watch(begin(&kiln, &project, 2, ""));
    let answer = answer.expect(0).json();
    assert!(most <= 5 && least >= 4 && mixed > 0, "{most} instances, {least} in the table, {mixed} looks");
    assert!(shared(&answer, 1).0 > 0 && shared(&answer, 2).0 > 0, "{:#}", answer["receipt"]);
    println!("rolling: at most {most} instances, at least {least} in the table");

    // Two instances of the next one start, no more.
    let ids = instances(&environment(&kiln), &["serving"]);
    let last =
        ids.iter().filter_map(|id| id.trim_start_matches("api-").parse::<u64>().ok()).max().expect("ids");
    let (answer, most, least, _) = watch(begin(&kiln, &project, 3, &format!("LAST = \"{}\"", last + 2)));
    answer.expect(1);
    let all_back = || {
        let now = environment(&kiln);
        let releases: Vec<_> = now["instances"].as_array().expect("instances").iter().collect();
        releases.len() == 4 && releases.iter().all(|i| i["release"] == 2 && i["state"] == "serving")
    };
    wait_until("the old release has its capacity back", LIMIT, all_back);
    assert!(most <= 5 && least >= 4, "{most} instances, {least} in the table");
    let requests = all_answered(&traffic.stop());
    println!("a rolling one that fails half-way: taken back; {requests} requests, 0 failed");
    kiln.down();
}

/// A kept release is gone back to by a route switch. The figures are printed, not tested.
pub fn warm() {
    let kiln = Kiln::started(&free_address());
    let project = tiny::project();
    kiln.in_project(&project, &["deploy"]).expect(0);
    tiny::deploy(&kiln, &project, 2).expect(0);
    let traffic = load(&kiln);
    let (mut acked, mut whole) = (vec![], vec![]);
    for n in 0..11 {
        let to = if n % 2 == 0 { "1" } else { "2" };
        let plan = kiln.in_project(&project, &["rollback", "--to", to, "--plan"]).expect(0).stdout;
        assert!(plan.contains("use the 2 instances of api that are kept validated"), "{plan}");
        let before = instances(&environment(&kiln), &["serving", "validated"]);
        let answer = kiln.in_project(&project, &["rollback", "--to", to, "--json"]).expect(0);
        acked.push(answer.json()["switched_after_ms"].as_u64().expect("switched_after_ms"));
        whole.push(answer.took.as_millis());
        assert_eq!(instances(&environment(&kiln), &["serving", "validated"]), before, "nothing was started");
        // Before release 1 there is nothing to go back to.
        let rollback = answer.json()["rollback"].clone();
        assert_eq!(rollback["safe"], to == "2", "{rollback:#}");
        assert_eq!(rollback["warm_ms"].is_u64(), to == "2", "{rollback:#}");
    }
    all_answered(&traffic.stop());
    acked.sort_unstable();
    whole.sort_unstable();
    println!(
        "{} warm rollbacks under load: acknowledged after {} ms in the median, at most {} ms; the whole command {} ms",
        acked.len(),
        acked[acked.len() / 2],
        acked.last().expect("some"),
        whole[whole.len() / 2]
    );
    kiln.down();
}
