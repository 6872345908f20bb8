//! Canary secrets are set, deployed, rolled back, healed, and meet a lost key. Then every byte that kiln keeps or said is
//! searched for them, raw, in base64 and in hexadecimal: they are in /run/secrets of the instances and nowhere else. Planted
//! ones are found, so that the search can fail.

use crate::tiny::{self, environment, instances};
use aho_corasick::AhoCorasick;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use kiln_tests::{Kiln, Project, free_address, run, wait_until};
use std::cell::RefCell;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const FIRST: &str = "canary-one-8c1f0b7a2e";
const SECOND: &str = "canary-two-51d9e4c6f3";
const PATIENCE: Duration = Duration::from_secs(30);

/// Everything that the commands printed.
#[derive(Default)]
struct Said(RefCell<String>);

impl Said {
    fn run(&self, kiln: &Kiln, project: &Project, arguments: &[&str], code: i32) -> String {
        let answer = kiln.in_project(project, arguments).expect(code);
        let both = format!("{}{}", answer.stdout, answer.stderr);
        self.0.borrow_mut().push_str(&both);
        both
    }

    /// `kiln secret set` with the value on stdin.
    fn set(&self, kiln: &Kiln, project: &Project, value: &str) -> serde_json::Value {
        let mut command = kiln.command(project.dir.path(), &["secret", "set", "API_KEY", "--json"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kiln starts");
        writeln!(child.stdin.take().expect("piped"), "{value}").expect("kiln reads");
        let output = child.wait_with_output().expect("kiln ends");
        let both = [output.stdout.clone(), output.stderr].concat();
        self.0.borrow_mut().push_str(&String::from_utf8_lossy(&both));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&both));
        serde_json::from_slice(&output.stdout).expect("one document")
    }
}

/// The forms in which a value would still be readable.
fn needles() -> AhoCorasick {
    let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    let forms = [FIRST, SECOND].iter().flat_map(|value| {
        // In base64 it looks different at each of three places in a text; the ends depend on what is around it.
        let shifted = (0..3).map(move |n| {
            let all = STANDARD_NO_PAD.encode(format!("{}{value}", "x".repeat(n)));
            all[if n == 0 { 0 } else { 4 }..all.len() - 4].to_owned()
        });
        [(*value).to_owned(), hex(value)].into_iter().chain(shifted)
    });
    AhoCorasick::new(forms).expect("a few words")
}

/// All files below a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files(&entry.path(), found),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
}

/// Where a canary is: below the state folder, in what processes were given, and in memory that processes hold as files.
fn search(state: &Path) -> Vec<PathBuf> {
    let mut places = vec![];
    files(state, &mut places);
    assert!(places.iter().any(|path| path.ends_with("kiln.db-wal")), "the search looks at the database");
    for process in std::fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.path()) {
        places.extend([process.join("environ"), process.join("cmdline")]);
        let held = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        let in_memory = |path: &PathBuf| {
            std::fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:kiln"))
        };
        places.extend(held.map(|entry| entry.path()).filter(in_memory));
    }
    let needles = needles();
    places
        .into_iter()
        .filter(|path| std::fs::read(path).is_ok_and(|bytes| needles.is_match(&bytes)))
        .collect()
}

/// What the file of the secret has in an instance, as the host's root sees it.
fn inside(kiln: &Kiln, id: &str) -> String {
    let folder = kiln.state.path().join("instances").join(id);
    let process: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("process.json")).expect("process.json"))
            .expect("JSON");
    let path = format!("/proc/{}/root/run/secrets/API_KEY", process["pid"]);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn serving(kiln: &Kiln) -> Vec<String> {
    instances(&environment(kiln), &["serving"]).into_iter().collect()
}

fn all_have(kiln: &Kiln, value: &str) {
    let ids = serving(kiln);
    assert_eq!(ids.len(), 2, "{ids:?}");
    ids.iter().for_each(|id| assert_eq!(inside(kiln, id), value, "{id}"));
}

/// Kills the program of an instance.
fn kill(kiln: &Kiln, id: &str) {
    let folder = kiln.state.path().join("instances").join(id);
    let process = std::fs::read_to_string(folder.join("process.json")).expect("process.json");
    let process: serde_json::Value = serde_json::from_str(&process).expect("JSON");
    run(Command::new("kill").args(["-QUIT", &process["pid"].to_string()])).expect(0);
}

/// Waits until another one serves in the place of one that died.
fn healed(kiln: &Kiln, dead: &str) {
    wait_until("it is healed", PATIENCE, || {
        let ids = serving(kiln);
        ids.len() == 2 && !ids.iter().any(|id| id == dead)
    });
}

