//! Printing: data on stdout, notes on stderr, tables that line up, times that people read.

use crate::Failure;
use kiln_api::Code;
use kiln_model::{Millis, Wall};
use serde::Serialize;
use std::io::Write;

/// Where a command prints.
pub(crate) struct Out {
    json: bool,
}

impl Out {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether one JSON document is wanted.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// The answer of a command: `document` with `--json`, else the text.
    pub(crate) fn answer(
        &self,
        document: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        if !self.json {
            return self.text(&text());
        }
        let json = serde_json::to_string_pretty(document).map_err(|e| {
            Failure::new(Code::Internal, format!("the answer could not be written as JSON: {e}"))
        })?;
        self.text(&format!("{json}\n"))
    }

    /// Data, as it is.
    pub(crate) fn text(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = std::io::stdout().lock();
        let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        written.map_err(|error| match error.kind() {
            // The reader has seen enough.
            std::io::ErrorKind::BrokenPipe => Failure::silent(Code::File),
            _ => Failure::new(Code::File, format!("stdout could not be written: {error}")),
        })
    }

    /// A line for people, on stderr.
    pub(crate) fn note(&self, text: &str) {
        // Nobody to tell is no reason to fail.
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    /// A hint for people, on stderr.
    pub(crate) fn hint(&self, text: &str) {
        self.note(&format!("hint: {text}"));
    }
}

/// Rows under headings, in columns that line up. The last column is as wide as it likes.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = headings.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (cell, width) in cells.zip(&widths) {
            text.push_str(&format!("{cell:<width$}  "));
        }
        format!("{}\n", text.trim_end())
    };
    let mut text = line(&mut headings.iter().copied());
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

/// `2026-11-24T09:15:03.120Z`.
pub(crate) fn timestamp(at: Wall) -> String {
    i64::try_from(at.0)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(|| at.0.to_string(), |t| format!("{t:.3}"))
}

/// The present on the wall clock.
pub(crate) fn now() -> Wall {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Wall(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// `3 min ago`.
pub(crate) fn ago(at: Wall, now: Wall) -> String {
    format!("{} ago", Millis(now.0.saturating_sub(at.0)))
}

/// `12.3 MiB`.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let (mut value, mut unit) = (n as f64 / 1024.0, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A point in time: a span before `now` (`90s`, `10m`, `1h30m`, `2d`) or `2026-11-24T09:15:03Z`.
pub(crate) fn parse_since(text: &str, now: Wall) -> Result<Wall, String> {
    if let Some(span) = parse_span(text) {
        return Ok(Wall(now.0.saturating_sub(span.0)));
    }
    let stamp: jiff::Timestamp = text.parse().map_err(|_| {
        format!("`{text}` is neither a span such as `10m` nor a time such as `2026-11-24T09:15:03Z`")
    })?;
    Ok(Wall(u64::try_from(stamp.as_millisecond()).unwrap_or(0)))
}

fn parse_span(text: &str) -> Option<Millis> {
    let mut total = 0u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |n| digits + n);
        let seconds = match &rest[digits..unit] {
            "s" => 1,
            "m" | "min" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return None,
        };
        total = total.checked_add(number.checked_mul(seconds)?.checked_mul(1000)?)?;
        rest = &rest[unit..];
    }
    (!text.is_empty()).then_some(Millis(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let rows = vec![vec!["web-1".into(), "serving".into()], vec!["a".into(), "x".into()]];
        assert_eq!(table(&["ID", "STATE"], &rows), "ID     STATE\nweb-1  serving\na      x\n");
    }

    #[test]
    fn times_and_sizes_read_well() {
        assert_eq!(timestamp(Wall(1_700_000_000_120)), "2023-11-14T22:13:20.120Z");
        assert_eq!(ago(Wall(0), Wall(180_000)), "3 min ago");
        assert_eq!([bytes(0), bytes(1024), bytes(1_572_864)], ["0 B", "1.0 KiB", "1.5 MiB"]);
    }

    #[test]
    fn since_is_a_span_or_a_time() {
        let now = Wall(10_000_000_000);
        assert_eq!(parse_since("10m", now), Ok(Wall(now.0 - 600_000)));
        assert_eq!(parse_since("1h30m", now), Ok(Wall(now.0 - 5_400_000)));
        assert_eq!(parse_since("2d", now).unwrap().0, now.0 - 172_800_000);
        assert_eq!(parse_since("2023-11-14T22:13:20Z", now), Ok(Wall(1_700_000_000_000)));
        for bad in ["", "10", "m", "10x", "99999999999999999999s", "yesterday"] {
            assert!(parse_since(bad, now).is_err(), "{bad:?}");
        }
    }
}
