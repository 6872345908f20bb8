//! Streamed answers: one [`Update`] a line, with a sign of life when there is nothing else to say.

use crate::failure::Failure;
use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::Frame;
use kiln_api::update::{ALIVE_EVERY, Update};
use serde::Serialize;
use std::convert::Infallible;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::{mpsc, watch};

/// Lines that wait for a slow client; after that the writer waits.
const BACKLOG: usize = 64;

/// Writes the lines of one stream.
#[derive(Debug)]
pub(crate) struct Lines<T> {
    sender: mpsc::Sender<Bytes>,
    item: PhantomData<fn(T)>,
}

/// The client is gone.
#[derive(Debug)]
pub(crate) struct Gone;

impl<T> Clone for Lines<T> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), item: PhantomData }
    }
}

impl<T: Serialize> Lines<T> {
    /// Sends one line.
    pub(crate) fn send(&self, update: Update<T>) -> impl Future<Output = Result<(), Gone>> + use<T> {
        let (line, sender) = (line(&update), self.sender.clone());
        async move { sender.send(line).await.map_err(|_| Gone) }
    }

    /// Sends a line about long work from a thread that blocks; lost if the client is slow or gone.
    pub(crate) fn progress(&self, text: String) {
        let _ = self.sender.try_send(line(&Update::<T>::Progress(text)));
    }

    /// Resolves when the client is gone.
    pub(crate) async fn closed(&self) {
        self.sender.closed().await;
    }
}

fn line<T: Serialize>(update: &Update<T>) -> Bytes {
    let mut line = serde_json::to_vec(update).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

struct Receiver(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Receiver {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Resolves when the server is asked to stop, or is gone.
pub(crate) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// Answers with what `work` sends. Its failure is the last line.
pub(crate) fn stream<T, F>(work: impl FnOnce(Lines<T>) -> F) -> Response
where
    T: Serialize + Send + 'static,
    F: Future<Output = Result<(), Failure>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let lines = Lines { sender, item: PhantomData };
    let work = work(lines.clone());
    tokio::spawn(async move {
        tokio::pin!(work);
        let mut alive = tokio::time::interval(ALIVE_EVERY);
        alive.tick().await;
        let result = loop {
            tokio::select! {
                result = &mut work => break result,
                _ = alive.tick() => if lines.send(Update::Alive).await.is_err() { return },
            }
        };
        if let Err(Failure(error)) = result {
            // A client that is gone misses nothing.
            let _ = lines.send(Update::Error(error)).await;
        }
    });
    ([(CONTENT_TYPE, "application/x-ndjson")], Body::new(Receiver(receiver))).into_response()
}

/// Answers with the one item that `work` yields.
pub(crate) fn one<T, F>(work: impl FnOnce(Lines<T>) -> F) -> Response
where
    T: Serialize + Send + 'static,
    F: Future<Output = Result<T, Failure>> + Send + 'static,
{
    stream(|lines: Lines<T>| {
        let work = work(lines.clone());
        async move {
            let item = work.await?;
            let _ = lines.send(Update::Item(item)).await;
            Ok(())
        }
    })
}
