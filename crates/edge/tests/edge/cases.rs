//! Switching: flips, weights, drain, counts, what survives a restart, what is refused.

use crate::Case;
use crate::backend::{Backend, answer};
use crate::client::{Conn, get, raw};
use crate::stage::{Edge, env, fence, instance, pool, table};
use kiln_edge::SpawnError;
use kiln_edge::client::RouterError;
use kiln_model::RoutePolicy;
use kiln_model::edge::Tally;
use kiln_model::route::TableRoute;
use kiln_model::{Fence, Incarnation};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Barrier, mpsc};
use std::time::{Duration, Instant};

pub(crate) const CASES: &[Case] = &[
    ("flip_under_load_loses_nothing_and_never_goes_back", flip_under_load),
    ("case_03_a_thousand_switches_under_load_leave_nothing_behind", switches),
    ("a_slow_request_ends_on_its_release_and_counts_as_in_flight", slow_request),
    ("weights_hold_within_four_sigma", weights),
    ("routes_the_most_specific_wins", routes),
    ("counts_include_every_answer_that_a_client_has_read", counts),
    ("counts_of_departed_instances_stay", departed),
    ("without_an_instance_the_answer_is_503", empty),
    ("a_restart_loads_the_table_and_a_damaged_one_is_replaced", restart),
    ("stale_tables_are_refused", stale),
    ("a_port_in_use_is_named", port_in_use),
    ("a_stop_lets_requests_end", stop),
    ("the_access_log_names_the_release", access_log),
];

fn flip_under_load() {
    let (a, b) = (Backend::new("a"), Backend::new("b"));
    let of = |n: u64| table(vec![(pool(n, &[(n, if n.is_multiple_of(2) { &a } else { &b })]), 1)]);
    let edge = Edge::new();
    edge.set(1, &of(1)).unwrap();
    let (acked, newest, done) = (AtomicU64::new(1), AtomicU64::new(1), AtomicBool::new(false));
    let address = edge.address;
    let total: u64 = std::thread::scope(|scope| {
        let load = |keep: bool| {
            let (acked, newest, done) = (&acked, &newest, &done);
            scope.spawn(move || {
                let (mut n, mut conn) = (0, Conn::new(address));
                while !done.load(SeqCst) {
                    if !keep {
                        conn = Conn::new(address);
                    }
                    let floor = acked.load(SeqCst).max(newest.load(SeqCst));
                    let got = conn.get("/").expect("an answer");
                    assert_eq!(got.status, 200);
                    assert!(got.release() >= floor, "release {} after {floor}", got.release());
                    assert_eq!(got.text(), if got.release().is_multiple_of(2) { "a" } else { "b" });
                    newest.fetch_max(got.release(), SeqCst);
                    n += 1;
                }
                n
            })
        };
        let clients = [load(true), load(true), load(true), load(false)];
        for n in 2..=30 {
            let before = edge.tally().requests;
            edge.set(n, &of(n)).unwrap();
            acked.store(n, SeqCst);
            // Some traffic between two flips.
            edge.wait("traffic", |s| {
                s.tally_of(&env()).requests > before + 20 || clients.iter().any(|c| c.is_finished())
            });
        }
        done.store(true, SeqCst);
        clients.into_iter().map(|c| c.join().unwrap()).sum()
    });
    assert_eq!(edge.tally(), Tally { requests: total, ..Tally::default() });
}

/// Latencies of requests on kept connections until told to stop; none older than what was acknowledged before it was asked.
fn measure(edge: &Edge, acked: &AtomicU64, done: &AtomicBool, during: impl FnOnce()) -> Vec<Duration> {
    let address = edge.address;
    std::thread::scope(|scope| {
        let clients = [0; 4].map(|_| {
            scope.spawn(move || {
                let (mut all, mut conn) = (vec![], Conn::new(address));
                while !done.load(SeqCst) {
                    let (floor, start) = (acked.load(SeqCst), Instant::now());
                    let got = conn.get("/").expect("an answer");
                    all.push(start.elapsed());
                    assert_eq!(got.status, 200);
                    assert!(got.release() >= floor, "release {} after {floor}", got.release());
                }
                all
            })
        });
        during();
        done.store(true, SeqCst);
        let mut all: Vec<Duration> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        done.store(false, SeqCst);
        all.sort();
        all
    })
}

