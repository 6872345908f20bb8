//! The safety rules that every plan must keep, checked before it is committed. A plan that breaks one is a bug of the
//! planner: it is never carried out.

use crate::plan::Plan;
use kiln_model::{EnvRef, InstanceState, Mutation, OpKey, Snapshot};
use std::collections::{BTreeMap, BTreeSet};

/// The rules that the plan breaks, in words; empty if it is safe. What the plan does not touch was safe before.
pub fn lint(before: &Snapshot, plan: &Plan) -> Vec<String> {
    let mut after = before.clone();
    plan.mutations.iter().for_each(|m| after.apply(m));
    let mut broken = vec![];
    if plan.mutations.is_empty() && plan.effects.is_empty() {
        return broken;
    }
    let touched = Touched::by(before, plan);
    broken.extend(unvalidated_in_route(&after, &touched));
    if touched.table {
        broken.extend(two_releases_of_a_service(&after));
        broken.extend(internal_route_of_another(&after));
    }
    broken.extend(two_owners_of_a_slot(&after, &touched));
    broken.extend(destroyed_while_routed(&after, plan));
    broken.extend(effect_without_intent(&after, plan));
    broken
}

/// What a plan changes.
struct Touched {
    environments: BTreeSet<EnvRef>,
    /// A new table is proposed.
    table: bool,
}

impl Touched {
    fn by(before: &Snapshot, plan: &Plan) -> Self {
        let mut touched = Self { environments: BTreeSet::new(), table: false };
        for mutation in &plan.mutations {
            match mutation {
                Mutation::PutRoute { .. } => touched.table = true,
                Mutation::PutInstance(instance) => drop(touched.environments.insert(instance.env.clone())),
                Mutation::Gone { instance } => {
                    touched.environments.extend(before.instances.get(instance).map(|i| i.env.clone()));
                }
                // Another network number is another owner of the names.
                Mutation::PutEnvironment(environment) => {
                    let known = before.environments.get(&environment.env);
                    touched.table |= known.is_none_or(|known| known.network != environment.network);
                }
                _ => {}
            }
        }
        touched
    }
}

fn unvalidated_in_route(after: &Snapshot, touched: &Touched) -> Vec<String> {
    let pools = after.route.1.pools.iter();
    let pools = pools.filter(|pool| touched.table || touched.environments.contains(&pool.env));
    let targets = pools.flat_map(|pool| pool.targets.iter().map(move |t| (pool, t)));
    let bad = targets.filter(|(pool, target)| {
        after.instances.get(&target.instance).is_some_and(|instance| {
            let was_validated = instance.state.is_validated()
                || matches!(
                    instance.state,
                    InstanceState::Tainted
                        | InstanceState::Draining
                        | InstanceState::Failed
                        | InstanceState::Lost
                );
            !was_validated || instance.release != pool.release || instance.address != Some(target.address)
        })
    });
    bad.map(|(_, target)| format!("`{}` is in the route table without being validated", target.instance))
        .collect()
}

fn two_releases_of_a_service(after: &Snapshot) -> Vec<String> {
    let mut releases: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for pool in &after.route.1.pools {
        releases.entry((&pool.env, &pool.service)).or_default().insert(pool.release);
    }
    let bad = releases.into_iter().filter(|(_, releases)| releases.len() > 1);
    bad.map(|((env, service), _)| format!("`{service}` of `{env}` is routed to two releases")).collect()
}

/// A name inside leads to the environment whose address it is, and to no other.
fn internal_route_of_another(after: &Snapshot) -> Vec<String> {
    let table = &after.route.1;
    let owner = |index: usize| table.pools.get(index).and_then(|pool| after.environments.get(&pool.env));
    let bad = table.internal.iter().filter(|route| {
        let own = |index| owner(index).is_some_and(|env| env.network == route.network);
        !route.network.is_given() || !route.pools.iter().all(|p| own(p.pool))
    });
    bad.map(|route| format!("`{}` of network {} leads to another environment", route.host, route.network))
        .collect()
}

fn two_owners_of_a_slot(after: &Snapshot, touched: &Touched) -> Vec<String> {
    let mut owners = BTreeSet::new();
    let instances = touched.environments.iter().flat_map(|env| after.instances_of(env));
    let bad = instances
        .filter(|i| i.state.is_wanted())
        .filter(|i| !owners.insert((&i.env, i.release, &i.service, i.slot)));
    bad.map(|i| format!("`{}` is the second owner of slot {} of `{}`", i.id, i.slot, i.service)).collect()
}

fn destroyed_while_routed(after: &Snapshot, plan: &Plan) -> Vec<String> {
    let destroyed = plan.effects.iter().filter_map(|op| match &op.key {
        OpKey::Absent { instance } => Some(instance),
        _ => None,
    });
    let settled = after.acked == after.route.0;
    let bad = destroyed.filter(|id| after.is_routed(id) || (!settled && after.instances.contains_key(*id)));
    bad.map(|id| format!("`{id}` would be destroyed while the edge may send to it")).collect()
}

fn effect_without_intent(after: &Snapshot, plan: &Plan) -> Vec<String> {
    let bad = plan.effects.iter().filter(|op| after.ops.get(&op.key).is_none_or(|row| row.id != op.id));
    bad.map(|op| format!("effect {} `{}` has no intent row", op.id, op.key.word())).collect()
}
