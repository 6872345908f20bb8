//! Where a PostgreSQL server is, and what of it is not supported yet. The text may have a password, which is never shown.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

/// How long a connection may take to come about.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// How long the other side of a TCP connection may stay silent while something is on its way to it.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// A database of a PostgreSQL server: `postgres://USER@HOST/DATABASE`, or `key=value` pairs as libpq has them.
#[derive(Clone)]
pub struct PostgresAddress {
    pub(super) config: Config,
}

/// Why a text names no database that can be used.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// It is not understood.
    #[error("not the address of a PostgreSQL database")]
    Syntax(#[source] tokio_postgres::Error),
    /// It names no server or no database.
    #[error("the address of the PostgreSQL database has no {0}")]
    Missing(&'static str),
    /// It wants TLS.
    #[error("TLS to PostgreSQL is not available yet")]
    Tls,
    /// It goes over a network in the clear, and does not say so.
    #[error("the connection to `{0}` would not be encrypted")]
    Clear(String),
}

impl AddressError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Syntax(_) | Self::Missing(_) => {
                "write it as `postgres://USER@HOST/DATABASE`, or `postgres:///DATABASE?host=/run/postgresql&user=USER` for a Unix socket"
            }
            Self::Tls => {
                "use a Unix socket, or a tunnel on this host (stunnel, PgBouncer with `server_tls_sslmode`)"
            }
            Self::Clear(_) => {
                "use a Unix socket or a tunnel on this host; in a network that you trust say so with `?sslmode=disable`"
            }
        }
    }
}

impl FromStr for PostgresAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let mut config: Config = text.trim().parse().map_err(AddressError::Syntax)?;
        if config.get_hosts().is_empty() {
            return Err(AddressError::Missing("server"));
        }
        if config.get_dbname().is_none() {
            return Err(AddressError::Missing("database"));
        }
        match config.get_ssl_mode() {
            SslMode::Disable => {}
            SslMode::Prefer => {
                let far = config.get_hosts().iter().find_map(|host| match host {
                    Host::Tcp(name) if !is_here(name) => Some(name.clone()),
                    _ => None,
                });
                if let Some(host) = far {
                    return Err(AddressError::Clear(host));
                }
            }
            _ => return Err(AddressError::Tls),
        }
        config.ssl_mode(SslMode::Disable).connect_timeout(CONNECT_MAX).tcp_user_timeout(SILENCE_MAX);
        config.application_name("kiln");
        Ok(Self { config })
    }
}

fn is_here(name: &str) -> bool {
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl PostgresAddress {
    /// Whether the text has a password in it, which everybody on the host can read in a command line.
    pub fn has_password(&self) -> bool {
        self.config.get_password().is_some()
    }
}

impl fmt::Display for PostgresAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = |host: &Host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        };
        let hosts: Vec<String> = self.config.get_hosts().iter().map(host).collect();
        write!(f, "{} at {}", self.config.get_dbname().unwrap_or_default(), hosts.join(","))
    }
}

impl fmt::Debug for PostgresAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresAddress({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_supported_is_refused_and_no_password_is_shown() {
        let parse = |text: &str| text.parse::<PostgresAddress>();
        for good in [
            "postgres://kiln@localhost/kiln",
            "postgres:///kiln?host=/run/postgresql&user=kiln",
            "host=127.0.0.1 dbname=kiln user=kiln",
            "postgres://kiln@db.example.com/kiln?sslmode=disable",
        ] {
            assert!(parse(good).is_ok(), "{good}: {:?}", parse(good).err());
        }
        assert!(matches!(parse("postgres://kiln@db.example.com/kiln"), Err(AddressError::Clear(_))));
        assert!(matches!(parse("postgres://localhost/kiln?sslmode=require"), Err(AddressError::Tls)));
        assert!(matches!(parse("postgres:///kiln?user=kiln"), Err(AddressError::Missing("server"))));
        assert!(matches!(parse("postgres://localhost?user=kiln"), Err(AddressError::Missing("database"))));
        assert!(matches!(parse("kiln.db"), Err(AddressError::Syntax(_))));
        let with = parse("postgres://kiln:hunter2@localhost/kiln").unwrap();
        assert!(with.has_password());
        assert_eq!(format!("{with} {with:?}").matches("hunter2").count(), 0);
        assert_eq!(with.to_string(), "kiln at localhost");
    }
}
