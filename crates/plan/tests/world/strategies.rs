//! Rolling and canary rollouts in the simulated world: who may have traffic, how much, and that capacity stays.

use super::*;
use kiln_model::mix::BASELINE_SLOT;
use kiln_model::strategy::{Analysis, Canary, CanaryStep, Rolling};

pub(crate) fn rolling(max_surge: u32, batch: u32) -> Strategy {
    Strategy::Rolling(Rolling { max_surge, batch, min_ready: Millis(100) })
}

pub(crate) fn canary() -> Strategy {
    let step = |weight, hold| CanaryStep { weight, hold: Millis(hold) };
    let analysis = Analysis { min_requests: 30, hold: Millis(3000), ..Analysis::default() };
    Strategy::Canary(Canary { steps: vec![step(10, 500), step(50, 500)], analysis })
}

/// One of all.
pub(crate) fn any(n: usize) -> Strategy {
    [Strategy::BlueGreen, rolling(1, 1), canary()][n].clone()
}

impl World {
    pub(crate) fn deploy_with(&mut self, commit: u64, keep: u64, strategy: &Strategy) -> Outcome {
        let mut spec = release(commit, keep);
        spec.services.values_mut().for_each(|s| s.rollout.strategy = strategy.clone());
        self.submit(Command::Deploy { env: env(), spec: Box::new(spec) }).unwrap()
    }

    /// Requests of one step, spread as the edge spreads them.
    pub(crate) fn answer(&mut self) {
        for route in self.edge.1.routes.clone() {
            for _ in 0..self.traffic {
                let full = |p: &&route::WeightedPool| !self.edge.1.pools[p.pool].targets.is_empty();
                let pools: Vec<_> = route.pools.iter().filter(|p| p.weight > 0).filter(full).collect();
                let total: u32 = pools.iter().map(|p| p.weight).sum();
                let mut left = self.rng.below(total as usize) as u32;
                let chosen = pools.iter().find(|p| {
                    let own = left < p.weight;
                    left = left.saturating_sub(p.weight);
                    own
                });
                let Some(chosen) = chosen else { continue };
                let targets = &self.edge.1.pools[chosen.pool].targets;
                let id = targets[self.rng.below(targets.len())].instance.clone();
                let behaviour = self.running.get(&id).map(|r| behaviour(r.commit));
                let fails = behaviour == Some(Behaviour::Errors) && self.rng.below(3) == 0;
                let (tally, latency) =
                    self.counts.entry(id).or_insert_with(|| (Default::default(), vec![0; 21]));
                tally.requests += 1;
                tally.errors += u64::from(fails);
                latency[if behaviour == Some(Behaviour::Slow) { 13 } else { 7 }] += 1;
            }
        }
    }

    fn rollout(&self, id: u64) -> &Rollout {
        &self.store.rollouts[&RolloutId(id)]
    }

    /// Steps until `condition` holds.
    fn until(&mut self, what: &str, condition: impl Fn(&World) -> bool) {
        for _ in 0..5000 {
            if condition(self) {
                return;
            }
            step(self);
        }
        let last = self.store.rollouts.values().next_back();
        panic!("never {what}: {last:?} {:?}", self.store.environments[&env()].mix);
    }

    /// The releases that the edge's table sends requests to.
    fn routed(&self) -> BTreeSet<u64> {
        let pools = self.edge.1.pools.iter().filter(|p| !p.targets.is_empty());
        pools.map(|p| p.release.0).collect()
    }
}

