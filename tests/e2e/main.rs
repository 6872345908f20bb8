//! End to end: real servers in real sandboxes behind the real edge, under real traffic, as root, in a network namespace of
//! its own. `e2e [NAME]...` runs the cases whose names contain one of the words.

mod acceptance;
mod autoscale;
mod bad_input;
mod bakes;
mod bases;
mod builds;
mod crashes;
mod debian;
mod deploys;
mod edge_upgrade;
mod exchange;
mod forced;
mod host_rebooted;
mod https;
mod internal_names;
mod lint;
mod machine_service;
mod machines;
mod old_host;
mod operations;
mod promotion;
mod raw_routes;
mod rebuilt;
mod restored;
mod retention;
mod second_project;
mod secrets;
mod several_servers;
mod soak;
mod store_over_tls;
mod strategies;
mod taken_back;
mod tiny;
mod trust;

use kiln_tests::{OUTSIDE_NETWORK, own_network};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Runs the one case of that name in this process.
const CASE: &str = "--case";

/// Cases that run at a time: most of them wait for something most of the time.
const N_LANES: usize = 2;

/// The longest first, so that the lanes end together.
const CASES: &[(&str, fn())] = &[
    ("bad_input", bad_input::run),
    ("bakes_are_reproducible", bakes::run),
    ("exchange", exchange::run),
    ("machines", machines::run),
    ("old_host", old_host::run),
    ("forced_fallbacks", forced::run),
    ("host_rebooted", host_rebooted::run),
    ("machine_service", machine_service::run),
    ("bases_of_oci", bases::oci),
    ("bases_of_buildah", bases::containerfile),
    ("bases_with_playbooks", bases::provision),
    ("builds", builds::run),
    ("debian_packages", debian::run),
    ("lint_refuses", lint::run),
    ("rebuilt_elsewhere", rebuilt::run),
    ("operations", operations::run),
    ("autoscale", autoscale::run),
    ("retention_of_images", retention::run),
    ("taken_back", taken_back::run),
    ("crash_points", crashes::points),
    ("crash_moments", crashes::moments),
    ("deploys_under_load", deploys::run),
    ("edge_upgrade", edge_upgrade::run),
    ("https", https::run_case),
    ("internal_names", internal_names::run),
    ("raw_routes", raw_routes::run),
    ("strategies_canary", strategies::canary),
    ("strategies_rolling", strategies::rolling),
    ("strategies_warm_rollback", strategies::warm),
    ("trust", trust::run),
    ("restored", restored::run),
    ("restored_files", restored::files),
    ("restored_crashes", restored::crashes),
    ("mutant_is_seen", deploys::mutant),
    ("second_project", second_project::run),
    ("secrets", secrets::run_all),
    ("promotion", promotion::run),
    ("several_servers", several_servers::run_all),
    ("store_over_tls", store_over_tls::run),
    ("soak_of_rollouts", soak::run),
    ("acceptance_pause", acceptance::pause::run),
    ("acceptance_idle", acceptance::idle::run),
    ("acceptance_edge_delayed", acceptance::edge::delayed),
    ("acceptance_edge_routes", acceptance::edge::loses_no_routes),
    ("acceptance_clock", acceptance::clock::run),
    ("acceptance_phase_upgraded", acceptance::phases::upgraded),
    ("acceptance_phase_scaled", acceptance::phases::scaled),
    ("acceptance_lost_starts", acceptance::race::lost_starts),
    ("acceptance_collected", acceptance::race::collected),
    ("acceptance_once", acceptance::commands::once),
    ("acceptance_operators", acceptance::commands::operators),
    ("acceptance_random", acceptance::commands::random),
    ("acceptance_flaky", acceptance::flaky::run),
    ("acceptance_rows", acceptance::damage::rows),
    ("acceptance_files", acceptance::damage::files),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        return;
    }
    if arguments.iter().any(|argument| argument == old_host::INSIDE) {
        // Nobody else is on that host.
        old_host::inside::run();
        return;
    }
    if !own_network() {
        return;
    }
    if let [CASE, name] = arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        let (_, case) = CASES.iter().find(|(other, _)| *other == name).expect("a case of this name");
        return case();
    }
    let words: Vec<&str> =
        arguments.iter().filter(|word| !word.starts_with('-')).map(String::as_str).collect();
    let wanted = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word));
    let names: Vec<&str> = CASES.iter().map(|(name, _)| *name).filter(|name| wanted(name)).collect();
    assert!(!names.is_empty(), "no case has one of these words in its name: {words:?}");
    let failed = run_all(&names);
    assert!(failed.is_empty(), "e2e: {} of {} failed: {failed:?}", failed.len(), names.len());
    println!("e2e: {} passed", names.len());
}

/// Runs each case as a process with a network of its own, and gives the names of those that failed. What one printed comes
/// whole, when it has ended; with a single case at once.
fn run_all(names: &[&str]) -> Vec<String> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(vec![]));
    let program = std::env::current_exe().expect("own path");
    std::thread::scope(|scope| {
        for _ in 0..N_LANES.min(names.len()) {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let start = Instant::now();
                    let mut command = Command::new(&program);
                    command.args([CASE, name]).stdin(Stdio::null()).env_remove(OUTSIDE_NETWORK);
                    let (passed, printed) = if names.len() == 1 {
                        (command.status().expect("the suite").success(), vec![])
                    } else {
                        let output = command.stderr(Stdio::piped()).output().expect("the suite");
                        (output.status.success(), [output.stdout, output.stderr].concat())
                    };
                    let word = if passed { "passed" } else { "FAILED" };
                    let (printed, took) = (String::from_utf8_lossy(&printed), start.elapsed().as_secs_f64());
                    println!("== {name}\n{printed}== {name}: {word} in {took:.1} s");
                    if !passed {
                        failed.lock().expect("no lane panics").push((*name).to_owned());
                    }
                }
            });
        }
    });
    failed.into_inner().expect("no lane panics")
}
