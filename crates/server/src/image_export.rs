//! Handlers of `kiln image export`.

use crate::Context;
use crate::download::download;
use crate::failure::Failure;
use crate::handlers::{Body, Query};
use crate::image_boot;
use crate::images::find;
use crate::stream::{Lines, one};
use axum::extract::{Path, State};
use axum::response::Response;
use kiln_api::Code;
use kiln_api::export::{Compression, ExportRequest, ExportView, Format, PushRequest, PushView};
use kiln_image::export::blob;
use kiln_image::export::oci::{self, Labels, OciImage, RunAs};
use kiln_image::worker::chain;
use kiln_model::{Digest, ServiceName, ServiceSpec};

pub(crate) async fn prepare(
    State(context): State<Context>,
    Path(prefix): Path<String>,
    Body(request): Body<ExportRequest>,
) -> Response {
    one(move |lines: Lines<ExportView>| async move {
        let work = move || -> Result<ExportView, Failure> {
            let image = find(&context, &prefix)?;
            if request.format.boots() {
                let machine =
                    image_boot::prepared(&context, image, &request, &mut |text| lines.progress(text))?;
                return Ok(ExportView { image, manifest: machine.root(), size: machine.size() });
            }
            let prepared = prepared(&context, image, &request, &mut |text| lines.progress(text))?;
            let size = prepared.layers.iter().map(|blob| blob.size).sum();
            Ok(ExportView { image, manifest: Digest::of(&prepared.manifest), size })
        };
        tokio::task::spawn_blocking(work).await?
    })
}

pub(crate) async fn bytes(
    State(context): State<Context>,
    Path(prefix): Path<String>,
    Query(request): Query<ExportRequest>,
) -> Result<Response, Failure> {
    let image = find(&context, &prefix)?;
    if request.format.boots() {
        return image_boot::bytes(context, image, request).await;
    }
    let workshop = context.workshop.clone();
    let format = request.format;
    let work = move || prepared(&context, image, &request, &mut |_| {});
    let prepared = tokio::task::spawn_blocking(work).await??;
    Ok(download(move |mut out| match format {
        Format::DockerArchive => oci::docker_archive(workshop.objects(), &prepared, &mut out),
        _ => oci::archive(workshop.objects(), &prepared, &mut out),
    }))
}

pub(crate) async fn push(
    State(context): State<Context>,
    Path(prefix): Path<String>,
    Body(request): Body<PushRequest>,
) -> Response {
    one(move |lines: Lines<PushView>| async move {
        let work = move || -> Result<PushView, Failure> {
            let image = find(&context, &prefix)?;
            let PushRequest { to, compression, service } = request;
            let export = ExportRequest { compression, service, ..ExportRequest::new(Format::OciArchive) };
            let prepared = prepared(&context, image, &export, &mut |text| lines.progress(text))?;
            let pushed = context.workshop.push(&prepared, &to, &mut |text| lines.progress(text));
            let pushed = pushed.map_err(|e| Failure::hinted(Code::Registry, chain(&e), Some(e.hint())))?;
            let size = prepared.layers.iter().map(|blob| blob.size).sum();
            Ok(PushView { image, manifest: Digest::of(&prepared.manifest), size, sent: pushed.sent })
        };
        tokio::task::spawn_blocking(work).await?
    })
}

fn prepared(
    context: &Context,
    image: Digest,
    request: &ExportRequest,
    progress: &mut dyn FnMut(String),
) -> Result<OciImage, Failure> {
    let compression = match (request.format, request.compression) {
        (Format::DockerArchive, _) | (_, Compression::None) => blob::Compression::None,
        (_, Compression::Gzip) => blob::Compression::Gzip,
        (_, Compression::Zstd) => blob::Compression::Zstd,
    };
    let run_as = match &request.service {
        Some(service) => run_as(context, image, service)?,
        None => RunAs::default(),
    };
    let record = context.workshop.provenance(image);
    let revision = record.and_then(|record| record.get("commit")?.as_str().map(str::to_owned));
    let labels = Labels { reference: request.reference.clone(), revision };
    let prepared = context.workshop.export(image, compression, &run_as, &labels, progress);
    prepared.map_err(|error| Failure::new(Code::Internal, chain(&error)))
}

/// How the newest release that uses the image in that service starts it.
fn run_as(context: &Context, image: Digest, service: &ServiceName) -> Result<RunAs, Failure> {
    let spec = service_of(context, image, service)?;
    let users = context.workshop.manifest(image).map(|manifest| manifest.config.users).unwrap_or_default();
    let user = users.get(&spec.user).map(|(uid, gid)| format!("{uid}:{gid}"));
    let port = spec.port.map(|port| ("PORT".to_owned(), port.to_string()));
    Ok(RunAs {
        env: spec.env.into_iter().chain(port).collect(),
        command: spec.command,
        user: Some(user.unwrap_or(spec.user)),
        port: spec.port,
    })
}

/// The service as the newest release that uses the image in it has it.
pub(crate) fn service_of(
    context: &Context,
    image: Digest,
    service: &ServiceName,
) -> Result<ServiceSpec, Failure> {
    let snapshot = context.handle.snapshot()?;
    let specs = snapshot.releases.values().filter_map(|release| {
        let spec = release.spec.services.get(service)?;
        (release.image_of(spec) == Some(image)).then_some((release.created, spec))
    });
    let newest = specs.max_by_key(|(created, _)| *created);
    newest.map(|(_, spec)| spec.clone()).ok_or_else(|| {
        Failure::new(Code::NoService, format!("no release runs service `{service}` on this image"))
    })
}
