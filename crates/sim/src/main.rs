//! `kiln-sim`.
fn main() {
    let mut args = std::env::args().skip(1);
    let from: u64 = args.next().and_then(|a| a.parse().ok()).unwrap_or(0);
    let to: u64 = args.next().and_then(|a| a.parse().ok()).unwrap_or(1);
    let trace = args.next().is_some();
    let began = std::time::Instant::now();
    let (mut steps, mut span, mut bad) = (0, 0, 0);
    for seed in from..to {
        let report = kiln_sim::run(&kiln_sim::Config { trace, ..kiln_sim::Config::seeded(seed) });
        steps += report.steps;
        span += report.span_ms;
        if trace {
            report.lines.iter().for_each(|l| println!("{l}"));
            println!(
                "{:?} hash {:x} steps {} points {} requests {:?}",
                report.violation, report.hash, report.steps, report.points, report.requests
            );
        }
        if let Some(v) = report.violation {
            bad += 1;
            if bad < 12 {
                println!("seed {seed}: {}", v.chars().take(300).collect::<String>());
            }
        }
    }
    println!("{bad} bad, {:?}, {steps} steps, {} simulated s", began.elapsed(), span / 1000);
}
