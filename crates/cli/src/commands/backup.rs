//! `kiln backup`: the whole state of a running server in one file.

use crate::output::bytes;
use crate::{Context, Failure};
use clap::Args;
use kiln_api::Code;
use kiln_api::backup::BackupView;
use std::path::PathBuf;

/// Bytes of a backup, which is checked in memory before it is written.
const BYTES_MAX: usize = 4 << 30;

/// Options of `kiln backup`.
#[derive(Debug, Args)]
#[command(
    after_help = "The server goes on meanwhile: environments, releases, instances, routes, rollouts, sealed secrets and the ledger of one \
moment are written, checked, and appear under that name in one step. Not in it: images (`kiln image export`), logs, sources, and \
the keys in STATE/keys. Without `keys/secrets.age` the secrets of a backup cannot be opened: keep a copy of it elsewhere.

Examples:
  kiln backup /var/backups/kiln-2026-12-01
  kiln backup state.kiln --json"
)]
pub struct BackupArgs {
    /// The file to write; one that is there is replaced
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

pub(crate) async fn run(context: &Context<'_>, arguments: BackupArgs) -> Result<(), Failure> {
    let file = context.dir().join(arguments.file);
    let mut download = context.client()?.backup().await?;
    let mut all: Vec<u8> = vec![];
    while let Some(piece) = download.next().await? {
        if all.len() + piece.len() > BYTES_MAX {
            return Err(Failure::new(
                Code::TooLarge,
                format!("a backup has at most {}", bytes(BYTES_MAX as u64)),
            ));
        }
        all.extend_from_slice(&piece);
    }
    let view = context.roles().keep_backup(&file, &all)?;
    context.out().answer(&view, || text(&view))
}

fn text(view: &BackupView) -> String {
    let written = format!("{} written: {}, revision {}\n", view.file, bytes(view.bytes), view.revision);
    format!("{written}{}", contents(view))
}

/// What a backup holds, in one line, and what it needs beside it.
pub(crate) fn contents(view: &BackupView) -> String {
    format!(
        "  {} environments, {} releases, {} instances, {} versions of secrets (sealed), {} ledger entries\n  \
         needs {} images, which are not in it\n",
        view.environments,
        view.releases,
        view.instances,
        view.secrets,
        view.entries,
        view.images.len()
    )
}
