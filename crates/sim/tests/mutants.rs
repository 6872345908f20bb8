//! Every planted fault is found, or stands behind another defence. That tells more about the simulator than its clean runs.

use kiln_model::mutant::Mutant;
use kiln_sim::explore::hunt;

/// Seeds that are tried; `KILN_SIM_MUTANTS` sets another number.
const SEEDS: u64 = 1_000;

/// Faults that alone break nothing, because something else stands behind what they take away; with it gone they are found.
/// docs/simulator.md has the reasons.
const SECOND_LINES: &[(Mutant, &[Mutant])] = &[
    (Mutant::NoLint, &[Mutant::SwitchUnvalidated]),
    (Mutant::OldResults, &[Mutant::ForgetRunning]),
    (Mutant::StaleSnapshot, &[Mutant::NoRecoveryHold]),
    (Mutant::EndInUse, &[Mutant::NoRecoveryHold]),
];

#[test]
fn planted_faults_are_found() {
    let seeds = std::env::var("KILN_SIM_MUTANTS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS);
    let mut survivors = vec![];
    for mutant in
        Mutant::ALL.iter().filter(|mutant| !SECOND_LINES.iter().any(|(second, _)| second == *mutant))
    {
        let verdict = hunt(&[*mutant], seeds);
        println!("{:20} {:?}", mutant.name(), verdict.killed);
        survivors.extend(verdict.killed.is_none().then_some(mutant.name()));
    }
    for (mutant, with) in SECOND_LINES {
        let planted: Vec<Mutant> = std::iter::once(*mutant).chain(with.iter().copied()).collect();
        let verdict = hunt(&planted, seeds);
        println!("{:20} with {with:?}: {:?}", mutant.name(), verdict.killed);
        survivors.extend(verdict.killed.is_none().then_some(mutant.name()));
    }
    assert_eq!(survivors, Vec::<&str>::new(), "faults that no seed found");
}
