//! A service that scales by its requests, planned over minutes of load.

use kiln_model::edge::{EdgeStatus, TargetStatus};
use kiln_model::*;
use kiln_plan::autoscale::Rates;
use kiln_plan::plan::plan_everything;
use kiln_plan::{Command, Observed, Request, decide, lint, plan};
use std::collections::BTreeMap;

fn env() -> EnvRef {
    EnvRef { project: ProjectName::new("shop").unwrap(), env: EnvName::new("production").unwrap() }
}

fn web() -> ServiceName {
    ServiceName::new("web").unwrap()
}

fn release() -> ReleaseSpec {
    let image = ImageName::new("app").unwrap();
    let text = r#"{"name":"web","image":"app","command":["/app"],"instances":2,"port":80,"user":"65534","env":{},
        "writable":[],"resources":{"cpu_milli":1000,"memory_bytes":67108864,"pids":64},"health":null,"validate":[],
        "rollout":{"drain":0,"keep_previous":0,"deadline":60000},"stop":{"signal":15,"timeout":1000}}"#;
    let mut service: ServiceSpec = serde_json::from_str(text).unwrap();
    service.autoscale = Some(Autoscale { min: 2, max: 6, requests: 50 });
    ReleaseSpec {
        secrets: BTreeMap::new(),
        requires: None,
        commit: "1".repeat(40).parse().unwrap(),
        commit_time: 0,
        subject: String::new(),
        pinned: true,
        images: vec![image],
        services: [(web(), service)].into(),
        routes: vec![RouteRule {
            tcp: None,
            policy: Default::default(),
            host: None,
            path: "/".into(),
            service: web(),
            https: Default::default(),
        }],
    }
}

/// Everything that is asked for happens at once.
struct World {
    snapshot: Snapshot,
    rates: Rates,
    counts: BTreeMap<InstanceId, u64>,
    now: u64,
}

impl World {
    fn submit(&mut self, command: Command) {
        let request = Request { command, actor: "test".into(), at: Wall(self.now), now: Boot(self.now) };
        decide(&self.snapshot, &request).unwrap().mutations.iter().for_each(|m| self.snapshot.apply(m));
    }

    /// One second with so many requests, shared by the instances in the table.
    fn second(&mut self, requests: u64) {
        self.now += 1000;
        let ids: Vec<InstanceId> = self
            .snapshot
            .route
            .1
            .pools
            .iter()
            .flat_map(|p| p.targets.iter().map(|t| t.instance.clone()))
            .collect();
        for id in &ids {
            *self.counts.entry(id.clone()).or_default() += requests / ids.len() as u64;
        }
        let target = |id: &InstanceId| TargetStatus {
            instance: id.clone(),
            env: env(),
            service: web(),
            release: ReleaseNumber(1),
            in_table: true,
            in_flight: 0,
            ejected: false,
            ejected_for: Millis(0),
            ejections: 0,
            reason: None,
            tally: edge::Tally { requests: self.counts[id], ..Default::default() },
            latency: vec![],
        };
        let (generation, digest) = (self.snapshot.route.0, self.snapshot.route_digest);
        let targets = ids.iter().map(target).collect();
        let edge = EdgeStatus { generation, digest, targets, process: "1".into(), ..EdgeStatus::default() };
        self.rates.record(&self.snapshot, Some(&edge), Boot(self.now));
        for _ in 0..12 {
            let image = ImageName::new("app").unwrap();
            let seen = self.snapshot.instances.values().filter(|i| !i.state.is_over()).map(|i| {
                let address = Some([10, 0, 0, i.id.sequence() as u8].into());
                (i.id.clone(), Seen { id: i.id.clone(), address, state: SeenState::Running })
            });
            let observed = Observed {
                now: Boot(self.now),
                boot_id: "boot".into(),
                seen: Some(seen.collect()),
                edge: Some(EdgeStatus {
                    generation: self.snapshot.route.0,
                    digest: self.snapshot.route_digest,
                    ..edge.clone()
                }),
                rates: self.rates.known(),
                baked: [((env(), ReleaseNumber(1), image), Digest::of(b"app"))].into(),
                ..Observed::default()
            };
            let plan = plan(&self.snapshot, &observed);
            assert_eq!(plan, plan_everything(&self.snapshot, &observed), "what is at rest was not at rest");
            assert_eq!(lint::lint(&self.snapshot, &plan), [""; 0]);
            plan.mutations.iter().for_each(|m| self.snapshot.apply(m));
            for op in &plan.effects {
                if let OpKey::Absent { instance } = &op.key {
                    self.snapshot.apply(&Mutation::Gone { instance: instance.clone() });
                }
            }
        }
    }

    fn seconds(&mut self, n: u64, requests: u64) -> usize {
        (0..n).for_each(|_| self.second(requests));
        self.snapshot.instances_of(&env()).filter(|i| i.state == InstanceState::Serving).count()
    }
}

#[test]
fn it_follows_the_load_up_quickly_and_down_slowly_and_leaves_alone_what_a_user_scaled() {
    let (rates, counts) = Default::default();
    let mut world = World { snapshot: Snapshot::default(), rates, counts, now: 1_000_000 };
    world.submit(Command::Deploy { env: env(), spec: Box::new(release()) });
    assert_eq!(world.seconds(5, 0), 2);
    assert_eq!(world.seconds(5, 230), 2, "a short burst is no load");
    assert_eq!(world.seconds(20, 230), 5, "ceil(230 / 50)");
    assert_eq!(world.seconds(30, 10_000), 6, "at most the maximum");
    assert_eq!(world.seconds(250, 10), 6, "not for minutes");
    assert_eq!(world.seconds(120, 10), 2, "at least the minimum");
    world.submit(Command::Scale { env: env(), instances: [(web(), Some(3))].into() });
    assert_eq!(world.seconds(60, 10_000), 3, "by hand");
    world.submit(Command::Scale { env: env(), instances: [(web(), None)].into() });
    assert_eq!(world.seconds(5, 10_000), 6, "by load again");
}
