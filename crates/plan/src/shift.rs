//! Two releases that share the traffic: how a candidate gets instances and requests, step by step, and how the serving
//! release gets them back. Forward and back are one function with the sides exchanged, so that a rollout that ends
//! half-way needs nothing of its own: the mix is desired state, and shrinks as it grew.

use crate::draft::Draft;
use crate::mix;
use crate::rollout::{put_into_use, take_back};
use crate::route::replicas;
use kiln_model::mix::Counts;
use kiln_model::rollout::SharePeriod;
use kiln_model::strategy::Rolling;
use kiln_model::{
    EnvRef, Environment, Instance, InstanceState, Millis, Mix, Release, ReleaseNumber, Rollout, RolloutKind,
    RolloutPhase, ServiceName, Share, Step, Strategy,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

mod canary;

/// Time to destroy an instance and to see it, beside its drain limit and its stop timeout.
const REPLACE_MARGIN: Millis = Millis::from_secs(5);

/// Makes room for the candidate of a rollout that is about to launch. Answers whether it may: a mix with another release
/// ends first, because no third one may have traffic. If that takes too long, because the serving release does not get
/// its capacity back, the new one takes over at once, with all its instances: it may be what mends it.
pub(crate) fn open(draft: &mut Draft<'_>, rollout: &Rollout, release: &Release) -> bool {
    let Some(environment) = draft.environment(&rollout.env) else { return false };
    let Some(serving) = environment.serving.filter(|serving| *serving != rollout.to) else { return true };
    let Some(share) = first_share(draft, &environment, rollout, release) else { return true };
    match &environment.mix {
        Some(mix) if mix.release == rollout.to => true,
        Some(_) if late(draft, rollout, release) => {
            draft.put_rollout(rollout.id, |r| r.deadline = None);
            true
        }
        Some(_) => false,
        None => {
            let mix = Mix { release: rollout.to, share };
            draft.put_environment(&rollout.env, |env| env.mix = Some(mix));
            let text = format!("release {} beside release {serving}", rollout.to);
            draft.event(&rollout.env, "rollout.mix", format!("rollout {}", rollout.id), text);
            true
        }
    }
}

/// None if the release takes over at once: so asked, or it is a rollback, which pauses for nothing, or all of its
/// instances are validated already.
fn first_share(
    draft: &Draft<'_>,
    environment: &Environment,
    rollout: &Rollout,
    release: &Release,
) -> Option<Share> {
    let warm = release.spec.services.values().all(|service| {
        let slots = 0..replicas(environment, service);
        validated(draft, release, &service.name, |slot| slots.contains(&slot)) >= slots.len()
    });
    let kept = environment.keep.is_some_and(|(kept, _)| kept == rollout.to);
    match release.spec.strategy() {
        // Most of its instances are there already.
        _ if warm || kept => None,
        Strategy::BlueGreen => None,
        Strategy::Canary(_) if rollout.kind == RolloutKind::Rollback => None,
        Strategy::Canary(canary) => Some(Share::Canary { weight: 0, size: canary.steps.first()?.weight }),
        Strategy::Rolling(_) => {
            let serving = draft.snapshot.release(&environment.env, environment.serving?)?;
            let old = |name| serving.spec.services.get(name).map_or(0, |s| replicas(environment, s));
            let counts =
                release.spec.services.keys().map(|n| (n.clone(), Counts { serving: old(n), candidate: 0 }));
            Some(Share::Rolling { live: false, counts: counts.collect() })
        }
    }
}

fn validated(
    draft: &Draft<'_>,
    release: &Release,
    service: &ServiceName,
    slot: impl Fn(u32) -> bool,
) -> usize {
    let own = draft.snapshot.instances_of(&release.env).filter(|i| {
        i.release == release.number && i.service == *service && slot(i.slot) && i.state.is_validated()
    });
    own.map(|i| i.slot).collect::<BTreeSet<_>>().len()
}

/// Whether a rollout is on its way that wants the candidate to take over.
fn is_forward(draft: &Draft<'_>, environment: &Environment) -> bool {
    let Some(mix) = &environment.mix else { return false };
    draft.snapshot.active_rollouts(&environment.env).any(|r| {
        r.to == mix.release && r.phase >= RolloutPhase::Launching && r.phase <= RolloutPhase::Shifting
    })
}

/// Whether an instance of the release may be created: not one of a candidate on its way out, nor one of a rolling candidate
/// beyond the surge, as while a failed one is not gone yet.
pub(crate) fn may_create(
    draft: &Draft<'_>,
    environment: &Environment,
    release: ReleaseNumber,
    service: &ServiceName,
) -> bool {
    let mix = environment.mix.as_ref().filter(|mix| mix.release == release);
    let Some(mix) = mix else { return true };
    let find = |number| draft.snapshot.release(&environment.env, number);
    let both = environment.serving.and_then(find).zip(find(release));
    let Some((serving, candidate)) = both.filter(|_| is_forward(draft, environment)) else { return false };
    matches!(mix.share, Share::Canary { .. }) || room(draft, environment, (serving, candidate), service) > 0
}

/// Instances of a service that may still be added to both releases of a rolling mix; all that are not gone count.
fn room(
    draft: &Draft<'_>,
    environment: &Environment,
    (serving, candidate): (&Release, &Release),
    service: &ServiceName,
) -> u32 {
    let surge = match candidate.spec.strategy() {
        Strategy::Rolling(rolling) => rolling.max_surge,
        _ => Rolling::default().max_surge,
    };
    let (floor, ceiling) = mix::bounds(environment, serving, candidate, service);
    // Where one cannot stand in for the other, both are there until the switch.
    let both = if is_alike(serving, candidate, service) { 0 } else { floor };
    let ceiling = ceiling.saturating_add(both);
    let releases = [serving.number, candidate.number];
    let instances = draft.snapshot.instances_of(&environment.env);
    let exist = instances.filter(|i| i.service == *service && releases.contains(&i.release)).count() as u32;
    ceiling.saturating_add(surge).saturating_sub(exist)
}

/// Whether the serving release still waits for what a candidate took from it.
pub(crate) fn is_retreating(draft: &Draft<'_>, environment: &Environment) -> bool {
    environment.mix.is_some() && !is_forward(draft, environment)
}

/// Moves the mix of an environment as far as the observation allows, in the direction that its rollouts ask for.
pub(crate) fn tick(draft: &mut Draft<'_>, env: &EnvRef) {
    let Some(environment) = draft.environment(env) else { return };
    let Some(mix) = environment.mix.clone() else { return };
    let forward = is_forward(draft, &environment);
    let serving = environment.serving.and_then(|n| draft.snapshot.release(env, n)).cloned();
    let candidate = draft.snapshot.release(env, mix.release).cloned();
    let (Some(serving), Some(candidate)) = (serving.filter(|s| s.number != mix.release), candidate) else {
        draft.put_environment(env, |env| env.mix = None);
        return;
    };
    match mix.share {
        // The serving release has all its instances: nobody waits for anything.
        Share::Canary { .. } if !forward => close(draft, env, mix.release),
        Share::Canary { .. } => {}
        Share::Rolling { live, counts } => {
            let moved =
                Roll { environment: &environment, serving: &serving, candidate: &candidate, live, forward };
            let next: BTreeMap<_, _> =
                counts.iter().map(|(name, c)| (name.clone(), moved.step(draft, name, *c))).collect();
            if next != counts {
                progress(draft, env, &candidate);
                let share = Share::Rolling { live, counts: next.clone() };
                draft.put_environment(env, |env| env.mix = Some(Mix { release: mix.release, share }));
            }
            if !forward && next.iter().all(|(name, c)| moved.is_restored(draft, name, *c)) {
                close(draft, env, mix.release);
            }
        }
    }
}

fn close(draft: &mut Draft<'_>, env: &EnvRef, candidate: ReleaseNumber) {
    draft.put_environment(env, |env| env.mix = None);
    draft.event(
        env,
        "rollout.unmixed",
        format!("release {candidate}"),
        "the serving release has all traffic",
    );
}

/// Gives the rollouts that wait for the mix their whole time anew.
fn progress(draft: &mut Draft<'_>, env: &EnvRef, release: &Release) {
    let deadline = draft.now() + limit(release);
    let waiting: Vec<_> =
        draft.snapshot.active_rollouts(env).filter(|r| r.deadline.is_some()).map(|r| r.id).collect();
    for id in waiting {
        draft.put_rollout(id, |r| (r.deadline, r.failures) = (Some(deadline), 0));
    }
}

/// How long one step may take: to launch and validate, after instances before it drained.
fn limit(release: &Release) -> Millis {
    let one = |s: &kiln_model::ServiceSpec| {
        let drain = s.rollout.drain.0.saturating_add(s.stop.timeout.0);
        Millis(s.rollout.deadline.0.saturating_add(drain).saturating_add(REPLACE_MARGIN.0))
    };
    release.spec.services.values().map(one).max().unwrap_or_default()
}

/// A rolling mix: what grows and what shrinks.
struct Roll<'a> {
    environment: &'a Environment,
    serving: &'a Release,
    candidate: &'a Release,
    live: bool,
    forward: bool,
}

