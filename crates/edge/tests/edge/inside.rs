//! Names inside: what is asked at a service address is answered by that environment's services, and by nothing else.

use crate::Case;
use crate::backend::Backend;
use crate::client::{Conn, Got, get};
use crate::stage::{Edge, env, pool};
use kiln_edge::client::RouterError;
use kiln_model::edge::EdgeStatus;
use kiln_model::route::{Pool, TableRoute, WeightedPool};
use kiln_model::{EnvRef, InternalRoute, NetworkNumber, RoutePolicy, RouteTable, ServiceRange};
use kiln_sys::netlink::{Netlink, Route};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

const RANGE: &str = "10.83.224.0/19";

pub(crate) const CASES: &[Case] = &[
    ("names_are_of_their_own_environment_and_routes_are_of_the_world", no_leak),
    ("names_and_routes_switch_in_one_generation", one_generation),
    ("a_listener_of_all_addresses_takes_requests_from_inside_as_such", wildcard),
    ("a_network_that_leaves_the_table_is_not_listened_for", leaves),
    ("a_service_address_that_is_taken_fails_the_table_and_changes_nothing", taken),
    ("names_survive_a_restart", restart),
    ("an_edge_without_a_range_takes_tables_with_names_and_serves_none", no_range),
];

/// The service address of a network. The host owns all of them, as the provider sees to it.
fn service(network: u64) -> SocketAddr {
    let net = Netlink::open().unwrap();
    let range: ServiceRange = RANGE.parse().unwrap();
    net.route(Route::Own(range.first(), range.prefix()), net.index("lo").unwrap()).unwrap();
    SocketAddr::new(range.address(NetworkNumber(network)).unwrap().into(), 80)
}

fn other_env() -> EnvRef {
    EnvRef::try_from("shop/staging".to_owned()).unwrap()
}

/// A public route to the first pool, and one name for each pool.
fn table(public: Option<&str>, pools: Vec<(u64, &str, Pool)>) -> RouteTable {
    let share = |pool| vec![WeightedPool { pool, weight: 1 }];
    let name = |(n, (network, host, _)): (usize, &(u64, &str, Pool))| InternalRoute {
        network: NetworkNumber(*network),
        host: (*host).to_owned(),
        pools: share(n),
    };
    RouteTable {
        routes: vec![TableRoute {
            host: public.map(Into::into),
            path: "/".into(),
            pools: share(0),
            https: kiln_model::Https::default(),
            policy: RoutePolicy::default(),
        }],
        tcp: vec![],
        internal: pools.iter().enumerate().map(name).collect(),
        pools: pools.into_iter().map(|(_, _, pool)| pool).collect(),
    }
}

/// An edge that believes headers of `proxies`, and where instances ask it for `web.internal`.
pub(crate) fn edge_with_name(backend: &Backend, proxies: &str) -> (Edge, SocketAddr) {
    let mut edge = Edge::at("127.0.0.1:0", Some(RANGE));
    edge.kill();
    edge.proxies = vec![proxies.parse().unwrap()];
    edge.start();
    let network = service(1);
    edge.set(1, &table(None, vec![(1, "web.internal", pool(1, &[(1, backend)]))])).unwrap();
    (edge, network)
}

fn ask(address: SocketAddr, host: &str) -> Got {
    let mut conn = Conn::new(address);
    conn.write(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).unwrap();
    conn.read("GET").unwrap()
}

