//! Secrets: values that programs need and nobody else may see. What is kept of one is a row for each version, sealed; a
//! release binds exact versions, so that a new value takes effect by a new release only, and a rollback brings the old one back.

use crate::ids::{EnvRef, NameError, number};
use crate::time::Wall;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use zeroize::Zeroizing;

/// Where instances find their secrets: one file each, in memory.
pub const SECRETS_DIR: &str = "/run/secrets";

const NAME_RULE: &str = "1 to 64 of A-Z, a-z, 0-9 and `_`, not starting with a digit";

/// The name of a secret, which is also that of its file.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretName(String);

impl SecretName {
    /// Parses the name, or says which rule it breaks.
    pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
        let text = text.into();
        let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let starts_well = text.bytes().next().is_some_and(|first| !first.is_ascii_digit());
        if starts_well && text.len() <= 64 && text.bytes().all(legal) {
            return Ok(Self(text));
        }
        Err(NameError { what: "secret name", value: text.chars().take(80).collect(), expected: NAME_RULE })
    }

    /// The name as text; safe as a file name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A name that no other comes before.
    fn first() -> Self {
        Self(String::new())
    }
}

impl TryFrom<String> for SecretName {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl std::str::FromStr for SecretName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl From<SecretName> for String {
    fn from(name: SecretName) -> String {
        name.0
    }
}

impl std::fmt::Display for SecretName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::fmt::Debug for SecretName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

number!(
    /// The number of a version of one secret in one environment, from 1. Never used twice.
    SecretVersion
);

/// A version of a secret: the key of its row.
pub type SecretKey = (EnvRef, SecretName, SecretVersion);

/// One version of one secret of an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// Whose.
    pub env: EnvRef,
    /// Which.
    pub name: SecretName,
    /// Which version of it.
    pub version: SecretVersion,
    /// When it was set.
    pub created: Wall,
    /// Who set it.
    pub actor: String,
    /// What is kept of it.
    pub content: SecretContent,
}

/// What is kept of one version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretContent {
    /// Its value.
    Sealed {
        /// The value, sealed with the server's key: an age file, in base64.
        sealed: String,
        /// The public half of that key.
        key: String,
        /// Bytes of the value.
        bytes: u32,
    },
    /// With this version the secret was taken out: there is none from here on.
    Unset,
    /// A newer version came and no release has this one: its value was removed.
    Removed,
}

impl Secret {
    /// Its key.
    pub fn key(&self) -> SecretKey {
        (self.env.clone(), self.name.clone(), self.version)
    }

    /// Bytes of its value, if it is kept.
    pub fn bytes(&self) -> Option<u32> {
        match &self.content {
            SecretContent::Sealed { bytes, .. } => Some(*bytes),
            SecretContent::Unset | SecretContent::Removed => None,
        }
    }
}

/// The range of keys that are of one secret, or of all of an environment.
pub(crate) fn keys(
    env: &EnvRef,
    name: Option<&SecretName>,
) -> (std::ops::Bound<SecretKey>, std::ops::Bound<SecretKey>) {
    use std::ops::Bound::Included;
    // A letter sorts before `{`, which no name has.
    let first = name.cloned().unwrap_or_else(SecretName::first);
    let last = name.cloned().unwrap_or_else(|| SecretName("{".into()));
    (Included((env.clone(), first, SecretVersion(0))), Included((env.clone(), last, SecretVersion(u64::MAX))))
}

/// The value of a secret. It cannot be printed or written down, and its memory is wiped when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretValue(Zeroizing<Vec<u8>>);

impl SecretValue {
    /// The value.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Its bytes, for whoever hands them on.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretValue(…)")
    }
}

/// What an instance is given beside its specification, which has the versions of these.
pub type SecretValues = BTreeMap<SecretName, SecretValue>;

/// What most instances are given.
pub static NO_SECRETS: SecretValues = SecretValues::new();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_variables() {
        for good in ["A", "_x", "API_KEY", "db_password2", &"a".repeat(64)] {
            assert!(SecretName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "1A", "A-B", "A.B", "../x", "ä", "A B", &"a".repeat(65)] {
            assert!(SecretName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_value_does_not_show() {
        let value = SecretValue::new(b"canary".to_vec());
        assert_eq!(format!("{value:?}"), "SecretValue(…)");
        assert_eq!(value.expose(), b"canary");
    }
}
