//! The end of a run: everything heals, and what must come true in the end comes true within a budget that is counted from
//! when the last delayed effect has landed. The liveness invariants of notes/control.md.

use crate::edge::Edge;
use crate::host::{Host, One};
use crate::project::{commit_id, env, release, service_name};
use crate::run::Run;
use crate::world::World;
use kiln_model::Snapshot;
use kiln_plan::Command;
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

/// Simulated time in which everything settles: a rollout's deadline, the longest back-off, and some.
const BUDGET_MS: u64 = 90_000;
/// The commit that is deployed in the end. It is good.
const LAST: u64 = 1_000_001;
/// How long an unchanged world is watched.
const IDLE_MS: u64 = 2_500;

/// See the module.
pub(crate) fn finish(run: &mut Run) {
    let is_rough = run.sim.world().faults.breaks_requests();
    run.heal();
    // A pause may be on its way.
    if !settle(run, |run| !run.somebody_asks()) {
        return;
    }
    let paused = snapshot(run);
    let each = paused.environments.values().filter(|e| e.paused.is_some()).map(|e| Some(e.env.clone()));
    for env in each.chain(paused.paused.is_some().then_some(None)) {
        ask(run, || Command::Resume { env: env.clone() });
    }
    if !settle(run, is_quiet) {
        return;
    }
    let environments: Vec<usize> =
        (0..2).filter(|n| *n == 0 || snapshot(run).environments.contains_key(&env(*n))).collect();
    for n in &environments {
        let services = if *n == 0 { vec!["api", "web"] } else { vec!["blog"] };
        let instances = services.into_iter().map(|name| (service_name(name), None)).collect();
        ask(run, || Command::Deploy { env: env(*n), spec: Box::new(release(*n, LAST, 0)) });
        ask(run, || Command::Scale {
            env: env(*n),
            instances: std::collections::BTreeMap::clone(&instances),
        });
    }
    if !settle(run, is_settled) {
        return;
    }
    for n in environments {
        l4_last_wins(run, n);
    }
    whole(run);
    // Without anything asked for: nothing but what is seen tells that there is something to do.
    for wound in [Edge::lose, Host::death].into_iter().filter(|_| is_rough) {
        wound(&mut run.sim.world());
        if !settle(run, is_settled) {
            return;
        }
        whole(run);
    }
    l9_idle(run);
}

/// What holds whenever everything has settled.
fn whole(run: &Run) {
    l2_orphans(run);
    l3_route(run);
    l5_replicas(run);
    s23_chain(run);
}

fn snapshot(run: &Run) -> Arc<Snapshot> {
    run.store.load().unwrap_or_default()
}

fn broken(run: &Run, text: impl FnOnce() -> String) {
    run.sim.world().broken(text);
}

/// Asks until an answer comes, as an operator would whose connection was lost.
fn ask(run: &mut Run, command: impl Fn() -> Command) {
    let limit = run.sim.world().now + BUDGET_MS;
    let mut answer = None;
    while run.goes_on() {
        let now = run.sim.world().now;
        if now > limit {
            broken(run, || "L7: a command was never answered".into());
            return;
        }
        let done = answer
            .as_ref()
            .and_then(|a: &crate::run::Answer| a.lock().unwrap_or_else(PoisonError::into_inner).clone());
        match done {
            Some(Ok(_)) => return,
            // A rollout may be in the way for a moment, or the process died under it.
            Some(Err(text)) if text.contains("recorded") || text.contains("older than what runs") => {
                answer = None;
            }
            Some(Err(text)) => {
                broken(run, || format!("L7: the last command is refused: {text}"));
                return;
            }
            None => {}
        }
        // A process that dies takes the question with it.
        let lost = answer.as_ref().is_some_and(|a| Arc::strong_count(a) == 1);
        if answer.is_none() || lost {
            answer = run.submit("operator", command());
        }
        run.step();
    }
}

/// L1, L8: whether every rollout has ended, and nothing is on its way. What serves may be a release that was deployed while
/// it was scaled to nothing, and never works.
fn is_quiet(run: &Run) -> bool {
    is_quiet_in(run, &run.sim.world(), &snapshot(run))
}

fn is_quiet_in(run: &Run, world: &World, snapshot: &Snapshot) -> bool {
    let moving = snapshot.rollouts.values().any(|r| !r.phase.is_end());
    world.delayed.is_empty() && !run.somebody_asks() && !moving && snapshot.recovery.is_none()
}

/// Whether nothing is under way.
fn is_settled(run: &Run) -> bool {
    let snapshot = snapshot(run);
    let world = run.sim.world();
    let kept = snapshot.environments.values().any(|e| e.keep.is_some());
    let states = snapshot.instances.values().all(|i| i.state.is_validated());
    is_quiet_in(run, &world, &snapshot)
        && snapshot.ops.is_empty()
        && snapshot.acked == snapshot.route.0
        && !kept
        && states
        && complete(&snapshot)
        && world.host.instances.len() == snapshot.instances.len()
        && world.host.instances.values().all(One::answers)
        && world.edge.used.0 == snapshot.route.0
}

