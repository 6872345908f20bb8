//! One of the two files of a black box, read forward through a small window while its writer appends to it, empties it
//! and writes it anew.
//!
//! What is damaged is passed over. The next frame is looked for where the damaged one claims to end; only if there is
//! none it is searched for byte by byte, and then a frame of the supervisor's is not believed: programs choose the bytes
//! of their lines, and none may speak in the supervisor's name.

use kiln_model::Wall;
use kiln_model::frame::{Frame, Stream};
use kiln_model::limits::LOG_LINE_BYTES_MAX;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes before a frame's body: length and checksum.
const HEAD_BYTES: usize = 8;
/// Bytes of a body before its line.
const BODY_BYTES_MIN: usize = 25;
/// Bytes of the longest frame.
const FRAME_BYTES_MAX: usize = HEAD_BYTES + BODY_BYTES_MIN + LOG_LINE_BYTES_MAX;
/// Bytes read at a time. A damaged frame and the one behind it must fit.
const WINDOW_BYTES: usize = 64 * 1024;
const _: () = assert!(WINDOW_BYTES > 3 * FRAME_BYTES_MAX);
/// Times that a window is read again because the file was written anew meanwhile. Whatever takes turns faster than it
/// can be read is read at the next look.
const READS_MAX: usize = 4;

/// The first bytes of a file. They contain a sequence number, so they are never the same again once it is written anew.
type Identity = [u8; 24];

/// How far one file was read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Segment {
    identity: Option<Identity>,
    /// Where in the file the unread part of the window starts.
    offset: u64,
    window: Vec<u8>,
    /// Where in the window the unread part starts.
    from: usize,
    head: Option<Frame>,
    is_exhausted: bool,
    is_damaged: bool,
}

enum Step {
    Whole(Frame, usize),
    /// There may be more once the window holds more.
    Short,
    /// So many bytes belong to no frame.
    Damaged(usize),
}

impl Segment {
    /// Something may have been added.
    pub(crate) fn look_again(&mut self) {
        self.is_exhausted = false;
    }

    /// The sequence of the next undamaged frame from `floor` on.
    pub(crate) fn peek(&mut self, path: &Path, floor: u64) -> Option<u64> {
        if self.head.as_ref().is_some_and(|head| head.sequence < floor) {
            self.head = None;
        }
        let mut is_fresh = false;
        while self.head.is_none() && !self.is_exhausted {
            match step(&self.window[self.from..], floor, is_fresh) {
                Step::Whole(frame, bytes) => {
                    self.advance(bytes);
                    is_fresh = false;
                    self.head = Some(frame).filter(|frame| frame.sequence >= floor);
                }
                Step::Damaged(bytes) => {
                    self.is_damaged = true;
                    self.advance(bytes);
                    is_fresh = false;
                }
                Step::Short if is_fresh => {
                    self.is_exhausted = true;
                    self.release();
                }
                Step::Short => {
                    self.fill(path);
                    is_fresh = true;
                }
            }
        }
        self.head.as_ref().map(|head| head.sequence)
    }

    /// When the line of the frame that was peeked was read.
    pub(crate) fn head_at(&self) -> Option<Wall> {
        self.head.as_ref().map(|head| head.at)
    }

    /// Takes the frame that was peeked.
    pub(crate) fn take(&mut self) -> Option<Frame> {
        self.head.take()
    }

    /// Whether damage was passed over since the last call.
    pub(crate) fn take_damage(&mut self) -> bool {
        std::mem::take(&mut self.is_damaged)
    }

    /// Bytes of the file that are behind its last frame, once all frames were read.
    pub(crate) fn left_bytes(&self, path: &Path) -> u64 {
        match self.is_exhausted && self.head.is_none() {
            true => std::fs::metadata(path).map_or(0, |meta| meta.len().saturating_sub(self.offset)),
            false => 0,
        }
    }

    /// Gives the window's memory back; what it held is read again when it is asked for.
    pub(crate) fn release(&mut self) {
        (self.window, self.from) = (vec![], 0);
    }

    fn advance(&mut self, bytes: usize) {
        self.from += bytes;
        self.offset += bytes as u64;
    }

    /// Reads the window at the offset. Between two equal identities nothing was written anew.
    fn fill(&mut self, path: &Path) {
        self.release();
        for _ in 0..READS_MAX {
            let Ok(file) = File::open(path) else { return };
            let before = identity(&file);
            if before != self.identity {
                self.identity = before;
                self.offset = 0;
            }
            let mut window = vec![0; WINDOW_BYTES];
            let mut length = 0;
            while length < WINDOW_BYTES {
                match file.read_at(&mut window[length..], self.offset + length as u64) {
                    Ok(0) => break,
                    Ok(more) => length += more,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    // Unreadable is as good as not there: a log must be readable on a bad disk.
                    Err(_) => break,
                }
            }
            if identity(&file) == before {
                window.truncate(length);
                window.shrink_to_fit();
                self.window = window;
                return;
            }
        }
    }
}

fn identity(file: &File) -> Option<Identity> {
    let mut bytes = Identity::default();
    file.read_exact_at(&mut bytes, 0).ok().map(|()| bytes)
}

/// What the bytes start with. `is_fresh`: the window was just read here, so that there is no more for now.
fn step(bytes: &[u8], floor: u64, is_fresh: bool) -> Step {
    if let Some((frame, length)) = Frame::decode(bytes) {
        return Step::Whole(frame, length);
    }
    let Some(word) = bytes.first_chunk() else { return Step::Short };
    let body = u32::from_le_bytes(*word) as usize;
    let is_plausible = (BODY_BYTES_MIN..=BODY_BYTES_MIN + LOG_LINE_BYTES_MAX).contains(&body);
    let claimed = HEAD_BYTES + body;
    // Either it is torn, or the rest of it is on its way.
    if (is_plausible && bytes.len() < claimed) || !is_fresh {
        return Step::Short;
    }
    if is_plausible && (bytes.len() == claimed || next(&bytes[claimed..], floor).is_some()) {
        return Step::Damaged(claimed);
    }
    let is_found =
        |start: &usize| next(&bytes[*start..], floor).is_some_and(|frame| frame.stream != Stream::Supervisor);
    match (1..bytes.len()).find(is_found) {
        Some(start) => Step::Damaged(start),
        // A frame may start in the last bytes and not be whole yet.
        None if bytes.len() > 2 * FRAME_BYTES_MAX => Step::Damaged(bytes.len() - FRAME_BYTES_MAX),
        None => Step::Short,
    }
}

fn next(bytes: &[u8], floor: u64) -> Option<Frame> {
    Frame::decode(bytes).map(|(frame, _)| frame).filter(|frame| frame.sequence >= floor)
}
