//! `kiln recover`: one commit that adopts what serves, proposes a table of it above the edge's own, and ends the hold.

use super::World;
use super::adopt::{Adopted, Survey, scaled, survey};
use crate::command::{Decision, Outcome, Refusal, Request};
use crate::route;
use kiln_model::mix::{BASELINE_SLOT, Counts};
use kiln_model::mutant::{Mutant, planted};
use kiln_model::{
    EnvRef, Environment, Event, Evidence, Instance, InstanceId, InstanceState, Millis, Mix, Mutation,
    Release, ReleaseNumber, Rollout, RolloutPhase, Secret, SecretContent, SeenState, ServiceName, Share,
    Snapshot, Strategy,
};
use std::collections::{BTreeMap, BTreeSet};

/// Decides on the end of a hold.
pub fn recover(snapshot: &Snapshot, request: &Request, world: &World) -> Result<Decision, Refusal> {
    if snapshot.recovery.is_none() {
        return Err(Refusal::NotRecovering);
    }
    if let Some(row) = snapshot.damaged.first() {
        return Err(Refusal::DamagedHold { what: row.what.clone() });
    }
    let survey = survey(snapshot, world).ok_or(Refusal::Unseen)?;
    let mut draft = Adoption { after: snapshot.clone(), mutations: vec![], events: vec![], request };
    draft.adopt(&survey, world);
    draft.end_rollouts();
    draft.propose(world);
    let last = world.memory.as_ref().map_or(0, |memory| memory.last_instance);
    let last = if planted(Mutant::NumbersAgain) { 0 } else { last };
    draft.put(Mutation::Recovered { next_instance: last.saturating_add(1) });
    let (adopted, removed) = (survey.adopted.len(), survey.pruned.len() + survey.unroutable.len());
    let detail = format!("{adopted} instances adopted, {removed} to be removed");
    draft.event(None, "recover", "the whole server".into(), detail);
    let Adoption { mutations, events, .. } = draft;
    Ok(Decision { mutations, events, outcome: Outcome::Recovered { adopted, removed } })
}

struct Adoption<'a> {
    after: Snapshot,
    mutations: Vec<Mutation>,
    events: Vec<Event>,
    request: &'a Request,
}

