//! A provider in memory, with the same fences and tombstones as a real one and with failures by script. A
//! [`FakeHost`] outlives its providers, as the host outlives a server.

use crate::{Provider, ProviderError};
use async_trait::async_trait;
use kiln_model::{
    Check, Epoch, Evidence, ExitReason, Fence, Incarnation, InstanceId, InstanceSpec, Memory, Millis,
    SecretValues, Seen, SeenState, Wall,
};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// What becomes of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Script {
    /// It runs and passes every check.
    #[default]
    Run,
    /// Its program ends at once.
    Crash(ExitReason),
    /// It runs and passes no check.
    NeverReady,
    /// It is started, but the first answer to `ensure` is lost; so is the first one to `absent`.
    LostAck,
    /// It is `Starting` for that many calls of `list`.
    Delayed(u32),
    /// `ensure` fails for ever, and nothing of it exists.
    Broken,
}

type Writer = dyn Fn(&InstanceSpec) -> Script + Send + Sync;

struct One {
    spec: InstanceSpec,
    fence: Fence,
    address: Ipv4Addr,
    state: SeenState,
    script: Script,
    lost: bool,
    delay: u32,
}

#[derive(Default)]
struct World {
    instances: BTreeMap<InstanceId, One>,
    gone: BTreeMap<InstanceId, bool>,
    server: (Incarnation, Epoch),
    newest: Fence,
    number: u16,
    starts: BTreeMap<InstanceId, u32>,
}

struct Shared {
    world: Mutex<World>,
    script: Mutex<Box<Writer>>,
    changed: Notify,
}

/// What a fake provider acts on. Cheap to clone.
#[derive(Clone)]
pub struct FakeHost(Arc<Shared>);

impl Default for FakeHost {
    fn default() -> Self {
        Self::new(|_| Script::Run)
    }
}

impl FakeHost {
    /// An empty host; `script` says what becomes of each instance when it is first ensured.
    pub fn new(script: impl Fn(&InstanceSpec) -> Script + Send + Sync + 'static) -> Self {
        let script: Box<Writer> = Box::new(script);
        Self(Arc::new(Shared { world: Mutex::default(), script: Mutex::new(script), changed: Notify::new() }))
    }

    /// Another script for instances to come.
    pub fn script(&self, script: impl Fn(&InstanceSpec) -> Script + Send + Sync + 'static) {
        *self.0.script.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(script);
    }

    /// A provider on this host.
    pub fn open(&self) -> FakeProvider {
        FakeProvider(self.clone())
    }

    /// The program of an instance ends.
    pub fn end(&self, id: &InstanceId, reason: ExitReason) {
        if let Some(one) = self.world().instances.get_mut(id) {
            one.state = SeenState::Exited(reason);
        }
        self.0.changed.notify_one();
    }

    /// The instance vanishes without a trace, as when somebody else destroyed it.
    pub fn lose(&self, id: &InstanceId) {
        self.world().instances.remove(id);
        self.0.changed.notify_one();
    }

