//! One instance: what an observation makes of it, which check comes next, and the specification it is started with.

use crate::draft::Draft;
use crate::observed::{Probe, ProbeLog, readiness_interval};
use crate::storm;
use kiln_model::edge::TargetStatus;
use kiln_model::mix::BASELINE_SLOT;
use kiln_model::mutant::{Mutant, planted};
use kiln_model::{
    Boot, Evidence, Health, ImageManifest, Instance, InstanceId, InstanceSpec, InstanceState, Millis,
    Mutation, OpKey, Origin, Release, RolloutPhase, SeenState, ServiceSpec, Strategy, limits,
};
use std::collections::BTreeMap;

/// A service without checks counts as validated when it ran for so long.
pub const RUNS_WITHOUT_CHECKS: Millis = Millis(1000);
/// Time from one attempt of a `validate` check to the next.
const VALIDATE_INTERVAL: Millis = Millis(200);
/// An instance that the edge ejected for so long is replaced.
pub const EJECTED_MAX: Millis = Millis(2000);
/// Deaths in a row that are healed at once; later ones wait.
const DEATHS_AT_ONCE: u32 = 3;
/// A service that lived for so long starts counting deaths anew.
const DEATHS_FORGOTTEN: Millis = Millis::from_secs(60);

/// Takes in what the provider sees. Without an answer of the provider nothing is concluded.
pub(crate) fn observe(draft: &mut Draft<'_>) {
    let empty = BTreeMap::new();
    let blind = planted(Mutant::BlindIsEmpty).then_some(&empty);
    let Some(seen) = draft.observed.seen.as_ref().or(blind) else { return };
    let instances = draft.restless_instances();
    for instance in instances.iter().filter(|i| !i.state.is_over()) {
        if draft.still.is_held(&instance.env) {
            continue;
        }
        match (seen.get(&instance.id), instance.state) {
            (None, InstanceState::Intent) => {}
            (None, _) if draft.rebooted => end_with_host(draft, instance),
            (None, _) => lose(draft, instance),
            (Some(seen), state) => {
                if let (SeenState::Exited(_), true) = (&seen.state, draft.rebooted) {
                    end_with_host(draft, instance);
                } else if let SeenState::Exited(reason) = &seen.state {
                    fail(draft, instance, reason.to_string());
                } else if seen.state == SeenState::Running && state == InstanceState::Intent {
                    let mut booting = Instance::clone(instance);
                    booting.address = seen.address;
                    draft.put(Mutation::PutInstance(Box::new(booting)));
                    draft.move_instance(&instance.id, InstanceState::Booting, None);
                    draft.move_instance(&instance.id, InstanceState::Probing, None);
                }
            }
        }
    }
}

/// It is replaced, and neither the back-off of healing nor a rollout takes it for a failure of the release.
fn end_with_host(draft: &mut Draft<'_>, instance: &Instance) {
    draft.move_instance(&instance.id, InstanceState::Lost, Some("the host was started anew".into()));
    draft.move_instance(&instance.id, InstanceState::Retiring, None);
}

fn lose(draft: &mut Draft<'_>, instance: &Instance) {
    count_death(draft, instance);
    draft.move_instance(
        &instance.id,
        InstanceState::Lost,
        Some("the provider does not know it any more".into()),
    );
}

/// The instance ended or will never work.
pub(crate) fn fail(draft: &mut Draft<'_>, instance: &Instance, reason: String) {
    count_death(draft, instance);
    draft.move_instance(&instance.id, InstanceState::Failed, Some(reason));
}

/// Instances that die together (a reboot, a lost dependency) are one death of their service: each of them lived before
/// the last death was counted. One that began after it and dies as well is the next.
fn count_death(draft: &mut Draft<'_>, instance: &Instance) {
    // It was counted when it was tainted.
    if instance.state == InstanceState::Tainted {
        return;
    }
    let now = draft.now();
    count_exit(draft, instance);
    draft.put_environment(&instance.env, |env| {
        let Some(deaths) = env.deaths_of_mut(instance.release) else { return };
        let counted = deaths.get(&instance.service).copied();
        let counted = counted.filter(|(_, last)| now.since(*last) <= DEATHS_FORGOTTEN);
        match counted {
            Some((_, last)) if instance.since < last => {}
            Some((count, _)) => drop(deaths.insert(instance.service.clone(), (count + 1, now))),
            None => drop(deaths.insert(instance.service.clone(), (1, now))),
        }
    });
}

/// A canary is judged by how often its instances end, and those of its baseline.
fn count_exit(draft: &mut Draft<'_>, instance: &Instance) {
    let shifting = draft.snapshot.active_rollouts(&instance.env).find(|r| r.phase == RolloutPhase::Shifting);
    let Some(rollout) = shifting.cloned().filter(|_| instance.state.is_validated()) else { return };
    draft.put_rollout(rollout.id, |r| {
        let Some(step) = &mut r.step else { return };
        step.exits.0 += u32::from(instance.release == r.to);
        step.exits.1 += u32::from(instance.release != r.to && instance.slot >= BASELINE_SLOT);
    });
}

