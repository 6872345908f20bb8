//! Where a PostgreSQL server is and how it is spoken to. The text may have a password, which is never shown.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

/// How long a connection may take to come about.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// How long the other side of a TCP connection may stay silent while something is on its way to it.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// The authorities that Debian trusts.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A database of a PostgreSQL server: `postgres://USER@HOST/DATABASE`, or `key=value` pairs as libpq has them. Over a network
/// TLS is spoken, and the server's certificate and name are checked, unless the text says `sslmode=disable`;
/// `sslrootcert=FILE` names the authorities.
#[derive(Clone)]
pub struct PostgresAddress {
    pub(super) config: Config,
    /// Whom to believe who a server is; none for a connection in the clear.
    pub(super) authorities: Option<PathBuf>,
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
    /// It names a way to encrypt that is none.
    #[error("`{0}` is not an `sslmode`")]
    Mode(String),
    /// TLS needs a name to check.
    #[error("TLS to PostgreSQL goes over TCP only")]
    NotTcp,
}

impl AddressError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Syntax(_) | Self::Missing(_) => {
                "write it as `postgres://USER@HOST/DATABASE`, or `postgres:///DATABASE?host=/run/postgresql&user=USER` for a Unix socket"
            }
            Self::Mode(_) => {
                "leave it out: over a network TLS is used and checked (as with `verify-full`); `disable` is for one that you trust"
            }
            Self::NotTcp => "leave `sslmode` out, or name all servers by their host names",
        }
    }
}

impl FromStr for PostgresAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        // The library knows neither all modes nor the file.
        let (rest, mode) = without(text.trim(), "sslmode");
        let (rest, file) = without(&rest, "sslrootcert");
        let mut config: Config = rest.parse().map_err(AddressError::Syntax)?;
        if config.get_hosts().is_empty() {
            return Err(AddressError::Missing("server"));
        }
        if config.get_dbname().is_none() {
            return Err(AddressError::Missing("database"));
        }
        let is_tcp = |host: &Host| matches!(host, Host::Tcp(_));
        let is_far = |host: &Host| matches!(host, Host::Tcp(name) if !is_here(name));
        let hosts = config.get_hosts();
        let encrypted = match mode.as_deref() {
            Some("disable") => false,
            None | Some("allow" | "prefer") => hosts.iter().any(is_far),
            // Nobody listens in on a socket of this host.
            Some("require" | "verify-ca" | "verify-full") => hosts.iter().any(is_tcp),
            Some(other) => return Err(AddressError::Mode(other.to_owned())),
        };
        if encrypted && !hosts.iter().all(is_tcp) {
            return Err(AddressError::NotTcp);
        }
        let file = file.filter(|name| name != "system").unwrap_or_else(|| AUTHORITIES.to_owned());
        config.ssl_mode(if encrypted { SslMode::Require } else { SslMode::Disable });
        config.connect_timeout(CONNECT_MAX).tcp_user_timeout(SILENCE_MAX).application_name("kiln");
        Ok(Self { config, authorities: encrypted.then(|| file.into()) })
    }
}

/// The text without one of its options, and that option's value: of a URL's query, or a `key=value` pair whose value has no
/// blank.
fn without(text: &str, key: &str) -> (String, Option<String>) {
    let value_of = |part: &str| part.strip_prefix(key)?.strip_prefix('=').map(str::to_owned);
    let (separator, head, options) = match text.split_once('?') {
        Some((head, query)) if text.contains("://") => ('&', Some(head), query),
        None if text.contains("://") => return (text.to_owned(), None),
        _ => (' ', None, text),
    };
    let value = options.split(separator).find_map(value_of);
    let rest: Vec<&str> = options.split(separator).filter(|part| value_of(part).is_none()).collect();
    let rest = rest.join(&separator.to_string());
    let rest = match head {
        Some(head) if rest.is_empty() => head.to_owned(),
        Some(head) => format!("{head}?{rest}"),
        None => rest,
    };
    (rest, value.map(|value| value.trim_matches('\'').to_owned()))
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
    fn what_cannot_be_used_is_refused_and_no_password_is_shown() {
        let parse = |text: &str| text.parse::<PostgresAddress>();
        let authorities = |text: &str| {
            let parsed = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let mode = if parsed.authorities.is_some() { SslMode::Require } else { SslMode::Disable };
            assert_eq!(parsed.config.get_ssl_mode(), mode, "{text}");
            parsed.authorities.map(|file| file.display().to_string())
        };
        for clear in [
            "postgres://kiln@localhost/kiln",
            "postgres:///kiln?host=/run/postgresql&user=kiln",
            "postgres:///kiln?host=/run/postgresql&user=kiln&sslmode=require",
            "host=127.0.0.1 dbname=kiln user=kiln",
            "host=127.0.0.1 password='two  words' dbname=kiln user=kiln",
            "postgres://kiln@db.example.com/kiln?sslmode=disable",
            "host=db.example.com sslmode='disable' dbname=kiln",
        ] {
            assert_eq!(authorities(clear), None, "{clear}");
        }
        for encrypted in [
            "postgres://kiln@db.example.com/kiln",
            "postgres://kiln@a.example.com,b.example.com/kiln?target_session_attrs=read-write",
            "postgres://kiln@db.example.com/kiln?sslmode=prefer",
            "postgres://localhost/kiln?sslmode=require&sslrootcert=system",
            "host=db.example.com sslmode=verify-full dbname=kiln",
        ] {
            assert_eq!(authorities(encrypted).as_deref(), Some(AUTHORITIES), "{encrypted}");
        }
        for named in [
            "postgres://kiln@db.example.com/kiln?connect_timeout=3&sslrootcert=/etc/kiln/ca.pem",
            "host=db.example.com sslrootcert=/etc/kiln/ca.pem dbname=kiln",
        ] {
            assert_eq!(authorities(named).as_deref(), Some("/etc/kiln/ca.pem"), "{named}");
        }
        let wrong = parse("postgres://kiln@db.example.com/kiln?sslmode=on");
        assert!(matches!(wrong, Err(AddressError::Mode(mode)) if mode == "on"));
        let mixed = parse("host=/run/postgresql,db.example.com dbname=kiln user=kiln");
        assert!(matches!(mixed, Err(AddressError::NotTcp)));
        assert!(matches!(parse("postgres:///kiln?user=kiln"), Err(AddressError::Missing("server"))));
        assert!(matches!(parse("postgres://localhost?user=kiln"), Err(AddressError::Missing("database"))));
        assert!(matches!(parse("kiln.db"), Err(AddressError::Syntax(_))));
        let with = parse("postgres://kiln:hunter2@localhost/kiln").unwrap();
        assert!(with.has_password());
        assert_eq!(format!("{with} {with:?}").matches("hunter2").count(), 0);
        assert_eq!(with.to_string(), "kiln at localhost");
    }
}
