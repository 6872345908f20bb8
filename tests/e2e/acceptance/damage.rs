//! Damaged state: a row that cannot be read, and files that are cut or full of zeros. Whoever is not concerned goes on, what is
//! concerned is held or mended, and it is said which.

use super::{LIMIT, deployed, edge_pid, serving, signal, times};
use crate::crashes::resting;
use crate::tiny::{self, all_answered, counts, environment, instances, status};
use kiln_tests::{Kiln, Project, run as run_program, wait_until};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs SQL on the database of a server that is stopped, with Python's own SQLite: none of kiln's code.
fn sql(kiln: &Kiln, statements: &str) {
    let script = "import sqlite3,sys; c=sqlite3.connect(sys.argv[1]); c.executescript(sys.argv[2]); c.commit(); c.close()";
    let mut python = Command::new("python3");
    run_program(python.args(["-c", script]).arg(kiln.state.path().join("kiln.db")).arg(statements)).expect(0);
}

fn of<'a>(status: &'a Value, env: &str) -> &'a Value {
    let all = status["environments"].as_array().expect("environments");
    all.iter().find(|e| e["env"] == env).unwrap_or(&Value::Null)
}

/// One row of one environment, in each table in turn; the other environment and the traffic of both go on.
pub fn rows() {
    let (mut kiln, project) = deployed();
    let other = tiny::project();
    other.edit("kiln.toml", "name = \"shop\"", "name = \"other\"");
    other.edit("kiln.toml", "path = \"/\"", "path = \"/other\"");
    other.commit("another project");
    kiln.in_project(&other, &["deploy"]).expect(0);
    let load = tiny::load(&kiln, 200);
    let tables = ["instance", "environment", "rollout", "release"];
    let which = "env = 'shop/production'";
    for (n, table) in (2..).zip(&tables[..times(2, 4) as usize]) {
        wait_until("nothing is under way", LIMIT, || {
            kiln.in_project(&project, &["why"]).stdout.contains("all is as desired")
        });
        kiln.terminate();
        sql(
            &kiln,
            &format!(
                "CREATE TABLE IF NOT EXISTS saved(body TEXT); DELETE FROM saved; INSERT INTO saved SELECT body FROM {table} WHERE {which} LIMIT 1; UPDATE {table} SET body = substr(body, 1, 20) WHERE body = (SELECT body FROM saved);"
            ),
        );
        kiln.start(&[]);
        let why = kiln.in_project(&project, &["why"]).expect(0).stdout;
        assert!(why.contains("is on hold") && why.contains(table), "{table}: {why}");
        let held = status(&kiln)["holds"].clone();
        assert_eq!(held[0]["env"], "shop/production", "{table}: {held}");
        let refused = kiln.in_project(&project, &["scale", "api=3"]).expect(1);
        assert!(refused.stderr.contains("on hold") && refused.stderr.contains("hint:"), "{}", refused.stderr);
        tiny::deploy(&kiln, &other, n).expect(0);
        assert_eq!(of(&status(&kiln), "other/production")["serving"]["subject"], format!("release {n}"));
        kiln.terminate();
        sql(
            &kiln,
            &format!(
                "UPDATE {table} SET body = (SELECT body FROM saved) WHERE body = (SELECT substr(body, 1, 20) FROM saved); DROP TABLE saved;"
            ),
        );
        kiln.start(&[]);
        println!("a row of `{table}` that cannot be read: its environment is held, the other was deployed");
    }
    wait_until("all is as desired", LIMIT, || {
        instances(of(&status(&kiln), "shop/production"), &["serving"]).len() == 2
            && status(&kiln)["holds"].as_array().is_none_or(Vec::is_empty)
    });
    tiny::deploy(&kiln, &project, 9).expect(0);
    println!("rows that cannot be read: {} requests, 0 failed", all_answered(&load.stop()));
    kiln.down();
}

