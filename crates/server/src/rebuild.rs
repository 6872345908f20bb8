//! `kiln image verify --rebuild`: bakes an image again elsewhere and compares.

use crate::Context;
use crate::failure::Failure;
use crate::images::find;
use crate::stream::{Lines, one};
use axum::extract::{Path, State};
use axum::response::Response;
use kiln_api::Code;
use kiln_api::image::{RebuildView, RebuiltLayer};
use kiln_control::workshop::rebuild::RebuildError;

pub(crate) async fn rebuild(State(context): State<Context>, Path(prefix): Path<String>) -> Response {
    one(move |lines: Lines<RebuildView>| async move {
        let work = move || -> Result<RebuildView, Failure> {
            let image = find(&context, &prefix)?;
            let rebuilt = context.workshop.rebuild(image, &mut |text| lines.progress(text))?;
            let layer = |(role, expected, found)| RebuiltLayer { role, expected, found };
            Ok(RebuildView {
                image,
                rebuilt: rebuilt.image,
                place: rebuilt.place.display().to_string(),
                layers: rebuilt.layers.into_iter().map(layer).collect(),
                difference: rebuilt.difference,
            })
        };
        tokio::task::spawn_blocking(work).await?
    })
}

impl From<RebuildError> for Failure {
    fn from(error: RebuildError) -> Self {
        match error {
            RebuildError::Workshop(error) => error.into(),
            RebuildError::Place { .. } => Self::new(Code::Store, kiln_api::error::chain(&error)),
            RebuildError::NotBaked(_) | RebuildError::OtherLock(_) => {
                Self::new(Code::NotRebuildable, error.to_string())
            }
        }
    }
}
