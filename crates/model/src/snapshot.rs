//! The whole truth at one revision, and what each [`Mutation`] means.

use crate::answer::Answered;
use crate::digest::Digest;
use crate::edge::Mark;
use crate::fence::{Incarnation, OpId, Revision};
use crate::ids::{EnvName, EnvRef, InstanceId, ReleaseNumber, RolloutId, ServiceName};
use crate::index::Index;
use crate::instance::Instance;
use crate::limits;
use crate::mix::Mix;
use crate::mutation::Mutation;
use crate::network::NetworkNumber;
use crate::op::{Op, OpKey};
use crate::pause::{Damaged, Pause};
use crate::recovery::Recovery;
use crate::release::Release;
use crate::rollout::Rollout;
use crate::route::{Generation, RouteTable};
use crate::secret::{self, Secret, SecretContent, SecretKey, SecretName};
use crate::time::Boot;
use imbl::OrdMap;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// An environment of a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Which.
    pub env: EnvRef,
    /// The release that the proposed route table sends traffic to.
    pub serving: Option<ReleaseNumber>,
    /// The release that served before, kept validated out of rotation until then.
    pub keep: Option<(ReleaseNumber, Boot)>,
    /// The release that shares the traffic with the serving one, and its share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mix: Option<Mix>,
    /// Overrides of the instances that a release asks for.
    pub scale: BTreeMap<ServiceName, u32>,
    /// Instances that the load of services that scale by themselves asked for last.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub auto: BTreeMap<ServiceName, u32>,
    /// The number that the next release gets.
    pub next_release: ReleaseNumber,
    /// Where the last receipt ended.
    pub receipt_end: Mark,
    /// Deaths in a row of instances of the serving release per service, with the time of the last: the back-off of
    /// healing. Those that die together count as one.
    pub deaths: BTreeMap<ServiceName, (u32, Boot)>,
    /// The same of the kept release, which must not slow down the healing of what serves.
    #[serde(default)]
    pub kept_deaths: BTreeMap<ServiceName, (u32, Boot)>,
    /// `kiln destroy` was asked for: nothing of it may run.
    pub destroyed: bool,
    /// Which service address it has.
    #[serde(default)]
    pub network: NetworkNumber,
    /// The environment that it was made like: where a kiln.toml says nothing of this one, it is as that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub like: Option<EnvName>,
    /// Effects are stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Pause>,
}

impl Environment {
    /// A new, empty one.
    pub fn new(env: EnvRef) -> Self {
        Self {
            env,
            serving: None,
            keep: None,
            mix: None,
            scale: BTreeMap::new(),
            auto: BTreeMap::new(),
            next_release: ReleaseNumber(1),
            receipt_end: Mark::default(),
            deaths: BTreeMap::new(),
            kept_deaths: BTreeMap::new(),
            destroyed: false,
            network: NetworkNumber::default(),
            like: None,
            paused: None,
        }
    }

    /// The deaths that healing `release` reckons with; none if nothing of it is healed but by a rollout.
    pub fn deaths_of(&self, release: ReleaseNumber) -> Option<&BTreeMap<ServiceName, (u32, Boot)>> {
        if self.serving == Some(release) {
            return Some(&self.deaths);
        }
        self.keep.filter(|(kept, _)| *kept == release).map(|_| &self.kept_deaths)
    }

    /// See [`Environment::deaths_of`].
    pub fn deaths_of_mut(
        &mut self,
        release: ReleaseNumber,
    ) -> Option<&mut BTreeMap<ServiceName, (u32, Boot)>> {
        if self.serving == Some(release) {
            return Some(&mut self.deaths);
        }
        self.keep.filter(|(kept, _)| *kept == release).map(|_| &mut self.kept_deaths)
    }
}