fn switches() {
    let (a, b) = (Backend::new("trivial"), Backend::new("trivial"));
    let of = |n: u64| table(vec![(pool(n, &[(n % 2, if n.is_multiple_of(2) { &a } else { &b })]), 1)]);
    let edge = Edge::new();
    edge.set(1, &of(1)).unwrap();
    let setting = |name: &str| std::env::var(name).ok().and_then(|n| n.parse().ok());
    let count = setting("KILN_SWITCHES").unwrap_or(1000);
    // As fast as they go, or spread.
    let pause = Duration::from_millis(setting("KILN_SWITCH_PAUSE_MS").unwrap_or(0));
    let (acked, done) = (AtomicU64::new(1), AtomicBool::new(false));
    let steady = measure(&edge, &acked, &done, || {
        edge.wait("traffic", |s| s.tally_of(&env()).requests > 5000);
    });
    let descriptors = || {
        let pid = edge.child.as_ref().unwrap().id();
        std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
    };
    let mut before = (0, 0);
    let all = measure(&edge, &acked, &done, || {
        for n in 2..=count {
            edge.set(n, &of(n)).unwrap();
            acked.store(n, SeqCst);
            std::thread::park_timeout(pause);
            if n == count / 5 {
                before = (crate::h2::resident(&edge), descriptors());
            }
        }
    });
    let after = (crate::h2::resident(&edge), descriptors());
    let p99 = |all: &[Duration]| all[all.len() * 99 / 100];
    println!(
        "{count} switches, {} requests, 0 failed; p99 {:?}, steady {:?}; {} KiB and {} descriptors after, {} and {} before",
        all.len(),
        p99(&all),
        p99(&steady),
        after.0,
        after.1,
        before.0,
        before.1
    );
    let total = (all.len() + steady.len()) as u64;
    assert_eq!(edge.tally(), Tally { requests: total, ..Tally::default() });
    // Each thread keeps a few connections to either instance.
    assert!(after.1 <= before.1 + 16, "{} descriptors, {} before", after.1, before.1);
    assert!(after.0 <= before.0 + 8 * 1024, "{} KiB, {} before", after.0, before.0);
}

/// A backend whose `/slow` waits for a word.
pub(crate) fn slow_backend(name: &str) -> (Backend, mpsc::Sender<()>) {
    let (go, wait) = mpsc::channel();
    let wait = std::sync::Mutex::new(wait);
    let backend = Backend::with(name, move |name, asked, stream| {
        if asked.path == "/slow" {
            let _ = wait.lock().unwrap().recv();
        }
        answer(stream, 200, name.as_bytes())
    });
    (backend, go)
}

fn slow_request() {
    let (old, go) = slow_backend("old");
    let new = Backend::new("new");
    let edge = Edge::with(pool(1, &[(1, &old)]));
    let address = edge.address;
    let slow = std::thread::spawn(move || get(address, "/slow").unwrap());
    edge.wait("in flight", |s| s.targets[0].in_flight == 1);
    edge.set(2, &table(vec![(pool(2, &[(2, &new)]), 1)])).unwrap();
    assert_eq!(get(address, "/").unwrap().release(), 2);
    let left = edge.target(1);
    assert!(!left.in_table && left.in_flight == 1 && left.tally.requests == 0);
    go.send(()).unwrap();
    assert_eq!(slow.join().unwrap().release(), 1);
    let ended = edge.target(1);
    assert!(ended.in_flight == 0 && ended.tally.requests == 1);
    assert_eq!(ended.latency.iter().sum::<u64>(), 1);
}

