//! State that is older than what runs, under load: a backup that `kiln restore` put back, and files that somebody put back by
//! hand. Nothing is destroyed, no request fails, `kiln recover` adopts what serves, and the next deploy works. And `kill -9`
//! of `kiln backup` and `kiln restore` at their named points: the old file or state is whole, or the new one.

use crate::crashes::settle;
use crate::tiny::{self, all_answered, environment, instances, status};
use kiln_tests::{
    Answer, Inventory, Kiln, Load, Project, free_address, kiln_program, run as run_program, wait_until,
};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// `kiln restore` on the state folder of a server that is stopped.
fn restore(kiln: &Kiln, file: &Path, options: &[&str], crash: &str) -> Answer {
    let mut command = Command::new(kiln_program());
    command.arg("restore").arg(file).arg("--state").arg(kiln.state.path()).args(options);
    run_program(command.env("KILN_CRASH_AT", crash))
}

fn backup(kiln: &Kiln, file: &Path) -> Value {
    kiln.cli(Path::new("/"), &["backup", &file.display().to_string(), "--json"]).expect(0).json()
}

/// A number that the database has, read by none of kiln's code.
fn meta(kiln: &Kiln, key: &str) -> u64 {
    let script = "import sqlite3,sys; row = sqlite3.connect(sys.argv[1]).execute('SELECT value FROM meta WHERE key = ?', [sys.argv[2]]).fetchone(); print(row[0] if row else 0)";
    let mut python = Command::new("python3");
    let answer = run_program(python.args(["-c", script]).arg(kiln.state.path().join("kiln.db")).arg(key));
    answer.expect(0).stdout.trim().parse().expect("a number")
}

/// Folders of instances that were not destroyed.
fn alive(kiln: &Kiln) -> BTreeSet<String> {
    Inventory::take(kiln.state.path()).instances.into_iter().filter(|id| id.starts_with("api-")).collect()
}

fn answered(load: &mut Load, more: u64) {
    let requests = |load: &mut Load| load.snapshot()["requests"].as_u64().expect("requests");
    let before = requests(load);
    wait_until("the client had more answers", LIMIT, || requests(load) >= before + more);
}

fn serving(kiln: &Kiln, n: usize) -> BTreeSet<String> {
    wait_until("that many serve, and nobody else is there", LIMIT, || {
        let environment = environment(kiln);
        instances(&environment, &["serving"]).len() == n
            && environment["rollout"]["ended"] == true
            && environment["instances"].as_array().map(Vec::len)
                == Some(n + instances(&environment, &["validated"]).len())
    });
    instances(&environment(kiln), &["serving"])
}

/// What the server says and does in a hold.
fn held(kiln: &Kiln, project: &Project, load: &mut Load, before: &BTreeSet<String>) {
    let hold = status(kiln)["recovery"].clone();
    assert!(hold["reason"].as_str().is_some_and(|text| !text.is_empty()), "the hold is shown: {hold}");
    let text = kiln.cli(Path::new("/"), &["status"]).expect(0).stdout;
    assert!(text.contains("recovery hold") && text.contains("kiln recover --plan"), "{text}");
    let why = kiln.in_project(project, &["why"]).expect(0).stdout;
    assert!(why.contains("older than what runs") && why.contains("kiln recover --plan"), "{why}");
    for arguments in
        [&["deploy"][..], &["scale", "api=1"], &["rollback"], &["destroy", "--env", "production", "--yes"]]
    {
        let refused = kiln.in_project(project, arguments).expect(1);
        assert!(refused.stderr.contains("older than what runs"), "{arguments:?}: {}", refused.stderr);
        assert!(refused.stderr.contains("hint: `kiln recover --plan`"), "{arguments:?}: {}", refused.stderr);
    }
    // Hundreds of milliseconds with many passes.
    answered(load, 300);
    assert_eq!(&alive(kiln), before, "nothing was destroyed or started");
}