fn no_leak() {
    let (web, api, staged) = (Backend::new("web"), Backend::new("api"), Backend::new("staged"));
    let edge = Edge::at("127.0.0.1:0", Some(RANGE));
    let (one, two) = (service(1), service(2));
    let staging = Pool { env: other_env(), ..pool(3, &[(3, &staged)]) };
    let names = |public| {
        table(
            public,
            vec![
                (1, "web.internal", pool(1, &[(1, &web)])),
                (1, "api.internal", pool(2, &[(2, &api)])),
                (2, "api.internal", staging.clone()),
            ],
        )
    };
    edge.set(1, &names(Some("shop.test"))).unwrap();
    for (address, host, expected) in [
        (one, "api.internal", Some("api")),
        (one, "API.internal.:80", Some("api")),
        (one, "web.internal", Some("web")),
        (two, "api.internal", Some("staged")),
        // Another environment's name, a public host, and the bare name of a service.
        (two, "web.internal", None),
        (one, "shop.test", None),
        (one, "api", None),
        // The world cannot ask for a name.
        (edge.address, "shop.test", Some("web")),
        (edge.address, "api.internal", None),
        (edge.address, "web.internal", None),
    ] {
        let got = ask(address, host);
        match expected {
            Some(name) => assert_eq!((got.status, got.text()), (200, name), "{host} at {address}"),
            None => {
                assert_eq!(got.header("x-kiln-error"), Some("no-route"), "{host} at {address}: {got:?}");
                assert_eq!(got.status, 404);
            }
        }
    }
    assert_eq!((web.count(), api.count(), staged.count()), (2, 2, 1));
    // A route for any host of the world is for any host of the world.
    edge.set(2, &names(None)).unwrap();
    assert_eq!(ask(edge.address, "api.internal").text(), "web");
    assert_eq!(ask(one, "shop.test").status, 404);
    // All of it is counted for its environment.
    edge.wait("counted", |status| status.tally_of(&other_env()).requests == 1);
    assert_eq!(edge.status().tally_of(&env()).requests, 5);
    // What a route asks of the world it does not ask of services.
    let mut secure = names(None);
    secure.routes[0].https = kiln_model::Https { only: true, hsts: None };
    edge.set(3, &secure).unwrap();
    assert_eq!(ask(edge.address, "shop.test").status, 308);
    assert_eq!(ask(one, "web.internal").text(), "web");
    let h2 = crate::programs::script("h2_get", &[&one.to_string(), "api.internal"]);
    assert_eq!(h2.trim(), "200 api", "HTTP/2 without TLS, as gRPC between services");
}

fn one_generation() {
    let (a, b) = (Backend::new("a"), Backend::new("b"));
    let of = |n: u64| {
        let backend = if n.is_multiple_of(2) { &b } else { &a };
        table(None, vec![(1, "web.internal", pool(n, &[(n, backend)]))])
    };
    let edge = Edge::at("127.0.0.1:0", Some(RANGE));
    let inside = service(1);
    edge.set(1, &of(1)).unwrap();
    let done = AtomicBool::new(false);
    let (outside, done) = (edge.address, &done);
    std::thread::scope(|scope| {
        let load = |address: SocketAddr| {
            scope.spawn(move || {
                let (mut last, mut n, mut conn) = (0, 0u64, Conn::new(address));
                while !done.load(SeqCst) {
                    if n.is_multiple_of(4) {
                        conn = Conn::new(address);
                    }
                    conn.write("GET / HTTP/1.1\r\nHost: web.internal\r\n\r\n").unwrap();
                    let got = conn.read("GET").unwrap();
                    assert_eq!(got.status, 200, "{got:?}");
                    assert!(got.release() >= last, "release {} after {last}", got.release());
                    (last, n) = (got.release(), n + 1);
                }
                n
            })
        };
        let clients = [load(inside), load(inside), load(outside)];
        for n in 2..=30 {
            edge.set(n, &of(n)).unwrap();
            // What is acknowledged is used, from both sides.
            assert_eq!((ask(inside, "web.internal").release(), ask(outside, "x").release()), (n, n));
        }
        done.store(true, SeqCst);
        let counts = clients.map(|client| client.join().unwrap());
        assert!(counts.iter().all(|n| *n > 30), "{counts:?}");
    });
}

