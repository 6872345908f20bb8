//! The route table that desired state asks for, as one whole value.

use crate::draft::Draft;
use kiln_model::edge::EdgeStatus;
use kiln_model::network::internal_host;
use kiln_model::route::{InternalRoute, Pool, TableRoute, WeightedPool};
use kiln_model::{
    EnvRef, Environment, InstanceState, Mutation, OpKey, Release, RouteTable, ServiceName, ServiceSpec,
    Snapshot, Target,
};
use std::collections::BTreeSet;

/// The instances that a service keeps running: the environment's override or what the release asks for.
pub fn replicas(environment: &Environment, service: &ServiceSpec) -> u32 {
    environment.scale.get(&service.name).copied().unwrap_or(service.instances)
}

/// The table for all environments: every route of the serving release of each, to its validated instances, and the name
/// inside of each of its services that has a port.
pub fn table(snapshot: &Snapshot) -> RouteTable {
    table_around(snapshot, &BTreeSet::new())
}

/// The same, where `still` keep the part that they have in the last table.
pub(crate) fn table_around(snapshot: &Snapshot, still: &BTreeSet<EnvRef>) -> RouteTable {
    let mut table = RouteTable::default();
    let names: BTreeSet<&EnvRef> = snapshot.environments.keys().chain(still).collect();
    for name in names {
        if still.contains(name) {
            crate::still::keep(&mut table, &snapshot.route.1, name);
            continue;
        }
        let Some(environment) = snapshot.environments.get(name).filter(|e| !e.destroyed) else { continue };
        let Some(release) = environment.serving.and_then(|n| snapshot.release(&environment.env, n)) else {
            continue;
        };
        for rule in &release.spec.routes {
            let Some(index) = pool(&mut table, snapshot, environment, release, &rule.service) else {
                continue;
            };
            table.routes.push(TableRoute {
                host: rule.host.clone(),
                path: rule.path.clone(),
                pools: vec![WeightedPool { pool: index, weight: 1 }],
            });
        }
        // One that an older kiln made has no service address until its next rollout.
        let named =
            release.spec.services.values().filter(|s| s.port.is_some() && environment.network.is_given());
        for service in named {
            let Some(index) = pool(&mut table, snapshot, environment, release, &service.name) else {
                continue;
            };
            table.internal.push(InternalRoute {
                network: environment.network,
                host: internal_host(&service.name),
                pools: vec![WeightedPool { pool: index, weight: 1 }],
            });
        }
    }
    table
}

fn pool(
    table: &mut RouteTable,
    snapshot: &Snapshot,
    environment: &Environment,
    release: &Release,
    service: &ServiceName,
) -> Option<usize> {
    let found = table.pools.iter().position(|p| p.env == environment.env && &p.service == service);
    if found.is_some() {
        return found;
    }
    let spec = release.spec.services.get(service)?;
    table.pools.push(Pool {
        env: environment.env.clone(),
        service: service.clone(),
        release: release.number,
        commit: release.spec.commit.clone(),
        image: release.image_of(spec)?,
        health: spec.health.clone(),
        targets: targets(snapshot, environment, release, spec),
    });
    Some(table.pools.len() - 1)
}

/// Validated instances of the wanted slots; a tainted one stays until its replacement is validated.
fn targets(
    snapshot: &Snapshot,
    environment: &Environment,
    release: &Release,
    spec: &ServiceSpec,
) -> Vec<Target> {
    let Some(port) = spec.port else { return vec![] };
    let count = replicas(environment, spec);
    let own = || {
        snapshot.instances_of(&environment.env).filter(|i| {
            i.release == release.number && i.service == spec.name && i.slot < count && i.address.is_some()
        })
    };
    let mut targets: Vec<Target> = own()
        .filter(|i| {
            let replaced = || own().any(|other| other.slot == i.slot && other.state.is_validated());
            i.state.is_validated() || (i.state == InstanceState::Tainted && !replaced())
        })
        .filter_map(|i| Some(Target { instance: i.id.clone(), address: i.address?, port }))
        .collect();
    targets.sort();
    targets
}

/// Whether the edge serves names and its table has lost them: an edge that does not know names wrote it down, and this one
/// read it. The generation is the right one, so the edge would refuse the same one with other content.
fn lost_names(draft: &Draft<'_>) -> bool {
    let (generation, table) = &draft.snapshot.route;
    let lost = |edge: &EdgeStatus| {
        edge.generation == *generation
            && edge.internal.is_some()
            && edge.names == 0
            && !table.internal.is_empty()
    };
    draft.route_settled() && draft.observed.edge.as_ref().is_some_and(lost)
}

/// Proposes a new table if desired state asks for another, and wants it to be in use.
pub(crate) fn propose(draft: &mut Draft<'_>) {
    let (generation, current) = draft.snapshot.route.clone();
    let table = if draft.still.all() {
        RouteTable::clone(&current)
    } else {
        table_around(&draft.snapshot, draft.still.environments())
    };
    if *current != table || lost_names(draft) {
        draft.put(Mutation::PutRoute { generation: generation.next(), table: Box::new(table) });
    }
    let (generation, table) = draft.snapshot.route.clone();
    let at_edge = draft.observed.edge.as_ref().map(|edge| edge.generation);
    let behind = at_edge.is_none_or(|at_edge| at_edge < generation);
    if generation.0 > 0 && (!draft.route_settled() || (behind && at_edge.is_some())) {
        draft.wanted.insert(OpKey::SetRoute { generation, digest: table.digest() });
    }
}
