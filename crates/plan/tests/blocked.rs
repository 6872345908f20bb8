//! What does not move: pauses, holds, heal storms, switches that nobody acknowledges; and what `kiln why` says of each.

use kiln_model::edge::{EdgeStatus, TargetStatus};
use kiln_model::*;
use kiln_plan::explain::explain;
use kiln_plan::overdue::SWITCH_DEADLINE;
use kiln_plan::{Command, Decision, Observed, Outcome, Plan, Refusal, Request, decide, lint, plan, storm};
use std::collections::BTreeMap;

const NOW: Boot = Boot(1_000_000);

fn env(name: &str) -> EnvRef {
    EnvRef::try_from(format!("shop/{name}")).unwrap()
}

fn web() -> ServiceName {
    ServiceName::new("web").unwrap()
}

fn release(env: &EnvRef, number: u64) -> Mutation {
    let second = Millis::from_secs(1);
    let image = ImageName::new("web").unwrap();
    let service = ServiceSpec {
        proxy_protocol: false,
        secrets: vec![],
        autoscale: None,
        name: web(),
        image: image.clone(),
        command: vec!["/app".into()],
        instances: 2,
        port: Some(80),
        protocol: kiln_model::Protocol::default(),
        user: "65534".into(),
        env: BTreeMap::new(),
        writable: vec![],
        resources: Resources::default(),
        confinement: Confinement::default(),
        health: None,
        validate: vec![Check { kind: CheckKind::Listening { port: 80 }, timeout: second }],
        rollout: RolloutPolicy {
            strategy: Strategy::default(),
            drain: second,
            keep_previous: Millis::from_secs(600),
            deadline: Millis::from_secs(60),
        },
        stop: Stop::default(),
    };
    let spec = ReleaseSpec {
        secrets: BTreeMap::new(),
        requires: None,
        commit: format!("{number:040}").parse().unwrap(),
        commit_time: 0,
        subject: String::new(),
        pinned: true,
        services: [(web(), service)].into(),
        routes: vec![RouteRule {
            tcp: None,
            policy: Default::default(),
            host: Some(format!("{}.test", env.env)),
            path: "/".into(),
            service: web(),
            https: Default::default(),
        }],
        images: vec![image.clone()],
    };
    Mutation::PutRelease(Box::new(Release {
        promoted_from: None,
        overridden: None,
        env: env.clone(),
        number: ReleaseNumber(number),
        spec,
        images: Some([(image, Digest::of(b"web"))].into()),
        created: Wall(0),
        actor: "ann".into(),
        served: true,
    }))
}

/// Two environments, of which each serves release 1 with two instances; release 2 exists as well.
struct World {
    snapshot: Snapshot,
    observed: Observed,
}

impl World {
    fn new() -> Self {
        let mut snapshot = Snapshot::default();
        snapshot.boot_id = "b".into();
        for (n, name) in ["a", "b"].iter().enumerate() {
            let env = env(name);
            let mut environment = Environment::new(env.clone());
            environment.serving = Some(ReleaseNumber(1));
            environment.next_release = ReleaseNumber(3);
            environment.network = NetworkNumber(n as u64 + 1);
            snapshot.apply(&Mutation::PutEnvironment(environment));
            snapshot.apply(&release(&env, 1));
            snapshot.apply(&release(&env, 2));
            for slot in 0..2 {
                snapshot.apply(&Mutation::PutInstance(Box::new(Instance {
                    id: InstanceId::new(&web(), (n * 2 + slot + 1) as u64),
                    env: env.clone(),
                    release: ReleaseNumber(1),
                    service: web(),
                    slot: slot as u32,
                    image: Digest::of(b"web"),
                    network: NetworkNumber(n as u64 + 1),
                    state: InstanceState::Serving,
                    since: Boot(0),
                    created: Wall(0),
                    address: Some(format!("10.0.{n}.{}", slot + 1).parse().unwrap()),
                    evidence: vec![],
                    reason: None,
                })));
            }
        }
        let table = kiln_plan::route::table(&snapshot);
        snapshot.apply(&Mutation::PutRoute { generation: Generation(1), table: Box::new(table) });
        snapshot.apply(&Mutation::RouteAcked { generation: Generation(1) });
        let mut world = Self { snapshot, observed: Observed::default() };
        world.observed = Observed { now: NOW, edge_seen: NOW, boot_id: "b".into(), ..Observed::default() };
        world.look();
        world
    }

