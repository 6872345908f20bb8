//! What CI runs of the simulator. `just nightly` runs the rest.

use kiln_sim::{Config, explore, run};

/// Seeds of one CI run; `KILN_SIM_SEEDS` sets another number.
const SEEDS: u64 = 2_000;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[track_caller]
fn assert_clean(summary: &explore::Summary) {
    println!("{summary}");
    let hint =
        "`cargo run -p kiln-sim -- replay --seed N` tells the story; its seed goes into crates/sim/seeds.txt";
    assert!(summary.broken.is_empty(), "{:#?}\n{hint}", summary.broken);
}

#[test]
fn every_seed_keeps_every_invariant() {
    let count = number("KILN_SIM_SEEDS", SEEDS);
    let half = |rest: u64| explore::seeds((0..count).filter(move |seed| seed % 2 == rest), 5);
    let (even, odd) = std::thread::scope(|scope| {
        let even = scope.spawn(|| half(0));
        (even.join().expect("no panic"), half(1))
    });
    assert_clean(&even);
    assert_clean(&odd);
    let died: Vec<_> = even.died_at.union(&odd.died_at).collect();
    let missing = kiln_control::crash::Point::ALL.iter().filter(|point| !died.contains(&&point.name()));
    assert_eq!(missing.count(), 0, "a process died at every named point: {died:?}");
}

#[test]
fn seeds_that_once_broke_something() {
    assert_clean(&explore::seeds(explore::kept().into_iter(), 5));
}

#[test]
fn every_single_crash_of_a_story() {
    let summary = explore::crashes(1);
    assert_clean(&summary);
    assert_eq!(summary.requests.1, 0, "requests that nobody answered");
    assert_eq!(summary.not_covered(), Vec::<&str>::new(), "a process died at every named point");
}

/// Whatever differs between two runs of one seed makes every other finding worthless.
#[test]
fn one_seed_is_one_story() {
    // Three nodes and SQLite are among them.
    for seed in [0, 2, 5, 15, 47, 79] {
        let config = Config { trace: true, ..Config::seeded(seed) };
        let (first, second) = (run(&config), run(&config));
        assert_eq!(first.lines, second.lines, "seed {seed}");
        assert_eq!((first.hash, first.steps), (second.hash, second.steps), "seed {seed}");
        let quiet = run(&Config { trace: false, ..config.clone() });
        assert_eq!(quiet.hash, first.hash, "seed {seed}: whether it is told changes nothing");
        let memory = run(&Config { sqlite: !config.sqlite, ..config });
        assert_eq!(memory.hash, first.hash, "seed {seed}: SQLite and memory are one rule book");
    }
}
