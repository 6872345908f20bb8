//! What the world has that the state does not: who is adopted, who is not, and which release serves.

use super::World;
use crate::route::replicas;
use kiln_model::mix::BASELINE_SLOT;
use kiln_model::{
    EnvRef, Environment, Instance, InstanceId, InstanceSpec, InstanceState, Origin, Release, ReleaseNumber,
    SecretName, SecretVersion, SeenState, ServiceName, Snapshot,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// An instance that gets its row back, or one whose row is behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    /// What lies with it.
    pub spec: InstanceSpec,
    /// Its release and its slot.
    pub origin: Origin,
    /// Where it answers.
    pub address: Option<IpAddr>,
    /// Whether the edge sends to it; else it is of a service that takes no requests.
    pub in_use: bool,
}

/// An instance that is not adopted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Which.
    pub instance: InstanceId,
    /// Whose, if that is known.
    pub env: Option<EnvRef>,
    /// Why not.
    pub why: String,
}

/// What a recovery would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// Gets a row, in order of number.
    pub adopted: Vec<Adopted>,
    /// Is removed when the edge has a table without it; it serves nothing.
    pub pruned: Vec<Lost>,
    /// The edge sends to it, and nobody knows what it is of: it leaves the table.
    pub unroutable: Vec<Lost>,
    /// The releases that the edge sends to, by environment. The first one serves; with another one it shares the traffic.
    pub serving: BTreeMap<EnvRef, Vec<ReleaseNumber>>,
    /// Environments whose serving release is another one than the state says: that of the state.
    pub changed: BTreeMap<EnvRef, Option<ReleaseNumber>>,
    /// Services of which nothing runs although the state wants it: they are started.
    pub started: Vec<(EnvRef, ReleaseNumber, ServiceName)>,
    /// Versions of secrets that adopted releases have and the state does not: their values are lost.
    pub secrets: BTreeSet<(EnvRef, SecretName, SecretVersion)>,
    /// Nothing runs at all.
    pub empty: bool,
}

impl Survey {
    /// Whether state and world agree, so that nothing of a hold protects anything.
    pub fn agrees(&self) -> bool {
        let same = self.adopted.is_empty() && self.pruned.is_empty() && self.unroutable.is_empty();
        same && self.changed.is_empty() && (self.started.is_empty() || self.empty)
    }
}

/// Looks at both; none if the world could not be asked.
pub fn survey(snapshot: &Snapshot, world: &World) -> Option<Survey> {
    let look = Look::new(snapshot, world)?;
    let mut survey = Survey { empty: look.seen.is_empty() && look.in_use.is_empty(), ..Survey::default() };
    let mut waiting = vec![];
    for (id, state) in &look.seen {
        match look.judge(id, state) {
            Verdict::Known => {}
            Verdict::Adopt(adopted) if adopted.in_use => survey.adopted.push(*adopted),
            Verdict::Adopt(adopted) => waiting.push(*adopted),
            Verdict::Not(lost) if look.in_use.contains_key(id) => survey.unroutable.push(lost),
            Verdict::Not(lost) => survey.pruned.push(lost),
        }
    }
    survey.serving = look.serving(&survey.adopted);
    // What takes no requests belongs to a release if others of it serve.
    for adopted in waiting {
        let own = survey.serving.get(&adopted.spec.env).and_then(|all| all.first());
        let portless = adopted.spec.port.is_none();
        if portless && own == Some(&adopted.spec.release) {
            survey.adopted.push(adopted);
        } else {
            let (instance, env) = (adopted.spec.id, Some(adopted.spec.env));
            survey.pruned.push(Lost { instance, env, why: "it takes no requests".into() });
        }
    }
    survey.adopted.sort_by_key(|adopted| adopted.spec.id.sequence());
    for (env, releases) in &survey.serving {
        let before = snapshot.environments.get(env).and_then(|e| e.serving);
        if before != releases.first().copied() {
            survey.changed.insert(env.clone(), before);
        }
    }
    survey.started = look.started(&survey);
    survey.secrets = look.secrets(&survey.adopted);
    Some(survey)
}

enum Verdict {
    Known,
    Adopt(Box<Adopted>),
    Not(Lost),
}

struct Look<'a> {
    snapshot: &'a Snapshot,
    specs: &'a BTreeMap<InstanceId, InstanceSpec>,
    seen: BTreeMap<&'a InstanceId, (&'a SeenState, Option<IpAddr>)>,
    /// What the edge sends to.
    in_use: BTreeMap<&'a InstanceId, (&'a EnvRef, ReleaseNumber)>,
}

impl<'a> Look<'a> {
    fn new(snapshot: &'a Snapshot, world: &'a World) -> Option<Self> {
        let seen = world.seen.as_ref()?.iter().map(|(id, seen)| (id, (&seen.state, seen.address))).collect();
        let targets = world.edge.as_ref()?.targets.iter().filter(|target| target.in_table);
        let in_use = targets.map(|t| (&t.instance, (&t.env, t.release))).collect();
        Some(Self { snapshot, specs: &world.memory.as_ref()?.specs, seen, in_use })
    }

