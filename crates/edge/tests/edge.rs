//! The edge as a process, with real sockets, in a network namespace of its own. This program is also the edge that it
//! tests: `edge --dir DIR --listen ADDR`.

#[path = "edge/acme.rs"]
mod acme;
#[path = "edge/backend.rs"]
mod backend;
#[path = "edge/cases.rs"]
mod cases;
#[path = "edge/client.rs"]
mod client;
#[path = "edge/faults.rs"]
mod faults;
#[path = "edge/framing.rs"]
mod framing;
#[path = "edge/grpc.rs"]
mod grpc;
#[path = "edge/h2.rs"]
mod h2;
#[path = "edge/inside.rs"]
mod inside;
#[path = "edge/programs.rs"]
mod programs;
#[path = "edge/protocol.rs"]
mod protocol;
#[path = "edge/proxy.rs"]
mod proxy;
#[path = "edge/raw.rs"]
mod raw;
#[path = "edge/reboot.rs"]
mod reboot;
#[path = "edge/resilience.rs"]
mod resilience;
#[path = "edge/stage.rs"]
mod stage;

#[path = "edge/tls.rs"]
mod tls;
#[path = "edge/upgrade.rs"]
mod upgrade;

use kiln_edge::EdgeConfig;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// A named test.
pub(crate) type Case = (&'static str, fn());

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == "edge") {
        return edge(&args[1..]);
    }
    if args.first().is_some_and(|a| a == "trivial-backend") {
        return trivial_backend(&args[1]);
    }
    let filters: Vec<&String> = args.iter().filter(|a| !a.starts_with('-')).collect();
    let cases: Vec<Case> = [
        cases::CASES,
        faults::CASES,
        framing::CASES,
        inside::CASES,
        protocol::CASES,
        proxy::CASES,
        raw::CASES,
        resilience::CASES,
        reboot::CASES,
        tls::CASES,
        h2::CASES,
        grpc::CASES,
        acme::CASES,
        upgrade::CASES,
    ]
    .concat();
    assert_page_names(&cases);
    if args.iter().any(|a| a == "--list") {
        cases.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if let Err(e) = kiln_sys::namespace::enter_private_net() {
        eprintln!("SKIPPED: the edge's suite needs root for a network namespace: {e}");
        return ExitCode::SUCCESS;
    }
    let (mut n_passed, mut failed) = (0, vec![]);
    for (name, case) in
        cases.iter().filter(|(n, _)| filters.is_empty() || filters.iter().any(|f| n.contains(*f)))
    {
        let start = Instant::now();
        let passed = std::panic::catch_unwind(case).is_ok();
        println!("{} {name} ({} ms)", if passed { "ok  " } else { "FAIL" }, start.elapsed().as_millis());
        if passed { n_passed += 1 } else { failed.push(name) }
    }
    println!("{n_passed} passed, {} failed {failed:?}", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Every test that `docs/edge-cases.md` names is one of these, or a case of the end-to-end suite.
fn assert_page_names(cases: &[Case]) {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let read = |path: &str| std::fs::read_to_string(format!("{root}/{path}")).unwrap();
    let (page, e2e) = (read("docs/edge-cases.md"), read("tests/e2e/main.rs"));
    let mut n_named = 0;
    for row in page.lines().filter(|line| line.starts_with("| ")) {
        let tests = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let mut parts = tests.split('`');
        while let (Some(before), Some(name)) = (parts.next(), parts.next()) {
            if !name.contains('_') || name.contains(' ') {
                continue;
            }
            let exists = match before.ends_with("e2e:") {
                true => e2e.contains(&format!("(\"{name}\"")),
                false => name == "tcp_migrate_req" || cases.iter().any(|(case, _)| *case == name),
            };
            assert!(exists, "docs/edge-cases.md names the test `{name}`, which does not exist");
            n_named += 1;
        }
    }
    assert!(n_named > 60, "{n_named} tests are named in docs/edge-cases.md");
}

fn edge(args: &[String]) -> ExitCode {
    let values =
        |name: &str| -> Vec<&String> { args.windows(2).filter(|w| w[0] == name).map(|w| &w[1]).collect() };
    let listen = values("--listen").iter().map(|a| a.parse().expect("an address")).collect();
    let boot = std::env::var("TEST_BOOT_ID").unwrap_or_else(|_| "first".into());
    let mut config = EdgeConfig::new(values("--dir")[0], listen, boot);
    config.listen_tls = values("--listen-tls").iter().map(|a| a.parse().expect("an address")).collect();
    config.threads = std::env::var("TEST_THREADS").map_or(Some(2), |n| n.parse().ok());
    config.take_over = args.iter().any(|a| a == "--take-over");
    config.internal = values("--internal").first().map(|range| range.parse().expect("a range"));
    config.proxies = values("--proxy-protocol").iter().map(|block| block.parse().expect("a block")).collect();
    config.access_log = args.iter().any(|a| a == "--access-log");
    for (name, timeout) in [
        ("TEST_ANSWER_TIMEOUT_MS", &mut config.answer_timeout),
        ("TEST_HEAD_TIMEOUT_MS", &mut config.head_timeout),
        ("TEST_STALL_TIMEOUT_MS", &mut config.stall_timeout),
    ] {
        if let Ok(ms) = std::env::var(name) {
            *timeout = Duration::from_millis(ms.parse().expect("milliseconds"));
        }
    }
    match kiln_edge::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

/// For measuring by hand: answers every request at once, one thread per connection.
fn trivial_backend(address: &str) -> ExitCode {
    let _backend = backend::Backend::at(address, "trivial", backend::echo_name);
    loop {
        std::thread::park();
    }
}
