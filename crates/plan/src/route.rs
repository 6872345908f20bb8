//! The route table that desired state asks for, as one whole value.

use crate::draft::Draft;
use crate::mix::{self, Role};
use crate::still;
use kiln_model::edge::EdgeStatus;
use kiln_model::mix::BASELINE_SLOT;
use kiln_model::mutant::{Mutant, planted};
use kiln_model::network::internal_host;
use kiln_model::route::{InternalRoute, Pool, TABLE_FORM, TableRoute, TcpRoute, WeightedPool};
use kiln_model::{
    EnvRef, Environment, Instance, InstanceId, InstanceState, Mutation, OpKey, Release, RouteTable,
    ServiceName, ServiceSpec, Share, Snapshot, Target,
};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// The instances that a service keeps running: the environment's override, what its load asks for, or what the release
/// asks for.
pub fn replicas(environment: &Environment, service: &ServiceSpec) -> u32 {
    if let Some(count) = environment.scale.get(&service.name) {
        return *count;
    }
    // Another release may have another rule, or none.
    let auto = || service.autoscale.zip(environment.auto.get(&service.name).copied());
    auto().map_or(service.instances, |(rule, count)| count.clamp(rule.min, rule.max))
}

/// The table for all environments: every route of the serving release of each, to its validated instances and to those of
/// a candidate that shares its traffic, and the name inside of each of its services that has a port.
pub fn table(snapshot: &Snapshot) -> RouteTable {
    table_around(snapshot, &BTreeSet::new())
}

/// The same, where `still` keep the part that they have in the last table.
pub(crate) fn table_around(snapshot: &Snapshot, still: &BTreeSet<EnvRef>) -> RouteTable {
    let mut table = RouteTable::default();
    let names: BTreeSet<&EnvRef> = snapshot.environments.keys().chain(still).collect();
    for name in names {
        if still.contains(name) {
            still::keep(&mut table, snapshot, name);
            continue;
        }
        let Some(environment) = snapshot.environments.get(name).filter(|e| !e.destroyed) else { continue };
        let Some(release) = environment.serving.and_then(|n| snapshot.release(&environment.env, n)) else {
            continue;
        };
        let mut pools = Pools { snapshot, environment, release, known: BTreeMap::new() };
        let half = usize::from(planted(Mutant::HalfSwitch) && release.number.0 > 1);
        for rule in release.spec.routes.iter().skip(half) {
            let Some(pools) = pools.of(&mut table, &rule.service) else { continue };
            let policy = rule.policy.clone();
            match rule.tcp {
                Some(port) => table.tcp.push(TcpRoute { port, pools, policy }),
                None => {
                    let (host, path) = (rule.host.clone(), rule.path.clone());
                    table.routes.push(TableRoute { host, path, pools, https: rule.https, policy });
                }
            }
        }
        // One that an older kiln made has no service address until its next rollout.
        let named =
            release.spec.services.values().filter(|s| s.port.is_some() && environment.network.is_given());
        for service in named {
            let Some(pools) = pools.of(&mut table, &service.name) else { continue };
            let (network, host) = (environment.network, internal_host(&service.name));
            table.internal.push(InternalRoute { network, host, pools });
        }
    }
    table
}

/// The pools of one environment, each made when it is first asked for.
struct Pools<'a> {
    snapshot: &'a Snapshot,
    environment: &'a Environment,
    /// What serves.
    release: &'a Release,
    known: BTreeMap<ServiceName, Vec<WeightedPool>>,
}

impl Pools<'_> {
    fn of(&mut self, table: &mut RouteTable, service: &ServiceName) -> Option<Vec<WeightedPool>> {
        if let Some(known) = self.known.get(service) {
            return Some(known.clone());
        }
        let spec = self.release.spec.services.get(service)?;
        let count = |role| self.pool(spec, role).map_or(0, |pool| pool.targets.len());
        let mut weighted = vec![];
        for (role, weight) in mix::shares(self.snapshot, self.environment, spec, count) {
            table.pools.push(self.pool(spec, role)?);
            weighted.push(WeightedPool { pool: table.pools.len() - 1, weight });
        }
        self.known.insert(service.clone(), weighted.clone());
        Some(weighted)
    }

    fn pool(&self, serving: &ServiceSpec, role: Role) -> Option<Pool> {
        let (snapshot, environment) = (self.snapshot, self.environment);
        let release = match role {
            Role::Candidate => mix::candidate(snapshot, environment)?.1,
            _ => self.release,
        };
        let spec = release.spec.services.get(&serving.name)?;
        let slots = match role {
            Role::Baseline => mix::baseline_slots(snapshot, environment, release.number, spec),
            _ => 0..mix::slots(environment, release.number, spec),
        };
        Some(Pool {
            env: environment.env.clone(),
            service: spec.name.clone(),
            release: release.number,
            commit: release.spec.commit.clone(),
            image: release.image_of(spec)?,
            health: spec.health.clone(),
            proxy_protocol: spec.proxy_protocol,
            targets: targets(snapshot, environment, release, spec, &slots),
            protocol: spec.protocol,
        })
    }
}