impl Roll<'_> {
    /// One service: instances of the growing side are added as far as the surge and the batch allow; those of the other
    /// leave as far as capacity in the acknowledged table allows.
    fn step(&self, draft: &Draft<'_>, service: &ServiceName, counts: Counts) -> Counts {
        let all = |release: &Release| {
            release.spec.services.get(service).map_or(0, |s| replicas(self.environment, s))
        };
        let (all_serving, all_candidate) = (all(self.serving), all(self.candidate));
        let serving = (self.serving, counts.serving.min(all_serving), all_serving);
        let candidate = (self.candidate, counts.candidate.min(all_candidate), all_candidate);
        let ((grows, mut more, most), (shrinks, mut less, _)) =
            if self.forward { (candidate, serving) } else { (serving, candidate) };
        let policy = match self.candidate.spec.strategy() {
            Strategy::Rolling(rolling) => rolling.clone(),
            _ => Rolling::default(),
        };
        let (floor, _) = mix::bounds(self.environment, self.serving, self.candidate, service);
        let in_use = in_use(draft, shrinks, self.candidate, service);
        let room = room(draft, self.environment, (self.serving, self.candidate), service);
        let used = used_of(draft, grows, self.candidate, service, more);
        more += policy.batch.saturating_sub(more - used).min(room).min(most - more);
        // Capacity is what the edge has acknowledged: nothing leaves while it has not. Before the candidate has traffic,
        // nothing leaves at all.
        let leaves = self.live && self.is_alike(service) || !self.forward;
        if draft.route_settled() && draft.observed.seen.is_some() && leaves {
            let mut left = used + in_use.range(..less).count() as u32;
            while less > 0 {
                let used = u32::from(in_use.contains(&(less - 1)));
                if left - used < floor {
                    break;
                }
                (left, less) = (left - used, less - 1);
            }
        }
        let (serving, candidate) = if self.forward { (less, more) } else { (more, less) };
        Counts { serving, candidate }
    }

    /// Whether the serving release has all of its instances in use again.
    fn is_restored(&self, draft: &Draft<'_>, service: &ServiceName, counts: Counts) -> bool {
        let Some(spec) = self.serving.spec.services.get(service) else { return true };
        let all = replicas(self.environment, spec);
        counts.serving >= all && used_of(draft, self.serving, self.candidate, service, all) >= all
    }

    /// Whether instances of the candidate can stand in for those of the serving release. If only one of them has a port,
    /// both stay until the switch.
    fn is_alike(&self, service: &ServiceName) -> bool {
        is_alike(self.serving, self.candidate, service)
    }
}

