//! `kiln reference`: prints docs/reference/cli.md.

use crate::{Context, Failure, reference};
use clap::Args;

/// Options of `kiln reference`.
#[derive(Debug, Args)]
pub struct ReferenceArgs {}

pub(crate) fn run(context: &Context<'_>, _: ReferenceArgs) -> Result<(), Failure> {
    let page = reference::page();
    context.out().answer(&serde_json::json!({ "page": page }), || page.clone())
}
