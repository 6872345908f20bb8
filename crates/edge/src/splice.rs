//! Bytes between two sockets, both ways, until both have ended.
//!
//! A little is copied through a buffer that the thread's connections share; once one way has carried [`SPLICE_AFTER`] without
//! an answer from the other, the kernel moves it through a pipe and no byte comes up here. A pipe is borrowed from the
//! thread for as long as it holds something, so that what idles costs neither memory nor descriptors.
//!
//! `splice` says `EAGAIN` for an empty socket and for a pipe without a free slot alike. Only an empty pipe is ever filled,
//! so that here it always means the socket.

use crate::alarm::Alarm;
use crate::limits::{
    COPY_BYTES, HALF_CLOSED_IDLE, PIPE_BYTES, PIPES_KEPT, PIPES_MAX, SPLICE_AFTER, TURN_BYTES,
};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(vec![]) };
    static PIPES: RefCell<Vec<Pipe>> = const { RefCell::new(vec![]) };
    static N_PIPES: Cell<usize> = const { Cell::new(0) };
}

/// Who is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Instance,
}

/// Why it is over.
#[derive(Debug)]
pub(crate) enum End {
    /// Both said that they have no more to send; who did first.
    Clean(Side),
    /// This one's connection broke.
    Broken(Side, io::Error),
    /// Nothing came for too long; who had ended before, if anybody.
    Idle(Option<Side>),
}

/// What a connection was.
#[derive(Debug)]
pub(crate) struct Carried {
    pub(crate) end: End,
    /// Bytes from the client.
    pub(crate) up: u64,
    /// Bytes from the instance.
    pub(crate) down: u64,
}

/// Carries until both ended, one broke, or nothing moved for `idle`.
pub(crate) async fn carry(client: &mut TcpStream, instance: &mut TcpStream, idle: Duration) -> Carried {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_instance, mut to_instance) = instance.split();
    let (mut up, mut down) = (Way::default(), Way::default());
    let alarm: Arc<Alarm> = Alarm::new();
    alarm.set(idle);
    let mut first = None;
    let end = poll_fn(|cx| {
        let (before, was) = (up.bytes + down.bytes, first);
        for (side, result) in [
            (Side::Client, up.poll(cx, &mut from_client, &mut to_instance, &mut down.streak)),
            (Side::Instance, down.poll(cx, &mut from_instance, &mut to_client, &mut up.streak)),
        ] {
            let other = if side == Side::Client { Side::Instance } else { Side::Client };
            match result {
                Poll::Ready(Ok(())) => first = first.or(Some(side)),
                Poll::Ready(Err(Fault::From(e))) => return Poll::Ready(End::Broken(side, e)),
                Poll::Ready(Err(Fault::To(e))) => return Poll::Ready(End::Broken(other, e)),
                Poll::Pending => {}
            }
        }
        if let (true, true, Some(first)) = (up.done, down.done, first) {
            return Poll::Ready(End::Clean(first));
        }
        if up.bytes + down.bytes != before || was != first {
            alarm.set(if first.is_some() { idle.min(HALF_CLOSED_IDLE) } else { idle });
        }
        alarm.poll(cx).map(|()| End::Idle(first))
    })
    .await;
    Carried { end, up: up.bytes, down: down.bytes }
}

/// Which end of a way failed.
#[derive(Debug)]
enum Fault {
    From(io::Error),
    To(io::Error),
}

/// One way.
#[derive(Debug, Default)]
struct Way {
    /// Bytes that were read.
    bytes: u64,
    /// Bytes that were read since the other way carried any.
    streak: usize,
    /// What was copied and not taken yet, from `at` on.
    rest: Vec<u8>,
    at: usize,
    /// A pipe that holds something.
    pipe: Option<Pipe>,
    /// These sockets cannot be spliced.
    copies: bool,
    /// Its source has no more.
    ended: bool,
    /// And its sink was told so.
    done: bool,
}