    fn judge(&self, id: &InstanceId, (state, address): &(&SeenState, Option<IpAddr>)) -> Verdict {
        let spec = self.specs.get(id);
        let not = |why: &str| {
            let (instance, env) = (id.clone(), spec.map(|spec| spec.env.clone()));
            Verdict::Not(Lost { instance, env, why: why.into() })
        };
        let in_use = self.in_use.contains_key(id);
        if let Some(row) = self.snapshot.instances.get(id) {
            use InstanceState::{Booting, Intent, Probing};
            let behind = in_use && matches!(row.state, Intent | Booting | Probing);
            if !behind || **state != SeenState::Running {
                return Verdict::Known;
            }
        } else if id.sequence() < self.snapshot.next_instance {
            return not("it was destroyed before the backup was taken");
        }
        if **state != SeenState::Running {
            return not("it does not run");
        }
        let Some((spec, origin)) = spec.and_then(|spec| Some((spec, spec.origin.as_deref()?))) else {
            return not("an older kiln started it, and what it is of does not lie with it");
        };
        if !self.is_same_release(&origin.release) {
            return not("its release is another one in the state");
        }
        if !in_use && spec.port.is_some() {
            return not("the edge sends nothing to it");
        }
        let (spec, origin, address) = (spec.clone(), origin.clone(), *address);
        Verdict::Adopt(Box::new(Adopted { spec, origin, address, in_use }))
    }

    /// Whether the number of a release is free, or that release's.
    fn is_same_release(&self, release: &Release) -> bool {
        self.snapshot.release(&release.env, release.number).is_none_or(|own| {
            own.spec == release.spec && (own.images.is_none() || own.images == release.images)
        })
    }

    /// Which releases the edge sends to, of those that are known or adopted.
    fn serving(&self, adopted: &[Adopted]) -> BTreeMap<EnvRef, Vec<ReleaseNumber>> {
        let adopted: BTreeSet<&InstanceId> = adopted.iter().map(|adopted| &adopted.spec.id).collect();
        let mut found: BTreeMap<EnvRef, BTreeSet<ReleaseNumber>> = BTreeMap::new();
        for (id, (env, release)) in &self.in_use {
            if adopted.contains(id) || self.snapshot.instances.contains_key(*id) {
                found.entry((*env).clone()).or_default().insert(*release);
            }
        }
        let ordered = |(env, releases): (EnvRef, BTreeSet<ReleaseNumber>)| {
            let own = self.snapshot.environments.get(&env).and_then(|environment| environment.serving);
            let mut releases: Vec<ReleaseNumber> = releases.into_iter().collect();
            // Of two that share the traffic the one that served before serves; the other one is newer.
            releases.sort_by_key(|number| (Some(*number) != own, *number));
            (env, releases)
        };
        found.into_iter().map(ordered).collect()
    }

    fn started(&self, survey: &Survey) -> Vec<(EnvRef, ReleaseNumber, ServiceName)> {
        let runs = |env: &EnvRef, number: ReleaseNumber, service: &ServiceName| {
            let own = |row: &&Arc<Instance>| {
                let lives = self.seen.get(&row.id).is_some_and(|(state, _)| **state == SeenState::Running);
                row.release == number && &row.service == service && lives
            };
            let adopted =
                |a: &Adopted| (&a.spec.env, a.spec.release, &a.spec.service) == (env, number, service);
            self.snapshot.instances_of(env).any(|row| own(&row)) || survey.adopted.iter().any(adopted)
        };
        let mut started = vec![];
        for environment in self.snapshot.environments.values().filter(|e| !e.destroyed) {
            let env = &environment.env;
            let number = survey.serving.get(env).and_then(|all| all.first().copied()).or(environment.serving);
            let release = number.and_then(|number| self.snapshot.release(env, number));
            let services = release.iter().flat_map(|release| release.spec.services.values());
            let wanted = services.filter(|service| replicas(environment, service) > 0);
            let missing = wanted.filter_map(|s| Some((env.clone(), number?, s.name.clone())));
            started.extend(missing.filter(|(env, number, service)| !runs(env, *number, service)));
        }
        started
    }

    fn secrets(&self, adopted: &[Adopted]) -> BTreeSet<(EnvRef, SecretName, SecretVersion)> {
        let bound = adopted.iter().flat_map(|adopted| {
            let release = &adopted.origin.release;
            release.spec.secrets.iter().map(|(name, version)| (release.env.clone(), name.clone(), *version))
        });
        bound.filter(|key| !self.snapshot.secrets.contains_key(key)).collect()
    }
}

/// The instances of a service that the edge sends to, in regular slots, where the state wants fewer: somebody scaled it after
/// the backup was taken.
pub(super) fn scaled(
    environment: &Environment,
    release: &Release,
    slots: &BTreeSet<(ServiceName, u32)>,
) -> BTreeMap<ServiceName, u32> {
    let services = release.spec.services.values().filter(|service| service.port.is_some());
    let counted = services.map(|service| {
        let own = slots.iter().filter(|(name, slot)| *name == service.name && *slot < BASELINE_SLOT);
        (service, own.count() as u32)
    });
    counted
        .filter(|(service, n)| *n > replicas(environment, service))
        .map(|(service, n)| (service.name.clone(), n))
        .collect()
}
