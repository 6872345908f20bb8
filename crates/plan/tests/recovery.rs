//! State that is older than the world: what shows it, what a hold holds, and what a recovery makes of both.

use kiln_model::edge::{EdgeStatus, TargetStatus};
use kiln_model::strategy::Rolling;
use kiln_model::*;
use kiln_plan::explain::explain;
use kiln_plan::recovery::{Lead, World, evidence, recover, survey};
use kiln_plan::{Command, Observed, Outcome, Refusal, Request, decide, lint, plan};
use std::collections::BTreeMap;
use std::sync::Arc;

const NOW: Boot = Boot(1_000_000);

fn env() -> EnvRef {
    EnvRef::try_from("shop/production".to_owned()).unwrap()
}

fn web() -> ServiceName {
    ServiceName::new("web").unwrap()
}

fn release(number: u64, strategy: Strategy) -> Release {
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
            strategy,
            drain: second,
            keep_previous: Millis(0),
            deadline: Millis::from_secs(60),
        },
        stop: Stop::default(),
    };
    let name = SecretName::new("KEY").unwrap();
    Release {
        promoted_from: None,
        overridden: None,
        env: env(),
        number: ReleaseNumber(number),
        spec: ReleaseSpec {
            secrets: [(name, SecretVersion(number))].into(),
            requires: None,
            commit: format!("{number:040}").parse().unwrap(),
            commit_time: 0,
            subject: String::new(),
            pinned: true,
            services: [(web(), service)].into(),
            routes: vec![RouteRule {
                tcp: None,
                policy: Default::default(),
                host: None,
                path: "/".into(),
                service: web(),
                https: Default::default(),
            }],
            images: vec![image.clone()],
        },
        images: Some([(image, Digest::of(&[number as u8]))].into()),
        created: Wall(0),
        actor: "ann".into(),
        served: true,
    }
}

fn row(number: u64, release: u64, slot: u32, state: InstanceState) -> Instance {
    Instance {
        id: InstanceId::new(&web(), number),
        env: env(),
        release: ReleaseNumber(release),
        service: web(),
        slot,
        image: Digest::of(&[release as u8]),
        network: NetworkNumber(1),
        state,
        since: Boot(0),
        created: Wall(0),
        address: Some(format!("10.0.0.{number}").parse().unwrap()),
        evidence: vec![],
        reason: None,
    }
}

/// The state of a backup: release 1 with instances 1 and 2, table 4.
fn old() -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.boot_id = "b".into();
    let mut environment = Environment::new(env());
    environment.serving = Some(ReleaseNumber(1));
    environment.next_release = ReleaseNumber(2);
    environment.network = NetworkNumber(1);
    snapshot.apply(&Mutation::PutEnvironment(environment));
    snapshot.apply(&Mutation::PutRelease(Box::new(release(1, Strategy::default()))));
    snapshot.apply(&Mutation::PutSecret(Box::new(Secret {
        env: env(),
        name: SecretName::new("KEY").unwrap(),
        version: SecretVersion(1),
        created: Wall(0),
        actor: "ann".into(),
        content: SecretContent::Sealed { sealed: "YWdl".into(), key: "age1".into(), bytes: 3 },
    })));
    for (number, slot) in [(1, 0), (2, 1)] {
        snapshot.apply(&Mutation::PutInstance(Box::new(row(number, 1, slot, InstanceState::Serving))));
    }
    let table = kiln_plan::route::table(&snapshot);
    snapshot.apply(&Mutation::PutRoute { generation: Generation(4), table: Box::new(table) });
    snapshot.apply(&Mutation::RouteAcked { generation: Generation(4) });
    snapshot.revision = Revision(50);
    let recovery = Recovery { reason: "a backup was restored".into(), since: Boot(0), at: Wall(0) };
    snapshot.apply(&Mutation::Hold { recovery });
    snapshot
}

/// One instance of the world: its number, release, slot, whether the edge sends to it, whether it says what it is of.
type There = (u64, u64, u32, bool, bool);

