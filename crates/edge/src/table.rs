//! The routing structure that the data path reads: compiled once from a [`RouteTable`], immutable, swapped whole.

use crate::admission::Line;
use crate::inside::Entrance;
use crate::limits::{METERS_DEPARTED_MAX, TABLE_POOLS_MAX, TABLE_ROUTES_MAX, TABLE_TARGETS_MAX};
use crate::meter::{Meter, MeterKey};
use crate::rate::Limiter;
use crate::target::{Cells, TargetKey, TargetState};
use http::HeaderValue;
use kiln_model::edge::{RouteStatus, Tally};
use kiln_model::policy::Rate;
use kiln_model::route::{Pool, WeightedPool};
use kiln_model::{
    CommitId, Digest, EnvRef, Generation, Health, Https, NetworkNumber, Protocol, ReleaseNumber, RoutePolicy,
    RouteTable, ServiceName,
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
    pub(crate) release: ReleaseNumber,
    pub(crate) targets: Vec<Arc<TargetState>>,
    pub(crate) protocol: Protocol,
    /// Those who wait for one of them.
    pub(crate) line: Arc<Line>,
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
    pub(crate) https: Secure,
    pub(crate) policy: RoutePolicy,
    pub(crate) limiter: Option<Arc<Limiter>>,
    meters: Vec<Arc<Meter>>,
}

/// What a route says of HTTPS, ready for use.
#[derive(Debug, Clone, Default)]
pub(crate) struct Secure {
    /// Plain HTTP is sent there.
    pub(crate) only: bool,
    /// The value of `Strict-Transport-Security`.
    pub(crate) hsts: Option<HeaderValue>,
}

impl From<Https> for Secure {
    fn from(https: Https) -> Self {
        let hsts = https.hsts.and_then(|hsts| HeaderValue::from_str(&hsts.to_string()).ok());
        Self { only: https.only, hsts }
    }
}

impl Route {
    /// The counts of this route and the pool's release.
    pub(crate) fn meter(&self, pool: &Upstream) -> Option<&Arc<Meter>> {
        self.meters.iter().find(|meter| meter.key.release == pool.release)
    }

    /// Whether more than one pool has a share.
    pub(crate) fn is_shared(&self) -> bool {
        self.pools.len() > 1
    }

    /// The sum of the weights.
    fn total(&self) -> u64 {
        self.pools.last().map_or(0, |(total, _)| *total)
    }
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
    /// The route has no pool with a weight; the pool is its first one, if it has any.
    Nobody(Option<&'a Upstream>, &'a Route),
    /// There is no route at all: the edge has no table yet, or an empty one.
    Nothing,
    /// No route matches.
    NoRoute,
}

impl Found<'_> {
    /// What the route says of HTTPS, if there is one.
    pub(crate) fn https(&self) -> Option<&Secure> {
        match self {
            Self::Pool(_, route) | Self::Nobody(_, route) => Some(&route.https),
            Self::Nothing | Self::NoRoute => None,
        }
    }
}

impl Compiled {
    /// How many names there are inside.
    pub(crate) fn names(&self) -> usize {
        self.inside.values().map(HashMap::len).sum()
    }

    /// The pool for a request; `place` chooses among weighted ones: any number, or for a sticky client, of the route's total.
    pub(crate) fn find(
        &self,
        entrance: Entrance,
        host: &str,
        path: &str,
        place: impl FnOnce(&Route, u64) -> u64,
    ) -> Found<'_> {
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
        self.pool(route, place(route, route.total()))
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
        let total = route.total();
        if total == 0 {
            return Found::Nobody(route.first.and_then(|n| self.pools.get(n)), route);
        }
        let chosen = route.pools.iter().find(|(sum, _)| random % total < *sum).map(|(_, index)| *index);
        let chosen = chosen.and_then(|n| self.pools.get(n));
        chosen.map_or(Found::Nobody(None, route), |pool| Found::Pool(pool, route))
    }
}

fn longest<'a>(routes: &'a [Route], path: &str) -> Option<&'a Route> {
    routes.iter().find(|r| {
        path.strip_prefix(r.path.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            || (r.path.is_empty())
    })
}

/// What a route of the table says.
struct Said<'a> {
    /// What metrics call it.
    name: String,
    path: &'a str,
    shares: &'a [WeightedPool],
    https: Https,
    policy: &'a RoutePolicy,
}

fn ready(registry: &mut Registry, pools: &[Upstream], said: Said<'_>) -> Route {
    // The newest first: a sticky client's place means the same release however many shares there are.
    let mut shares: Vec<&WeightedPool> = said.shares.iter().collect();
    shares.sort_by_key(|p| std::cmp::Reverse(pools[p.pool].release));
    let weighted = || shares.iter().filter(|p| p.weight > 0);
    let any_full = weighted().any(|p| !pools[p.pool].targets.is_empty());
    let mut sum = 0;
    let cumulative = weighted().filter(|p| !any_full || !pools[p.pool].targets.is_empty()).map(|p| {
        sum += u64::from(p.weight);
        (sum, p.pool)
    });
    let (cumulative, first) = (cumulative.collect(), said.shares.first().map(|p| p.pool));
    let limiter = said.policy.rate.map(|rate| registry.limiter(&said.name, rate));
    let mut meters: Vec<Arc<Meter>> = vec![];
    for share in said.shares {
        let pool = &pools[share.pool];
        if meters.iter().all(|meter| meter.key.release != pool.release) {
            meters.push(registry.meter(pool, &said.name));
        }
    }
    let (path, policy) = (trim(said.path).to_owned(), said.policy.clone());
    Route { path, pools: cumulative, first, https: said.https.into(), policy, limiter, meters }
}

