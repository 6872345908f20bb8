//! The local provider against everything that a hostile image, program or request has been known to try (list X1 of the
//! threat notes; the CVE numbers are those of other runtimes). After each case the host is compared with what it was
//! before. Needs root; skips loudly otherwise. Everything happens in network and mount namespaces of its own.
//! `cargo test -p kiln-provider --test attacks -- NAME` runs the cases whose names contain a word.

#[path = "attacks/bombs.rs"]
mod bombs;
#[path = "attacks/fingerprint.rs"]
mod fingerprint;
#[path = "local/host.rs"]
mod host;
#[path = "attacks/images.rs"]
mod images;
#[path = "attacks/programs.rs"]
mod programs;
#[path = "attacks/requests.rs"]
mod requests;
#[path = "local/stage.rs"]
mod stage;
#[path = "attacks/world.rs"]
mod world;

use std::process::ExitCode;
use std::time::Instant;
use world::World;

fn main() -> ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    let word = |n: usize| args.get(n).and_then(|a| a.to_str()).unwrap_or("");
    match (word(0), word(1)) {
        ("steal", _) => return programs::steal(),
        ("bystander", _) => {
            let _ = std::io::Read::read(&mut std::io::stdin(), &mut [0]);
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    if let Some(status) = stage::play() {
        return status;
    }
    let Some(wanted) = stage::enter("the attacks on the local provider") else { return ExitCode::SUCCESS };
    let wanted = wanted.as_str();
    // What others on this machine mount meanwhile is no change of ours.
    kiln_sys::namespace::unshare(kiln_sys::process::Namespaces::MOUNT).unwrap();
    kiln_sys::mount::make_private().unwrap();
    stage::run(all(wanted))
}

async fn all(wanted: &str) {
    let world = World::new();
    macro_rules! cases {
        ($($module:ident: $($case:ident)*;)*) => {$($(
            if stringify!($case).contains(wanted) {
                let begun = Instant::now();
                $module::$case(&world).await;
                world.is_as_before(stringify!($case)).await;
                println!("{}: {} ms", stringify!($case), begun.elapsed().as_millis());
            }
        )*)*};
    }
    cases! {
        programs: doors_are_shut proc_cannot_be_written secrets_are_kept only_three_descriptors
            runtime_is_not_overwritten runtime_as_the_program supervisor_is_out_of_reach kill_everything
            pid_1_holds_no_way_out;
        images: rights_in_files device_files mount_places_are_links proc_is_redirected;
        requests: checks_are_spied_upon places_are_swapped_under_checks checks_make_noise servers_waste_time
            arguments_are_huge;
        bombs: nothing_runs_out inodes_are_limited neighbours_run_out log_flood;
    }
    world.end().await;
}
