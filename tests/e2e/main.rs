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
mod strategies;
mod taken_back;
mod tiny;
mod trust;

use kiln_tests::own_network;
use std::time::Instant;

fn main() {
    if std::env::args().any(|argument| argument == "--list") {
        return;
    }
    if std::env::args().any(|argument| argument == old_host::INSIDE) {
        // Nobody else is on that host.
        old_host::inside::run();
        return;
    }
    if !own_network() {
        return;
    }
    let cases: &[(&str, fn())] = &[
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
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let mut n_run = 0;
    for (name, case) in cases {
        if words.is_empty() || words.iter().any(|word| name.contains(word.as_str())) {
            let start = Instant::now();
            println!("== {name}");
            case();
            println!("== {name}: passed in {:.1} s", start.elapsed().as_secs_f64());
            n_run += 1;
        }
    }
    assert!(n_run > 0, "no case has one of these words in its name: {words:?}");
    println!("e2e: {n_run} passed");
}
