//! What is left as it is: environments that somebody paused, and those that are held because they cannot be read or
//! planned. Both keep their part of the route table and get no effects; a held one is not even looked at.
//!
//! A table that was proposed before is carried to its acknowledgement whatever is paused: until then both releases of a
//! switch are there, and an edge that lost its table has nothing else to serve.

use crate::observed::Observed;
use kiln_model::route::{InternalRoute, Pool, TableRoute, TcpRoute, WeightedPool};
use kiln_model::{Damaged, EnvRef, Hold, InstanceId, InstanceState, OpKey, RouteTable, Snapshot};
use std::collections::{BTreeMap, BTreeSet};

/// Environments that are held, and why: what the store could not read, and what control could not plan.
pub fn held(snapshot: &Snapshot, observed: &Observed) -> BTreeMap<EnvRef, Hold> {
    let mut held = observed.held.clone();
    for row in &snapshot.damaged {
        let reason = format!("{} cannot be read: {}", row.what, row.error);
        let environments: Vec<&EnvRef> = match &row.env {
            Some(env) => vec![env],
            None => snapshot.environments.keys().collect(),
        };
        for env in environments {
            held.entry(env.clone()).or_insert(Hold { since: observed.started, reason: reason.clone() });
        }
    }
    held
}

/// Who stays as it is in this pass.
#[derive(Debug, Default)]
pub(crate) struct Still {
    held: BTreeSet<EnvRef>,
    /// Paused or held.
    still: BTreeSet<EnvRef>,
    /// Nothing may be proposed at all.
    all: bool,
}

impl Still {
    pub(crate) fn of(snapshot: &Snapshot, observed: &Observed) -> Self {
        let held: BTreeSet<EnvRef> = held(snapshot, observed).into_keys().collect();
        let paused = snapshot.environments.keys().filter(|env| snapshot.pause_of(env).is_some());
        let still = held.iter().chain(paused).cloned().collect();
        let all = snapshot.paused.is_some() || snapshot.damaged.iter().any(|row| row.env.is_none());
        Self { held, still, all }
    }

    /// Whether nothing is concluded of it, because that may be what fails.
    pub(crate) fn is_held(&self, env: &EnvRef) -> bool {
        self.held.contains(env)
    }

    /// Whether it stays as it is.
    pub(crate) fn is_still(&self, env: &EnvRef) -> bool {
        self.all || self.still.contains(env)
    }

    /// Whether every table stays as it is.
    pub(crate) fn all(&self) -> bool {
        self.all
    }

    /// Those that stay as they are, by name.
    pub(crate) fn environments(&self) -> &BTreeSet<EnvRef> {
        &self.still
    }

    /// Whether an effect may begin. An instance without a readable record is nobody's leftover.
    pub(crate) fn allows(&self, snapshot: &Snapshot, key: &OpKey) -> bool {
        let damaged = |id| {
            snapshot.damaged.iter().any(|row: &Damaged| row.instance.as_ref().is_none_or(|own| own == id))
        };
        match (snapshot.env_of(key), key) {
            (_, OpKey::SetRoute { .. }) => true,
            (Some(env), _) => !self.is_still(env),
            (None, OpKey::Ensure { instance } | OpKey::Absent { instance }) => {
                !self.all && (snapshot.damaged.is_empty() || !damaged(instance))
            }
            (None, OpKey::Bake { .. }) => false,
        }
    }
}

/// The last table without instances that ended with their host: their addresses may be somebody else's by now.
pub(crate) fn last_table(snapshot: &Snapshot) -> RouteTable {
    let mut table = RouteTable::clone(&snapshot.route.1);
    table.pools.iter_mut().for_each(|pool| retain(snapshot, pool));
    table
}

fn retain(snapshot: &Snapshot, pool: &mut Pool) {
    let state = |id: &InstanceId| snapshot.instances.get(id).map(|instance| instance.state);
    pool.targets.retain(|target| state(&target.instance) != Some(InstanceState::Retiring));
}

/// Takes over the part of an environment from the last table, see [`last_table`].
pub(crate) fn keep(table: &mut RouteTable, snapshot: &Snapshot, env: &EnvRef) {
    let last = &snapshot.route.1;
    let mut numbers = BTreeMap::new();
    for (old, pool) in last.pools.iter().enumerate().filter(|(_, pool)| &pool.env == env) {
        numbers.insert(old, table.pools.len());
        let mut pool = pool.clone();
        retain(snapshot, &mut pool);
        table.pools.push(pool);
    }
    let renumbered = |pools: &[WeightedPool]| -> Option<Vec<WeightedPool>> {
        pools.iter().map(|p| Some(WeightedPool { pool: *numbers.get(&p.pool)?, ..p.clone() })).collect()
    };
    for route in &last.routes {
        table.routes.extend(renumbered(&route.pools).map(|pools| TableRoute { pools, ..route.clone() }));
    }
    for route in &last.tcp {
        table.tcp.extend(renumbered(&route.pools).map(|pools| TcpRoute { pools, ..route.clone() }));
    }
    for route in &last.internal {
        table.internal.extend(renumbered(&route.pools).map(|pools| InternalRoute { pools, ..route.clone() }));
    }
}
