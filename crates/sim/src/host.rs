//! The simulated host: instances with fences, tombstones and addresses that are used again at once. It has the rules of a
//! real provider (`tests/conformance.rs` runs the suite of providers over it), and outlives every process of kiln.

use crate::process::Process;
use crate::project::{Behaviour, behaviour_of};
use crate::world::World;
use async_trait::async_trait;
use kiln_model::mutant::{Mutant, planted};
use kiln_model::{
    Check, Epoch, Evidence, ExitReason, Fence, Incarnation, InstanceId, InstanceSpec, Memory, Millis,
    SecretValues, Seen, SeenState,
};
use kiln_provider::{Provider, ProviderError};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use tokio::sync::Notify;

/// The first address of instances.
const FIRST_ADDRESS: u32 = 0x0a53_0002;

/// An instance on the host.
#[derive(Debug, Clone)]
pub(crate) struct One {
    pub(crate) spec: InstanceSpec,
    pub(crate) address: IpAddr,
    /// Why it ended, if it did.
    pub(crate) exited: Option<ExitReason>,
    /// Since when it answers nothing.
    pub(crate) hung: Option<u64>,
    fence: Fence,
}

impl One {
    /// Whether it answers requests.
    pub(crate) fn answers(&self) -> bool {
        self.exited.is_none() && self.hung.is_none()
    }

