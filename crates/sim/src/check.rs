//! The safety invariants of notes/control.md, one function each, named by its number. Those about one effect are asked just
//! before it, those about one commit just after it, and the rest after every step that changed anything.

use crate::host::One;
use crate::world::World;
use kiln_model::route::Pool;
use kiln_model::{
    Digest, EnvRef, Environment, Epoch, Event, Fence, Generation, InstanceId, InstanceSpec, InstanceState,
    Mix, Mutation, ReleaseNumber, RolloutPhase, RouteTable, ServiceName, Share, Snapshot,
};
use std::collections::{BTreeMap, BTreeSet};

/// The drain limit that is certainly kept: of the service with the shortest one, without the time between two steps.
const DRAIN_MIN: u64 = 380;

/// An effect reached its receiver, and is about to change something.
pub(crate) fn applied(world: &mut World, receiver: &'static str, fence: Fence) {
    world.applied += 1;
    r1_hold(world, receiver, fence);
    s10_old_effect(world, receiver, fence);
    let newest = world.truth.servers.entry(receiver).or_default();
    *newest = fence.server().max(*newest);
}

/// R1: in a recovery hold nothing begins, so that nothing that serves is touched.
fn r1_hold(world: &mut World, receiver: &'static str, fence: Fence) {
    if world.truth.in_hold {
        world.broken(|| format!("R1: the {receiver} took an effect with fence {fence} in a recovery hold"));
    }
}

/// R2: the number of an instance that is there, or was, is not given again.
fn r2_number(world: &mut World, id: &InstanceId) {
    if world.host.instances.contains_key(id) || world.truth.destroyed.contains(id) {
        world.broken(|| format!("R2: {id} is intended, and there is one or was"));
    }
}

/// S10: an effect of an older server changes nothing, once its receiver heard of a newer one.
fn s10_old_effect(world: &mut World, receiver: &'static str, fence: Fence) {
    let newest = world.truth.servers.get(receiver).copied().unwrap_or_default();
    if fence.server() < newest {
        world.broken(|| format!("S10: an effect with fence {fence} was taken after one of {newest:?}"));
    }
}

/// An instance is about to be started.
pub(crate) fn before_start(world: &mut World, spec: &InstanceSpec) {
    s9_comes_back(world, &spec.id);
    s11_intent(world, &spec.id);
    s12_content(world, spec);
}

/// S9: an id that was destroyed never runs again.
fn s9_comes_back(world: &mut World, id: &InstanceId) {
    if world.truth.destroyed.contains(id) {
        world.broken(|| format!("S9: {id} was destroyed and runs again"));
    }
}

/// S11: the row is durable before the first effect.
fn s11_intent(world: &mut World, id: &InstanceId) {
    if !world.truth.known.contains(id) {
        world.broken(|| format!("S11: {id} is started without a row"));
    }
}

/// S12, S13: what starts is what the release says: the image of its commit, and nobody else's configuration.
fn s12_content(world: &mut World, spec: &InstanceSpec) {
    let image = Digest::of(format!("{} {}", spec.commit, spec.service).as_bytes());
    let told = spec.environment.get("KILN_RELEASE").is_some_and(|r| *r == spec.release.to_string());
    if image != spec.image || !told {
        world.broken(|| format!("S12: {} starts with the content of another release", spec.id));
    }
}

/// An instance is about to be ended.
pub(crate) fn before_end(world: &mut World, id: &InstanceId) {
    s4_in_use(world, id);
}

/// S4: what the edge sends to, or what still answers requests before its drain limit, is not ended by kiln.
fn s4_in_use(world: &mut World, id: &InstanceId) {
    let lives = world.host.instances.get(id).filter(|one| one.exited.is_none());
    let Some((address, hung)) = lives.map(|one| (one.address, one.hung.is_some())) else { return };
    let lost = world.truth.edge_lost || world.now < world.truth.excused_until;
    let routed = world.edge.used.2.pools.iter().any(|p| p.targets.iter().any(|t| t.address == address));
    if routed && !lost {
        let generation = world.edge.used.0;
        world.broken(|| format!("S4: {id} is ended while generation {generation} sends to it"));
    }
    let busy = world.edge.flights.iter().any(|flight| &flight.instance == id);
    let waited = world.truth.left.get(id).map_or(u64::MAX, |left| world.now - left);
    if busy && !hung && waited < DRAIN_MIN && !lost {
        world.broken(|| format!("S4: {id} is ended {waited} ms after it left the table, with requests"));
    }
}

