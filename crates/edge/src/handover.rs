//! From one edge to the next: sockets, lock and counts go to another process, and no connection is refused or lost.
//!
//! ```text
//! next                                   before
//! TakeOver ─────────────────────────────▶ keeps its table from now on (`set` is refused for a moment)
//!          ◀──── Offer; lock, sockets ──
//! looks whether it can serve: table, certificates
//! Ready    ─────────────────────────────▶
//!          ◀────────────────────── Go ── takes no control connections
//! threads accept
//! Serving  ─────────────────────────────▶ accepts no more; its connections go on, or are told to go
//! Status, Set, Stop ────────────────────▶ counts, follows, ends
//!          ◀─────────────────── Ended ──  its last counts
//! ```
//! Until `Serving` the edge before accepts on the same sockets; whatever happens to the next one, it goes on. If the edge
//! before dies instead, the next one has all that it needs.

use crate::control::Control;
use crate::limits::HANDOVER_TIMEOUT;
use crate::predecessor::Predecessor;
use crate::server::{EdgeError, control_socket};
use crate::sockets::{self, Passed, Place};
use crate::wire::{self, Answer, Ask};
use kiln_model::edge::EdgeStatus;
use kiln_model::{Digest, Generation};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};

/// What comes with the descriptors.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Offer {
    /// See [`EdgeStatus::process`].
    pub(crate) process: String,
    /// The table in use, which is on the disk.
    pub(crate) generation: Generation,
    pub(crate) digest: Option<Digest>,
    /// What the listeners are for, in order.
    pub(crate) places: Vec<Place>,
}

/// What an edge has and can give away, and how far that has come.
#[derive(Debug)]
pub(crate) struct Estate {
    /// None once another process has it alone.
    lock: Mutex<Option<File>>,
    control: StdUnixListener,
    /// One at a time.
    busy: tokio::sync::Mutex<()>,
    /// Whether control connections are taken.
    pub(crate) open: watch::Sender<bool>,
    replaced: watch::Sender<bool>,
    last_words: watch::Sender<Option<Box<EdgeStatus>>>,
    /// The last words were heard, or nobody listens.
    told: Notify,
}

impl Estate {
    pub(crate) fn new(lock: File, control: StdUnixListener) -> Self {
        Self {
            lock: Mutex::new(Some(lock)),
            control,
            busy: tokio::sync::Mutex::new(()),
            open: watch::Sender::new(true),
            replaced: watch::Sender::new(false),
            last_words: watch::Sender::new(None),
            told: Notify::new(),
        }
    }

    /// A descriptor of the lock; an error if another process has it.
    fn lock(&self) -> io::Result<File> {
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        lock.as_ref().map_or_else(|| Err(io::ErrorKind::NotFound.into()), File::try_clone)
    }

    /// Whether another edge has taken over.
    pub(crate) fn is_replaced(&self) -> bool {
        *self.replaced.borrow()
    }

    /// Waits until another edge has taken over.
    pub(crate) async fn replaced(&self) {
        // An error means that the edge ends.
        let _ = self.replaced.subscribe().wait_for(|replaced| *replaced).await;
    }

    /// Says what was counted in all to the edge that took over. Returns when it has gone on its way.
    pub(crate) async fn say_last(&self, status: EdgeStatus) {
        self.last_words.send_replace(Some(Box::new(status)));
        let _ = tokio::time::timeout(HANDOVER_TIMEOUT, self.told.notified()).await;
    }
}

/// What was received from the edge before.
pub(crate) struct Inheritance {
    pub(crate) lock: File,
    pub(crate) control: StdUnixListener,
    pub(crate) passed: Arc<Passed>,
    pub(crate) offer: Offer,
    pub(crate) giver: Giver,
}

/// The edge before, until it is a [`Predecessor`].
pub(crate) struct Giver {
    stream: UnixStream,
    process: OwnedFd,
}

fn refused(detail: impl Into<String>) -> EdgeError {
    EdgeError::TakeOver { detail: detail.into() }
}

