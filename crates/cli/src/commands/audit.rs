//! `kiln audit`: who did what, when, why, with which result; and whether that record still holds.

use crate::output::{table, timestamp};
use crate::{Context, Failure};
use clap::{Args, Subcommand};
use kiln_api::Code;
use kiln_api::audit::{AuditQuery, EntryView};
use kiln_model::EnvName;

/// Options of `kiln audit`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(
    after_help = "Every entry carries a hash of the one before it: none can be changed or left out unnoticed.

Examples:
  kiln audit --lines 20
  kiln audit verify"
)]
pub struct AuditArgs {
    #[command(subcommand)]
    command: Option<AuditCommand>,
    /// Only this environment
    #[arg(long, value_name = "ENV")]
    env: Option<EnvName>,
    /// The newest so many entries; all without it
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Check the chain of hashes from the first entry to the last
    #[command(after_help = "Examples:\n  kiln audit verify")]
    Verify,
}

pub(crate) async fn run(context: &Context<'_>, arguments: AuditArgs) -> Result<(), Failure> {
    if let Some(AuditCommand::Verify) = arguments.command {
        return verify(context).await;
    }
    let query = AuditQuery { project: context.project_if_any()?, env: arguments.env, lines: arguments.lines };
    let view = context.client()?.audit(&query).await?;
    context.out().answer(&view, || list(&view.entries))
}

async fn verify(context: &Context<'_>) -> Result<(), Failure> {
    let view = context.client()?.verify_audit().await?;
    match &view.broken {
        None => context.out().answer(&view, || format!("{} entries verified\n", view.verified)),
        Some(broken) => {
            let message = format!("entry {} does not hold: {}", broken.sequence, broken.reason);
            let details = vec![format!("{} entries before it hold", view.verified)];
            Err(Failure::new(Code::LedgerBroken, message)
                .details(details)
                .hint(Code::LedgerBroken.entry().help)
                .document(&view))
        }
    }
}

fn list(entries: &[EntryView]) -> String {
    let row = |e: &EntryView| {
        let env = e.env.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        let what = [e.kind.as_str(), e.subject.as_str()].join(" ");
        vec![e.sequence.to_string(), timestamp(e.at), e.actor.clone(), env, what, e.detail.clone()]
    };
    let rows: Vec<_> = entries.iter().map(row).collect();
    table(&["N", "TIME", "BY", "ENVIRONMENT", "WHAT", "DETAIL"], &rows)
}
