//! Which sockets an edge listens on, and giving them to the edge that takes its place.
//!
//! ```text
//! thread: accept ── listed as long as it accepts ─▶ Sockets::all ── SCM_RIGHTS ─▶ Passed::take ─▶ threads of the next edge
//! ```
//! A socket that is handed over goes on to queue connections: nothing is refused between two edges. What the next one has no
//! use for is closed by it, so that no connection waits where nobody accepts.

use crate::limits::PASSED_AT_ONCE_MAX;
use kiln_model::NetworkNumber;
use rustix::io::{FdFlags, IoSlice, IoSliceMut, fcntl_setfd};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Purpose {
    /// HTTP for the world.
    Plain,
    /// The same over TLS.
    Tls,
    /// HTTP for the instances of an environment.
    Inside(NetworkNumber),
    /// A raw TCP route.
    Raw,
}

/// Where a listener is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) purpose: Purpose,
    pub(crate) address: SocketAddr,
}

/// The listeners that this edge accepts from.
#[derive(Debug, Default)]
pub(crate) struct Sockets(Mutex<List>);

#[derive(Debug, Default)]
struct List {
    next: u64,
    all: BTreeMap<u64, (Place, OwnedFd)>,
}

impl Sockets {
    /// Lists a listener for as long as what is answered lives. It is a copy that is listed: it goes first.
    pub(crate) fn list(
        self: &Arc<Self>,
        purpose: Purpose,
        address: SocketAddr,
        listener: impl AsFd,
    ) -> io::Result<Listed> {
        let copy = listener.as_fd().try_clone_to_owned()?;
        let mut list = lock(&self.0);
        let number = list.next;
        list.next += 1;
        list.all.insert(number, (Place { purpose, address }, copy));
        Ok(Listed(self.clone(), number))
    }

    /// All of them, each with a descriptor of its own.
    pub(crate) fn all(&self) -> io::Result<Vec<(Place, OwnedFd)>> {
        lock(&self.0).all.values().map(|(place, fd)| Ok((*place, fd.try_clone()?))).collect()
    }
}

/// See [`Sockets::list`].
pub(crate) struct Listed(Arc<Sockets>, u64);

impl Drop for Listed {
    fn drop(&mut self) {
        lock(&self.0.0).all.remove(&self.1);
    }
}

/// Listeners of the edge before, until somebody has a use for them.
#[derive(Debug, Default)]
pub(crate) struct Passed(Mutex<HashMap<Place, Vec<TcpListener>>>);

impl Passed {
    pub(crate) fn new(all: impl IntoIterator<Item = (Place, OwnedFd)>) -> Self {
        let mut places: HashMap<Place, Vec<TcpListener>> = HashMap::new();
        for (place, fd) in all {
            places.entry(place).or_default().push(fd.into());
        }
        Self(Mutex::new(places))
    }

    /// Those that listened there.
    pub(crate) fn take(&self, purpose: Purpose, address: SocketAddr) -> Vec<TcpListener> {
        lock(&self.0).remove(&Place { purpose, address }).unwrap_or_default()
    }

    /// Closes what nobody took.
    pub(crate) fn close_rest(&self) -> usize {
        std::mem::take(&mut *lock(&self.0)).values().map(Vec::len).sum()
    }
}

/// A listener for each thread: those that were passed, which may be several for one thread, and new ones for the rest.
pub(crate) fn for_threads(
    passed: Vec<TcpListener>,
    n_threads: usize,
    bind: impl Fn() -> io::Result<TcpListener>,
) -> io::Result<Vec<(usize, TcpListener)>> {
    let mut all: Vec<_> = passed.into_iter().enumerate().map(|(n, one)| (n % n_threads, one)).collect();
    for thread in all.len()..n_threads {
        all.push((thread, bind()?));
    }
    Ok(all)
}

/// Sends descriptors, in order.
pub(crate) async fn send(stream: &UnixStream, all: &[BorrowedFd<'_>]) -> io::Result<()> {
    for some in all.chunks(PASSED_AT_ONCE_MAX) {
        let sent = stream.async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PASSED_AT_ONCE_MAX))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(some));
            // Descriptors go with a byte.
            Ok(sendmsg(stream, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?)
        });
        sent.await?;
    }
    Ok(())
}

/// Receives `count` descriptors that were [`send`]t.
pub(crate) async fn receive(stream: &UnixStream, count: usize) -> io::Result<Vec<OwnedFd>> {
    let mut all = vec![];
    while all.len() < count {
        let received = stream.async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PASSED_AT_ONCE_MAX))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut byte = [0];
            let mut slices = [IoSliceMut::new(&mut byte)];
            let received = recvmsg(stream, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
            let mut some = vec![];
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    some.extend(descriptors);
                }
            }
            Ok((received.bytes, some))
        });
        let (n_bytes, some) = received.await?;
        if n_bytes == 0 || some.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "descriptors are missing"));
        }
        all.extend(some);
    }
    if all.len() > count {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "more descriptors than were told"));
    }
    for fd in &all {
        fcntl_setfd(fd, FdFlags::CLOEXEC)?;
    }
    Ok(all)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    #[test]
    fn threads_get_what_was_passed_and_the_rest_is_bound() {
        let threads = |passed: usize, n_threads: usize| -> Vec<usize> {
            let passed = (0..passed).map(|_| listener()).collect();
            for_threads(passed, n_threads, || Ok(listener())).unwrap().iter().map(|(n, _)| *n).collect()
        };
        assert_eq!(threads(0, 2), [0, 1]);
        assert_eq!(threads(1, 3), [0, 1, 2]);
        // Nobody but the kernel would know of one that is left out.
        assert_eq!(threads(5, 2), [0, 1, 0, 1, 0]);
    }

    #[tokio::test]
    async fn descriptors_arrive_in_order_however_many_there_are() {
        let (a, b) = UnixStream::pair().unwrap();
        let listeners: Vec<_> = (0..PASSED_AT_ONCE_MAX * 2 + 1).map(|_| listener()).collect();
        let borrowed: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
        let (sent, received) = tokio::join!(send(&a, &borrowed), receive(&b, listeners.len()));
        sent.unwrap();
        let addresses = |all: &mut dyn Iterator<Item = TcpListener>| -> Vec<SocketAddr> {
            all.map(|one| one.local_addr().unwrap()).collect()
        };
        let received = addresses(&mut received.unwrap().into_iter().map(TcpListener::from));
        assert_eq!(received, addresses(&mut listeners.into_iter()));
    }

    #[tokio::test]
    async fn a_giver_that_dies_is_an_error() {
        let (a, b) = UnixStream::pair().unwrap();
        let one = listener();
        send(&a, &[one.as_fd()]).await.unwrap();
        drop(a);
        assert_eq!(receive(&b, 2).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