fn world(there: &[There], strategy: &Strategy) -> World {
    let manifest = ImageManifest {
        format: 1,
        architecture: "amd64".into(),
        layers: vec![],
        config: ImageConfig::default(),
    };
    let spec = |(number, of, slot, _, labelled): &There| {
        let release = release(*of, strategy.clone());
        let mut spec = kiln_plan::instance::spec(
            &row(*number, *of, *slot, InstanceState::Intent),
            &release,
            manifest.clone(),
        )
        .unwrap();
        if !labelled {
            spec.origin = None;
        }
        (spec.id.clone(), spec)
    };
    let seen = |(number, of, slot, ..): &There| {
        let row = row(*number, *of, *slot, InstanceState::Intent);
        (row.id.clone(), Seen { id: row.id, address: row.address, state: SeenState::Running })
    };
    let target = |(number, of, _, in_table, _): &There| TargetStatus {
        instance: InstanceId::new(&web(), *number),
        env: env(),
        service: web(),
        release: ReleaseNumber(*of),
        in_table: *in_table,
        in_flight: 0,
        ejected: false,
        ejected_for: Millis(0),
        ejections: 0,
        reason: None,
        tally: Default::default(),
        latency: vec![],
    };
    let newest = Fence { revision: Revision(90), epoch: Epoch(3), ..Fence::default() };
    let specs: BTreeMap<_, _> = there.iter().map(spec).collect();
    World {
        memory: Some(Arc::new(Memory { newest, last_instance: 20, specs })),
        seen: Some(there.iter().map(seen).collect()),
        edge: Some(EdgeStatus {
            generation: Generation(9),
            digest: Some(Digest::of(b"table 9")),
            fence: Some(newest),
            targets: there.iter().map(target).collect(),
            ..EdgeStatus::default()
        }),
    }
}

fn observed(world: &World) -> Observed {
    Observed {
        now: NOW,
        boot_id: "b".into(),
        seen: world.seen.clone(),
        edge: world.edge.clone(),
        memory: world.memory.clone(),
        lead: Some(Lead { base: Revision(50), server: (Incarnation(1), Epoch(4)) }),
        ..Observed::default()
    }
}

fn request(command: Command) -> Request {
    Request { command, actor: "ann".into(), at: Wall(7), now: NOW }
}

/// The snapshot after a recovery, which the rules of the store and the lint of plans accept.
fn after(snapshot: &Snapshot, world: &World) -> Snapshot {
    let command = Command::Recover { world: Box::new(world.clone()) };
    let decision = decide(snapshot, &request(command)).unwrap();
    let after = kiln_store::rules::check(snapshot, &decision.mutations, |_| false).unwrap();
    let as_plan = kiln_plan::Plan { mutations: decision.mutations, ..Default::default() };
    assert_eq!(lint::lint(snapshot, &as_plan), Vec::<String>::new());
    after
}

#[test]
fn whoever_heard_of_more_than_the_state_has_shows_it() {
    let mut snapshot = old();
    snapshot.recovery = None;
    let lead = Lead { base: Revision(50), server: (Incarnation(1), Epoch(4)) };
    let fence = |incarnation, epoch, revision| Fence {
        incarnation: Incarnation(incarnation),
        epoch: Epoch(epoch),
        revision: Revision(revision),
        op: OpId(0),
    };
    let cases = [
        (fence(1, 3, 50), 4, false, "a server before, up to where the state ends"),
        (fence(1, 3, 51), 4, true, "a revision that the state does not have"),
        (fence(1, 4, 60), 4, false, "this server's own effects"),
        (fence(1, 5, 10), 4, true, "a newer server"),
        (fence(2, 1, 1), 4, true, "another history"),
        (fence(0, 9, 99), 9, false, "a history that ended"),
        (fence(1, 3, 50), 5, true, "a table that the state does not have"),
    ];
    for (fence, generation, shows, what) in cases {
        let memory = Some(Arc::new(Memory { newest: fence, ..Memory::default() }));
        let edge = Some(EdgeStatus {
            fence: Some(fence),
            generation: Generation(generation),
            ..EdgeStatus::default()
        });
        let by_edge = World { edge, ..World::default() };
        assert_eq!(evidence(&snapshot, lead, &by_edge).is_some(), shows, "edge: {what}");
        if generation == 4 {
            let by_provider = World { memory, ..World::default() };
            assert_eq!(evidence(&snapshot, lead, &by_provider).is_some(), shows, "provider: {what}");
        }
    }
    assert_eq!(evidence(&snapshot, lead, &World::default()), None, "not known is no evidence");
}

