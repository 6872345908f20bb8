//! Many starts and stops while everything of kiln is killed at random moments, and many lines printed meanwhile. Nothing is
//! left over, nobody else is killed, every exit is recorded, no line is missing. Needs root; skips loudly otherwise.
//!
//! `KILN_SOAK` starts (150), `KILN_LOGGERS` (20) printing for `KILN_LOG_SECONDS` (8); `KILN_SEED` chooses other moments.
//! `cargo test -p kiln-provider --test soak -- NAME` runs one case.

#[path = "soak/chaos.rs"]
mod chaos;
#[path = "local/host.rs"]
mod host;
#[path = "soak/logs.rs"]
mod logs;
#[path = "soak/server.rs"]
mod server;
#[path = "local/stage.rs"]
mod stage;

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    let word = |n: usize| args.get(n).and_then(|a| a.to_str()).unwrap_or("");
    match (word(0), word(1)) {
        ("server", state) => return server::main(state.as_ref()),
        ("bystander", _) => {
            // It goes with whoever holds its input, also after a failure.
            let _ = std::io::Read::read(&mut std::io::stdin(), &mut [0]);
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    if let Some(status) = stage::play() {
        return status;
    }
    let Some(wanted) = stage::enter("the local provider's soak tests") else { return ExitCode::SUCCESS };
    let wanted = wanted.as_str();
    stage::run(async {
        macro_rules! cases {
            ($($module:ident::$case:ident)*) => {$(
                if stringify!($case).contains(wanted) {
                    let begun = Instant::now();
                    $module::$case().await;
                    println!("{}: {} ms", stringify!($case), begun.elapsed().as_millis());
                }
            )*};
        }
        cases! { chaos::starts_and_stops logs::paced_lines logs::floods }
    })
}

/// A number of the environment.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
