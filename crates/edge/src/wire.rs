//! The control protocol: a big-endian `u32` length and that many bytes of JSON, one answer per request, in order.

use crate::handover::Offer;
use crate::limits::MESSAGE_BYTES_MAX;
use kiln_model::edge::EdgeStatus;
use kiln_model::{Fence, Generation, RouteTable};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// What control asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(crate) enum Ask {
    /// See [`crate::client::Router::set`].
    Set { fence: Fence, generation: Generation, table: RouteTable },
    /// See [`crate::client::Router::status`].
    Status,
    /// As SIGTERM.
    Stop,
    /// See [`crate::EdgeClient::upgrade`].
    Upgrade { program: PathBuf, arguments: Vec<String> },
    /// A process of the same folder wants to take this edge's place; see [`crate::handover`].
    TakeOver {},
    /// It has all that it needs.
    Ready,
    /// It accepts.
    Serving,
}

/// What the edge answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub(crate) enum Answer {
    Done,
    Status {
        status: Box<EdgeStatus>,
    },
    Stale {
        detail: String,
    },
    Invalid {
        detail: String,
    },
    Failed {
        detail: String,
    },
    /// Descriptors follow: the lock, the control socket, one per place.
    Offer {
        offer: Box<Offer>,
    },
    /// From here on the next edge may accept.
    Go,
    /// The last word of an edge that was replaced.
    Ended {
        status: Box<EdgeStatus>,
    },
}

/// Writes one message.
pub(crate) async fn send(stream: &mut UnixStream, message: &impl Serialize) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).ok().filter(|n| *n as usize <= MESSAGE_BYTES_MAX);
    let length =
        length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the message is too large"))?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(&body).await
}

/// Reads one message.
pub(crate) async fn receive<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<T> {
    let length = stream.read_u32().await? as usize;
    if length > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is too large"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(serde_json::from_slice(&body)?)
}
