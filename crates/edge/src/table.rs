//! The routing structure that the data path reads: compiled once from a [`RouteTable`], immutable, swapped whole.

use crate::inside::Entrance;
use crate::limits::{TABLE_POOLS_MAX, TABLE_ROUTES_MAX, TABLE_TARGETS_MAX};
use crate::target::{Cells, TargetKey, TargetState};
use kiln_model::edge::Tally;
use kiln_model::route::{Pool, WeightedPool};
use kiln_model::{
    CommitId, Digest, EnvRef, Generation, Health, NetworkNumber, RoutePolicy, RouteTable, ServiceName,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

/// Why a table is not usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Above a limit.
    #[error("the table has {found} {what}, at most {limit} are allowed")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How many.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// Two routes for the same requests.
    #[error("the route `{host}{path}` is there twice")]
    Duplicate {
        /// Host, `*` for any.
        host: String,
        /// Path.
        path: String,
    },
    /// Two raw TCP routes of one port.
    #[error("port {port} is of {one}, and of {other} as well")]
    Port {
        /// The port.
        port: u16,
        /// Whose it is.
        one: String,
        /// Who wants it too.
        other: String,
    },
    /// A route names no pool, or one that is not there.
    #[error("the route `{host}{path}` leads to pool {pool}, and there are {n_pools}")]
    Dangling {
        /// Host, `*` for any.
        host: String,
        /// Path.
        path: String,
        /// The index.
        pool: usize,
        /// Pools in the table.
        n_pools: usize,
    },
    /// A path that does not start with `/`, or a host that is empty, has a port or upper-case letters.
    #[error("`{text}` is not a legal {what} of a route")]
    Text {
        /// Host or path.
        what: &'static str,
        /// The text.
        text: String,
    },
    /// The same instance twice in one pool.
    #[error("the instance `{instance}` is in a pool twice")]
    Instance {
        /// Which.
        instance: String,
    },
}

/// Refuses what cannot be routed.
pub(crate) fn validate(table: &RouteTable) -> Result<(), TableError> {
    let limit = |what, found, limit| match found > limit {
        true => Err(TableError::TooLarge { what, found, limit }),
        false => Ok(()),
    };
    limit("routes", table.routes.len() + table.internal.len() + table.tcp.len(), TABLE_ROUTES_MAX)?;
    limit("pools", table.pools.len(), TABLE_POOLS_MAX)?;
    limit("targets", table.pools.iter().map(|p| p.targets.len()).sum(), TABLE_TARGETS_MAX)?;
    let mut seen = HashSet::new();
    for route in &table.routes {
        let host = || route.host.clone().unwrap_or_else(|| "*".to_owned());
        if !route.path.starts_with('/') {
            return Err(TableError::Text { what: "path", text: route.path.clone() });
        }
        if !route.host.as_ref().is_none_or(|host| is_host(host)) {
            return Err(TableError::Text { what: "host", text: host() });
        }
        if !seen.insert((&route.host, trim(&route.path))) {
            return Err(TableError::Duplicate { host: host(), path: route.path.clone() });
        }
        dangling(table, &route.pools, host, &route.path)?;
    }
    let mut seen = HashSet::new();
    for route in &table.internal {
        if !is_host(&route.host) {
            return Err(TableError::Text { what: "host", text: route.host.clone() });
        }
        if !seen.insert((route.network, &route.host)) {
            let host = format!("{} of network {}", route.host, route.network);
            return Err(TableError::Duplicate { host, path: "/".to_owned() });
        }
        dangling(table, &route.pools, || route.host.clone(), "/")?;
    }
    let mut seen = HashMap::new();
    for route in &table.tcp {
        dangling(table, &route.pools, || format!("tcp:{}", route.port), "")?;
        if let Some(one) = seen.insert(route.port, owner(table, &route.pools)) {
            return Err(TableError::Port { port: route.port, one, other: owner(table, &route.pools) });
        }
        if route.port == 0 {
            return Err(TableError::Text { what: "port", text: route.port.to_string() });
        }
    }
    for pool in &table.pools {
        let mut seen = HashSet::new();
        if let Some(twice) = pool.targets.iter().find(|t| !seen.insert(&t.instance)) {
            return Err(TableError::Instance { instance: twice.instance.to_string() });
        }
    }
    Ok(())
}

fn owner(table: &RouteTable, pools: &[WeightedPool]) -> String {
    let pool = pools.first().and_then(|p| table.pools.get(p.pool));
    pool.map_or_else(|| "nobody".to_owned(), |p| format!("service `{}` of `{}`", p.service, p.env))
}

fn is_host(host: &str) -> bool {
    !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase() && b != b'/')
}

fn dangling(
    table: &RouteTable,
    pools: &[WeightedPool],
    host: impl Fn() -> String,
    path: &str,
) -> Result<(), TableError> {
    let n_pools = table.pools.len();
    match pools.iter().find(|p| p.pool >= n_pools) {
        Some(wrong) => {
            Err(TableError::Dangling { host: host(), path: path.to_owned(), pool: wrong.pool, n_pools })
        }
        None => Ok(()),
    }
}

