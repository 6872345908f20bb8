//! The edge's own log: JSON lines in files of bounded size. A full disk costs lines, never requests.

use crate::limits::SELDOM_PAUSE;
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A file that is renamed to `NAME.1` when it is full.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    bytes_max: u64,
    file: Mutex<Option<(File, u64)>>,
    begun: Instant,
    last_seldom: AtomicU64,
    n_lost: AtomicU64,
}

impl Log {
    pub(crate) fn new(dir: &Path, name: &str, bytes_max: u64) -> Self {
        let (begun, last_seldom) = (Instant::now(), AtomicU64::new(0));
        let (file, n_lost) = (Mutex::new(None), AtomicU64::new(0));
        Self { path: dir.join(name), bytes_max, file, begun, last_seldom, n_lost }
    }

    /// How many lines could not be written.
    pub(crate) fn lost(&self) -> u64 {
        self.n_lost.load(Ordering::Relaxed)
    }

    /// Appends whole lines; what cannot be written is dropped, and counted.
    pub(crate) fn write(&self, lines: &[u8]) {
        let mut slot = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.as_ref().is_some_and(|(_, length)| length + lines.len() as u64 > self.bytes_max) {
            let _ = std::fs::rename(&self.path, self.path.with_extension("log.1"));
            *slot = None;
        }
        if slot.is_none() {
            *slot = OpenOptions::new().create(true).append(true).open(&self.path).ok().map(|file| {
                let length = file.metadata().map_or(0, |m| m.len());
                (file, length)
            });
        }
        let written = slot.as_mut().is_some_and(|(file, length)| {
            let written = file.write_all(lines).is_ok();
            if written {
                *length += lines.len() as u64;
            } else {
                // A line that was begun would spoil the next one.
                let _ = file.set_len(*length);
            }
            written
        });
        if !written {
            *slot = None;
            let n = lines.iter().filter(|byte| **byte == b'\n').count() as u64;
            self.n_lost.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// An event that strangers can cause: at most one in each [`SELDOM_PAUSE`] is written, of all of them.
    pub(crate) fn seldom(&self, level: &str, message: &str, fields: Value) {
        let now = self.begun.elapsed().as_millis() as u64 + 1;
        let last = self.last_seldom.load(Ordering::Relaxed);
        let due = last == 0 || now - last.min(now) >= SELDOM_PAUSE.as_millis() as u64;
        if due && self.last_seldom.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.event(level, message, fields);
        }
    }

    /// One event with its fields, an object.
    pub(crate) fn event(&self, level: &str, message: &str, fields: Value) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        let mut line = json!({ "at": at, "level": level, "message": message });
        if let (Some(line), Value::Object(fields)) = (line.as_object_mut(), fields) {
            line.extend(fields);
        }
        self.write(format!("{line}\n").as_bytes());
    }
}
