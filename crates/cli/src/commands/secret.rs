//! `kiln secret`: values that services find as files. A value comes from the terminal, from stdin or from a file, never from the
//! command line, and none is ever printed.

mod ask;

use crate::context::env_or_default;
use crate::output::{ago, now, table};
use crate::{Context, Failure};
use clap::{Args, Subcommand};
use kiln_api::Code;
use kiln_api::secret::{SecretQuery, SecretSet, SecretState, SecretView};
use kiln_model::{EnvName, EnvRef, SecretName, SecretValue, limits};
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

/// What to do with secrets.
#[derive(Debug, Args)]
pub struct SecretArgs {
    #[command(subcommand)]
    command: SecretCommand,
}

#[derive(Debug, Subcommand)]
enum SecretCommand {
    /// Give a secret a value
    Set(SetArgs),
    /// List the secrets that are set
    #[command(after_help = "Examples:\n  kiln secret list\n  kiln secret list --env staging")]
    List {
        /// Only this environment
        #[arg(long, value_name = "ENV")]
        env: Option<EnvName>,
    },
    /// Show the versions of a secret, and which releases have them
    #[command(after_help = "Examples:\n  kiln secret history API_KEY")]
    History(NamedArgs),
    /// Take a secret out; releases that have it keep it
    #[command(after_help = "Examples:\n  kiln secret unset API_KEY --env staging")]
    Unset(NamedArgs),
}

#[derive(Debug, Args)]
#[command(
    after_help = "The value is read from the terminal without showing it, from stdin (without its last line end), or from a \
file (as it is). A service that has `secrets = [\"API_KEY\"]` in kiln.toml finds it as /run/secrets/API_KEY. A new value takes \
effect with a new release, and a rollback brings the old one back.

Examples:
  kiln secret set API_KEY                            asks for it
  pass show api | kiln secret set API_KEY --env staging
  kiln secret set TLS_KEY --file key.pem"
)]
struct SetArgs {
    #[command(flatten)]
    named: NamedArgs,
    /// Read the value from this file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct NamedArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    name: SecretName,
    /// The environment [default: production]
    #[arg(long, value_name = "ENV")]
    env: Option<EnvName>,
}

impl NamedArgs {
    fn env(&self, context: &Context<'_>) -> Result<EnvRef, Failure> {
        Ok(EnvRef { project: context.project()?, env: env_or_default(&self.env) })
    }
}

pub(crate) async fn run(context: &Context<'_>, arguments: SecretArgs) -> Result<(), Failure> {
    let client = context.client()?;
    match arguments.command {
        SecretCommand::Set(arguments) => {
            let env = arguments.named.env(context)?;
            let value = read(context, &env, &arguments)?;
            let view = client.set_secret(&env, &arguments.named.name, &value).await?;
            context.out().answer(&view, || set(&view))?;
            if view.changed {
                context.out().hint(&takes_effect(&view));
            }
            Ok(())
        }
        SecretCommand::List { env } => {
            let view = client.secrets(&SecretQuery { project: context.project()?, env }).await?;
            context.out().answer(&view, || list(&view.secrets))
        }
        SecretCommand::History(named) => {
            let view = client.secret(&named.env(context)?, &named.name).await?;
            context.out().answer(&view, || list(&view.versions))
        }
        SecretCommand::Unset(named) => {
            let view = client.unset_secret(&named.env(context)?, &named.name).await?;
            let text = || {
                format!("{} is not set in {} any more; releases that have it keep it\n", view.name, view.env)
            };
            context.out().answer(&view, text)
        }
    }
}

fn set(view: &SecretSet) -> String {
    let SecretSet { env, name, version, changed, .. } = view;
    match changed {
        true => format!("{name} of {env} has version {version} now\n"),
        false => format!("{name} of {env} has that value already: version {version}\n"),
    }
}

fn takes_effect(view: &SecretSet) -> String {
    let deploy = format!("`kiln deploy --env {}`", view.env.env);
    match view.serving {
        Some(release) => {
            format!("release {release} goes on with the version that it has; {deploy} takes the new one")
        }
        None => format!("it takes effect with a new release: {deploy}"),
    }
}

fn read(context: &Context<'_>, env: &EnvRef, arguments: &SetArgs) -> Result<SecretValue, Failure> {
    let name = &arguments.named.name;
    let value = match &arguments.file {
        Some(path) => {
            // As every other path, below the directory of `-C`.
            let path = context.dir().join(path);
            let file = std::fs::File::open(&path);
            whole(file, &path.display().to_string())?
        }
        None if std::io::stdin().is_terminal() => {
            ask::value(&format!("value of {name} of {env} (it does not show): "))?
                .ok_or_else(|| context.interrupted())?
        }
        None => {
            let piped = whole(Ok(std::io::stdin()), "stdin")?;
            let bytes = piped.expose();
            let line = bytes.strip_suffix(b"\n").map(|line| line.strip_suffix(b"\r").unwrap_or(line));
            SecretValue::new(line.unwrap_or(bytes).to_vec())
        }
    };
    match value.expose().len() {
        0 => Err(Failure::new(Code::Usage, format!("the value of `{name}` is empty"))
            .hint(format!("`kiln secret unset {name}` takes it out"))),
        n if n > limits::SECRET_BYTES_MAX => {
            let text = format!("the value of `{name}` has more than {} bytes", limits::SECRET_BYTES_MAX);
            Err(Failure::new(Code::TooLarge, text)
                .hint("give large files to the image, and keep only the key secret"))
        }
        _ => Ok(value),
    }
}

/// All of it, but no more than shows that it is too much.
fn whole(from: std::io::Result<impl Read>, name: &str) -> Result<SecretValue, Failure> {
    let mut bytes = Vec::with_capacity(limits::SECRET_BYTES_MAX + 2);
    let read = from.and_then(|from| from.take(limits::SECRET_BYTES_MAX as u64 + 2).read_to_end(&mut bytes));
    let value = SecretValue::new(bytes);
    match read {
        Ok(_) => Ok(value),
        Err(error) => {
            let path = Path::new(name).display();
            Err(Failure::new(Code::File, format!("cannot read `{path}`: {error}"))
                .hint(Code::File.entry().help))
        }
    }
}

fn list(secrets: &[SecretView]) -> String {
    let now = now();
    let row = |view: &SecretView| {
        let releases: Vec<String> = view.releases.iter().map(ToString::to_string).collect();
        let state = match (view.state, view.serving) {
            (SecretState::Set, true) => "serving",
            (SecretState::Set, false) => "set",
            (SecretState::Unset, _) => "unset",
            (SecretState::Removed, _) => "removed",
        };
        vec![
            view.env.to_string(),
            view.name.to_string(),
            view.version.to_string(),
            state.to_owned(),
            view.bytes.map_or("-".to_owned(), |bytes| bytes.to_string()),
            ago(view.created, now),
            view.actor.clone(),
            if releases.is_empty() { "-".to_owned() } else { releases.join(",") },
        ]
    };
    let rows: Vec<_> = secrets.iter().map(row).collect();
    table(&["ENVIRONMENT", "SECRET", "VERSION", "STATE", "BYTES", "SET", "BY", "RELEASES"], &rows)
}