/// S2 and S3, on every table that reaches the edge: at most two releases, with the weights of the mix that was committed,
/// and no fewer instances that live than before, unless fewer are wanted.
pub(crate) fn check_table(world: &World, snapshot: &Snapshot) {
    let (_, table) = &snapshot.route;
    let releases: BTreeSet<_> = table.pools.iter().map(|p| p.release).collect();
    assert!(releases.len() <= 2, "S2: {releases:?}");
    let environment = &snapshot.environments[&env()];
    if releases.len() == 2 {
        let mix = environment.mix.as_ref().expect("S2: two releases without a mix");
        assert!(releases.contains(&mix.release));
        if let Share::Canary { weight, .. } = mix.share {
            let shared = table.routes.iter().filter(|r| r.pools.len() > 1);
            for weights in shared.map(|r| r.pools.iter().map(|p| p.weight).collect::<Vec<_>>()) {
                assert_eq!((weights.iter().sum::<u32>(), weights[1]), (100, weight), "S2: {weights:?}");
            }
        }
    }
    let Some(release) = environment.serving.and_then(|n| snapshot.release(&env(), n)) else { return };
    if environment.destroyed {
        return;
    }
    for service in release.spec.services.values() {
        let wanted = kiln_plan::route::replicas(environment, service);
        // A canary's instances beside the serving release are no capacity that must stay, nor are slots that a scaling gave up.
        let regular = |id: &InstanceId| {
            snapshot.instances.get(id).is_none_or(|i| {
                let canary = environment.mix.is_none() && i.release != release.number;
                i.slot < wanted && !canary
            })
        };
        let of = |table: &RouteTable, alive: bool| {
            let pools = table.pools.iter().filter(|p| p.service == service.name);
            let ids = pools.flat_map(|p| p.targets.iter().map(|t| t.instance.clone()));
            ids.filter(|id| regular(id) && (!alive || world.running.get(id).is_some_and(|r| r.alive))).count()
                as u32
        };
        let (had, has) = (of(&world.edge.1, true), of(table, false));
        // One that died after the table was decided on is nobody's fault.
        let died = of(&world.edge.1, false) - had;
        assert!(
            has + died >= had.min(wanted),
            "S3: {} of {} had {had} and gets {has}: {:?} {:?}",
            service.name,
            release.number,
            environment.mix,
            table.pools
        );
    }
}

/// Deploys 1 at once and 2 with `strategy`.
fn two(strategy: &Strategy, commit: u64) -> World {
    let mut world = World::new(1, Faults::default());
    world.traffic = 10;
    world.deploy(1, 0);
    settle(&mut world);
    world.deploy_with(commit, 0, strategy);
    world
}

/// The smallest capacity in the edge's table and the most instances of one service, while `world` goes on until its last
/// rollout ended and its mix is gone.
fn extremes(world: &mut World, service: &str) -> (usize, usize) {
    let (mut least, mut most) = (usize::MAX, 0);
    let service = ServiceName::new(service).unwrap();
    for _ in 0..6000 {
        step(world);
        let pools = world.edge.1.pools.iter().filter(|p| p.service == service);
        let ids = pools.flat_map(|p| &p.targets).map(|t| &t.instance);
        least = least.min(ids.filter(|id| world.running[*id].alive).count());
        most = most
            .max(world.running.keys().filter(|id| id.as_str().starts_with(&format!("{service}-"))).count());
        let busy = world.store.active_rollouts(&env()).next().is_some();
        if !busy && world.store.environments[&env()].mix.is_none() {
            return (least, most);
        }
    }
    panic!("it never ended: {:?}", world.store.rollouts.values().next_back());
}

#[test]
fn rolling_replaces_a_few_at_a_time() {
    for (surge, batch) in [(1, 1), (2, 1), (2, 2), (9, 9)] {
        let mut world = two(&rolling(surge, batch), 2);
        let (least, most) = extremes(&mut world, "web");
        assert_eq!(world.rollout(2).phase, RolloutPhase::Succeeded, "{:?}", world.rollout(2));
        assert_eq!(least, 3, "surge {surge}");
        assert!(most <= 3 + surge as usize, "surge {surge}: {most} instances");
        let step = world.rollout(2).step.clone().unwrap();
        assert_eq!((step.number, step.of), (5, 5));
        settle(&mut world);
        assert_converged(&mut world, Some(2));
    }
}

