//! Judges a candidate against a fresh baseline: instances of the old release that were started beside it and get the same
//! share of the requests, so that warm caches and old connections favour neither (Kayenta's rule: compare with a baseline,
//! not with production).
//!
//! One bound decides everything: three standard errors. The share of failed requests is compared with Newcombe's hybrid
//! score interval (Statistics in Medicine 17, 1998, 873-890, method 10), a quantile with Wilson's score interval (JASA 22,
//! 1927): if the share of the candidate's answers that are slower than a limit taken from the baseline's quantile is
//! certainly above what that quantile leaves, the candidate's quantile is certainly above the limit. Both hold for small
//! counts and for shares of 0 and 1. The figures are looked at many times, so the bound is that of Haybittle and Peto for
//! repeated looks: 3 standard errors, each time. Requests that wait together are not independent, which no such interval
//! knows; therefore nothing that is faster than a floor counts as slow. What is neither certainly worse nor as good as asked waits for more
//! requests; it never passes.

use kiln_model::edge::{LATENCY_BUCKETS, Tally};
use kiln_model::strategy::Analysis;
use kiln_model::{Millis, ServiceName};

/// Standard errors that make a difference certain.
const Z: f64 = 3.0;
/// Requests of each side below which nothing is certain: the intervals are made for more.
const LEAST: u64 = 10;
/// The quantiles that are compared.
const QUANTILES: [f64; 2] = [0.5, 0.95];

/// What one side of a service answered since the step began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Side {
    /// Its instances in the table.
    pub instances: u32,
    /// What it answered.
    pub tally: Tally,
    /// How fast, see [`LATENCY_BUCKETS`].
    pub latency: Vec<u64>,
}

impl Side {
    /// Requests that ended.
    pub fn requests(&self) -> u64 {
        self.tally.requests
    }

    /// Of these: those that failed, whoever noticed it.
    pub fn failed(&self) -> u64 {
        (self.tally.failed + self.tally.cut + self.tally.errors).min(self.tally.requests)
    }

    /// The upper bound of the bucket that holds the quantile; none without requests.
    pub fn quantile(&self, q: f64) -> Option<Micros> {
        let total: u64 = self.latency.iter().sum();
        let rank = (total as f64 * q).ceil().max(1.0) as u64;
        let mut sum = 0;
        let holds = |n: &u64| {
            sum += n;
            sum >= rank
        };
        self.latency.iter().position(holds).map(|bucket| Micros(128 << bucket.min(LATENCY_BUCKETS)))
    }

    /// Requests that certainly took longer than `limit`: those in buckets that begin at it or above.
    fn slower_than(&self, limit: Micros) -> u64 {
        let begin = |bucket: usize| Micros(if bucket == 0 { 0 } else { 64 << bucket.min(LATENCY_BUCKETS) });
        self.latency.iter().enumerate().filter(|(n, _)| begin(*n) >= limit).map(|(_, count)| count).sum()
    }
}

/// Microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Micros(pub u64);

impl std::fmt::Display for Micros {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            us if us < 1000 => write!(f, "{us} us"),
            us => write!(f, "{}", Millis(us / 1000)),
        }
    }
}

/// Both sides of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figures {
    /// Which.
    pub service: ServiceName,
    /// Whether the step cannot pass without requests to it: it has a route, or somebody asked it.
    pub needed: bool,
    /// The new release.
    pub candidate: Side,
    /// Fresh instances of the old one.
    pub baseline: Side,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let side = |side: &Side| {
            let at = |q| side.quantile(q).map_or("-".to_owned(), |us| format!("below {us}"));
            let (failed, requests) = (side.failed(), side.requests());
            format!("{failed} of {requests} failed, p50 {}, p95 {}", at(QUANTILES[0]), at(QUANTILES[1]))
        };
        let (candidate, baseline) = (side(&self.candidate), side(&self.baseline));
        write!(f, "{}: candidate {candidate}; baseline {baseline}", self.service)
    }
}

/// What the figures say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As good as asked.
    Passes,
    /// Nothing is certain yet; why.
    Holds(String),
    /// Certainly worse; how.
    Worse(String),
}

