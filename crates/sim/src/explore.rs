//! Many runs: seeds, every single crash of a fixed story, pairs of crashes, and planted faults.

use crate::run::{Config, Report, run};
use kiln_model::mutant::{Mutant, plant};
use std::collections::BTreeSet;

/// Seeds that once broke something, kept for ever.
pub const KEPT: &str = include_str!("../seeds.txt");

/// The seeds of a list: one a line, with a word on what it found.
pub fn kept() -> Vec<u64> {
    let words = KEPT.lines().filter_map(|line| line.split_whitespace().next());
    words.filter_map(|word| word.parse().ok()).collect()
}

/// What came of many runs.
#[derive(Debug, Default)]
pub struct Summary {
    /// How many.
    pub runs: u64,
    /// Those that broke an invariant, and which.
    pub broken: Vec<(String, String)>,
    /// Steps of all.
    pub steps: u64,
    /// Simulated milliseconds of all.
    pub span_ms: u64,
    /// Requests that clients made, and those that nobody answered.
    pub requests: (u64, u64),
    /// Points that were passed.
    pub names: BTreeSet<&'static str>,
    /// Points at which a process died.
    pub died_at: BTreeSet<&'static str>,
}

impl Summary {
    fn add(&mut self, what: String, report: Report) {
        self.runs += 1;
        self.steps += report.steps;
        self.span_ms += report.span_ms;
        self.requests.0 += report.requests.0;
        self.requests.1 += report.requests.1;
        self.names.extend(report.names);
        self.died_at.extend(report.died_at);
        if let Some(violation) = report.violation {
            // At once: a long search may have hours to go.
            eprintln!("{what}: {violation}");
            self.broken.push((what, violation));
        }
    }

    /// The points of the binary at which no process died.
    pub fn not_covered(&self) -> Vec<&'static str> {
        let all = kiln_control::crash::Point::ALL.iter().map(|point| point.name());
        all.filter(|name| !self.died_at.contains(name)).collect()
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (made, failed) = self.requests;
        write!(
            f,
            "{} runs, {} broken; {} steps, {} simulated s, {made} requests ({failed} met a dead pool), {} points passed, \
             died at {}",
            self.runs,
            self.broken.len(),
            self.steps,
            self.span_ms / 1000,
            self.names.len(),
            self.died_at.len()
        )
    }
}

/// Runs seeds one after the other; ends early when `enough` were broken.
pub fn seeds(seeds: impl Iterator<Item = u64>, enough: usize) -> Summary {
    let mut summary = Summary::default();
    for seed in seeds {
        summary.add(format!("seed {seed}"), run(&Config::seeded(seed)));
        if summary.broken.len() >= enough {
            break;
        }
    }
    summary
}

/// Every single crash of the fixed story, or every `stride`-th.
pub fn crashes(stride: u64) -> Summary {
    let mut summary = Summary::default();
    let whole = run(&Config::fixed(vec![]));
    let points = whole.points;
    summary.add("the story without a crash".into(), whole);
    for point in (1..=points).step_by(stride.max(1) as usize) {
        summary.add(format!("crash at {point}"), run(&Config::fixed(vec![point])));
    }
    summary
}

/// Pairs of crashes on a grid, `stride` points apart.
pub fn pairs(stride: u64) -> Summary {
    let mut summary = Summary::default();
    let points = run(&Config::fixed(vec![])).points;
    let stride = stride.max(1);
    for first in (1..=points).step_by(stride as usize) {
        for second in (first + 1..=points).step_by(stride as usize + 1) {
            let what = format!("crashes at {first} and {second}");
            summary.add(what, run(&Config::fixed(vec![first, second])));
        }
    }
    summary
}

/// What became of planted faults.
#[derive(Debug)]
pub struct Verdict {
    /// Which were planted together.
    pub planted: Vec<Mutant>,
    /// The first seed that broke something, and what.
    pub killed: Option<(u64, String)>,
}

/// Plants faults in this thread and looks for a seed that finds them.
pub fn hunt(planted: &[Mutant], n_seeds: u64) -> Verdict {
    plant(planted);
    let mut killed = None;
    for seed in 0..n_seeds {
        if let Some(violation) = run(&Config::seeded(seed)).violation {
            killed = Some((seed, violation));
            break;
        }
    }
    plant(&[]);
    Verdict { planted: planted.to_vec(), killed }
}