#[test]
fn a_rolling_rollout_that_fails_half_way_gives_everything_back() {
    let mut world = two(&rolling(1, 1), 2);
    world.until("half-way", |w| w.rollout(2).step.as_ref().is_some_and(|s| s.number >= 2));
    assert_eq!(world.routed(), [1, 2].into());
    // From now on nothing of the new release starts.
    let mut bad = two(&rolling(1, 1), 2);
    bad.until("half-way", |w| w.rollout(2).step.as_ref().is_some_and(|s| s.number >= 2));
    let ids: Vec<_> =
        bad.store.instances.values().filter(|i| i.release.0 == 2).map(|i| i.id.clone()).collect();
    let mut least = usize::MAX;
    for _ in 0..6000 {
        step(&mut bad);
        let fresh = bad.running.iter_mut().filter(|(id, r)| r.commit == 2 && !ids.contains(id));
        fresh.for_each(|(_, r)| r.alive = false);
        let web = bad.edge.1.pools.iter().filter(|p| p.service.as_str() == "web");
        least = least.min(web.flat_map(|p| &p.targets).filter(|t| bad.running[&t.instance].alive).count());
        if bad.rollout(2).phase.is_end() && bad.store.environments[&env()].mix.is_none() {
            break;
        }
    }
    assert_eq!(bad.rollout(2).phase, RolloutPhase::TakenBack, "{:?}", bad.rollout(2));
    assert_eq!(least, 3, "S3: capacity was kept on the way back");
    settle(&mut bad);
    assert_converged(&mut bad, Some(1));
}

#[test]
fn a_good_canary_takes_its_steps_and_a_bad_one_is_taken_back() {
    let mut world = two(&canary(), 2);
    world.until("in its first step", |w| w.rollout(2).step.as_ref().is_some_and(|s| s.begun.is_some()));
    let weights: Vec<u32> = world.edge.1.routes[0].pools.iter().map(|p| p.weight).collect();
    assert_eq!(weights, [80, 10, 10]);
    let baseline = |w: &World| w.store.instances.values().filter(|i| i.slot >= BASELINE_SLOT).count();
    assert_eq!(baseline(&world), 2, "one fresh instance of the old release for each service");
    world.until("in its second step", |w| {
        w.rollout(2).step.as_ref().is_some_and(|s| s.number == 2 && s.begun.is_some())
    });
    assert_eq!(world.edge.1.routes[0].pools.iter().map(|p| p.weight).collect::<Vec<_>>(), [25, 50, 25]);
    settle(&mut world);
    assert_eq!(world.rollout(2).phase, RolloutPhase::Succeeded, "{:?}", world.rollout(2));
    let shares = &world.rollout(2).receipt.shares;
    assert!(shares.len() == 2 && shares.values().all(|p| p.closed.is_some()), "{shares:?}");
    assert_converged(&mut world, Some(2));
    for (commit, word) in [(101, "failed"), (202, "slow")] {
        let mut world = two(&canary(), commit);
        settle(&mut world);
        let rollout = world.rollout(2);
        assert_eq!(rollout.phase, RolloutPhase::TakenBack);
        let reason = rollout.reason.clone().unwrap();
        assert!(reason.contains("worse than its baseline") && reason.contains(word), "{reason}");
        assert!(!rollout.evidence.is_empty());
        assert_converged(&mut world, Some(1));
    }
}