    /// How often an instance was started. More than once is a mistake of the provider.
    pub fn starts(&self, id: &InstanceId) -> u32 {
        self.world().starts.get(id).copied().unwrap_or(0)
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A provider on a [`FakeHost`].
#[derive(Clone)]
pub struct FakeProvider(FakeHost);

impl World {
    fn admit(&mut self, fence: Fence, id: &InstanceId) -> Result<(), ProviderError> {
        let stale = |detail: String| Err(ProviderError::Stale { id: id.clone(), detail });
        if fence.server() < self.server {
            return stale(format!("server {}.{} was seen", self.server.0, self.server.1));
        }
        self.server = fence.server();
        self.newest = fence.max(self.newest);
        match self.instances.get_mut(id) {
            Some(one) if fence.order() < one.fence.order() => stale(format!("{} came before", one.fence)),
            Some(one) => {
                one.fence = fence;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

fn lost(id: &InstanceId, step: &str) -> ProviderError {
    ProviderError::Retry { id: id.clone(), step: step.into(), detail: "the answer was lost".into() }
}

#[async_trait]
impl Provider for FakeProvider {
    async fn list(&self) -> Result<Vec<Seen>, ProviderError> {
        let mut world = self.0.world();
        let mut out = vec![];
        for (id, one) in &mut world.instances {
            let address = Some(IpAddr::from(one.address));
            out.push(Seen { id: id.clone(), address, state: one.state.clone() });
            if one.state == SeenState::Starting {
                one.delay = one.delay.saturating_sub(1);
                if one.delay == 0 {
                    one.state = SeenState::Running;
                    self.0.0.changed.notify_one();
                }
            }
        }
        Ok(out)
    }

    async fn memory(&self) -> Result<Memory, ProviderError> {
        let world = self.0.world();
        let ids = world.instances.keys().chain(world.gone.keys());
        let last_instance = ids.map(InstanceId::sequence).max().unwrap_or(0);
        let specs = world.instances.iter().map(|(id, one)| (id.clone(), one.spec.clone())).collect();
        Ok(Memory { newest: world.newest, last_instance, specs })
    }

    async fn ensure(
        &self,
        fence: Fence,
        spec: &InstanceSpec,
        secrets: &SecretValues,
    ) -> Result<Seen, ProviderError> {
        let id = &spec.id;
        let script = (self.0.0.script.lock().unwrap_or_else(PoisonError::into_inner))(spec);
        let mut world = self.0.world();
        if world.gone.contains_key(id) {
            return Err(ProviderError::Tombstoned { id: id.clone() });
        }
        if let Some(one) = world.instances.get(id)
            && !one.spec.is_same(spec)
        {
            let detail = "it came with other content before".into();
            return Err(ProviderError::Stale { id: id.clone(), detail });
        }
        world.admit(fence, id)?;
        if let Some(one) = world.instances.get(id) {
            let address = Some(one.address.into());
            return Ok(Seen { id: id.clone(), address, state: one.state.clone() });
        }
        if let Some(name) = spec.secrets.keys().find(|name| !secrets.contains_key(*name)) {
            let (step, detail) = ("give the instance its secrets".into(), format!("`{name}` did not come"));
            return Err(ProviderError::Retry { id: id.clone(), step, detail });
        }
        if script == Script::Broken {
            let (step, detail) = ("mount the image".into(), "it is damaged".into());
            return Err(ProviderError::Permanent { id: id.clone(), step, detail });
        }
        world.number += 1;
        let [high, low] = (world.number + 1).to_be_bytes();
        let address = Ipv4Addr::new(10, 83, high, low);
        let (state, delay) = match &script {
            Script::Crash(reason) => (SeenState::Exited(reason.clone()), 0),
            Script::Delayed(n) if *n > 0 => (SeenState::Starting, *n),
            _ => (SeenState::Running, 0),
        };
        *world.starts.entry(id.clone()).or_default() += 1;
        let lose = script == Script::LostAck;
        let seen = Seen { id: id.clone(), address: Some(address.into()), state: state.clone() };
        let one = One { spec: spec.clone(), fence, address, state, script, lost: false, delay };
        world.instances.insert(id.clone(), one);
        self.0.0.changed.notify_one();
        if lose { Err(lost(id, "ensure")) } else { Ok(seen) }
    }

    async fn absent(&self, fence: Fence, id: &InstanceId) -> Result<(), ProviderError> {
        let mut world = self.0.world();
        world.admit(fence, id)?;
        let lose = world.instances.remove(id).is_some_and(|one| one.script == Script::LostAck && !one.lost);
        world.gone.insert(id.clone(), true);
        self.0.0.changed.notify_one();
        if lose { Err(lost(id, "absent")) } else { Ok(()) }
    }

    async fn check(&self, id: &InstanceId, check: &Check) -> Evidence {
        let world = self.0.world();
        let one = world.instances.get(id);
        let (passed, detail) = match one.map(|one| (&one.state, &one.script)) {
            None => (false, "there is no such instance".to_owned()),
            Some((SeenState::Starting, _)) => (false, "the instance is being created".to_owned()),
            Some((SeenState::Exited(reason), _)) => (false, format!("the instance {reason}")),
            Some((SeenState::Running, Script::NeverReady)) => (false, "connection refused".to_owned()),
            Some((SeenState::Running, _)) => (true, "fine".to_owned()),
        };
        let at = Wall(kiln_sys::clock::wall_ms());
        Evidence { check: check.kind.to_string(), passed, detail, took: Millis(0), at }
    }

    async fn changed(&self) {
        self.0.0.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{self, Behaviour, Subject};
    use kiln_model::NO_SECRETS;

    struct Fake(FakeHost);

    impl Subject for Fake {
        type Provider = FakeProvider;

        fn open(&mut self) -> FakeProvider {
            self.0.open()
        }

        fn spec(&self, sequence: u64, behaviour: Behaviour) -> InstanceSpec {
            let mut spec = conformance::spec(sequence);
            spec.command = vec![match behaviour {
                Behaviour::Serve | Behaviour::Stubborn => "run".into(),
                Behaviour::Exit(code) => format!("exit {code}"),
                Behaviour::Abort => "abort".into(),
                Behaviour::Missing => "missing".into(),
                Behaviour::Broken => "broken".into(),
            }];
            spec
        }

        fn kill_supervisor(&mut self, id: &InstanceId) {
            self.0.end(id, ExitReason::Unknown);
        }
    }

    fn by_command(spec: &InstanceSpec) -> Script {
        match spec.command[0].as_str() {
            "run" => Script::Run,
            "abort" => Script::Crash(ExitReason::Signal { signal: 6 }),
            "missing" => Script::Crash(ExitReason::NotStarted { error: "missing".into() }),
            "broken" => Script::Broken,
            exit => Script::Crash(ExitReason::Status { code: exit[5..].parse().unwrap() }),
        }
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

    #[test]
    fn conforms() {
        block_on(conformance::suite(&mut Fake(FakeHost::new(by_command))));
    }

    #[test]
    fn scripts() {
        block_on(async {
            let host = FakeHost::new(|spec| match spec.id.sequence() {
                1 => Script::LostAck,
                2 => Script::Delayed(2),
                _ => Script::NeverReady,
            });
            let provider = host.open();
            let fence = Fence::default();
            let [a, b, c] = [1, 2, 3].map(conformance::spec);
            assert!(matches!(
                provider.ensure(fence, &a, &NO_SECRETS).await,
                Err(ProviderError::Retry { .. })
            ));
            assert_eq!(provider.ensure(fence, &a, &NO_SECRETS).await.unwrap().state, SeenState::Running);
            assert_eq!(host.starts(&a.id), 1);
            assert!(matches!(provider.absent(fence, &a.id).await, Err(ProviderError::Retry { .. })));
            assert_eq!(provider.absent(fence, &a.id).await, Ok(()));
            provider.ensure(fence, &b, &NO_SECRETS).await.unwrap();
            let mut states = vec![];
            for _ in 0..3 {
                states.push(provider.list().await.unwrap()[0].state.clone());
            }
            assert_eq!(states, [SeenState::Starting, SeenState::Starting, SeenState::Running]);
            provider.ensure(fence, &c, &NO_SECRETS).await.unwrap();
            assert!(!provider.check(&c.id, &conformance::check()).await.passed);
            assert!(provider.check(&b.id, &conformance::check()).await.passed);
        });
    }
}