/// One message of the other side, in time.
async fn hear(stream: &mut UnixStream) -> Result<Answer, EdgeError> {
    match tokio::time::timeout(HANDOVER_TIMEOUT, wire::receive(stream)).await {
        Ok(Ok(Answer::Failed { detail })) => Err(refused(detail)),
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(refused(error.to_string())),
        Err(_) => Err(refused(format!("it does not answer within {} s", HANDOVER_TIMEOUT.as_secs()))),
    }
}

/// Receives everything from the edge that runs in the folder. None: none does.
pub(crate) async fn take(dir: &Path) -> Result<Option<Inheritance>, EdgeError> {
    let mut stream = match UnixStream::connect(control_socket(dir)).await {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(e) => return Err(refused(e.to_string())),
    };
    let broken = |error: io::Error| refused(error.to_string());
    let process = process_of(&stream).map_err(broken)?;
    wire::send(&mut stream, &Ask::TakeOver {}).await.map_err(broken)?;
    let offer = match hear(&mut stream).await? {
        Answer::Offer { offer } => *offer,
        other => return Err(refused(format!("unexpected answer {other:?}"))),
    };
    let all = tokio::time::timeout(HANDOVER_TIMEOUT, sockets::receive(&stream, offer.places.len() + 2));
    let all = all.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(broken)?;
    let mut all = all.into_iter();
    let (Some(lock), Some(control)) = (all.next(), all.next()) else {
        return Err(refused("descriptors are missing"));
    };
    let passed = Arc::new(Passed::new(offer.places.iter().copied().zip(all)));
    let giver = Giver { stream, process };
    Ok(Some(Inheritance { lock: lock.into(), control: control.into(), passed, offer, giver }))
}

/// A pidfd of who is at the other end of a connection to or from a socket with a name.
fn process_of(stream: &UnixStream) -> io::Result<OwnedFd> {
    let pid = stream.peer_cred()?.pid().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("it has no process number here"))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

impl Giver {
    /// Says that everything is there. Afterwards this process may accept.
    pub(crate) async fn begin(&mut self) -> Result<(), EdgeError> {
        let _ = wire::send(&mut self.stream, &Ask::Ready).await;
        match hear(&mut self.stream).await {
            Ok(Answer::Go) => Ok(()),
            Ok(other) => Err(refused(format!("unexpected answer {other:?}"))),
            // If it has died meanwhile nobody serves, and all that it had is here.
            Err(error) => {
                if self.is_dead() {
                    Ok(())
                } else {
                    Err(error)
                }
            }
        }
    }

    fn is_dead(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut ends = [PollFd::new(&self.process, PollFlags::IN)];
        let wait = Timespec { tv_sec: 1, tv_nsec: 0 };
        poll(&mut ends, Some(&wait)).is_ok_and(|n| n > 0)
    }

    /// Says that this process accepts.
    pub(crate) async fn serving(mut self) -> Predecessor {
        let _ = wire::send(&mut self.stream, &Ask::Serving).await;
        Predecessor::new(self.stream, self.process)
    }
}

/// Gives everything to the process at the other end, and serves it until one of both ends.
pub(crate) async fn give(control: &Arc<Control>, mut stream: UnixStream) {
    let estate = &control.estate;
    let one = estate.busy.try_lock();
    let detail = match (&one, estate.is_replaced()) {
        (_, true) => Some("another edge has taken its place"),
        (Err(_), _) => Some("another edge is taking its place"),
        _ => None,
    };
    if let Some(detail) = detail {
        let _ = wire::send(&mut stream, &Answer::Failed { detail: detail.to_owned() }).await;
        return;
    }
    control.freeze(true).await;
    let exchanged = exchange(control, &mut stream).await;
    if let Err(problem) = exchanged {
        control.freeze(false).await;
        estate.open.send_replace(true);
        control.log("error", "not replaced", json!({ "problem": problem }));
        let _ = wire::send(&mut stream, &Answer::Failed { detail: problem }).await;
        return;
    }
    estate.open.send_replace(false);
    *estate.lock.lock().unwrap_or_else(PoisonError::into_inner) = None;
    estate.replaced.send_replace(true);
    control.log("info", "replaced", json!({ "by": stream.peer_cred().ok().and_then(|c| c.pid()) }));
    serve_successor(control, &mut stream).await;
    estate.told.notify_one();
}

