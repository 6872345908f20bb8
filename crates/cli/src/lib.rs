//! The command line: what users type and read. It talks to the control plane only through the client of `api`, prints data
//! on stdout and everything else on stderr, and answers with the exit code that `main` ends with.
//!
//! Roles that need the engines (`serve`, `edge`, `down`) are parsed here and carried out by whoever implements [`Roles`].
#![forbid(unsafe_code)]

pub mod args;
mod commands;
mod context;
mod failure;
mod output;
mod progress;
mod project;
pub mod reference;
mod source;
mod watch;

pub use commands::{down::DownArgs, edge::EdgeArgs, serve::ServeArgs};
pub use context::Context;
pub use failure::Failure;

use args::Cli;
use clap::Parser;
use kiln_api::Exit;
use std::ffi::OsString;
use std::io::Write;

/// What the binary does itself because it needs the engines.
pub trait Roles {
    /// Runs the control plane until it is asked to end.
    fn serve(&self, arguments: &ServeArgs) -> Result<(), Failure>;
    /// Runs the load balancer until it is asked to end.
    fn edge(&self, arguments: &EdgeArgs) -> Result<(), Failure>;
    /// Removes all that a state folder owns; answers with what was removed, one line each.
    fn down(&self, arguments: &DownArgs) -> Result<Vec<String>, Failure>;
}

/// Carries out a command line (the program's name first) and answers with the exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>, roles: &dyn Roles) -> u8 {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return refuse_usage(&error),
    };
    let json = cli.global.json;
    let context = Context::new(cli.global, roles);
    match args::dispatch(cli.command, &context) {
        Ok(()) => Exit::Done.number(),
        Err(failure) => {
            failure.print(json);
            failure.exit().number()
        }
    }
}

/// Help and version are answers; the rest is bad usage.
fn refuse_usage(error: &clap::Error) -> u8 {
    use clap::error::ErrorKind::{DisplayHelp, DisplayVersion};
    // A closed pipe leaves nobody to tell.
    let _ = error.print();
    let _ = std::io::stdout().flush();
    match error.kind() {
        DisplayHelp | DisplayVersion => Exit::Done.number(),
        _ => Exit::Usage.number(),
    }
}
