//! The conformance suite: whatever is done to a store, it does what its twin in memory does. Sequences of commits of every kind
//! of mutation, legal and not, on stale bases and of stale epochs, of leases taken, renewed and given back, and of restarts.

use kiln_model::rollout::Receipt;
use kiln_model::route::Pool;
use kiln_model::*;
use kiln_store::{Lease, MemStore, PostgresStore, SqliteStore, Store, StoreError};
use kiln_tests::postgres::Postgres;
use proptest::prelude::{Just, any, prop, prop_oneof};
use proptest::strategy::Strategy as Choice;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// So long that no lease of these tests ends by itself.
const HOUR: Millis = Millis(3_600_000);
const NAMES: [&str; 3] = ["a", "b", "c"];

/// One thing that is done. Small numbers choose what it is about.
#[derive(Debug, Clone)]
enum Step {
    Commit { mutations: Vec<(u8, u8, u8)>, stale_base: bool, stale_epoch: bool, n_events: u8 },
    Take(u8),
    Try(u8),
    Renew { stale: bool },
    Release { stale: bool },
    Restart,
}

fn step() -> impl Choice<Value = Step> {
    let mutations = prop::collection::vec((0..KINDS.len() as u8, any::<u8>(), any::<u8>()), 0..6);
    let rarely = || prop::bool::weighted(0.1);
    prop_oneof![
        12 => (mutations, rarely(), rarely(), 0_u8..3).prop_map(|(mutations, stale_base, stale_epoch, n_events)| {
            Step::Commit { mutations, stale_base, stale_epoch, n_events }
        }),
        1 => (0_u8..3).prop_map(Step::Take),
        2 => (0_u8..3).prop_map(Step::Try),
        1 => any::<bool>().prop_map(|stale| Step::Renew { stale }),
        1 => any::<bool>().prop_map(|stale| Step::Release { stale }),
        1 => Just(Step::Restart),
    ]
}

/// Every kind of mutation. [`kind`] does not compile without the next one.
const KINDS: [&str; 15] = [
    "environment",
    "release",
    "secret",
    "rollout",
    "instance",
    "gone",
    "op",
    "drop-op",
    "route",
    "acked",
    "pause",
    "answer",
    "rebase",
    "hold",
    "recovered",
];

fn kind(mutation: &Mutation) -> &'static str {
    match mutation {
        Mutation::PutEnvironment(_) => "environment",
        Mutation::PutRelease(_) => "release",
        Mutation::PutSecret(_) => "secret",
        Mutation::PutRollout(_) => "rollout",
        Mutation::PutInstance(_) => "instance",
        Mutation::Gone { .. } => "gone",
        Mutation::PutOp(_) => "op",
        Mutation::DropOp { .. } => "drop-op",
        Mutation::PutRoute { .. } => "route",
        Mutation::RouteAcked { .. } => "acked",
        Mutation::Pause { .. } => "pause",
        Mutation::Answer(_) => "answer",
        Mutation::Rebase { .. } => "rebase",
        Mutation::Hold { .. } => "hold",
        Mutation::Recovered { .. } => "recovered",
    }
}

fn env(n: u8) -> EnvRef {
    let name = ["production", "staging"][usize::from(n % 2)];
    EnvRef { project: ProjectName::new("shop").unwrap(), env: EnvName::new(name).unwrap() }
}

fn service() -> ServiceName {
    ServiceName::new("web").unwrap()
}

fn instance_id(n: u64) -> InstanceId {
    InstanceId::new(&service(), n)
}

fn release(n: u8, number: u64, baked: bool) -> Release {
    let spec = ReleaseSpec {
        commit: "a".repeat(40).parse().unwrap(),
        commit_time: 0,
        subject: "ünïcödé 'quotes' \"and\" \u{0} NUL".into(),
        pinned: true,
        services: BTreeMap::new(),
        routes: vec![],
        images: vec![],
        secrets: BTreeMap::new(),
        requires: None,
    };
    let images = baked.then(|| [(ImageName::new("web").unwrap(), Digest::of(b"image"))].into());
    let (number, actor) = (ReleaseNumber(number), "test".to_owned());
    Release {
        env: env(n),
        number,
        spec,
        images,
        created: Wall(1),
        actor,
        served: baked,
        promoted_from: None,
        overridden: None,
    }
}