/// The edge is about to use another table.
pub(crate) fn before_switch(world: &mut World, generation: Generation, digest: Digest, table: &RouteTable) {
    s1_unvalidated(world, table);
    s2_mixed(world, generation, table);
    s3_capacity(world, generation, table);
    s5_back(world, generation, digest);
    world.truth.used = world.truth.used.max(generation);
}

/// S1: a table has only instances whose validation is durable, and that really passed a check.
fn s1_unvalidated(world: &mut World, table: &RouteTable) {
    let targets = table.pools.iter().flat_map(|p| &p.targets);
    let truth = &world.truth;
    let bad =
        targets.map(|t| &t.instance).find(|id| !truth.validated.contains(*id) || !truth.passed.contains(*id));
    if let Some(id) = bad.cloned() {
        world.broken(|| format!("S1: {id} is in the edge's table without being validated"));
    }
}

/// S2: all targets of an environment are of one release, or of the two of a mix that was durable when the table was
/// proposed.
fn s2_mixed(world: &mut World, generation: Generation, table: &RouteTable) {
    let mut releases: BTreeMap<&EnvRef, BTreeSet<ReleaseNumber>> = BTreeMap::new();
    for pool in table.pools.iter().filter(|pool| !pool.targets.is_empty()) {
        releases.entry(&pool.env).or_default().insert(pool.release);
    }
    let mixes = world.truth.mixes.get(&generation).cloned().unwrap_or_default();
    let is_mix = |env: &EnvRef, found: &BTreeSet<ReleaseNumber>| {
        mixes.get(env).is_some_and(|mix| mix.is_superset(found))
    };
    let bad = releases.into_iter().find(|(env, found)| found.len() > 1 && !is_mix(env, found));
    if let Some((env, _)) = bad {
        world.broken(|| format!("S2: {env} is routed to two releases"));
    }
    let whole = |pool: &Pool| {
        let host = crate::project::release(usize::from(pool.env.project.as_str() == "blog"), 1, 0).routes;
        let routed = |service: &ServiceName| {
            let leads = |r: &kiln_model::route::TableRoute| {
                r.pools.iter().any(|w| {
                    table.pools.get(w.pool).is_some_and(|p| p.env == pool.env && &p.service == service)
                })
            };
            table.routes.iter().any(leads)
        };
        host.iter().all(|rule| routed(&rule.service))
    };
    if let Some(pool) = table.pools.iter().find(|pool| !whole(pool)) {
        world.broken(|| format!("S6: half of {} is in the table", pool.env));
    }
}

