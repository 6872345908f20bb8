//! Handlers of keys: which sign, which are trusted.

use crate::Context;
use crate::actor::Actor;
use crate::handlers::{Answer, Body};
use axum::Json;
use axum::extract::{ConnectInfo, State};
use kiln_api::key::{KeyList, KeyRequest, KeyView};
use kiln_control::KeysError;
use kiln_control::keys::KnownKey;

fn answer(context: &Context) -> Answer<KeyList> {
    let keys = context.workshop.keys();
    let view = |known: KnownKey| KeyView {
        id: known.key.id(),
        key: known.key.to_string(),
        pem: known.key.pem(),
        signs: known.signs,
        trusted: known.trusted,
        until: known.until,
    };
    let known = keys.known().map_err(KeysError::Trust)?;
    Ok(Json(KeyList {
        keys: known.into_iter().map(view).collect(),
        list: keys.list_path().display().to_string(),
    }))
}

pub(crate) async fn list(State(context): State<Context>) -> Answer<KeyList> {
    answer(&context)
}

/// Puts the change into the ledger and answers with what there is now.
fn changed(context: &Context, actor: &str) -> Answer<KeyList> {
    let record = |kind: &str, subject, detail| context.handle.record(actor, kind, subject, detail);
    context.workshop.keys().record_changes(record)?;
    answer(context)
}

pub(crate) async fn rotate(
    State(context): State<Context>,
    ConnectInfo(Actor(actor)): ConnectInfo<Actor>,
) -> Answer<KeyList> {
    let work = move || -> Answer<KeyList> {
        context.workshop.keys().rotate()?;
        changed(&context, &actor)
    };
    tokio::task::spawn_blocking(work).await?
}

pub(crate) async fn remove(
    State(context): State<Context>,
    ConnectInfo(Actor(actor)): ConnectInfo<Actor>,
    Body(request): Body<KeyRequest>,
) -> Answer<KeyList> {
    let work = move || -> Answer<KeyList> {
        context.workshop.keys().remove(&request.id)?;
        changed(&context, &actor)
    };
    tokio::task::spawn_blocking(work).await?
}