fn wildcard() {
    let (web, api) = (Backend::new("web"), Backend::new("api"));
    let edge = Edge::at("0.0.0.0:80", Some(RANGE));
    let names = vec![(1, "web.internal", pool(1, &[(1, &web)])), (1, "api.internal", pool(2, &[(2, &api)]))];
    edge.set(1, &table(None, names)).unwrap();
    assert_eq!(ask(service(1), "api.internal").text(), "api");
    assert_eq!(ask("127.0.0.1:80".parse().unwrap(), "api.internal").text(), "web");
    // Nobody listens for this environment but the listener of all addresses.
    assert_eq!(ask(service(5), "api.internal").status, 404);
    let broadcast = SocketAddr::new("10.83.255.255".parse().unwrap(), 80);
    assert_eq!(ask(broadcast, "shop.test").status, 404);
    drop(edge);
}

fn listens(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

fn leaves() {
    let (a, go) = crate::cases::slow_backend("a");
    let edge = Edge::at("127.0.0.1:0", Some(RANGE));
    let (one, two) = (service(1), service(2));
    let both = vec![(1, "web.internal", pool(1, &[(1, &a)])), (2, "web.internal", pool(1, &[(1, &a)]))];
    edge.set(1, &table(None, both.clone())).unwrap();
    assert!(listens(one) && listens(two));
    let slow = std::thread::spawn(move || {
        let mut conn = Conn::new(two);
        conn.write("GET /slow HTTP/1.1\r\nHost: web.internal\r\n\r\n").unwrap();
        conn.read("GET").unwrap()
    });
    edge.wait("in flight", |status| status.targets[0].in_flight == 1);
    edge.set(2, &table(None, vec![both[0].clone()])).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while listens(two) {
        assert!(Instant::now() < deadline, "it is still listened for");
    }
    // Who is being answered is answered.
    go.send(()).unwrap();
    assert_eq!(slow.join().unwrap().text(), "a");
    assert_eq!(ask(one, "web.internal").text(), "a");
    // It may come back.
    edge.set(3, &table(None, both)).unwrap();
    assert_eq!(ask(two, "web.internal").text(), "a");
}

fn taken() {
    let a = Backend::new("a");
    let edge = Edge::at("127.0.0.1:0", Some(RANGE));
    let names = |networks: &[u64]| {
        let pools = networks.iter().map(|network| (*network, "web.internal", pool(1, &[(1, &a)])));
        table(None, pools.collect())
    };
    edge.set(1, &names(&[1])).unwrap();
    let other = TcpListener::bind(service(3)).unwrap();
    let refused = edge.set(2, &names(&[1, 2, 3])).unwrap_err();
    let RouterError::Unreachable { detail } = &refused else { panic!("{refused:?}") };
    assert!(detail.contains("10.83.255.252:80") && detail.contains("hint:"), "{detail}");
    // Nothing of it was done, not even half.
    assert_eq!(edge.status().generation.0, 1);
    assert!(!listens(service(2)));
    assert_eq!(ask(service(1), "web.internal").text(), "a");
    drop(other);
    edge.set(2, &names(&[1, 2, 3])).unwrap();
    for network in [1, 2, 3] {
        assert_eq!(ask(service(network), "web.internal").text(), "a");
    }
}

fn restart() {
    let a = Backend::new("a");
    let mut edge = Edge::at("127.0.0.1:0", Some(RANGE));
    edge.set(1, &table(None, vec![(1, "web.internal", pool(1, &[(1, &a)]))])).unwrap();
    edge.kill();
    let one = service(1);
    assert!(!listens(one));
    edge.start();
    assert_eq!(ask(one, "web.internal").text(), "a");
    let status: EdgeStatus = edge.status();
    assert_eq!((status.generation.0, status.internal.as_deref(), status.names), (1, Some(RANGE), 1));
}

fn no_range() {
    let a = Backend::new("a");
    let edge = Edge::new();
    edge.set(1, &table(None, vec![(1, "web.internal", pool(1, &[(1, &a)]))])).unwrap();
    assert_eq!(get(edge.address, "/").unwrap().text(), "a");
    assert_eq!(edge.status().internal, None);
    assert!(!listens(service(1)));
}
