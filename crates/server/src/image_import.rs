//! The handler of `kiln image import`.

use crate::Context;
use crate::failure::Failure;
use crate::handlers::{Answer, Query};
use crate::upload::feed;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use kiln_api::Code;
use kiln_api::export::{ImportQuery, ImportView};
use kiln_image::import::ImportError;
use kiln_image::worker::chain;

pub(crate) async fn put(
    State(context): State<Context>,
    Query(query): Query<ImportQuery>,
    body: Body,
) -> Answer<ImportView> {
    let work = move |archive: &mut dyn std::io::Read| {
        context.workshop.import(archive, &query.name, &mut |_| {}).map_err(|error| {
            let code = match &error {
                ImportError::Upload(_) | ImportError::Objects(_) | ImportError::Record(_) => Code::Internal,
                _ => Code::ImportRefused,
            };
            Failure::new(code, chain(&error))
        })
    };
    let done = feed(body, work).await??;
    Ok(Json(ImportView { image: done.image, size: done.size, said: done.said }))
}
