//! One rollout: from accepted to traffic on the new release, or taken back. Deploy, rollback and what follows a crash are
//! this one path.

use crate::draft::Draft;
use crate::instance::heal_not_before;
use crate::route::stand_ins;
use crate::{mix, shift};
use kiln_model::edge::Mark;
use kiln_model::mutant::{Mutant, planted};
use kiln_model::{
    EnvRef, Environment, Instance, InstanceId, InstanceState, Millis, Mutation, OpKey, Release,
    ReleaseNumber, Rollout, RolloutPhase, ServiceSpec,
};
use std::collections::BTreeSet;
use std::sync::Arc;

/// How long baking may take.
pub const BAKE_DEADLINE: Millis = Millis::from_secs(30 * 60);
/// Time to destroy an instance and to see it, beside its own `stop.timeout`.
const CUT_MARGIN: Millis = Millis::from_secs(2);
/// Lines of evidence kept with a failed rollout.
const EVIDENCE_LINES: usize = 12;

/// Moves the rollouts of one environment as far as the observation allows.
pub(crate) fn step(draft: &mut Draft<'_>, env: &EnvRef) {
    // Each turn moves at most one phase; a warm rollback passes all of them in one commit.
    for _ in 0..8 {
        shift::tick(draft, env);
        let Some(rollout) = draft.snapshot.active_rollouts(env).next().cloned() else { return };
        let before = rollout.phase;
        match rollout.phase {
            RolloutPhase::Planned => begin(draft, &rollout),
            RolloutPhase::Baking => bake(draft, &rollout),
            RolloutPhase::Launching | RolloutPhase::Validating => launch(draft, &rollout),
            RolloutPhase::Shifting if !failed_instance(draft, &rollout) => shift::step(draft, &rollout),
            RolloutPhase::Switching => switch(draft, &rollout),
            RolloutPhase::Draining => drain(draft, &rollout),
            _ => return,
        }
        let still = draft.snapshot.rollouts.get(&rollout.id).is_some_and(|r| r.phase == before);
        if still {
            return;
        }
    }
}

fn begin(draft: &mut Draft<'_>, rollout: &Rollout) {
    let (now, mark) = (draft.now(), mark(draft, &rollout.env));
    let environment = draft.environment(&rollout.env);
    let serving = environment.as_ref().and_then(|e| e.serving);
    let opened = environment.map_or(Mark::default(), |e| e.receipt_end.clone());
    draft.put_rollout(rollout.id, |r| {
        r.begun = now;
        r.from = serving;
        r.receipt.opened = opened;
        r.receipt.started = mark;
    });
    draft.move_rollout(rollout.id, RolloutPhase::Baking, None);
}

fn bake(draft: &mut Draft<'_>, rollout: &Rollout) {
    let Some(release) = draft.snapshot.release(&rollout.env, rollout.to).cloned() else { return };
    if release.images.is_some() {
        if shift::open(draft, rollout, &release) {
            draft.move_rollout(rollout.id, RolloutPhase::Launching, None);
        }
        return;
    }
    let baked = |image: &_| {
        draft.observed.baked.get(&(rollout.env.clone(), release.number, Clone::clone(image))).copied()
    };
    let images: Option<_> = release.spec.images.iter().map(|i| Some((i.clone(), baked(i)?))).collect();
    if let Some(images) = images {
        let mut sealed = Release::clone(&release);
        sealed.images = Some(images);
        draft.put(Mutation::PutRelease(Box::new(sealed)));
        draft.event(
            &rollout.env,
            "release.sealed",
            format!("release {}", release.number),
            "images are baked",
        );
        return bake(draft, rollout);
    }
    let deadline = rollout.since + BAKE_DEADLINE;
    if draft.now() >= deadline {
        take_back(draft, rollout, format!("images were not baked within {BAKE_DEADLINE}"), vec![]);
        return;
    }
    draft.wake_at(deadline);
    for image in release.spec.images.iter().filter(|i| baked(i).is_none()) {
        let key = OpKey::Bake { env: rollout.env.clone(), release: release.number, image: image.clone() };
        draft.wanted.insert(key);
    }
}