/// Everything that is durable and still matters, at one revision. Cheap to clone and to change a little: its maps share
/// what did not change. Changed by [`Snapshot::apply`] alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Of which commit.
    pub revision: Revision,
    /// Of which history.
    pub incarnation: Incarnation,
    /// The host's boot id that all [`Boot`] times belong to; empty before the first [`Mutation::Rebase`].
    pub boot_id: String,
    /// By name.
    pub environments: OrdMap<EnvRef, Arc<Environment>>,
    /// All of them.
    pub releases: OrdMap<(EnvRef, ReleaseNumber), Arc<Release>>,
    /// All versions of all secrets, sealed. No pass of the planner changes them: a copy of the snapshot shares them.
    pub secrets: Arc<BTreeMap<SecretKey, Arc<Secret>>>,
    /// All of them.
    pub rollouts: OrdMap<RolloutId, Arc<Rollout>>,
    /// Those that are not gone.
    pub instances: OrdMap<InstanceId, Arc<Instance>>,
    /// Intent rows.
    pub ops: OrdMap<OpKey, Op>,
    /// The last proposed table.
    pub route: (Generation, Arc<RouteTable>),
    /// Its digest.
    pub route_digest: Option<Digest>,
    /// The last generation that the edge acknowledged.
    pub acked: Generation,
    /// The sequence number that the next instance gets.
    pub next_instance: u64,
    /// The number that the next rollout gets.
    pub next_rollout: RolloutId,
    /// The number that the next effect gets.
    pub next_op: OpId,
    index: Index,
    /// Effects are stopped in every environment.
    pub paused: Option<Pause>,
    /// The state is older than the world, or may be.
    pub recovery: Option<Recovery>,
    /// Answers to commands that named themselves, by key.
    pub answers: OrdMap<String, Arc<Answered>>,
    /// Rows that the store could not read.
    pub damaged: Vec<Damaged>,
}

impl Snapshot {
    /// Carries out one change. Does not touch `revision`.
    pub fn apply(&mut self, mutation: &Mutation) {
        match mutation {
            Mutation::PutEnvironment(env) => {
                self.environments.insert(env.env.clone(), Arc::new(env.clone()));
            }
            Mutation::PutRelease(release) => {
                let key = (release.env.clone(), release.number);
                self.releases.insert(key, Arc::new(Release::clone(release)));
            }
            Mutation::PutSecret(secret) => {
                let row = Arc::new(Secret::clone(secret));
                Arc::make_mut(&mut self.secrets).insert(secret.key(), row);
            }
            Mutation::PutRollout(rollout) => {
                self.next_rollout = self.next_rollout.max(rollout.id.next());
                self.index.put_rollout(rollout);
                self.rollouts.insert(rollout.id, Arc::new(Rollout::clone(rollout)));
            }
            Mutation::PutInstance(instance) => {
                self.next_instance = self.next_instance.max(instance.id.sequence().saturating_add(1));
                let instance = Arc::new(Instance::clone(instance));
                self.index.put_instance(instance.clone());
                self.instances.insert(instance.id.clone(), instance);
            }
            Mutation::Gone { instance } => {
                // Also one that had no row: after a restore of old state the provider may know newer ones.
                self.next_instance = self.next_instance.max(instance.sequence().saturating_add(1));
                if let Some(row) = self.instances.remove(instance) {
                    self.index.remove_instance(&row);
                }
            }
            Mutation::PutOp(op) => {
                if let OpKey::Absent { instance } = &op.key {
                    // Also one that has no row: if its end is never told, its number is not given again all the same.
                    self.next_instance = self.next_instance.max(instance.sequence().saturating_add(1));
                }
                self.next_op = self.next_op.max(op.id.next());
                self.ops.insert(op.key.clone(), op.clone());
            }
            Mutation::DropOp { key, id } => {
                if self.ops.get(key).is_some_and(|op| op.id == *id) {
                    self.ops.remove(key);
                }
            }
            Mutation::PutRoute { generation, table } => {
                self.route_digest = Some(table.digest());
                self.index.put_route(table);
                self.route = (*generation, Arc::new(RouteTable::clone(table)));
            }
            Mutation::Answer(answer) => self.remember(answer),
            Mutation::Pause { env: None, pause } => self.paused.clone_from(pause),
            Mutation::Pause { env: Some(env), pause } => {
                if let Some(environment) = self.environments.get_mut(env) {
                    Arc::make_mut(environment).paused.clone_from(pause);
                }
            }
            Mutation::Hold { recovery } => self.recovery = Some(recovery.clone()),
            Mutation::Recovered { next_instance } => {
                self.recovery = None;
                self.next_instance = self.next_instance.max(*next_instance);
            }
            Mutation::RouteAcked { generation } => self.acked = self.acked.max(*generation),
            Mutation::Rebase { boot_id, now } => self.rebase(boot_id, *now),
        }
    }