pub fn run() {
    let mut kiln = Kiln::started(&free_address());
    let project = tiny::project();
    kiln.in_project(&project, &["deploy"]).expect(0);
    settle(&kiln);
    let file = std::env::temp_dir().join(format!("kiln-{}.backup", std::process::id()));
    let taken = backup(&kiln, &file);
    assert_eq!((&taken["releases"], &taken["instances"]), (&1.into(), &2.into()), "{taken}");
    let mut load = tiny::load(&kiln, 300);
    tiny::deploy(&kiln, &project, 2).expect(0);
    kiln.in_project(&project, &["scale", "api=4"]).expect(0);
    let newest = serving(&kiln, 4);
    let before = alive(&kiln);
    let running = restore(&kiln, &file, &["--replace"], "");
    assert!(running.code == 1 && running.stderr.contains("in use by another"), "{}", running.stderr);
    kiln.kill();
    refusals(&kiln, &file, taken["revision"].as_u64().expect("revision"));
    let restored = restore(&kiln, &file, &["--replace", "--json"], "").expect(0).json();
    assert_eq!(
        (&restored["done"], &restored["missing"]),
        (&true.into(), &Value::Array(vec![])),
        "{restored}"
    );
    let kept = restored["kept"].as_str().expect("the old state is kept");
    assert!(Path::new(kept).exists(), "{kept}");
    kiln.start(&[]);
    held(&kiln, &project, &mut load, &before);
    // In a hold a server may die as well.
    kiln.kill();
    kiln.start(&[]);
    held(&kiln, &project, &mut load, &before);
    recovered(&kiln, &project, &newest);
    let third = tiny::deploy(&kiln, &project, 3).expect(0).json();
    assert_eq!(third["to"], 3, "the number of the lost release is not given again");
    let last = serving(&kiln, 4);
    assert!(last.is_disjoint(&before), "no number is given twice: {last:?}, {before:?}");
    kiln.in_project(&project, &["scale", "api=default"]).expect(0);
    serving(&kiln, 2);
    let requests = all_answered(&load.stop());
    kiln.in_project(&project, &["audit", "verify"]).expect(0);
    let audit = kiln.cli(Path::new("/"), &["audit", "--lines", "200"]).expect(0).stdout;
    for word in ["backup", "restore", "recover", "instance.adopted"] {
        assert!(audit.contains(word), "{word}: {audit}");
    }
    println!(
        "a backup from before a deploy and a scaling was restored: {requests} requests, 0 failed, {} instances adopted",
        newest.len()
    );
    let _ = std::fs::remove_file(file);
    kiln.down();
}

/// What is not restored, and why: nothing changes.
fn refusals(kiln: &Kiln, file: &Path, revision: u64) {
    let there = meta(kiln, "revision");
    assert!(there > revision);
    let newer = restore(kiln, file, &[], "").expect(1);
    assert!(newer.stderr.contains("newer") && newer.stderr.contains("--replace"), "{}", newer.stderr);
    let plan = restore(kiln, file, &["--replace", "--dry-run", "--json"], "").expect(0).json();
    assert_eq!((&plan["done"], &plan["backup"]["revision"]), (&false.into(), &revision.into()), "{plan}");
    let whole = std::fs::read(file).expect("the backup");
    let bad = file.with_extension("bad");
    let newer = String::from_utf8(whole.clone()).expect("text").replacen("\"format\":1", "\"format\":7", 1);
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 1;
    let cases: [(&[u8], &str); 4] = [
        (&whole[..whole.len() / 2], "cut off after line"),
        (&changed, "damaged"),
        (newer.as_bytes(), "format 7"),
        (b"PK\x03\x04", "not a backup"),
    ];
    for (bytes, word) in cases {
        std::fs::write(&bad, bytes).expect("write");
        let refused = restore(kiln, &bad, &["--replace"], "").expect(1);
        assert_eq!(refused.stderr.matches("error:").count(), 1, "{}", refused.stderr);
        assert!(
            refused.stderr.contains(word) && refused.stderr.contains("hint:"),
            "{word}: {}",
            refused.stderr
        );
    }
    let _ = std::fs::remove_file(bad);
    assert_eq!(meta(kiln, "revision"), there, "nothing changed");
}

fn recovered(kiln: &Kiln, project: &Project, newest: &BTreeSet<String>) {
    let ids = |view: &Value| -> BTreeSet<String> {
        let all = view["adopted"].as_array().expect("adopted");
        all.iter().map(|one| one["instance"].as_str().expect("id").to_owned()).collect()
    };
    let plan = kiln.in_project(project, &["recover", "--plan", "--json"]).expect(0).json();
    assert_eq!((ids(&plan), &plan["done"]), (newest.clone(), &false.into()), "{plan}");
    assert_eq!(plan["serving"][0]["world"], serde_json::json!([2]), "{plan}");
    assert!(status(kiln)["recovery"].is_object(), "a plan changes nothing");
    let done = kiln.in_project(project, &["recover", "--json"]).expect(0).json();
    assert_eq!(ids(&done), *newest, "{done}");
    assert_eq!(&serving(kiln, newest.len()), newest, "the same instances, and as many");
    let environment = environment(kiln);
    assert_eq!(environment["serving"]["release"], 2, "{environment}");
    assert!(status(kiln)["recovery"].is_null());
    wait_until("what the lost history kept is gone", LIMIT, || {
        kiln.in_project(project, &["why"]).stdout.contains("all is as desired") && alive(kiln) == *newest
    });
    let again = kiln.in_project(project, &["recover"]).expect(1);
    assert!(again.stderr.contains("no recovery hold"), "{}", again.stderr);
}