/// Instances beyond the wanted slots that stay in use, one for each wanted slot that has nobody in use: a service that is
/// scaled down, or is being replaced, while one of its slots is being healed must not lose those who work. Tainted ones
/// come last: they are better than nobody.
pub(crate) fn stand_ins(
    snapshot: &Snapshot,
    environment: &Environment,
    release: &Release,
    spec: &ServiceSpec,
) -> BTreeSet<InstanceId> {
    if environment.serving != Some(release.number) {
        return BTreeSet::new();
    }
    let count = mix::slots(environment, release.number, spec);
    let is_tainted = |i: &Instance| i.state == InstanceState::Tainted;
    let is_own = |i: &Instance| {
        i.release == release.number
            && i.service == spec.name
            && (i.state.is_validated() || is_tainted(i))
            && i.slot < BASELINE_SLOT
    };
    let own = snapshot.instances_of(&environment.env).filter(|i| is_own(i));
    let (within, mut beyond): (Vec<_>, Vec<_>) = own.partition(|i| i.slot < count);
    beyond.sort_by_key(|i| (is_tainted(i), i.slot));
    let in_use: BTreeSet<u32> = within.iter().map(|i| i.slot).collect();
    let missing = (count as usize).saturating_sub(in_use.len());
    let missing = missing.max(lacks(snapshot, environment, release, spec, in_use.len()));
    beyond.into_iter().take(missing).map(|i| i.id.clone()).collect()
}

/// How many instances a rolling release lacks of those that it must keep in use, with `in_use` of the serving one: what its
/// candidate lost again after the serving release shrank for it.
fn lacks(
    snapshot: &Snapshot,
    environment: &Environment,
    release: &Release,
    spec: &ServiceSpec,
    in_use: usize,
) -> usize {
    let Some((mix, candidate)) = mix::candidate(snapshot, environment) else { return 0 };
    let (Share::Rolling { live: true, .. }, true) = (&mix.share, mix::is_shared(candidate, spec)) else {
        return 0;
    };
    let slots = mix::slots(environment, candidate.number, spec);
    let is_theirs = |i: &Instance| {
        i.release == candidate.number
            && i.service == spec.name
            && i.slot < slots
            && (i.state.is_validated() || i.state == InstanceState::Tainted)
    };
    let theirs = snapshot.instances_of(&environment.env).filter(|i| is_theirs(i)).count();
    let (keep, _) = mix::bounds(environment, release, candidate, &spec.name);
    (keep as usize).saturating_sub(in_use + theirs)
}

/// Validated instances of those slots, and of regular ones [`stand_ins`]; a tainted one stays until its replacement is
/// validated.
fn targets(
    snapshot: &Snapshot,
    environment: &Environment,
    release: &Release,
    spec: &ServiceSpec,
    slots: &Range<u32>,
) -> Vec<Target> {
    let Some(port) = spec.port else { return vec![] };
    let is_regular = slots.start == 0;
    let stand_ins =
        if is_regular { stand_ins(snapshot, environment, release, spec) } else { BTreeSet::new() };
    let own = || {
        snapshot.instances_of(&release.env).filter(|i| {
            let wanted = slots.contains(&i.slot) || stand_ins.contains(&i.id);
            i.release == release.number && i.service == spec.name && wanted && i.address.is_some()
        })
    };
    let mut targets: Vec<Target> = own()
        .filter(|i| {
            let replaced = || own().any(|other| other.slot == i.slot && other.state.is_validated());
            let early = planted(Mutant::SwitchUnvalidated) && i.state == InstanceState::Probing;
            early || i.state.is_validated() || (i.state == InstanceState::Tainted && !replaced())
        })
        .filter_map(|i| Some(Target { instance: i.id.clone(), address: i.address?, port }))
        .collect();
    targets.sort();
    targets
}

/// Whether the edge knows parts of the table that its own has lost: an edge that does not know them wrote it down, and this one
/// read it. The generation is the right one, so the edge would refuse the same one with other content.
fn lost_names(draft: &Draft<'_>) -> bool {
    let (generation, table) = &draft.snapshot.route;
    let digest = || draft.snapshot.route_digest.unwrap_or_else(|| table.digest());
    let lost = |edge: &EdgeStatus| {
        let names = edge.internal.is_some() && edge.names == 0 && !table.internal.is_empty();
        let other = || edge.digest.is_some_and(|kept| kept != digest());
        edge.generation == *generation && (names || (edge.form >= TABLE_FORM && other()))
    };
    draft.route_settled() && draft.observed.edge.as_ref().is_some_and(lost)
}

/// Proposes a new table if desired state asks for another, and wants it to be in use.
pub(crate) fn propose(draft: &mut Draft<'_>) {
    // What is at rest is in the table as it should be.
    if !draft.restless.is_empty() || lost_names(draft) {
        let (generation, current) = draft.snapshot.route.clone();
        let table = if draft.still.all() {
            still::last_table(&draft.snapshot)
        } else {
            table_around(&draft.snapshot, draft.still.environments())
        };
        if *current != table || lost_names(draft) {
            draft.put(Mutation::PutRoute { generation: generation.next(), table: Box::new(table) });
        }
    }
    let generation = draft.snapshot.route.0;
    let at_edge = draft.observed.edge.as_ref().map(|edge| edge.generation);
    let behind = at_edge.is_none_or(|at_edge| at_edge < generation) && !planted(Mutant::EdgeForgotten);
    if generation.0 > 0 && (!draft.route_settled() || (behind && at_edge.is_some())) {
        let digest = draft.snapshot.route_digest.unwrap_or_else(|| draft.snapshot.route.1.digest());
        draft.wanted.insert(OpKey::SetRoute { generation, digest });
    }
}
