//! What a build prints: made harmless, cut, counted where it floods, and the parts of it that are kept.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Characters of one line; the rest is cut off.
const LINE_CHARS_MAX: usize = 500;
/// Bytes that are taken for one line when no end of it comes.
const LINE_BYTES_MAX: usize = 16 << 10;
/// Lines that are shown at once, and lines a second after that.
const BURST: u32 = 200;
const LINES_A_SECOND: u32 = 50;
/// How long lines that are not shown go uncounted.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// Lines, and bytes of them, that are kept for the message of a failure.
const SAID_LINES_MAX: usize = 200;
const SAID_BYTES_MAX: usize = 16 << 10;
/// Bytes of the log that are kept of its beginning, and again of its end.
const LOG_BYTES_EACH: usize = 256 << 10;

/// The output of one build.
pub(super) struct Output {
    /// A line without its end.
    partial: Vec<u8>,
    /// The last lines.
    said: Last,
    log: String,
    log_end: Last,
    n_left_out: u64,
    /// Lines that may be shown now.
    allowed: u32,
    since: Instant,
    /// Lines that were not shown, and since when.
    n_hidden: u64,
    hidden_since: Instant,
}

/// The last lines of something, within a number of lines and bytes.
#[derive(Default)]
struct Last {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Last {
    /// Answers how many lines fell out.
    fn push(&mut self, line: &str, lines_max: usize, bytes_max: usize) -> u64 {
        self.bytes += line.len() + 1;
        self.lines.push_back(line.to_owned());
        let mut n = 0;
        while self.lines.len() > lines_max || self.bytes > bytes_max && self.lines.len() > 1 {
            self.bytes -= self.lines.pop_front().map_or(0, |line| line.len() + 1);
            n += 1;
        }
        n
    }

    fn text(&self) -> String {
        self.lines.iter().map(|line| format!("{line}\n")).collect()
    }
}

impl Output {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            partial: vec![],
            said: Last::default(),
            log: String::new(),
            log_end: Last::default(),
            n_left_out: 0,
            allowed: BURST,
            since: now,
            n_hidden: 0,
            hidden_since: now,
        }
    }

    /// Takes what was read.
    pub(super) fn push(&mut self, bytes: &[u8], now: Instant, show: &mut dyn FnMut(String)) {
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            self.partial.extend_from_slice(part);
            if part.ends_with(b"\n") || self.partial.len() >= LINE_BYTES_MAX {
                self.finish_line(now, show);
            }
        }
        self.tick(now, show);
    }

    /// A line of our own: it is logged, and always shown.
    pub(super) fn note(&mut self, line: &str, now: Instant, show: &mut dyn FnMut(String)) {
        self.end(now, show);
        let line = clean(line.as_bytes());
        self.keep(&line);
        show(line);
    }

    /// Nothing follows for now: what has no end of line is a line.
    pub(super) fn end(&mut self, now: Instant, show: &mut dyn FnMut(String)) {
        if !self.partial.is_empty() {
            self.finish_line(now, show);
        }
        self.count(now, show);
    }

    /// Tells of hidden lines when it is time.
    pub(super) fn tick(&mut self, now: Instant, show: &mut dyn FnMut(String)) {
        if self.n_hidden > 0 && now.duration_since(self.hidden_since) >= COUNT_EVERY {
            self.count(now, show);
        }
    }

    /// When [`Output::tick`] has something to do.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        (self.n_hidden > 0).then(|| self.hidden_since + COUNT_EVERY)
    }

    /// The last lines, for the message of a failure.
    pub(super) fn said(&self) -> String {
        self.said.text()
    }

    /// The whole of it, or its beginning and its end.
    pub(super) fn log(&self) -> String {
        let gap = match self.n_left_out {
            0 => String::new(),
            n => format!("… {n} lines left out\n"),
        };
        format!("{}{gap}{}", self.log, self.log_end.text())
    }

    fn finish_line(&mut self, now: Instant, show: &mut dyn FnMut(String)) {
        let line = clean(&std::mem::take(&mut self.partial));
        self.keep(&line);
        self.said.push(&line, SAID_LINES_MAX, SAID_BYTES_MAX);
        let earned = now.duration_since(self.since).as_millis() * u128::from(LINES_A_SECOND) / 1000;
        if earned > 0 {
            self.allowed = self.allowed.saturating_add(u32::try_from(earned).unwrap_or(BURST)).min(BURST);
            self.since = now;
        }
        if self.allowed == 0 {
            if self.n_hidden == 0 {
                self.hidden_since = now;
            }
            self.n_hidden += 1;
            return;
        }
        self.count(now, show);
        self.allowed -= 1;
        show(line);
    }

    fn count(&mut self, now: Instant, show: &mut dyn FnMut(String)) {
        if self.n_hidden > 0 {
            show(format!("… {} more lines", self.n_hidden));
            self.n_hidden = 0;
            self.hidden_since = now;
        }
    }

    fn keep(&mut self, line: &str) {
        if self.log_end.lines.is_empty() && self.log.len() + line.len() < LOG_BYTES_EACH {
            self.log.push_str(line);
            self.log.push('\n');
        } else {
            self.n_left_out += self.log_end.push(line, usize::MAX, LOG_BYTES_EACH);
        }
    }
}

