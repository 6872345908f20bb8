//! Figures as lines.

use std::time::Duration;

/// Milliseconds of the same thing, again and again.
#[derive(Debug, Default, Clone)]
pub struct Figures(Vec<f64>);

impl Figures {
    pub fn push(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64() * 1e3);
    }

    pub fn extend(&mut self, milliseconds: &[f64]) {
        self.0.extend(milliseconds);
    }

    /// The value below which a share of them lies.
    pub fn at(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1) as f64;
        sorted.get((last * share).round() as usize).copied().unwrap_or(f64::NAN)
    }

    pub fn median(&self) -> f64 {
        self.at(0.5)
    }

    /// A line of the table, if there is anything to tell.
    pub fn line(&self, name: &str) {
        if !self.0.is_empty() {
            let (median, p99, n) = (self.median(), self.at(0.99), self.0.len());
            println!("{name:<62} median {median:9.3} ms   p99 {p99:9.3} ms   n {n}");
        }
    }
}

/// How many times faster than a peer it has to be, and whether it is.
pub fn times(what: &str, peer: &Figures, own: &Figures, at_least: f64) {
    let ratio = peer.median() / own.median();
    if ratio.is_finite() {
        println!(
            "  {what}: {ratio:.1} times; goal: at least {at_least} times: {}",
            verdict(ratio >= at_least)
        );
    }
}

/// A bound, and whether it is kept.
pub fn at_most(what: &str, value: f64, unit: &str, bound: f64) {
    if value.is_finite() {
        println!("  {what}: {value:.3} {unit}; goal: at most {bound} {unit}: {}", verdict(value <= bound));
    }
}

fn verdict(is_met: bool) -> &'static str {
    if is_met { "met" } else { "missed" }
}
