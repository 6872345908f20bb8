//! The route table: one whole, immutable value with one generation. The edge swaps it, nobody patches it.

use crate::digest::{CommitId, Digest};
use crate::ids::{EnvRef, InstanceId, ReleaseNumber, ServiceName, number};
use crate::network::NetworkNumber;
use crate::policy::{RoutePolicy, is_false};
use crate::service::Health;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

number!(
    /// The number of a route table. Higher wins.
    Generation
);

/// The form of tables, raised when they get a part that an older edge would drop: one that knows the form and has another digest
/// lost something, and is sent the table again.
pub const TABLE_FORM: u32 = 1;

/// A route of a release: which requests go to which service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RouteRule {
    /// Lower-case host name without port; none matches any host.
    pub host: Option<String>,
    /// Path prefix, matched on segment boundaries and not stripped; `/` matches all.
    pub path: String,
    /// The service.
    pub service: ServiceName,
    /// Whether plain HTTP is enough for it.
    #[serde(default, skip_serializing_if = "Https::is_default")]
    pub https: Https,
    /// The port of a raw TCP route; such a one has no host, and its path is `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<u16>,
    /// What it asks of the edge.
    #[serde(default, skip_serializing_if = "RoutePolicy::is_default")]
    pub policy: RoutePolicy,
}

impl RouteRule {
    /// Whether both would get the same requests.
    pub fn is_same_place(&self, other: &RouteRule) -> bool {
        (&self.host, &self.path, self.tcp) == (&other.host, &other.path, other.tcp)
    }

    /// What it is for, as people write it; `any` stands for any host.
    pub fn place(&self, any: &str) -> String {
        match self.tcp {
            Some(port) => format!("tcp:{port}"),
            None => format!("{}{}", self.host.as_deref().unwrap_or(any), self.path),
        }
    }
}

/// What a route says of HTTP over TLS. Requests between services of an environment are not concerned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Https {
    /// Plain HTTP is answered with 308 and the same URL in `https`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only: bool,
    /// What answers over TLS tell browsers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hsts: Option<Hsts>,
}

impl Https {
    /// Whether it says nothing.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// `Strict-Transport-Security` of RFC 6797.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Hsts {
    /// For how many seconds a browser asks by HTTPS only; 0 makes it forget that.
    pub max_age_s: u64,
    /// Also for names below the host.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub subdomains: bool,
    /// The host may be put into the lists that browsers are delivered with.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub preload: bool,
}

impl std::fmt::Display for Hsts {
    /// As the field's value.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "max-age={}", self.max_age_s)?;
        if self.subdomains {
            f.write_str("; includeSubDomains")?;
        }
        if self.preload {
            f.write_str("; preload")?;
        }
        Ok(())
    }
}

/// What a service speaks on its port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    #[serde(rename = "http1")]
    Http1,
    /// HTTP/2 without TLS, by prior knowledge: what gRPC needs.
    #[serde(rename = "h2c")]
    H2c,
}

impl Protocol {
    /// Whether nothing was said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Everything that the edge needs to route: all environments of a state folder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTable {
    /// Routes; the most specific one wins: exact host before any host, then the longest path.
    pub routes: Vec<TableRoute>,
    /// Routes inside environments. A list of its own: an edge that does not know it must not take one for a route that the
    /// world may use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub internal: Vec<InternalRoute>,
    /// Raw TCP routes. A list of its own, for the same reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tcp: Vec<TcpRoute>,
    /// Where they lead.
    pub pools: Vec<Pool>,
}

impl RouteTable {
    /// The digest of its canonical JSON: the same generation must always have the same one.
    pub fn digest(&self) -> Digest {
        Digest::of(&serde_json::to_vec(self).unwrap_or_default())
    }
}

/// One route of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRoute {
    /// See [`RouteRule::host`].
    pub host: Option<String>,
    /// See [`RouteRule::path`].
    pub path: String,
    /// Pools with weights; the weights of one route are relative to each other. Several are a canary.
    pub pools: Vec<WeightedPool>,
    /// See [`RouteRule::https`].
    #[serde(default, skip_serializing_if = "Https::is_default")]
    pub https: Https,
    /// See [`RouteRule::policy`].
    #[serde(default, skip_serializing_if = "RoutePolicy::is_default")]
    pub policy: RoutePolicy,
}

/// A port of the edge whose connections go to instances as they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpRoute {
    /// The port, on every address of the edge.
    pub port: u16,
    /// See [`TableRoute::pools`].
    pub pools: Vec<WeightedPool>,
    /// See [`RouteRule::policy`]; only what is not of HTTP.
    #[serde(default, skip_serializing_if = "RoutePolicy::is_default")]
    pub policy: RoutePolicy,
}

/// A route for requests that arrive at the service address of one environment, and for no others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InternalRoute {
    /// Whose service address.
    pub network: NetworkNumber,
    /// The name inside, see [`crate::network::internal_host`]. Every path of it.
    pub host: String,
    /// See [`TableRoute::pools`].
    pub pools: Vec<WeightedPool>,
}

/// A pool and its share of a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightedPool {
    /// Index into [`RouteTable::pools`].
    pub pool: usize,
    /// Relative weight; 0 sends nothing.
    pub weight: u32,
}

/// The instances of one service of one release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Whose.
    pub env: EnvRef,
    /// Which service.
    pub service: ServiceName,
    /// Of which release.
    pub release: ReleaseNumber,
    /// Of which commit, for the access log.
    pub commit: CommitId,
    /// Of which image.
    pub image: Digest,
    /// The active check that the edge runs; only http and tcp.
    pub health: Option<Health>,
    /// Whether connections to them begin with a PROXY protocol header.
    #[serde(default, skip_serializing_if = "is_false")]
    pub proxy_protocol: bool,
    /// Where to.
    pub targets: Vec<Target>,
    /// What its instances speak.
    #[serde(default, skip_serializing_if = "Protocol::is_default")]
    pub protocol: Protocol,
}

/// One instance in the table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Target {
    /// Which.
    pub instance: InstanceId,
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_without_names_is_written_as_an_older_kiln_wrote_it() {
        // Its digest and the checksum of the edge's file depend on it.
        assert_eq!(serde_json::to_string(&RouteTable::default()).unwrap(), r#"{"routes":[],"pools":[]}"#);
    }
}
