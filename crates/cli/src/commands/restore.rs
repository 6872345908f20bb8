//! `kiln restore`: makes the state of a folder from a backup, while no server uses it.

use crate::commands::backup::contents;
use crate::commands::serve::STATE_DEFAULT;
use crate::output::{ago, now};
use crate::{Context, Failure};
use clap::Args;
use kiln_api::backup::RestoreView;
use std::path::PathBuf;

/// Options of `kiln restore`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Stop the server first; load balancer and instances may go on. Nothing that runs is touched: the next `kiln serve` sees that \
its state is older than what runs and holds everything until `kiln recover`. The state that was there is kept beside the new one.

Examples:
  sudo kiln restore /var/backups/kiln-2026-12-01 --dry-run
  sudo kiln restore /var/backups/kiln-2026-12-01 --replace
  sudo kiln restore state.kiln --state /tmp/kiln"
)]
pub struct RestoreArgs {
    /// The file that `kiln backup` wrote
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The folder that holds all state
    #[arg(long, value_name = "DIR", default_value = STATE_DEFAULT)]
    pub state: PathBuf,
    /// Also if the state in the folder is newer or cannot be read
    #[arg(long)]
    pub replace: bool,
    /// Say what would be done, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

pub(crate) fn run(context: &Context<'_>, mut arguments: RestoreArgs) -> Result<(), Failure> {
    arguments.file = context.dir().join(arguments.file);
    let view = context.roles().restore(&arguments)?;
    context.out().answer(&view, || text(&view))
}

fn text(view: &RestoreView) -> String {
    let verb = if view.done { "restored" } else { "would restore" };
    let backup = &view.backup;
    let taken = ago(backup.created, now());
    let mut text = format!("{verb} revision {} ({taken}) from {}\n", backup.revision, backup.file);
    text.push_str(&contents(backup));
    if let Some(kept) = &view.kept {
        let verb = if view.done { "is" } else { "would be" };
        text.push_str(&format!("  the state that was there {verb} kept as {kept}\n"));
    }
    for image in &view.missing {
        text.push_str(&format!(
            "  missing: image {image}; its release cannot start before it is sent or baked\n"
        ));
    }
    if view.sealed > 0 {
        text.push_str(&format!(
            "  {} versions of secrets are sealed with a key that is not in keys/secrets.age: put that file back\n",
            view.sealed
        ));
    }
    if view.done {
        text.push_str("start `kiln serve`; if what runs is newer it holds everything until `kiln recover`\n");
    }
    text
}
