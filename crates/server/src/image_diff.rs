//! Handler of `kiln image diff`.

use crate::Context;
use crate::failure::Failure;
use crate::handlers::Answer;
use crate::images::find;
use axum::Json;
use axum::extract::{Path, State};
use kiln_api::Code;
use kiln_api::image::{DiffView, FileChange, ValueChange};
use kiln_image::diff::{self, Change, ImageDiff};
use kiln_image::worker::chain;
use std::collections::BTreeMap;

pub(crate) async fn diff(
    State(context): State<Context>,
    Path((before, after)): Path<(String, String)>,
) -> Answer<DiffView> {
    let (before, after) = (find(&context, &before)?, find(&context, &after)?);
    let work = move || diff::diff(context.workshop.objects(), before, after);
    let found = tokio::task::spawn_blocking(work).await?;
    let found = found.map_err(|error| Failure::new(Code::Internal, chain(&error)))?;
    let values = |rows: BTreeMap<String, Change<String>>| -> BTreeMap<String, ValueChange> {
        let row = |(name, change): (_, Change<_>)| {
            (name, ValueChange { before: change.before, after: change.after })
        };
        rows.into_iter().map(row).collect()
    };
    let ImageDiff { packages, files, config, size, new_layers } = found;
    Ok(Json(DiffView {
        before,
        after,
        packages: values(packages),
        files: files.into_iter().map(|(path, change)| (path, file(change))).collect(),
        config: values(config),
        size_before: size.0,
        size_after: size.1,
        size_new: new_layers.iter().map(|(_, size)| size).sum(),
    }))
}

fn file(change: diff::FileChange) -> FileChange {
    match change {
        diff::FileChange::Added(size) => FileChange::Added(size),
        diff::FileChange::Removed(size) => FileChange::Removed(size),
        diff::FileChange::Changed(what) => FileChange::Changed(what),
    }
}