fn is_alike(serving: &Release, candidate: &Release, service: &ServiceName) -> bool {
    let port = |release: &Release| release.spec.services.get(service).map(|s| s.port.is_some());
    port(serving).is_none() || port(serving) == port(candidate)
}

/// The slots of a service whose instances do their work: they take requests from the acknowledged table or, if the table
/// has no place for them, passed their checks.
fn in_use(draft: &Draft<'_>, release: &Release, candidate: &Release, service: &ServiceName) -> BTreeSet<u32> {
    let Some(spec) = release.spec.services.get(service) else { return BTreeSet::new() };
    let pools = &draft.snapshot.route.1.pools;
    let routed = pools.iter().any(|p| p.env == release.env && p.service == *service)
        && (release.number != candidate.number || mix::is_shared(candidate, spec));
    let works =
        |i: &Instance| if routed { i.state == InstanceState::Serving } else { i.state.is_validated() };
    let own = draft.snapshot.instances_of(&release.env);
    let own = own.filter(|i| i.release == release.number && i.service == *service && works(i));
    own.map(|i| i.slot).collect()
}

fn used_of(
    draft: &Draft<'_>,
    release: &Release,
    candidate: &Release,
    service: &ServiceName,
    slots: u32,
) -> u32 {
    in_use(draft, release, candidate, service).range(..slots).count() as u32
}

/// The first instances are validated: from now on the candidate has traffic.
pub(crate) fn begin(draft: &mut Draft<'_>, rollout: &Rollout) {
    let of = match draft.snapshot.release(&rollout.env, rollout.to).map(|r| r.spec.strategy().clone()) {
        Some(Strategy::Canary(canary)) => canary.steps.len() as u32,
        _ => 0,
    };
    draft.put_environment(&rollout.env, |env| {
        if let Some(Mix { share: Share::Rolling { live, .. }, .. }) = &mut env.mix {
            *live = true;
        }
    });
    let shares = shares(draft, rollout);
    draft.put_rollout(rollout.id, |r| {
        r.step = Some(Step { number: u32::from(of > 0), of, ..Step::default() });
        r.receipt.shares = shares;
        (r.deadline, r.failures) = (None, 0);
    });
    draft.move_rollout(rollout.id, RolloutPhase::Shifting, None);
}

