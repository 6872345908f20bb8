//! `kiln-sim`: many seeds, every crash, planted faults, or the story of one seed.

use kiln_model::mutant::Mutant;
use kiln_sim::explore::{self, Summary};
use kiln_sim::{Config, run};
use std::process::ExitCode;
use std::time::Instant;

const USAGE: &str = "usage: kiln-sim seeds [--from N] [--count N] [--threads N]
       kiln-sim crashes [--stride N]
       kiln-sim pairs [--stride N]
       kiln-sim mutants [--count N] [--pairs]
       kiln-sim replay (--seed N | --crash N[,N]) [--mutant NAME[,NAME]] [--trace]";

/// Broken runs after which a search ends.
const ENOUGH: usize = 10;

fn value<T: std::str::FromStr>(arguments: &[String], name: &str) -> Option<T> {
    let at = arguments.iter().position(|argument| argument == name)?;
    arguments.get(at + 1)?.parse().ok()
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str, default: u64| value(&arguments, name).unwrap_or(default);
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let began = Instant::now();
    match arguments.first().map(String::as_str) {
        Some("seeds") => seeds(number("--from", 0), number("--count", 2_000), number("--threads", 1)),
        Some("crashes") => tell(&explore::crashes(number("--stride", 1)), began),
        Some("pairs") => tell(&explore::pairs(number("--stride", 23)), began),
        Some("mutants") => mutants(number("--count", 300), has("--pairs")),
        Some("replay") => replay(&arguments, has("--trace")),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(64)
        }
    }
}

fn tell(summary: &Summary, began: Instant) -> ExitCode {
    println!("{summary}; {:.1} s", began.elapsed().as_secs_f64());
    let missing = summary.not_covered();
    if !missing.is_empty() {
        println!("no process died at: {}", missing.join(", "));
    }
    if summary.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn seeds(from: u64, count: u64, threads: u64) -> ExitCode {
    let began = Instant::now();
    let threads = threads.max(1);
    let one = |thread: u64| explore::seeds((from + thread..from + count).step_by(threads as usize), ENOUGH);
    let summaries: Vec<Summary> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || one(thread))).collect();
        running.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let mut codes = summaries.iter().map(|summary| tell(summary, began));
    if codes.all(|code| code == ExitCode::SUCCESS) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn mutants(count: u64, pairs: bool) -> ExitCode {
    let hunt = |planted: &[Mutant]| {
        let began = Instant::now();
        let verdict = explore::hunt(planted, count);
        let names: Vec<_> = planted.iter().map(|mutant| mutant.name()).collect();
        let found =
            verdict.killed.as_ref().map_or("SURVIVES".into(), |(seed, what)| format!("seed {seed}: {what}"));
        let found: String = found.chars().take(110).collect();
        println!("{:40} {:5.1} s  {found}", names.join(" + "), began.elapsed().as_secs_f64());
        verdict.killed.is_some()
    };
    let survivors: Vec<Mutant> = Mutant::ALL.iter().copied().filter(|mutant| !hunt(&[*mutant])).collect();
    if pairs {
        for (index, mutant) in survivors.iter().enumerate() {
            let partners = Mutant::ALL.iter().filter(|m| !survivors[..=index].contains(m));
            for partner in partners {
                hunt(&[*mutant, *partner]);
            }
        }
    }
    ExitCode::SUCCESS
}

fn replay(arguments: &[String], trace: bool) -> ExitCode {
    let crashes: Option<String> = value(arguments, "--crash");
    let config = match crashes {
        Some(list) => Config::fixed(list.split(',').filter_map(|n| n.parse().ok()).collect()),
        None => Config::seeded(value(arguments, "--seed").unwrap_or(0)),
    };
    let names: String = value(arguments, "--mutant").unwrap_or_default();
    let planted: Vec<Mutant> =
        names.split(',').filter_map(|n| Mutant::ALL.iter().copied().find(|m| m.name() == n)).collect();
    kiln_model::mutant::plant(&planted);
    let report = run(&Config { trace: true, ..config.clone() });
    // Without `--trace` only what led to the end: commits are told by what they moved.
    let minimal = |line: &&String| trace || !line.contains(" commit ");
    report.lines.iter().filter(minimal).for_each(|line| println!("{line}"));
    println!(
        "{} steps, {} points, {} simulated ms, hash {:016x}, {} nodes, {:?}",
        report.steps, report.points, report.span_ms, report.hash, config.nodes, config.faults
    );
    match report.violation {
        None => ExitCode::SUCCESS,
        Some(violation) => {
            println!("broken: {violation}");
            ExitCode::FAILURE
        }
    }
}