/// Older files, put back without a word to anybody.
pub fn files() {
    let mut kiln = Kiln::started(&free_address());
    let project = tiny::project();
    kiln.in_project(&project, &["deploy"]).expect(0);
    settle(&kiln);
    kiln.terminate();
    let database = kiln.state.path().join("kiln.db");
    let copy = kiln.state.path().join("copy.db");
    std::fs::copy(&database, &copy).expect("one file, after its server ended");
    kiln.start(&[]);
    let mut load = tiny::load(&kiln, 300);
    tiny::deploy(&kiln, &project, 2).expect(0);
    let newest = serving(&kiln, 2);
    let before = alive(&kiln);
    kiln.kill();
    for end in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(kiln.state.path().join(format!("kiln.db{end}")));
    }
    std::fs::rename(&copy, &database).expect("put back");
    kiln.start(&[]);
    held(&kiln, &project, &mut load, &before);
    recovered(&kiln, &project, &newest);
    tiny::deploy(&kiln, &project, 3).expect(0);
    serving(&kiln, 2);
    let requests = all_answered(&load.stop());
    println!("older files were put back: {requests} requests, 0 failed");
    kiln.down();
}

pub fn crashes() {
    let mut kiln = Kiln::started(&free_address());
    let project = tiny::project();
    kiln.in_project(&project, &["deploy"]).expect(0);
    settle(&kiln);
    let file: PathBuf = kiln.state.path().join("backup.kiln");
    let first = backup(&kiln, &file);
    tiny::deploy(&kiln, &project, 2).expect(0);
    settle(&kiln);
    for (point, is_new) in [("backup.written", false), ("backup.renamed", true)] {
        let mut command = kiln.command(Path::new("/"), &["backup", &file.display().to_string()]);
        let died = run_program(command.env("KILN_CRASH_AT", point));
        assert_eq!(died.code, -1, "{point}: it was killed: {}", died.stderr);
        kiln.terminate();
        let kept = restore(&kiln, &file, &["--replace", "--dry-run", "--json"], "").expect(0).json();
        let revision = kept["backup"]["revision"].as_u64();
        assert_eq!(
            revision > first["revision"].as_u64(),
            is_new,
            "{point}: whole, and the right one: {kept}"
        );
        kiln.start(&[]);
    }
    let taken = backup(&kiln, &file);
    tiny::deploy(&kiln, &project, 3).expect(0);
    settle(&kiln);
    kiln.terminate();
    let mut there = meta(&kiln, "revision");
    let mut history = meta(&kiln, "incarnation");
    for (point, is_new) in [("restore.filled", false), ("restore.kept", false), ("restore.swapped", true)] {
        let died = restore(&kiln, &file, &["--replace"], point);
        assert_eq!(died.code, -1, "{point}: it was killed: {}", died.stderr);
        let now = (meta(&kiln, "revision"), meta(&kiln, "incarnation"));
        let restored = (taken["revision"].as_u64().expect("revision") + 1, history + 1);
        assert_eq!(now, if is_new { restored } else { (there, history) }, "{point}");
        (there, history) = now;
    }
    kiln.start(&[]);
    assert!(status(&kiln)["recovery"].is_object(), "the new state, whole, in its hold");
    assert!(!kiln.state.path().join("restore.part").exists(), "what the dead one left is gone");
    kiln.in_project(&project, &["recover"]).expect(0);
    wait_until("what served serves", LIMIT, || environment(&kiln)["serving"]["release"] == 3);
    tiny::deploy(&kiln, &project, 4).expect(0);
    settle(&kiln);
    kiln.in_project(&project, &["audit", "verify"]).expect(0);
    println!("killed at 5 named points of backup and restore: the old one or the new one, whole");
    kiln.down();
}