/// Whether every service that serves has its instances.
fn complete(snapshot: &Snapshot) -> bool {
    snapshot.environments.values().all(|environment| {
        let release = environment.serving.and_then(|n| snapshot.release(&environment.env, n));
        let mut services = release.iter().flat_map(|release| release.spec.services.values());
        services.all(|service| {
            let own = snapshot.instances_of(&environment.env).filter(|i| i.service == service.name);
            own.count() as u32 == kiln_plan::route::replicas(environment, service)
        })
    })
}

/// L1, L2, L7, L8: everything settles within the budget.
fn settle(run: &mut Run, done: fn(&Run) -> bool) -> bool {
    let mut limit = run.sim.world().now + BUDGET_MS;
    while run.goes_on() {
        let world = run.sim.world();
        let now = world.now;
        if !world.delayed.is_empty() {
            limit = now + BUDGET_MS;
        }
        drop(world);
        if done(run) {
            return true;
        }
        if now > limit {
            let snapshot = snapshot(run);
            let moving: Vec<_> = snapshot
                .rollouts
                .values()
                .filter(|r| !r.phase.is_end())
                .map(|r| format!("rollout {} is {}", r.id, r.phase.word()))
                .collect();
            let states: Vec<_> =
                snapshot.instances.values().map(|i| format!("{} {}", i.id, i.state.word())).collect();
            let ops: Vec<_> = snapshot.ops.values().map(|op| (op.key.word(), op.attempts)).collect();
            let world_has: Vec<_> = run.sim.world().host.instances.keys().cloned().collect();
            broken(run, || {
                format!(
                    "L1: nothing settles: {moving:?}, {states:?}, effects {ops:?}, on the host {world_has:?}"
                )
            });
            return false;
        }
        run.step();
    }
    false
}

/// L4, L7: what was asked for last serves.
fn l4_last_wins(run: &Run, n: usize) {
    let snapshot = snapshot(run);
    let Some(environment) = snapshot.environments.get(&env(n)) else { return };
    let serving = environment.serving.and_then(|number| snapshot.release(&env(n), number).cloned());
    if serving.is_none_or(|release| release.spec.commit != commit_id(LAST)) {
        let last = snapshot.rollouts.values().rfind(|r| r.env == env(n)).map(|r| (r.phase, r.reason.clone()));
        broken(run, || format!("L4: {} does not serve what was deployed last: {last:?}", env(n)));
    }
}

/// L2: nothing is there that nobody owns, and nothing is missing.
fn l2_orphans(run: &Run) {
    let owned: BTreeSet<_> = snapshot(run).instances.keys().cloned().collect();
    let there: BTreeSet<_> = run.sim.world().host.instances.keys().cloned().collect();
    if owned != there {
        broken(run, || format!("L2: rows {owned:?}, instances {there:?}"));
    }
}

/// L3: the edge uses what was proposed.
fn l3_route(run: &Run) {
    let snapshot = snapshot(run);
    let used = run.sim.world().edge.used.clone();
    if used.0 != snapshot.route.0 || used.1 != snapshot.route_digest {
        broken(run, || format!("L3: the edge uses {}, proposed is {}", used.0, snapshot.route.0));
    }
}

/// L5: exactly the instances that were asked for, all in the table, all alive.
fn l5_replicas(run: &Run) {
    let snapshot = snapshot(run);
    let table = run.sim.world().edge.used.2.clone();
    for environment in snapshot.environments.values() {
        let Some(release) = environment.serving.and_then(|n| snapshot.release(&environment.env, n)) else {
            continue;
        };
        for service in release.spec.services.values() {
            let pool = table.pools.iter().find(|p| p.env == environment.env && p.service == service.name);
            let routed = pool.map_or(0, |pool| pool.targets.len());
            if routed as u32 != service.instances {
                let (env, name) = (environment.env.clone(), service.name.clone());
                broken(run, || {
                    format!("L5: {routed} of {} instances of {name} of {env} serve", service.instances)
                });
            }
        }
    }
}

/// S23: the ledger is whole.
fn s23_chain(run: &Run) {
    if let Ok(Err((n, why))) = run.store.verify_ledger() {
        broken(run, || format!("S23: entry {n} of the ledger: {why}"));
    }
}

/// L9, L10: a restart in an unchanged world makes no effect, and nothing is written.
fn l9_idle(run: &mut Run) {
    (0..run.nodes.len()).for_each(|node| run.crash(node));
    let (commits, applied, until) = {
        let world = run.sim.world();
        (world.truth.commits, world.applied, world.now + IDLE_MS)
    };
    while run.goes_on() && run.sim.world().now < until {
        run.step();
    }
    let mut world = run.sim.world();
    let (commits, applied) = (world.truth.commits - commits, world.applied - applied);
    if commits + applied > 0 {
        world.broken(|| {
            format!("L9: {applied} effects and {commits} commits after a restart in an unchanged world")
        });
    }
}