fn trim(path: &str) -> &str {
    path.trim_end_matches('/')
}

/// A pool, ready for use.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) env: EnvRef,
    pub(crate) service: ServiceName,
    pub(crate) health: Option<Health>,
    pub(crate) proxy_protocol: bool,
    pub(crate) targets: Vec<Arc<TargetState>>,
    /// Counts of the requests that this pool got and had no instance for; one per environment.
    pub(crate) lost: Arc<Cells>,
}

/// Where a route leads.
#[derive(Debug)]
pub(crate) struct Route {
    path: String,
    /// Pools with the sum of the weights up to and with them; empty ones are left out while another has instances.
    pools: Vec<(u64, usize)>,
    /// The first pool, whatever its weight: it tells whose the route is.
    first: Option<usize>,
    pub(crate) policy: RoutePolicy,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Compiled {
    pub(crate) generation: Generation,
    pub(crate) digest: Option<Digest>,
    pub(crate) pools: Vec<Upstream>,
    by_host: HashMap<String, Vec<Route>>,
    any_host: Vec<Route>,
    /// The names inside, by environment.
    inside: HashMap<NetworkNumber, HashMap<String, Route>>,
    /// Raw TCP routes, by port.
    tcp: HashMap<u16, Route>,
    /// Identities of the targets, for the pools of connections.
    pub(crate) ids: HashSet<u64>,
}

/// What a lookup found.
pub(crate) enum Found<'a> {
    /// This pool of this route; it may be empty.
    Pool(&'a Upstream, &'a Route),
    /// The route has no pool with a weight; this is its first one, if it has any.
    Nobody(Option<&'a Upstream>),
    /// There is no route at all: the edge has no table yet, or an empty one.
    Nothing,
    /// No route matches.
    NoRoute,
}

impl Compiled {
    /// How many names there are inside.
    pub(crate) fn names(&self) -> usize {
        self.inside.values().map(HashMap::len).sum()
    }

    /// The pool for a request; `random` chooses among weighted ones.
    pub(crate) fn find(&self, entrance: Entrance, host: &str, path: &str, random: u64) -> Found<'_> {
        let (route, empty) = match entrance {
            Entrance::Outside => {
                let exact = self.by_host.get(host).and_then(|routes| longest(routes, path));
                let empty = self.by_host.is_empty() && self.any_host.is_empty();
                (exact.or_else(|| longest(&self.any_host, path)), empty)
            }
            Entrance::Inside(network) => {
                let named = self.inside.get(&network).and_then(|names| names.get(host));
                (named, self.inside.is_empty())
            }
        };
        let Some(route) = route else {
            return if empty { Found::Nothing } else { Found::NoRoute };
        };
        self.pool(route, random)
    }

    /// The pool for a connection to the port of a raw TCP route.
    pub(crate) fn find_port(&self, port: u16, random: u64) -> Found<'_> {
        self.tcp.get(&port).map_or(Found::NoRoute, |route| self.pool(route, random))
    }

    /// The ports of raw TCP routes.
    pub(crate) fn ports(&self) -> BTreeSet<u16> {
        self.tcp.keys().copied().collect()
    }

    fn pool<'a>(&'a self, route: &'a Route, random: u64) -> Found<'a> {
        let Some((total, _)) = route.pools.last() else {
            return Found::Nobody(route.first.and_then(|n| self.pools.get(n)));
        };
        let chosen = route.pools.iter().find(|(sum, _)| random % total < *sum).map(|(_, index)| *index);
        let chosen = chosen.and_then(|n| self.pools.get(n));
        chosen.map_or(Found::Nobody(None), |pool| Found::Pool(pool, route))
    }
}

fn longest<'a>(routes: &'a [Route], path: &str) -> Option<&'a Route> {
    routes.iter().find(|r| {
        path.strip_prefix(r.path.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            || (r.path.is_empty())
    })
}

fn ready(pools: &[Upstream], path: &str, shares: &[WeightedPool], policy: &RoutePolicy) -> Route {
    let weighted = || shares.iter().filter(|p| p.weight > 0);
    let any_full = weighted().any(|p| !pools[p.pool].targets.is_empty());
    let mut sum = 0;
    let cumulative = weighted().filter(|p| !any_full || !pools[p.pool].targets.is_empty()).map(|p| {
        sum += u64::from(p.weight);
        (sum, p.pool)
    });
    let (cumulative, first) = (cumulative.collect(), shares.first().map(|p| p.pool));
    Route { path: trim(path).to_owned(), pools: cumulative, first, policy: policy.clone() }
}

/// Everything that outlives a table: targets that were ever used, and counts of those that are gone.
#[derive(Debug)]
pub(crate) struct Registry {
    n_threads: usize,
    next_id: u64,
    targets: HashMap<TargetKey, Arc<TargetState>>,
    lost: BTreeMap<EnvRef, Arc<Cells>>,
    folded: BTreeMap<EnvRef, Tally>,
    /// Requests that no environment is known for.
    pub(crate) unrouted: Arc<Cells>,
}