    /// Everything that has a row runs, and the edge uses the last table that it acknowledged.
    fn look(&mut self) {
        let seen = self.snapshot.instances.values().map(|i| {
            let seen = Seen { id: i.id.clone(), state: SeenState::Running, address: i.address };
            (i.id.clone(), seen)
        });
        self.observed.seen = Some(seen.collect());
        let targets = self.snapshot.instances.values().map(|i| TargetStatus {
            instance: i.id.clone(),
            env: i.env.clone(),
            service: i.service.clone(),
            release: i.release,
            in_table: true,
            in_flight: 0,
            ejected: false,
            ejected_for: Millis(0),
            ejections: 0,
            reason: None,
            tally: Default::default(),
            latency: vec![],
        });
        self.observed.edge = Some(EdgeStatus {
            generation: self.snapshot.acked,
            digest: (self.snapshot.acked == self.snapshot.route.0)
                .then_some(self.snapshot.route_digest)
                .flatten(),
            targets: targets.collect(),
            ..EdgeStatus::default()
        });
    }

    fn pass(&mut self) -> Plan {
        let plan = plan(&self.snapshot, &self.observed);
        assert_eq!(lint::lint(&self.snapshot, &plan), Vec::<String>::new());
        plan.mutations.iter().for_each(|m| self.snapshot.apply(m));
        plan
    }

    fn ask(&mut self, command: Command) -> Result<Outcome, Refusal> {
        let request = Request { command, actor: "ann".into(), at: Wall(5), now: self.observed.now };
        let Decision { mutations, outcome, .. } = decide(&self.snapshot, &request)?;
        mutations.iter().for_each(|m| self.snapshot.apply(m));
        Ok(outcome)
    }

    fn pause(&mut self, env: Option<EnvRef>) {
        self.ask(Command::Pause { env, reason: "a  move\nof data".into() }).unwrap();
    }

    fn die(&mut self, id: &str) {
        let dead = self.observed.seen.as_mut().unwrap().get_mut(&id.parse::<InstanceId>().unwrap()).unwrap();
        dead.state = SeenState::Exited(ExitReason::Signal { signal: 9 });
    }

    /// Everything that `kiln why` says, one reason a line.
    fn why(&self) -> Vec<String> {
        let reasons = explain(&self.snapshot, &self.observed, None);
        reasons
            .into_iter()
            .map(|r| {
                let deadline = r.deadline.map(|d| format!(" (within {d})")).unwrap_or_default();
                let command = r.command.unwrap_or_default();
                format!(
                    "{}: {} | {} | {}{deadline} | {command} | {:?}",
                    r.env.env, r.what, r.since, r.next, r.evidence
                )
            })
            .collect()
    }
}

fn begins(plan: &Plan) -> Vec<&'static str> {
    plan.effects.iter().map(|op| op.key.word()).collect()
}

#[test]
fn a_world_at_rest_has_no_reasons_and_no_effects() {
    let mut world = World::new();
    let plan = world.pass();
    assert_eq!((plan.mutations, plan.effects), (vec![], vec![]));
    assert_eq!(world.why(), Vec::<String>::new());
}

