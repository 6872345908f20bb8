//! Handlers of `kiln image send`: what is lacking, layers on their way out and in, and the image at last.

use crate::Context;
use crate::download::download;
use crate::failure::Failure;
use crate::handlers::{Answer, Body, Query};
use crate::images::format_of;
use crate::upload::feed;
use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use kiln_api::Code;
use kiln_api::export::ImportView;
use kiln_api::replicate::{LayerQuery, LayerView, MissingLayer, OfferRequest, OfferView, ReceiveRequest};
use kiln_image::replicate::{self, ReplicateError};
use kiln_image::worker::chain;
use kiln_model::Digest;
use serde_json::json;

fn failure(error: &ReplicateError) -> Failure {
    let code = match error {
        ReplicateError::Objects(_) => Code::Internal,
        _ => Code::LayerRefused,
    };
    Failure::new(code, chain(error))
}

pub(crate) async fn offer(
    State(context): State<Context>,
    Body(request): Body<OfferRequest>,
) -> Answer<OfferView> {
    let work = move || -> Result<OfferView, Failure> {
        let image = request.manifest.digest();
        // Before anything is sent: what may not run here need not come.
        context.workshop.may_come(image, request.statement.as_ref())?;
        let missing = context.workshop.missing(&request.manifest).into_iter();
        let missing = missing
            .map(|(layer, like)| MissingLayer { layer: layer.digest, size: layer.size, like })
            .collect();
        Ok(OfferView { image, missing })
    };
    Ok(Json(tokio::task::spawn_blocking(work).await??))
}

pub(crate) async fn layer(
    State(context): State<Context>,
    Path(layer): Path<Digest>,
    Query(query): Query<LayerQuery>,
) -> Result<Response, Failure> {
    // Only what belongs to an image goes out: the store holds more than layers.
    let mut images = context.workshop.images().into_iter();
    let ours =
        |image| context.workshop.manifest(image).is_ok_and(|m| m.layers.iter().any(|l| l.digest == layer));
    if !images.any(ours) {
        return Err(failure(&ReplicateError::Missing(layer)));
    }
    let like: Vec<Digest> = query.like.split(',').filter_map(|text| text.parse().ok()).collect();
    let workshop = context.workshop.clone();
    Ok(download(move |out| {
        replicate::send(workshop.objects(), layer, &like, out).map_err(std::io::Error::other)
    }))
}

pub(crate) async fn put_layer(State(context): State<Context>, body: axum::body::Body) -> Answer<LayerView> {
    let work = move |reader: &mut dyn std::io::Read| replicate::receive(context.workshop.objects(), reader);
    let (layer, size) = feed(body, work).await?.map_err(|error| failure(&error))?;
    Ok(Json(LayerView { layer, size }))
}

pub(crate) async fn receive(
    State(context): State<Context>,
    Body(request): Body<ReceiveRequest>,
) -> Answer<ImportView> {
    let work = move || -> Result<ImportView, Failure> {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let note = json!({ "received_at": since.unwrap_or_default().as_secs() });
        let sboms: Vec<_> =
            request.sboms.into_iter().map(|(format, text)| (format_of(format), text)).collect();
        let statement = request.statement.unwrap_or_default();
        let image = context.workshop.register(&request.manifest, &statement, &sboms, &note)?;
        let size = request.manifest.layers.iter().map(|layer| layer.size).sum();
        Ok(ImportView { image, size, said: None })
    };
    Ok(Json(tokio::task::spawn_blocking(work).await??))
}