    fn seen(&self) -> Seen {
        let state = self.exited.clone().map_or(SeenState::Running, SeenState::Exited);
        Seen { id: self.spec.id.clone(), address: Some(self.address), state }
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Host {
    pub(crate) instances: BTreeMap<InstanceId, One>,
    gone: BTreeSet<InstanceId>,
    /// Addresses of those that vanished: kept until somebody asks for their absence.
    kept: BTreeMap<InstanceId, IpAddr>,
    server: (Incarnation, Epoch),
    pub(crate) newest: Fence,
    listeners: Vec<Arc<Notify>>,
}

impl Host {
    pub(crate) fn listen(&mut self, changed: Arc<Notify>) {
        // Those of dead processes have no other holder.
        self.listeners.retain(|listener| Arc::strong_count(listener) > 1);
        self.listeners.push(changed);
    }

    fn tell(&self) {
        self.listeners.iter().for_each(|listener| listener.notify_one());
    }

    /// Every program is gone.
    pub(crate) fn reboot(&mut self) {
        for one in self.instances.values_mut() {
            one.exited = Some(ExitReason::Unknown);
            one.hung = None;
        }
    }

    fn memory(&self) -> Memory {
        let ids = self.instances.keys().chain(&self.gone).chain(self.kept.keys());
        let specs = self.instances.iter().map(|(id, one)| (id.clone(), one.spec.clone())).collect();
        let last_instance = ids.map(InstanceId::sequence).max().unwrap_or(0);
        Memory { newest: self.newest, last_instance, specs }
    }

    fn free_address(&self) -> IpAddr {
        let taken: BTreeSet<IpAddr> =
            self.instances.values().map(|one| one.address).chain(self.kept.values().copied()).collect();
        let mut addresses = (FIRST_ADDRESS..).map(|number| IpAddr::V4(Ipv4Addr::from(number)));
        addresses.find(|address| !taken.contains(address)).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    fn admit(&mut self, fence: Fence, id: &InstanceId) -> Result<(), ProviderError> {
        self.newest = fence.max(self.newest);
        if planted(Mutant::NoProviderFence) {
            return Ok(());
        }
        let stale = |detail: String| Err(ProviderError::Stale { id: id.clone(), detail });
        if fence.server() < self.server {
            return stale(format!("server {}.{} was seen", self.server.0, self.server.1));
        }
        self.server = fence.server();
        match self.instances.get_mut(id) {
            Some(one) if fence.order() < one.fence.order() => stale(format!("{} came before", one.fence)),
            Some(one) => {
                one.fence = fence;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// One that runs, by chance.
    fn any(world: &mut World, running: impl Fn(&One) -> bool) -> Option<InstanceId> {
        let ids: Vec<InstanceId> =
            world.host.instances.iter().filter(|(_, one)| running(one)).map(|(id, _)| id.clone()).collect();
        let index = world.rng.below(ids.len());
        ids.get(index).cloned()
    }

    /// An instance ends by itself.
    pub(crate) fn death(world: &mut World) {
        let Some(id) = Self::any(world, |one| one.exited.is_none()) else { return };
        let reason = match world.rng.below(3) {
            0 => ExitReason::OutOfMemory,
            1 => ExitReason::Signal { signal: 11 },
            _ => ExitReason::Status { code: 1 },
        };
        world.tell(|| format!("{id} dies: {reason}"));
        Self::end(world, &id, reason);
    }

    /// The program of an instance ends.
    pub(crate) fn end(world: &mut World, id: &InstanceId, reason: ExitReason) {
        let now = world.now;
        if let Some(one) = world.host.instances.get_mut(id) {
            one.exited = Some(reason);
            world.truth.death(now, &one.spec);
        }
        world.dirty = true;
        world.host.tell();
    }

    /// An instance answers nothing any more.
    pub(crate) fn hang(world: &mut World) {
        let Some(id) = Self::any(world, One::answers) else { return };
        world.tell(|| format!("{id} hangs"));
        let now = world.now;
        if let Some(one) = world.host.instances.get_mut(&id) {
            one.hung = Some(now);
            world.truth.death(now, &one.spec);
        }
        world.dirty = true;
    }

    /// An instance vanishes without a trace.
    pub(crate) fn forget(world: &mut World) {
        let Some(id) = Self::any(world, |_| true) else { return };
        world.tell(|| format!("{id} vanishes"));
        let now = world.now;
        if let Some(one) = world.host.instances.remove(&id) {
            world.truth.death(now, &one.spec);
            world.host.kept.insert(id, one.address);
        }
        world.dirty = true;
        world.host.tell();
    }

    /// Something is there that no row owns.
    pub(crate) fn stray(world: &mut World) {
        let Some(like) = Self::any(world, |_| true) else { return };
        let Some(like) = world.host.instances.get(&like).cloned() else { return };
        let id = InstanceId::new(&like.spec.service, 100_000 + world.id());
        let address = world.host.free_address();
        world.tell(|| format!("{id} is there, and nobody owns it"));
        let spec = InstanceSpec { id: id.clone(), ..like.spec };
        world.host.instances.insert(id, One { spec, address, exited: None, hung: None, ..like });
        world.dirty = true;
        world.host.tell();
    }

    fn ensure(world: &mut World, fence: Fence, spec: &InstanceSpec) -> Result<Seen, ProviderError> {
        let id = &spec.id;
        if world.host.gone.contains(id) && !planted(Mutant::NoTombstone) {
            return Err(ProviderError::Tombstoned { id: id.clone() });
        }
        if let Some(one) = world.host.instances.get(id)
            && !one.spec.is_same(spec)
        {
            let detail = "it came with other content before".into();
            return Err(ProviderError::Stale { id: id.clone(), detail });
        }
        world.host.admit(fence, id)?;
        crate::check::applied(world, "provider", fence);
        if let Some(one) = world.host.instances.get(id) {
            return Ok(one.seen());
        }
        crate::check::before_start(world, spec);
        let address = world.host.free_address();
        world.tell(|| format!("start {id} of release {} at {address}, fence {fence}", spec.release));
        let exited = match behaviour_of(&spec.commit) {
            Behaviour::Broken => {
                let (step, detail) = ("mount the image".into(), "it is broken".into());
                return Err(ProviderError::Permanent { id: id.clone(), step, detail });
            }
            Behaviour::Stuck => return Err(no_answer(id, "wait for memory")),
            Behaviour::Crashes => Some(ExitReason::Status { code: 3 }),
            _ => None,
        };
        let one = One { spec: spec.clone(), address, exited, hung: None, fence };
        let seen = one.seen();
        world.host.instances.insert(id.clone(), one);
        world.dirty = true;
        world.host.tell();
        Ok(seen)
    }

    fn absent(world: &mut World, fence: Fence, id: &InstanceId) -> Result<(), ProviderError> {
        world.host.admit(fence, id)?;
        crate::check::applied(world, "provider", fence);
        if world.host.instances.contains_key(id) {
            crate::check::before_end(world, id);
            world.tell(|| format!("end {id}, fence {fence}"));
            world.host.instances.remove(id);
            world.dirty = true;
        }
        world.host.kept.remove(id);
        world.host.gone.insert(id.clone());
        world.truth.destroyed.insert(id.clone());
        world.host.tell();
        Ok(())
    }

    fn check(world: &mut World, id: &InstanceId, check: &Check, path: &str) -> Evidence {
        let readiness = path == "/healthz";
        let (passed, detail) = match world.host.instances.get(id) {
            None => (false, "there is no such instance".to_owned()),
            Some(One { exited: Some(reason), .. }) => (false, format!("the instance {reason}")),
            Some(One { hung: Some(_), .. }) => (false, "no answer".to_owned()),
            Some(one) => match behaviour_of(&one.spec.commit) {
                Behaviour::NeverReady => (false, "connection refused".to_owned()),
                Behaviour::FailsValidate => (readiness, "status 500".to_owned()),
                _ => (true, String::new()),
            },
        };
        let flap = world.faults.flap;
        let flaps = passed && world.rng.chance(flap);
        let (passed, detail) = if flaps { (false, "timed out".to_owned()) } else { (passed, detail) };
        if passed && !readiness {
            world.truth.passed.insert(id.clone());
        }
        Evidence { check: check.kind.to_string(), passed, detail, took: Millis(1), at: world.wall() }
    }
}

/// The provider that a process sees.
pub(crate) struct SimProvider(pub(crate) Process);

fn no_answer(id: &InstanceId, step: &str) -> ProviderError {
    ProviderError::Retry { id: id.clone(), step: step.into(), detail: "no answer came".into() }
}

#[async_trait]
impl Provider for SimProvider {
    async fn list(&self) -> Result<Vec<Seen>, ProviderError> {
        self.0.stand("provider.list.asked").await;
        let seen = self.0.act(|world| {
            let blind = world.faults.blind;
            (!world.rng.chance(blind))
                .then(|| world.host.instances.values().map(One::seen).collect::<Vec<_>>())
        });
        self.0.stand("provider.list.answered").await;
        let nobody = |step: &str| ProviderError::Permanent {
            id: InstanceId::new(&crate::project::service_name("none"), 1),
            step: step.into(),
            detail: "no answer came".into(),
        };
        seen.ok_or_else(|| nobody("list"))
    }

    async fn memory(&self) -> Result<Memory, ProviderError> {
        self.0.stand("provider.memory.asked").await;
        let memory = self.0.act(|world| {
            let blind = world.faults.blind;
            (!world.rng.chance(blind)).then(|| world.host.memory())
        });
        self.0.stand("provider.memory.answered").await;
        memory
            .ok_or_else(|| no_answer(&InstanceId::new(&crate::project::service_name("none"), 1), "remember"))
    }

    async fn ensure(
        &self,
        fence: Fence,
        spec: &InstanceSpec,
        _: &SecretValues,
    ) -> Result<Seen, ProviderError> {
        let (id, spec) = (spec.id.clone(), spec.clone());
        let effect = move |world: &mut World| Host::ensure(world, fence, &spec);
        let answer = self.0.call(["provider.ensure.sent", "provider.ensure.answered"], effect).await;
        answer.unwrap_or_else(|| Err(no_answer(&id, "ensure")))
    }

    async fn absent(&self, fence: Fence, id: &InstanceId) -> Result<(), ProviderError> {
        let own = id.clone();
        let effect = move |world: &mut World| Host::absent(world, fence, &own);
        let answer = self.0.call(["provider.absent.sent", "provider.absent.answered"], effect).await;
        answer.unwrap_or_else(|| Err(no_answer(id, "absent")))
    }

    async fn check(&self, id: &InstanceId, check: &Check) -> Evidence {
        self.0.stand("provider.check.sent").await;
        let path = match &check.kind {
            kiln_model::CheckKind::Http { path, .. } => path.clone(),
            _ => String::new(),
        };
        let evidence = self.0.act(|world| Host::check(world, id, check, &path));
        self.0.stand("provider.check.answered").await;
        evidence
    }

    async fn changed(&self) {
        self.0.changed.notified().await;
    }
}