/// S3: a switch takes no capacity away: of each service as many are in the new table as lived in the old one, or as were
/// asked for when the table was proposed.
fn s3_capacity(world: &mut World, generation: Generation, table: &RouteTable) {
    // Tables that the edge never used may have been proposed while less was wanted.
    let proposed = Generation(world.edge.used.0.0 + 1)..=generation;
    let wanted = world.truth.wanted.iter().filter(|(generation, _)| proposed.contains(generation));
    let wanted: Vec<BTreeMap<_, _>> = wanted.map(|(_, wanted)| wanted.clone()).collect();
    let least_wanted = |key: &(EnvRef, ServiceName)| {
        wanted.iter().map(|wanted| wanted.get(key).copied().unwrap_or(0)).min().unwrap_or(0)
    };
    let old = world.edge.used.2.clone();
    let services: BTreeSet<_> =
        old.pools.iter().map(|pool| (pool.env.clone(), pool.service.clone())).collect();
    for key in services {
        // The candidate of a canary and its baseline come and go beside the serving instances, whose pool is the first.
        let of = |table: &RouteTable, generation: Generation| -> Vec<Pool> {
            let canaries = world.truth.canaries.get(&generation);
            let few = if canaries.is_some_and(|envs| envs.contains(&key.0)) { 1 } else { usize::MAX };
            let own = |pool: &&Pool| (&pool.env, &pool.service) == (&key.0, &key.1);
            table.pools.iter().filter(own).take(few).cloned().collect()
        };
        let lives = |id: &InstanceId| world.host.instances.get(id).is_some_and(One::answers);
        let (was, is) = (of(&old, world.edge.used.0), of(table, generation));
        let before = was.iter().flat_map(|p| &p.targets).filter(|t| lives(&t.instance)).count() as u32;
        let least = before.min(least_wanted(&key));
        let after = is.iter().map(|pool| pool.targets.len() as u32).sum::<u32>();
        // Those that died after they were validated were taken away by the world.
        let since = world.now.saturating_sub(30_000);
        let died: BTreeSet<_> = was.iter().chain(&is).map(|pool| pool.release).collect();
        let died: u32 = died.iter().map(|release| world.truth.deaths_of(&key, *release, since)).sum();
        if after + died < least {
            let (env, service) = key;
            world.broken(|| {
                format!(
                    "S3: generation {generation} leaves {after} of {before} instances of {service} of {env}"
                )
            });
        }
    }
}

/// S5: generations never go back while the edge runs, and each is one table for ever.
fn s5_back(world: &mut World, generation: Generation, digest: Digest) {
    let used = world.truth.used;
    if generation < used {
        world.broken(|| format!("S5: the edge goes from generation {used} back to {generation}"));
    }
    if let Some(known) = world.truth.generations.get(&generation).filter(|known| **known != digest).copied() {
        world.broken(|| format!("S5: generation {generation} is {known} and {digest}"));
    }
}

/// Something was committed.
pub(crate) fn committed(
    world: &mut World,
    epoch: Epoch,
    before: &Snapshot,
    after: &Snapshot,
    mutations: &[Mutation],
    events: &[Event],
) {
    world.truth.commits += 1;
    world.truth.in_hold = after.recovery.is_some();
    world.dirty = true;
    let (revision, n) = (after.revision, mutations.len());
    world.tell(|| format!("commit {revision} of epoch {epoch}, {n} mutations"));
    s10_old_commit(world, epoch);
    for mutation in mutations {
        match mutation {
            Mutation::PutInstance(instance) => {
                world.truth.known.insert(instance.id.clone());
                if instance.state.is_validated() {
                    world.truth.validated.insert(instance.id.clone());
                }
                let was = before.instances.get(&instance.id).map(|i| i.state);
                if was.is_none() && instance.state == InstanceState::Intent {
                    r2_number(world, &instance.id);
                }
                s18_blind(world, &instance.id, was, instance.state, mutations);
                s21_tainted(world, &instance.id, was, instance.state);
            }
            Mutation::Gone { instance } => s11_gone(world, instance),
            Mutation::PutRoute { generation, table } => {
                world.truth.generations.insert(*generation, table.digest());
                world.truth.wanted.insert(*generation, wanted(after));
                let mixed =
                    |e: &Environment| Some((e.env.clone(), [e.serving?, e.mix.as_ref()?.release].into()));
                let mixes = after.environments.values().filter_map(|e| mixed(e)).collect();
                let mut mixes: BTreeMap<EnvRef, BTreeSet<ReleaseNumber>> = mixes;
                // A paused one keeps its part of the table, also if its mix was given up meanwhile.
                let last = generation.0.checked_sub(1).and_then(|n| world.truth.mixes.get(&Generation(n)));
                let paused = last.into_iter().flatten().filter(|(env, _)| after.pause_of(env).is_some());
                for (env, mix) in paused {
                    mixes.entry(env.clone()).or_insert_with(|| mix.clone());
                }
                world.truth.mixes.insert(*generation, mixes);
                let is_canary = |mix: &Mix| matches!(mix.share, Share::Canary { .. });
                let canaries = after.environments.values().filter(|e| e.mix.as_ref().is_some_and(is_canary));
                world.truth.canaries.insert(*generation, canaries.map(|e| e.env.clone()).collect());
            }
            Mutation::RouteAcked { generation } => acknowledged(world, *generation),
            _ => {}
        }
    }
    s14_ends(world, before, after);
    s15_one_at_a_time(world, after);
    s7_owners(world, after);
    s23_events(world, before, after, events);
    s24_actors(world, events);
    if world.trace.lines.is_some() {
        moves(world, before, after);
    }
}

