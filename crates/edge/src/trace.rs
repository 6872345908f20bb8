//! W3C trace context: the `traceparent` of a request is passed on, and one that has none or no legal one gets a new one, so that
//! every request has a trace id that the access log and all services behind agree on. The edge records no spans of its own and
//! says so in the flags of what it makes: not sampled.

use crate::choose::random;
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// `00-`, 32 digits, `-`, 16 digits, `-`, 2 digits.
const LENGTH: usize = 55;

/// The trace id: 32 lower-case hexadecimal digits.
pub(crate) type TraceId = [u8; 32];

/// Sees to it that the request has a legal `traceparent`, and tells its trace.
pub(crate) fn continue_or_begin(headers: &mut HeaderMap) -> TraceId {
    let mut all = headers.get_all(&TRACEPARENT).iter();
    let only = all.next().filter(|_| all.next().is_none());
    if let Some(id) = only.and_then(|value| trace_id(value.as_bytes())) {
        return id;
    }
    let id = digits::<32>();
    let parent = digits::<16>();
    let bytes = [b"00-", &id[..], b"-", &parent[..], b"-00"].concat();
    if let Ok(value) = HeaderValue::from_bytes(&bytes) {
        headers.insert(TRACEPARENT.clone(), value);
    }
    // It belonged to the trace that was not legal.
    headers.remove(&TRACESTATE);
    id
}

/// The trace id of a legal value; of a version that is not known, of the part that all versions share.
fn trace_id(value: &[u8]) -> Option<TraceId> {
    let hex = |part: &[u8]| part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let zero = |part: &[u8]| part.iter().all(|b| *b == b'0');
    let (head, rest) = value.split_at_checked(LENGTH)?;
    let (version, trace, parent, flags) = (&head[..2], &head[3..35], &head[36..52], &head[53..]);
    let dashes = [2, 35, 52].iter().all(|at| head[*at] == b'-');
    let parts = hex(version) && hex(trace) && hex(parent) && hex(flags);
    let is_legal = dashes && parts && version != b"ff" && !zero(trace) && !zero(parent);
    let more = rest.is_empty() || (version != b"00" && rest[0] == b'-');
    (is_legal && more).then(|| trace.try_into().ok()).flatten()
}

/// Random digits that are not all zero.
fn digits<const N: usize>() -> [u8; N] {
    let number = u128::from(random() | 1) << 64 | u128::from(random() | 1);
    std::array::from_fn(|n| b"0123456789abcdef"[(number >> (4 * n)) as usize & 15])
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEGAL: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_legal_parent_is_passed_on_as_it_came() {
        for value in [
            LEGAL,
            &LEGAL.replace("00-4b", "cc-4b"),
            &format!("{}-what-comes", LEGAL.replace("00-4b", "01-4b")),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", value.parse().unwrap());
            headers.insert("tracestate", "a=b".parse().unwrap());
            assert_eq!(&continue_or_begin(&mut headers), b"4bf92f3577b34da6a3ce929d0e0e4736", "{value}");
            assert_eq!((headers["traceparent"].to_str().unwrap(), headers.len()), (value, 2));
        }
    }

    #[test]
    fn anything_else_begins_a_new_trace() {
        let zeros = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        let no_parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01";
        let upper = LEGAL.to_uppercase();
        let wrong =
            ["", "00", zeros, no_parent, &upper, &LEGAL.replace("00-4b", "ff-4b"), &format!("{LEGAL}-x")];
        let mut seen = std::collections::HashSet::new();
        for value in wrong {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", value.parse().unwrap());
            headers.insert("tracestate", "a=b".parse().unwrap());
            let id = continue_or_begin(&mut headers);
            assert_eq!(trace_id(headers["traceparent"].as_bytes()), Some(id), "{value}");
            assert!(!headers.contains_key("tracestate") && seen.insert(id));
        }
        let mut twice = HeaderMap::new();
        twice.append("traceparent", LEGAL.parse().unwrap());
        twice.append("traceparent", LEGAL.parse().unwrap());
        assert_ne!(&continue_or_begin(&mut twice), b"4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(twice.get_all("traceparent").iter().count(), 1);
    }
}