#[test]
fn a_pause_stops_effects_of_its_environment_and_not_the_look_at_it() {
    let mut world = World::new();
    world.pause(Some(env("a")));
    world.die("web-1");
    world.die("web-3");
    world.ask(Command::Rollback { env: env("a"), to: Some(ReleaseNumber(2)) }).unwrap();
    world.observed.now = NOW + Millis(2500);
    let plan = world.pass();
    assert_eq!(
        world.snapshot.instances[&"web-1".parse::<InstanceId>().unwrap()].state,
        InstanceState::Failed,
        "it is looked at"
    );
    let replaced: Vec<_> = plan.effects.iter().map(|op| world.snapshot.env_of(&op.key).cloned()).collect();
    assert!(!replaced.contains(&Some(env("a"))), "{:?}", plan.effects);
    assert!(begins(&plan).contains(&"ensure"), "the other environment is healed in the same pass");
    let table = &world.snapshot.route.1;
    let routed = |id: &str| table.pools.iter().any(|p| p.targets.iter().any(|t| t.instance.as_str() == id));
    assert!(routed("web-1") && !routed("web-3"), "the paused one keeps its part of the table: {table:?}");
    let why = world.why();
    assert_eq!(
        why[0],
        "a: `a` is paused by ann: a move of data | 2.5 s | nothing begins: no bake, start, switch, destroy or \
         replacement; the edge serves on |  | kiln resume --env a | []"
            .replace("|  | kiln", "| kiln")
    );
    assert_eq!(
        why[1],
        "a: rollout 1 to release 2 is planned | 2.5 s | it goes on after `kiln resume`, with the time it has left | kiln \
         abort --env a | []"
    );
    assert!(why[2].starts_with("a: `web` has 1 of 2 instances"), "{why:?}");
    assert!(why[2].contains("nothing is replaced before `kiln resume`"), "{why:?}");
}

#[test]
fn what_is_left_of_a_deadline_is_left_after_a_pause() {
    let mut world = World::new();
    world.ask(Command::Rollback { env: env("a"), to: Some(ReleaseNumber(2)) }).unwrap();
    world.pass();
    let deadline = |world: &World| world.snapshot.rollouts[&RolloutId(1)].deadline.unwrap();
    assert_eq!(deadline(&world), NOW + Millis::from_secs(60));
    world.observed.now = NOW + Millis::from_secs(50);
    // Both pauses, one in the other: what both cover counts once.
    world.pause(Some(env("a")));
    world.observed.now = NOW + Millis::from_secs(100);
    world.pause(None);
    world.observed.now = NOW + Millis::from_secs(300);
    world.look();
    world.pass();
    assert!(!world.snapshot.rollouts[&RolloutId(1)].phase.is_end(), "no deadline fires in a pause");
    world.ask(Command::Resume { env: Some(env("a")) }).unwrap();
    assert_eq!(deadline(&world), NOW + Millis::from_secs(110), "the time before the other pause");
    world.observed.now = NOW + Millis::from_secs(400);
    world.ask(Command::Resume { env: None }).unwrap();
    assert_eq!(deadline(&world), world.observed.now + Millis::from_secs(10), "ten seconds were left");
    let refused = world.ask(Command::Resume { env: None }).unwrap_err();
    assert_eq!(refused.to_string(), "the server is not paused");
}

#[test]
fn the_release_that_is_kept_outlives_a_pause() {
    let mut world = World::new();
    let mut environment = Environment::clone(&world.snapshot.environments[&env("a")]);
    environment.keep = Some((ReleaseNumber(2), NOW + Millis(500)));
    world.snapshot.apply(&Mutation::PutEnvironment(environment));
    world.pause(Some(env("a")));
    world.observed.now = NOW + Millis(5000);
    world.pass();
    world.ask(Command::Resume { env: Some(env("a")) }).unwrap();
    let environment = &world.snapshot.environments[&env("a")];
    assert_eq!(environment.keep, Some((ReleaseNumber(2), NOW + Millis(5500))));
    assert_eq!(environment.paused, None);
}

#[test]
fn a_table_that_was_proposed_before_a_pause_is_carried_to_its_end() {
    let mut world = World::new();
    world.ask(Command::Scale { env: env("a"), instances: [(web(), Some(1))].into() }).unwrap();
    let plan = world.pass();
    assert_eq!(begins(&plan), ["set-route"]);
    world.pause(None);
    world.observed.running.clear();
    world.look();
    assert_eq!(begins(&world.pass()), ["set-route"], "it is sent again, should the answer be lost");
    world.snapshot.apply(&Mutation::RouteAcked { generation: Generation(2) });
    world.look();
    let plan = world.pass();
    assert_eq!(begins(&plan), Vec::<&str>::new(), "and nothing is destroyed");
    world.ask(Command::Resume { env: None }).unwrap();
    world.pass();
    assert_eq!(begins(&world.pass()), ["absent"]);
}