/// What moved, for whoever reads the story.
fn moves(world: &mut World, before: &Snapshot, after: &Snapshot) {
    for rollout in after.rollouts.values() {
        let was = before.rollouts.get(&rollout.id).map(|r| r.phase);
        if was != Some(rollout.phase) {
            let reason = rollout.reason.clone().unwrap_or_default();
            let (id, to, env, word) = (rollout.id, rollout.to, &rollout.env, rollout.phase.word());
            world.note(format!("  rollout {id} of {env} to {to}: {word} {reason}"));
        }
    }
    for instance in after.instances.values() {
        let was = before.instances.get(&instance.id).map(|i| i.state);
        if was != Some(instance.state) {
            let (reason, word) = (instance.reason.clone().unwrap_or_default(), instance.state.word());
            world.note(format!("  {} of release {}: {word} {reason}", instance.id, instance.release));
        }
    }
    for gone in before.instances.keys().filter(|id| !after.instances.contains_key(*id)) {
        world.note(format!("  {gone}: gone"));
    }
    if before.route.0 != after.route.0 || before.acked != after.acked {
        world.note(format!("  route {} acknowledged {}", after.route.0, after.acked));
    }
}

fn wanted(snapshot: &Snapshot) -> BTreeMap<(EnvRef, ServiceName), u32> {
    let mut wanted = BTreeMap::new();
    for environment in snapshot.environments.values().filter(|e| !e.destroyed) {
        let release = environment.serving.and_then(|n| snapshot.release(&environment.env, n));
        for service in release.iter().flat_map(|release| release.spec.services.values()) {
            let n = kiln_plan::route::replicas(environment, service);
            wanted.insert((environment.env.clone(), service.name.clone()), n);
        }
    }
    wanted
}

/// S10: a commit of an older server changes nothing.
fn s10_old_commit(world: &mut World, epoch: Epoch) {
    let newest = world.truth.epoch;
    if epoch < newest {
        world.broken(|| format!("S10: epoch {epoch} commits after epoch {newest}"));
    }
}

/// S11: `gone` is written only after an acknowledged destroy.
fn s11_gone(world: &mut World, id: &InstanceId) {
    if !world.truth.destroyed.contains(id) {
        world.broken(|| format!("S11: {id} is gone in the store, and nobody destroyed it"));
    }
}

/// S5: a generation is acknowledged only if the edge used it.
fn acknowledged(world: &mut World, generation: Generation) {
    let used = world.edge.used.0.max(world.truth.used);
    if used < generation && world.now >= world.truth.excused_until && !world.truth.edge_lost {
        world.broken(|| format!("S5: generation {generation} is acknowledged, and the edge uses {used}"));
    }
}

/// S18: nobody is taken for lost who is there.
fn s18_blind(
    world: &mut World,
    id: &InstanceId,
    was: Option<InstanceState>,
    is: InstanceState,
    mutations: &[Mutation],
) {
    let rebooted = mutations.iter().any(|m| matches!(m, Mutation::Rebase { .. }));
    // One that vanished may be started anew by an effect that was on its way: it was lost all the same.
    let vanished = world.truth.died.contains_key(id);
    let lives = !vanished && world.host.instances.get(id).is_some_and(|one| one.exited.is_none());
    if was != Some(is) && is == InstanceState::Lost && lives && !rebooted {
        world.broken(|| format!("S18: {id} is taken for lost, and is there"));
    }
}