/// A line as text that changes nothing on a terminal: no control sequences, what a progress bar has overwritten gone.
fn clean(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end_matches(['\n', '\r']);
    let text = text.rsplit('\r').next().unwrap_or_default();
    let mut out = String::new();
    let (mut n, mut characters) = (0, text.chars().peekable());
    while let Some(character) = characters.next() {
        if character == '\u{1b}' && characters.next_if_eq(&'[').is_some() {
            // A control sequence ends with a character of this range.
            let _ = characters.by_ref().find(|c| ('@'..='~').contains(c));
            continue;
        }
        let character = if character == '\t' { ' ' } else { character };
        if character.is_control() {
            continue;
        }
        n += 1;
        if n > LINE_CHARS_MAX {
            out.push('…');
            break;
        }
        out.push(character);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_made_harmless() {
        assert_eq!(clean(b"a\tb\x07\n"), "a b");
        assert_eq!(clean(b"\x1b[01;31merror:\x1b[m\x1b[K no\xff\r\n"), "error: no\u{fffd}");
        assert_eq!(clean(b"10%\r50%\r100%\n"), "100%");
        assert_eq!(clean(b"\x1b[2J\x1b]0;title\x07"), "]0;title");
        assert_eq!(clean(&[b'x'; 5000]).chars().count(), LINE_CHARS_MAX + 1);
        assert_eq!(clean(b"\x1b["), "");
    }

    #[test]
    fn a_flood_is_counted_and_the_last_lines_are_kept() {
        let start = Instant::now();
        let mut output = Output::new(start);
        let mut shown = vec![];
        for n in 0..10_000 {
            output.push(format!("line {n}\n").as_bytes(), start, &mut |line| shown.push(line));
        }
        assert_eq!(shown.len(), BURST as usize);
        assert_eq!(output.wake_at(), Some(start + COUNT_EVERY));
        let later = start + Duration::from_secs(2);
        output.tick(later, &mut |line| shown.push(line));
        assert_eq!(shown.last().unwrap(), "… 9800 more lines");
        output.push(b"half", later, &mut |line| shown.push(line));
        assert_eq!(output.wake_at(), None);
        output.end(later, &mut |line| shown.push(line));
        assert_eq!(shown.last().unwrap(), "half");
        let said = output.said();
        assert_eq!(said.lines().count(), SAID_LINES_MAX);
        assert!(said.ends_with("line 9999\nhalf\n"));
    }

    #[test]
    fn a_log_keeps_its_beginning_and_its_end() {
        let now = Instant::now();
        let mut output = Output::new(now);
        output.note("$ true", now, &mut |_| {});
        assert_eq!(output.log(), "$ true\n");
        let line = format!("{}\n", "x".repeat(99));
        for _ in 0..20_000 {
            output.push(line.as_bytes(), now, &mut |_| {});
        }
        output.push(b"last\n", now, &mut |_| {});
        let log = output.log();
        assert!(log.len() < 2 * LOG_BYTES_EACH + 100, "{}", log.len());
        assert!(log.starts_with("$ true\nxxx") && log.ends_with("x\nlast\n"));
        assert!(log.contains("lines left out"), "the gap is told");
        // No end of line ever comes: it is taken in pieces, and memory stays bounded.
        output.push(&vec![b'y'; 1 << 20], now, &mut |_| {});
        assert!(output.partial.len() <= LINE_BYTES_MAX);
    }
}
