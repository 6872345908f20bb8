//! What runs at once: a server that dies between a start and its record, and a collection of images beside rollouts.

use super::{LIMIT, deployed, times};
use crate::crashes::{is_settled, resting};
use crate::tiny::{self, all_answered, counts, environment, instances};
use kiln_tests::{Kiln, wait_until};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// A start whose answer is lost with the server: the instance is found again, and nothing is there twice.
pub fn lost_starts() {
    if times(0, 1) == 0 {
        println!("only with KILN_NIGHTLY; crash_points and crash_moments are the short forms");
        return;
    }
    let (mut kiln, project) = deployed();
    let scale = |kiln: &Kiln, wanted: &str| kiln.in_project(&project, &["scale", wanted]).code == 0;
    let only = |kiln: &Kiln, n: usize| {
        wait_until(&format!("{n} serve alone"), LIMIT, || {
            let now = environment(kiln);
            instances(&now, &["serving"]).len() == n && now["instances"].as_array().map(Vec::len) == Some(n)
        });
    };
    assert!(scale(&kiln, "api=1"));
    only(&kiln, 1);
    let usual = resting(&kiln);
    let (rounds, mut n_died) = (times(0, 100), 0);
    for round in 0..rounds {
        let point = ["ensure.after:1", "ensure.before:2", "plan.after-commit:2", "absent.after:1"]
            [round as usize % 4];
        if point.starts_with("absent") {
            assert!(scale(&kiln, "api=3"));
            only(&kiln, 3);
        }
        kiln.kill();
        kiln.start(&[("KILN_CRASH_AT", point)]);
        let (wanted, n) = if point.starts_with("absent") { ("api=1", 1) } else { ("api=3", 3) };
        // The answer may be lost with the server: then it is asked for again.
        let recorded = scale(&kiln, wanted);
        wait_until(&format!("the server dies at {point}"), LIMIT, || kiln.exited());
        n_died += 1;
        kiln.start(&[]);
        assert!(recorded || scale(&kiln, wanted));
        only(&kiln, n);
        assert!(scale(&kiln, "api=1"));
        only(&kiln, 1);
        let mut found = [0; 5];
        wait_until(&format!("round {round}: {usual:?} is what is there ({point})"), LIMIT, || {
            found = counts(&kiln);
            found == usual
        });
    }
    assert_eq!(n_died, rounds);
    println!("{rounds} starts and ends whose answer was lost: {usual:?} before and after each");
    kiln.down();
}

/// Nothing that a rollout or a rollback needs is collected.
pub fn collected() {
    let (kiln, project) = deployed();
    let load = tiny::load(&kiln, 200);
    let (done, rounds) = (AtomicBool::new(false), times(2, 50));
    let collections = std::thread::scope(|scope| {
        let (kiln, done, folder) = (&kiln, &done, project.dir.path());
        let gc = scope.spawn(move || {
            let mut n = 0;
            while !done.load(Relaxed) {
                kiln.cli(folder, &["image", "gc", "--older-than", "0s"]).expect(0);
                n += 1;
            }
            n
        });
        for n in 2..2 + rounds {
            tiny::deploy(kiln, &project, n).expect(0);
            if n % 2 == 0 {
                kiln.in_project(&project, &["rollback"]).expect(0);
                kiln.in_project(&project, &["rollback", "--to", &n.to_string()]).expect(0);
            }
        }
        done.store(true, Relaxed);
        gc.join().expect("the collector")
    });
    wait_until("settled", LIMIT, || is_settled(&kiln));
    kiln.in_project(&project, &["image", "verify", "--all"]).expect(0);
    println!(
        "{collections} collections beside {rounds} deploys and as many rollbacks: {} requests, 0 failed",
        all_answered(&load.stop())
    );
    kiln.down();
}