fn launch(draft: &mut Draft<'_>, rollout: &Rollout) {
    let Some(release) = draft.snapshot.release(&rollout.env, rollout.to).cloned() else { return };
    if failed_instance(draft, rollout) {
        return;
    }
    let Some(environment) = draft.environment(&rollout.env) else { return };
    let slots = |service: &ServiceSpec| mix::slots(&environment, release.number, service);
    let instances = draft.instances_of(&rollout.env);
    let count = |service: &ServiceSpec, state: fn(InstanceState) -> bool| {
        let own = |i: &&Arc<Instance>| {
            i.release == rollout.to && i.service == service.name && i.slot < slots(service)
        };
        instances.iter().filter(own).filter(|i| state(i.state)).count() as u32
    };
    let all = |state: fn(InstanceState) -> bool| {
        release.spec.services.values().all(|service| count(service, state) >= slots(service))
    };
    let runs = |s: InstanceState| s == InstanceState::Probing || s.is_validated();
    if rollout.phase == RolloutPhase::Launching && all(runs) {
        draft.move_rollout(rollout.id, RolloutPhase::Validating, None);
        return;
    }
    // Instances may have died since they were last seen: what was not seen now is not switched to.
    let seen = draft.observed.seen.is_some();
    // What serves may lack what a candidate took from it: it is not whole before it has that back.
    let lacks = environment.serving == Some(rollout.to) && shift::is_retreating(draft, &environment);
    let ready = if planted(Mutant::SwitchUnvalidated) { runs } else { InstanceState::is_validated };
    if rollout.phase == RolloutPhase::Validating && seen && all(ready) && !lacks {
        if environment.mix.as_ref().is_some_and(|mix| mix.release == rollout.to) {
            shift::begin(draft, rollout);
        } else {
            put_into_use(draft, rollout, &release);
        }
        return;
    }
    let limit = release.spec.services.values().map(|s| s.rollout.deadline).max().unwrap_or_default();
    let deadline = rollout.deadline.unwrap_or(draft.now() + limit);
    draft.put_rollout(rollout.id, |r| r.deadline = Some(deadline));
    if draft.now() < deadline || planted(Mutant::NoDeadline) {
        draft.wake_at(deadline);
        return;
    }
    let late = release.spec.services.values().find(|s| count(s, InstanceState::is_validated) < slots(s));
    let (ready, of, name) = late.map_or((0, 0, String::new()), |s| {
        (count(s, InstanceState::is_validated), slots(s), s.name.to_string())
    });
    let lines = instances
        .iter()
        .filter(|i| i.release == rollout.to && !i.state.is_validated())
        .flat_map(|i| evidence(draft, i))
        .collect();
    let reason = format!("`{name}`: {ready} of {of} instances were validated within {limit}");
    take_back(draft, rollout, reason, lines);
}

/// Looks at instances of the new release that failed, and retires each once it is counted. Answers whether the rollout
/// ended.
fn failed_instance(draft: &mut Draft<'_>, rollout: &Rollout) -> bool {
    let failed: Vec<Arc<Instance>> = draft
        .instances_of(&rollout.env)
        .into_iter()
        .filter(|i| i.release == rollout.to && matches!(i.state, InstanceState::Failed | InstanceState::Lost))
        .collect();
    for instance in failed {
        let reason = instance.reason.clone().unwrap_or_default();
        let lines = evidence(draft, &instance);
        let count = draft.snapshot.rollouts.get(&rollout.id).map_or(0, |r| r.failures) + 1;
        draft.put_rollout(rollout.id, |r| {
            r.failures = count;
            r.evidence.clone_from(&lines);
        });
        draft.move_instance(&instance.id, InstanceState::Retiring, None);
        let hopeless =
            instance.evidence.iter().any(|e| !e.passed) || reason.starts_with("could not be started");
        if hopeless || count >= kiln_model::limits::START_FAILURES_MAX {
            let text = format!("`{}` of release {}: {reason}", instance.id, rollout.to);
            take_back(draft, rollout, text, lines);
            return true;
        }
    }
    false
}

/// What is known of an instance's failure: its checks and its last lines.
pub(crate) fn evidence(draft: &Draft<'_>, instance: &Instance) -> Vec<String> {
    let checks =
        instance.evidence.iter().filter(|e| !e.passed).map(|e| format!("check {}: {}", e.check, e.detail));
    let probes = draft.observed.probes.get(&instance.id).into_iter().flat_map(|log| log.steps.values());
    let probes = probes
        .filter(|s| !s.last.passed && instance.evidence.is_empty())
        .map(|s| format!("check {}: {}", s.last.check, s.last.detail));
    let tail = draft.observed.tails.get(&instance.id).cloned().unwrap_or_default();
    let tail = tail.into_iter().map(|line| format!("{}: {line}", instance.id));
    let mut lines: Vec<String> = checks.chain(probes).chain(tail).collect();
    let surplus = lines.len().saturating_sub(EVIDENCE_LINES);
    lines.drain(..surplus);
    lines
}

