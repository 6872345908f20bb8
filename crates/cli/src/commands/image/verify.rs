//! `kiln image verify`.

use super::rebuild;
use crate::output::bytes;
use crate::progress::Progress;
use crate::{Context, Failure};
use clap::Args;
use kiln_api::Code;
use kiln_api::image::{VerifiedImage, VerifyRequest};

/// Which images.
#[derive(Debug, Args)]
#[command(
    after_help = "Reads every byte, whatever was read before: signature, bills of materials, manifest, layers, and the packages in the store. \
With `--rebuild` the server bakes the image's commit once more: in a folder of its own, on another file system if there is one with \
room, without its cache. The same inputs have to give the same bytes; if they do not, the first file that differs is named.

Examples:
  kiln image verify 3f9a52c1
  kiln image verify --all --json
  kiln image verify 3f9a52c1 --mend
  kiln image verify 3f9a52c1 --rebuild"
)]
pub struct VerifyArgs {
    /// Its digest, or the first digits of it
    #[arg(value_name = "DIGEST", required_unless_present = "all", conflicts_with = "all")]
    digest: Option<String>,
    /// Every image of the server
    #[arg(long)]
    all: bool,
    /// Bake again what is damaged, from its commit
    #[arg(long)]
    mend: bool,
    /// Bake it again elsewhere and compare
    #[arg(long, conflicts_with_all = ["all", "mend"])]
    rebuild: bool,
}

pub(super) async fn run(context: &Context<'_>, arguments: VerifyArgs) -> Result<(), Failure> {
    if let (Some(digest), true) = (&arguments.digest, arguments.rebuild) {
        return rebuild::run(context, digest).await;
    }
    let request = VerifyRequest { images: arguments.digest.into_iter().collect(), mend: arguments.mend };
    let mut progress = Progress::start();
    let updates = context.client()?.verify_images(&request).await?;
    let report = updates.answer(|text| progress.now(text)).await?;
    drop(progress);
    let broken: Vec<&VerifiedImage> = report.images.iter().filter(|image| !image.broken.is_empty()).collect();
    if broken.is_empty() {
        return context.out().answer(&report, || report.images.iter().map(good).collect());
    }
    let parts = broken.iter().flat_map(|image| {
        let parts =
            image.broken.iter().map(|part| format!("image {}: {}: {}", image.digest, part.part, part.why));
        parts.chain(image.mended.clone())
    });
    let message = format!("{} of {} images are not as they should be", broken.len(), report.images.len());
    let failure = Failure::new(Code::ImageBroken, message).details(parts.collect());
    Err(failure.hint(Code::ImageBroken.entry().help).document(&report))
}

fn good(image: &VerifiedImage) -> String {
    let absent = match image.packages_absent {
        0 => String::new(),
        n => format!(" ({n} more are not in the store)"),
    };
    let key = image.signed_by.as_deref().unwrap_or("-");
    let mended = image.mended.as_ref().map(|done| format!("; {done}")).unwrap_or_default();
    format!(
        "{} ok: signed by key {key}, {} layers, {} packages{absent}, {} read{mended}\n",
        image.digest,
        image.layers,
        image.packages,
        bytes(image.bytes)
    )
}