/// How long an instance must go on running after its checks passed: in a rolling rollout, as its policy asks.
fn min_ready(draft: &Draft<'_>, instance: &Instance, service: &ServiceSpec) -> Millis {
    let Strategy::Rolling(rolling) = &service.rollout.strategy else { return Millis(0) };
    let mut rollouts = draft.snapshot.active_rollouts(&instance.env);
    let rolled_out = rollouts.any(|r| r.to == instance.release && r.phase.is_before_switch());
    if rolled_out { rolling.min_ready } else { Millis(0) }
}

/// When a slot of the service may be filled again after `deaths` in a row, the last of them at `last`.
pub fn heal_not_before(deaths: u32, last: Boot) -> Boot {
    match deaths.checked_sub(DEATHS_AT_ONCE + 1) {
        None => last,
        Some(more) => last + Millis((500u64 << more.min(6)).min(30_000)),
    }
}

/// Moves instances that are probed: on to `validated`, or to `failed`, or to their next check.
pub(crate) fn validate(draft: &mut Draft<'_>) {
    let instances = draft.restless_instances();
    for instance in instances.into_iter().filter(|i| i.state == InstanceState::Probing) {
        if draft.still.is_held(&instance.env) {
            continue;
        }
        let Some(release) = draft.release_of(&instance) else { continue };
        let Some(service) = release.spec.services.get(&instance.service) else { continue };
        let empty = ProbeLog::default();
        let log = draft.observed.probes.get(&instance.id).unwrap_or(&empty);
        let step = next_step(&instance, service, log, draft.now());
        let ready = log.steps.values().map(|s| s.at).max().unwrap_or(instance.since);
        let ready = ready + min_ready(draft, &instance, service);
        match step {
            Step::Passed(_) if draft.now() < ready => draft.wake_at(ready),
            Step::Wait(until) => draft.wake_at(until),
            Step::Probe(probe) => {
                draft.wake_at(probe.not_before);
                draft.probes.push(probe);
            }
            Step::Passed(evidence) => {
                let mut passed = Instance::clone(&instance);
                passed.evidence = evidence;
                draft.put(Mutation::PutInstance(Box::new(passed)));
                draft.move_instance(&instance.id, InstanceState::Validated, None);
            }
            Step::Failed(reason, evidence) => {
                let mut failed = Instance::clone(&instance);
                failed.evidence = evidence;
                draft.put(Mutation::PutInstance(Box::new(failed)));
                let failed = Instance::clone(&instance);
                fail(draft, &failed, reason);
            }
        }
    }
}

/// What comes next for an instance that is probed.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Wait(Boot),
    Probe(Probe),
    Passed(Vec<Evidence>),
    Failed(String, Vec<Evidence>),
}

fn next_step(instance: &Instance, service: &ServiceSpec, log: &ProbeLog, now: Boot) -> Step {
    let evidence = || log.steps.values().map(|s| s.last.clone()).collect();
    if let Some(health) = &service.health {
        let step = log.steps.get(&0);
        if step.is_none_or(|s| s.passes < health.healthy_after) {
            let grace = instance.since + health.grace;
            return match step.filter(|s| now >= grace && s.failures > 0) {
                Some(step) => Step::Failed(not_ready(health, &step.last), evidence()),
                None => Step::Probe(Probe {
                    instance: instance.id.clone(),
                    step: 0,
                    check: health.check.clone(),
                    not_before: step.map_or(now, |s| s.at + readiness_interval(s.failures, health.every)),
                }),
            };
        }
    }
    for (n, check) in service.validate.iter().enumerate().map(|(n, check)| (n + 1, check)) {
        let step = log.steps.get(&n);
        match step {
            Some(step) if step.passes > 0 => {}
            Some(_) if planted(Mutant::FailedIsPassed) => {}
            Some(step) if step.failures >= limits::VALIDATE_ATTEMPTS_MAX => {
                let reason = format!("validate `{}` failed: {}", check.kind, step.last.detail);
                return Step::Failed(reason, evidence());
            }
            _ => {
                return Step::Probe(Probe {
                    instance: instance.id.clone(),
                    step: n,
                    check: check.clone(),
                    not_before: step.map_or(now, |s| s.at + VALIDATE_INTERVAL),
                });
            }
        }
    }
    if service.health.is_none() && service.validate.is_empty() && now < instance.since + RUNS_WITHOUT_CHECKS {
        return Step::Wait(instance.since + RUNS_WITHOUT_CHECKS);
    }
    Step::Passed(evidence())
}

fn not_ready(health: &Health, last: &Evidence) -> String {
    format!("health `{}` did not pass within {}: {}", health.check.kind, health.grace, last.detail)
}

