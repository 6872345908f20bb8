//! Requests that name themselves by the header `Idempotency-Key`, so that a client that lost the answer may ask again.

use crate::failure::Failure;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use kiln_api::Code;
use kiln_api::client::IDEMPOTENCY_KEY;
use kiln_control::handle::Key;
use kiln_model::Digest;
use serde::Serialize;

/// The key of a request, if it has one.
pub(crate) struct Once(Option<String>);

impl Once {
    /// The key, together with who asks for what: another request must not have its answer.
    pub(crate) fn of(self, actor: &str, what: &str, request: &impl Serialize) -> Option<Key> {
        // Requests are plain structs: they always serialise.
        let body = serde_json::to_string(request).unwrap_or_default();
        self.0.map(|key| Key { key, request: Digest::of(format!("{actor}\n{what}\n{body}").as_bytes()) })
    }
}

impl<S: Sync> FromRequestParts<S> for Once {
    type Rejection = Failure;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let Some(value) = parts.headers.get(IDEMPOTENCY_KEY) else { return Ok(Self(None)) };
        match value.to_str() {
            Ok(key) if kiln_model::answer::is_key(key) => Ok(Self(Some(key.to_owned()))),
            _ => Err(Failure::new(
                Code::Usage,
                format!("`{IDEMPOTENCY_KEY}` has to be 1 to 64 letters, digits, `-` or `_`"),
            )),
        }
    }
}
