//! Datagrams with descriptors between processes of kiln, without taking memory from the heap: see [`crate::seal`].

use rustix::io::{IoSlice, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Descriptors of one message; the kernel's limit is 253.
pub const DESCRIPTORS_MAX: usize = 64;

/// Descriptors that came with a message, in their order. Those that nobody takes are closed.
#[derive(Debug)]
pub struct Descriptors {
    list: [Option<OwnedFd>; DESCRIPTORS_MAX],
    next: usize,
}

impl Default for Descriptors {
    fn default() -> Self {
        Self { list: [const { None }; DESCRIPTORS_MAX], next: 0 }
    }
}

impl Iterator for Descriptors {
    type Item = OwnedFd;

    fn next(&mut self) -> Option<OwnedFd> {
        let taken = self.list.get_mut(self.next)?.take();
        self.next += usize::from(taken.is_some());
        taken
    }
}

/// Two connected ends; a message arrives whole or not at all.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let kind = SocketType::SEQPACKET;
    Ok(rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?)
}

/// The address of the socket `name` in an open directory, however long the path of that is.
fn address_in(directory: impl AsFd, name: &str) -> io::Result<SocketAddrUnix> {
    let path = format!("/proc/self/fd/{}/{name}", directory.as_fd().as_raw_fd());
    Ok(SocketAddrUnix::new(path)?)
}

fn seqpacket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// A socket with a name, on which somebody is going to [`listen`].
pub fn bind_in(directory: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    let socket = seqpacket()?;
    rustix::net::bind(&socket, &address_in(directory, name)?)?;
    Ok(socket)
}

/// Takes connections from here on. It is the caller whom those who connect see as their peer.
pub fn listen(socket: impl AsFd) -> io::Result<()> {
    const BACKLOG: i32 = 4;
    Ok(rustix::net::listen(socket, BACKLOG)?)
}

/// The next connection, without waiting.
pub fn accept(socket: impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::net::accept_with(socket, SocketFlags::CLOEXEC)?)
}

/// Connects to the socket `name` in an open directory, and says which process listens there.
pub fn connect_in(directory: impl AsFd, name: &str) -> io::Result<(OwnedFd, i32)> {
    let socket = seqpacket()?;
    rustix::net::connect(&socket, &address_in(directory, name)?)?;
    let peer = rustix::net::sockopt::socket_peercred(&socket)?;
    Ok((socket, peer.pid.as_raw_nonzero().get()))
}

/// Sends one message of several parts.
pub fn send(socket: impl AsFd, parts: &[&[u8]], with: &[BorrowedFd<'_>]) -> io::Result<()> {
    const PARTS_MAX: usize = 4;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if parts.len() > PARTS_MAX
        || with.len() > DESCRIPTORS_MAX
        || (!with.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(with)))
    {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    let slices: [IoSlice<'_>; PARTS_MAX] =
        std::array::from_fn(|n| IoSlice::new(parts.get(n).copied().unwrap_or_default()));
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let sent = rustix::net::sendmsg(socket, &slices[..parts.len()], &mut ancillary, SendFlags::NOSIGNAL)?;
    if sent == length { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EMSGSIZE)) }
}

/// Waits for one message and says how long it is. 0: the other end closed.
pub fn receive(socket: impl AsFd, into: &mut [u8]) -> io::Result<(usize, Descriptors)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(into)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut descriptors = Descriptors::default();
    let arrived = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(list) => Some(list),
        _ => None,
    });
    for (place, descriptor) in descriptors.list.iter_mut().zip(arrived.flatten()) {
        *place = Some(descriptor);
    }
    Ok((got.bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn parts_and_descriptors_arrive_together_and_in_order() {
        let (ours, theirs) = pair().unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        send(&ours, &[b"one", b" ", b"two"], &[reader.as_fd(), writer.as_fd()]).unwrap();
        let mut buffer = [0; 16];
        let (length, mut descriptors) = receive(&theirs, &mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"one two");
        writer.write_all(b"x").unwrap();
        let first = descriptors.next().unwrap();
        assert_eq!(rustix::io::read(&first, &mut buffer).unwrap(), 1);
        assert!(descriptors.next().is_some() && descriptors.next().is_none());
        drop(ours);
        assert_eq!(receive(&theirs, &mut buffer).unwrap().0, 0);
    }
}
