//! What a [`crate::Snapshot`] knows by other keys than its rows have, so that a question about one environment costs what
//! that environment has, not what exists. All of it follows from the rows.

use crate::ids::{EnvRef, InstanceId, RolloutId};
use crate::instance::Instance;
use crate::rollout::Rollout;
use crate::route::RouteTable;
use imbl::{OrdMap, OrdSet};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Cheap to clone, as what it belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Index {
    instances: OrdMap<EnvRef, OrdMap<InstanceId, Arc<Instance>>>,
    /// Rollouts that have not ended.
    active: OrdMap<EnvRef, OrdSet<RolloutId>>,
    routed: Arc<Routed>,
}

/// Who is in the last proposed table.
#[derive(Debug, Default, PartialEq, Eq)]
struct Routed {
    instances: BTreeSet<InstanceId>,
    environments: BTreeSet<EnvRef>,
}

impl Index {
    pub(crate) fn put_instance(&mut self, instance: Arc<Instance>) {
        self.instances.entry(instance.env.clone()).or_default().insert(instance.id.clone(), instance);
    }

    pub(crate) fn remove_instance(&mut self, instance: &Instance) {
        let Some(own) = self.instances.get_mut(&instance.env) else { return };
        own.remove(&instance.id);
        if own.is_empty() {
            self.instances.remove(&instance.env);
        }
    }

    pub(crate) fn put_rollout(&mut self, rollout: &Rollout) {
        if !rollout.phase.is_end() {
            self.active.entry(rollout.env.clone()).or_default().insert(rollout.id);
            return;
        }
        let Some(own) = self.active.get_mut(&rollout.env) else { return };
        own.remove(&rollout.id);
        if own.is_empty() {
            self.active.remove(&rollout.env);
        }
    }

    pub(crate) fn put_route(&mut self, table: &RouteTable) {
        let targets = table.pools.iter().flat_map(|pool| pool.targets.iter().map(|t| t.instance.clone()));
        let environments = table.pools.iter().map(|pool| pool.env.clone());
        self.routed = Arc::new(Routed { instances: targets.collect(), environments: environments.collect() });
    }

    pub(crate) fn instances(&self, env: &EnvRef) -> impl DoubleEndedIterator<Item = &Arc<Instance>> {
        self.instances.get(env).into_iter().flat_map(OrdMap::values)
    }

    pub(crate) fn n_instances(&self, env: &EnvRef) -> usize {
        self.instances.get(env).map_or(0, OrdMap::len)
    }

    pub(crate) fn active(&self, env: &EnvRef) -> impl DoubleEndedIterator<Item = &RolloutId> {
        self.active.get(env).into_iter().flatten()
    }

    pub(crate) fn is_routed(&self, instance: &InstanceId) -> bool {
        self.routed.instances.contains(instance)
    }

    pub(crate) fn has_pools(&self, env: &EnvRef) -> bool {
        self.routed.environments.contains(env)
    }
}