fn weights() {
    let (a, b) = (Backend::new("a"), Backend::new("b"));
    let edge = Edge::new();
    for (generation, share) in [(1, 5u32), (2, 50)] {
        edge.set(generation, &table(vec![(pool(1, &[(1, &a)]), 100 - share), (pool(2, &[(2, &b)]), share)]))
            .unwrap();
        let (n, mut hits, mut conn) = (2000.0, 0.0, Conn::new(edge.address));
        for _ in 0..2000 {
            hits += f64::from(u8::from(conn.get("/").unwrap().release() == 2));
        }
        let p = f64::from(share) / 100.0;
        // Four sigma: a right edge fails once in 16000 runs.
        let sigma = (n * p * (1.0 - p)).sqrt();
        assert!((hits - n * p).abs() < 4.0 * sigma, "{share} %: {hits} of {n}");
    }
}

fn routes() {
    let (a, b, c, d) = (Backend::new("a"), Backend::new("b"), Backend::new("c"), Backend::new("d"));
    let mut routes = table(vec![
        (pool(1, &[(1, &a)]), 1),
        (pool(2, &[(2, &b)]), 0),
        (pool(3, &[(3, &c)]), 0),
        (pool(4, &[(4, &d)]), 0),
    ]);
    let mut add = |host: Option<&str>, path: &str, pool: usize| {
        let pools = vec![kiln_model::route::WeightedPool { pool, weight: 1 }];
        routes.routes.push(TableRoute {
            host: host.map(Into::into),
            path: path.into(),
            pools,
            https: kiln_model::Https::default(),
            policy: RoutePolicy::default(),
        });
    };
    add(None, "/api", 1);
    add(None, "/api/deep/", 2);
    add(Some("b.test"), "/", 3);
    let edge = Edge::new();
    edge.set(1, &routes).unwrap();
    for (host, path, expected) in [
        ("a.test", "/", "a"),
        ("a.test", "/apix", "a"),
        ("a.test", "/api", "b"),
        ("a.test", "/api?x=/", "b"),
        ("a.test", "/api/x", "b"),
        ("a.test", "/api/deep", "c"),
        ("a.test", "/api/deep/x", "c"),
        ("a.test", "/api/deeper", "b"),
        ("B.test:80", "/api", "d"),
        ("b.test.", "/", "d"),
    ] {
        let got = raw(edge.address, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).unwrap();
        assert_eq!(got.text(), expected, "{host} {path}");
    }
}

fn counts() {
    let backend = Backend::with("a", |name, asked, stream| {
        let status = asked.path.trim_start_matches('/').parse().unwrap_or(200);
        if asked.path == "/chunked" {
            use std::io::Write;
            return stream
                .write_all(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
                .is_ok();
        }
        answer(stream, status, name.as_bytes())
    });
    let edge = Edge::with(pool(1, &[(1, &backend)]));
    let (mut conn, mut expected) = (Conn::new(edge.address), Tally::default());
    for n in 0..300 {
        match n % 4 {
            0 => drop(conn.get("/500").unwrap()),
            1 => drop(conn.get("/chunked").unwrap()),
            2 => drop(conn.post("/", b"body").unwrap()),
            _ => {
                conn.write("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
                conn.read("HEAD").unwrap();
            }
        }
        expected.requests += 1;
        expected.errors += u64::from(n % 4 == 0);
        let status = edge.status();
        assert_eq!(status.tally_of(&env()), expected);
        assert_eq!(status.targets[0].in_flight, 0);
    }
    // Many at once, then one look.
    let (barrier, address) = (Arc::new(Barrier::new(8)), edge.address);
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let barrier = barrier.clone();
            std::thread::spawn(move || {
                barrier.wait();
                let mut conn = Conn::new(address);
                (0..100).for_each(|_| assert_eq!(conn.get("/").unwrap().status, 200));
            })
        })
        .collect();
    clients.into_iter().for_each(|c| c.join().unwrap());
    expected.requests += 800;
    assert_eq!(edge.tally(), expected);
}

