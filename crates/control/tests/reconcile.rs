//! The real loop over a store and a provider in memory, where the edge hangs or an effect panics.

use async_trait::async_trait;
use kiln_control::Handle;
use kiln_control::clock::{Clock, HostClock};
use kiln_control::execute::{AdmitError, Bakery, BakeryError, Engines};
use kiln_control::reconcile::{Reconciler, Shared};
use kiln_edge::client::{Router, RouterError};
use kiln_model::edge::EdgeStatus;
use kiln_model::*;
use kiln_plan::Command;
use kiln_provider::fake::FakeHost;
use kiln_store::{MemStore, Store};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// An edge that takes every table at once, until it hangs as a stopped process does.
#[derive(Default)]
struct Edge {
    used: Mutex<(Generation, Option<Digest>)>,
    hangs: AtomicBool,
}

#[async_trait]
impl Router for Edge {
    async fn status(&self) -> Result<EdgeStatus, RouterError> {
        if self.hangs.load(SeqCst) {
            std::future::pending::<()>().await;
        }
        let (generation, digest) = *self.used.lock().unwrap();
        Ok(EdgeStatus { generation, digest, process: "1".into(), ..EdgeStatus::default() })
    }

    async fn set(&self, _: Fence, generation: Generation, table: &RouteTable) -> Result<(), RouterError> {
        if self.hangs.load(SeqCst) {
            std::future::pending::<()>().await;
        }
        *self.used.lock().unwrap() = (generation, Some(table.digest()));
        Ok(())
    }
}

/// Bakes nothing, and panics over manifests for a while.
#[derive(Default)]
struct Kitchen {
    panics: AtomicBool,
    asked: AtomicU32,
}

#[async_trait]
impl Bakery for Kitchen {
    async fn bake(&self, _: &Release, image: &ImageName) -> Result<Digest, BakeryError> {
        Ok(Digest::of(image.as_str().as_bytes()))
    }

    async fn admit(&self, _: Digest) -> Result<ImageManifest, AdmitError> {
        self.asked.fetch_add(1, SeqCst);
        assert!(!self.panics.load(SeqCst), "planted");
        let (format, architecture) = (1, "amd64".to_owned());
        Ok(ImageManifest { format, architecture, layers: vec![], config: ImageConfig::default() })
    }

    async fn mend(&self, _: &Release, _: Digest) -> Result<String, BakeryError> {
        Ok("nothing was damaged".to_owned())
    }

    fn tail(&self, _: &InstanceId, _: usize) -> Vec<String> {
        vec![]
    }
}

fn env() -> EnvRef {
    EnvRef::try_from("shop/production".to_owned()).unwrap()
}

fn release() -> ReleaseSpec {
    let (name, image) = (ServiceName::new("web").unwrap(), ImageName::new("web").unwrap());
    let second = Millis::from_secs(1);
    let service = ServiceSpec {
        proxy_protocol: false,
        autoscale: None,
        name: name.clone(),
        image: image.clone(),
        command: vec!["/app".into()],
        instances: 3,
        port: Some(80),
        protocol: kiln_model::Protocol::default(),
        user: "65534".into(),
        env: BTreeMap::new(),
        secrets: vec![],
        writable: vec![],
        resources: Resources::default(),
        confinement: Confinement::default(),
        health: None,
        validate: vec![Check { kind: CheckKind::Listening { port: 80 }, timeout: second }],
        rollout: RolloutPolicy {
            drain: second,
            keep_previous: Millis(0),
            deadline: Millis::from_secs(60),
            strategy: Strategy::BlueGreen,
        },
        stop: Stop::default(),
    };
    ReleaseSpec {
        commit: "1".repeat(40).parse().unwrap(),
        commit_time: 0,
        subject: String::new(),
        pinned: true,
        services: [(name.clone(), service)].into(),
        routes: vec![RouteRule {
            tcp: None,
            policy: Default::default(),
            host: None,
            path: "/".into(),
            service: name,
            https: Default::default(),
        }],
        images: vec![image],
        secrets: BTreeMap::new(),
        requires: None,
    }
}

struct World {
    store: Arc<MemStore>,
    host: FakeHost,
    edge: Arc<Edge>,
    kitchen: Arc<Kitchen>,
}

impl World {
    /// Deploys, and does what `test` says while the loop runs.
    fn run<F: Future<Output = ()>>(test: impl FnOnce(Self) -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = Arc::new(MemStore::default());
            let (host, edge, kitchen) =
                (FakeHost::default(), Arc::<Edge>::default(), Arc::<Kitchen>::default());
            let server = store.take_lease("test").unwrap();
            let (clock, shared) = (Arc::new(HostClock::new().unwrap()), Arc::new(Shared::default()));
            let engines = Engines {
                provider: Arc::new(host.open()),
                router: edge.clone(),
                bakery: kitchen.clone(),
                vault: Arc::default(),
            };
            let clock: Arc<dyn Clock> = clock;
            let progress = tokio::sync::broadcast::Sender::new(16);
            let handle = Handle::new(store.clone(), clock.clone(), shared.clone(), server.1, progress);
            let running = tokio::spawn(Reconciler::new(store.clone(), engines, clock, shared, server).run());
            let deploy = Command::Deploy { env: env(), spec: Box::new(release()) };
            handle.submit("test", deploy).unwrap();
            test(Self { store, host, edge, kitchen }).await;
            handle.stop();
            running.await.unwrap().unwrap();
        });
    }

    fn serving(&self) -> Vec<InstanceId> {
        let snapshot = self.store.load().unwrap();
        let serving = snapshot.instances.values().filter(|i| i.state.is_validated());
        serving.map(|i| i.id.clone()).collect()
    }

    async fn until(&self, what: &str, limit: Duration, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + limit;
        while !condition(self) {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.store.load().unwrap().instances);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

const LONG: Duration = Duration::from_secs(20);

#[test]
fn what_dies_is_replaced_while_the_edge_hangs() {
    World::run(|world| async move {
        world.until("deployed", LONG, |w| w.serving().len() == 3).await;
        world.edge.hangs.store(true, SeqCst);
        // The loop may be in the middle of a look: it ends.
        tokio::time::sleep(Duration::from_millis(700)).await;
        let dead = world.serving()[0].clone();
        world.host.end(&dead, ExitReason::Signal { signal: 9 });
        let replaced = |w: &World| w.serving().len() == 3 && !w.serving().contains(&dead);
        // Three looks: its death, that the new one runs, that it passed; the edge may hold up each for a second.
        world.until("replaced", Duration::from_secs(8), replaced).await;
        world.edge.hangs.store(false, SeqCst);
    });
}

#[test]
fn an_effect_that_panics_is_tried_again_at_leisure() {
    World::run(|world| async move {
        world.kitchen.panics.store(true, SeqCst);
        world.until("asked", LONG, |w| w.kitchen.asked.load(SeqCst) >= 3).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let asked = world.kitchen.asked.load(SeqCst);
        assert!(asked <= 30, "{asked} tries for three instances in a second");
        world.kitchen.panics.store(false, SeqCst);
        world.until("deployed", LONG, |w| w.serving().len() == 3).await;
    });
}
