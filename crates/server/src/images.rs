//! Handlers of images: what there is, and what it was made from.

use crate::Context;
use crate::failure::Failure;
use crate::handlers::{Answer, Body, Look, Query};
use crate::stream::{Lines, one};
use crate::views;
use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use kiln_api::Code;
use kiln_api::environment::Scope;
use kiln_api::image::{BrokenPart, BuildLogView, ImageDetail, ImageList, VerifiedImage};
use kiln_api::image::{SbomFormat, SbomQuery, SbomView, VerifyReport, VerifyRequest};
use kiln_control::workshop::Format;

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
    let (manifest, statement) = (context.workshop.manifest(digest).ok(), context.workshop.statement(digest));
    Ok(Json(ImageDetail { manifest, provenance, statement, image }))
}

pub(crate) async fn build_log(
    State(context): State<Context>,
    Path(prefix): Path<String>,
) -> Answer<BuildLogView> {
    let digest = find(&context, &prefix)?;
    Ok(Json(BuildLogView { digest, log: context.workshop.build_log(digest) }))
}

pub(crate) fn format_of(format: SbomFormat) -> Format {
    match format {
        SbomFormat::Spdx => Format::Spdx,
        SbomFormat::Cyclonedx => Format::Cyclonedx,
    }
}

pub(crate) async fn sbom(
    State(context): State<Context>,
    Path(prefix): Path<String>,
    Query(query): Query<SbomQuery>,
) -> Answer<SbomView> {
    let digest = find(&context, &prefix)?;
    let bytes = context.workshop.sbom(digest, format_of(query.format))?;
    Ok(Json(SbomView { text: String::from_utf8_lossy(&bytes).into_owned() }))
}

pub(crate) async fn verify(State(context): State<Context>, Body(request): Body<VerifyRequest>) -> Response {
    one(move |lines: Lines<VerifyReport>| async move {
        let work = move || -> Result<VerifyReport, Failure> {
            let mut digests = vec![];
            for prefix in &request.images {
                digests.push(find(&context, prefix)?);
            }
            if request.images.is_empty() {
                digests = context.workshop.images();
                digests.sort();
            }
            let mut images = vec![];
            for digest in digests {
                let mut progress = |part: &str| lines.progress(format!("image {}: {part}", digest.short()));
                let mut report = context.workshop.verify(digest, &mut progress)?;
                let mut mended = None;
                if request.mend && !report.is_good() {
                    let mut told = |text: String| lines.progress(format!("image {}: {text}", digest.short()));
                    mended = Some(match context.workshop.mend_image(digest, &mut told) {
                        Ok(done) => done,
                        Err(error) => format!("cannot be mended: {}", kiln_api::error::chain(&error)),
                    });
                    report = context.workshop.verify(digest, &mut progress)?;
                }
                images.push(VerifiedImage {
                    digest,
                    signed_by: report.signed_by,
                    layers: report.layers,
                    packages: report.packages,
                    packages_absent: report.packages_absent,
                    bytes: report.bytes,
                    broken: report
                        .broken
                        .into_iter()
                        .map(|broken| BrokenPart { part: broken.part, why: broken.why })
                        .collect(),
                    mended,
                });
            }
            Ok(VerifyReport { images })
        };
        tokio::task::spawn_blocking(work).await?
    })
}
