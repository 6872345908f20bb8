//! The access log: one JSON line per request, gathered per thread and written in large pieces. Off by default.

use crate::limits::{ACCESS_BUFFER_BYTES, ACCESS_TEXT_BYTES_MAX};
use crate::log::Log;
use crate::target::{Outcome, TargetState};
use crate::trace::TraceId;
use http::{HeaderValue, Method, Uri};
use std::cell::RefCell;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

thread_local! {
    static LINES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What is known of a request before it has ended. Cloning what the request has costs counts of references, no copies.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) log: Arc<Log>,
    pub(crate) id: HeaderValue,
    pub(crate) method: Method,
    /// As the client sent it.
    pub(crate) host: Option<HeaderValue>,
    pub(crate) uri: Uri,
    pub(crate) bytes: u64,
    /// See [`crate::trace`]; zeros if it was refused before.
    pub(crate) trace: TraceId,
}

impl Record {
    pub(crate) fn write(&self, target: Option<&TargetState>, status: u16, outcome: Outcome, took: Duration) {
        let _ = LINES.try_with(|lines| {
            let mut lines = lines.borrow_mut();
            self.line(&mut lines, target, status, outcome, took);
            if lines.len() >= ACCESS_BUFFER_BYTES {
                self.log.write(&lines);
                lines.clear();
            }
        });
    }

    /// By hand: a tree of values for every request costs as much as serving it.
    fn line(
        &self,
        to: &mut Vec<u8>,
        target: Option<&TargetState>,
        status: u16,
        outcome: Outcome,
        took: Duration,
    ) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        to.extend_from_slice(b"{\"at\":");
        number(to, at);
        to.extend_from_slice(b",\"id\":");
        text(to, self.id.as_bytes());
        to.extend_from_slice(b",\"trace\":");
        text(to, &self.trace);
        to.extend_from_slice(b",\"method\":");
        text(to, self.method.as_str().as_bytes());
        to.extend_from_slice(b",\"host\":");
        text(to, self.host.as_ref().map_or(b"", |h| h.as_bytes()));
        to.extend_from_slice(b",\"path\":");
        text(to, self.uri.path().as_bytes());
        for (name, value) in [
            (&b",\"status\":"[..], u64::from(status)),
            (b",\"bytes\":", self.bytes),
            (b",\"us\":", took.as_micros() as u64),
        ] {
            to.extend_from_slice(name);
            number(to, value);
        }
        to.extend_from_slice(b",\"outcome\":\"");
        to.extend_from_slice(outcome.word().as_bytes());
        match target {
            Some(target) => to.extend_from_slice(target.access.as_bytes()),
            None => to.extend_from_slice(
                b"\",\"env\":null,\"service\":null,\"release\":null,\"commit\":null,\"instance\":null}\n",
            ),
        }
    }
}

fn number(to: &mut Vec<u8>, value: u64) {
    // Cannot fail: the buffer grows.
    let _ = write!(to, "{value}");
}

/// A JSON string. Bytes that are not printable ASCII are written as the code points of Latin-1: a client must not be able to
/// make a line that is no JSON.
fn text(to: &mut Vec<u8>, bytes: &[u8]) {
    to.push(b'"');
    for byte in &bytes[..bytes.len().min(ACCESS_TEXT_BYTES_MAX)] {
        match byte {
            b'"' | b'\\' => to.extend_from_slice(&[b'\\', *byte]),
            0x20..0x7f => to.push(*byte),
            _ => drop(write!(to, "\\u{byte:04x}")),
        }
    }
    to.push(b'"');
}

/// Writes what this thread has gathered.
pub(crate) fn flush(log: &Log) {
    LINES.with_borrow_mut(|lines| {
        if !lines.is_empty() {
            log.write(lines);
            lines.clear();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_json_whatever_the_client_sent() {
        let record = Record {
            log: Arc::new(Log::new(std::path::Path::new("/nonexistent"), "x", 1)),
            id: HeaderValue::from_static("id"),
            method: Method::GET,
            host: HeaderValue::from_bytes(b"a\"\\\xff\t").ok(),
            uri: Uri::from_static("/x?y"),
            bytes: 7,
            trace: *b"4bf92f3577b34da6a3ce929d0e0e4736",
        };
        let mut line = vec![];
        record.line(&mut line, None, 200, Outcome::Cut, Duration::from_micros(5));
        let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(value["host"], "a\"\\\u{ff}\t");
        assert_eq!(
            (&value["path"], &value["outcome"], &value["us"]),
            (&"/x".into(), &"cut".into(), &5.into())
        );
        assert_eq!(value["trace"], "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(line.ends_with(b"}\n"));
    }
}
