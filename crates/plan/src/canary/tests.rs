//! Tables for the rule, and its rates of error measured on random traffic with known truth.

use super::*;

fn side(requests: u64, errors: u64, latency: &[(usize, u64)]) -> Side {
    let mut buckets = vec![0; LATENCY_BUCKETS];
    latency.iter().for_each(|(bucket, n)| buckets[*bucket] += n);
    Side { instances: 1, tally: Tally { requests, errors, ..Tally::default() }, latency: buckets }
}

fn figures(candidate: Side, baseline: Side) -> Figures {
    Figures { service: ServiceName::new("web").unwrap(), needed: true, candidate, baseline }
}

fn even(requests: u64, errors: u64) -> Side {
    side(requests, errors, &[(7, requests)])
}

#[test]
fn the_published_interval_is_reproduced() {
    // Newcombe 1998, table II, method 10: 56/70 - 48/80 has the 95 % interval 0.0524 to 0.3339. At 3 standard errors the
    // interval is wider by about 3/1.96.
    let lower = newcombe_lower((56, 70), (48, 80));
    assert!((-0.03..-0.015).contains(&lower), "{lower}");
    let (low, high) = wilson(0, 50);
    assert!(low == 0.0 && (0.15..0.16).contains(&high), "{high}");
    assert_eq!(wilson(0, 0), (0.0, 1.0));
}

#[test]
fn what_is_judged_in_which_way() {
    let analysis = Analysis::default();
    let judge = |candidate: &Side, baseline: &Side| match judge(
        &analysis,
        &[figures(candidate.clone(), baseline.clone())],
        (0, 0),
    ) {
        Verdict::Passes => "passes".to_owned(),
        Verdict::Holds(why) => format!("holds: {why}"),
        Verdict::Worse(why) => format!("worse: {why}"),
    };
    for (candidate, baseline, expected) in [
        (even(0, 0), even(0, 0), "holds: `web` has had too few"),
        (even(49, 0), even(500, 0), "holds: `web` has had too few"),
        (even(500, 0), even(49, 0), "holds: `web` has had too few"),
        (even(50, 0), even(50, 0), "passes"),
        (even(500, 5), even(500, 0), "passes"),
        (even(50, 1), even(50, 0), "holds: more requests are needed: `web` failed 1 of 50"),
        (even(9, 9), even(9, 0), "holds"),
        (even(10, 10), even(10, 0), "worse: `web` failed 10 of 10 requests, the baseline 0 of 10"),
        (even(50, 50), even(50, 0), "worse"),
        (even(1000, 60), even(1000, 0), "worse"),
        (even(1000, 60), even(1000, 55), "passes"),
        // Both are bad: that is not the candidate's fault.
        (even(100, 100), even(100, 100), "passes"),
        (side(100, 0, &[(8, 100)]), even(100, 0), "passes"),
        (
            side(100, 0, &[(9, 100)]),
            even(100, 0),
            "worse: `web` is slow: 100 of 100 requests took longer than 32 ms",
        ),
        // Its median is fine, its 95th percentile is not.
        (side(100, 0, &[(7, 75), (13, 25)]), even(100, 0), "worse: `web` is slow: 25 of 100"),
        (side(100, 0, &[(7, 93), (13, 7)]), even(100, 0), "holds: more requests are needed: `web` is slow"),
        (side(100, 0, &[(0, 100)]), even(100, 0), "passes"),
        // Ten times as slow, and yet faster than the floor.
        (side(100, 0, &[(6, 100)]), side(100, 0, &[(2, 100)]), "passes"),
    ] {
        let verdict = judge(&candidate, &baseline);
        assert!(verdict.starts_with(expected), "{candidate:?} {baseline:?}: {verdict}");
    }
}

