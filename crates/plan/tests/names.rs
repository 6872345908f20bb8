//! Names inside: which number an environment gets, which names a table has, and what an instance is told of them.

use kiln_model::edge::EdgeStatus;
use kiln_model::*;
use kiln_plan::{Command, Observed, Request, decide, lint, plan, route};
use std::collections::BTreeMap;

fn env(name: &str) -> EnvRef {
    EnvRef { project: ProjectName::new("shop").unwrap(), env: EnvName::new(name).unwrap() }
}

fn service(name: &str, port: Option<u16>) -> ServiceSpec {
    ServiceSpec {
        proxy_protocol: false,
        autoscale: None,
        name: ServiceName::new(name).unwrap(),
        image: ImageName::new("app").unwrap(),
        command: vec!["/app".into()],
        instances: 1,
        port,
        protocol: kiln_model::Protocol::default(),
        user: "65534".into(),
        env: BTreeMap::new(),
        secrets: vec![],
        writable: vec![],
        resources: Resources::default(),
        confinement: Confinement::default(),
        health: None,
        validate: vec![],
        rollout: RolloutPolicy {
            drain: Millis(0),
            keep_previous: Millis(0),
            deadline: Millis(1000),
            strategy: Strategy::BlueGreen,
        },
        stop: Stop::default(),
    }
}

/// `web` has a public route, `api` only a name, and `worker` neither.
fn release(host: &str) -> ReleaseSpec {
    let services = [service("web", Some(8080)), service("api", Some(9000)), service("worker", None)];
    let web = ServiceName::new("web").unwrap();
    ReleaseSpec {
        commit: "1".repeat(40).parse().unwrap(),
        commit_time: 0,
        subject: String::new(),
        pinned: true,
        images: vec![ImageName::new("app").unwrap()],
        services: services.into_iter().map(|s| (s.name.clone(), s)).collect(),
        routes: vec![RouteRule {
            tcp: None,
            policy: Default::default(),
            host: Some(host.into()),
            path: "/".into(),
            service: web,
            https: Default::default(),
        }],
        secrets: BTreeMap::new(),
        requires: None,
    }
}

fn submit(snapshot: &mut Snapshot, command: Command) {
    let request = Request { command, actor: "test".into(), at: Wall(0), now: Boot(0) };
    let decision = decide(snapshot, &request).unwrap();
    decision.mutations.iter().for_each(|m| snapshot.apply(m));
}

fn deploy(snapshot: &mut Snapshot, name: &str) {
    let spec = Box::new(release(&format!("{name}.test")));
    submit(snapshot, Command::Deploy { env: env(name), spec });
}

/// As the executor and the edge would leave it: release 1 is baked and serves, with one validated instance a service.
fn serve(snapshot: &mut Snapshot, name: &str) {
    let (env, number) = (env(name), ReleaseNumber(1));
    let mut sealed = Release::clone(snapshot.release(&env, number).unwrap());
    sealed.images = Some([(ImageName::new("app").unwrap(), Digest::of(b"app"))].into());
    snapshot.apply(&Mutation::PutRelease(Box::new(sealed.clone())));
    let mut environment = Environment::clone(&snapshot.environments[&env]);
    environment.serving = Some(number);
    snapshot.apply(&Mutation::PutEnvironment(environment.clone()));
    for service in sealed.spec.services.keys() {
        let sequence = snapshot.next_instance.max(1);
        snapshot.apply(&Mutation::PutInstance(Box::new(Instance {
            id: InstanceId::new(service, sequence),
            env: env.clone(),
            release: number,
            service: service.clone(),
            slot: 0,
            image: Digest::of(b"app"),
            network: environment.network,
            state: InstanceState::Serving,
            since: Boot(0),
            created: Wall(0),
            address: Some([10, 83, 0, sequence as u8].into()),
            evidence: vec![],
            reason: None,
        })));
    }
}

fn number(snapshot: &Snapshot, name: &str) -> u64 {
    snapshot.environments[&env(name)].network.0
}

#[test]
fn an_environment_keeps_its_number_and_gives_it_back_with_its_last_instance() {
    let mut snapshot = Snapshot::default();
    for (name, expected) in [("one", 1), ("two", 2), ("three", 3), ("one", 1)] {
        deploy(&mut snapshot, name);
        assert_eq!(number(&snapshot, name), expected, "{name}");
    }
    serve(&mut snapshot, "one");
    submit(&mut snapshot, Command::Destroy { env: env("one") });
    submit(&mut snapshot, Command::Destroy { env: env("two") });
    // Something of `one` still runs, nothing of `two`.
    deploy(&mut snapshot, "four");
    assert_eq!(number(&snapshot, "four"), 2);
    let instances: Vec<InstanceId> = snapshot.instances.keys().cloned().collect();
    instances.into_iter().for_each(|instance| snapshot.apply(&Mutation::Gone { instance }));
    deploy(&mut snapshot, "five");
    assert_eq!(number(&snapshot, "five"), 1);
    // Whoever comes back and finds its number taken gets another one.
    for (name, expected) in [("one", 4), ("two", 5)] {
        deploy(&mut snapshot, name);
        assert_eq!(number(&snapshot, name), expected, "{name}");
    }
}

