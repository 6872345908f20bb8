//! Handlers of images: what there is, and what it was made from.

use crate::Context;
use crate::failure::Failure;
use crate::handlers::{Answer, Look, Query};
use crate::views;
use axum::Json;
use axum::extract::{Path, State};
use kiln_api::Code;
use kiln_api::environment::Scope;
use kiln_api::image::{BuildLogView, ImageDetail, ImageList};

/// Bytes of all layers of an image.
fn size_of(context: &Context, image: kiln_model::Digest) -> Option<u64> {
    let manifest = context.workshop.manifest(image).ok()?;
    Some(manifest.layers.iter().map(|layer| layer.size).sum())
}

/// The one image of this state folder, released or only baked, whose digest begins with `prefix`.
pub(crate) fn find(context: &Context, prefix: &str) -> Result<kiln_model::Digest, Failure> {
    let prefix = prefix.strip_prefix("sha256:").unwrap_or(prefix);
    let mut found = context.workshop.images();
    found.retain(|image| image.hex().starts_with(prefix));
    match found[..] {
        [image] => Ok(image),
        [] => Err(Failure::new(Code::NoImage, format!("no image begins with `{prefix}`"))),
        _ => Err(Failure::new(Code::NoImage, format!("more than one image begins with `{prefix}`"))),
    }
}

pub(crate) async fn list(State(context): State<Context>, Query(scope): Query<Scope>) -> Answer<ImageList> {
    let look = Look::about(&context, &scope)?;
    Ok(Json(ImageList { images: look.view().images(&scope, &|image| size_of(&context, image)) }))
}

pub(crate) async fn show(State(context): State<Context>, Path(prefix): Path<String>) -> Answer<ImageDetail> {
    let digest = find(&context, &prefix)?;
    let look = Look::take(&context)?;
    let all = look.view().images(&Scope::default(), &|image| size_of(&context, image));
    let provenance = context.workshop.provenance(digest);
    let released = all.into_iter().find(|image| image.digest == digest);
    // One that was only baked is known by the record beside it.
    let recorded = || provenance.as_ref().and_then(|p| views::baked(digest, p, size_of(&context, digest)));
    let image = released.or_else(recorded);
    let image =
        image.ok_or_else(|| Failure::new(Code::NoImage, format!("no image begins with `{prefix}`")))?;
    Ok(Json(ImageDetail { manifest: context.workshop.manifest(digest).ok(), provenance, image }))
}

pub(crate) async fn build_log(
    State(context): State<Context>,
    Path(prefix): Path<String>,
) -> Answer<BuildLogView> {
    let digest = find(&context, &prefix)?;
    Ok(Json(BuildLogView { digest, log: context.workshop.build_log(digest) }))
}
