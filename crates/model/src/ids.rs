//! Names and numbers of things. Each is a newtype that is parsed once, where it enters, and is valid ever after.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The text is not a legal name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is not a legal {what}: expected {expected}")]
pub struct NameError {
    /// The noun that was parsed, such as "service name".
    pub what: &'static str,
    /// The text as given, cut to 80 characters.
    pub value: String,
    /// The rule in words.
    pub expected: &'static str,
}

const NAME_RULE: &str = "1 to 40 of a-z, 0-9 and `-`, starting with a letter, not ending with `-`";

fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=40).contains(&bytes.len())
        && bytes[0].is_ascii_lowercase()
        && bytes[bytes.len() - 1] != b'-'
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// Parses the name, or says which rule it breaks.
            pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
                let text = text.into();
                if is_name(&text) {
                    return Ok(Self(text));
                }
                Err(NameError { what: $what, value: text.chars().take(80).collect(), expected: NAME_RULE })
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl std::str::FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    };
}

name!(
    /// The name of a project: a git repository with a `kiln.toml`.
    ProjectName,
    "project name"
);
name!(
    /// The name of an environment of a project, such as `production`.
    EnvName,
    "environment name"
);
name!(
    /// The name of a service of a project.
    ServiceName,
    "service name"
);
name!(
    /// The name of an image in a `kiln.toml`.
    ImageName,
    "image name"
);

/// One environment of one project. Written `project/environment`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EnvRef {
    /// The project.
    pub project: ProjectName,
    /// The environment.
    pub env: EnvName,
}

impl fmt::Display for EnvRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.project, self.env)
    }
}

impl From<EnvRef> for String {
    fn from(env: EnvRef) -> String {
        env.to_string()
    }
}

impl TryFrom<String> for EnvRef {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        let (project, env) = text.split_once('/').unwrap_or((&text, ""));
        Ok(Self { project: ProjectName::new(project)?, env: EnvName::new(env)? })
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $type(pub u64);

        impl $type {
            /// The next number.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::str::FromStr for $type {
            type Err = std::num::ParseIntError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}
pub(crate) use number;

number!(
    /// The number of a release within its environment, from 1. A failed release keeps its number.
    ReleaseNumber
);
number!(
    /// The number of a rollout within one state folder, from 1.
    RolloutId
);

/// The id of an instance: `SERVICE-N`, where N counts all instances of the state folder. Never used twice. Also its
/// host name and the name of its folder.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceId(String);

impl InstanceId {
    /// The id of the `sequence`-th instance, of `service`.
    pub fn new(service: &ServiceName, sequence: u64) -> Self {
        Self(format!("{service}-{sequence}"))
    }

    /// The id as text; safe as a file name and a host name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The sequence number, unique within a state folder.
    pub fn sequence(&self) -> u64 {
        self.0.rsplit_once('-').and_then(|(_, n)| n.parse().ok()).unwrap_or(0)
    }
}

impl TryFrom<String> for InstanceId {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        let legal = text.rsplit_once('-').is_some_and(|(service, n)| {
            is_name(service) && n.len() <= 19 && n.parse::<u64>().is_ok_and(|v| v.to_string() == n)
        });
        if legal {
            return Ok(Self(text));
        }
        Err(NameError {
            what: "instance id",
            value: text.chars().take(80).collect(),
            expected: "SERVICE-NUMBER, as in `web-17`",
        })
    }
}

impl std::str::FromStr for InstanceId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::try_from(text.to_owned())
    }
}

impl From<InstanceId> for String {
    fn from(id: InstanceId) -> String {
        id.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_refuse_what_could_escape_a_path_or_a_shell() {
        for bad in ["", "-a", "a-", "A", "a/b", "..", "a b", "a;b", "a\n", "a_b", "1a", &"a".repeat(41)] {
            assert!(ServiceName::new(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "web", "web-2", &"a".repeat(40)] {
            assert!(ServiceName::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn instance_ids_round_trip() {
        let id = InstanceId::new(&ServiceName::new("web-2").unwrap(), 17);
        assert_eq!(id.as_str(), "web-2-17");
        assert_eq!(id.sequence(), 17);
        assert_eq!("web-2-17".parse::<InstanceId>().unwrap(), id);
        for bad in ["web", "web-", "web-017", "../x-1", "web-1/2"] {
            assert!(bad.parse::<InstanceId>().is_err(), "{bad}");
        }
    }
}
