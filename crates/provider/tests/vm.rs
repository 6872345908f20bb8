//! Virtual machines on a real kernel: the contract of every provider, and what is theirs alone. Needs root, QEMU and Debian's
//! kernel in target/machine; skips loudly without root. It is its own program: the provider starts it as supervisor. Everything
//! happens in a network namespace of its own. `cargo test --test vm -- NAME` runs one case.

#[path = "local/host.rs"]
mod host;
#[path = "local/machine.rs"]
mod machine;

use host::Host;
use kiln_model::frame::Stream;
use kiln_model::*;
use kiln_provider::conformance::{self, Behaviour, Subject, check, until, until_ready};
use kiln_provider::local::{self, Inventory, LocalProvider, inventory};
use kiln_provider::{Provider, ProviderError, vm};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Emulated machines share their cores with all other tests.
const PATIENCE: Duration = Duration::from_secs(180);

fn main() -> ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    let word = |n: usize| args.get(n).and_then(|a| a.to_str()).unwrap_or("");
    match (word(0), word(1)) {
        ("internal", "machine") => return vm::main(args.into_iter().skip(2)),
        ("internal", "supervise") => return local::supervise::main(args.into_iter().skip(2)),
        ("internal", "exec") => return local::exec::main(),
        _ => {}
    }
    if args.iter().any(|a| a == "--list") {
        return ExitCode::SUCCESS;
    }
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: the tests of virtual machines need root");
        return ExitCode::SUCCESS;
    }
    kiln_sys::namespace::enter_private_net().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let wanted = args.iter().find_map(|a| a.to_str()).unwrap_or("").to_owned();
    runtime.block_on(all(&wanted));
    ExitCode::SUCCESS
}

async fn all(wanted: &str) {
    let host = Host::with_machines();
    macro_rules! cases {
        ($($case:ident)*) => {$(
            if stringify!($case).contains(wanted) {
                let begun = Instant::now();
                $case(&host).await;
                println!("{}: {} ms", stringify!($case), begun.elapsed().as_millis());
            }
        )*};
    }
    cases! { contract }
    local::sweep(host.state()).unwrap();
    assert_eq!(inventory(host.state()), Inventory::default());
}

impl Host {
    fn with_machines() -> Self {
        let mut host = Self::new();
        host.isolation = Isolation::Vm;
        host.forced.emulation = true;
        host.machine = Some(Arc::new(machine::with_init(kiln_sys::GUEST_INIT, host.state())));
        host
    }
}

/// What every provider promises.
async fn contract(host: &Host) {
    conformance::suite(&mut &*host).await;
    nothing_is_left(host);
}

/// With a server: only the bridge and the parents of the groups.
fn nothing_is_left(host: &Host) {
    let left = inventory(host.state());
    assert_eq!(Inventory { cgroups: 0, links: left.links - 1, ..left }, Inventory::default(), "{left:?}");
}
