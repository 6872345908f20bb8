//! `kiln bake`: from a commit to image digests, without deploying.

use crate::progress::Progress;
use crate::{Context, Failure, source, watch};
use clap::Args;
use kiln_api::bake::BakeRequest;

/// Options of `kiln bake`.
#[derive(Debug, Args)]
#[command(
    after_help = "The same commit gives the same digests, everywhere. A deploy of the commit uses what was baked.

Examples:
  kiln bake                           prints one line per image: NAME sha256:DIGEST
  kiln bake --ref main~3"
)]
pub struct BakeArgs {
    /// A commit, branch or tag instead of the commit that the work tree stands on
    #[arg(long = "ref", value_name = "REV")]
    reference: Option<String>,
}

pub(crate) async fn run(context: &Context<'_>, arguments: BakeArgs) -> Result<(), Failure> {
    let source = source::resolve(context, arguments.reference.as_deref())?;
    let client = context.client()?;
    let mut progress = Progress::start();
    source::upload(&client, &source, &mut progress).await?;
    let request = BakeRequest { project: source.project.clone(), commit: source.commit.clone() };
    let mut view = watch::persist("the images are not baked", async || {
        client.bake(&request).await?.answer(|text| progress.now(text)).await
    })
    .await?;
    drop(progress);
    source::keep_lock(context, &source, view.lock.take())?;
    view.warnings.iter().for_each(|warning| context.out().note(&format!("warning: {warning}")));
    context
        .out()
        .answer(&view, || view.images.iter().map(|(name, digest)| format!("{name} {digest}\n")).collect())
}
