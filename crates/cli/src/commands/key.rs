//! `kiln key`: who signs images here, and whose images may run here.

use crate::output::table;
use crate::{Context, Failure};
use clap::{Args, Subcommand};
use kiln_api::Code;
use kiln_api::key::{KeyList, KeyRequest, KeyView};

/// What to do with keys.
#[derive(Debug, Args)]
pub struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// List the keys that are trusted, and the one that signs
    #[command(after_help = "Examples:\n  kiln key list")]
    List,
    /// Print the public key that signs, for the trust list of another server
    Show(ShowArgs),
    /// Sign with a new key from now on; what the old one signed may still run
    #[command(after_help = "Examples:\n  kiln key rotate")]
    Rotate,
    /// Trust a key no longer: no instance starts any more from what it signed
    Remove(RemoveArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln key show >> trusted\n  kiln key show --pem")]
struct ShowArgs {
    /// As PEM, for other tools
    #[arg(long)]
    pem: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln key remove 9c31e07ab2f4")]
struct RemoveArgs {
    /// The first digits of its id
    #[arg(value_name = "ID")]
    id: String,
}

pub(crate) async fn run(context: &Context<'_>, arguments: KeyArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let keys = match arguments.command {
        KeyCommand::List => client.keys().await?,
        KeyCommand::Rotate => client.rotate_key().await?,
        KeyCommand::Remove(arguments) => client.remove_key(&KeyRequest { id: arguments.id }).await?,
        KeyCommand::Show(arguments) => return show(context, &client.keys().await?, arguments.pem),
    };
    context.out().answer(&keys, || list(&keys))
}

fn show(context: &Context<'_>, keys: &KeyList, pem: bool) -> Result<(), Failure> {
    let signs = keys.keys.iter().find(|key| key.signs);
    let key = signs.ok_or_else(|| Failure::new(Code::Protocol, "the server named no signing key"))?;
    context.out().answer(key, || if pem { key.pem.clone() } else { format!("{}\n", key.key) })
}

fn list(keys: &KeyList) -> String {
    let row = |key: &KeyView| {
        let trusted = match (&key.until, key.trusted) {
            (Some(until), true) => format!("until {until}"),
            (_, true) => "yes".to_owned(),
            (_, false) => "no".to_owned(),
        };
        let signs = if key.signs { "yes" } else { "no" };
        vec![key.id[..12.min(key.id.len())].to_owned(), signs.to_owned(), trusted, key.key.clone()]
    };
    let rows: Vec<_> = keys.keys.iter().map(row).collect();
    table(&["ID", "SIGNS", "TRUSTED", "KEY"], &rows)
}
