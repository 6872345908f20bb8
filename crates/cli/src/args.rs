//! The grammar of the command line: global options here, each command's own in its file.

use crate::commands;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// One binary that runs immutable server infrastructure.
#[derive(Debug, Parser)]
#[command(
    name = "kiln",
    version,
    about = "Turns a git commit into running, validated, identical servers behind a load balancer",
    after_help = "Start here:\n  sudo kiln doctor          is this host able\n  sudo kiln serve           the control plane (state in /var/lib/kiln)\n  kiln init                 a kiln.toml for this project\n  kiln deploy               deploy the commit you stand on\n\nExit codes: 0 done, 1 the request failed, 2 kiln's fault, 64 bad usage, 75 connection lost, 130 interrupted",
    max_term_width = 110,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command takes.
#[derive(Debug, Args)]
pub struct Global {
    /// Run as if started in DIR
    #[arg(short = 'C', value_name = "DIR", global = true, default_value = ".", hide_default_value = true)]
    pub dir: PathBuf,
    /// The project, instead of the one whose kiln.toml is here
    #[arg(long, value_name = "NAME", global = true)]
    pub project: Option<String>,
    /// Print one stable JSON document on stdout
    #[arg(long, global = true)]
    pub json: bool,
    /// The server's address
    #[arg(
        long,
        value_name = "ADDR",
        global = true,
        env = "KILN_ADDR",
        default_value = kiln_api::address::DEFAULT,
        hide_env_values = true
    )]
    pub addr: String,
}

/// A command that waits for the server runs where an interruption is noticed; one that acts on this host alone, or plays a
/// role with a runtime of its own, just runs.
macro_rules! carry_out {
    (waits, $context:ident, $carried:expr) => {
        commands::wait($context, $carried)
    };
    (acts, $context:ident, $carried:expr) => {
        $carried
    };
}

macro_rules! commands {
    ($($(#[$attribute:meta])* $variant:ident($arguments:ty) => $way:ident $module:ident;)*) => {
        /// The commands.
        #[derive(Debug, Subcommand)]
        pub enum Command {
            $($(#[$attribute])* $variant($arguments),)*
        }

        /// Carries out a command.
        pub(crate) fn dispatch(command: Command, context: &crate::Context<'_>) -> Result<(), crate::Failure> {
            match command {
                $(Command::$variant(arguments) => {
                    carry_out!($way, context, commands::$module::run(context, arguments))
                })*
            }
        }
    };
}

commands! {
    /// Deploy a commit: bake, launch, validate, switch
    Deploy(commands::deploy::DeployArgs) => waits deploy;
    /// Go back to an earlier release
    Rollback(commands::rollback::RollbackArgs) => waits rollback;
    /// Show what runs
    Status(commands::status::StatusArgs) => waits status;
    /// Say what blocks, since when, what happens next, and what helps
    Why(commands::why::WhyArgs) => waits why;
    /// Show what instances printed, also after they are gone
    Logs(commands::logs::LogsArgs) => waits logs;
    /// Change how many instances services have
    Scale(commands::scale::ScaleArgs) => waits scale;
    /// Stop the running rollout; what serves stays
    Abort(commands::abort::AbortArgs) => waits abort;
    /// Show releases
    Release(commands::release::ReleaseArgs) => waits release;
    /// Show images
    Image(commands::image::ImageArgs) => waits image;
    /// Show instances
    Instance(commands::instance::InstanceArgs) => waits instance;
    /// Show who did what, or check that the record was not changed
    Audit(commands::audit::AuditArgs) => waits audit;
    /// Remove everything that runs of an environment
    Destroy(commands::destroy::DestroyArgs) => waits destroy;
    /// Write a kiln.toml for this project
    Init(commands::init::InitArgs) => acts init;
    /// Resolve packages into kiln.lock
    Lock(commands::lock::LockArgs) => waits lock;
    /// Bake the images of a commit and print their digests
    Bake(commands::bake::BakeArgs) => waits bake;
    /// Say whether this host is able, and what to install
    Doctor(commands::doctor::DoctorArgs) => acts doctor;
    /// Run the control plane
    Serve(commands::serve::ServeArgs) => acts serve;
    /// Run the load balancer
    Edge(commands::edge::EdgeArgs) => acts edge;
    /// Stop and remove all that a state folder owns; needs no server
    Down(commands::down::DownArgs) => acts down;
    /// Print a completion script for a shell
    Completions(commands::completions::CompletionsArgs) => acts completions;
    /// Print the versions of this program and of the server
    Version(commands::version::VersionArgs) => waits version;
    /// Print the reference page of the command line
    #[command(hide = true)]
    Reference(commands::reference::ReferenceArgs) => acts reference;
}
