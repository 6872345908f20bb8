//! How fast instances start and stop, how many fit, and what they cost, beside `crun` and `podman` on the same files in the
//! same run. Rounds alternate; medians, 99th percentiles and ratios are printed, with the goal of each. It asserts
//! nothing: what a figure means depends on what else the machine does. `bench/runtime` starts it.
//!
//! `KILN_BENCH_ROUNDS` (100), `KILN_BENCH_IDLE` (500); an argument runs the parts whose names contain it.

#[path = "../tests/local/host.rs"]
mod host;
#[path = "runtime/idle.rs"]
mod idle;
#[path = "runtime/kiln.rs"]
mod kiln;
#[path = "runtime/launcher.rs"]
mod launcher;
#[path = "runtime/peers.rs"]
mod peers;
#[path = "runtime/report.rs"]
mod report;
#[path = "runtime/starts.rs"]
mod starts;

use kiln_provider::local;
use std::process::ExitCode;

/// As in kiln itself: the zygote and every pid 1 have it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    let word = |n: usize| args.get(n).and_then(|a| a.to_str()).unwrap_or("");
    match (word(0), word(1)) {
        ("internal", "zygote") => return local::zygote::main(args.into_iter().skip(2)),
        ("internal", "exec") => return local::exec::main(),
        ("launcher", _) => return launcher::main(),
        ("client", socket) => return kiln::client(socket),
        _ => {}
    }
    if !args.iter().any(|a| a == "--bench") {
        // `cargo test --benches` builds and starts it, and wants no figures.
        return ExitCode::SUCCESS;
    }
    let wanted =
        args.iter().filter_map(|a| a.to_str()).find(|a| !a.starts_with('-')).unwrap_or("").to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(all(&wanted));
    ExitCode::SUCCESS
}

async fn all(wanted: &str) {
    let [cold, warm] = [0, kiln::SLOTS].map(kiln::Kiln::new);
    let peers = peers::Peers::new(&warm.host);
    println!("{}", kiln::ENFORCES);
    peers.describe();
    if "starts".contains(wanted) {
        starts::alternating(&cold, &warm, &peers).await;
    }
    if "concurrent".contains(wanted) {
        starts::concurrent(&cold, &warm, &peers).await;
    }
    if "idle".contains(wanted) {
        idle::all(&cold, &peers).await;
    }
    peers.end();
    cold.end();
    warm.end();
}

/// A number of the environment.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
