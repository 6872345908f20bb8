//! Rollouts one after the other under load, a fifth of them bad and a fifth of them back, while `kiln serve` is killed with
//! SIGKILL every few seconds: no request fails, nothing is there twice or left over, and the ledger's chain holds.
//! `KILN_ROLLOUTS` sets how many; `just nightly` has 500.

use crate::crashes::{is_settled, prepared};
use crate::tiny::{self, all_answered, counts, environment, instances};
use kiln_tests::{Kiln, Project, wait_until};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// In the short form, as many as show one of each kind.
const ROLLOUTS: u64 = 5;
/// Between two kills, in the long form and in the short one.
const KILL_EVERY: [Duration; 2] = [Duration::from_secs(5), Duration::from_millis(400)];
const LIMIT: Duration = Duration::from_secs(120);

/// What one rollout is to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Good,
    Bad,
    Back,
}

/// A server that is killed again and again.
struct Victim {
    kiln: Kiln,
    kill_every: Duration,
    killed: Instant,
    n_kills: u64,
    longest_start: Duration,
}

impl Victim {
    fn kill_if_due(&mut self) {
        if self.killed.elapsed() < self.kill_every {
            return;
        }
        self.kiln.kill();
        let begun = Instant::now();
        self.kiln.start(&[]);
        self.longest_start = self.longest_start.max(begun.elapsed());
        (self.killed, self.n_kills) = (Instant::now(), self.n_kills + 1);
    }

    /// Runs a command to its end, and kills the server meanwhile. Answers its exit code.
    fn wait(&mut self, mut client: Child) -> i32 {
        let mut code = None;
        wait_until("the command ends", LIMIT, || {
            self.kill_if_due();
            code = client.try_wait().expect("wait");
            code.is_some()
        });
        code.and_then(|status| status.code()).expect("it was not killed")
    }

    fn run(&mut self, project: &Project, arguments: &[&str]) -> i32 {
        // A command that met a server on its way down before it was accepted says so, and is typed again.
        for _ in 0..5 {
            let mut command = self.kiln.command(project.dir.path(), arguments);
            let log = std::fs::File::create(self.kiln.state.path().join("client.log")).expect("log");
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
            let code = self.wait(command.spawn().expect("kiln starts"));
            let said = std::fs::read_to_string(self.kiln.state.path().join("client.log")).unwrap_or_default();
            if code == 75 || said.contains("no server answers") || said.contains("the connection to") {
                continue;
            }
            assert!(code == 0 || code == 1, "{arguments:?} ended with {code}: {said}");
            return code;
        }
        panic!("{arguments:?} was never accepted");
    }

    /// Marker of what serves, and phase of the last rollout.
    fn state(&self) -> (String, String) {
        let environment = environment(&self.kiln);
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        (text(&environment["serving"]["subject"]), text(&environment["rollout"]["phase"]))
    }
}

/// Breaks what the `n`-th commit runs, in one of several ways.
fn break_it(project: &Project, n: u64) {
    let (from, to) = match n / 5 % 2 {
        0 => (r#"command   = ["/bin/api"]"#, r#"command   = ["/bin/api", "--verbose"]"#),
        _ => (r#"contains = "release-" }"#, r#"contains = "something else" }"#),
    };
    project.edit("kiln.toml", from, to);
}

fn rollout(victim: &mut Victim, project: &Project, n: u64, kind: Kind) {
    let (before, _) = victim.state();
    if kind == Kind::Back {
        assert_eq!(victim.run(project, &["rollback"]), 0, "rollout {n}");
        assert_ne!(victim.state().0, before, "rollout {n} went back");
        return;
    }
    project.release(n);
    if kind == Kind::Bad {
        break_it(project, n);
    }
    project.commit(&format!("release {n}"));
    let code = victim.run(project, &["deploy"]);
    project.write("kiln.toml", tiny::TOML);
    if kind == Kind::Bad {
        assert_eq!((code, victim.state()), (1, (before, "taken_back".to_owned())), "rollout {n}");
    } else {
        assert_eq!((code, victim.state().0), (0, format!("release {n}")), "rollout {n}");
    }
}

pub fn run() {
    let asked = std::env::var("KILN_ROLLOUTS").ok().and_then(|text| text.parse().ok());
    let n_rollouts = asked.unwrap_or(ROLLOUTS);
    let kill_every = KILL_EVERY[usize::from(asked.is_none())];
    let (kiln, project, usual) = prepared();
    let load = tiny::load(&kiln, 200);
    let mut victim =
        Victim { kiln, kill_every, killed: Instant::now(), n_kills: 0, longest_start: Duration::ZERO };
    let begun = Instant::now();
    let mut n = [0; 3];
    for number in 0..n_rollouts {
        // Before each bad one and each rollback there is a good one.
        let kind = match number % 5 {
            1 => Kind::Bad,
            3 => Kind::Back,
            _ => Kind::Good,
        };
        n[kind as usize] += 1;
        rollout(&mut victim, &project, 100 + number, kind);
        if number % 50 == 49 {
            println!(
                "{} rollouts after {:.0} s, {} kills",
                number + 1,
                begun.elapsed().as_secs_f64(),
                victim.n_kills
            );
        }
    }
    let Victim { kiln, n_kills, longest_start, .. } = victim;
    wait_until("everything is as desired", LIMIT, || is_settled(&kiln) && counts(&kiln) == usual);
    let report = load.stop();
    let requests = all_answered(&report);
    assert_eq!(instances(&environment(&kiln), &["serving"]).len(), 2);
    let verified = kiln.in_project(&project, &["audit", "verify", "--json"]).expect(0).json();
    println!(
        "{n_rollouts} rollouts ({} good, {} bad, {} back) in {:.0} s, {n_kills} kills (longest start {:.2} s), {requests} \
         requests, 0 failed, longest gap {} ms; {usual:?} processes, mounts, links, cgroups, instances before and after; \
         {} ledger entries verified",
        n[0],
        n[1],
        n[2],
        begun.elapsed().as_secs_f64(),
        longest_start.as_secs_f64(),
        report["longest_gap_ms"],
        verified["verified"],
    );
    kiln.down();
}
