//! The host's end of a guest's port. What comes from it is read a piece at a time and held one frame at a time; what goes to it
//! waits in a bounded buffer, so that a guest that does not listen holds nobody up.

use kiln_sys::wire::{Broken, FRAME_BYTES_MAX, Frames, FromGuest, ToGuest};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// Bytes that wait for the guest to read.
const WAITING_BYTES_MAX: usize = 2 * FRAME_BYTES_MAX;
/// Bytes read at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// A connection.
pub(super) struct Guest {
    /// None: the guest's end is closed.
    port: Option<UnixStream>,
    frames: Frames,
    waiting: Vec<u8>,
}

impl Guest {
    pub(super) fn new(port: UnixStream) -> io::Result<Self> {
        port.set_nonblocking(true)?;
        Ok(Self { port: Some(port), frames: Frames::default(), waiting: vec![] })
    }

    /// What to wait for, and whether there is something to write. None: there is nobody.
    pub(super) fn port(&self) -> Option<(BorrowedFd<'_>, bool)> {
        Some((self.port.as_ref()?.as_fd(), !self.waiting.is_empty()))
    }

    /// Says something, now or when the guest reads. False: the guest does not listen.
    pub(super) fn say(&mut self, word: &ToGuest) -> bool {
        let Some(frame) = word.encode() else { return false };
        if self.port.is_none() || self.waiting.len() + frame.len() > WAITING_BYTES_MAX {
            return false;
        }
        self.waiting.extend(frame);
        self.flush();
        true
    }

    /// Writes what waits, as far as the guest reads.
    pub(super) fn flush(&mut self) {
        let Some(port) = &mut self.port else { return };
        while !self.waiting.is_empty() {
            match port.write(&self.waiting) {
                Ok(count @ 1..) => drop(self.waiting.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Ok(_) | Err(_) => {
                    self.waiting.clear();
                    return;
                }
            }
        }
    }

    /// Reads once what is there. False: nothing is, or never will be again.
    pub(super) fn read(&mut self) -> bool {
        let Some(port) = &mut self.port else { return false };
        let mut chunk = [0; CHUNK_BYTES];
        match port.read(&mut chunk) {
            Ok(count @ 1..) => {
                self.frames.push(&chunk[..count]);
                true
            }
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind()) => false,
            Ok(_) | Err(_) => {
                self.port = None;
                false
            }
        }
    }

    /// The next thing that it said.
    pub(super) fn heard(&mut self) -> Result<Option<FromGuest>, Broken> {
        let Some((kind, content)) = self.frames.take()? else { return Ok(None) };
        FromGuest::decode(kind, &content).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_listen_holds_nobody_up() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut guest = Guest::new(ours).unwrap();
        let long = ToGuest::Start(vec![0; FRAME_BYTES_MAX]);
        let said = (0..20).take_while(|_| guest.say(&long)).count();
        assert!((1..20).contains(&said), "{said}");
        assert!(guest.waiting.len() <= WAITING_BYTES_MAX);
        drop(theirs);
        guest.flush();
        assert!(!guest.read() && guest.port().is_none());
    }

    #[test]
    fn garbage_is_seen() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut guest = Guest::new(ours).unwrap();
        theirs.write_all(&FromGuest::Hello.encode().unwrap()).unwrap();
        theirs.write_all(b"zzzzzzzzzzz").unwrap();
        assert!(guest.read());
        assert_eq!(guest.heard(), Ok(Some(FromGuest::Hello)));
        assert_eq!(guest.heard(), Err(Broken));
    }
}