#[test]
fn in_a_hold_nothing_begins_and_commands_are_refused() {
    let snapshot = old();
    let there = [(3, 2, 0, true, true), (4, 2, 1, true, true), (5, 1, 0, false, true)];
    let world = world(&there, &Strategy::default());
    for observed in [
        observed(&world),
        Observed { edge: None, ..observed(&world) },
        Observed { seen: None, memory: None, ..observed(&world) },
        Observed { boot_id: "another".into(), ..observed(&world) },
    ] {
        assert_eq!(plan::plan(&snapshot, &observed), kiln_plan::Plan::default());
        let reasons = explain(&snapshot, &observed, None);
        assert_eq!(reasons.len(), 1);
        assert_eq!(reasons[0].command.as_deref(), Some("kiln recover --plan"));
    }
    let refused = decide(&snapshot, &request(Command::Abort { env: env() })).unwrap_err();
    assert!(matches!(refused, Refusal::Recovering { .. }) && refused.hint().is_some());
    let unseen = Command::Recover { world: Box::new(World { edge: None, ..world }) };
    assert_eq!(decide(&snapshot, &request(unseen)).unwrap_err(), Refusal::Unseen);
}

#[test]
fn a_hold_is_put_on_by_a_pass_and_nothing_is_planned_before_the_provider_was_heard() {
    let mut snapshot = old();
    snapshot.recovery = None;
    let world = world(&[(3, 2, 0, true, true)], &Strategy::default());
    let mut observed = observed(&world);
    observed.lead = Some(Lead { base: Revision(50), server: (Incarnation(0), Epoch(4)) });
    let held = plan::plan(&snapshot, &observed);
    assert!(matches!(held.mutations[..], [Mutation::Hold { .. }]) && held.effects.is_empty(), "{held:?}");
    let blind = Observed { memory: None, edge: None, ..observed };
    assert_eq!(plan::plan(&snapshot, &blind), kiln_plan::Plan::default());
}

#[test]
fn what_serves_is_adopted_and_everything_else_is_not() {
    let snapshot = old();
    // Release 2 was deployed and scaled to three, an instance of it is on its way, one lost its label, one was kept.
    let there = [
        (3, 2, 0, true, true),
        (4, 2, 1, true, true),
        (8, 2, 2, true, true),
        (9, 2, 3, false, true),
        (10, 2, 4, true, false),
        (2, 1, 1, false, true),
    ];
    let world = world(&there, &Strategy::default());
    let looked = survey(&snapshot, &world).unwrap();
    let numbers: Vec<u64> = looked.adopted.iter().map(|a| a.spec.id.sequence()).collect();
    assert_eq!(numbers, [3, 4, 8]);
    assert_eq!(looked.pruned.iter().map(|l| l.instance.sequence()).collect::<Vec<_>>(), [9]);
    assert_eq!(looked.unroutable.iter().map(|l| l.instance.sequence()).collect::<Vec<_>>(), [10]);
    assert_eq!(looked.changed, [(env(), Some(ReleaseNumber(1)))].into());
    assert!(!looked.agrees());
    let after = after(&snapshot, &world);
    let environment = &after.environments[&env()];
    assert_eq!((environment.serving, environment.next_release), (Some(ReleaseNumber(2)), ReleaseNumber(3)));
    assert_eq!(environment.scale, [(web(), 3)].into(), "as many stay");
    assert_eq!(
        after.release(&env(), ReleaseNumber(2)).unwrap().images,
        release(2, Strategy::default()).images
    );
    assert_eq!((after.next_instance, after.recovery.clone()), (21, None));
    assert_eq!((after.route.0, after.acked), (Generation(10), Generation(4)), "above the edge's");
    let targets: Vec<u64> =
        after.route.1.pools.iter().flat_map(|p| &p.targets).map(|t| t.instance.sequence()).collect();
    assert_eq!(targets, [3, 4, 8]);
    let key = SecretName::new("KEY").unwrap();
    let lost = after.secrets_of(&env(), Some(&key)).next_back().unwrap();
    assert_eq!((lost.version, &lost.content), (SecretVersion(2), &SecretContent::Removed));

    // The first pass afterwards: the table is sent; nothing is ended before the edge has it.
    let mut snapshot = after;
    let observed = observed(&world);
    let first = plan::plan(&snapshot, &observed);
    let effects: Vec<&str> = first.effects.iter().map(|op| op.key.word()).collect();
    assert!(effects.contains(&"set-route"), "{effects:?}");
    let ended: Vec<u64> = first
        .effects
        .iter()
        .filter_map(|op| match &op.key {
            OpKey::Absent { instance } => Some(instance.sequence()),
            _ => None,
        })
        .collect();
    assert_eq!(ended, [9], "only what nobody owns and the edge does not send to");
    first.mutations.iter().for_each(|m| snapshot.apply(m));
    assert_eq!(lint::lint(&snapshot, &first), Vec::<String>::new());
}

