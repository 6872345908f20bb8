//! The black box: everything that a program prints, as frames in two files that take turns. When both are full the
//! older half is emptied, and its lines count as dropped.

use kiln_model::frame::{ENCODED_BYTES_MAX, Head, Stream};
use kiln_model::limits::{LOG_LINE_BYTES_MAX, SPOOL_BYTES_MAX};
use kiln_model::{InstanceId, Wall};
use std::fs::File;
use std::io::{self, Seek, Write};

struct Segment {
    file: File,
    bytes: u64,
    lines: u64,
}

/// The writer; one per instance.
pub(crate) struct BlackBox {
    segments: [Segment; 2],
    current: usize,
    segment_bytes_max: u64,
    sequence: u64,
    dropped: u64,
    batch: Vec<u8>,
}

/// Bytes that are collected before they are written.
const BATCH_BYTES: usize = 128 * 1024;

/// Room for a batch, which is made before the heap is sealed.
pub(crate) fn room() -> Vec<u8> {
    Vec::with_capacity(BATCH_BYTES + 2 * ENCODED_BYTES_MAX)
}

impl BlackBox {
    /// Over two empty files, with the room from [`room`].
    pub(crate) fn new(files: [File; 2], room: Vec<u8>) -> Self {
        let segments = files.map(|file| Segment { file, bytes: 0, lines: 0 });
        let segment_bytes_max = SPOOL_BYTES_MAX / 2;
        Self { segments, current: 0, segment_bytes_max, sequence: 0, dropped: 0, batch: room }
    }

    /// Adds lines. They are in the files when this returns; they are durable after [`BlackBox::sync`].
    pub(crate) fn write<'a>(
        &mut self,
        stream: Stream,
        lines: impl IntoIterator<Item = &'a [u8]>,
    ) -> io::Result<()> {
        let at = Wall(kiln_sys::clock::wall_ms());
        let mut batch = std::mem::take(&mut self.batch);
        let mut count = 0;
        for line in lines {
            let start = batch.len();
            let head = Head { at, sequence: self.sequence, dropped: self.dropped, stream };
            head.encode(line, &mut batch);
            self.sequence += 1;
            if self.segments[self.current].bytes + batch.len() as u64 > self.segment_bytes_max {
                batch.truncate(start);
                self.append(&batch, count);
                batch.clear();
                count = 0;
                self.turn()?;
                // Once more: what was dropped by turning is in its head.
                Head { dropped: self.dropped, ..head }.encode(line, &mut batch);
            } else if batch.len() > BATCH_BYTES {
                self.append(&batch, count + 1);
                batch.clear();
                count = 0;
                continue;
            }
            count += 1;
        }
        self.append(&batch, count);
        batch.clear();
        self.batch = batch;
        Ok(())
    }

    /// Lines that do not fit on the disk count as dropped: the program goes on, and the next line that fits tells.
    fn append(&mut self, bytes: &[u8], lines: u64) {
        let segment = &mut self.segments[self.current];
        if segment.file.write_all(bytes).is_ok() {
            segment.bytes += bytes.len() as u64;
            segment.lines += lines;
            return;
        }
        // A part may have been written, and the next frame must not follow upon half of one.
        let _ = segment.file.set_len(segment.bytes);
        let _ = segment.file.seek(io::SeekFrom::Start(segment.bytes));
        self.dropped += lines;
    }

    fn turn(&mut self) -> io::Result<()> {
        self.current = 1 - self.current;
        let segment = &mut self.segments[self.current];
        self.dropped += segment.lines;
        segment.file.set_len(0)?;
        segment.file.rewind()?;
        (segment.bytes, segment.lines) = (0, 0);
        Ok(())
    }

    /// Makes everything durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.segments.iter().try_for_each(|s| s.file.sync_data())
    }

    /// The files, for keeping them open.
    pub(crate) fn files(&self) -> [&File; 2] {
        [&self.segments[0].file, &self.segments[1].file]
    }

    /// A word of the supervisor's own. One that cannot be written is not worth the instance's life.
    pub(crate) fn note(&mut self, text: &str) {
        let _ = self.write(Stream::Supervisor, [text.as_bytes()]);
    }
}

/// Cuts a stream into lines. A line that is too long is cut into several.
pub(crate) struct Lines {
    rest: Vec<u8>,
}

/// Bytes that are read at a time from the program's output.
pub(crate) const CHUNK_BYTES: usize = 64 * 1024;

impl Default for Lines {
    /// With the room that it will ever need.
    fn default() -> Self {
        Self { rest: Vec::with_capacity(CHUNK_BYTES + LOG_LINE_BYTES_MAX + 1) }
    }
}