fn rollout(id: RolloutId, n: u8, phase: RolloutPhase) -> Rollout {
    Rollout {
        id,
        env: env(n),
        kind: RolloutKind::Deploy,
        to: ReleaseNumber(1),
        from: None,
        actor: "test".into(),
        phase,
        since: Boot(3),
        begun: Boot(2),
        deadline: Some(Boot(9)),
        created: Wall(1),
        ended: None,
        switch: None,
        switched_after: None,
        step: None,
        failures: 0,
        reason: None,
        evidence: vec![],
        receipt: Receipt::default(),
    }
}

/// A mutation that is mostly legal after `now`.
fn mutation(now: &Snapshot, (which, a, b): (u8, u8, u8)) -> Mutation {
    use InstanceState::*;
    let pick = |n: usize| if n == 0 { None } else { Some(usize::from(a) % n) };
    match KINDS[usize::from(which)] {
        "environment" => {
            let mut row =
                now.environments.get(&env(a)).map_or(Environment::new(env(a)), |row| (**row).clone());
            row.next_release = ReleaseNumber(u64::from(b));
            row.serving = Some(ReleaseNumber(u64::from(b % 4))).filter(|_| b % 3 == 0);
            row.deaths = [(service(), (1, Boot(u64::from(b))))].into();
            Mutation::PutEnvironment(row)
        }
        "release" => Mutation::PutRelease(Box::new(release(a, u64::from(a / 2 % 4), b % 2 == 0))),
        "secret" => {
            let name = SecretName::new(["KEY", "TOKEN"][usize::from(a / 2 % 2)]).unwrap();
            let newest = now.secrets_of(&env(a), Some(&name)).next_back().cloned();
            let next = SecretVersion(newest.as_ref().map_or(0, |row| row.version.0) + 1);
            let version = if b % 4 == 0 { SecretVersion(u64::from(b % 3) + 1) } else { next };
            let content = match b % 5 {
                0 => SecretContent::Unset,
                1 => SecretContent::Removed,
                _ => SecretContent::Sealed { sealed: "YWdl".into(), key: "age1".into(), bytes: 3 },
            };
            let row = now.secrets_of(&env(a), Some(&name)).find(|row| row.version == version).cloned();
            let row = match row {
                Some(old) => Secret { content: SecretContent::Removed, ..(*old).clone() },
                None => {
                    Secret { env: env(a), name, version, created: Wall(1), actor: "test".into(), content }
                }
            };
            Mutation::PutSecret(Box::new(row))
        }
        "rollout" => {
            const PATH: [RolloutPhase; 12] = [
                RolloutPhase::Planned,
                RolloutPhase::Baking,
                RolloutPhase::Launching,
                RolloutPhase::Validating,
                RolloutPhase::Shifting,
                RolloutPhase::Switching,
                RolloutPhase::Draining,
                RolloutPhase::Succeeded,
                RolloutPhase::TakenBack,
                RolloutPhase::Superseded,
                RolloutPhase::Aborted,
                RolloutPhase::FailedNoPrevious,
            ];
            match pick(now.rollouts.len()).filter(|_| b % 3 > 0).and_then(|n| now.rollouts.values().nth(n)) {
                Some(old) => {
                    let legal = PATH.iter().filter(|next| old.phase.may_become(**next));
                    let phase = *legal.cycle().nth(usize::from(b % 4)).unwrap_or(&old.phase);
                    Mutation::PutRollout(Box::new(Rollout {
                        phase,
                        failures: u32::from(b),
                        ..(**old).clone()
                    }))
                }
                None => Mutation::PutRollout(Box::new(rollout(now.next_rollout, a, PATH[0]))),
            }
        }
        "instance" => {
            const STATES: [InstanceState; 10] =
                [Intent, Booting, Probing, Validated, Serving, Tainted, Draining, Retiring, Failed, Lost];
            let old =
                pick(now.instances.len()).filter(|_| b % 3 > 0).and_then(|n| now.instances.values().nth(n));
            Mutation::PutInstance(Box::new(match old {
                Some(old) => {
                    let legal: Vec<_> = STATES.into_iter().filter(|s| old.state.may_become(*s)).collect();
                    let state = if b == 7 { Intent } else { legal[usize::from(b) % legal.len()] };
                    Instance { state, since: Boot(u64::from(b)), ..(**old).clone() }
                }
                None => Instance {
                    // Now and then one that was used before.
                    id: instance_id(if b % 30 == 0 { u64::from(a % 8) } else { now.next_instance }),
                    env: env(a),
                    release: ReleaseNumber(1),
                    service: service(),
                    slot: 0,
                    image: Digest::of(b"image"),
                    network: NetworkNumber(1),
                    state: Intent,
                    since: Boot(1),
                    created: Wall(1),
                    address: None,
                    evidence: vec![],
                    reason: None,
                },
            }))
        }
        "gone" => {
            let known = pick(now.instances.len()).and_then(|n| now.instances.keys().nth(n)).cloned();
            Mutation::Gone { instance: known.filter(|_| b % 5 > 0).unwrap_or(instance_id(u64::from(a % 16))) }
        }
        "op" => {
            let key = match b % 4 {
                0 => OpKey::Ensure { instance: instance_id(u64::from(a % 8)) },
                1 => OpKey::Absent { instance: instance_id(u64::from(a % 8)) },
                2 => OpKey::SetRoute { generation: now.route.0, digest: Digest::of(b"table") },
                _ => OpKey::Bake {
                    env: env(a),
                    release: ReleaseNumber(1),
                    image: ImageName::new("web").unwrap(),
                },
            };
            Mutation::PutOp(Op {
                id: now.next_op,
                key,
                revision: now.revision,
                attempts: 1,
                not_before: Boot(u64::from(b)),
                last_error: Some("it's 'so' \\".into()),
            })
        }
        "drop-op" => match pick(now.ops.len()).and_then(|n| now.ops.values().nth(n)) {
            // Now and then another row's.
            Some(op) => Mutation::DropOp { key: op.key.clone(), id: OpId(op.id.0 + u64::from(b % 7 == 0)) },
            None => Mutation::DropOp { key: OpKey::Ensure { instance: instance_id(1) }, id: OpId(1) },
        },
        "route" => {
            let skips = u64::from(b % 10 == 0);
            let mut table = Box::<RouteTable>::default();
            let targets = now.instances.values().take(usize::from(b % 3));
            let targets: Vec<Target> = targets
                .map(|i| Target { instance: i.id.clone(), address: [10, 0, 0, 1].into(), port: 80 })
                .collect();
            table.pools = vec![Pool {
                env: env(a),
                service: service(),
                release: ReleaseNumber(1),
                commit: "a".repeat(40).parse().unwrap(),
                image: Digest::of(b"image"),
                health: None,
                targets,
                proxy_protocol: false,
                protocol: Default::default(),
            }];
            Mutation::PutRoute { generation: Generation(now.route.0.0 + 1 + skips), table }
        }
        "acked" => Mutation::RouteAcked {
            generation: Generation((now.route.0.0 + u64::from(b % 5 == 0)).saturating_sub(u64::from(a % 2))),
        },
        "pause" => {
            let pause =
                Pause { actor: "a".into(), reason: "b".into(), since: Boot(u64::from(a)), at: Wall(1) };
            Mutation::Pause { env: (b % 2 == 0).then(|| env(a)), pause: (b % 3 > 0).then_some(pause) }
        }
        "answer" => Mutation::Answer(Answered {
            key: format!("key-{}", a % 8),
            request: Digest::of(&[b]),
            outcome: "{}".into(),
            revision: now.revision.next(),
        }),
        "hold" => {
            let recovery = Recovery { reason: "it's old".into(), since: Boot(u64::from(a)), at: Wall(1) };
            Mutation::Hold { recovery }
        }
        "recovered" => Mutation::Recovered { next_instance: u64::from(b % 4) },
        _ => Mutation::Rebase { boot_id: format!("boot-{}", a % 4), now: Boot(u64::from(b)) },
    }
}