/// S21: a tainted instance is never put into use again.
fn s21_tainted(world: &mut World, id: &InstanceId, was: Option<InstanceState>, is: InstanceState) {
    if was == Some(InstanceState::Tainted) && is.is_validated() {
        world.broken(|| format!("S21: {id} was tainted and is validated again"));
    }
}

/// S14: an end of a rollout is an end.
fn s14_ends(world: &mut World, before: &Snapshot, after: &Snapshot) {
    for rollout in before.rollouts.values().filter(|r| r.phase.is_end()) {
        if after.rollouts.get(&rollout.id).is_none_or(|r| r.phase != rollout.phase) {
            let id = rollout.id;
            world.broken(|| format!("S14: rollout {id} had ended and goes on"));
        }
    }
}

/// S15: one rollout moves an environment; an older one may only be behind its switch.
fn s15_one_at_a_time(world: &mut World, after: &Snapshot) {
    for env in after.environments.keys() {
        let active: Vec<_> = after.active_rollouts(env).collect();
        let older = active.iter().rev().skip(1);
        if let Some(rollout) = older.into_iter().find(|r| r.phase < RolloutPhase::Switching) {
            let id = rollout.id;
            world.broken(|| format!("S15: rollout {id} goes on beside a newer one"));
        }
    }
}

/// S7: one instance owns a slot.
fn s7_owners(world: &mut World, after: &Snapshot) {
    let mut owners = BTreeSet::new();
    let mut wanted = after.instances.values().filter(|i| i.state.is_wanted());
    let second = wanted.find(|i| !owners.insert((&i.env, i.release, &i.service, i.slot)));
    if let Some(second) = second {
        world.broken(|| format!("S7: {} is the second owner of its slot", second.id));
    }
}

/// S23: each end of a rollout has exactly one event, in the same commit.
fn s23_events(world: &mut World, before: &Snapshot, after: &Snapshot, events: &[Event]) {
    for rollout in after.rollouts.values().filter(|r| r.phase.is_end()) {
        if before.rollouts.get(&rollout.id).is_some_and(|r| r.phase.is_end()) {
            continue;
        }
        let subject = format!("rollout {}", rollout.id);
        let told = |e: &&Event| e.subject == subject && (e.kind.starts_with("rollout.") || e.kind == "abort");
        let ends = |e: &&Event| e.kind != "rollout.switching";
        // `destroy` is one event for all that it ends.
        let destroyed = events.iter().any(|e| e.kind == "destroy" && e.env.as_ref() == Some(&rollout.env));
        let n = events.iter().filter(told).filter(ends).count();
        if n != 1 && !destroyed {
            let word = rollout.phase.word();
            world.broken(|| format!("S23: {subject} becomes {word} with {n} events"));
        }
    }
}

/// S24: every event says who.
fn s24_actors(world: &mut World, events: &[Event]) {
    if let Some(event) = events.iter().find(|e| e.actor.is_empty()) {
        let kind = event.kind.clone();
        world.broken(|| format!("S24: nobody did `{kind}`"));
    }
}

/// A client got an answer.
pub(crate) fn answered(world: &mut World, instance: &InstanceId, spec: &InstanceSpec, pool: &Pool) {
    let right = &spec.id == instance && spec.release == pool.release && spec.service == pool.service;
    if !right && !world.truth.edge_lost && world.now >= world.truth.excused_until {
        let id = spec.id.clone();
        world.broken(|| format!("S1: {id} answers a request that was sent to {instance}"));
    }
}

/// A client got no answer: nobody of the pool is there.
pub(crate) fn failed(world: &mut World, pool: &Pool) {
    // That nobody is in the table although somebody could be is S3's.
    let excused = world.now < world.truth.excused_until || world.truth.edge_lost || pool.targets.is_empty();
    let dead = |id: &InstanceId| world.truth.died.contains_key(id);
    // All that could answer died by themselves, or had to leave the table for that.
    let by_the_world = !world.truth.died.is_empty() && pool.targets.iter().all(|t| dead(&t.instance));
    if !excused && !by_the_world {
        let (env, service) = (pool.env.clone(), pool.service.clone());
        world.broken(|| format!("a request to {service} of {env} failed, and nothing had broken it"));
    }
}
