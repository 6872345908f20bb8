//! The beginning of every suite of the provider. Each is its own program: it plays the parts of kiln that the provider
//! starts, and it needs root and a network namespace of its own.

use kiln_provider::{local, vm};
use std::ffi::OsString;
use std::future::Future;
use std::process::ExitCode;

/// What follows the program's name.
pub fn arguments() -> Vec<OsString> {
    std::env::args_os().skip(1).collect()
}

/// Plays a part of kiln, if the arguments ask for one.
pub fn play() -> Option<ExitCode> {
    let args = arguments();
    let word = |n: usize| args.get(n).and_then(|a| a.to_str()).unwrap_or("");
    match (word(0), word(1)) {
        ("internal", "zygote") => Some(local::zygote::main(args.into_iter().skip(2))),
        ("internal", "machine") => Some(vm::main(args.into_iter().skip(2))),
        ("internal", "exec") => Some(local::exec::main()),
        _ => None,
    }
}

/// Enters the network namespace, and answers with a part of the names of the cases that are wanted. None: nothing is to be
/// run, or nothing can be; the latter is said.
pub fn enter(what: &str) -> Option<String> {
    let args = arguments();
    if args.iter().any(|a| a == "--list") {
        return None;
    }
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: {what} need root");
        return None;
    }
    kiln_sys::namespace::enter_private_net().unwrap();
    let wanted = args.iter().filter_map(|a| a.to_str()).find(|a| !a.starts_with('-'));
    Some(wanted.unwrap_or("").to_owned())
}

/// A runtime as the server has one.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs the cases.
pub fn run(cases: impl Future<Output = ()>) -> ExitCode {
    runtime().block_on(cases);
    ExitCode::SUCCESS
}
