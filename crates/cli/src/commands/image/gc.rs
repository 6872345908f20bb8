//! `kiln image gc`.

use crate::output::{bytes, table};
use crate::progress::Progress;
use crate::{Context, Failure};
use clap::Args;
use kiln_api::image::{GcRequest, GcView, ObjectView};
use kiln_model::Millis;

/// What to remove.
#[derive(Debug, Args)]
#[command(
    after_help = "What a release that served, that serves or that is on its way needs stays: its images, and the packages \
of its lock. So does what was baked or locked lately.

Examples:
  kiln image gc --plan --explain      what would go, and why the rest stays
  kiln image gc --older-than 1h"
)]
pub struct GcArgs {
    /// Say of every object why it stays
    #[arg(long)]
    explain: bool,
    /// Only say what would go
    #[arg(long)]
    plan: bool,
    /// What was written later than that stays
    #[arg(long, value_name = "AGE", default_value = "24h", value_parser = age)]
    older_than: Millis,
}

fn age(text: &str) -> Result<Millis, String> {
    kiln_spec::duration(text).ok_or_else(|| "an age such as `30m` or `24h`".to_owned())
}

pub(super) async fn run(context: &Context<'_>, arguments: GcArgs) -> Result<(), Failure> {
    let request = GcRequest { plan: arguments.plan, young_ms: arguments.older_than.0 };
    let mut progress = Progress::start();
    let client = context.client()?;
    let view = client.image_gc(&request).await?.answer(|text| progress.now(text)).await?;
    drop(progress);
    context.out().answer(&view, || text(&view, arguments.explain))
}

fn text(view: &GcView, explain: bool) -> String {
    let shown = view.objects.iter().filter(|object| explain || object.kept_by.is_none());
    let row = |o: &ObjectView| {
        let fate =
            o.kept_by.as_ref().map_or("goes: nothing needs it".to_owned(), |why| format!("stays: {why}"));
        vec![o.digest.short(), bytes(o.size), o.what.clone(), fate]
    };
    let rows: Vec<_> = shown.map(row).collect();
    let mut text =
        if rows.is_empty() { String::new() } else { table(&["OBJECT", "SIZE", "WHAT", "FATE"], &rows) };
    let verb = if view.plan { "would be freed" } else { "freed" };
    text.push_str(&format!("{} {verb}, {} stay\n", bytes(view.freed), bytes(view.kept)));
    text
}
