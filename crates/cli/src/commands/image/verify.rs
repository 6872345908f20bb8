//! `kiln image verify`.

use super::rebuild;
use crate::{Context, Failure};
use clap::Args;

/// Which image, and how.
#[derive(Debug, Args)]
#[command(
    after_help = "With `--rebuild` the server bakes the image's commit once more: in a folder of its own, on another file system \
if there is one with room, without its cache. The same inputs have to give the same bytes; if they do not, the first file that \
differs is named.

Examples:
  kiln image verify 3f9a52c1 --rebuild"
)]
pub struct VerifyArgs {
    /// Its digest, or the first digits of it
    #[arg(value_name = "DIGEST")]
    digest: String,
    /// Bake it again elsewhere and compare
    #[arg(long, required = true)]
    rebuild: bool,
}

pub(super) async fn run(context: &Context<'_>, arguments: VerifyArgs) -> Result<(), Failure> {
    debug_assert!(arguments.rebuild, "the only way so far");
    rebuild::run(context, &arguments.digest).await
}