impl Way {
    /// Moves what can be moved now. Ready once the source has ended and the sink has everything.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut ReadHalf<'_>,
        to: &mut WriteHalf<'_>,
        other_streak: &mut usize,
    ) -> Poll<Result<(), Fault>> {
        let begun = self.bytes;
        loop {
            if self.done {
                return Poll::Ready(Ok(()));
            }
            ready!(self.empty(cx, to))?;
            if self.ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(Fault::To)?;
                self.done = true;
                continue;
            }
            if self.bytes - begun >= TURN_BYTES {
                // The other connections of the thread have their turn.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let n = if self.streak >= SPLICE_AFTER && !self.copies {
                ready!(self.fill(cx, from))?
            } else {
                ready!(self.copy(cx, from, to))?
            };
            if let Some(n) = n {
                self.ended = n == 0;
                self.bytes += n as u64;
                self.streak += n;
                *other_streak = 0;
            }
        }
    }

    /// Gives the sink what is held.
    fn empty(&mut self, cx: &mut Context<'_>, to: &mut WriteHalf<'_>) -> Poll<Result<(), Fault>> {
        while self.at < self.rest.len() {
            let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.rest[self.at..])).map_err(Fault::To)?;
            self.at += n;
            if self.at == self.rest.len() {
                (self.rest, self.at) = (vec![], 0);
            }
        }
        while let Some(pipe) = &mut self.pipe {
            let socket: &TcpStream = to.as_ref();
            ready!(socket.poll_write_ready(cx)).map_err(Fault::To)?;
            match socket.try_io(Interest::WRITABLE, || pipe.pour(socket)) {
                Ok(0) => return Poll::Ready(Err(Fault::To(io::ErrorKind::WriteZero.into()))),
                Ok(n) => pipe.held -= n.min(pipe.held),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                Err(e) => return Poll::Ready(Err(Fault::To(e))),
            }
            if pipe.held == 0 {
                self.pipe.take().into_iter().for_each(Pipe::put_back);
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Has the kernel take what the source has; none if nothing was learnt.
    fn fill(&mut self, cx: &mut Context<'_>, from: &ReadHalf<'_>) -> Poll<Result<Option<usize>, Fault>> {
        let socket: &TcpStream = from.as_ref();
        ready!(socket.poll_read_ready(cx)).map_err(Fault::From)?;
        let Some(mut pipe) = Pipe::take() else {
            self.copies = true;
            return Poll::Ready(Ok(None));
        };
        let filled = socket.try_io(Interest::READABLE, || pipe.fill(socket));
        match filled {
            Ok(n) => {
                pipe.held = n;
                if n > 0 {
                    self.pipe = Some(pipe)
                } else {
                    pipe.put_back()
                }
                Poll::Ready(Ok(Some(n)))
            }
            Err(e) => {
                pipe.put_back();
                self.copies = Errno::from_io_error(&e) == Some(Errno::INVAL);
                if self.copies || e.kind() == io::ErrorKind::WouldBlock {
                    return Poll::Ready(Ok(None));
                }
                Poll::Ready(Err(Fault::From(e)))
            }
        }
    }

    /// Reads into the thread's buffer and writes at once; what the sink does not take is kept.
    fn copy(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut ReadHalf<'_>,
        to: &mut WriteHalf<'_>,
    ) -> Poll<Result<Option<usize>, Fault>> {
        BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(COPY_BYTES, 0);
            let mut read = ReadBuf::new(buffer);
            ready!(Pin::new(from).poll_read(cx, &mut read)).map_err(Fault::From)?;
            let bytes = read.filled();
            let taken = match bytes.len() {
                0 => 0,
                _ => match Pin::new(to).poll_write(cx, bytes) {
                    Poll::Ready(taken) => taken.map_err(Fault::To)?,
                    Poll::Pending => 0,
                },
            };
            (self.rest, self.at) = (bytes[taken..].to_vec(), 0);
            Poll::Ready(Ok(Some(bytes.len())))
        })
    }
}

/// A pipe of the kernel and how much it holds.
#[derive(Debug)]
struct Pipe {
    exit: OwnedFd,
    entry: OwnedFd,
    held: usize,
}

impl Pipe {
    /// An empty one; none if the thread has enough of them in use, or the process no descriptors.
    fn take() -> Option<Self> {
        if let Some(pipe) = PIPES.with_borrow_mut(Vec::pop) {
            return Some(pipe);
        }
        if N_PIPES.get() >= PIPES_MAX {
            return None;
        }
        let (exit, entry) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        // Refused above what one user may have; a smaller one works as well.
        let _ = fcntl_setpipe_size(&entry, PIPE_BYTES);
        N_PIPES.set(N_PIPES.get() + 1);
        Some(Self { exit, entry, held: 0 })
    }

    /// For the next who needs one. Nobody gets bytes of somebody else: one that holds something is closed.
    fn put_back(self) {
        if self.held == 0 {
            let _ = PIPES.try_with(|pipes| {
                let mut pipes = pipes.borrow_mut();
                if pipes.len() < PIPES_KEPT {
                    pipes.push(self);
                }
            });
        }
    }

    fn fill(&self, from: &TcpStream) -> io::Result<usize> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        Ok(splice(from.as_fd(), None, &self.entry, None, PIPE_BYTES, flags)?)
    }

    fn pour(&self, to: &TcpStream) -> io::Result<usize> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        Ok(splice(&self.exit, None, to.as_fd(), None, self.held, flags)?)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // At the end of the thread the count may be gone already.
        let _ = N_PIPES.try_with(|n| n.set(n.get().saturating_sub(1)));
    }
}