/// The first line of `rest` with the length of what it takes; none: the line has not ended.
fn first_line(rest: &[u8]) -> Option<(&[u8], usize)> {
    let window = &rest[..rest.len().min(LOG_LINE_BYTES_MAX + 1)];
    match window.iter().position(|byte| *byte == b'\n') {
        Some(end) => Some((&rest[..end], end + 1)),
        None if rest.len() > LOG_LINE_BYTES_MAX => Some((&rest[..LOG_LINE_BYTES_MAX], LOG_LINE_BYTES_MAX)),
        None => None,
    }
}

impl Lines {
    /// Adds what was read, at most [`CHUNK_BYTES`], and writes the lines that are whole.
    pub(crate) fn push(&mut self, bytes: &[u8], stream: Stream, out: &mut BlackBox) -> io::Result<()> {
        self.rest.extend_from_slice(bytes);
        let mut from = 0;
        let lines = std::iter::from_fn(|| {
            let (line, length) = first_line(&self.rest[from..])?;
            from += length;
            Some(line)
        });
        out.write(stream, lines)?;
        self.rest.drain(..from);
        Ok(())
    }

    /// Writes what is left without a line feed.
    pub(crate) fn finish(&mut self, stream: Stream, out: &mut BlackBox) -> io::Result<()> {
        if !self.rest.is_empty() {
            out.write(stream, [self.rest.as_slice()])?;
            self.rest.clear();
        }
        Ok(())
    }
}

/// What the first frame of an instance says.
pub(crate) fn greeting(id: &InstanceId, command: &[String]) -> String {
    format!("starting `{id}`: {}", command.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_model::frame::Frame;

    fn frames(file: &File) -> Vec<Frame> {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let (mut out, mut rest) = (vec![], &bytes[..]);
        while let Some((frame, n)) = Frame::decode(rest) {
            out.push(frame);
            rest = &rest[n..];
        }
        assert!(rest.is_empty());
        out
    }

    fn files() -> [File; 2] {
        // A file without a name vanishes with its descriptor.
        [(); 2].map(|()| {
            use rustix::fs::{Mode, OFlags};
            let flags = OFlags::TMPFILE | OFlags::RDWR;
            rustix::fs::open(std::env::temp_dir(), flags, Mode::from_raw_mode(0o600)).unwrap().into()
        })
    }

    #[test]
    fn every_line_is_there_or_counted_as_dropped() {
        let files = files();
        let mut out = BlackBox::new([files[0].try_clone().unwrap(), files[1].try_clone().unwrap()], room());
        out.segment_bytes_max = 1000;
        let mut lines = Lines::default();
        let text: String = (0..200).map(|n| format!("line {n}\n")).collect();
        for chunk in text.as_bytes().chunks(7) {
            lines.push(chunk, Stream::Out, &mut out).unwrap();
        }
        lines.push(b"no line feed", Stream::Out, &mut out).unwrap();
        lines.finish(Stream::Out, &mut out).unwrap();
        let mut all: Vec<Frame> = files.iter().flat_map(frames).collect();
        all.sort_by_key(|f| f.sequence);
        let last = all.last().unwrap();
        assert_eq!((last.line.as_slice(), last.sequence), (&b"no line feed"[..], 200));
        assert_eq!(all[0].sequence, last.dropped);
        assert_eq!(all.len() as u64 + last.dropped, 201);
        assert!(all.windows(2).all(|w| w[0].sequence + 1 == w[1].sequence));
        assert!(files.iter().all(|f| f.metadata().unwrap().len() <= 1000));
    }

    #[test]
    fn a_long_line_is_cut_and_nothing_of_it_lost() {
        let files = files();
        let mut out = BlackBox::new([files[0].try_clone().unwrap(), files[1].try_clone().unwrap()], room());
        let mut lines = Lines::default();
        let long = vec![b'x'; 2 * LOG_LINE_BYTES_MAX + 10];
        lines.push(&long, Stream::Err, &mut out).unwrap();
        lines.push(b"\nnext\n", Stream::Err, &mut out).unwrap();
        let sizes: Vec<usize> = frames(&files[0]).iter().map(|f| f.line.len()).collect();
        assert_eq!(sizes, [LOG_LINE_BYTES_MAX, LOG_LINE_BYTES_MAX, 10, 4]);
    }

    #[test]
    fn what_does_not_fit_on_the_disk_is_counted_and_not_kept_in_memory() {
        let full = || File::options().write(true).open("/dev/full").unwrap();
        let mut spool = BlackBox::new([full(), full()], room());
        let mut lines = Lines::default();
        for _ in 0..3 {
            lines.push(b"one\ntwo\nha", Stream::Out, &mut spool).unwrap();
        }
        assert_eq!(spool.dropped, 6);
        assert_eq!(lines.rest, b"ha", "only the line that has not ended");
        assert_eq!(spool.segments[0].bytes, 0);
    }
}