/// Everything that outlives a table: targets that were ever used, and counts of those that are gone.
#[derive(Debug)]
pub(crate) struct Registry {
    n_threads: usize,
    next_id: u64,
    targets: HashMap<TargetKey, Arc<TargetState>>,
    lost: BTreeMap<EnvRef, Arc<Cells>>,
    folded: BTreeMap<EnvRef, Tally>,
    lines: BTreeMap<(EnvRef, ServiceName), Arc<Line>>,
    limiters: HashMap<String, Arc<Limiter>>,
    /// Each with whether it is in the table.
    meters: BTreeMap<MeterKey, (Arc<Meter>, bool)>,
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
            lines: BTreeMap::new(),
            limiters: HashMap::new(),
            meters: BTreeMap::new(),
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
            let name = format!("{}{}", route.host.as_deref().unwrap_or("*"), route.path);
            let (path, shares, policy) = (&*route.path, &*route.pools, &route.policy);
            let ready = ready(self, &pools, Said { name, path, shares, https: route.https, policy });
            match &route.host {
                Some(host) => compiled.by_host.entry(host.clone()).or_default().push(ready),
                None => compiled.any_host.push(ready),
            }
        }
        for routes in compiled.by_host.values_mut().chain([&mut compiled.any_host]) {
            routes.sort_by_key(|route| std::cmp::Reverse(route.path.len()));
        }
        for route in &table.internal {
            // Between services there is no TLS, so nothing is asked of it.
            let (name, https, policy) = (route.host.clone(), Https::default(), &RoutePolicy::default());
            let ready = ready(self, &pools, Said { name, path: "/", shares: &route.pools, https, policy });
            compiled.inside.entry(route.network).or_default().insert(route.host.clone(), ready);
        }
        for route in &table.tcp {
            let name = format!("tcp:{}", route.port);
            let (shares, https, policy) = (&*route.pools, Https::default(), &route.policy);
            let said = Said { name, path: "/", shares, https, policy };
            compiled.tcp.insert(route.port, ready(self, &pools, said));
        }
        self.meters.values_mut().for_each(|(_, in_table)| *in_table = false);
        let routes =
            compiled.by_host.values().flatten().chain(&compiled.any_host).chain(compiled.tcp.values());
        for meter in routes.chain(compiled.inside.values().flat_map(HashMap::values)).flat_map(|r| &r.meters)
        {
            if let Some((_, in_table)) = self.meters.get_mut(&meter.key) {
                *in_table = true;
            }
        }
        self.forget_meters();
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
                    protocol: pool.protocol,
                };
                self.target(key, &pool.commit)
            })
            .collect();
        Upstream {
            env: pool.env.clone(),
            service: pool.service.clone(),
            health: pool.health.clone(),
            proxy_protocol: pool.proxy_protocol,
            release: pool.release,
            line: self.lines.entry((pool.env.clone(), pool.service.clone())).or_default().clone(),
            targets,
            protocol: pool.protocol,
            lost,
        }
    }

    /// The buckets of a route; another rule begins anew.
    fn limiter(&mut self, route: &str, rate: Rate) -> Arc<Limiter> {
        let known = self.limiters.get(route).filter(|known| known.rate() == rate).cloned();
        let limiter = known.unwrap_or_else(|| Arc::new(Limiter::new(rate)));
        self.limiters.retain(|_, limiter| Arc::strong_count(limiter) > 1);
        self.limiters.insert(route.to_owned(), limiter.clone());
        limiter
    }

    fn meter(&mut self, pool: &Upstream, route: &str) -> Arc<Meter> {
        let (env, service, release) = (pool.env.clone(), pool.service.clone(), pool.release);
        let key = MeterKey { env, route: route.to_owned(), service, release };
        let n_threads = self.n_threads;
        let new = || (Arc::new(Meter::new(key.clone(), n_threads)), true);
        self.meters.entry(key.clone()).or_insert_with(new).0.clone()
    }

    /// Drops the oldest releases' counts that are not in the table, beyond a bound.
    fn forget_meters(&mut self) {
        let mut gone: Vec<&MeterKey> =
            self.meters.iter().filter(|(_, (_, used))| !used).map(|(k, _)| k).collect();
        gone.sort_by_key(|key| key.release);
        let surplus = gone.len().saturating_sub(METERS_DEPARTED_MAX);
        let keys: Vec<MeterKey> = gone[..surplus].iter().map(|key| (*key).clone()).collect();
        keys.iter().for_each(|key| drop(self.meters.remove(key)));
    }

    /// The counts of routes and releases.
    pub(crate) fn routes(&self) -> Vec<RouteStatus> {
        self.meters.values().map(|(meter, in_table)| meter.report(*in_table)).collect()
    }

    /// Requests that wait for an instance.
    pub(crate) fn waiting(&self) -> u64 {
        self.lines.values().map(|line| u64::from(line.waiting())).sum()
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