#[test]
fn every_service_with_a_port_has_a_name_in_its_own_environment_and_in_no_other() {
    let mut snapshot = Snapshot::default();
    for name in ["one", "two"] {
        deploy(&mut snapshot, name);
        serve(&mut snapshot, name);
    }
    let table = route::table(&snapshot);
    let names: Vec<(u64, &str, String)> = table
        .internal
        .iter()
        .map(|route| {
            let pool = &table.pools[route.pools[0].pool];
            assert_eq!(pool.targets.len(), 1, "{route:?}");
            (route.network.0, route.host.as_str(), pool.env.env.to_string())
        })
        .collect();
    let of = |n: u64, host, owner: &str| (n, host, owner.to_owned());
    assert_eq!(
        names,
        [
            of(1, "api.internal", "one"),
            of(1, "web.internal", "one"),
            of(2, "api.internal", "two"),
            of(2, "web.internal", "two")
        ]
    );
    assert!(table.routes.iter().all(|r| r.host.as_ref().is_some_and(|h| h.ends_with(".test"))), "{table:?}");
    // A pool that has a route and a name is one pool.
    assert_eq!(table.pools.len(), 4);
}

#[test]
fn an_environment_of_an_older_kiln_has_no_names_until_its_next_rollout() {
    let mut snapshot = Snapshot::default();
    deploy(&mut snapshot, "one");
    serve(&mut snapshot, "one");
    let mut old = Environment::clone(&snapshot.environments[&env("one")]);
    old.network = NetworkNumber::default();
    snapshot.apply(&Mutation::PutEnvironment(old));
    assert_eq!(route::table(&snapshot).internal, []);
    assert_eq!(snapshot.network_for(&env("one")), NetworkNumber(1));
}

#[test]
fn an_instance_is_told_the_names_of_its_release_and_always_the_same_ones() {
    let mut snapshot = Snapshot::default();
    deploy(&mut snapshot, "one");
    serve(&mut snapshot, "one");
    let release = snapshot.release(&env("one"), ReleaseNumber(1)).unwrap();
    let manifest = ImageManifest {
        format: 1,
        architecture: "amd64".into(),
        layers: vec![],
        config: ImageConfig::default(),
    };
    let instance = snapshot.instances.values().next().unwrap();
    let spec = kiln_plan::instance::spec(instance, release, manifest.clone()).unwrap();
    let names: Vec<String> = spec.peers.iter().map(ToString::to_string).collect();
    assert_eq!((spec.network, names), (NetworkNumber(1), vec!["api".to_owned(), "web".to_owned()]));
    // The row decides, not what became of the environment since.
    let old = Instance { network: NetworkNumber::default(), ..Instance::clone(instance) };
    let spec = kiln_plan::instance::spec(&old, release, manifest).unwrap();
    assert_eq!((spec.network, spec.peers.len()), (NetworkNumber::default(), 0));
}

#[test]
fn a_name_that_leads_to_another_environment_is_a_broken_plan() {
    let mut snapshot = Snapshot::default();
    for name in ["one", "two"] {
        deploy(&mut snapshot, name);
        serve(&mut snapshot, name);
    }
    let mut table = route::table(&snapshot);
    let proposal = |table: &RouteTable| {
        let put = Mutation::PutRoute { generation: Generation(1), table: Box::new(table.clone()) };
        plan::Plan { mutations: vec![put], ..plan::Plan::default() }
    };
    assert_eq!(lint::lint(&snapshot, &proposal(&table)), [""; 0]);
    table.internal[0].network = NetworkNumber(2);
    assert_eq!(lint::lint(&snapshot, &proposal(&table)).len(), 1);
}

/// What an edge writes down that does not know names has none, and the next one reads it: same generation, no names.
#[test]
fn an_edge_that_lost_the_names_gets_them_in_a_new_generation() {
    let mut snapshot = Snapshot::default();
    deploy(&mut snapshot, "one");
    serve(&mut snapshot, "one");
    snapshot.apply(&Mutation::Rebase { boot_id: "boot".into(), now: Boot(0) });
    snapshot
        .apply(&Mutation::PutRoute { generation: Generation(1), table: Box::new(route::table(&snapshot)) });
    snapshot.apply(&Mutation::RouteAcked { generation: Generation(1) });
    let proposed = |internal: Option<&str>, names, snapshot: &Snapshot| {
        let generation = snapshot.acked;
        let edge =
            EdgeStatus { generation, internal: internal.map(Into::into), names, ..EdgeStatus::default() };
        let observed = Observed { edge: Some(edge), boot_id: "boot".into(), ..Observed::default() };
        let plan = plan(snapshot, &observed);
        assert_eq!(lint::lint(snapshot, &plan), [""; 0]);
        plan.mutations.into_iter().find(|m| matches!(m, Mutation::PutRoute { .. }))
    };
    // One that does not serve names would lose them again.
    assert_eq!(proposed(None, 0, &snapshot), None);
    assert_eq!(proposed(Some("10.83.224.0/19"), 2, &snapshot), None);
    let again = proposed(Some("10.83.224.0/19"), 0, &snapshot).expect("a new generation");
    let expected = Mutation::PutRoute { generation: Generation(2), table: Box::new(route::table(&snapshot)) };
    assert_eq!(again, expected);
    // Once, not with every look until it is in use.
    snapshot.apply(&again);
    assert_eq!(proposed(Some("10.83.224.0/19"), 0, &snapshot), None);
}

