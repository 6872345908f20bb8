//! The safety rules that every plan must keep, checked before it is committed. A plan that breaks one is a bug of the
//! planner: it is never carried out.

use crate::mix::{self, Role};
use crate::plan::Plan;
use crate::route::replicas;
use kiln_model::mutant::{Mutant, planted};
use kiln_model::{
    EnvRef, Environment, Instance, InstanceState, Mix, Mutation, OpKey, ServiceName, Share, Snapshot,
};
use std::collections::{BTreeMap, BTreeSet};

/// The rules that the plan breaks, in words; empty if it is safe. What the plan does not touch was safe before.
pub fn lint(before: &Snapshot, plan: &Plan) -> Vec<String> {
    if planted(Mutant::NoLint) {
        return vec![];
    }
    let mut after = before.clone();
    plan.mutations.iter().for_each(|m| after.apply(m));
    let mut broken = vec![];
    if plan.mutations.is_empty() && plan.effects.is_empty() {
        return broken;
    }
    let touched = Touched::by(before, plan);
    broken.extend(unvalidated_in_route(&after, &touched));
    broken.extend(unmixed_releases(&after, plan));
    broken.extend(lost_capacity(before, &after, plan));
    if touched.table {
        broken.extend(internal_route_of_another(&after));
    }
    broken.extend(two_owners_of_a_slot(&after, &touched));
    broken.extend(destroyed_while_routed(&after, plan));
    broken.extend(effect_without_intent(&after, plan));
    broken.extend(effect_in_a_pause(&after, plan));
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

/// S2: the requests of a service go to one release or, in a mix, to the two of it, with exactly the weights of the mix.
fn unmixed_releases(after: &Snapshot, plan: &Plan) -> Vec<String> {
    let table = &after.route.1;
    if plan.mutations.is_empty() {
        return vec![];
    }
    let mut broken = BTreeSet::new();
    let routes = table.routes.iter().map(|r| &r.pools).chain(table.internal.iter().map(|r| &r.pools));
    let routes = routes.chain(table.tcp.iter().map(|r| &r.pools));
    for pools in routes {
        let found: Vec<_> = pools.iter().filter_map(|p| Some((table.pools.get(p.pool)?, p.weight))).collect();
        let Some((pool, _)) = found.first() else { continue };
        // Nobody is sent anywhere: what is left of a table whose host was started anew.
        if found.iter().all(|(pool, _)| pool.targets.is_empty()) {
            continue;
        }
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
    let (had, has) = (live(before, after), live(after, after));
    let mut broken = vec![];
    for environment in after.environments.values().filter(|e| !e.destroyed) {
        let env = &environment.env;
        let Some(release) = environment.serving.and_then(|n| after.release(env, n)) else { continue };
        let old = before.environments.get(env);
        for service in release.spec.services.values().filter(|s| s.port.is_some()) {
            let slots = replicas(environment, service);
            let wanted = |environment: &Environment| {
                let release = environment.serving.and_then(|n| after.release(env, n));
                let service = release.and_then(|r| r.spec.services.get(&service.name));
                service.map_or(0, |s| replicas(environment, s))
            };
            let count = |counts: &Counts<'_>| {
                let slots_of = counts.get(&(env, &service.name));
                slots_of.map_or(0, |of| of.iter().filter(|slot| **slot < slots).count() as u32)
            };
            let (had, has) = (count(&had), count(&has));
            let floor = old.map_or(0, |old| wanted(old)).min(slots);
            if has < had.min(floor) {
                broken
                    .push(format!("`{}` of `{env}` would have {has} instances, it had {had}", service.name));
            }
        }
    }
    broken
}

/// The slots of a service's instances in a table that live, those of a canary left out.
type Counts<'a> = BTreeMap<(&'a EnvRef, &'a ServiceName), Vec<u32>>;

fn live<'a>(snapshot: &'a Snapshot, after: &'a Snapshot) -> Counts<'a> {
    let mut counts = Counts::new();
    for pool in &snapshot.route.1.pools {
        let environment = snapshot.environments.get(&pool.env);
        let is_canary = environment.is_some_and(|e| {
            matches!(&e.mix, Some(Mix { share: Share::Canary { .. }, .. })) && e.serving != Some(pool.release)
        });
        let instances = pool.targets.iter().filter_map(|t| after.instances.get(&t.instance));
        let lives = |i: &Instance| i.state.is_validated() || i.state == InstanceState::Tainted;
        let slots = instances.filter(|i| !is_canary && lives(i)).map(|i| i.slot);
        counts.entry((&pool.env, &pool.service)).or_default().extend(slots);
    }
    counts
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
