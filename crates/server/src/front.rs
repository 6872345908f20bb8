//! The socket of one of several servers. The one that leads answers; every other hands a request on to it as it came, with the
//! name of who asked, and its answer back. Nobody else commits: a command is the leader's, wherever it was given.
//!
//! A request that arrives while nobody leads waits for a while. One whose leader is lost on the way is told to ask again: which
//! the command line does under the same idempotency key, so that nothing happens twice.

use crate::actor::{Actor, Peer};
use crate::failure::Failure;
use crate::{Context, router};
use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;
use kiln_api::Code;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tower::ServiceExt;

/// Who asked, as the server says that hands a request on. Believed of the same user only.
const ACTOR: HeaderName = HeaderName::from_static("kiln-actor");
/// How long a request waits for somebody to lead: more than a lease.
const WAIT_MAX: Duration = Duration::from_secs(12);

/// What one of several servers knows of who leads.
#[derive(Clone)]
pub struct Front {
    own: Arc<OnceLock<Router>>,
    leader: watch::Sender<Option<PathBuf>>,
    stop: watch::Sender<bool>,
}

impl Default for Front {
    fn default() -> Self {
        Self { own: Arc::default(), leader: watch::Sender::new(None), stop: watch::Sender::new(false) }
    }
}

impl Front {
    /// The socket of the server that leads now, as far as it is known.
    pub fn follow(&self, leader: Option<PathBuf>) {
        self.leader.send_if_modified(|known| std::mem::replace(known, leader.clone()) != leader);
    }

    /// This server leads, to its end.
    pub fn lead(&self, context: Context) {
        let _ = self.own.set(router(context));
        self.leader.send_replace(None);
    }

    /// Asks it to stop answering.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Answers requests until it is stopped.
    ///
    /// # Errors
    /// If the socket fails for good.
    pub async fn serve(self, listener: UnixListener) -> std::io::Result<()> {
        let mut stopping = self.stop.subscribe();
        let app = Router::new().fallback(answer).with_state(self);
        axum::serve(listener, app.into_make_service_with_connect_info::<Peer>())
            .with_graceful_shutdown(async move {
                let _ = stopping.wait_for(|stop| *stop).await;
            })
            .await
    }
}

async fn answer(
    State(front): State<Front>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    mut request: Request,
) -> Response {
    let handed_on = request.headers_mut().remove(ACTOR).filter(|_| peer.is_ours());
    let name = handed_on.as_ref().and_then(|name| name.to_str().ok()).map(str::to_owned);
    let actor = name.unwrap_or(peer.actor.0);
    let end = Instant::now() + WAIT_MAX;
    loop {
        let path = match leader(&front, handed_on.is_some(), end).await {
            Ok(Leader::Own(app)) => {
                request.extensions_mut().insert(ConnectInfo(Actor(actor)));
                return app.oneshot(request).await.into_response();
            }
            Ok(Leader::Other(path)) => path,
            Err(failure) => return failure.into_response(),
        };
        if let Ok(stream) = UnixStream::connect(&path).await {
            // A question without a body may be asked again.
            let again = (request.method() == Method::GET).then(|| copy(&request));
            let handed = hand_on(&front, (stream, &path), &actor, request).await;
            match (handed, again) {
                (Ok(response), _) => return response,
                (Err(failure), None) => return failure.into_response(),
                (Err(_), Some(copy)) => request = copy,
            }
        }
        // Gone, or on its way out: whoever leads next answers.
        let mut changes = front.leader.subscribe();
        let changed = changes.wait_for(|leader| leader.as_ref() != Some(&path));
        if !matches!(tokio::time::timeout_at(end, changed).await, Ok(Ok(_))) {
            return unavailable("the server that leads was lost, and nobody took its place").into_response();
        }
    }
}

fn copy(request: &Request) -> Request {
    let mut copy = Request::new(Body::empty());
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

enum Leader {
    Own(Router),
    Other(PathBuf),
}

fn unavailable(message: &str) -> Failure {
    Failure::new(Code::Unavailable, message)
}

/// Who leads, once somebody does. A request that was handed on is not handed on again.
async fn leader(front: &Front, was_handed_on: bool, end: Instant) -> Result<Leader, Failure> {
    let mut changes = front.leader.subscribe();
    let wait = async {
        loop {
            if let Some(app) = front.own.get() {
                return Ok(Leader::Own(app.clone()));
            }
            let known = changes.borrow_and_update().clone();
            match known {
                Some(_) if was_handed_on => return Err(unavailable("this server does not lead any more")),
                Some(path) => return Ok(Leader::Other(path)),
                None => {}
            }
            if changes.changed().await.is_err() {
                return Err(unavailable("the server is stopping"));
            }
        }
    };
    let waited = tokio::time::timeout_at(end, wait).await;
    waited.unwrap_or_else(|_| {
        Err(unavailable("no server leads: the database does not answer, or nobody could start"))
    })
}

/// Has another server answer.
async fn hand_on(
    front: &Front,
    (stream, path): (UnixStream, &PathBuf),
    actor: &str,
    mut request: Request,
) -> Result<Response, Failure> {
    let lost = || unavailable("the server that leads was lost before it answered");
    let headers = request.headers_mut();
    for hop in [header::CONNECTION, header::TRANSFER_ENCODING] {
        headers.remove(hop);
    }
    let name = HeaderValue::from_str(actor).unwrap_or(HeaderValue::from_static("unknown"));
    headers.insert(ACTOR, name);
    headers.insert(header::HOST, HeaderValue::from_static("kiln"));
    let exchange = async {
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|_| lost())?;
        // It ends with the answer.
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(|_| lost())
    };
    let mut changes = front.leader.subscribe();
    tokio::select! {
        answered = exchange => Ok(answered?.map(Body::new)),
        // It was stopped, or cut off: it will not answer, and what it may have done is known to who leads next.
        _ = changes.wait_for(|leader| leader.as_ref() != Some(path)) => Err(lost()),
    }
}