pub fn run_all() {
    let mut kiln = Kiln::started(&free_address());
    let (project, said) = (tiny::project(), Said::default());
    project.edit("kiln.toml", "port      = 9000\n", "port      = 9000\nsecrets   = [\"API_KEY\"]\n");
    project.commit("with a secret");
    let refused = said.run(&kiln, &project, &["deploy"], 1);
    let needed = "service `api` needs the secret `API_KEY`, which is not set in `shop/production`";
    assert!(
        refused.contains(needed) && refused.contains("`kiln secret set API_KEY --env production`"),
        "{refused}"
    );

    assert_eq!(said.set(&kiln, &project, FIRST)["version"], 1);
    said.run(&kiln, &project, &["deploy"], 0);
    all_have(&kiln, FIRST);
    let again = said.set(&kiln, &project, FIRST);
    assert_eq!((&again["version"], &again["changed"]), (&1.into(), &false.into()));
    assert!(
        said.run(&kiln, &project, &["deploy"], 0).contains("release 1 of shop/production serves already")
    );
    let newer = said.set(&kiln, &project, SECOND);
    assert_eq!((&newer["version"], &newer["serving"]), (&2.into(), &1.into()));
    all_have(&kiln, FIRST);
    assert!(said.run(&kiln, &project, &["deploy", "--plan"], 0).contains("version 2 of the secret API_KEY"));
    said.run(&kiln, &project, &["deploy"], 0);
    assert_eq!(environment(&kiln)["serving"]["release"], 2);
    all_have(&kiln, SECOND);
    let shown = said.run(&kiln, &project, &["release", "show", "2"], 0);
    assert!(shown.contains("secret       API_KEY version 2"), "{shown}");
    let differs = said.run(&kiln, &project, &["release", "diff", "1", "2"], 0);
    assert_eq!(differs, "secret API_KEY: version 1 → version 2\n");
    said.run(&kiln, &project, &["rollback"], 0);
    all_have(&kiln, FIRST);

    // One that dies is healed with the version of what serves, also by a server that was started anew.
    kiln.terminate();
    kiln.start(&[]);
    let before = serving(&kiln);
    kill(&kiln, &before[0]);
    healed(&kiln, &before[0]);
    all_have(&kiln, FIRST);

    // Without the key nothing is started anew, and what serves goes on; with it all is well again.
    let key = kiln.state.path().join("keys/secrets.age");
    let aside = kiln.state.path().join("keys/aside");
    std::fs::rename(&key, &aside).expect("the key is there");
    let before = serving(&kiln);
    kill(&kiln, &before[0]);
    let audit = || said.run(&kiln, &project, &["audit"], 0);
    wait_until("it is told", PATIENCE, || audit().contains("secret.unreadable"));
    assert_eq!(serving(&kiln), [before[1].clone()]);
    let why = said.run(&kiln, &project, &["why"], 0);
    assert!(why.contains("cannot read the key of secrets"), "{why}");
    std::fs::rename(&aside, &key).expect("the key comes back");
    healed(&kiln, &before[0]);
    all_have(&kiln, FIRST);

    for arguments in [
        &["bake"][..],
        &["logs"],
        &["status", "--json"],
        &["release", "show", "1", "--json"],
        &["release", "list"],
        &["instance", "list", "--gone", "--json"],
        &["secret", "list"],
        &["secret", "history", "API_KEY", "--json"],
        &["environment", "show", "production"],
        &["audit", "--json"],
        &["audit", "verify"],
    ] {
        said.run(&kiln, &project, arguments, 0);
    }
    let state = kiln.state.path();
    assert_eq!(search(state), Vec::<PathBuf>::new());
    assert!(!needles().is_match(said.0.borrow().as_bytes()), "a command said it: {}", said.0.borrow());
    assert!(said.0.borrow().contains("secret.set"), "the ledger knows that it was set");
    let planted = state.join("instances/planted");
    for text in [
        format!("x{SECOND}x"),
        STANDARD_NO_PAD.encode(format!("ab{FIRST}ab")),
        FIRST.bytes().map(|byte| format!("{byte:02x}")).collect(),
    ] {
        std::fs::write(&planted, &text).expect("written");
        assert_eq!(search(state), std::slice::from_ref(&planted), "{text}");
    }
    let mut holder = Command::new("sleep").arg("60").env("PLANTED", SECOND).spawn().expect("sleep");
    let environ = PathBuf::from(format!("/proc/{}/environ", holder.id()));
    // The variable is there when the program is executed.
    wait_until("the planted variable is found", PATIENCE, || search(state).contains(&environ));
    let _ = (holder.kill(), holder.wait());
    std::fs::remove_file(&planted).expect("removed");
    said.run(&kiln, &project, &["secret", "unset", "API_KEY"], 0);
    said.run(&kiln, &project, &["deploy"], 1);
    kiln.down();
}