#[test]
fn exits_services_without_requests_and_lenient_limits() {
    let analysis = Analysis::default();
    let fine = figures(even(100, 0), even(100, 0));
    let verdict = |services: &[Figures], exits| judge(&analysis, services, exits);
    assert_eq!(verdict(std::slice::from_ref(&fine), (0, 0)), Verdict::Passes);
    assert!(matches!(verdict(std::slice::from_ref(&fine), (1, 0)), Verdict::Worse(_)));
    assert_eq!(verdict(std::slice::from_ref(&fine), (1, 1)), Verdict::Passes);
    let unused = Figures { needed: false, ..figures(even(0, 0), even(0, 0)) };
    assert_eq!(verdict(&[fine.clone(), unused.clone()], (0, 0)), Verdict::Passes);
    assert!(matches!(verdict(&[unused], (0, 0)), Verdict::Holds(_)), "nothing to judge never passes");
    assert!(matches!(verdict(&[], (0, 0)), Verdict::Holds(_)));
    let worse = figures(even(100, 100), even(100, 0));
    assert!(matches!(verdict(&[figures(even(0, 0), even(0, 0)), worse.clone()], (0, 0)), Verdict::Worse(_)));
    let lenient = Analysis { errors: 10_000, latency: 100_000, ..analysis };
    assert_eq!(judge(&lenient, &[worse], (0, 0)), Verdict::Passes);
}

/// xorshift64*, as elsewhere in tests.
struct Rng(u64);

impl Rng {
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// One more answer: it fails with `p_failed`, and takes `scale` times a log-normal time with a median of 20 ms.
    fn answer(&mut self, side: &mut Side, p_failed: f64, scale: f64) {
        let normal = (0..12).map(|_| self.unit()).sum::<f64>() - 6.0;
        let micros = (20_000.0 * scale * (0.7 * normal).exp()) as u64;
        let bucket = (0..LATENCY_BUCKETS - 1).find(|n| micros <= 128 << n).unwrap_or(LATENCY_BUCKETS - 1);
        side.latency[bucket] += 1;
        side.tally.requests += 1;
        side.tally.errors += u64::from(self.unit() < p_failed);
    }
}

/// Of `runs` canaries with `n` requests of each side, looked at after every fifth: how many were found worse at some
/// look, and how many passed at the last one.
fn rates(runs: u64, n: u64, base: f64, candidate: f64, scale: f64) -> (f64, f64) {
    let analysis = Analysis::default();
    let (mut worse, mut passed) = (0, 0);
    for run in 1..=runs {
        let mut rng = Rng(run.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let mut both = figures(even(0, 0), even(0, 0));
        let mut last = Verdict::Passes;
        for look in 1..=n {
            rng.answer(&mut both.candidate, candidate, scale);
            rng.answer(&mut both.baseline, base, 1.0);
            if look % 5 == 0 {
                last = judge(&analysis, std::slice::from_ref(&both), (0, 0));
                if matches!(last, Verdict::Worse(_)) {
                    break;
                }
            }
        }
        worse += u64::from(matches!(last, Verdict::Worse(_)));
        passed += u64::from(last == Verdict::Passes);
    }
    (worse as f64 / runs as f64, passed as f64 / runs as f64)
}

/// The rates that docs/how-to/choose-a-rollout.md states.
#[test]
fn known_rates_of_error() {
    for (base, n) in [(0.0, 50), (0.001, 500), (0.01, 500), (0.05, 500)] {
        let (worse, _) = rates(400, n, base, base, 1.0);
        assert!(worse <= 0.01, "an equal candidate at {base} is taken back in {worse}");
    }
    let (_, passed) = rates(400, 50, 0.001, 0.001, 1.0);
    assert!(passed >= 0.9, "an equal candidate passes with the least requests in {passed}");
    for (base, candidate, scale, n) in
        [(0.0, 1.0, 1.0, 50), (0.001, 0.5, 1.0, 50), (0.001, 0.1, 1.0, 300), (0.001, 0.001, 8.0, 50)]
    {
        let (worse, passed) = rates(400, n, base, candidate, scale);
        assert!(worse >= 0.99, "{candidate} against {base}, {scale} times as slow: found in {worse} only");
        assert!(passed == 0.0, "{candidate} against {base}, {scale} times as slow: passes in {passed}");
    }
}