#[test]
fn state_and_world_that_agree_end_the_hold_by_themselves() {
    let snapshot = old();
    let world = world(&[(1, 1, 0, true, true), (2, 1, 1, true, true)], &Strategy::default());
    assert!(survey(&snapshot, &world).unwrap().agrees());
    let plan = plan::plan(&snapshot, &observed(&world));
    assert!(
        plan.mutations.iter().any(|m| matches!(m, Mutation::Recovered { next_instance: 21 })),
        "{plan:?}"
    );
    // Nothing at all runs: a new host.
    let mut nowhere = world.clone();
    nowhere.seen = Some(BTreeMap::new());
    nowhere.edge = Some(EdgeStatus::default());
    assert!(survey(&snapshot, &nowhere).unwrap().agrees());
    // Something runs, and a service that the state wants does not: somebody removed it, or not.
    let mut half = world;
    half.seen.as_mut().unwrap().retain(|id, _| id.sequence() > 20);
    half.edge.as_mut().unwrap().targets.clear();
    half.seen.as_mut().unwrap().insert(
        InstanceId::new(&web(), 30),
        Seen {
            id: InstanceId::new(&web(), 30),
            address: None,
            state: SeenState::Exited(ExitReason::Unknown),
        },
    );
    assert!(!survey(&snapshot, &half).unwrap().agrees());
}

#[test]
fn two_releases_that_share_the_traffic_go_on_until_one_is_whole() {
    let rolling = Strategy::Rolling(Rolling::default());
    let there = [(2, 1, 1, true, true), (3, 2, 0, true, true)];
    let after = after(&old(), &world(&there, &rolling));
    let environment = &after.environments[&env()];
    assert_eq!(environment.serving, Some(ReleaseNumber(1)));
    assert_eq!(environment.mix.as_ref().map(|mix| mix.release), Some(ReleaseNumber(2)));
    let targets: usize = after.route.1.pools.iter().map(|p| p.targets.len()).sum();
    assert_eq!(targets, 2, "both are in the table");
}

#[test]
fn a_slot_whose_owner_was_replaced_has_one_owner() {
    let there = [(1, 1, 0, true, true), (7, 1, 1, true, true)];
    let after = after(&old(), &world(&there, &Strategy::default()));
    let state = |number| after.instances[&InstanceId::new(&web(), number)].state;
    assert_eq!((state(7), state(2)), (InstanceState::Serving, InstanceState::Lost));
}

#[test]
fn a_release_whose_number_is_another_ones_is_not_adopted() {
    let mut snapshot = old();
    let mut other = release(2, Strategy::default());
    other.spec.subject = "another".into();
    snapshot.apply(&Mutation::PutRelease(Box::new(other)));
    let world = world(&[(3, 2, 0, true, true)], &Strategy::default());
    let looked = survey(&snapshot, &world).unwrap();
    assert!(looked.adopted.is_empty() && looked.unroutable.len() == 1, "{looked:?}");
}

#[test]
fn what_was_under_way_when_the_backup_was_taken_is_over() {
    let mut snapshot = old();
    snapshot.recovery = None;
    let deploy = Command::Rollback { env: env(), to: Some(ReleaseNumber(1)) };
    assert!(matches!(decide(&snapshot, &request(deploy)).unwrap().outcome, Outcome::Already { .. }));
    snapshot.apply(&Mutation::PutRelease(Box::new(release(2, Strategy::default()))));
    let deploy = Command::Rollback { env: env(), to: Some(ReleaseNumber(2)) };
    decide(&snapshot, &request(deploy)).unwrap().mutations.iter().for_each(|m| snapshot.apply(m));
    let recovery = Recovery { reason: "a backup was restored".into(), since: Boot(0), at: Wall(0) };
    snapshot.apply(&Mutation::Hold { recovery });
    let world = world(&[(1, 1, 0, true, true), (2, 1, 1, true, true)], &Strategy::default());
    let decision = recover(&snapshot, &request(Command::Abort { env: env() }), &world).unwrap();
    let after = kiln_store::rules::check(&snapshot, &decision.mutations, |_| false).unwrap();
    assert_eq!(after.active_rollouts(&env()).count(), 0);
    assert!(decision.events.iter().any(|event| event.kind == "rollout.superseded"));
}
