//! The record format of an instance's black box: what its program printed, framed by the supervisor outside its
//! reach. A torn or damaged tail is recognised and left out, never misread.
//!
//! ```text
//! offset 0   u32  length of what follows the checksum (25 + bytes)
//!        4   u32  crc32c of what follows
//!        8   u64  wall clock, milliseconds since 1970
//!       16   u64  sequence number, from 0, without gaps but for dropped lines
//!       24   u64  lines dropped before this one since the start
//!       32   u8   stream: 1 stdout, 2 stderr, 3 supervisor
//!       33   ...  bytes of one line without its line feed
//! ```
//! Integers are little endian. The sequence starts anew in no segment.

use crate::limits::LOG_LINE_BYTES_MAX;
use crate::time::Wall;

const HEAD: usize = 8;
const BODY_MIN: usize = 25;
/// Bytes of the longest frame.
pub const ENCODED_BYTES_MAX: usize = HEAD + BODY_MIN + LOG_LINE_BYTES_MAX;

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// The program's standard output.
    Out,
    /// The program's standard error.
    Err,
    /// The supervisor: start, signal, exit.
    Supervisor,
}

impl Stream {
    /// The word used in output.
    pub fn word(self) -> &'static str {
        match self {
            Stream::Out => "out",
            Stream::Err => "err",
            Stream::Supervisor => "kiln",
        }
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// When the supervisor read it.
    pub at: Wall,
    /// Its number.
    pub sequence: u64,
    /// Lines dropped so far.
    pub dropped: u64,
    /// Where it came from.
    pub stream: Stream,
    /// Its bytes; any bytes.
    pub line: Vec<u8>,
}

/// A frame's fields without its line.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    /// See [`Frame::at`].
    pub at: Wall,
    /// See [`Frame::sequence`].
    pub sequence: u64,
    /// See [`Frame::dropped`].
    pub dropped: u64,
    /// See [`Frame::stream`].
    pub stream: Stream,
}

impl Head {
    /// Appends the frame of a line to `out`, cut as [`Frame::encode`] does it. Takes no memory if `out` has the room:
    /// [`ENCODED_BYTES_MAX`] at most.
    pub fn encode(&self, line: &[u8], out: &mut Vec<u8>) {
        let line = &line[..line.len().min(LOG_LINE_BYTES_MAX)];
        let start = out.len();
        out.extend(((BODY_MIN + line.len()) as u32).to_le_bytes());
        out.extend([0; 4]);
        out.extend(self.at.0.to_le_bytes());
        out.extend(self.sequence.to_le_bytes());
        out.extend(self.dropped.to_le_bytes());
        out.push(match self.stream {
            Stream::Out => 1,
            Stream::Err => 2,
            Stream::Supervisor => 3,
        });
        out.extend_from_slice(line);
        let checksum = crc32c::crc32c(&out[start + HEAD..]);
        out[start + 4..start + HEAD].copy_from_slice(&checksum.to_le_bytes());
    }
}

impl Frame {
    /// Appends the encoded frame to `out`. A line longer than [`LOG_LINE_BYTES_MAX`] is cut.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let head = Head { at: self.at, sequence: self.sequence, dropped: self.dropped, stream: self.stream };
        head.encode(&self.line, out);
    }

    /// Decodes the first frame of `bytes` and its length, or none if there is no whole, undamaged one.
    pub fn decode(bytes: &[u8]) -> Option<(Frame, usize)> {
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let length = word(0)? as usize;
        if !(BODY_MIN..=BODY_MIN + LOG_LINE_BYTES_MAX).contains(&length) {
            return None;
        }
        let body = bytes.get(HEAD..HEAD + length)?;
        if crc32c::crc32c(body) != word(4)? {
            return None;
        }
        let long = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap_or_default());
        let stream = match body[24] {
            1 => Stream::Out,
            2 => Stream::Err,
            3 => Stream::Supervisor,
            _ => return None,
        };
        let frame = Frame {
            at: Wall(long(0)),
            sequence: long(8),
            dropped: long(16),
            stream,
            line: body[25..].to_vec(),
        };
        Some((frame, HEAD + length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_survive_and_damage_is_seen(lines in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..8), cut in any::<prop::sample::Index>(), flip in any::<prop::sample::Index>()) {
            let frames: Vec<Frame> = lines.iter().enumerate().map(|(n, line)| Frame {
                at: Wall(n as u64), sequence: n as u64, dropped: 0, stream: Stream::Out, line: line.clone(),
            }).collect();
            let mut bytes = vec![];
            frames.iter().for_each(|f| f.encode(&mut bytes));
            let read = |mut rest: &[u8]| {
                let mut out = vec![];
                while let Some((frame, n)) = Frame::decode(rest) { out.push(frame); rest = &rest[n..]; }
                out
            };
            prop_assert_eq!(&read(&bytes), &frames);
            let torn = read(&bytes[..cut.index(bytes.len())]);
            prop_assert_eq!(&torn[..], &frames[..torn.len()]);
            let mut bad = bytes.clone();
            bad[flip.index(bytes.len())] ^= 0x40;
            let seen = read(&bad);
            prop_assert!(seen.len() < frames.len() && seen[..] == frames[..seen.len()]);
        }
    }
}