#[test]
fn what_cannot_be_read_is_left_alone_and_the_others_go_on() {
    for env_is_lost in [false, true] {
        let mut world = World::new();
        // The row of one of its instances, or of the environment itself, is gone; what it has still runs.
        if env_is_lost {
            world.snapshot.environments.remove(&env("a"));
        } else {
            world.snapshot.instances.remove(&"web-1".parse::<InstanceId>().unwrap());
        }
        world.snapshot.damaged.push(Damaged {
            env: Some(env("a")),
            instance: (!env_is_lost).then(|| "web-1".parse::<InstanceId>().unwrap()),
            what: "instance web-1".into(),
            error: "EOF".into(),
        });
        world.die("web-2");
        world.die("web-3");
        let before = world.snapshot.route.1.pools[0].clone();
        let plan = world.pass();
        let ids: Vec<String> = plan.effects.iter().map(|op| format!("{:?}", op.key)).collect();
        assert!(!ids.iter().any(|key| key.contains("web-1") || key.contains("web-2")), "{ids:?}");
        assert!(begins(&plan).contains(&"ensure"), "the other one is healed: {ids:?}");
        assert_eq!(world.snapshot.route.1.pools[0], before, "it keeps its part of the table");
        let refused = world.ask(Command::Destroy { env: env("a") }).unwrap_err();
        assert_eq!(refused.to_string(), "`shop/a` is on hold: instance web-1 cannot be read");
        assert_eq!(
            world.why()[0],
            "a: `a` is on hold: instance web-1 cannot be read: EOF | 1000.0 s | its instances and its routes stay as they \
             are; all other environments go on | kiln restore | [\"instance web-1: EOF\"]"
                .replace("1000.0 s", "16 min")
        );
    }
}

#[test]
fn an_unreadable_table_keeps_every_route_where_it_is() {
    let mut world = World::new();
    world.snapshot.damaged.push(Damaged {
        env: None,
        instance: None,
        what: "the route table".into(),
        error: "EOF".into(),
    });
    world.die("web-3");
    let plan = world.pass();
    assert_eq!(begins(&plan), Vec::<&str>::new());
    assert!(!plan.mutations.iter().any(|m| matches!(m, Mutation::PutRoute { .. })));
    assert_eq!(world.why().len(), 2, "both environments are held: {:?}", world.why());
}

#[test]
fn a_majority_that_looks_sick_is_not_replaced_for_a_while() {
    let mut world = World::new();
    let eject = |world: &mut World, ids: &[&str], for_ms: u64| {
        for target in world.observed.edge.iter_mut().flat_map(|edge| &mut edge.targets) {
            target.ejected = ids.contains(&target.instance.as_str());
            target.ejected_for = Millis(for_ms);
            target.reason = target.ejected.then(|| "timed out".into());
        }
    };
    eject(&mut world, &["web-1", "web-2"], 5000);
    let plan = world.pass();
    assert_eq!((plan.mutations, plan.effects), (vec![], vec![]), "all look sick at once: it is not them");
    assert_eq!(
        world.why(),
        [
            "a: 2 of 2 instances of `web` look sick at once | 5.0 s | they are not replaced, since what they share is more \
          likely at fault; traffic goes to those that are left, or to all of them if none is; then one at a time is \
          replaced (within 4 min) | kiln logs web --env a | [\"timed out\"]"
        ]
    );
    eject(&mut world, &["web-1"], 5000);
    assert_eq!(begins(&world.pass()), ["ensure"], "one of two is replaced");
    let mut world = World::new();
    eject(&mut world, &["web-1", "web-2"], storm::STORM_MAX.0 + 1);
    assert_eq!(begins(&world.pass()), ["ensure"], "after a while one at a time is tried");
}