/// What a refusal is, without its words.
fn word(error: &StoreError) -> String {
    match error {
        StoreError::Conflict { base, newest } => format!("conflict {base} {newest}"),
        StoreError::LeaseLost { mine, holder } => format!("lost {mine} {holder}"),
        StoreError::Illegal { detail } => format!("illegal {detail}"),
        other => panic!("the store failed: {other:?}"),
    }
}

/// A lease without what depends on the clock.
fn still(lease: Lease) -> (String, Epoch, bool, bool) {
    let (is_free, is_endless) = (lease.is_free(), lease.left.is_none());
    (lease.holder, lease.epoch, is_free, is_endless)
}

/// A kind of store.
struct Subject<'a> {
    /// An empty one, and later what is on its disk.
    open: &'a dyn Fn(Option<Arc<dyn Store>>) -> Arc<dyn Store>,
}

/// What the sequences did, over all of them.
#[derive(Default)]
struct Seen {
    kinds: BTreeSet<&'static str>,
    refusals: BTreeMap<String, u32>,
    n_commits: u32,
}

fn agree(store: &dyn Store, twin: &MemStore) {
    assert_eq!(*store.load().unwrap(), *twin.load().unwrap());
    assert_eq!(still(store.lease().unwrap()), still(twin.lease().unwrap()));
}