/// The one switch: from here on the environment's table is made from the new release.
pub(crate) fn put_into_use(draft: &mut Draft<'_>, rollout: &Rollout, release: &Release) {
    let keep_for = release.spec.services.values().map(|s| s.rollout.keep_previous).max().unwrap_or_default();
    let until = draft.now() + keep_for;
    draft.put_environment(&rollout.env, |env| {
        // A rollout to what serves already (a deploy was given up for it) replaces nothing.
        if env.serving != Some(rollout.to) {
            let previous = env.serving.filter(|_| keep_for > Millis(0));
            env.keep = previous.map(|previous| (previous, until));
            env.kept_deaths.clear();
        }
        env.serving = Some(rollout.to);
        env.mix = None;
        env.deaths.clear();
    });
    draft.move_rollout(rollout.id, RolloutPhase::Switching, None);
    crate::route::propose(draft);
    let generation = draft.snapshot.route.0;
    draft.put_rollout(rollout.id, |r| r.switch = Some(generation));
}

fn switch(draft: &mut Draft<'_>, rollout: &Rollout) {
    if rollout.switch.is_none_or(|generation| draft.snapshot.acked < generation) {
        crate::overdue::switch(draft, rollout);
        return;
    }
    let (now, mark) = (draft.now(), mark(draft, &rollout.env));
    shift::close_shares(draft, rollout);
    draft.put_rollout(rollout.id, |r| {
        r.switched_after = Some(now.since(r.begun));
        r.receipt.switched = mark;
    });
    if let Some(release) = draft.snapshot.release(&rollout.env, rollout.to).filter(|r| !r.served).cloned() {
        let mut served = Release::clone(&release);
        served.served = true;
        draft.put(Mutation::PutRelease(Box::new(served)));
    }
    draft.move_rollout(rollout.id, RolloutPhase::Draining, None);
}

/// Ends when no request is in flight on instances of old releases, when the drain limit passed and what it cuts is cut
/// (it belongs to this receipt), or when a newer rollout waits: instances drain on their own.
fn drain(draft: &mut Draft<'_>, rollout: &Rollout) {
    let release = draft.snapshot.release(&rollout.env, rollout.to);
    let limit = release
        .map_or(Millis(0), |r| r.spec.services.values().map(|s| s.rollout.drain).max().unwrap_or_default());
    let deadline = rollout.since + limit;
    let old = draft.instances_of(&rollout.env).into_iter().filter(|i| i.release != rollout.to);
    let busy: Option<Vec<Arc<Instance>>> = draft.observed.edge.as_ref().and_then(|edge| {
        let in_use = rollout.switch.is_none_or(|g| edge.generation >= g);
        in_use.then(|| old.filter(|i| draft.in_flight(&i.id) > Some(0)).collect())
    });
    let until = match &busy {
        None => deadline,
        Some(busy) => {
            let cut = busy.iter().filter_map(|i| Some(deadline + cut_limit(draft, i)?)).max();
            cut.unwrap_or(deadline)
        }
    };
    let newer_waits = draft.snapshot.active_rollouts(&rollout.env).nth(1).is_some();
    if busy.is_none_or(|busy| !busy.is_empty()) && draft.now() < until && !newer_waits {
        draft.wake_at(if draft.now() < deadline { deadline } else { until });
        return;
    }
    finish(draft, rollout, RolloutPhase::Succeeded, None);
}

/// How long after the drain limit an instance is certainly ended; none if it is not to end.
fn cut_limit(draft: &Draft<'_>, instance: &Instance) -> Option<Millis> {
    let ends = instance.state == InstanceState::Draining || instance.state.is_over();
    let release = draft.release_of(instance).filter(|_| ends)?;
    let stop = release.spec.services.get(&instance.service)?.stop.timeout;
    Some(Millis(stop.0.saturating_add(CUT_MARGIN.0)))
}