/// A rollout to release 2 whose instances are validated, so that the next pass switches.
fn about_to_switch() -> World {
    let mut world = World::new();
    world.ask(Command::Rollback { env: env("a"), to: Some(ReleaseNumber(2)) }).unwrap();
    world.pass();
    for id in ["web-5", "web-6"] {
        let id: InstanceId = id.parse().unwrap();
        let mut instance = Instance::clone(&world.snapshot.instances[&id]);
        instance.state = InstanceState::Validated;
        instance.address = Some(format!("10.0.9.{}", id.sequence()).parse().unwrap());
        world.snapshot.apply(&Mutation::PutInstance(Box::new(instance)));
    }
    world.look();
    world.pass();
    // One pass may move it from launching to switching.
    world.pass();
    assert_eq!(world.snapshot.rollouts[&RolloutId(1)].phase, RolloutPhase::Switching);
    world
}

#[test]
fn a_switch_that_nobody_acknowledges_is_taken_back_by_the_next_table() {
    let mut world = about_to_switch();
    assert_eq!(
        world.why()[0],
        "a: rollout 1 to release 2 is switching | 0 ms | the old release drains when the edge acknowledged the new table; \
         else it is taken back (within 60.0 s) |  | []"
    );
    let table = world.snapshot.route.0;
    world.observed.now = NOW + SWITCH_DEADLINE;
    world.pass();
    let rollout = &world.snapshot.rollouts[&RolloutId(1)];
    assert_eq!(rollout.phase, RolloutPhase::TakenBack);
    assert!(rollout.reason.as_ref().unwrap().contains("did not acknowledge the switch within 60.0 s"));
    assert_eq!(world.snapshot.environments[&env("a")].serving, Some(ReleaseNumber(1)));
    assert_eq!(world.snapshot.route.0, table.next());
    assert_eq!(world.snapshot.route.1.pools[0].release, ReleaseNumber(1));
    // The edge may be using the table that it did not acknowledge: nothing of it ends before the next is.
    let ended = |world: &World, id: &str| {
        world.snapshot.instances[&id.parse::<InstanceId>().unwrap()].state.is_over()
    };
    world.pass();
    assert!(!ended(&world, "web-5") && !ended(&world, "web-1"));
    world.snapshot.apply(&Mutation::RouteAcked { generation: table.next() });
    world.look();
    for _ in 0..4 {
        world.pass();
    }
    assert!(ended(&world, "web-5") && !ended(&world, "web-1"));
}

#[test]
fn a_bake_that_was_superseded_is_given_up() {
    let mut world = World::new();
    let unbaked = |number| match release(&env("a"), number) {
        Mutation::PutRelease(mut release) => {
            release.images = None;
            release.number = ReleaseNumber(number);
            release.spec
        }
        _ => unreachable!("a release"),
    };
    world.ask(Command::Deploy { env: env("a"), spec: Box::new(unbaked(7)) }).unwrap();
    let plan = world.pass();
    assert_eq!(begins(&plan), ["bake"]);
    world.observed.running = plan.effects.iter().map(|op| op.key.clone()).collect();
    assert_eq!(world.pass().abandoned, vec![]);
    world.ask(Command::Deploy { env: env("a"), spec: Box::new(unbaked(8)) }).unwrap();
    assert_eq!(world.pass().abandoned.len(), 1);
    world.pause(Some(env("a")));
    assert_eq!(world.pass().abandoned, vec![], "what is under way is not torn by a pause");
}

#[test]
fn an_effect_that_does_not_work_says_what_it_is_about_and_when_it_is_on_hold() {
    let mut world = World::new();
    world.snapshot.apply(&Mutation::PutOp(Op {
        id: OpId(9),
        key: OpKey::Absent { instance: "web-1".parse::<InstanceId>().unwrap() },
        revision: Revision(1),
        attempts: 8,
        not_before: NOW + Millis(4000),
        last_error: Some("the mount is busy".into()),
    }));
    assert_eq!(
        world.why(),
        [
            "a: destroying `web-1` failed 8 times: it is on hold | 16 min | it is tried again (within 4.0 s) | kiln doctor | \
          [\"the mount is busy\"]"
        ]
    );
    world.snapshot.ops.clear();
    world.observed.edge = None;
    world.observed.now = NOW + Millis(3000);
    assert_eq!(
        world.why(),
        [
            "a: the edge does not answer | 3.0 s | it is started again, or killed first if it hangs; it serves its last table \
          from disk (within 7.0 s) | kiln doctor | []"
        ]
    );
}