/// From the offer to `Serving`, or why it did not come to that.
async fn exchange(control: &Control, stream: &mut UnixStream) -> Result<(), String> {
    let own = rustix::process::geteuid().as_raw();
    let peer = stream.peer_cred().map_err(|e| e.to_string())?;
    if peer.uid() != own && peer.uid() != 0 {
        return Err(format!("user {} may not take the place of an edge of user {own}", peer.uid()));
    }
    let process = process_of(stream).map_err(|e| e.to_string())?;
    let limited = |what: &'static str| move |_| format!("it did not {what} within {HANDOVER_TIMEOUT:?}");
    let offered = tokio::time::timeout(HANDOVER_TIMEOUT, offer(control, stream)).await;
    offered.map_err(limited("take the sockets"))?.map_err(|e| e.to_string())?;
    expect(stream, &Ask::Ready, HANDOVER_TIMEOUT).await.map_err(|e| e.to_string())?;
    control.estate.open.send_replace(false);
    wire::send(stream, &Answer::Go).await.map_err(|e| e.to_string())?;
    match expect(stream, &Ask::Serving, HANDOVER_TIMEOUT).await {
        // It is about to write down why.
        Err(Missed::Gone) => Err(Missed::Gone.to_string()),
        Err(missed) => {
            // It might accept at any time, and nobody would know of what it counts.
            let _ = pidfd_send_signal(&process, Signal::KILL);
            Err(missed.to_string())
        }
        Ok(()) => Ok(()),
    }
}

/// What the next edge did instead of what it should say.
#[derive(Debug, thiserror::Error)]
enum Missed {
    #[error("it ended")]
    Gone,
    #[error("{0}")]
    Other(String),
}

async fn offer(control: &Control, stream: &mut UnixStream) -> io::Result<()> {
    let listeners = control.sockets().all()?;
    let lock = control.estate.lock()?;
    let offer = Box::new(control.offer(listeners.iter().map(|(place, _)| *place).collect()));
    wire::send(stream, &Answer::Offer { offer }).await?;
    let mut all = vec![lock.as_fd(), control.estate.control.as_fd()];
    all.extend(listeners.iter().map(|(_, fd)| fd.as_fd()));
    sockets::send(stream, &all).await
}

async fn expect(stream: &mut UnixStream, what: &Ask, limit: Duration) -> Result<(), Missed> {
    match tokio::time::timeout(limit, wire::receive::<Ask>(stream)).await {
        Ok(Ok(said)) if std::mem::discriminant(&said) == std::mem::discriminant(what) => Ok(()),
        Ok(Ok(other)) => Err(Missed::Other(format!("it said {other:?} instead of {what:?}"))),
        Ok(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => Err(Missed::Gone),
        Ok(Err(e)) => Err(Missed::Other(e.to_string())),
        Err(_) => Err(Missed::Other(format!("it did not say {what:?} within {limit:?}"))),
    }
}

/// Answers the edge that took over, until there is nothing left to say.
async fn serve_successor(control: &Control, stream: &mut UnixStream) {
    let mut last_words = control.estate.last_words.subscribe();
    loop {
        let ask = tokio::select! {
            ask = wire::receive(stream) => ask,
            last = said(&mut last_words) => {
                if let Some(status) = last {
                    let _ = wire::send(stream, &Answer::Ended { status }).await;
                }
                return;
            }
        };
        let answer = match ask {
            Ok(Ask::Status) => Answer::Status { status: Box::new(control.status().await) },
            Ok(Ask::Set { fence, generation, table }) => control.follow(fence, generation, &table).await,
            Ok(Ask::Stop) => {
                control.stop.notify_one();
                Answer::Done
            }
            Ok(other) => Answer::Failed { detail: format!("unexpected {other:?}") },
            Err(_) => {
                // Nobody tells it of new tables any more.
                control.log("warn", "the edge that took over is gone", json!({}));
                control.stop.notify_one();
                return;
            }
        };
        if wire::send(stream, &answer).await.is_err() {
            control.stop.notify_one();
            return;
        }
    }
}

/// None: the edge ends without a last word.
async fn said(last_words: &mut watch::Receiver<Option<Box<EdgeStatus>>>) -> Option<Box<EdgeStatus>> {
    last_words.wait_for(Option::is_some).await.ok()?.clone()
}
