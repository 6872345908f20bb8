//! The lines of a streamed answer: newline-delimited JSON, one [`Update`] each.

use crate::error::WireError;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A stream sends [`Update::Alive`] when it had nothing else to say for so long.
pub const ALIVE_EVERY: Duration = Duration::from_secs(3);

/// One line of a stream. [`Update::Error`] is the last line of a stream that failed; it looks like the body of any other
/// error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Update<T> {
    /// A line about long work.
    Progress(String),
    /// What was asked for. Requests with one answer send one, at the end.
    Item(T),
    /// Nothing new; shows that the connection is alive.
    Alive,
    /// It failed.
    Error(WireError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn lines_are_stable() {
        let line = |update: Update<u64>| serde_json::to_string(&update).unwrap();
        assert_eq!(line(Update::Progress("baking".into())), r#"{"progress":"baking"}"#);
        assert_eq!(line(Update::Item(7)), r#"{"item":7}"#);
        assert_eq!(line(Update::Alive), r#""alive""#);
        let error = WireError::new(Code::Internal, "x", None);
        assert_eq!(line(Update::Error(error)), r#"{"error":{"code":"internal","message":"x","exit":2}}"#);
    }
}
