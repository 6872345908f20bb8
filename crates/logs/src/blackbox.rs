//! The black box of one instance: its two files as one sequence of lines, and the reason why it ended.
//!
//! Every line has a number without gaps, so whatever is not there is seen. The writer fills one file, then empties and
//! fills the other: if a number is missing in one file, the other one is looked at again before it counts as lost.

use crate::segment::Segment;
use kiln_model::frame::{Frame, Stream};
use kiln_model::{ExitReason, Wall};
use serde::Deserialize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Bytes of a specification or an exit record.
const RECORD_BYTES_MAX: u64 = 1 << 20;
/// The clock that stamps files is a tick behind the clock that stamps lines.
const CLOCK_SLACK_MS: u64 = 1000;
const OUT: [&str; 2] = ["out.0", "out.1"];
const EXIT: &str = "exit.json";
const GONE: &str = "gone.json";

#[derive(Debug, Clone, Deserialize)]
struct Exit {
    at: Wall,
    #[serde(flatten)]
    reason: ExitReason,
}

/// (size and one, seconds, nanoseconds) of each file that grows.
type Stamp = [(u64, i64, i64); 3];

/// What is read out of a black box: a line and who says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub at: Wall,
    pub sequence: u64,
    pub stream: Stream,
    pub text: String,
}

/// How far one black box was read.
#[derive(Debug, Clone)]
pub(crate) struct BlackBox {
    folder: PathBuf,
    segments: [Segment; 2],
    /// The number of the next line.
    next: u64,
    /// When the last line was read, and whether the supervisor said it: then its text.
    last: (Wall, Option<String>),
    exit: Option<Exit>,
    stamp: Stamp,
    /// That there are damaged bytes at the end was said.
    is_end_said: bool,
    /// Nothing will ever be added.
    is_over: bool,
    /// Everything that there ever will be was read.
    is_done: bool,
    /// The stamp holds and everything was read.
    is_idle: bool,
}

impl BlackBox {
    /// Before its first line.
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            segments: Default::default(),
            next: 0,
            last: (Wall(0), None),
            exit: None,
            stamp: Stamp::default(),
            is_end_said: false,
            is_over: false,
            is_done: false,
            is_idle: false,
        }
    }

    /// Looks whether anything was added since the last look.
    pub(crate) fn look(&mut self) {
        if self.is_done {
            return;
        }
        // Last line, record, tombstone: they are written in this order, so they are looked for in the opposite one.
        let stamp = self.stamp_now();
        let is_gone = self.folder.join(GONE).exists();
        if self.exit.is_none() {
            self.exit = record(&self.folder.join(EXIT));
        }
        self.is_over = self.exit.is_some() || is_gone;
        if stamp != self.stamp || self.is_over {
            self.stamp = stamp;
            self.is_idle = false;
            self.segments.iter_mut().for_each(Segment::look_again);
        }
    }

    /// Passes over everything if the instance ended before that time. Call after [`BlackBox::look`].
    pub(crate) fn skip_if_before(&mut self, at: Wall) {
        if self.is_over && self.changed().is_some_and(|changed| changed.0 + CLOCK_SLACK_MS < at.0) {
            self.is_done = true;
        }
    }

    /// When something was last added, by the clock of the file system.
    pub(crate) fn changed(&self) -> Option<Wall> {
        let newest = self.stamp.iter().filter(|(size, ..)| *size > 0).map(|(_, s, ns)| (*s, *ns)).max()?;
        let ms = i128::from(newest.0) * 1000 + i128::from(newest.1) / 1_000_000;
        u64::try_from(ms).ok().map(Wall)
    }

    /// The next line, also of what is missing and of the end.
    pub(crate) fn next_entry(&mut self) -> Option<Entry> {
        if self.is_done || self.is_idle {
            return None;
        }
        let Some((mut which, mut sequence)) = self.peek() else { return self.end() };
        if sequence > self.next {
            self.segments[1 - which].look_again();
            (which, sequence) = self.peek()?;
        }
        let missing = sequence - self.next;
        if missing > 0 {
            return Some(self.missing(which, sequence, missing));
        }
        let frame = self.segments[which].take()?;
        // The frames of both files are in order: damage before this one cost no line that is still to come.
        self.segments[which].take_damage();
        self.next = sequence.saturating_add(1);
        Some(self.entry(frame))
    }

    /// Gives the memory of what was read ahead back.
    pub(crate) fn release(&mut self) {
        self.segments.iter_mut().for_each(Segment::release);
    }

    fn entry(&mut self, frame: Frame) -> Entry {
        let text = String::from_utf8_lossy(&frame.line).into_owned();
        self.last = (frame.at, (frame.stream == Stream::Supervisor).then(|| text.clone()));
        Entry { at: frame.at, sequence: frame.sequence, stream: frame.stream, text }
    }

    fn peek(&mut self) -> Option<(usize, u64)> {
        let next = self.next;
        let heads = [0, 1].map(|n| self.segments[n].peek(&self.folder.join(OUT[n]), next));
        heads.into_iter().enumerate().filter_map(|(n, head)| Some((n, head?))).min_by_key(|(_, head)| *head)
    }

    /// A line for lines that are not there. It has the number of the last of them.
    fn missing(&mut self, which: usize, sequence: u64, missing: u64) -> Entry {
        let damaged = self.segments.each_mut().map(Segment::take_damage);
        // The writer went on from there, so that what is left is not on its way.
        let is_damaged = damaged.contains(&true) || self.left_bytes(1 - which) > 0;
        let what = if missing == 1 { "1 line was".to_owned() } else { format!("{missing} lines were") };
        let text = match is_damaged {
            true => format!("{what} lost: the black box is damaged"),
            false => format!("{what} dropped: the black box or its disk was full"),
        };
        self.next = sequence;
        let at = self.segments[which].head_at().unwrap_or(self.last.0);
        Entry { at, sequence: sequence - 1, stream: Stream::Supervisor, text }
    }

    /// After the last frame: what is left behind it, and why the instance ended, if the supervisor's last line does not
    /// say it.
    fn end(&mut self) -> Option<Entry> {
        self.is_idle = true;
        if !self.is_over {
            return None;
        }
        let left: u64 = [0, 1].map(|n| self.left_bytes(n)).iter().sum();
        let sequence = self.next;
        if left > 0 && !self.is_end_said {
            (self.is_end_said, self.is_idle) = (true, false);
            self.next = self.next.saturating_add(1);
            let at = self.exit.as_ref().map_or(self.last.0, |exit| exit.at);
            let text = format!("the last {left} bytes of the black box are damaged");
            return Some(Entry { at, sequence, stream: Stream::Supervisor, text });
        }
        self.is_done = true;
        self.release();
        let exit = self.exit.take()?;
        let text = exit.reason.to_string();
        let is_said = self.last.1.as_ref() == Some(&text);
        (!is_said).then_some(Entry { at: exit.at, sequence, stream: Stream::Supervisor, text })
    }

    fn left_bytes(&self, which: usize) -> u64 {
        self.segments[which].left_bytes(&self.folder.join(OUT[which]))
    }

    fn stamp_now(&self) -> Stamp {
        [OUT[0], OUT[1], EXIT].map(|name| {
            let meta = std::fs::metadata(self.folder.join(name));
            meta.map_or((0, 0, 0), |m| (m.len() + 1, m.mtime(), m.mtime_nsec()))
        })
    }
}

/// Reads a small file of JSON; none if it is missing, too large, empty or damaged.
pub(crate) fn record<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    let size = std::fs::metadata(path).ok()?.len();
    if size > RECORD_BYTES_MAX {
        return None;
    }
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}