impl Adoption<'_> {
    fn put(&mut self, mutation: Mutation) {
        self.after.apply(&mutation);
        self.mutations.push(mutation);
    }

    fn event(&mut self, env: Option<&EnvRef>, kind: &str, subject: String, detail: String) {
        let (at, actor) = (self.request.at, self.request.actor.clone());
        self.events.push(Event { at, actor, env: env.cloned(), kind: kind.into(), subject, detail });
    }

    fn adopt(&mut self, survey: &Survey, world: &World) {
        self.lose(world);
        for adopted in &survey.adopted {
            self.adopt_release(adopted, &survey.serving);
        }
        for (env, name, version) in &survey.secrets {
            let newest = self.after.secrets_of(env, Some(name)).next_back().map(|secret| secret.version);
            if newest < Some(*version) {
                self.put(Mutation::PutSecret(Box::new(Secret {
                    env: env.clone(),
                    name: name.clone(),
                    version: *version,
                    created: self.request.at,
                    actor: self.request.actor.clone(),
                    content: SecretContent::Removed,
                })));
            }
        }
        for (env, releases) in &survey.serving {
            self.serve(env, releases, &survey.adopted);
        }
        self.raise_releases(world);
        for adopted in &survey.adopted {
            self.adopt_instance(adopted, world);
        }
        for (env, releases) in &survey.serving {
            self.keep_size(env, releases, world);
        }
    }

    /// Whoever has a row and is not there any more is in no table: its address may be somebody else's.
    fn lose(&mut self, world: &World) {
        let is_there = |row: &Instance| world.seen.as_ref().is_none_or(|seen| seen.contains_key(&row.id));
        let is_lost =
            |row: &Instance| !row.state.is_over() && row.state != InstanceState::Intent && !is_there(row);
        let lost: Vec<_> = self.after.instances.values().filter(|row| is_lost(row)).cloned().collect();
        for row in lost {
            let (state, since) = (InstanceState::Lost, self.request.now);
            let reason = Some("it was gone when the state was restored".into());
            self.put(Mutation::PutInstance(Box::new(Instance {
                state,
                since,
                reason,
                ..Instance::clone(&row)
            })));
        }
    }

    /// Its release as it was sealed, in an environment that exists.
    fn adopt_release(&mut self, adopted: &Adopted, serving: &BTreeMap<EnvRef, Vec<ReleaseNumber>>) {
        let release = &adopted.origin.release;
        let env = &release.env;
        if !self.after.environments.contains_key(env) {
            let environment = Environment { network: adopted.spec.network, ..Environment::new(env.clone()) };
            self.put(Mutation::PutEnvironment(environment));
        }
        let known = self.after.release(env, release.number);
        let serves = serving.get(env).is_some_and(|all| all.contains(&release.number));
        let served = known.is_some_and(|known| known.served) || serves;
        let whole = match known {
            Some(known) => Release { images: release.images.clone(), served, ..Release::clone(known) },
            None => Release { served, ..release.clone() },
        };
        if self.after.release(env, release.number).is_none_or(|known| **known != whole) {
            self.put(Mutation::PutRelease(Box::new(whole)));
        }
    }

    /// What the edge sends to is what serves.
    fn serve(&mut self, env: &EnvRef, releases: &[ReleaseNumber], adopted: &[Adopted]) {
        let Some(known) = self.after.environments.get(env) else { return };
        let mut environment = Environment::clone(known);
        let serving = releases.first().copied();
        let other = releases.get(1).copied();
        if environment.serving != serving {
            environment.serving = serving;
            environment.keep = None;
            environment.deaths.clear();
            environment.kept_deaths.clear();
        }
        if environment.destroyed {
            environment.destroyed = false;
            environment.network = self.after.network_for(env);
        }
        let same = environment.mix.as_ref().map(|mix| mix.release) == other;
        if !same {
            environment.mix = other.and_then(|other| self.shared(env, other, adopted));
        }
        if environment != **known {
            let detail = serving.map_or("nothing".to_owned(), |number| format!("release {number}"));
            self.event(Some(env), "recovery.serves", format!("environment {env}"), detail);
            self.put(Mutation::PutEnvironment(environment));
        }
    }

    /// A rolling release keeps what it has until the serving one is whole again; in a canary that one is whole.
    fn shared(&self, env: &EnvRef, other: ReleaseNumber, adopted: &[Adopted]) -> Option<Mix> {
        let release = self.after.release(env, other)?;
        if !matches!(release.spec.strategy(), Strategy::Rolling(_)) {
            return None;
        }
        let count = |name: &ServiceName, is_other: bool| {
            let own = adopted.iter().filter(|a| &a.spec.env == env && &a.spec.service == name);
            let rows = self.after.instances_of(env).filter(|i| &i.service == name && i.state.is_validated());
            let adopted = own.filter(|a| (a.spec.release == other) == is_other).count();
            (adopted + rows.filter(|i| (i.release == other) == is_other).count()) as u32
        };
        let counts =
            release.spec.services.keys().map(|name| {
                (name.clone(), Counts { serving: count(name, false), candidate: count(name, true) })
            });
        Some(Mix { release: other, share: Share::Rolling { live: true, counts: counts.collect() } })
    }

    /// No number of a release is given again that anything in the world has.
    fn raise_releases(&mut self, world: &World) {
        let mut highest: BTreeMap<&EnvRef, ReleaseNumber> = BTreeMap::new();
        let specs = world.memory.iter().flat_map(|memory| memory.specs.values());
        for spec in specs {
            let number = highest.entry(&spec.env).or_default();
            *number = spec.release.max(*number);
        }
        for (env, number) in highest {
            let Some(known) = self.after.environments.get(env) else { continue };
            if known.next_release <= number {
                let next = Environment { next_release: number.next(), ..Environment::clone(known) };
                self.put(Mutation::PutEnvironment(next));
            }
        }
    }

    fn adopt_instance(&mut self, adopted: &Adopted, world: &World) {
        let Adopted { spec, origin, address, in_use } = adopted;
        let id = &spec.id;
        self.free_slot(adopted, world);
        let state = if *in_use { InstanceState::Serving } else { InstanceState::Validated };
        let detail = if *in_use { "the edge sends to it" } else { "it runs, and its release serves" };
        let evidence = Evidence {
            check: "recover".into(),
            passed: true,
            detail: detail.into(),
            took: Millis(0),
            at: self.request.at,
        };
        self.put(Mutation::PutInstance(Box::new(Instance {
            id: id.clone(),
            env: spec.env.clone(),
            release: spec.release,
            service: spec.service.clone(),
            slot: origin.slot,
            image: spec.image,
            network: spec.network,
            state,
            since: self.request.now,
            created: self.request.at,
            address: *address,
            evidence: vec![evidence],
            reason: None,
        })));
        self.event(Some(&spec.env), "instance.adopted", format!("instance {id}"), detail.into());
    }

    /// Whoever the state has in the slot of an instance that serves is not there any more, or was to be replaced by it.
    fn free_slot(&mut self, adopted: &Adopted, world: &World) {
        let Adopted { spec, origin, .. } = adopted;
        let is_other = |row: &Instance| {
            row.id != spec.id
                && row.release == spec.release
                && row.service == spec.service
                && row.slot == origin.slot
                && row.state.is_wanted()
        };
        let others: Vec<_> =
            self.after.instances_of(&spec.env).filter(|row| is_other(row)).cloned().collect();
        for row in others {
            let seen = world.seen.as_ref().and_then(|seen| seen.get(&row.id));
            let lives = seen.is_some_and(|seen| seen.state == SeenState::Running);
            let (state, reason) = match lives {
                true => (InstanceState::Retiring, format!("{} has its slot", spec.id)),
                false => (InstanceState::Lost, "it was replaced after the backup was taken".into()),
            };
            let (since, reason) = (self.request.now, Some(reason));
            self.put(Mutation::PutInstance(Box::new(Instance {
                state,
                since,
                reason,
                ..Instance::clone(&row)
            })));
        }
    }

    /// As many stay as the edge sends to.
    fn keep_size(&mut self, env: &EnvRef, releases: &[ReleaseNumber], world: &World) {
        let Some(known) = self.after.environments.get(env).filter(|known| known.mix.is_none()) else {
            return;
        };
        let release = releases.first().and_then(|number| self.after.release(env, *number));
        let Some(release) = release.cloned() else { return };
        let in_use: BTreeSet<&InstanceId> = world
            .edge
            .iter()
            .flat_map(|edge| &edge.targets)
            .filter(|target| target.in_table)
            .map(|target| &target.instance)
            .collect();
        let own = self.after.instances_of(env).filter(|row| {
            row.release == release.number && row.slot < BASELINE_SLOT && in_use.contains(&row.id)
        });
        let slots = own.map(|row| (row.service.clone(), row.slot)).collect();
        let mut environment = Environment::clone(known);
        for (name, n) in scaled(&environment, &release, &slots) {
            let follows_load = release.spec.services.get(&name).is_some_and(|s| s.autoscale.is_some());
            if follows_load && !environment.scale.contains_key(&name) {
                environment.auto.insert(name, n);
            } else {
                environment.scale.insert(name, n);
            }
        }
        if environment != **known {
            self.put(Mutation::PutEnvironment(environment));
        }
    }

    /// What was under way when the backup was taken is not any more: the world went on without it.
    fn end_rollouts(&mut self) {
        let active: Vec<_> = self.after.rollouts.values().filter(|r| !r.phase.is_end()).cloned().collect();
        for rollout in active {
            let serving = self.after.environments.get(&rollout.env).and_then(|e| e.serving);
            let phase = match rollout.phase {
                phase if phase.is_before_switch() => RolloutPhase::Superseded,
                // The table that is proposed is acknowledged, and it goes on from there.
                _ if serving == Some(rollout.to) => continue,
                RolloutPhase::Switching => RolloutPhase::TakenBack,
                _ => RolloutPhase::Succeeded,
            };
            let reason = "the state was restored from a backup".to_owned();
            let (subject, kind) = (format!("rollout {}", rollout.id), format!("rollout.{}", phase.word()));
            self.event(Some(&rollout.env), &kind, subject, reason.clone());
            self.put(Mutation::PutRollout(Box::new(Rollout {
                phase,
                since: self.request.now,
                ended: Some(self.request.at),
                reason: Some(reason),
                ..Rollout::clone(&rollout)
            })));
        }
    }

    /// A table above every one that the edge has. Until it is acknowledged nothing is ended.
    fn propose(&mut self, world: &World) {
        let at_edge = world.edge.as_ref().map(|edge| edge.generation).unwrap_or_default();
        let (own, current) = self.after.route.clone();
        let table = route::table(&self.after);
        let digest = world.edge.as_ref().and_then(|edge| edge.digest);
        if *current == table && own == at_edge && digest == self.after.route_digest {
            return;
        }
        let empty = own.0 == 0 && at_edge.0 == 0 && table == *current;
        if !empty {
            let generation = own.max(at_edge).next();
            self.put(Mutation::PutRoute { generation, table: Box::new(table) });
        }
    }
}