#[test]
fn a_canary_without_requests_holds_and_is_taken_back_in_the_end() {
    let mut world = two(&canary(), 2);
    world.traffic = 0;
    world.until("on hold", |w| w.rollout(2).step.as_ref().is_some_and(|s| s.hold.is_some()));
    let commits = world.commits;
    (0..50).for_each(|_| step(&mut world));
    assert_eq!(world.commits, commits, "waiting writes nothing");
    settle(&mut world);
    assert_eq!(world.rollout(2).phase, RolloutPhase::TakenBack);
    assert!(
        world.rollout(2).reason.clone().unwrap().contains("could not be judged"),
        "{:?}",
        world.rollout(2)
    );
    assert_converged(&mut world, Some(1));
    // One that gets its requests in time goes on.
    let mut world = two(&canary(), 2);
    world.traffic = 0;
    world.until("on hold", |w| w.rollout(2).step.as_ref().is_some_and(|s| s.hold.is_some()));
    world.traffic = 10;
    settle(&mut world);
    assert_eq!(world.rollout(2).phase, RolloutPhase::Succeeded, "{:?}", world.rollout(2));
}

#[test]
fn a_candidate_whose_instance_ends_is_taken_back() {
    let mut world = two(&canary(), 2);
    world.until("in its first step", |w| w.rollout(2).step.as_ref().is_some_and(|s| s.begun.is_some()));
    world.running.values_mut().filter(|r| r.commit == 2).for_each(|r| r.alive = false);
    settle(&mut world);
    assert_eq!(world.rollout(2).phase, RolloutPhase::TakenBack);
    assert!(world.rollout(2).reason.clone().unwrap().contains("ended or failed"), "{:?}", world.rollout(2));
    assert_converged(&mut world, Some(1));
}

/// AT-11, AT-14, AT-15: whatever ends a canary or a rolling rollout half-way.
#[test]
fn what_ends_half_way_leaves_one_release() {
    for strategy in [canary(), rolling(1, 1)] {
        let half_way = || {
            let mut world = two(&strategy, 2);
            world.until("half-way", |w| w.routed().len() == 2);
            world
        };
        let mut aborted = half_way();
        aborted.submit(Command::Abort { env: env() }).unwrap();
        aborted.crash();
        aborted.running.values_mut().next().unwrap().alive = false;
        settle(&mut aborted);
        assert_converged(&mut aborted, Some(1));

        let mut superseded = half_way();
        superseded.deploy_with(4, 0, &strategy);
        assert_eq!(superseded.rollout(2).phase, RolloutPhase::Superseded);
        settle(&mut superseded);
        assert_eq!(superseded.rollout(3).phase, RolloutPhase::Succeeded, "{:?}", superseded.rollout(3));
        assert_converged(&mut superseded, Some(4));

        let mut back = half_way();
        let outcome = back.submit(Command::Rollback { env: env(), to: None }).unwrap();
        assert!(matches!(outcome, Outcome::Started { release: ReleaseNumber(1), .. }), "{outcome:?}");
        let (least, _) = extremes(&mut back, "web");
        assert!(least >= 3, "S3: {least}");
        settle(&mut back);
        assert_eq!(back.rollout(3).phase, RolloutPhase::Succeeded, "{:?}", back.rollout(3));
        assert_converged(&mut back, Some(1));

        let mut rebooted = half_way();
        rebooted.reboot();
        settle(&mut rebooted);
        let served = rebooted.store.environments[&env()].serving.map(|n| n.0);
        assert_converged(&mut rebooted, served);

        let mut scaled = half_way();
        let instances = [(ServiceName::new("web").unwrap(), Some(5))].into();
        scaled.submit(Command::Scale { env: env(), instances }).unwrap();
        settle(&mut scaled);
        assert_eq!(scaled.rollout(2).phase, RolloutPhase::Succeeded, "{:?}", scaled.rollout(2));

        let mut destroyed = half_way();
        destroyed.submit(Command::Destroy { env: env() }).unwrap();
        settle(&mut destroyed);
        assert!(destroyed.running.is_empty());
    }
}

