//! The safety rules that every plan must keep, checked before it is committed. A plan that breaks one is a bug of the
//! planner: it is never carried out.

use crate::plan::Plan;
use kiln_model::{InstanceState, OpKey, Snapshot};
use std::collections::{BTreeMap, BTreeSet};

/// The rules that the plan breaks, in words; empty if it is safe.
pub fn lint(before: &Snapshot, plan: &Plan) -> Vec<String> {
    let mut after = before.clone();
    plan.mutations.iter().for_each(|m| after.apply(m));
    let mut broken = vec![];
    broken.extend(unvalidated_in_route(&after));
    broken.extend(two_releases_of_a_service(&after));
    broken.extend(two_owners_of_a_slot(&after));
    broken.extend(internal_route_of_another(&after));
    broken.extend(destroyed_while_routed(&after, plan));
    broken.extend(effect_without_intent(&after, plan));
    broken.extend(effect_in_a_pause(&after, plan));
    broken
}

fn unvalidated_in_route(after: &Snapshot) -> Vec<String> {
    let targets = after.route.1.pools.iter().flat_map(|pool| pool.targets.iter().map(move |t| (pool, t)));
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
        // What cannot be read keeps the part that it has.
        let kept = |index: usize| {
            table.pools.get(index).is_some_and(|pool| after.damage_of(&pool.env).next().is_some())
        };
        let own = |index| kept(index) || owner(index).is_some_and(|env| env.network == route.network);
        !route.network.is_given() || !route.pools.iter().all(|p| own(p.pool))
    });
    bad.map(|route| format!("`{}` of network {} leads to another environment", route.host, route.network))
        .collect()
}

fn two_owners_of_a_slot(after: &Snapshot) -> Vec<String> {
    let mut owners = BTreeSet::new();
    let wanted = after.instances.values().filter(|i| i.state.is_wanted());
    let bad = wanted.filter(|i| !owners.insert((&i.env, i.release, &i.service, i.slot)));
    bad.map(|i| format!("`{}` is the second owner of slot {} of `{}`", i.id, i.slot, i.service)).collect()
}

fn destroyed_while_routed(after: &Snapshot, plan: &Plan) -> Vec<String> {
    let routed = |id: &_| after.route.1.pools.iter().any(|p| p.targets.iter().any(|t| &t.instance == id));
    let destroyed = plan.effects.iter().filter_map(|op| match &op.key {
        OpKey::Absent { instance } => Some(instance),
        _ => None,
    });
    let settled = after.acked == after.route.0;
    let known = |id: &_| after.instances.contains_key(id);
    let bad = destroyed.filter(|id| routed(id) || (!settled && known(id)));
    bad.map(|id| format!("`{id}` would be destroyed while the edge may send to it")).collect()
}

/// A pause stops every effect but the one that keeps the edge at the last table.
fn effect_in_a_pause(after: &Snapshot, plan: &Plan) -> Vec<String> {
    let bad = plan.effects.iter().filter_map(|op| {
        let env = after.env_of(&op.key)?;
        after
            .pause_of(env)
            .map(|_| format!("effect {} `{}` of `{env}`, which is paused", op.id, op.key.word()))
    });
    bad.collect()
}

fn effect_without_intent(after: &Snapshot, plan: &Plan) -> Vec<String> {
    let bad = plan.effects.iter().filter(|op| after.ops.get(&op.key).is_none_or(|row| row.id != op.id));
    bad.map(|op| format!("effect {} `{}` has no intent row", op.id, op.key.word())).collect()
}
