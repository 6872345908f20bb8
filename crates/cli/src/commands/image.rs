//! `kiln image`: what instances are made of, and where it came from.

use crate::output::{bytes, table};
use crate::{Context, Failure};
use clap::{Args, Subcommand};
use kiln_api::image::{ImageDetail, ImageView};
use kiln_model::EnvName;

/// What to show.
#[derive(Debug, Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// List the images that releases use
    #[command(after_help = "Examples:\n  kiln image list")]
    List {
        /// Only those of this environment
        #[arg(long, value_name = "ENV")]
        env: Option<EnvName>,
    },
    /// Show the layers of an image and what it was made from
    #[command(after_help = "Examples:\n  kiln image show 3f9a52c1\n  kiln image show sha256:3f9a52c1 --json")]
    Show {
        /// Its digest, or the first digits of it
        #[arg(value_name = "DIGEST")]
        digest: String,
    },
}

pub(crate) async fn run(context: &Context<'_>, arguments: ImageArgs) -> Result<(), Failure> {
    let client = context.client()?;
    match arguments.command {
        ImageCommand::List { env } => {
            let view = client.images(&context.scope(&env)?).await?;
            context.out().answer(&view, || list(&view.images))
        }
        ImageCommand::Show { digest } => {
            let view = client.image(&digest).await?;
            context.out().answer(&view, || show(&view))
        }
    }
}

fn size(view: &ImageView) -> String {
    view.size.map_or_else(|| "-".to_owned(), bytes)
}

fn uses(view: &ImageView) -> Vec<String> {
    let word = |serving: bool| if serving { " (serving)" } else { "" };
    view.used_by.iter().map(|u| format!("{} release {}{}", u.env, u.release, word(u.serving))).collect()
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
