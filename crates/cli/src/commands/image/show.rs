//! `kiln image show`.

use super::{size, uses};
use crate::output::bytes;
use crate::{Context, Failure};
use clap::Args;
use kiln_api::image::ImageDetail;

/// Which image.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  kiln image show 3f9a52c1\n  kiln image show sha256:3f9a52c1 --json\n  kiln image show 3f9a52c1 --build-log"
)]
pub struct ShowArgs {
    /// Its digest, or the first digits of it
    #[arg(value_name = "DIGEST")]
    digest: String,
    /// Show what its build printed instead
    #[arg(long)]
    build_log: bool,
}

pub(super) async fn run(context: &Context<'_>, arguments: ShowArgs) -> Result<(), Failure> {
    if arguments.build_log {
        let view = context.client()?.image_build_log(&arguments.digest).await?;
        let none = || format!("no build of image {} is known here\n", view.digest);
        return context.out().answer(&view, || view.log.clone().unwrap_or_else(none));
    }
    let view = context.client()?.image(&arguments.digest).await?;
    context.out().answer(&view, || show(&view))
}

fn show(view: &ImageDetail) -> String {
    let i = &view.image;
    let mut text = format!("image        {}\nname         {}\n", i.digest, i.name);
    text.push_str(&format!("commit       {}\nsize         {}\n", i.commit, size(i)));
    for line in uses(i) {
        text.push_str(&format!("used by      {line}\n"));
    }
    for layer in view.manifest.iter().flat_map(|manifest| &manifest.layers) {
        text.push_str(&format!("layer        {} {} {}\n", layer.digest, layer.role, bytes(layer.size)));
    }
    if let Some(serde_json::Value::Object(fields)) = &view.provenance {
        text.push_str("made from:\n");
        for (name, value) in fields {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            text.push_str(&format!("  {name}: {value}\n"));
        }
    }
    text
}