pub(crate) fn take_back(draft: &mut Draft<'_>, rollout: &Rollout, reason: String, lines: Vec<String>) {
    let serving = draft.environment(&rollout.env).and_then(|e| e.serving);
    let phase = if serving.is_some() { RolloutPhase::TakenBack } else { RolloutPhase::FailedNoPrevious };
    draft.put_rollout(rollout.id, |r| {
        if !lines.is_empty() {
            r.evidence = lines;
        }
    });
    finish(draft, rollout, phase, Some(reason));
}

pub(crate) fn finish(draft: &mut Draft<'_>, rollout: &Rollout, phase: RolloutPhase, reason: Option<String>) {
    let mark = mark(draft, &rollout.env);
    shift::close_shares(draft, rollout);
    draft.put_rollout(rollout.id, |r| {
        r.receipt.ended.clone_from(&mark);
        // What was counted before a step is of no use any more.
        r.step.iter_mut().for_each(|step| step.opened.clear());
    });
    if let Some(mark) = mark {
        draft.put_environment(&rollout.env, |env| env.receipt_end = mark);
    }
    draft.move_rollout(rollout.id, phase, reason);
}

/// A bake that will never work ends the rollouts that wait for it.
pub(crate) fn bake_failed(draft: &mut Draft<'_>, env: &EnvRef, release: ReleaseNumber, error: &str) {
    let waiting: Vec<Arc<Rollout>> = draft
        .snapshot
        .active_rollouts(env)
        .filter(|r| r.to == release && r.phase == RolloutPhase::Baking)
        .cloned()
        .collect();
    for rollout in waiting {
        take_back(draft, &rollout, error.to_owned(), vec![]);
    }
}

fn mark(draft: &Draft<'_>, env: &EnvRef) -> Option<Mark> {
    draft.observed.edge.as_ref().map(|edge| edge.mark_of(env))
}

/// Releases of which instances should exist, and the reason in order of importance.
pub(crate) fn wanted_releases(draft: &Draft<'_>, environment: &Environment) -> BTreeSet<ReleaseNumber> {
    let launching = draft
        .snapshot
        .active_rollouts(&environment.env)
        .filter(|r| r.phase >= RolloutPhase::Launching && r.phase < RolloutPhase::Switching)
        .map(|r| r.to);
    let kept = environment.keep.map(|(release, _)| release);
    let mixed = environment.mix.as_ref().map(|mix| mix.release);
    let wanted = environment.serving.into_iter().chain(kept).chain(mixed).chain(launching);
    if environment.destroyed { BTreeSet::new() } else { wanted.collect() }
}

/// Gives every wanted slot one instance, and lets go of what no slot wants.
pub(crate) fn fill_slots(draft: &mut Draft<'_>, env: &EnvRef) {
    expire_kept(draft, env);
    let Some(environment) = draft.environment(env) else { return };
    let wanted = wanted_releases(draft, &environment);
    let mut owned: BTreeSet<InstanceId> = BTreeSet::new();
    for number in &wanted {
        let Some(release) = draft.snapshot.release(env, *number).cloned() else { continue };
        for service in release.spec.services.values() {
            let slots = 0..mix::slots(&environment, *number, service);
            let baseline = mix::baseline_slots(&draft.snapshot, &environment, *number, service);
            for slot in slots.chain(baseline) {
                match slot_owner(draft, &release, service, slot) {
                    Some(id) => drop(owned.insert(id)),
                    None if !shift::may_create(draft, &environment, *number, &service.name) => {}
                    None => owned.extend(create(draft, &environment, &release, service, slot)),
                }
            }
            owned.extend(stand_ins(&draft.snapshot, &environment, &release, service));
        }
    }
    for instance in draft.instances_of(env) {
        if !owned.contains(&instance.id) {
            let_go(draft, &environment, &instance, wanted.contains(&instance.release));
        }
    }
}

fn slot_owner(draft: &Draft<'_>, release: &Release, service: &ServiceSpec, slot: u32) -> Option<InstanceId> {
    let own = |i: &&Arc<Instance>| i.release == release.number && i.service == service.name && i.slot == slot;
    let counts =
        |s: InstanceState| if planted(Mutant::DoubleSlot) { s.is_validated() } else { s.is_wanted() };
    let mut owners = draft.snapshot.instances_of(&release.env).filter(own).filter(|i| counts(i.state));
    owners.next().map(|i| i.id.clone())
}

