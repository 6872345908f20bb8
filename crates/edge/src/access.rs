//! The access log: one JSON line per request, gathered per thread and written in large pieces. Off by default.

use crate::limits::ACCESS_BUFFER_BYTES;
use crate::log::Log;
use crate::target::{Outcome, TargetState};
use serde_json::json;
use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

thread_local! {
    static LINES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What is known of a request before it has ended.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) log: Arc<Log>,
    pub(crate) id: String,
    pub(crate) method: String,
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) bytes: u64,
}

impl Record {
    pub(crate) fn write(&self, target: Option<&TargetState>, status: u16, outcome: Outcome, took: Duration) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        let line = json!({
            "at": at, "id": self.id, "method": self.method, "host": self.host, "path": self.path,
            "status": status, "bytes": self.bytes, "us": took.as_micros() as u64,
            "outcome": format!("{outcome:?}").to_ascii_lowercase(),
            "env": target.map(|t| t.key.env.to_string()), "service": target.map(|t| t.key.service.as_str()),
            "release": target.map(|t| t.key.release.0), "commit": target.map(|t| t.commit.as_str()),
            "instance": target.map(|t| t.key.instance.as_str()),
        });
        let _ = LINES.try_with(|lines| {
            let mut lines = lines.borrow_mut();
            lines.extend_from_slice(format!("{line}\n").as_bytes());
            if lines.len() >= ACCESS_BUFFER_BYTES {
                self.log.write(&lines);
                lines.clear();
            }
        });
    }
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