impl Registry {
    pub(crate) fn new(n_threads: usize) -> Self {
        Self {
            n_threads,
            next_id: 0,
            targets: HashMap::new(),
            lost: BTreeMap::new(),
            folded: BTreeMap::new(),
            unrouted: Arc::new(Cells::new(n_threads)),
        }
    }

    /// Compiles a validated table.
    pub(crate) fn compile(
        &mut self,
        generation: Generation,
        digest: Option<Digest>,
        table: &RouteTable,
    ) -> Compiled {
        let pools: Vec<Upstream> = table.pools.iter().map(|pool| self.upstream(pool)).collect();
        let mut compiled = Compiled { generation, digest, ..Compiled::default() };
        for route in &table.routes {
            let ready = ready(&pools, &route.path, &route.pools, &route.policy);
            match &route.host {
                Some(host) => compiled.by_host.entry(host.clone()).or_default().push(ready),
                None => compiled.any_host.push(ready),
            }
        }
        for routes in compiled.by_host.values_mut().chain([&mut compiled.any_host]) {
            routes.sort_by_key(|route| std::cmp::Reverse(route.path.len()));
        }
        for route in &table.internal {
            let ready = ready(&pools, "/", &route.pools, &RoutePolicy::default());
            compiled.inside.entry(route.network).or_default().insert(route.host.clone(), ready);
        }
        for route in &table.tcp {
            compiled.tcp.insert(route.port, ready(&pools, "/", &route.pools, &route.policy));
        }
        compiled.ids = pools.iter().flat_map(|p| &p.targets).map(|t| t.id).collect();
        compiled.pools = pools;
        compiled
    }

    fn upstream(&mut self, pool: &Pool) -> Upstream {
        let n_threads = self.n_threads;
        let lost =
            self.lost.entry(pool.env.clone()).or_insert_with(|| Arc::new(Cells::new(n_threads))).clone();
        let targets = pool
            .targets
            .iter()
            .map(|t| {
                let key = TargetKey {
                    env: pool.env.clone(),
                    service: pool.service.clone(),
                    release: pool.release,
                    instance: t.instance.clone(),
                    address: SocketAddr::new(t.address, t.port),
                };
                self.target(key, &pool.commit)
            })
            .collect();
        Upstream {
            env: pool.env.clone(),
            service: pool.service.clone(),
            health: pool.health.clone(),
            proxy_protocol: pool.proxy_protocol,
            targets,
            lost,
        }
    }

    fn target(&mut self, key: TargetKey, commit: &CommitId) -> Arc<TargetState> {
        if let Some(known) = self.targets.get(&key) {
            return known.clone();
        }
        self.next_id += 1;
        let new = Arc::new(TargetState::new(self.next_id, key.clone(), commit, self.n_threads));
        self.targets.insert(key, new.clone());
        new
    }

    /// Every target with whether it is in `table`, in order of their names.
    pub(crate) fn targets(&self, table: &Compiled) -> Vec<(Arc<TargetState>, bool)> {
        let mut all: Vec<_> = self.targets.values().map(|t| (t.clone(), table.ids.contains(&t.id))).collect();
        all.sort_by(|a, b| a.0.key.cmp(&b.0.key));
        all
    }

    /// Adds the oldest departed targets to their environment's sum, beyond `keep` of them. A target that anything
    /// but this registry still holds is left alone: its counts may yet change.
    pub(crate) fn fold(&mut self, table: &Compiled, keep: usize) {
        let mut gone: Vec<&Arc<TargetState>> = self
            .targets
            .values()
            .filter(|t| !table.ids.contains(&t.id) && Arc::strong_count(t) == 1)
            .collect();
        gone.sort_by_key(|t| t.id);
        let surplus = gone.len().saturating_sub(keep);
        let keys: Vec<TargetKey> = gone[..surplus].iter().map(|t| t.key.clone()).collect();
        for key in keys {
            if let Some(target) = self.targets.remove(&key) {
                let sum = self.folded.entry(key.env).or_default();
                *sum = sum.plus(target.cells.tally());
            }
        }
    }

    /// Counts that belong to no reported target.
    pub(crate) fn unrouted(&self) -> Vec<(Option<EnvRef>, Tally)> {
        let mut sums: BTreeMap<Option<EnvRef>, Tally> = BTreeMap::new();
        sums.insert(None, self.unrouted.tally());
        for (env, tally) in
            self.lost.iter().map(|(e, c)| (e, c.tally())).chain(self.folded.iter().map(|(e, t)| (e, *t)))
        {
            let sum = sums.entry(Some(env.clone())).or_default();
            *sum = sum.plus(tally);
        }
        sums.into_iter().filter(|(_, tally)| *tally != Tally::default()).collect()
    }
}
