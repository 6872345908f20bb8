//! `kiln image list`.

use super::size;
use crate::output::table;
use crate::{Context, Failure};
use clap::Args;
use kiln_api::image::ImageView;
use kiln_model::EnvName;

/// Which images.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln image list")]
pub struct ListArgs {
    /// Only those of this environment
    #[arg(long, value_name = "ENV")]
    env: Option<EnvName>,
}

pub(super) async fn run(context: &Context<'_>, arguments: ListArgs) -> Result<(), Failure> {
    let view = context.client()?.images(&context.scope(&arguments.env)?).await?;
    context.out().answer(&view, || list(&view.images))
}

fn list(images: &[ImageView]) -> String {
    let row = |i: &ImageView| {
        let serving = i.used_by.iter().filter(|u| u.serving).count();
        let uses = match i.used_by.len() {
            1 => format!("1 release, {serving} serving"),
            n => format!("{n} releases, {serving} serving"),
        };
        vec![i.digest.short(), i.name.to_string(), i.commit.short().to_owned(), size(i), uses]
    };
    let rows: Vec<_> = images.iter().map(row).collect();
    table(&["DIGEST", "NAME", "COMMIT", "SIZE", "USED BY"], &rows)
}
