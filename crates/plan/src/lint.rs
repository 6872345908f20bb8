//! The safety rules that every plan must keep, checked before it is committed. A plan that breaks one is a bug of the
//! planner: it is never carried out.

use crate::mix::{self, Role};
use crate::plan::Plan;
use crate::route::replicas;
use kiln_model::{Environment, Instance, InstanceState, Mix, Mutation, OpKey, Share, Snapshot};
use std::collections::BTreeSet;

/// The rules that the plan breaks, in words; empty if it is safe.
pub fn lint(before: &Snapshot, plan: &Plan) -> Vec<String> {
    let mut after = before.clone();
    plan.mutations.iter().for_each(|m| after.apply(m));
    let mut broken = vec![];
    broken.extend(unvalidated_in_route(&after));
    broken.extend(unmixed_releases(&after, plan));
    broken.extend(lost_capacity(before, &after, plan));
    broken.extend(two_owners_of_a_slot(&after));
    broken.extend(internal_route_of_another(&after));
    broken.extend(destroyed_while_routed(&after, plan));
    broken.extend(effect_without_intent(&after, plan));
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

/// S2: the requests of a service go to one release or, in a mix, to the two of it, with exactly the weights of the mix.
fn unmixed_releases(after: &Snapshot, plan: &Plan) -> Vec<String> {
    let table = &after.route.1;
    if plan.mutations.is_empty() {
        return vec![];
    }
    let mut broken = BTreeSet::new();
    let routes = table.routes.iter().map(|r| &r.pools).chain(table.internal.iter().map(|r| &r.pools));
    for pools in routes {
        let found: Vec<_> = pools.iter().filter_map(|p| Some((table.pools.get(p.pool)?, p.weight))).collect();
        let Some((pool, _)) = found.first() else { continue };
        let environment = after.environments.get(&pool.env);
        let serving = environment.and_then(|e| after.release(&pool.env, e.serving?));
        let spec = serving.and_then(|release| release.spec.services.get(&pool.service));
        let Some((environment, spec)) = environment.zip(spec) else { continue };
        let targets = |role: Role| found.get(role as usize).map_or(0, |(pool, _)| pool.targets.len());
        let expected = mix::shares(after, environment, spec, targets);
        let releases = expected.iter().map(|(role, weight)| {
            let mixed = environment.mix.as_ref().filter(|_| *role == Role::Candidate);
            (mixed.map(|mix| mix.release).or(environment.serving), *weight)
        });
        let releases: Vec<_> = releases.collect();
        if releases != found.iter().map(|(pool, weight)| (Some(pool.release), *weight)).collect::<Vec<_>>() {
            broken.insert(format!("`{}` of `{}` is not routed as its mix says", pool.service, pool.env));
        }
    }
    broken.into_iter().collect()
}

/// S3: a new table has no fewer instances of a service than the old one, unless more than are wanted. Those that ended do
/// not count, nor those in slots that nobody wants after a scaling, nor the share of a canary: the serving release has its
/// instances beside it.
fn lost_capacity(before: &Snapshot, after: &Snapshot, plan: &Plan) -> Vec<String> {
    let proposes = plan.mutations.iter().any(|m| matches!(m, Mutation::PutRoute { .. }));
    if !proposes {
        return vec![];
    }
    let mut broken = vec![];
    for environment in after.environments.values().filter(|e| !e.destroyed) {
        let env = &environment.env;
        let Some(release) = environment.serving.and_then(|n| after.release(env, n)) else { continue };
        let old = before.environments.get(env);
        for service in release.spec.services.values().filter(|s| s.port.is_some()) {
            let slots = replicas(environment, service);
            let lives = |i: &Instance| {
                i.slot < slots && (i.state.is_validated() || i.state == InstanceState::Tainted)
            };
            let count = |snapshot: &Snapshot, environment: &Environment| {
                let canary = matches!(&environment.mix, Some(Mix { share: Share::Canary { .. }, .. }));
                let pools = snapshot.route.1.pools.iter();
                let own = pools.filter(|p| p.env == *env && p.service == service.name);
                let own = own.filter(|p| !canary || environment.serving == Some(p.release));
                let targets = own.flat_map(|p| &p.targets).filter_map(|t| after.instances.get(&t.instance));
                targets.filter(|i| lives(i)).count() as u32
            };
            let wanted = |environment: &Environment| {
                let release = environment.serving.and_then(|n| after.release(env, n));
                let service = release.and_then(|r| r.spec.services.get(&service.name));
                service.map_or(0, |s| replicas(environment, s))
            };
            let had = old.map_or(0, |old| count(before, old));
            let floor = old.map_or(0, |old| wanted(old)).min(slots);
            let has = count(after, environment);
            if has < had.min(floor) {
                broken
                    .push(format!("`{}` of `{env}` would have {has} instances, it had {had}", service.name));
            }
        }
    }
    broken
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

fn effect_without_intent(after: &Snapshot, plan: &Plan) -> Vec<String> {
    let bad = plan.effects.iter().filter(|op| after.ops.get(&op.key).is_none_or(|row| row.id != op.id));
    bad.map(|op| format!("effect {} `{}` has no intent row", op.id, op.key.word())).collect()
}
