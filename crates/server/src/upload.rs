//! Uploads of sources: the body flows into git as it comes.

use crate::Context;
use crate::failure::Failure;
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use kiln_api::Code;
use kiln_api::source::SourceView;
use kiln_model::{CommitId, ProjectName};
use std::io::Read;
use tokio::sync::mpsc;

/// Chunks that wait for git.
const BACKLOG: usize = 16;

pub(crate) async fn has(
    State(context): State<Context>,
    Path((project, commit)): Path<(ProjectName, CommitId)>,
) -> Json<SourceView> {
    let present = context.workshop.has_source(&project, &commit);
    let known = if present { vec![] } else { context.workshop.known_sources(&project) };
    Json(SourceView { project, commit, present, known })
}

pub(crate) async fn put(
    State(context): State<Context>,
    Path((project, commit)): Path<(ProjectName, CommitId)>,
    body: Body,
) -> Result<Json<SourceView>, Failure> {
    let (whose, which) = (project.clone(), commit.clone());
    feed(body, move |reader| context.workshop.accept_source(&whose, &which, reader)).await??;
    Ok(Json(SourceView { project, commit, present: true, known: vec![] }))
}

/// Has a thread that may block read a body with `work`; answers with what that says.
pub(crate) async fn feed<T: Send + 'static>(
    mut body: Body,
    work: impl FnOnce(&mut dyn Read) -> T + Send + 'static,
) -> Result<T, Failure> {
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let accepting =
        tokio::task::spawn_blocking(move || work(&mut Chunks { receiver, current: Bytes::new() }));
    loop {
        let chunk = match body.frame().await {
            None => break,
            Some(Ok(frame)) => frame.into_data().map(Ok).unwrap_or(Ok(Bytes::new())),
            Some(Err(error)) => Err(std::io::Error::other(error)),
        };
        let broken = chunk.is_err();
        // The reader may have refused already; it is asked why below.
        if sender.send(chunk).await.is_err() {
            break;
        }
        if broken {
            return Err(Failure::new(Code::SourceRefused, "the upload broke off"));
        }
    }
    drop(sender);
    Ok(accepting.await?)
}

/// The chunks of a body, read by a thread that may block.
struct Chunks {
    receiver: mpsc::Receiver<std::io::Result<Bytes>>,
    current: Bytes,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.current = chunk?,
                None => return Ok(0),
            }
        }
        let n = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..n]);
        Ok(n)
    }
}
