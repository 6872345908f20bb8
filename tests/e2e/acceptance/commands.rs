//! Commands: clients that hang up in the middle, the same command twice, many operators at once, and a thousand random ones.

use super::{LIMIT, Random, ask, deployed, serving, times};
use crate::tiny::{self, environment, instances};
use kiln_tests::{Kiln, Project, wait_until};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

fn scale_body(n: u64) -> String {
    json!({"project": "shop", "env": "production", "instances": {"api": n}}).to_string()
}

/// Ledger entries of a kind.
fn entries(kiln: &Kiln, kind: &str) -> Vec<Value> {
    let audit = kiln.cli(std::path::Path::new("/"), &["audit", "--json"]).expect(0).json();
    let all = audit["entries"].as_array().expect("entries");
    all.iter().filter(|entry| entry["kind"] == kind).cloned().collect()
}

/// One key, one command: asked again it is answered the same, also by the next server, and something else is refused.
pub fn once() {
    let (mut kiln, project) = deployed();
    let first = ask(&kiln, "POST", "/v1/scale", Some("key-1"), &scale_body(3)).expect("an answer");
    assert_eq!(first.0, 200, "{first:?}");
    let other = ask(&kiln, "POST", "/v1/scale", Some("key-1"), &scale_body(1)).expect("an answer");
    assert_eq!((other.0, &other.1["error"]["code"]), (409, &json!("key_reused")));
    tiny::deploy(&kiln, &project, 2).expect(0);
    let back = json!({"project": "shop", "env": "production"}).to_string();
    let first = ask(&kiln, "POST", "/v1/rollback", Some("key-2"), &back).expect("an answer");
    wait_until("it is back", LIMIT, || environment(&kiln)["serving"]["release"] == 1);
    kiln.kill();
    kiln.start(&[]);
    for _ in 0..3 {
        // Without the key each would go a step further back, or say that there is nothing before.
        assert_eq!(ask(&kiln, "POST", "/v1/rollback", Some("key-2"), &back).as_ref(), Some(&first));
    }
    assert_eq!(entries(&kiln, "rollback").len(), 1, "carried out once");
    assert_eq!(entries(&kiln, "scale").len(), 1);
    let bad = ask(&kiln, "POST", "/v1/scale", Some("no spaces"), &scale_body(1)).expect("an answer");
    assert_eq!(bad.0, 400);
    disconnects(&kiln);
    kiln.down();
}

/// Clients that go away at any byte: the server lives, and each command is recorded whole or not at all.
fn disconnects(kiln: &Kiln) {
    let n = times(150, 3000);
    let mut random = Random(22);
    let before = entries(kiln, "scale").len();
    let mut n_whole = 0;
    for k in 0..n {
        let body = scale_body(1 + k % 3);
        let head = "POST /v1/scale HTTP/1.1\r\nhost: kiln\r\ncontent-type: application/json\r\n";
        let text = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
        // Half of them are whole, and nobody waits for the answer.
        let cut = if random.below(2) == 0 { text.len() } else { random.below(text.len() as u64) as usize };
        n_whole += usize::from(cut == text.len());
        let mut stream = UnixStream::connect(kiln.socket()).expect("the server listens");
        stream.write_all(&text.as_bytes()[..cut]).expect("sent");
    }
    let done = ask(kiln, "POST", "/v1/scale", None, &scale_body(2)).expect("it still answers");
    assert_eq!(done.0, 200);
    serving(kiln, 2);
    let recorded = entries(kiln, "scale").len() - before;
    assert!(recorded <= n_whole + 1, "{recorded} recorded of {n_whole} that were whole");
    kiln.cli(std::path::Path::new("/"), &["audit", "verify"]).expect(0);
    println!(
        "{n} clients hung up: {recorded} commands recorded of {n_whole} that were whole, ledger verified"
    );
}