#[test]
fn every_single_crash_and_reboot_of_a_mixed_rollout_converges() {
    for strategy in [canary(), rolling(1, 1)] {
        for fault in [World::crash, World::reboot] {
            let run = |at: Option<u32>| {
                let mut world = two(&strategy, 2);
                let mut passes = 0;
                while world.store.active_rollouts(&env()).count() > 0 && passes < 3000 {
                    passes += 1;
                    if Some(passes) == at {
                        fault(&mut world);
                    }
                    step(&mut world);
                }
                settle(&mut world);
                let served = world.store.environments[&env()].serving.map(|n| n.0);
                assert_converged(&mut world, served);
                passes
            };
            let passes = run(None);
            // Every one of them in the nightly run.
            let every = if std::env::var_os("KILN_SEEDS").is_some() { 1 } else { 29 };
            for n in (1..=passes).step_by(every) {
                run(Some(n));
            }
        }
    }
}

/// The lint is a second wall: it refuses a table with other weights, with a third release, or with too little capacity.
#[test]
fn the_lint_knows_the_mix() {
    let mut world = two(&canary(), 2);
    world.until("half-way", |w| w.routed().len() == 2);
    let (generation, table) = world.store.route.clone();
    let plan = |change: &dyn Fn(&mut RouteTable)| {
        let mut table = RouteTable::clone(&table);
        change(&mut table);
        let put = Mutation::PutRoute { generation: generation.next(), table: Box::new(table) };
        lint::lint(&world.store, &kiln_plan::Plan { mutations: vec![put], ..Default::default() }).join("; ")
    };
    assert_eq!(plan(&|_| {}), "");
    let mixed = |broken: String| assert!(broken.contains("not routed as its mix says"), "{broken:?}");
    mixed(plan(&|t| t.routes[0].pools[1].weight = 11));
    mixed(plan(&|t| t.routes[0].pools.truncate(1)));
    mixed(plan(&|t| t.pools[1].release = ReleaseNumber(3)));
    let lost = plan(&|t| t.pools[0].targets.truncate(1));
    assert!(lost.contains("would have 1 instances, it had 3"), "{lost}");
}

/// A service is new, one is gone, one loses its port, one gets one: nothing waits for what cannot come.
#[test]
fn services_may_differ_between_the_releases() {
    for strategy in [canary(), rolling(1, 1)] {
        let mut world = World::new(1, Faults::default());
        world.traffic = 10;
        let spec = |commit: u64, change: &dyn Fn(&mut ReleaseSpec)| {
            let mut spec = release(commit, 0);
            for name in ["extra", "loses", "gets"] {
                spec.services.insert(ServiceName::new(name).unwrap(), service(name, 2, 0));
                spec.images.push(ImageName::new(name).unwrap());
            }
            change(&mut spec);
            spec.services.values_mut().for_each(|s| s.rollout.strategy = strategy.clone());
            Command::Deploy { env: env(), spec: Box::new(spec) }
        };
        let name = |text: &str| ServiceName::new(text).unwrap();
        let old = spec(1, &|s| {
            s.services.remove(&name("extra"));
            s.services.get_mut(&name("gets")).unwrap().port = None;
        });
        let new = spec(2, &|s| {
            s.services.remove(&name("api"));
            s.routes.retain(|r| r.service.as_str() != "api");
            s.services.get_mut(&name("loses")).unwrap().port = None;
            let rule = |path: &str, service: &str| RouteRule {
                tcp: None,
                policy: Default::default(),
                host: None,
                path: path.into(),
                service: name(service),
                https: kiln_model::Https::default(),
            };
            s.routes.extend([rule("/extra", "extra"), rule("/gets", "gets")]);
        });
        world.submit(old).unwrap();
        settle(&mut world);
        world.submit(new).unwrap();
        settle(&mut world);
        assert_eq!(world.rollout(2).phase, RolloutPhase::Succeeded, "{:?}", world.rollout(2));
        assert_eq!(world.routed(), [2].into());
        assert_eq!(world.running.values().filter(|r| r.alive && r.commit == 2).count(), 9);
        assert_eq!(world.running.len(), 9);
    }
}

