//! `kill -9` of `kiln serve` at every named crash point and at seeded moments, under load: after a restart it converges,
//! no request fails, and nothing is there twice or left over.

use crate::tiny::{self, all_answered, counts, environment, instances};
use kiln_tests::{Kiln, Project, free_address, kiln_program, run, wait_until};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The crash points that the binary lists, in the order of a deploy, with the passes at which it dies: a rollout has one
/// commit for each of its steps, from the first intent to the last tombstone.
const POINTS: [(&str, std::ops::RangeInclusive<u32>); 15] = [
    ("submit.before-commit", 1..=1),
    ("submit.after-commit", 1..=1),
    ("plan.observed", 1..=1),
    ("plan.before-commit", 1..=8),
    ("plan.after-commit", 1..=8),
    ("bake.before", 1..=1),
    ("bake.after", 1..=1),
    ("ensure.before", 1..=2),
    ("ensure.after", 1..=2),
    ("probe.before", 1..=1),
    ("probe.after", 1..=1),
    ("set-route.before", 1..=1),
    ("set-route.after", 1..=1),
    ("absent.before", 1..=2),
    ("absent.after", 1..=2),
];
/// Kills at seeded moments; `KILN_KILLS` sets another number, `KILN_SEED` other moments.
const MOMENTS: u64 = 20;
const LIMIT: Duration = Duration::from_secs(60);

/// Whether everything is as desired: the serving release has its instances, nothing is under way.
pub(crate) fn is_settled(kiln: &Kiln) -> bool {
    let status = kiln.cli(Path::new("/"), &["status", "--json"]);
    if status.code != 0 {
        // It may be dying right now, as it should.
        return false;
    }
    let environment = status.json()["environments"][0].clone();
    let serving = instances(&environment, &["serving"]).len();
    let states = environment["instances"].as_array().map_or(0, Vec::len);
    let kept = instances(&environment, &["validated"]).len();
    environment["rollout"]["ended"] == true && serving == 2 && states == serving + kept && kept <= 2
}

pub(crate) fn settle(kiln: &Kiln) {
    wait_until("everything is as desired", LIMIT, || is_settled(kiln));
}

/// A server with three releases deployed, so that every further deploy also destroys something.
pub(crate) fn prepared() -> (Kiln, Project, [usize; 5]) {
    let kiln = Kiln::started(&free_address());
    let project = tiny::project();
    for n in 1..4 {
        tiny::deploy(&kiln, &project, n).expect(0);
    }
    settle(&kiln);
    let usual = resting(&kiln);
    (kiln, project, usual)
}

/// What the host has when the server has made ready what it keeps ready, and the last of what ended is gone.
pub(crate) fn resting(kiln: &Kiln) -> [usize; 5] {
    const LOOKS: usize = 40;
    let (mut usual, mut same) = (counts(kiln), 0);
    wait_until("the host is at rest", LIMIT, || {
        std::thread::park_timeout(Duration::from_millis(50));
        let now = counts(kiln);
        same = if now == usual { same + 1 } else { 0 };
        usual = now;
        same >= LOOKS
    });
    usual
}

/// Begins a deploy of marker `n` as a process that outlives the server.
pub(crate) fn begin_deploy(kiln: &Kiln, project: &Project, n: u64) -> std::process::Child {
    project.release(n);
    project.commit(&format!("release {n}"));
    let mut command = kiln.command(project.dir.path(), &["deploy"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("kiln deploy starts")
}

/// After a crash: the deploy comes true, if need be by asking again (a crash before acceptance loses the question, which
/// the client says), and the host looks as before.
pub(crate) fn converge(
    kiln: &mut Kiln,
    project: &Project,
    mut client: std::process::Child,
    n: u64,
    usual: [usize; 5],
) {
    let status = client.wait().expect("the client ends");
    if !status.success() {
        kiln.in_project(project, &["deploy"]).expect(0);
    }
    wait_until("the new release serves alone", LIMIT, || {
        let environment = environment(kiln);
        environment["serving"]["subject"] == format!("release {n}") && is_settled(kiln)
    });
    let mut found = [0; 5];
    let same = (0..200).any(|_| {
        found = counts(kiln);
        found == usual || {
            std::thread::park_timeout(Duration::from_millis(50));
            false
        }
    });
    assert!(same, "processes, mounts, links, cgroups, instances: {usual:?} before, {found:?} after");
}

pub fn points() {
    let (mut kiln, project, usual) = prepared();
    let listed = run(Command::new(kiln_program()).args(["internal", "points"])).expect(0).stdout;
    assert_eq!(
        listed.lines().collect::<Vec<_>>(),
        POINTS.map(|(point, _)| point),
        "every point has its passes"
    );
    let load = tiny::load(&kiln, 300);
    let passes =
        POINTS.into_iter().flat_map(|(point, passes)| passes.map(move |pass| format!("{point}:{pass}")));
    let mut n_died = 0;
    for (n, point) in (4..).zip(passes) {
        kiln.terminate();
        kiln.start(&[("KILN_CRASH_AT", &point)]);
        let mut client = begin_deploy(&kiln, &project, n);
        // A rollout may need fewer passes than this one; then nothing dies.
        let mut died = false;
        wait_until(&format!("the server dies at {point}, or all is done"), LIMIT, || {
            died = kiln.exited();
            died || (client.try_wait().expect("wait").is_some() && is_settled(&kiln))
        });
        n_died += u32::from(died);
        assert!(died || point.ends_with(['5', '6', '7', '8']), "{point} was never passed");
        if died {
            kiln.start(&[]);
        }
        converge(&mut kiln, &project, client, n, usual);
    }
    let requests = all_answered(&load.stop());
    println!(
        "killed at {n_died} named moments, {requests} requests, 0 failed; {usual:?} processes, mounts, links, cgroups, \
         instances before and after each"
    );
    kiln.down();
}

pub fn moments() {
    let (mut kiln, project, usual) = prepared();
    let load = tiny::load(&kiln, 300);
    let number =
        |name: &str, default| std::env::var(name).ok().and_then(|s| s.parse().ok()).unwrap_or(default);
    let (seed, kills) = (number("KILN_SEED", 1_u64), number("KILN_KILLS", MOMENTS));
    let mut random = seed;
    println!("seed {seed}");
    for n in 4..4 + kills {
        // A splitmix64 step; enough for choosing moments.
        random = random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = random;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let delay = (z ^ z >> 27) % 600;
        let client = begin_deploy(&kiln, &project, n);
        std::thread::sleep(Duration::from_millis(delay));
        kiln.kill();
        kiln.start(&[]);
        converge(&mut kiln, &project, client, n, usual);
    }
    let requests = all_answered(&load.stop());
    println!("{kills} seeded moments, {requests} requests, 0 failed; {usual:?} before and after each");
    kiln.down();
}