/// Files below a folder that hold state of kiln's own, apart from the database and what is named by its content.
fn state_files(state: &Path) -> Vec<PathBuf> {
    let skipped = [
        "objects",
        "repos",
        "kiln.db",
        "kiln.db-wal",
        "kiln.db-shm",
        "serve.log",
        "kiln.sock",
        "control.sock",
    ];
    let mut found = vec![];
    let mut folders = vec![state.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type().expect("a type");
            if skipped.contains(&name.as_str()) || kind.is_symlink() {
                continue;
            }
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && entry.metadata().is_ok_and(|meta| meta.len() > 0) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

fn damage(path: &Path, zeros: bool) {
    let length = std::fs::metadata(path).expect("it is there").len();
    if zeros {
        // In place, as a disk does it: the file stays the one that others have open.
        std::fs::write(path, vec![0; length as usize]).expect("written");
    } else {
        std::fs::File::options().write(true).open(path).and_then(|f| f.set_len(length / 2)).expect("cut");
    }
}

/// Every kind of file, cut to half and full of zeros, while nothing of kiln runs but the instances.
pub fn files() {
    let (mut kiln, project) = deployed();
    tiny::deploy(&kiln, &project, 2).expect(0);
    serving(&kiln, 2);
    let usual = resting(&kiln);
    let state = kiln.state.path().canonicalize().expect("state");
    // One of each kind: files of instances and images differ by their folder only.
    let kind = |path: &Path| {
        let relative = path.strip_prefix(&state).expect("below the state").to_string_lossy().into_owned();
        let mut parts: Vec<&str> = relative.split('/').collect();
        let last = parts.pop().unwrap_or_default();
        let generic = parts.first().is_some_and(|first| ["cache", "images", "locks"].contains(first));
        let last = if generic { last.rsplit('.').next().unwrap_or_default() } else { last };
        format!("{}/{}", parts.first().copied().unwrap_or_default(), if last.len() > 40 { "*" } else { last })
    };
    let mut kinds: std::collections::BTreeMap<String, PathBuf> = Default::default();
    for path in state_files(&state) {
        kinds.insert(kind(&path), path);
    }
    let short = ["edge/table.json", "instances/process.json"];
    let nightly = times(0, 1) == 1;
    let mut n = 0;
    for (kind, _) in kinds.iter().filter(|(kind, _)| nightly || short.iter().any(|s| kind.starts_with(s))) {
        for zeros in [false, true] {
            let Some(path) = state_files(&state).into_iter().rfind(|path| self::same(kind, path, &state))
            else {
                continue;
            };
            one(&mut kiln, &project, &path, zeros, 10 + n);
            n += 1;
        }
    }
    let mut left = [0; 5];
    wait_until("nothing is left over", LIMIT, || {
        left = counts(&kiln);
        left == usual
    });
    assert!(n >= 4, "only {n} files: {kinds:?}");
    println!(
        "{n} damaged files of {} kinds: the server starts, two serve, and the next deploy works",
        kinds.len()
    );
    kiln.down();
}

fn same(kind: &str, path: &Path, state: &Path) -> bool {
    let relative = path.strip_prefix(state).expect("below the state").to_string_lossy().into_owned();
    let (folder, name) = kind.split_once('/').unwrap_or(("", kind));
    let first = relative.split('/').next().unwrap_or_default();
    (folder.is_empty() || first == folder) && (name == "*" || relative.ends_with(name))
}

fn one(kiln: &mut Kiln, project: &Project, path: &Path, zeros: bool, n: u64) {
    let what = format!("{} {}", if zeros { "zeros in" } else { "half of" }, path.display());
    println!("  {what}");
    kiln.terminate();
    signal(&edge_pid(kiln), "-KILL");
    wait_until("the edge is dead", LIMIT, || edge_pid(kiln).is_empty());
    let saved = std::fs::read(path).expect("it is there");
    damage(path, zeros);
    // With something in its environment it may die at its start.
    kiln.start(&[("KILN_DAMAGED", "yes")]);
    if kiln.exited() {
        // What signs images is not guessed: the server says what is wrong and where.
        let log = kiln.log();
        let said = log.lines().rev().take(4).collect::<Vec<_>>().join("\n");
        assert!(path.components().any(|part| part.as_os_str() == "keys"), "{what}: {said}");
        assert!(said.contains("error:") && said.contains("hint:"), "{what}: {said}");
        std::fs::write(path, saved).expect("mended");
        kiln.start(&[]);
    }
    serving(kiln, 2);
    let mut load = tiny::load(kiln, 50);
    wait_until(&format!("{what}: traffic flows"), LIMIT, || load.snapshot()["requests"].as_u64() > Some(3));
    all_answered(&load.stop());
    tiny::deploy(kiln, project, n).expect(0);
    assert_eq!(environment(kiln)["serving"]["subject"], format!("release {n}"), "{what}");
    assert!(!kiln.log().contains("panicked"), "{what}: {}", kiln.log());
}
