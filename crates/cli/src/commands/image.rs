//! `kiln image`: what instances are made of, and where it came from. Each command has a file of its own in `image/`.

mod diff;
mod export;
mod gc;
mod import;
mod list;
mod rebuild;
mod sbom;
mod send;
mod show;
mod verify;

use crate::output::bytes;
use crate::{Context, Failure};
use clap::{Args, Subcommand};
use kiln_api::image::ImageView;

/// What to do with images.
#[derive(Debug, Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// List the images that releases use
    List(list::ListArgs),
    /// Show the layers of an image and what it was made from
    Show(show::ShowArgs),
    /// Say what differs between two images
    Diff(diff::DiffArgs),
    /// Write an image for other tools
    Export(export::ExportArgs),
    /// Read an image that kiln or another tool wrote
    Import(import::ImportArgs),
    /// Send an image to another server, only what that one lacks
    Send(send::SendArgs),
    /// Remove what no release needs
    Gc(gc::GcArgs),
    /// Print what is in an image, as SPDX or CycloneDX
    Sbom(sbom::SbomArgs),
    /// Read everything of images and name what is damaged, missing, or not signed
    Verify(verify::VerifyArgs),
}

pub(crate) async fn run(context: &Context<'_>, arguments: ImageArgs) -> Result<(), Failure> {
    match arguments.command {
        ImageCommand::List(arguments) => list::run(context, arguments).await,
        ImageCommand::Show(arguments) => show::run(context, arguments).await,
        ImageCommand::Diff(arguments) => diff::run(context, arguments).await,
        ImageCommand::Export(arguments) => export::run(context, arguments).await,
        ImageCommand::Import(arguments) => import::run(context, arguments).await,
        ImageCommand::Send(arguments) => send::run(context, arguments).await,
        ImageCommand::Gc(arguments) => gc::run(context, arguments).await,
        ImageCommand::Sbom(arguments) => sbom::run(context, arguments).await,
        ImageCommand::Verify(arguments) => verify::run(context, arguments).await,
    }
}

fn size(view: &ImageView) -> String {
    view.size.map_or_else(|| "-".to_owned(), bytes)
}

fn uses(view: &ImageView) -> Vec<String> {
    let word = |serving: bool| if serving { " (serving)" } else { "" };
    view.used_by.iter().map(|u| format!("{} release {}{}", u.env, u.release, word(u.serving))).collect()
}