/// Whether the edge has sent the instance nothing for so long that it is replaced.
pub(crate) fn is_ejected(target: &TargetStatus) -> bool {
    target.in_table && target.ejected && target.ejected_for >= EJECTED_MAX
}

/// Replaces, one at a time per service, what the edge ejected: the replacement comes first.
pub(crate) fn taint(draft: &mut Draft<'_>) {
    let Some(edge) = &draft.observed.edge else { return };
    for target in edge.targets.iter().filter(|target| is_ejected(target)) {
        let Some(instance) = draft.snapshot.instances.get(&target.instance).cloned() else { continue };
        if draft.still.is_still(&instance.env) || storm::holds(edge, &instance) {
            continue;
        }
        let busy = draft.snapshot.instances_of(&instance.env).any(|other| {
            other.service == instance.service
                && other.release == instance.release
                && matches!(
                    other.state,
                    InstanceState::Tainted
                        | InstanceState::Intent
                        | InstanceState::Booting
                        | InstanceState::Probing
                )
        });
        let not_before = draft
            .environment(&instance.env)
            .and_then(|env| env.deaths.get(&instance.service).copied())
            .map_or(Boot(0), |(deaths, last)| heal_not_before(deaths, last));
        if instance.state == InstanceState::Serving && !busy && draft.now() >= not_before {
            let reason = target.reason.clone().unwrap_or_else(|| "ejected by the edge".into());
            count_death(draft, &instance);
            draft.move_instance(&instance.id, InstanceState::Tainted, Some(reason));
        }
    }
}

/// Wants the effects that instances need: existence, or its end once no traffic can reach them.
pub(crate) fn effects(draft: &mut Draft<'_>) {
    for instance in draft.restless_instances() {
        if planted(Mutant::GoneUnseen)
            && instance.state.is_over()
            && out_of_route(draft, &instance.id)
            && draft.observed.seen.as_ref().is_some_and(|seen| !seen.contains_key(&instance.id))
        {
            draft.put(Mutation::Gone { instance: instance.id.clone() });
            continue;
        }
        let key = match instance.state {
            InstanceState::Intent => OpKey::Ensure { instance: instance.id.clone() },
            state if state.is_over() && out_of_route(draft, &instance.id) => {
                OpKey::Absent { instance: instance.id.clone() }
            }
            _ => continue,
        };
        draft.wanted.insert(key);
    }
}

/// Whether the edge acknowledged a table without the instance, so that its address may be used again.
pub(crate) fn out_of_route(draft: &Draft<'_>, id: &InstanceId) -> bool {
    if planted(Mutant::RetireBeforeAck) {
        return !draft.in_proposed_route(id);
    }
    let proposed = draft.snapshot.route.0;
    let edge_behind = draft.observed.edge.as_ref().is_some_and(|edge| edge.generation < proposed);
    draft.route_settled() && !edge_behind && !draft.in_proposed_route(id)
}

/// The specification that an instance is started with: a pure function, so that the same id always has the same one.
pub fn spec(instance: &Instance, release: &Release, manifest: ImageManifest) -> Option<InstanceSpec> {
    let service = release.spec.services.get(&instance.service)?;
    let mut environment: BTreeMap<String, String> = service.env.clone();
    let mut set = |name: &str, value: String| environment.insert(name.to_owned(), value);
    set("KILN_PROJECT", instance.env.project.to_string());
    set("KILN_ENV", instance.env.env.to_string());
    set("KILN_SERVICE", instance.service.to_string());
    set("KILN_RELEASE", instance.release.to_string());
    set("KILN_INSTANCE", instance.id.to_string());
    set("KILN_IMAGE", instance.image.to_string());
    set("KILN_COMMIT", release.spec.commit.to_string());
    if let Some(port) = service.port {
        set("PORT", port.to_string());
    }
    let peers = release.spec.services.iter().filter(|(_, peer)| peer.port.is_some()).map(|(name, _)| name);
    // Without a number there is no address that a name could mean.
    let peers = peers.filter(|_| instance.network.is_given());
    Some(InstanceSpec {
        proxy_protocol: service.proxy_protocol,
        id: instance.id.clone(),
        env: instance.env.clone(),
        release: instance.release,
        service: instance.service.clone(),
        commit: release.spec.commit.clone(),
        image: instance.image,
        manifest,
        command: service.command.clone(),
        user: service.user.clone(),
        environment,
        secrets: service
            .secrets
            .iter()
            .filter_map(|name| Some((name.clone(), *release.spec.secrets.get(name)?)))
            .collect(),
        writable: service.writable.clone(),
        resources: service.resources,
        confinement: service.confinement.clone(),
        network: instance.network,
        peers: peers.cloned().collect(),
        port: service.port,
        stop: service.stop,
        origin: Some(Box::new(Origin::new(release, instance.slot))),
    })
}
