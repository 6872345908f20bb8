//! Where the control plane listens: a Unix socket. TCP is refused until access control exists.

use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The default address.
pub const DEFAULT: &str = "unix:/run/kiln/kiln.sock";
/// Bytes that the path of a Unix socket may have (`sun_path` less its ending zero).
const SOCKET_PATH_MAX: usize = 107;

/// The address of a control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address(PathBuf);

/// The text is not an address that kiln accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It names a network address.
    #[error("`{text}` is a network address; kiln listens on a Unix socket only, until access control exists")]
    Tcp {
        /// As given.
        text: String,
    },
    /// It is neither `unix:PATH` nor a path.
    #[error("`{text}` is not an address: expected `unix:/path/to/socket`")]
    Unknown {
        /// As given.
        text: String,
    },
    /// The path does not fit into a socket address.
    #[error("the socket path `{text}` is longer than {SOCKET_PATH_MAX} bytes")]
    TooLong {
        /// As given.
        text: String,
    },
}

impl Address {
    /// The path of the socket.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Default for Address {
    fn default() -> Self {
        Self(PathBuf::from(DEFAULT.trim_start_matches("unix:")))
    }
}

impl FromStr for Address {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let path = text.strip_prefix("unix:");
        let network = ["tcp:", "http:", "https:"].iter().any(|scheme| text.starts_with(scheme))
            || (path.is_none() && !text.contains('/') && text.contains(':'));
        if network {
            return Err(AddressError::Tcp { text: text.to_owned() });
        }
        let path = path.unwrap_or(text);
        if !path.contains('/') || path.ends_with('/') || path.contains('\0') {
            return Err(AddressError::Unknown { text: text.to_owned() });
        }
        if path.len() > SOCKET_PATH_MAX {
            return Err(AddressError::TooLong { text: text.to_owned() });
        }
        Ok(Self(PathBuf::from(path)))
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "unix:{}", self.0.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unix_sockets_are_accepted() {
        for good in ["unix:/run/kiln/kiln.sock", "/tmp/x", "./k.sock", "unix:a/b"] {
            assert!(good.parse::<Address>().is_ok(), "{good}");
        }
        for tcp in ["tcp://1.2.3.4:80", "http://localhost", "localhost:80", "127.0.0.1:1", "[::1]:80", ":80"]
        {
            assert!(matches!(tcp.parse::<Address>(), Err(AddressError::Tcp { .. })), "{tcp}");
        }
        for bad in ["", "kiln", "unix:", "/run/", "/a\0b"] {
            assert!(matches!(bad.parse::<Address>(), Err(AddressError::Unknown { .. })), "{bad:?}");
        }
        let long = format!("/{}", "a".repeat(107));
        assert!(matches!(long.parse::<Address>(), Err(AddressError::TooLong { .. })));
        assert_eq!(Address::default().to_string(), DEFAULT);
    }
}
