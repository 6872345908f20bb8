//! What a server tells a shim: first the [`Shape`] of what it is going to be, with the root as its one descriptor, and then,
//! at once or much later, what to [`Start`], with the descriptors of [`Files`]. Each is one datagram of plain fields, which
//! the shim reads where it lies, without taking memory.

use kiln_sys::exec::Words;
use std::io;
use std::os::fd::OwnedFd;

/// Bytes of the datagram; the kernel's default for one of its sockets is a little more.
pub(crate) const START_BYTES_MAX: usize = 192 * 1024;

/// A shim's words: it is ready, it has its shape, the program runs, it could not be executed (`exit.json` says why), or
/// it has ended. A failure comes as JSON, which begins with a brace; after one that is permanent it still takes a [`Start`],
/// so that the instance's black box and exit record tell of it.
pub(crate) const READY: u8 = b'R';
pub(crate) const FITTED: u8 = b'F';
pub(crate) const STARTED: u8 = b'S';
pub(crate) const NOT_EXECUTED: u8 = b'X';
pub(crate) const ENDED: u8 = b'E';

/// What many instances have in common.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Shape<'a> {
    pub writable: Words<'a>,
    pub user: (u32, u32),
    /// A mask of capability numbers.
    pub capabilities: u64,
    /// Whether calls that are not on the list are let through and told of.
    pub asks: bool,
    pub memory_bytes: u64,
    /// Whether it is going to get secrets.
    pub has_secrets: bool,
}

/// What is to run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Start<'a> {
    pub argv: Words<'a>,
    pub environment: Words<'a>,
    /// Where a command without `/` is looked for.
    pub search: &'a str,
    pub host_name: &'a str,
    /// The content of /etc/hosts and /etc/resolv.conf.
    pub hosts: &'a str,
    pub resolver: &'a str,
    /// The first line of the black box.
    pub greeting: &'a str,
    pub stop_signal: i32,
    /// Whether its secrets come with it.
    pub has_secrets: bool,
}

/// The descriptors that come with a start.
#[derive(Debug)]
pub(crate) struct Files {
    pub out: [OwnedFd; 2],
    pub exit: OwnedFd,
    pub lock: OwnedFd,
    /// Where later servers ask for it.
    pub door: OwnedFd,
    /// Its secrets, as a mount that is attached nowhere.
    pub secrets: Option<OwnedFd>,
    pub oom: Option<OwnedFd>,
}

impl Files {
    /// Takes them in their order.
    pub(crate) fn take(mut from: impl Iterator<Item = OwnedFd>, has_secrets: bool) -> Option<Self> {
        let mut next = || from.next();
        Some(Self {
            out: [next()?, next()?],
            exit: next()?,
            lock: next()?,
            door: next()?,
            secrets: if has_secrets { Some(next()?) } else { None },
            oom: next(),
        })
    }
}

impl<'a> Shape<'a> {
    /// As a datagram.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![];
        field(&mut out, self.writable.bytes());
        out.extend(self.user.0.to_ne_bytes());
        out.extend(self.user.1.to_ne_bytes());
        out.extend(self.capabilities.to_ne_bytes());
        out.extend(u32::from(self.asks).to_ne_bytes());
        out.extend(self.memory_bytes.to_ne_bytes());
        out.extend(u32::from(self.has_secrets).to_ne_bytes());
        out
    }

    /// None: it is not one.
    pub(crate) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let mut rest = Rest(bytes);
        Some(Self {
            writable: Words::new(rest.field()?)?,
            user: (rest.word()?, rest.word()?),
            capabilities: rest.long()?,
            asks: rest.word()? != 0,
            memory_bytes: rest.long()?,
            has_secrets: rest.word()? != 0,
        })
    }
}

impl<'a> Start<'a> {
    /// As a datagram.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![];
        for bytes in [self.argv, self.environment].map(Words::bytes) {
            field(&mut out, bytes);
        }
        for text in [self.search, self.host_name, self.hosts, self.resolver, self.greeting] {
            field(&mut out, text.as_bytes());
        }
        out.extend(self.stop_signal.to_ne_bytes());
        out.extend(u32::from(self.has_secrets).to_ne_bytes());
        out
    }

    /// None: it is not one.
    pub(crate) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let mut rest = Rest(bytes);
        Some(Self {
            argv: Words::new(rest.field()?)?,
            environment: Words::new(rest.field()?)?,
            search: rest.text()?,
            host_name: rest.text()?,
            hosts: rest.text()?,
            resolver: rest.text()?,
            greeting: rest.text()?,
            stop_signal: rest.word()? as i32,
            has_secrets: rest.word()? != 0,
        })
    }
}

fn field(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u32).to_ne_bytes());
    out.extend(bytes);
}

struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn word(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_ne_bytes)
    }

    fn long(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_ne_bytes)
    }

    fn field(&mut self) -> Option<&'a [u8]> {
        let length = self.word()?;
        self.take(length as usize)
    }

    fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.field()?).ok()
    }
}

/// Strings as [`Words`]; fails on a NUL in one.
pub(crate) fn words<'a>(list: impl IntoIterator<Item = &'a str>) -> io::Result<Vec<u8>> {
    let mut out = vec![];
    for word in list {
        if word.contains('\0') {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        out.extend(word.as_bytes());
        out.push(0);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encoded_is_decoded_and_nothing_shorter_is() {
        let start = Start {
            argv: Words::new(b"/bin/x\0-a\0").unwrap(),
            environment: Words::new(b"A=b\0").unwrap(),
            search: "/bin",
            host_name: "web-1",
            greeting: "starting",
            stop_signal: 15,
            has_secrets: true,
            ..Start::default()
        };
        let bytes = start.encode();
        assert_eq!(Start::decode(&bytes), Some(start));
        for length in 0..bytes.len() {
            assert_eq!(Start::decode(&bytes[..length]), None, "{length}");
        }
        let shape = Shape {
            writable: Words::new(b"/data\0").unwrap(),
            user: (1000, 1001),
            capabilities: 1 << 40,
            asks: true,
            memory_bytes: 1 << 33,
            has_secrets: true,
        };
        let bytes = shape.encode();
        assert_eq!(Shape::decode(&bytes), Some(shape));
        for length in 0..bytes.len() {
            assert_eq!(Shape::decode(&bytes[..length]), None, "{length}");
        }
        assert!(words(["a", "b\0c"]).is_err());
    }
}