/// A release whose `api` is reached by a port of the edge, with a header that says who the client is.
fn raw_release(port: u16) -> ReleaseSpec {
    let mut spec = release("one.test");
    let api = ServiceName::new("api").unwrap();
    let idle = RoutePolicy { idle: Some(Millis(5000)), ..RoutePolicy::default() };
    let (host, path, service) = (None, "/".to_owned(), api.clone());
    spec.routes.push(RouteRule {
        host,
        path,
        service,
        https: Default::default(),
        tcp: Some(port),
        policy: idle,
    });
    spec.services.get_mut(&api).unwrap().proxy_protocol = true;
    spec
}

#[test]
fn a_raw_route_is_in_the_table_with_what_it_asks_for() {
    let mut snapshot = Snapshot::default();
    submit(&mut snapshot, Command::Deploy { env: env("one"), spec: Box::new(raw_release(5432)) });
    serve(&mut snapshot, "one");
    let table = route::table(&snapshot);
    assert_eq!((table.routes.len(), table.tcp.len()), (1, 1), "{table:?}");
    let raw = &table.tcp[0];
    assert_eq!((raw.port, raw.policy.idle), (5432, Some(Millis(5000))));
    let pool = &table.pools[raw.pools[0].pool];
    assert_eq!((pool.service.as_str(), pool.targets.len(), pool.targets[0].port), ("api", 1, 9000));
    assert!(pool.proxy_protocol && !table.pools[table.routes[0].pools[0].pool].proxy_protocol);
    let put = Mutation::PutRoute { generation: Generation(1), table: Box::new(table) };
    let proposal = plan::Plan { mutations: vec![put], ..plan::Plan::default() };
    assert_eq!(lint::lint(&snapshot, &proposal), [""; 0]);
}

#[test]
fn a_port_that_another_environment_has_is_refused_with_its_name() {
    let mut snapshot = Snapshot::default();
    submit(&mut snapshot, Command::Deploy { env: env("one"), spec: Box::new(raw_release(5432)) });
    serve(&mut snapshot, "one");
    let deploy_two = |port| {
        let mut spec = raw_release(port);
        spec.routes[0].host = Some("two.test".into());
        let command = Command::Deploy { env: env("two"), spec: Box::new(spec) };
        decide(&snapshot, &Request { command, actor: "test".into(), at: Wall(0), now: Boot(0) })
    };
    let refusal = deploy_two(5432).unwrap_err();
    assert_eq!(refusal.to_string(), "the route `tcp:5432` is taken by `shop/one`");
    assert!(refusal.hint().unwrap().contains("`tcp` port"));
    assert!(deploy_two(5433).is_ok());
}

/// An older edge drops what it does not know of a table and writes the rest down; the next one reads that.
#[test]
fn an_edge_that_lost_raw_routes_gets_them_in_a_new_generation() {
    let mut snapshot = Snapshot::default();
    submit(&mut snapshot, Command::Deploy { env: env("one"), spec: Box::new(raw_release(5432)) });
    serve(&mut snapshot, "one");
    snapshot.apply(&Mutation::Rebase { boot_id: "boot".into(), now: Boot(0) });
    let table = route::table(&snapshot);
    let kept = RouteTable { tcp: vec![], ..table.clone() };
    snapshot.apply(&Mutation::PutRoute { generation: Generation(1), table: Box::new(table.clone()) });
    snapshot.apply(&Mutation::RouteAcked { generation: Generation(1) });
    let proposed = |form, table: &RouteTable, snapshot: &Snapshot| {
        let (generation, digest) = (snapshot.acked, Some(table.digest()));
        let edge = EdgeStatus { generation, digest, form, ..EdgeStatus::default() };
        let observed = Observed { edge: Some(edge), boot_id: "boot".into(), ..Observed::default() };
        let plan = plan(snapshot, &observed);
        plan.mutations.into_iter().find(|m| matches!(m, Mutation::PutRoute { .. }))
    };
    // One that does not know the form would lose them again.
    assert_eq!(proposed(0, &kept, &snapshot), None);
    assert_eq!(proposed(1, &table, &snapshot), None);
    let again = proposed(1, &kept, &snapshot).expect("a new generation");
    assert_eq!(again, Mutation::PutRoute { generation: Generation(2), table: Box::new(table) });
}