/// The old release cannot start any more, and a rolling rollout of a bad one took half of its capacity: the next one takes
/// over nevertheless.
#[test]
fn a_release_that_cannot_come_back_does_not_block_the_next_one() {
    let mut world = two(&rolling(1, 1), 2);
    world.until("half-way", |w| w.rollout(2).step.as_ref().is_some_and(|s| s.number >= 3));
    world.submit(Command::Abort { env: env() }).unwrap();
    world.deploy_with(4, 0, &rolling(1, 1));
    let old: Vec<_> = world.running.iter().filter(|(_, r)| r.commit == 1).map(|(id, _)| id.clone()).collect();
    for _ in 0..12_000 {
        step(&mut world);
        let fresh = world.running.iter_mut().filter(|(id, r)| r.commit == 1 && !old.contains(id));
        fresh.for_each(|(_, r)| r.alive = false);
        if world.store.active_rollouts(&env()).next().is_none() {
            break;
        }
    }
    assert_eq!(world.rollout(3).phase, RolloutPhase::Succeeded, "{:?}", world.rollout(3));
    settle(&mut world);
    assert_converged(&mut world, Some(4));
}

/// What is shown while a canary is on its way, and what it would take to go back.
#[test]
fn progress_plans_and_safety_are_told() {
    let mut world = two(&canary(), 2);
    world.until("in its first step", |w| w.rollout(2).step.as_ref().is_some_and(|s| s.begun.is_some()));
    (0..20).for_each(|_| step(&mut world));
    let observed = world.observe();
    let shown = kiln_plan::progress::progress(&world.store, &observed, world.rollout(2)).unwrap();
    assert_eq!((shown.number, shown.of, shown.weight, shown.baseline), (1, 2, Some(10), Some(10)));
    assert_eq!(shown.figures.len(), 2);
    assert!(
        shown.figures.iter().all(|f| f.needed && f.candidate.requests() > 0 && f.baseline.requests() > 0)
    );
    assert!(shown.next.contains("50 % of the requests if the analysis passes"), "{}", shown.next);
    assert!(shown.deadline.is_some_and(|span| span <= Millis(500)), "{:?}", shown.deadline);
    let why = kiln_plan::explain::explain(&world.store, &observed, None);
    assert!(why[0].what.contains("shifting: 1 of 2, 10 % of the requests"), "{}", why[0].what);
    assert_eq!(why.len(), 1, "{why:?}");

    let plan = |world: &World, commit, kind, to| {
        let baked = BTreeMap::new();
        let mut spec = release(commit, 60_000);
        spec.routes.pop();
        spec.services.get_mut(&ServiceName::new("web").unwrap()).unwrap().env.insert("A".into(), "1".into());
        let wish =
            kiln_plan::preview::Wish { env: &env(), kind, to: ReleaseNumber(to), spec: &spec, baked: &baked };
        kiln_plan::preview::preview(&world.store, &wish).join("\n")
    };
    let text = plan(&world, 4, RolloutKind::Deploy, 3);
    for line in [
        "supersede rollout 2 to release 2, which is shifting",
        "bake image web from commit 0000000000",
        "launch 3 new instances of web and validate them",
        "service web changes: rollout, env (+A)",
        "switch any host/ to web",
        "remove the route any host/api",
        "keep the 5 instances of release 1 validated for 60.0 s, then destroy them",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    settle(&mut world);
    let safety = |world: &mut World, stored: bool| {
        let observed = world.observe();
        kiln_plan::safety::safety(&world.store, &observed, &env(), &|_| stored)
    };
    let cold = safety(&mut world, true);
    assert!(cold.safe && cold.to == Some(ReleaseNumber(1)) && cold.warm_for.is_none(), "{cold:?}");
    let gone = safety(&mut world, false);
    assert!(!gone.safe && gone.notes[0].contains("is not stored any more"), "{gone:?}");
    world.deploy(4, 3_600_000);
    settle_some(&mut world);
    let warm = safety(&mut world, true);
    assert!(warm.safe && warm.to == Some(ReleaseNumber(2)) && warm.warm_for.is_some(), "{warm:?}");
}
