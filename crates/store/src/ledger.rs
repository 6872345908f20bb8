//! The hash chain. Each entry's hash covers the one before it, so that an edit, a cut or a swap shows.

use crate::LedgerEntry;
use kiln_model::{Digest, Event, Revision};

/// What the first entry is chained to.
pub(crate) const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

pub(crate) fn hash(previous: &str, sequence: u64, revision: Revision, body: &str) -> String {
    Digest::of(format!("{previous}\n{sequence}\n{revision}\n{body}").as_bytes()).hex()
}

pub(crate) fn entry(previous: &str, sequence: u64, revision: Revision, event: &Event) -> LedgerEntry {
    let body = serde_json::to_string(event).unwrap_or_default();
    let hash = hash(previous, sequence, revision, &body);
    LedgerEntry { sequence, revision, event: event.clone(), previous: previous.to_owned(), hash }
}

/// Where the chain ends: (sequence, hash) of its last entry, or nothing and [`GENESIS`]. Kept apart from the entries, so
/// that a missing end shows.
pub(crate) type Head = (u64, String);

/// Walks the chain over raw rows (sequence, revision, body, previous, hash) up to `head`.
pub(crate) fn verify(
    rows: impl Iterator<Item = (u64, u64, String, String, String)>,
    head: &Head,
) -> Result<u64, (u64, String)> {
    let (mut expected, mut chained) = (1, GENESIS.to_owned());
    for (sequence, revision, body, previous, stored) in rows {
        if sequence != expected {
            return Err((expected, format!("entry {expected} is missing")));
        }
        if previous != chained {
            return Err((sequence, "it is not chained to the entry before it".into()));
        }
        if hash(&previous, sequence, Revision(revision), &body) != stored {
            return Err((sequence, "its content was changed".into()));
        }
        (expected, chained) = (sequence + 1, stored);
    }
    match expected - 1 {
        last if last < head.0 => {
            Err((expected, format!("entry {expected} and what came after it is missing")))
        }
        last if (last, &chained) != (head.0, &head.1) => Err((last, "it is not the end of the chain".into())),
        last => Ok(last),
    }
}
