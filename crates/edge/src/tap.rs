//! The client's connection, watched: it sees the bytes before hyper does, because hyper's parser mends what a strict
//! front must refuse (it drops `Content-Length` beside `Transfer-Encoding`, and merges equal duplicates).
//!
//! The scanner only ever makes the gate refuse more; what it does not understand is left to hyper.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What connection and requests tell each other.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// A head had ambiguous framing: the connection must not be trusted any further.
    pub(crate) ambiguous: AtomicBool,
    /// The connection was upgraded: no more heads.
    pub(crate) raw: AtomicBool,
    /// An answer that only ends with the connection was cut: end it with a reset, not in peace.
    pub(crate) reset: AtomicBool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Tapped<S> {
    stream: S,
    notes: Arc<Notes>,
    scanner: Scanner,
}

impl<S> Tapped<S> {
    pub(crate) fn new(stream: S, notes: Arc<Notes>) -> Self {
        Self { stream, notes, scanner: Scanner::default() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tapped<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = &mut *self;
        let before = buf.filled().len();
        let polled = Pin::new(&mut me.stream).poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = &polled
            && !me.notes.raw.load(Ordering::Relaxed)
            && !me.scanner.accept(&buf.filled()[before..])
        {
            me.notes.ambiguous.store(true, Ordering::Relaxed);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tapped<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Bytes kept of a line: enough for the names and lengths that matter.
const LINE_BYTES: usize = 64;

#[derive(Debug, Default)]
enum At {
    #[default]
    Head,
    Body(u64),
    ChunkSize,
    ChunkData(u64),
    Trailer,
}

/// Follows the framing of requests over any split of the bytes.
#[derive(Debug, Default)]
struct Scanner {
    at: At,
    line: Vec<u8>,
    line_bytes: usize,
    n_lines: usize,
    n_lengths: u32,
    n_codings: u32,
    length: u64,
}

impl Scanner {
    /// Whether everything up to and with `bytes` is framed without ambiguity.
    fn accept(&mut self, mut bytes: &[u8]) -> bool {
        let mut sound = true;
        while !bytes.is_empty() {
            if let At::Body(left) | At::ChunkData(left) = &mut self.at {
                let n = (*left).min(bytes.len() as u64);
                *left -= n;
                bytes = &bytes[n as usize..];
                if *left == 0 {
                    self.at = if matches!(self.at, At::Body(_)) { At::Head } else { At::ChunkSize };
                }
                continue;
            }
            let end = bytes.iter().position(|b| *b == b'\n');
            let part = &bytes[..end.unwrap_or(bytes.len())];
            self.line_bytes += part.len();
            let room = LINE_BYTES.saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            let Some(end) = end else { return sound };
            bytes = &bytes[end + 1..];
            sound &= self.line_end();
        }
        sound
    }

    fn line_end(&mut self) -> bool {
        let line = std::mem::take(&mut self.line);
        let empty = self.line_bytes == 0 || (self.line_bytes == 1 && line == b"\r");
        self.line_bytes = 0;
        let mut sound = true;
        match self.at {
            At::Head if empty && self.n_lines == 0 => {}
            At::Head if empty => {
                sound = self.n_lengths <= 1 && self.n_codings <= 1 && self.n_lengths + self.n_codings <= 1;
                self.at = match (self.n_codings, self.length) {
                    (0, 0) => At::Head,
                    (0, length) => At::Body(length),
                    _ => At::ChunkSize,
                };
                (self.n_lines, self.n_lengths, self.n_codings, self.length) = (0, 0, 0, 0);
            }
            At::Head => self.field(&line),
            At::ChunkSize => self.at = chunk(&line),
            At::Trailer if empty => self.at = At::Head,
            _ => {}
        }
        self.line = line;
        self.line.clear();
        sound
    }

    fn field(&mut self, line: &[u8]) {
        self.n_lines += 1;
        let Some(colon) = line.iter().position(|b| *b == b':') else { return };
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if name.eq_ignore_ascii_case(b"content-length") {
            self.n_lengths += 1;
            let digits = std::str::from_utf8(value).map(str::trim);
            self.length = digits.ok().and_then(|d| d.parse().ok()).unwrap_or(0);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.n_codings += 1;
        }
    }
}

/// What follows a line with a chunk's size; its data and the line end after it are skipped together.
fn chunk(line: &[u8]) -> At {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let size = std::str::from_utf8(&line[..digits]).ok().and_then(|d| u64::from_str_radix(d, 16).ok());
    match size {
        Some(0) => At::Trailer,
        Some(n) => At::ChunkData(n.saturating_add(2)),
        None => At::ChunkSize,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ambiguous_framing_is_seen() {
        for (bytes, sound) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", true),
            ("POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nabcdGET / HTTP/1.1\r\n\r\n", true),
            ("POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n", false),
            ("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n", false),
            ("POST / HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\n", false),
            ("POST / HTTP/1.1\nContent-Length: 0\nContent-Length: 0\n\n", false),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
                false,
            ),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1b\r\nContent-Length: 4\r\n\r\nabcdef\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
                true,
            ),
        ] {
            assert_eq!(Scanner::default().accept(bytes.as_bytes()), sound, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn the_split_does_not_matter(cuts in prop::collection::vec(1usize..20, 0..20)) {
            let bytes = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n3\r\nabc\r\n0\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
            let mut scanner = Scanner::default();
            let (mut rest, mut sound) = (&bytes[..], true);
            for cut in cuts {
                let (part, tail) = rest.split_at(cut.min(rest.len()));
                sound &= scanner.accept(part);
                rest = tail;
            }
            sound &= scanner.accept(rest);
            prop_assert!(!sound);
            prop_assert!(matches!(scanner.at, At::ChunkSize));
        }
    }
}