/// Does the steps to the store and to its twin.
fn conform(subject: &Subject<'_>, steps: &[Step], seen: &RefCell<Seen>) {
    let twin = MemStore::default();
    let mut store = (subject.open)(None);
    let mut epoch = twin.take_lease("a").unwrap().1;
    assert_eq!(store.take_lease("a").unwrap().1, epoch);
    for step in steps {
        match step {
            Step::Commit { mutations, stale_base, stale_epoch, n_events } => {
                let before = twin.load().unwrap();
                let mut after = (*before).clone();
                let mut list = vec![];
                for of in mutations {
                    list.push(mutation(&after, *of));
                    after.apply(list.last().unwrap());
                }
                let base = Revision(before.revision.0.saturating_sub(u64::from(*stale_base)));
                let by = Epoch(epoch.0.saturating_sub(u64::from(*stale_epoch)));
                let event = |n| Event {
                    at: Wall(n),
                    actor: "test".into(),
                    env: Some(env(n as u8)),
                    kind: "test".into(),
                    subject: format!("thing {n}"),
                    detail: "ü '\\ \"".into(),
                };
                let events: Vec<Event> = (0..u64::from(*n_events)).map(event).collect();
                let done = store.commit(by, base, &list, &events).map_err(|error| word(&error));
                let expected = twin.commit(by, base, &list, &events).map_err(|error| word(&error));
                assert_eq!(done, expected, "{list:?}");
                let mut seen = seen.borrow_mut();
                match done {
                    Ok(_) => {
                        seen.n_commits += 1;
                        seen.kinds.extend(list.iter().map(kind));
                    }
                    Err(text) => {
                        let what = text.split(' ').next().unwrap().to_owned();
                        *seen.refusals.entry(what).or_default() += 1;
                    }
                }
            }
            Step::Take(n) => {
                epoch = twin.take_lease(NAMES[usize::from(*n)]).unwrap().1;
                assert_eq!(store.take_lease(NAMES[usize::from(*n)]).unwrap().1, epoch);
            }
            Step::Try(n) => {
                let taken = twin.try_lease(NAMES[usize::from(*n)], HOUR).unwrap().map_err(still);
                let own = store.try_lease(NAMES[usize::from(*n)], HOUR).unwrap().map_err(still);
                assert_eq!(own, taken);
                epoch = taken.map_or(epoch, |(_, epoch)| epoch);
            }
            Step::Renew { stale } => {
                let by = Epoch(epoch.0 - u64::from(*stale));
                let renewed = store.renew_lease(by, HOUR).map_err(|error| word(&error));
                assert_eq!(renewed, twin.renew_lease(by, HOUR).map_err(|error| word(&error)));
            }
            Step::Release { stale } => {
                let by = Epoch(epoch.0 - u64::from(*stale));
                store.release_lease(by).unwrap();
                twin.release_lease(by).unwrap();
            }
            Step::Restart => store = (subject.open)(Some(store)),
        }
        agree(&*store, &twin);
    }
    store = (subject.open)(Some(store));
    agree(&*store, &twin);
    assert_eq!(store.ledger(1, 10_000).unwrap(), twin.ledger(1, 10_000).unwrap());
    assert_eq!(store.ledger(3, 2).unwrap(), twin.ledger(3, 2).unwrap());
    assert_eq!(store.verify_ledger().unwrap(), twin.verify_ledger().unwrap());
    for n in 0..twin.load().unwrap().next_instance + 2 {
        let id = instance_id(n);
        assert_eq!(store.is_tombstoned(&id).unwrap(), twin.is_tombstoned(&id).unwrap(), "{id}");
    }
    let buried = |store: &dyn Store| -> BTreeSet<String> {
        store.tombstones().unwrap().into_iter().map(|row| format!("{row:?}")).collect()
    };
    assert_eq!(buried(&*store), buried(&twin));
    let ids = |store: &dyn Store| -> BTreeSet<String> {
        store.departed(1000).unwrap().into_iter().map(|row| format!("{row:?}")).collect()
    };
    assert_eq!(ids(&*store), ids(&twin));
}

