//! The route table: one whole, immutable value with one generation. The edge swaps it, nobody patches it.

use crate::digest::{CommitId, Digest};
use crate::ids::{EnvRef, InstanceId, ReleaseNumber, ServiceName, number};
use crate::network::NetworkNumber;
use crate::service::Health;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

number!(
    /// The number of a route table. Higher wins.
    Generation
);

/// A route of a release: which requests go to which service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RouteRule {
    /// Lower-case host name without port; none matches any host.
    pub host: Option<String>,
    /// Path prefix, matched on segment boundaries and not stripped; `/` matches all.
    pub path: String,
    /// The service.
    pub service: ServiceName,
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
    /// Where to.
    pub targets: Vec<Target>,
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