fn create(
    draft: &mut Draft<'_>,
    environment: &Environment,
    release: &Release,
    service: &ServiceSpec,
    slot: u32,
) -> Option<InstanceId> {
    let image = release.image_of(service)?;
    if planted(Mutant::NoHeal) && environment.serving == Some(release.number) {
        return None;
    }
    let deaths = environment.deaths_of(release.number).and_then(|deaths| deaths.get(&service.name));
    if let Some((deaths, last)) = deaths.copied() {
        let not_before = heal_not_before(deaths, last);
        if draft.now() < not_before {
            draft.wake_at(not_before);
            return None;
        }
    }
    let id = InstanceId::new(&service.name, draft.snapshot.next_instance.max(1));
    let network = draft.environment(&release.env).map(|e| e.network).unwrap_or_default();
    draft.put(Mutation::PutInstance(Box::new(Instance {
        id: id.clone(),
        env: release.env.clone(),
        release: release.number,
        service: service.name.clone(),
        slot,
        image,
        network,
        state: InstanceState::Intent,
        since: draft.now(),
        created: draft.observed.wall,
        address: None,
        evidence: vec![],
        reason: None,
    })));
    Some(id)
}

/// An instance that no slot wants: it drains if it may have been sent requests, else it goes at once. The table without
/// it comes first. A validated one may have some left: it is kept out of rotation, or is in a table that the edge has
/// not acknowledged.
fn let_go(draft: &mut Draft<'_>, environment: &Environment, instance: &Instance, wanted_release: bool) {
    match instance.state {
        InstanceState::Tainted if draft.in_proposed_route(&instance.id) || !draft.route_settled() => {}
        InstanceState::Validated | InstanceState::Serving | InstanceState::Tainted => {
            if crate::instance::out_of_route(draft, &instance.id) {
                draft.move_instance(&instance.id, InstanceState::Draining, None);
                draft.wake_at(draft.now());
            }
        }
        InstanceState::Draining => drained(draft, environment, instance),
        state if state.is_over() => {}
        _ => {
            let why = if wanted_release {
                "its slot is not wanted any more"
            } else {
                "its release is not wanted any more"
            };
            draft.move_instance(&instance.id, InstanceState::Retiring, Some(why.into()));
        }
    }
}

fn drained(draft: &mut Draft<'_>, environment: &Environment, instance: &Instance) {
    let release = draft.snapshot.release(&environment.env, instance.release);
    let limit =
        release.and_then(|r| r.spec.services.get(&instance.service)).map_or(Millis(0), |s| s.rollout.drain);
    let deadline = instance.since + limit;
    let in_flight = draft.in_flight(&instance.id);
    if in_flight == Some(0) || draft.now() >= deadline || planted(Mutant::NoDrain) {
        let cut = in_flight
            .filter(|n| *n > 0)
            .map(|n| format!("{n} requests were still in flight at the drain limit"));
        if let Some(cut) = &cut {
            draft.event(&environment.env, "instance.cut", format!("instance {}", instance.id), cut.clone());
        }
        draft.move_instance(&instance.id, InstanceState::Retiring, cut);
    } else {
        draft.wake_at(deadline);
    }
}

fn expire_kept(draft: &mut Draft<'_>, env: &EnvRef) {
    let Some((_, until)) = draft.environment(env).and_then(|e| e.keep) else { return };
    if draft.now() < until {
        draft.wake_at(until);
        return;
    }
    draft.put_environment(env, |env| env.keep = None);
}

/// After an acknowledgement: who is in the table serves, who left it is out of rotation.
pub(crate) fn settle_serving(draft: &mut Draft<'_>) {
    if !draft.route_settled() {
        return;
    }
    for instance in draft.restless_instances() {
        if draft.still.is_held(&instance.env) {
            continue;
        }
        let routed = draft.in_proposed_route(&instance.id);
        let kept = draft
            .environment(&instance.env)
            .is_some_and(|e| !e.destroyed && e.keep.is_some_and(|(release, _)| release == instance.release));
        match instance.state {
            InstanceState::Validated if routed => {
                draft.move_instance(&instance.id, InstanceState::Serving, None)
            }
            InstanceState::Serving if !routed && kept => {
                draft.move_instance(&instance.id, InstanceState::Validated, None);
            }
            _ => {}
        }
    }
}
