//! What the clients print, and medians of ratios.

/// One round of one peer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Round {
    pub(crate) requests: u64,
    pub(crate) per_second: f64,
    pub(crate) p99_ms: f64,
    pub(crate) failed: u64,
    pub(crate) cpu_us: f64,
}

/// The number before a unit, in units of `last`.
fn scaled(text: &str, units: &[(&str, f64)]) -> f64 {
    let hit = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)));
    hit.and_then(|(number, factor)| Some(number.parse::<f64>().ok()? * factor)).unwrap_or(f64::NAN)
}

/// `wrk --latency`.
pub(crate) fn of_wrk(text: &str) -> Round {
    let mut round = Round::default();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [n, "requests", "in", ..] => round.requests = n.parse().unwrap_or_default(),
            ["Requests/sec:", n] => round.per_second = n.parse().unwrap_or_default(),
            ["99%", time] => round.p99_ms = scaled(time, &[("us", 1e-3), ("ms", 1.0), ("s", 1e3)]),
            ["Non-2xx", .., n] => round.failed += n.parse::<u64>().unwrap_or_default(),
            ["Socket", "errors:", ..] => {
                let counts = line.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u64>().ok());
                round.failed += counts.sum::<u64>();
            }
            _ => {}
        }
    }
    round
}

/// `h2load`, which tells no percentiles.
pub(crate) fn of_h2load(text: &str) -> Round {
    let mut round = Round { p99_ms: f64::NAN, ..Round::default() };
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["finished", "in", _, per_second, "req/s,", ..] => {
                round.per_second = per_second.parse().unwrap_or_default();
            }
            [
                "requests:",
                ..,
                done,
                "done,",
                good,
                "succeeded,",
                _,
                "failed,",
                _,
                "errored,",
                _,
                "timeout",
            ] => {
                let number = |text: &str| text.parse::<u64>().unwrap_or_default();
                round.requests = number(done);
                round.failed = number(done).saturating_sub(number(good));
            }
            ["status", "codes:", _, "2xx,", a, "3xx,", b, "4xx,", c, "5xx"] => {
                round.failed += [a, b, c].iter().filter_map(|n| n.parse::<u64>().ok()).sum::<u64>();
            }
            _ => {}
        }
    }
    round
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Medians, and medians of each round's ratio to the first peer: above 1 is better than it.
pub(crate) fn print(name: &str, peers: &[&str], results: &[Vec<Round>]) {
    println!("== {name}: medians of {} rounds, ratios to {} (above 1 is better)", results[0].len(), peers[0]);
    println!(
        "{:8} {:>9} {:>8} {:>11} {:>9} {:>9} {:>7}",
        "", "req/s", "p99 ms", "CPU us/req", "CPU ratio", "rps ratio", "failed"
    );
    for (peer, rounds) in peers.iter().zip(results) {
        let ratio =
            |of: fn(&Round, &Round) -> f64| median(rounds.iter().zip(&results[0]).map(|(a, b)| of(a, b)));
        println!(
            "{peer:8} {:9.0} {:8.2} {:11.2} {:9.2} {:9.2} {:7}",
            median(rounds.iter().map(|r| r.per_second)),
            median(rounds.iter().map(|r| r.p99_ms)),
            median(rounds.iter().map(|r| r.cpu_us)),
            ratio(|a, b| b.cpu_us / a.cpu_us),
            ratio(|a, b| a.per_second / b.per_second),
            rounds.iter().map(|r| r.failed).sum::<u64>(),
        );
    }
}