/// Four operators at once. The ledger is the order in which their commands happened: each answered one is in it once, and
/// one that ended before another began comes first.
pub fn operators() {
    let (kiln, project) = deployed();
    tiny::deploy(&kiln, &project, 2).expect(0);
    tiny::deploy(&kiln, &project, 3).expect(0);
    let each = times(8, 125);
    let clock = AtomicU64::new(1);
    // What was asked for, when it was asked and answered, and the rollout that was accepted, if any.
    let history: Mutex<Vec<(u64, u64, u64)>> = Mutex::default();
    std::thread::scope(|scope| {
        for operator in 0..4 {
            let (kiln, clock, history) = (&kiln, &clock, &history);
            scope.spawn(move || {
                let mut random = Random(operator);
                for _ in 0..each {
                    let asked = clock.fetch_add(1, SeqCst);
                    let env = json!({"project": "shop", "env": "production"});
                    let (path, body) = match random.below(4) {
                        0 => ("/v1/scale", scale_body(1 + random.below(3))),
                        1 => ("/v1/abort", env.to_string()),
                        _ => {
                            let to = 1 + random.below(3);
                            let body = json!({"project": "shop", "env": "production", "to": to});
                            ("/v1/rollback", body.to_string())
                        }
                    };
                    let (status, answer) = ask(kiln, "POST", path, None, &body).expect("an answer");
                    assert!([200, 404, 409].contains(&status), "{path} {body}: {status} {answer}");
                    let answered = clock.fetch_add(1, SeqCst);
                    if let (200, "started", Some(rollout)) =
                        (status, answer["result"].as_str().unwrap_or_default(), answer["rollout"].as_u64())
                    {
                        history.lock().expect("history").push((rollout, asked, answered));
                    }
                }
            });
        }
        for n in 4..4 + each / 5 {
            // Any of them may be superseded or aborted; each ends.
            tiny::deploy(&kiln, &project, n);
        }
    });
    let history = history.into_inner().expect("history");
    assert!(history.len() as u64 >= each / 2, "only {} rollouts were accepted", history.len());
    let order: BTreeMap<u64, u64> = ["rollback", "deploy"]
        .iter()
        .flat_map(|kind| entries(&kiln, kind))
        .map(|entry| {
            let rollout =
                entry["detail"].as_str().and_then(|d| d.strip_prefix("rollout ")).expect("a rollout");
            (rollout.parse().expect("a number"), entry["sequence"].as_u64().expect("sequence"))
        })
        .collect();
    for (rollout, asked, _) in &history {
        let own = order.get(rollout).unwrap_or_else(|| panic!("rollout {rollout} is not in the ledger"));
        for (other, _, answered) in history.iter().filter(|(_, _, answered)| answered < asked) {
            assert!(
                order[other] < *own,
                "rollout {other} was answered ({answered}) before {rollout} was asked for"
            );
        }
    }
    let numbers: Vec<u64> = order.keys().copied().collect();
    let sequences: Vec<u64> = order.values().copied().collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "numbers without gaps: {numbers:?}");
    assert!(sequences.is_sorted(), "numbers are given in the order of the ledger");
    converges(&kiln, &project, 90);
    println!("four operators, {} rollouts accepted at once: the ledger is one order of them", history.len());
    kiln.down();
}

/// A last deploy at a last scale is what there is in the end.
fn converges(kiln: &Kiln, project: &Project, n: u64) {
    // One that was destroyed cannot be scaled.
    tiny::deploy(kiln, project, n).expect(0);
    kiln.in_project(project, &["scale", "api=3"]).expect(0);
    wait_until("the last desired state", LIMIT, || {
        let now = environment(kiln);
        let all = now["instances"].as_array().map_or(0, Vec::len);
        let (serving, kept) = (instances(&now, &["serving"]).len(), instances(&now, &["validated"]).len());
        now["serving"]["subject"] == format!("release {n}") && serving == 3 && all == serving + kept
    });
    kiln.in_project(project, &["audit", "verify"]).expect(0);
}

/// Whatever comes in whatever order, with clients that are killed at any moment.
pub fn random() {
    let (kiln, project) = deployed();
    tiny::deploy(&kiln, &project, 2).expect(0);
    let (seed, n) =
        (std::env::var("KILN_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(31), times(25, 1000));
    println!("seed {seed}");
    let mut random = Random(seed);
    for k in 0..n {
        let number = (1 + random.below(4)).to_string();
        let scale = format!("api={number}");
        let (words, waits): (Vec<&str>, bool) = match random.below(10) {
            0..3 => (vec!["scale", &scale], true),
            3 => (vec!["rollback"], false),
            4 => (vec!["rollback", "--to", "2"], false),
            5 => (vec!["abort"], true),
            6 => (vec!["pause", "--env", "production", "--reason", "random"], true),
            7 => (vec!["resume", "--env", "production"], true),
            8 if random.below(4) == 0 => (vec!["destroy", "--env", "production", "--yes"], true),
            _ => {
                project.release(100 + k);
                project.commit(&format!("release {}", 100 + k));
                (vec!["deploy"], false)
            }
        };
        let mut command = kiln.command(project.dir.path(), &words);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut client = command.spawn().expect("kiln starts");
        if !waits {
            std::thread::sleep(Duration::from_millis(random.below(250)));
            let _ = client.kill();
        }
        let code = client.wait().expect("it ends").code();
        assert!([None, Some(0), Some(1)].contains(&code), "{words:?} ended with {code:?}");
    }
    kiln.in_project(&project, &["resume", "--env", "production"]);
    converges(&kiln, &project, 9999);
    println!("{n} random commands: the last desired state, ledger verified");
    kiln.down();
}
