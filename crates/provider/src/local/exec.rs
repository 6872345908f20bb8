//! `kiln internal exec`: runs one more program in an instance, for a `command` check. It joins the instance's groups
//! and namespaces and gives up exactly what the instance's own program gave up.

use super::order::{self, ExecOrder, ExecReport};
use super::{program, wire};
use kiln_sys::exec::{self, Words};
use kiln_sys::process::{self, Ended, Namespaces};
use kiln_sys::{CallError, Context, namespace, privilege, seccomp};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;

/// The entry point. Standard input is the socket, standard output and error are the program's.
pub fn main() -> ExitCode {
    let report = run().unwrap_or_else(ExecReport::NotStarted);
    match order::send(io::stdin(), &report, &[]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(2),
    }
}

fn run() -> Result<ExecReport, String> {
    let received = order::receive::<ExecOrder>(io::stdin()).map_err(|e| e.to_string())?;
    let (order, descriptors) = received.ok_or("the server went away")?;
    let mut descriptors = descriptors.into_iter();
    let target = descriptors.next().ok_or("no process to join")?;
    let (argv, environment) = (whole(&order.argv)?, whole(&order.environment)?);
    let filter = seccomp::filter();
    join(&target, descriptors).map_err(|error| error.line())?;
    let null = File::open("/dev/null").map_err(|e| e.to_string())?;
    let (mut status_read, status_write) = io::pipe().map_err(|e| e.to_string())?;
    let spawned = process::Clone::new(Namespaces::default()).spawn(|| {
        let ready = become_ready(&null, &order, &filter);
        let error = ready.map_or_else(
            |error| error.line(),
            |()| execute(&argv, &environment, &order).unwrap_or_else(|| "the command is empty".into()),
        );
        let mut status = &status_write;
        let _ = status.write_all(error.as_bytes());
        126
    });
    let child = spawned.map_err(|error| error.line())?;
    drop(status_write);
    let mut error = String::new();
    status_read.read_to_string(&mut error).map_err(|e| e.to_string())?;
    if !error.is_empty() {
        return Err(error);
    }
    let ended = process::wait_readable(child.pidfd(), Some(order.timeout.duration()));
    // What it started and what stayed in its process group goes with it; the server, which made the cgroup of this check,
    // kills the others. Before it is reaped its number means nobody else.
    let _ = process::signal_group(child.pid(), libc::SIGKILL);
    let waited = match ended.map_err(|error| error.line())? {
        true => child.wait(None).map_err(|error| error.line())?,
        false => None,
    };
    let report = match waited {
        Some(Ended::Status(code)) => ExecReport::Status(code),
        Some(Ended::Signal(signal)) => ExecReport::Signal(signal),
        None => ExecReport::TimedOut,
    };
    if matches!(report, ExecReport::TimedOut) {
        child.kill_and_reap().map_err(|error| error.line())?;
    }
    Ok(report)
}

/// Gives up exactly what the instance's own program gave up.
fn become_ready(null: &File, order: &ExecOrder, filter: &[seccomp::Instruction]) -> Result<(), CallError> {
    process::new_session()?;
    process::set_standard(null, 0)?;
    process::reset_signals();
    privilege::limit_bounding_set(program::declarable())?;
    program::confine(order.user, order.capabilities)?;
    seccomp::install(filter)
}

/// Returns only on failure.
fn execute(argv: &[u8], environment: &[u8], order: &ExecOrder) -> Option<String> {
    let (argv, environment) = (Words::new(argv)?, Words::new(environment)?);
    let error = exec::exec(argv, environment, &order.search, &mut exec::Room::default());
    Some(program::explain(&error, argv.first(), &order.search, order.user.0))
}

fn whole(list: &[String]) -> Result<Vec<u8>, String> {
    let words = wire::words(list.iter().map(String::as_str));
    words.map_err(|_| "a NUL byte in the command or its environment".to_owned())
}

fn join(target: &OwnedFd, doors: impl Iterator<Item = OwnedFd>) -> Result<(), kiln_sys::CallError> {
    for door in doors {
        File::from(door).write_all(b"0").context("join", "the instance's cgroup")?;
    }
    let all = Namespaces::USER
        | Namespaces::MOUNT
        | Namespaces::PID
        | Namespaces::NET
        | Namespaces::UTS
        | Namespaces::IPC
        | Namespaces::CGROUP;
    namespace::enter(target, all)
}
