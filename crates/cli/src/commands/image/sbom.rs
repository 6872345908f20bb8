//! `kiln image sbom`.

use crate::{Context, Failure};
use clap::{Args, ValueEnum};
use kiln_api::image::{SbomFormat, SbomQuery};

/// Which image, in which form.
#[derive(Debug, Args)]
#[command(
    after_help = "The document is made by the bake, and its digest is in the statement that is signed. Its time is the commit's.

Examples:
  kiln image sbom 3f9a52c1 > shop.spdx.json
  kiln image sbom 3f9a52c1 --format cyclonedx"
)]
pub struct SbomArgs {
    /// Its digest, or the first digits of it
    #[arg(value_name = "DIGEST")]
    digest: String,
    /// SPDX 2.3 or CycloneDX 1.6, both as JSON
    #[arg(long, value_name = "FORMAT", default_value = "spdx")]
    format: Form,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Form {
    Spdx,
    Cyclonedx,
}

pub(super) async fn run(context: &Context<'_>, arguments: SbomArgs) -> Result<(), Failure> {
    let format = match arguments.format {
        Form::Spdx => SbomFormat::Spdx,
        Form::Cyclonedx => SbomFormat::Cyclonedx,
    };
    let view = context.client()?.sbom(&arguments.digest, &SbomQuery { format }).await?;
    // It is one JSON document with and without `--json`, byte for byte what was signed.
    context.out().text(&view.text)
}
