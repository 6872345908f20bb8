//! `kiln image diff`.

use crate::output::bytes;
use crate::{Context, Failure};
use clap::Args;
use kiln_api::image::{DiffView, FileChange, ValueChange};
use std::collections::BTreeMap;

/// Which images.
#[derive(Debug, Args)]
#[command(
    after_help = "Packages, files (content, mode, owner), configuration and size, as an instance sees them. Times of files are \
left out: they follow the commit.

Examples:
  kiln image diff 3f9a52c1 77b0c9d2
  kiln image diff 3f9a52c1 77b0c9d2 --json"
)]
pub struct DiffArgs {
    /// The first image: its digest, or the first digits of it
    #[arg(value_name = "A")]
    before: String,
    /// The second image
    #[arg(value_name = "B")]
    after: String,
}

pub(super) async fn run(context: &Context<'_>, arguments: DiffArgs) -> Result<(), Failure> {
    let view = context.client()?.image_diff(&arguments.before, &arguments.after).await?;
    context.out().answer(&view, || text(&view))
}

fn text(view: &DiffView) -> String {
    let mut text = String::new();
    section(&mut text, "packages", values(&view.packages));
    let files = view.files.iter().map(|(path, change)| match change {
        FileChange::Added(size) => format!("+ {path} ({})", bytes(*size)),
        FileChange::Removed(size) => format!("- {path} ({})", bytes(*size)),
        FileChange::Changed(what) => format!("~ {path} ({})", what.join(", ")),
    });
    section(&mut text, "files", files.collect());
    section(&mut text, "configuration", values(&view.config));
    if text.is_empty() {
        text.push_str("no difference\n");
    }
    text.push_str(&format!(
        "size {} -> {}; a host with the first lacks {}\n",
        bytes(view.size_before),
        bytes(view.size_after),
        bytes(view.size_new)
    ));
    text
}

fn section(text: &mut String, title: &str, lines: Vec<String>) {
    if !lines.is_empty() {
        text.push_str(&format!("{title}:\n"));
        lines.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
    }
}

fn values(rows: &BTreeMap<String, ValueChange>) -> Vec<String> {
    let line = |(name, change): (&String, &ValueChange)| match (&change.before, &change.after) {
        (Some(before), Some(after)) => format!("~ {name} {before} -> {after}"),
        (Some(before), None) => format!("- {name} {before}"),
        (None, after) => format!("+ {name} {}", after.as_deref().unwrap_or_default()),
    };
    rows.iter().map(line).collect()
}
