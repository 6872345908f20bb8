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
    after_help = "Start here:\n  sudo kiln doctor                     is this host able\n  sudo kiln serve --edge 0.0.0.0:80    the control plane (state in /var/lib/kiln)\n  kiln init                            a kiln.toml for this project\n  kiln deploy                          deploy the commit you stand on\n\nExit codes: 0 done, 1 the request failed, 2 kiln's fault, 64 bad usage, 75 connection lost, 130 interrupted",
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
    /// Deploy the very images that another environment runs
    Promote(commands::promote::PromoteArgs) => waits promote;
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
    /// Stop effects, of an environment or of the whole server; observation goes on
    Pause(commands::pause::PauseArgs) => waits pause;
    /// Go on after a pause
    Resume(commands::resume::ResumeArgs) => waits resume;
    /// Show releases
    Release(commands::release::ReleaseArgs) => waits release;
    /// Show and make environments
    Environment(commands::environment::EnvironmentArgs) => waits environment;
    /// Set and show secrets; no value is ever shown
    Secret(commands::secret::SecretArgs) => waits secret;
    /// Show images
    Image(commands::image::ImageArgs) => waits image;
    /// Show and change whose images may run
    Key(commands::key::KeyArgs) => waits key;
    /// Show instances
    Instance(commands::instance::InstanceArgs) => waits instance;
    /// Show who did what, or check that the record was not changed
    Audit(commands::audit::AuditArgs) => waits audit;
    /// Write the whole state of the server into one file
    Backup(commands::backup::BackupArgs) => waits backup;
    /// Make the state of a folder from a backup; needs no server
    Restore(commands::restore::RestoreArgs) => acts restore;
    /// Adopt what serves, and end the hold on state that is older than what runs
    Recover(commands::recover::RecoverArgs) => waits recover;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::error::ErrorKind> {
        Cli::try_parse_from(line.split(' ')).map_err(|error| error.kind())
    }

    #[test]
    fn the_contract_parses() {
        for line in [
            "kiln deploy",
            "kiln deploy --env staging --ref v1 --plan --json -C /tmp",
            "kiln --project shop rollback --to 3",
            "kiln status --json",
            "kiln why --env staging",
            "kiln logs web --env e --release 3 --instance web-7 --commit abcd --since 10m --grep x --follow",
            "kiln logs --since 2026-11-24T09:15:03Z -n all",
            "kiln scale web=5 api=default --env staging",
            "kiln abort",
            "kiln deploy --override outage",
            "kiln promote --from staging --to production --release 3 --plan --override outage",
            "kiln environment create staging --like production",
            "kiln environment list --json",
            "kiln environment show staging",
            "kiln secret set API_KEY --env staging --file key.txt",
            "kiln secret list",
            "kiln secret history API_KEY",
            "kiln secret unset API_KEY --json",
            "kiln pause --reason x",
            "kiln pause --env staging --reason x",
            "kiln resume --env staging",
            "kiln backup state.kiln --json",
            "kiln restore state.kiln --state /s --replace --dry-run",
            "kiln recover --plan",
            "kiln release list",
            "kiln release diff 3 4 --env staging",
            "kiln release show 3 --env staging",
            "kiln image list",
            "kiln image show sha256:abcd",
            "kiln image diff abcd ef01",
            "kiln image export abcd --format docker-archive --service web --name a/b:1 --output x.tar",
            "kiln image gc --plan --explain --older-than 1h",
            "kiln image sbom abcd --format cyclonedx",
            "kiln image verify abcd",
            "kiln image verify --all --json",
            "kiln key list",
            "kiln key show --pem",
            "kiln key rotate",
            "kiln key remove abcd",
            "kiln serve --signing-key /k.pem --trust /trusted",
            "kiln instance list --gone",
            "kiln instance show web-7",
            "kiln audit --lines 5",
            "kiln audit verify --json",
            "kiln destroy --env staging --yes",
            "kiln init",
            "kiln lock --update --plan",
            "kiln bake --ref main",
            "kiln doctor",
            "kiln serve",
            "kiln down --state /tmp/x",
            "kiln completions bash",
            "kiln version",
            "kiln reference",
        ] {
            assert!(parse(line).is_ok(), "{line}: {:?}", parse(line).err());
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "kiln",
            "kiln deplo",
            "kiln deploy --env A_B",
            "kiln deploy extra",
            "kiln rollback --to -1",
            "kiln scale",
            "kiln scale web",
            "kiln destroy",
            "kiln promote --from staging",
            "kiln environment create Staging",
            "kiln secret set",
            "kiln secret set API-KEY",
            "kiln secret set API_KEY value",
            "kiln pause",
            "kiln backup",
            "kiln restore",
            "kiln recover x",
            "kiln logs --since yesterday",
            "kiln logs --instance web",
            "kiln instance show ../x",
            "kiln release show",
            "kiln image verify",
            "kiln image verify abcd --all",
            "kiln image sbom abcd --format xml",
            "kiln key remove",
            "kiln audit verify --lines 3",
            "kiln image diff abcd",
            "kiln image gc --older-than yesterday",
            "kiln edge --dir /x",
            "kiln serve --listen tcp://0.0.0.0:80",
            "kiln serve --edge localhost",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn roles_get_their_options() {
        let line = "kiln serve --state /s --listen unix:/s/k.sock --edge 127.0.0.1:80 --edge [::1]:80 --subnet 10.9.0.0/16 --mirror file:/m --keyring /k";
        let Ok(Cli { command: Command::Serve(serve), .. }) = parse(line) else { panic!("not parsed") };
        assert_eq!((serve.state.to_str(), serve.listen.to_string()), (Some("/s"), "unix:/s/k.sock".into()));
        assert_eq!((serve.edge.len(), serve.subnet.as_str()), (2, "10.9.0.0/16"));
        assert_eq!(serve.mirror.as_deref(), Some("file:/m"));
        assert_eq!(serve.keyring.as_deref(), Some(std::path::Path::new("/k")));
        let line = "kiln edge --dir /e --listen 0.0.0.0:80 --listen 0.0.0.0:81 --access-log";
        let Ok(Cli { command: Command::Edge(edge), .. }) = parse(line) else { panic!("not parsed") };
        assert!(edge.access_log && edge.listen.len() == 2 && edge.dir.to_str() == Some("/e"));
        let Ok(cli) = parse("kiln edge -C /c --dir /e --listen 0.0.0.0:80") else { panic!("not parsed") };
        assert_eq!(cli.global.dir.to_str(), Some("/c"), "two options, two values");
        let error = Cli::try_parse_from(["kiln", "serve", "--edge", "localhost:80"]).unwrap_err().to_string();
        assert!(error.contains("`0.0.0.0:80`"), "{error}");
    }
}