/// Runs `cases` sequences, always the same ones, and makes sure that they were worth running.
fn suite(subject: &Subject<'_>, cases: u32) {
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 300, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let seen = RefCell::new(Seen::default());
    let run = |steps: Vec<Step>| {
        conform(subject, &steps, &seen);
        Ok(())
    };
    if let Err(failure) = runner.run(&prop::collection::vec(step(), 20..60), run) {
        panic!("{failure}");
    }
    let seen = seen.into_inner();
    assert_eq!(seen.kinds, KINDS.into(), "every kind of mutation was committed");
    for what in ["conflict", "lost", "illegal"] {
        assert!(seen.refusals.get(what) > Some(&5), "{what}: {:?}", seen.refusals);
    }
    println!("{cases} sequences, {} commits, refusals {:?}", seen.n_commits, seen.refusals);
}

#[test]
fn memory_conforms_to_itself() {
    suite(&Subject { open: &|old| old.unwrap_or_else(|| Arc::new(MemStore::default())) }, 64);
}

#[test]
fn sqlite_conforms() {
    let folder = RefCell::new(tempfile::tempdir().unwrap());
    let open = |old: Option<Arc<dyn Store>>| -> Arc<dyn Store> {
        if old.is_none() {
            *folder.borrow_mut() = tempfile::tempdir().unwrap();
        }
        drop(old);
        Arc::new(SqliteStore::open(&folder.borrow().path().join("kiln.db")).unwrap())
    };
    suite(&Subject { open: &open }, 48);
}

fn postgres_suite(postgres: &Postgres, address: &str, cases: u32) {
    let open = |old: Option<Arc<dyn Store>>| -> Arc<dyn Store> {
        if old.is_none() {
            postgres.clear();
        }
        drop(old);
        Arc::new(PostgresStore::open(address.parse().unwrap()).unwrap())
    };
    suite(&Subject { open: &open }, cases);
}

#[test]
fn postgres_conforms() {
    let postgres = Postgres::started(false);
    postgres_suite(&postgres, &postgres.address(), 48);
}

#[test]
fn postgres_behind_a_pooler_conforms() {
    // Each transaction gets another connection of the pooler's: nothing of a session is relied on.
    let mut postgres = Postgres::started(false);
    let address = postgres.pooled();
    postgres_suite(&postgres, &address, 24);
}
