//! The program of instances that print numbered lines. Its last line, to standard error, says how many there were.

use std::io::Write;
use std::time::{Duration, Instant};

/// As long as lines of servers are.
const FILL: &str = "2026-01-01T00:00:00Z GET /a/path/of/a/page 200";
const BEAT: Duration = Duration::from_millis(10);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |n: usize| args[n].parse::<u64>().unwrap();
    let written = match args[0].as_str() {
        "paced" => paced(number(1), number(2)),
        "flood" => flood(Duration::from_millis(number(1))),
        other => panic!("{other}"),
    };
    eprintln!("wrote {written}");
}

/// Lines at a rate, in seconds.
fn paced(count: u64, rate: u64) -> u64 {
    let begun = Instant::now();
    let mut out = std::io::stdout().lock();
    let mut written = 0;
    while written < count {
        let due = (begun.elapsed().as_micros() as u64 * rate / 1_000_000).min(count);
        let mut text = String::new();
        while written < due {
            text.push_str(&format!("{written} {FILL}\n"));
            written += 1;
        }
        out.write_all(text.as_bytes()).unwrap();
        std::thread::sleep(BEAT);
    }
    written
}

fn flood(time: Duration) -> u64 {
    let begun = Instant::now();
    let mut out = std::io::stdout().lock();
    let mut written = 0;
    while begun.elapsed() < time {
        let mut text = String::new();
        for _ in 0..500 {
            text.push_str(&format!("{written} {FILL}\n"));
            written += 1;
        }
        out.write_all(text.as_bytes()).unwrap();
    }
    written
}