fn departed() {
    let backend = Backend::new("a");
    let edge = Edge::new();
    // More than are reported one by one, so that the oldest are folded into their environment.
    let n_rounds = kiln_edge::limits::DEPARTED_MAX as u64 + 20;
    for n in 1..=n_rounds {
        edge.set(n, &table(vec![(pool(n, &[(n, &backend)]), 1)])).unwrap();
        assert_eq!(get(edge.address, "/").unwrap().release(), n);
        if n % 20 == 0 {
            assert_eq!(edge.tally().requests, n);
        }
    }
    let status = edge.status();
    assert_eq!(status.tally_of(&env()).requests, n_rounds);
    assert_eq!(status.targets.len(), kiln_edge::limits::DEPARTED_MAX + 1);
}

fn empty() {
    let edge = Edge::new();
    let got = get(edge.address, "/").unwrap();
    assert_eq!(
        (got.status, got.header("retry-after"), got.header("x-kiln-error")),
        (503, Some("1"), Some("no-table"))
    );
    edge.set(1, &table(vec![(pool(1, &[]), 1)])).unwrap();
    let got = get(edge.address, "/").unwrap();
    assert_eq!(
        (got.status, got.header("retry-after"), got.header("x-kiln-error")),
        (503, Some("1"), Some("no-instance"))
    );
    assert!(got.text().contains("`web`"), "{}", got.text());
    // A weight of zero sends nothing, not even to the only pool.
    let backend = Backend::new("a");
    edge.set(2, &table(vec![(pool(1, &[(1, &backend)]), 0)])).unwrap();
    assert_eq!(get(edge.address, "/").unwrap().status, 503);
    let mut routed = table(vec![(pool(1, &[]), 1)]);
    routed.routes[0].path = "/x".into();
    edge.set(3, &routed).unwrap();
    assert_eq!(get(edge.address, "/").unwrap().status, 404);
    let status = edge.status();
    let two_failed = Tally { requests: 2, failed: 2, ..Tally::default() };
    assert_eq!(status.tally_of(&env()), two_failed);
    let unknown = status.unrouted.iter().find(|(e, _)| e.is_none()).unwrap().1;
    assert_eq!(unknown, Tally { requests: 2, failed: 1, ..Tally::default() });
}

fn restart() {
    let (a, b) = (Backend::new("a"), Backend::new("b"));
    let mut edge = Edge::with(pool(1, &[(1, &a)]));
    edge.set(2, &table(vec![(pool(2, &[(2, &b)]), 1)])).unwrap();
    let process = edge.status().process;
    edge.kill();
    edge.start();
    let status = edge.status();
    assert!(status.process != process && status.generation.0 == 2 && status.digest.is_some());
    assert_eq!(get(edge.address, "/").unwrap().release(), 2);
    edge.kill();
    let current = edge.dir.path().join("table.json");
    let mut bytes = std::fs::read(&current).unwrap();
    let middle = bytes.len() / 2;
    bytes.truncate(middle);
    std::fs::write(&current, &bytes).unwrap();
    edge.start();
    assert_eq!(get(edge.address, "/").unwrap().release(), 1);
    // A table that still parses but is another one is seen by its checksum.
    edge.set(3, &table(vec![(pool(3, &[(3, &b)]), 1)])).unwrap();
    edge.kill();
    let text = std::fs::read_to_string(&current).unwrap();
    assert!(text.contains("\"release\":3"));
    std::fs::write(&current, text.replace("\"release\":3", "\"release\":4")).unwrap();
    std::fs::write(edge.dir.path().join("table.previous.json"), "").unwrap();
    edge.start();
    assert_eq!(get(edge.address, "/").unwrap().status, 503);
    let log = std::fs::read_to_string(edge.dir.path().join("edge.log")).unwrap();
    assert!(log.contains("table not usable") && log.contains("checksum"), "{log}");
    edge.set(5, &table(vec![(pool(5, &[(5, &a)]), 1)])).unwrap();
    assert_eq!(get(edge.address, "/").unwrap().release(), 5);
}