/// Judges all services of a step. `exits` are those of the candidate and of the baseline.
pub fn judge(analysis: &Analysis, figures: &[Figures], exits: (u32, u32)) -> Verdict {
    if exits.0 > exits.1 {
        let (own, other) = exits;
        return Verdict::Worse(format!(
            "{own} of its instances ended or failed their checks, of the baseline {other}"
        ));
    }
    let verdicts: Vec<Verdict> = figures.iter().map(|service| judge_one(analysis, service)).collect();
    let worst = |verdict: &&Verdict| matches!(verdict, Verdict::Worse(_));
    let unsure = |verdict: &&Verdict| matches!(verdict, Verdict::Holds(_));
    let found = verdicts.iter().find(worst).or_else(|| verdicts.iter().find(unsure));
    match found {
        Some(verdict) => verdict.clone(),
        None if figures.iter().any(|service| service.needed) => Verdict::Passes,
        None => Verdict::Holds("no service had a request that could be judged".into()),
    }
}

fn judge_one(analysis: &Analysis, figures: &Figures) -> Verdict {
    let (name, candidate, baseline) = (&figures.service, &figures.candidate, &figures.baseline);
    let (n, m) = (candidate.requests(), baseline.requests());
    let certain = n >= LEAST && m >= LEAST;
    let mut unsure = None;
    let allowed = f64::from(analysis.errors) / 10_000.0;
    let (own, other) = (share(candidate.failed(), n), share(baseline.failed(), m));
    let excess = newcombe_lower((candidate.failed(), n), (baseline.failed(), m));
    if own - other > allowed {
        let text = format!(
            "`{name}` failed {} of {n} requests, the baseline {} of {m}",
            candidate.failed(),
            baseline.failed()
        );
        if certain && excess > allowed {
            return Verdict::Worse(text);
        }
        unsure = Some(text);
    }
    for q in QUANTILES {
        let Some(quantile) = baseline.quantile(q) else { continue };
        let floor = Micros(analysis.latency_floor.0.saturating_mul(1000));
        let limit = Micros(quantile.0 << doublings(analysis.latency)).max(floor);
        let total: u64 = candidate.latency.iter().sum();
        let slow = candidate.slower_than(limit);
        if share(slow, total) <= 1.0 - q {
            continue;
        }
        let percent = q * 100.0;
        let text = format!(
            "`{name}` is slow: {slow} of {total} requests took longer than {limit}; {percent} % of the baseline's took less \
             than {quantile}"
        );
        if certain && wilson(slow, total).0 > 1.0 - q {
            return Verdict::Worse(text);
        }
        unsure = unsure.or(Some(text));
    }
    let least = analysis.min_requests;
    if figures.needed && (n < least || m < least) {
        return Verdict::Holds(format!("`{name}` has had too few requests: {least} of each side are needed"));
    }
    unsure.map_or(Verdict::Passes, |text| Verdict::Holds(format!("more requests are needed: {text}")))
}

/// Buckets are powers of two: a factor of 2 is one bucket, and what is between two counts as the larger.
fn doublings(percent: u32) -> u32 {
    (0..10).find(|n| 100u32 << n >= percent).unwrap_or(10)
}

fn share(part: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { part as f64 / of as f64 }
}

/// Wilson's score interval of a share.
fn wilson(part: u64, of: u64) -> (f64, f64) {
    if of == 0 {
        return (0.0, 1.0);
    }
    let (n, p, z2) = (of as f64, share(part, of), Z * Z);
    let centre = p + z2 / (2.0 * n);
    let half = Z * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z2 / n;
    (((centre - half) / scale).max(0.0), ((centre + half) / scale).min(1.0))
}

/// The lower end of Newcombe's interval for the difference of two shares.
fn newcombe_lower(own: (u64, u64), other: (u64, u64)) -> f64 {
    let (p, q) = (share(own.0, own.1), share(other.0, other.1));
    let ((low, _), (_, high)) = (wilson(own.0, own.1), wilson(other.0, other.1));
    p - q - ((p - low).powi(2) + (high - q).powi(2)).sqrt()
}

#[cfg(test)]
#[path = "canary/tests.rs"]
mod tests;