/// What both releases have answered so far.
fn shares(draft: &Draft<'_>, rollout: &Rollout) -> BTreeMap<ReleaseNumber, SharePeriod> {
    let Some(edge) = &draft.observed.edge else { return BTreeMap::new() };
    let serving = draft.environment(&rollout.env).and_then(|e| e.serving);
    let both = serving.into_iter().chain([rollout.to]);
    both.map(|n| (n, SharePeriod { opened: edge.mark_of_release(&rollout.env, n), closed: None })).collect()
}

/// Closes the counts of both releases, when one of them has all traffic.
pub(crate) fn close_shares(draft: &mut Draft<'_>, rollout: &Rollout) {
    let Some(edge) = &draft.observed.edge else { return };
    draft.put_rollout(rollout.id, |r| {
        for (number, period) in r.receipt.shares.iter_mut().filter(|(_, period)| period.closed.is_none()) {
            period.closed = Some(edge.mark_of_release(&rollout.env, *number));
        }
    });
}

/// One look at a rollout in `shifting`.
pub(crate) fn step(draft: &mut Draft<'_>, rollout: &Rollout) {
    let Some(release) = draft.snapshot.release(&rollout.env, rollout.to).cloned() else { return };
    let Some(environment) = draft.environment(&rollout.env) else { return };
    match (environment.mix.as_ref().map(|mix| &mix.share), release.spec.strategy()) {
        (Some(Share::Canary { weight, size }), Strategy::Canary(policy)) => {
            let look = canary::Look { rollout, release: &release, policy, weight: *weight, size: *size };
            look.step(draft);
        }
        (Some(Share::Rolling { counts, .. }), _) => roll(draft, rollout, &release, counts),
        // Nothing is shared any more: what is left is the switch.
        _ => finish(draft, rollout, &release),
    }
}

fn roll(draft: &mut Draft<'_>, rollout: &Rollout, release: &Release, counts: &BTreeMap<ServiceName, Counts>) {
    let Some(environment) = draft.environment(&rollout.env) else { return };
    let all = |name: &ServiceName| release.spec.services.get(name).map_or(0, |s| replicas(&environment, s));
    let of: u32 = counts.keys().map(all).sum();
    let used =
        counts.iter().map(|(name, c)| used_of(draft, release, release, name, c.candidate.min(all(name))));
    let number: u32 = used.sum();
    draft.put_rollout(rollout.id, |r| r.step = Some(Step { number, of, ..Step::default() }));
    let serving = environment.serving.and_then(|n| draft.snapshot.release(&rollout.env, n)).cloned();
    let stays = |name| serving.as_ref().is_some_and(|serving| !is_alike(serving, release, name));
    if number >= of && counts.iter().all(|(name, c)| c.serving == 0 || stays(name)) {
        finish(draft, rollout, release);
    } else if late(draft, rollout, release) {
        let reason =
            format!("{number} of {of} instances were replaced; the next was not within {}", limit(release));
        take_back(draft, rollout, reason, waiting(draft, rollout));
    }
}

/// The one switch, once every instance is validated and was seen now.
fn finish(draft: &mut Draft<'_>, rollout: &Rollout, release: &Release) {
    let Some(environment) = draft.environment(&rollout.env) else { return };
    let whole = release.spec.services.values().all(|service| {
        let slots = 0..replicas(&environment, service);
        validated(draft, release, &service.name, |slot| slots.contains(&slot)) >= slots.len()
    });
    if whole && draft.observed.seen.is_some() {
        put_into_use(draft, rollout, release);
    } else if late(draft, rollout, release) {
        let reason = format!("not every instance was validated within {}", limit(release));
        take_back(draft, rollout, reason, waiting(draft, rollout));
    }
}

/// Whether the present step should be over. The first call sets its time.
fn late(draft: &mut Draft<'_>, rollout: &Rollout, release: &Release) -> bool {
    let present = draft.snapshot.rollouts.get(&rollout.id).and_then(|r| r.deadline);
    let deadline = present.unwrap_or(draft.now() + limit(release));
    draft.put_rollout(rollout.id, |r| r.deadline = Some(deadline));
    draft.wake_at(deadline);
    draft.now() >= deadline
}

fn waiting(draft: &Draft<'_>, rollout: &Rollout) -> Vec<String> {
    let own = draft.instances_of(&rollout.env).into_iter();
    let own = own.filter(|i| i.release == rollout.to && !i.state.is_validated());
    own.flat_map(|i: Arc<Instance>| crate::rollout::evidence(draft, &i)).collect()
}
