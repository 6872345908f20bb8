//! What one pass of the planner costs: in a world at rest, and when a few instances died. Started by `bench/control`.
//!
//! Prints the median time in microseconds of planning, of the lint and of the store's rule book together, for worlds of
//! growing size; the bar is 100 ms for 1,000 services of 10 instances, with a cost that follows what changed.

use kiln_model::edge::{EdgeStatus, TargetStatus};
use kiln_model::*;
use kiln_plan::{Observed, lint, plan};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

const ROUNDS: usize = 21;

fn main() {
    println!("services  instances  died  plan [us]  lint+rules [us]  mutations");
    for services in [100, 300, 1000, 3000] {
        for died in [0, 1, 100] {
            let (mut world, mut samples) = (World::new(services, 10), vec![]);
            let mut mutations = 0;
            for _ in 0..ROUNDS {
                world.tick();
                let mut observed = world.observed();
                let dead: Vec<InstanceId> = world.snapshot.instances.keys().take(died).cloned().collect();
                for id in dead {
                    if let Some(seen) = observed.seen.as_mut().and_then(|seen| seen.get_mut(&id)) {
                        seen.state = SeenState::Exited(ExitReason::Status { code: 1 });
                    }
                }
                let begun = Instant::now();
                let plan = plan(&world.snapshot, &observed);
                let planned = begun.elapsed();
                let broken = lint::lint(&world.snapshot, &plan);
                let after = kiln_store::rules::check(&world.snapshot, &plan.mutations, |_| false);
                let checked = begun.elapsed() - planned;
                assert!(broken.is_empty() && after.is_ok(), "{broken:?} {:?}", after.err());
                mutations = black_box(plan).mutations.len();
                samples.push((planned.as_micros(), checked.as_micros()));
            }
            let median = |pick: fn(&(u128, u128)) -> u128| {
                let mut values: Vec<u128> = samples.iter().map(pick).collect();
                values.sort_unstable();
                values[values.len() / 2]
            };
            println!(
                "{services:8}  {:9}  {died:4}  {:9}  {:15}  {mutations:9}",
                services * 10,
                median(|s| s.0),
                median(|s| s.1)
            );
        }
    }
}

/// Environments of ten services each, all of them serving.
struct World {
    snapshot: Snapshot,
    seen: BTreeMap<InstanceId, Seen>,
    edge: EdgeStatus,
    now: u64,
}

impl World {
    fn new(services: usize, instances: u32) -> Self {
        let mut snapshot = Snapshot::default();
        snapshot.boot_id = "boot".into();
        let (mut seen, mut targets, mut address) = (BTreeMap::new(), vec![], 0x0a00_0001_u32);
        for project in 0..services.div_ceil(10) {
            let env = EnvRef {
                project: ProjectName::new(format!("project-{project}")).unwrap(),
                env: EnvName::new("production").unwrap(),
            };
            let release = release(&env, project, instances);
            let mut environment = Environment::new(env.clone());
            environment.serving = Some(release.number);
            environment.network = NetworkNumber(project as u64 + 1);
            let names: Vec<ServiceName> = release.spec.services.keys().cloned().collect();
            let image = *release.images.as_ref().unwrap().values().next().unwrap();
            snapshot.apply(&Mutation::PutEnvironment(environment));
            snapshot.apply(&Mutation::PutRelease(Box::new(release)));
            for (service, slot) in names.iter().flat_map(|name| (0..instances).map(move |slot| (name, slot)))
            {
                let id = InstanceId::new(service, snapshot.next_instance.max(1));
                let ip = IpAddr::V4(Ipv4Addr::from_bits(address));
                address += 1;
                snapshot.apply(&Mutation::PutInstance(Box::new(Instance {
                    id: id.clone(),
                    env: env.clone(),
                    release: ReleaseNumber(1),
                    service: service.clone(),
                    slot,
                    image,
                    network: NetworkNumber(project as u64 + 1),
                    state: InstanceState::Serving,
                    since: Boot(1),
                    created: Wall(1),
                    address: Some(ip),
                    evidence: vec![],
                    reason: None,
                })));
                seen.insert(
                    id.clone(),
                    Seen { id: id.clone(), address: Some(ip), state: SeenState::Running },
                );
                targets.push(TargetStatus {
                    instance: id,
                    env: env.clone(),
                    service: service.clone(),
                    release: ReleaseNumber(1),
                    in_table: true,
                    in_flight: 0,
                    ejected: false,
                    ejected_for: Millis(0),
                    ejections: 0,
                    reason: None,
                    tally: Default::default(),
                    latency: vec![0; kiln_model::edge::LATENCY_BUCKETS + 1],
                });
            }
        }
        let table = kiln_plan::route::table(&snapshot);
        let digest = table.digest();
        snapshot.apply(&Mutation::PutRoute { generation: Generation(1), table: Box::new(table) });
        snapshot.apply(&Mutation::RouteAcked { generation: Generation(1) });
        let edge = EdgeStatus {
            generation: Generation(1),
            digest: Some(digest),
            targets,
            process: "1".into(),
            ..EdgeStatus::default()
        };
        Self { snapshot, seen, edge, now: 100_000 }
    }

    /// Time passes and requests are served.
    fn tick(&mut self) {
        self.now += 500;
        for target in &mut self.edge.targets {
            target.tally.requests += 1;
        }
    }

    fn observed(&self) -> Observed {
        Observed {
            now: Boot(self.now),
            wall: Wall(self.now),
            boot_id: "boot".into(),
            seen: Some(self.seen.clone()),
            edge: Some(self.edge.clone()),
            ..Observed::default()
        }
    }
}

fn release(env: &EnvRef, project: usize, instances: u32) -> Release {
    let image = ImageName::new("app").unwrap();
    let policy = RolloutPolicy {
        strategy: Strategy::default(),
        drain: Millis(10_000),
        keep_previous: Millis(600_000),
        deadline: Millis(60_000),
    };
    let service = |n: usize| ServiceSpec {
        proxy_protocol: false,
        secrets: vec![],
        autoscale: None,
        name: ServiceName::new(format!("service-{n}")).unwrap(),
        image: image.clone(),
        command: vec!["/app".into()],
        instances,
        port: Some(80),
        protocol: kiln_model::Protocol::default(),
        user: "65534".into(),
        env: BTreeMap::new(),
        writable: vec![],
        resources: Resources::default(),
        confinement: Confinement::default(),
        health: None,
        validate: vec![],
        rollout: policy.clone(),
        stop: Stop::default(),
    };
    let services: BTreeMap<_, _> = (0..10).map(service).map(|s| (s.name.clone(), s)).collect();
    let rule = |name: &ServiceName| RouteRule {
        tcp: None,
        policy: Default::default(),
        host: Some(format!("{project}.example.com")),
        path: format!("/{name}"),
        service: name.clone(),
        https: kiln_model::Https::default(),
    };
    Release {
        promoted_from: None,
        overridden: None,
        env: env.clone(),
        number: ReleaseNumber(1),
        spec: ReleaseSpec {
            secrets: BTreeMap::new(),
            requires: None,
            commit: format!("{project:040x}").parse().unwrap(),
            commit_time: 0,
            subject: String::new(),
            pinned: true,
            routes: services.keys().map(rule).collect(),
            services,
            images: vec![image.clone()],
        },
        images: Some([(image, Digest::of(&project.to_le_bytes()))].into()),
        created: Wall(1),
        actor: "bench".into(),
        served: true,
    }
}
