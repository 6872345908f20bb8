//! `kiln completions`: a script for a shell.

use crate::args::Cli;
use crate::{Context, Failure};
use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// Options of `kiln completions`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kiln completions bash > /etc/bash_completion.d/kiln
  kiln completions zsh > ~/.zfunc/_kiln")]
pub struct CompletionsArgs {
    /// Which shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub(crate) fn run(context: &Context<'_>, arguments: CompletionsArgs) -> Result<(), Failure> {
    let mut script = vec![];
    clap_complete::generate(arguments.shell, &mut Cli::command(), "kiln", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    let shell = arguments.shell.to_string();
    context.out().answer(&serde_json::json!({ "shell": shell, "script": script }), || script.clone())
}
