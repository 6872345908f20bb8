//! Which environments are at rest: everything is as desired, so that planning them decides nothing. The planner leaves
//! them out, so that the cost of deciding follows what changed, and not what exists. Whatever is not certain is not rest.
//! That leaving them out changes no plan is a property of the simulated worlds ([`crate::plan::plan_everything`]).

use crate::autoscale;
use crate::draft::Draft;
use crate::instance::is_ejected;
use crate::route::replicas;
use kiln_model::mutant::{Mutant, planted};
use kiln_model::{
    EnvRef, Environment, Instance, InstanceId, InstanceState, OpKey, ReleaseNumber, SeenState, ServiceName,
};
use std::collections::{BTreeMap, BTreeSet};

/// Finds the environments that are not at rest, and wants the end of what the provider has and no row owns: rows are
/// written before effects.
pub(crate) fn look(draft: &mut Draft<'_>, everything: bool) {
    let unquiet = unquiet(draft);
    let environments: Vec<_> = draft.snapshot.environments.values().cloned().collect();
    for environment in environments {
        let at_rest = !everything
            && !draft.rebooted
            && !unquiet.contains(&environment.env)
            && is_complete(draft, &environment);
        match environment.keep.filter(|_| at_rest) {
            Some((_, until)) if draft.now() >= until => draft.restless.push(environment.env.clone()),
            Some((_, until)) => draft.wake_at(until),
            None if at_rest => {}
            None => draft.restless.push(environment.env.clone()),
        }
    }
}

/// Environments with an instance that is on its way, or is not as it should be. Goes once through what is recorded and
/// what is seen, side by side: both are in order of id.
fn unquiet(draft: &mut Draft<'_>) -> BTreeSet<EnvRef> {
    let mut unquiet = BTreeSet::new();
    let mut leftovers = vec![];
    let mut seen = draft.observed.seen.iter().flatten().peekable();
    for instance in draft.snapshot.instances.values() {
        while let Some((id, _)) = seen.next_if(|(id, _)| **id < instance.id) {
            leftovers.push(id);
        }
        let runs =
            seen.next_if(|(id, _)| **id == instance.id).map(|(_, seen)| seen.state == SeenState::Running);
        // Without an answer of the provider nothing is concluded.
        let blind = draft.observed.seen.is_none() && !planted(Mutant::BlindIsEmpty);
        let as_seen = blind || runs == Some(true);
        if (!as_seen || !is_settled(draft, instance)) && !unquiet.contains(&instance.env) {
            unquiet.insert(instance.env.clone());
        }
    }
    leftovers.extend(seen.map(|(id, _)| id));
    // What the edge sends to is ended when it has a table without it, whoever it belongs to.
    let in_use = |id: &&InstanceId| draft.at_edge(id) != Some(false) && !planted(Mutant::EndInUse);
    leftovers.retain(|id| !planted(Mutant::NoGc) && !in_use(id));
    draft.wanted.extend(leftovers.into_iter().map(|instance| OpKey::Absent { instance: instance.clone() }));
    let edge = draft.observed.edge.iter();
    let ejected = edge.flat_map(|edge| &edge.targets).filter(|target| is_ejected(target));
    unquiet.extend(ejected.map(|target| target.env.clone()));
    unquiet
}

/// Whether the instance is where it stays until something happens.
fn is_settled(draft: &Draft<'_>, instance: &Instance) -> bool {
    match instance.state {
        InstanceState::Serving => draft.snapshot.is_routed(&instance.id),
        InstanceState::Validated => !draft.snapshot.is_routed(&instance.id),
        _ => false,
    }
}

/// Whether the environment has all that it wants and nothing else, given that all of it is settled.
fn is_complete(draft: &Draft<'_>, environment: &Environment) -> bool {
    let snapshot = &draft.snapshot;
    if environment.mix.is_some() || snapshot.active_rollouts(&environment.env).next().is_some() {
        return false;
    }
    if environment.destroyed {
        return snapshot.n_instances_of(&environment.env) == 0 && !snapshot.has_pools(&environment.env);
    }
    if !autoscale::changes(draft, environment).is_empty() {
        return false;
    }
    let kept = environment.keep.map(|(release, _)| release);
    // State that is expected, slots, and how many of them have no instance yet.
    let mut wanted: BTreeMap<(ReleaseNumber, &ServiceName), (InstanceState, u32, u32)> = BTreeMap::new();
    for (number, state) in [(environment.serving, InstanceState::Serving), (kept, InstanceState::Validated)] {
        let Some(number) = number else { continue };
        let Some(release) = snapshot.release(&environment.env, number) else { return false };
        for service in release.spec.services.values() {
            // One without a port is in no table: it stays validated.
            let state = if service.port.is_some() { state } else { InstanceState::Validated };
            let slots = replicas(environment, service);
            wanted.insert((number, &service.name), (state, slots, slots));
        }
    }
    for instance in snapshot.instances_of(&environment.env) {
        let Some((state, slots, missing)) = wanted.get_mut(&(instance.release, &instance.service)) else {
            return false;
        };
        // No slot has two owners, so that as many as there are slots are all of them.
        if instance.state != *state || instance.slot >= *slots || *missing == 0 {
            return false;
        }
        *missing -= 1;
    }
    wanted.values().all(|(.., missing)| *missing == 0)
}
