//! Handler of `kiln image gc`.

use crate::Context;
use crate::actor::Actor;
use crate::failure::Failure;
use crate::handlers::Body;
use crate::stream::{Lines, one};
use axum::extract::{ConnectInfo, State};
use axum::response::Response;
use kiln_api::Code;
use kiln_api::image::{GcRequest, GcView, ObjectView};
use kiln_image::gc::Verdict;
use kiln_image::worker::chain;
use std::time::Duration;

pub(crate) async fn gc(
    State(context): State<Context>,
    ConnectInfo(Actor(actor)): ConnectInfo<Actor>,
    Body(request): Body<GcRequest>,
) -> Response {
    one(move |lines: Lines<GcView>| async move {
        let work = move || -> Result<GcView, Failure> {
            lines.progress("looking at every object".into());
            let snapshot = context.handle.snapshot()?;
            let young = Duration::from_millis(request.young_ms);
            let collected = context.workshop.collect(&snapshot, young, request.plan);
            let collected = collected.map_err(|error| Failure::new(Code::Internal, chain(&error)))?;
            let sum = |kept: bool| -> u64 {
                let rows = collected.verdicts.iter().filter(|verdict| verdict.kept_by.is_some() == kept);
                rows.map(|verdict| verdict.size).sum()
            };
            let (kept, freed) = (sum(true), sum(false));
            let n_gone = collected.verdicts.iter().filter(|verdict| verdict.kept_by.is_none()).count();
            if !request.plan && n_gone > 0 {
                let detail = format!("{n_gone} objects, {freed} bytes");
                context.handle.record(&actor, "image.collected", "the content store".to_owned(), detail)?;
            }
            let object =
                |v: Verdict| ObjectView { digest: v.object, size: v.size, what: v.what, kept_by: v.kept_by };
            let objects = collected.verdicts.into_iter().map(object).collect();
            Ok(GcView { plan: request.plan, freed, kept, objects })
        };
        tokio::task::spawn_blocking(work).await?
    })
}
