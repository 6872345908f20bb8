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

pub use commands::{down::DownArgs, edge::EdgeArgs, restore::RestoreArgs, serve::ServeArgs};
pub use context::Context;
pub use failure::Failure;

use args::Cli;
use clap::Parser;
use kiln_api::backup::{BackupView, RestoreView};
use kiln_api::{Code, Exit};
use std::ffi::OsString;
use std::io::Write;
use std::path::Path;

/// What the binary does itself because it needs the engines.
pub trait Roles {
    /// Runs the control plane until it is asked to end.
    fn serve(&self, arguments: &ServeArgs) -> Result<(), Failure>;
    /// Runs the load balancer until it is asked to end.
    fn edge(&self, arguments: &EdgeArgs) -> Result<(), Failure>;
    /// Removes all that a state folder owns; answers with what was removed, one line each.
    fn down(&self, arguments: &DownArgs) -> Result<Vec<String>, Failure>;
    /// Writes a backup that a server answered with to a file, if it is whole.
    fn keep_backup(&self, file: &Path, bytes: &[u8]) -> Result<BackupView, Failure>;
    /// Makes the state of a folder from a backup.
    fn restore(&self, arguments: &RestoreArgs) -> Result<RestoreView, Failure>;
}

/// Carries out a command line (the program's name first) and answers with the exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>, roles: &dyn Roles) -> u8 {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        // What is not understood cannot say whether a document was wanted; the bare word is as good.
        Err(error) => return refuse_usage(&error, arguments.iter().any(|word| word == "--json")),
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
fn refuse_usage(error: &clap::Error, json: bool) -> u8 {
    use clap::error::ErrorKind::{DisplayHelp, DisplayVersion};
    // A closed pipe leaves nobody to tell.
    let _ = error.print();
    let answer = matches!(error.kind(), DisplayHelp | DisplayVersion);
    if json && !answer {
        let _ = writeln!(std::io::stdout(), "{:#}", usage(error).json());
    }
    let _ = std::io::stdout().flush();
    if answer { Exit::Done.number() } else { Exit::Usage.number() }
}

/// Bad usage as every other failure: what is wrong, without the help that clap prints below it.
fn usage(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let what = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
    let words: Vec<&str> = what.split_whitespace().collect();
    Failure::new(Code::Usage, words.join(" ")).hint(Code::Usage.entry().help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_usage_is_a_document_as_well() {
        for (line, message) in [
            ("kiln --json deplo", "unrecognized subcommand 'deplo'"),
            ("kiln destroy --json", "the following required arguments were not provided: --env <ENV>"),
        ] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            let document = usage(&error).json();
            assert_eq!(document["error"]["code"], "usage");
            assert_eq!(document["error"]["exit"], 64);
            assert_eq!(document["error"]["message"], message);
        }
    }
}