    fn remember(&mut self, answer: &Answered) {
        self.answers.insert(answer.key.clone(), Arc::new(answer.clone()));
        while self.answers.len() > limits::ANSWERS_MAX {
            let oldest = self.answers.values().min_by_key(|a| (a.revision, &a.key)).map(|a| a.key.clone());
            oldest.and_then(|key| self.answers.remove(&key));
        }
    }

    fn rebase(&mut self, boot_id: &str, now: Boot) {
        self.boot_id = boot_id.to_owned();
        self.paused.iter_mut().for_each(|pause| pause.since = now);
        self.recovery.iter_mut().for_each(|recovery| recovery.since = now);
        change_all(&mut self.environments, |env| {
            let env = Arc::make_mut(env);
            env.paused.iter_mut().for_each(|pause| pause.since = now);
            env.keep = None;
            env.deaths.clear();
            env.kept_deaths.clear();
        });
        change_all(&mut self.rollouts, |rollout| {
            let rollout = Arc::make_mut(rollout);
            (rollout.since, rollout.begun, rollout.deadline) = (now, now, None);
            if let Some(step) = &mut rollout.step {
                step.begun = step.begun.map(|_| now);
                step.hold.iter_mut().for_each(|hold| hold.since = now);
            }
        });
        change_all(&mut self.instances, |instance| Arc::make_mut(instance).since = now);
        self.instances.values().for_each(|instance| self.index.put_instance(instance.clone()));
        change_all(&mut self.ops, |op| op.not_before = now);
    }

    /// The pause that holds for an environment: its own, or that of the whole server.
    pub fn pause_of(&self, env: &EnvRef) -> Option<&Pause> {
        let own = self.environments.get(env).and_then(|environment| environment.paused.as_ref());
        own.or(self.paused.as_ref())
    }

    /// What of an environment cannot be read.
    pub fn damage_of(&self, env: &EnvRef) -> impl Iterator<Item = &Damaged> {
        self.damaged.iter().filter(move |row| row.env.as_ref().is_none_or(|owner| owner == env))
    }

    /// Whose effect that is; none if it is of no environment, or of one without a record.
    pub fn env_of<'a>(&'a self, key: &'a OpKey) -> Option<&'a EnvRef> {
        match key {
            OpKey::Bake { env, .. } => Some(env),
            OpKey::Ensure { instance } | OpKey::Absent { instance } => {
                self.instances.get(instance).map(|instance| &instance.env)
            }
            OpKey::SetRoute { .. } => None,
        }
    }

    /// The release of that number, if it exists.
    pub fn release(&self, env: &EnvRef, number: ReleaseNumber) -> Option<&Arc<Release>> {
        self.releases.get(&(env.clone(), number))
    }

