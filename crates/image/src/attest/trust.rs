//! Which keys are believed, and whether an image is signed by one of them. Without an answer nothing runs: an image with
//! no statement, a damaged one, or one by a key that is not, or no longer, in the list is refused.

use super::dsse::{Envelope, PAYLOAD_TYPE};
use super::key::{KeyError, PublicKey};
use super::statement::{PREDICATE, STATEMENT, Statement};
use kiln_model::Digest;
use std::path::{Path, PathBuf};

/// Bytes of a list of keys.
const LIST_BYTES_MAX: u64 = 1 << 20;
/// Keys of one list: each is tried.
const KEYS_MAX: usize = 256;

/// A list of keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file.
    #[error("cannot read the trusted keys in `{}`", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A line is no key.
    #[error("line {line} of `{}` is not a key", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// Why.
        #[source]
        source: KeyError,
    },
    /// A line has something beside the key.
    #[error("line {line} of `{}`: `{word}` is not understood; expected `until=YYYY-MM-DD`", path.display())]
    Word {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// As it stands there.
        word: String,
    },
    /// More keys than kiln tries.
    #[error("`{}` has more than {KEYS_MAX} keys", path.display())]
    TooMany {
        /// Which file.
        path: PathBuf,
    },
}

/// An image that may not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Nobody vouches for it.
    #[error("image {image} is not signed")]
    Unsigned {
        /// Which.
        image: Digest,
    },
    /// What stands beside it is not a signed statement.
    #[error("the signature of image {image} is damaged: {why}")]
    Damaged {
        /// Which image.
        image: Digest,
        /// What is wrong with it.
        why: String,
    },
    /// Somebody else vouches for it.
    #[error("image {image} is signed by key {keys}, which is not trusted")]
    Foreign {
        /// Which image.
        image: Digest,
        /// First digits of the keys that it names.
        keys: String,
    },
    /// The key is no longer believed.
    #[error("image {image} is signed by key {key}, which was trusted until {until} only")]
    Expired {
        /// Which image.
        image: Digest,
        /// First digits of the key.
        key: String,
        /// The last day.
        until: String,
    },
    /// A signed statement about something else.
    #[error("the signature beside image {image} is for another image")]
    Other {
        /// Which image.
        image: Digest,
    },
}

impl PolicyError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unsigned { .. } | Self::Damaged { .. } | Self::Other { .. } => {
                "`kiln bake` of its commit signs it again; `kiln image verify` names what is damaged"
            }
            Self::Foreign { .. } | Self::Expired { .. } => {
                "add the key to the trusted ones if you believe it, or `kiln bake` the commit with your own"
            }
        }
    }
}

/// A key that is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedKey {
    /// Which.
    pub key: PublicKey,
    /// The last day on which it is, as `YYYY-MM-DD` in UTC.
    pub until: Option<jiff::civil::Date>,
}

impl TrustedKey {
    fn is_over(&self, now: jiff::Timestamp) -> bool {
        self.until.is_some_and(|until| now.to_zoned(jiff::tz::TimeZone::UTC).date() > until)
    }
}

/// An image that somebody trusted vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vouched {
    /// By whom.
    pub key: PublicKey,
    /// What was signed.
    pub statement: Statement,
}

/// The keys that are believed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    /// In the order of the list.
    pub keys: Vec<TrustedKey>,
}

impl Trust {
    /// Trusts one key for ever.
    pub fn only(key: PublicKey) -> Self {
        Self { keys: vec![TrustedKey { key, until: None }] }
    }

    /// Reads a list: one `ed25519:BASE64` a line, perhaps `until=YYYY-MM-DD`, `#` begins a comment.
    pub fn read(path: &Path) -> Result<Self, TrustError> {
        use std::io::Read as _;
        let read = || {
            let mut text = String::new();
            std::fs::File::open(path)?.take(LIST_BYTES_MAX).read_to_string(&mut text)?;
            Ok(text)
        };
        let text = read().map_err(|source| TrustError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// The list in `text`; `path` is for messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, TrustError> {
        let path = || path.to_owned();
        let mut keys = vec![];
        for (line, text) in (1..).zip(text.lines()) {
            let mut words = text.split('#').next().unwrap_or_default().split_whitespace();
            let Some(key) = words.next() else { continue };
            let key = key.parse().map_err(|source| TrustError::Line { path: path(), line, source })?;
            let mut until = None;
            for word in words {
                let date = word.strip_prefix("until=").and_then(|date| date.parse().ok());
                let bad = || TrustError::Word { path: path(), line, word: word.chars().take(80).collect() };
                until = Some(date.ok_or_else(bad)?);
            }
            keys.push(TrustedKey { key, until });
        }
        if keys.len() > KEYS_MAX { Err(TrustError::TooMany { path: path() }) } else { Ok(Self { keys }) }
    }

    /// The list as text, which [`Trust::parse`] reads.
    pub fn to_text(&self) -> String {
        let line = |key: &TrustedKey| {
            let until = key.until.map(|until| format!(" until={until}")).unwrap_or_default();
            format!("{}{until} # {}\n", key.key, key.key.short())
        };
        self.keys.iter().map(line).collect()
    }

    /// Whether a key of the list vouches for `image` with `envelope`, the bytes that stand beside it.
    pub fn check(
        &self,
        image: Digest,
        envelope: Option<&[u8]>,
        now: jiff::Timestamp,
    ) -> Result<Vouched, PolicyError> {
        let damaged = |why: String| PolicyError::Damaged { image, why };
        let bytes = envelope.ok_or(PolicyError::Unsigned { image })?;
        let envelope: Envelope = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
        if envelope.payload_type != PAYLOAD_TYPE {
            return Err(damaged("its type is not that of a statement".into()));
        }
        let signers: Vec<&TrustedKey> =
            self.keys.iter().filter(|trusted| envelope.is_signed_by(&trusted.key)).collect();
        let Some(signer) = signers.iter().find(|signer| !signer.is_over(now)) else {
            return Err(self.refusal(image, &envelope, signers.first().copied()));
        };
        // From here on it is what somebody trusted has signed.
        let payload = envelope.payload().unwrap_or_default();
        let statement: Statement = serde_json::from_slice(&payload).map_err(|e| damaged(e.to_string()))?;
        if statement.kind != STATEMENT || statement.predicate_type != PREDICATE {
            return Err(damaged("it is not a statement about provenance".into()));
        }
        if statement.image() != Some(image) {
            return Err(PolicyError::Other { image });
        }
        Ok(Vouched { key: signer.key, statement })
    }

    fn refusal(&self, image: Digest, envelope: &Envelope, over: Option<&TrustedKey>) -> PolicyError {
        if let Some(TrustedKey { key, until: Some(until) }) = over {
            return PolicyError::Expired { image, key: key.short(), until: until.to_string() };
        }
        let named = |id: &str| self.keys.iter().any(|trusted| trusted.key.id() == id);
        if envelope.signatures.is_empty() {
            return PolicyError::Unsigned { image };
        }
        if envelope.signatures.iter().any(|signature| named(&signature.keyid)) {
            let why = "it does not fit its statement, which was changed".to_owned();
            return PolicyError::Damaged { image, why };
        }
        let short = |id: &str| id.chars().filter(char::is_ascii_hexdigit).take(12).collect::<String>();
        let keys: Vec<String> = envelope.signatures.iter().take(4).map(|s| short(&s.keyid)).collect();
        PolicyError::Foreign { image, keys: keys.join(", ") }
    }
}