fn stale() {
    let (a, b) = (Backend::new("a"), Backend::new("b"));
    let of = |n, backend| table(vec![(pool(n, &[(n, backend)]), 1)]);
    let edge = Edge::new();
    edge.set_fenced(fence(2), 5, &of(5, &a)).unwrap();
    edge.set_fenced(fence(2), 5, &of(5, &a)).unwrap();
    let refused = [
        (fence(2), 4, of(4, &b)),
        (fence(2), 5, of(5, &b)),
        (fence(1), 6, of(6, &b)),
        (fence(3), 4, of(4, &b)),
    ];
    for (fence, generation, table) in refused {
        let result = edge.set_fenced(fence, generation, &table);
        assert!(matches!(result, Err(RouterError::Stale { .. })), "{fence} {generation}: {result:?}");
    }
    let mut dangling = of(6, &b);
    dangling.routes[0].pools[0].pool = 7;
    let mut twice = of(6, &b);
    twice.routes.push(twice.routes[0].clone());
    for table in [dangling, twice] {
        let result = edge.set_fenced(fence(2), 6, &table);
        assert!(matches!(result, Err(RouterError::Invalid { .. })), "{result:?}");
    }
    assert_eq!(get(edge.address, "/").unwrap().release(), 5);
    // A restored history may begin below.
    let restored = Fence { incarnation: Incarnation(1), ..fence(1) };
    edge.set_fenced(restored, 1, &of(1, &b)).unwrap();
    assert_eq!(get(edge.address, "/").unwrap().release(), 1);
    assert!(edge.set_fenced(fence(9), 9, &of(9, &a)).is_err());
}

fn port_in_use() {
    let backend = Backend::new("a");
    let edge = Edge::with(pool(1, &[(1, &backend)]));
    let other = tempfile::tempdir().unwrap();
    for address in [backend.address, edge.address] {
        let error = edge.spawn_error(other.path(), address);
        assert!(matches!(error, SpawnError::InUse { address: a } if a == address), "{error:?}");
    }
    let error = edge.spawn_error(edge.dir.path(), "127.0.0.1:0".parse().unwrap());
    assert!(matches!(error, SpawnError::Ended { .. }), "{error:?}");
    assert_eq!(get(edge.address, "/").unwrap().status, 200);
}

fn stop() {
    let (backend, go) = slow_backend("a");
    let mut edge = Edge::with(pool(1, &[(1, &backend)]));
    let address = edge.address;
    let slow = std::thread::spawn(move || get(address, "/slow").unwrap());
    edge.wait("in flight", |s| s.targets[0].in_flight == 1);
    let mut idle = Conn::new(address);
    assert_eq!(idle.get("/").unwrap().header("connection"), None);
    edge.stop();
    while std::net::TcpStream::connect(address).is_ok() {
        std::thread::yield_now();
    }
    let last = idle.get("/").unwrap();
    assert_eq!((last.status, last.header("connection")), (200, Some("close")));
    go.send(()).unwrap();
    assert_eq!(slow.join().unwrap().status, 200);
    assert!(edge.child.take().unwrap().wait().unwrap().success());
}

fn access_log() {
    let backend = Backend::new("a");
    let mut edge = Edge::with(pool(7, &[(1, &backend)]));
    assert!(!edge.dir.path().join("access.log").exists());
    edge.kill();
    let program = std::env::current_exe().unwrap();
    let mut command = std::process::Command::new(program);
    command
        .arg("edge")
        .arg("--access-log")
        .arg("--dir")
        .arg(edge.dir.path())
        .arg("--listen")
        .arg(edge.address.to_string());
    edge.child = Some(command.stdin(std::process::Stdio::null()).spawn().unwrap());
    while std::net::TcpStream::connect(edge.address).is_err() {
        std::thread::yield_now();
    }
    let got = get(edge.address, "/some?secret=1").unwrap();
    let path = edge.dir.path().join("access.log");
    let text = loop {
        match std::fs::read_to_string(&path) {
            Ok(text) if !text.is_empty() => break text,
            _ => std::thread::yield_now(),
        }
    };
    assert!(text.contains("\"release\":7") && text.contains(instance(1).as_str()), "{text}");
    assert!(text.contains(got.header("x-request-id").unwrap()) && !text.contains("secret"), "{text}");
}