    /// The number that an environment has, or gets if it has none or another took its own while it was destroyed: the
    /// smallest that nobody has. One that is destroyed gives its own back when nothing of it is left.
    pub fn network_for(&self, env: &EnvRef) -> NetworkNumber {
        let others =
            self.environments.values().filter(|other| &other.env != env && self.holds_network(other));
        // Also of one whose record cannot be read.
        let known = |instance: &Arc<Instance>| self.environments.contains_key(&instance.env);
        let orphans = self.instances.values().filter(|instance| &instance.env != env && !known(instance));
        let taken = others.map(|other| other.network).chain(orphans.map(|instance| instance.network));
        let taken: BTreeSet<NetworkNumber> = taken.collect();
        let own = self.environments.get(env).map(|e| e.network).unwrap_or_default();
        if own.is_given() && !taken.contains(&own) {
            return own;
        }
        (1..).map(NetworkNumber).find(|number| !taken.contains(number)).unwrap_or_default()
    }

    fn holds_network(&self, environment: &Environment) -> bool {
        let routed = || self.route.1.internal.iter().any(|route| route.network == environment.network);
        !environment.destroyed || self.instances_of(&environment.env).next().is_some() || routed()
    }

    /// Releases of one environment, oldest first.
    pub fn releases_of(&self, env: &EnvRef) -> impl DoubleEndedIterator<Item = &Arc<Release>> {
        self.releases
            .range((env.clone(), ReleaseNumber(0))..=(env.clone(), ReleaseNumber(u64::MAX)))
            .map(|(_, release)| release)
    }

    /// The names of an environment and of those that it was made like, nearest first.
    pub fn names_of(&self, env: &EnvRef) -> Vec<EnvName> {
        let mut names = vec![env.env.clone()];
        while let Some(last) = names.last() {
            let last = EnvRef { project: env.project.clone(), env: last.clone() };
            let like = self.environments.get(&last).and_then(|environment| environment.like.clone());
            match like.filter(|like| !names.contains(like)) {
                Some(like) => names.push(like),
                None => break,
            }
        }
        names
    }

    /// Versions of one secret of an environment, or of all of them, each secret's oldest first.
    pub fn secrets_of<'a>(
        &'a self,
        env: &EnvRef,
        name: Option<&SecretName>,
    ) -> impl DoubleEndedIterator<Item = &'a Arc<Secret>> + use<'a> {
        self.secrets.range(secret::keys(env, name)).map(|(_, secret)| secret)
    }

    /// The newest version of a secret that is set.
    pub fn current_secret(&self, env: &EnvRef, name: &SecretName) -> Option<&Arc<Secret>> {
        let newest = self.secrets_of(env, Some(name)).next_back()?;
        matches!(newest.content, SecretContent::Sealed { .. }).then_some(newest)
    }

    /// Rollouts of one environment that have not ended, oldest first. At most one of them has left `planned`.
    pub fn active_rollouts(&self, env: &EnvRef) -> impl DoubleEndedIterator<Item = &Arc<Rollout>> {
        self.index.active(env).filter_map(|id| self.rollouts.get(id))
    }

    /// Instances of one environment that are not gone.
    pub fn instances_of(&self, env: &EnvRef) -> impl DoubleEndedIterator<Item = &Arc<Instance>> {
        self.index.instances(env)
    }

    /// How many those are.
    pub fn n_instances_of(&self, env: &EnvRef) -> usize {
        self.index.n_instances(env)
    }

    /// Whether the last proposed table sends traffic to the instance.
    pub fn is_routed(&self, instance: &InstanceId) -> bool {
        self.index.is_routed(instance)
    }

    /// Whether the last proposed table has anything of the environment.
    pub fn has_pools(&self, env: &EnvRef) -> bool {
        self.index.has_pools(env)
    }
}

fn change_all<K: Ord + Clone, V: Clone>(rows: &mut OrdMap<K, V>, change: impl Fn(&mut V)) {
    let changed = |(key, row): (&K, &V)| {
        let mut row = row.clone();
        change(&mut row);
        (key.clone(), row)
    };
    *rows = rows.iter().map(changed).collect();
}
