//! What a route asks for: times, sizes, bounds, rates, places; and what is counted and told of it.

use crate::Case;
use crate::backend::{Backend, answer, echo_name};
use crate::client::{Conn, Got, get};
use crate::raw::{Raw, ask, free_port, open, raw_pool, raw_table};
use crate::stage::{Edge, env, pool, table};
use kiln_model::edge::RouteStatus;
use kiln_model::policy::{InFlight, Rate};
use kiln_model::{Millis, RoutePolicy, RouteTable};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::time::Duration;

pub(crate) const CASES: &[Case] = &[
    ("case_14_a_stopped_instance_is_a_timeout_repeats_no_post_and_is_ejected", case_14),
    ("case_16_a_reset_in_the_middle_of_a_body_is_a_cut_and_no_clean_end", case_16),
    ("case_18_with_all_down_503_comes_at_once_and_recovery_within_a_probe", case_18),
    ("case_19_retries_hold_to_their_budget_in_a_full_outage", case_19),
    ("case_20_a_large_body_is_not_repeated", case_20),
    ("case_34_slow_heads_and_slow_bodies_are_ended", case_34),
    ("case_38_a_client_that_aborts_frees_the_instance_and_the_other_way_round", case_38),
    ("a_silent_answer_ends_after_the_idle_time_of_its_route", idle_answer),
    ("a_request_ends_after_the_total_time_of_its_route", total),
    ("a_silent_upgraded_connection_ends", idle_upgrade),
    ("a_body_that_is_too_large_bothers_no_instance", too_large),
    ("a_body_is_held_to_its_limit_on_its_way_too", too_large_streamed),
    ("requests_beyond_the_bound_wait_in_a_short_line_or_are_shed", bound),
    ("who_waits_is_sent_away_in_time_and_a_switch_takes_them_along", bound_switch),
    ("raw_connections_beyond_the_bound_wait_or_are_shed", raw_bound),
    ("a_client_that_asks_too_often_gets_429_and_others_do_not", rate),
    ("a_sticky_client_keeps_its_release_and_only_moves_forward", sticky),
    ("metrics_name_route_and_release_and_add_up", metrics),
    ("a_trace_is_continued_or_begun_and_logged", traces),
];

/// An edge with one route that asks for `policy`.
fn edge_with(policy: RoutePolicy, backends: &[(u64, &Backend)]) -> Edge {
    let edge = Edge::new();
    edge.set(1, &asking(policy, backends)).unwrap();
    edge
}

fn asking(policy: RoutePolicy, backends: &[(u64, &Backend)]) -> RouteTable {
    let mut routes = table(vec![(pool(1, backends), 1)]);
    routes.routes[0].policy = policy;
    routes
}

fn route_of(edge: &Edge) -> RouteStatus {
    edge.status().routes.into_iter().next().expect("a route")
}

fn code(got: &Got) -> (u16, Option<&str>) {
    (got.status, got.header("x-kiln-error"))
}

/// An address whose connections are taken by the kernel and answered by nobody, as of a stopped process.
fn stopped() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn case_14() {
    let (listener, address) = stopped();
    let policy = RoutePolicy { answer: Some(Millis(400)), ..RoutePolicy::default() };
    let edge = Edge::new();
    let mut routes = table(vec![(raw_pool(1, &[(1, address)]), 1)]);
    routes.routes[0].policy = policy;
    edge.set(1, &routes).unwrap();
    for n in 0..3 {
        let got = Conn::new(edge.address).post("/", b"once").unwrap();
        assert_eq!(code(&got), (504, Some("timeout")), "{n}");
    }
    let target = edge.target(1);
    assert!(target.ejected && target.ejections == 1, "{target:?}");
    assert_eq!((target.tally.requests, target.tally.failed), (3, 3));
    // Each was sent once, and nothing but probes came beside.
    listener.set_nonblocking(true).unwrap();
    let mut n_posts = 0;
    while let Ok((mut stream, _)) = listener.accept() {
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut head = [0; 4];
        n_posts += u32::from(stream.read_exact(&mut head).is_ok() && &head == b"POST");
    }
    assert_eq!(n_posts, 3);
    assert_eq!(route_of(&edge).retries, 0);
}

fn case_16() {
    let backend = Backend::with("a", |_, asked, stream| {
        let head: &[u8] = match asked.path.as_str() {
            "/chunked" => b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            _ => b"HTTP/1.1 200 X\r\nContent-Length: 100\r\n\r\nhalf",
        };
        stream.write_all(head).unwrap();
        // Only once the client has it: a reset overtakes what is under way.
        let _ = stream.set_read_timeout(Some(Duration::from_millis(300)));
        let _ = stream.read(&mut [0]);
        socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO)).unwrap();
        false
    });
    let edge = Edge::with(pool(1, &[(1, &backend)]));
    for path in ["/length", "/chunked"] {
        let got = get(edge.address, path);
        assert!(got.is_err(), "{path}: a cut answer looks whole: {got:?}");
    }
    assert_eq!(edge.tally().cut, 2);
}

fn case_18() {
    let (a, b) = (Backend::new("a"), Backend::new("b"));
    let edge = Edge::with(pool(1, &[(1, &a), (2, &b)]));
    let address = a.address;
    a.kill();
    b.kill();
    edge.wait("both are out", |s| {
        let got = get(edge.address, "/").unwrap();
        assert!(got.status == 502 || got.status == 503, "{got:?}");
        s.targets.iter().all(|t| t.ejected)
    });
    let got = get(edge.address, "/").unwrap();
    assert_eq!((code(&got), got.header("retry-after")), ((503, Some("connect")), Some("1")));
    let _again = Backend::at(&address.to_string(), "again", echo_name);
    edge.wait("one is back", |s| s.targets.iter().any(|t| !t.ejected));
    assert_eq!(get(edge.address, "/").unwrap().text(), "again");
}

fn case_19() {
    const N: u64 = 2000;
    let attempts = Arc::new(AtomicU64::new(0));
    // They take a request and break it off: each attempt reaches them.
    let broken = |attempts: &Arc<AtomicU64>| {
        let attempts = attempts.clone();
        Backend::with("a", move |_, _, _| {
            attempts.fetch_add(1, SeqCst);
            false
        })
    };
    let (a, b) = (broken(&attempts), broken(&attempts));
    let edge = Edge::with(pool(1, &[(1, &a), (2, &b)]));
    let mut conn = Conn::new(edge.address);
    for _ in 0..N {
        assert_eq!(conn.get("/").unwrap().status, 502);
    }
    // What two threads may have saved up, and then a fifth.
    let (n, most) = (attempts.load(SeqCst), N + N / 5 + 2 * 50 + 2);
    assert!(n <= most, "{n} attempts of {N} requests, at most {most}");
    let counted = route_of(&edge).retries;
    assert!(counted > 0 && N + counted >= n, "{counted} counted");
}

fn case_20() {
    let (n, body) = (Arc::new(AtomicU64::new(0)), vec![7; 300_000]);
    let seen = n.clone();
    let breaks = move |_: &str, _: &crate::backend::Asked, _: &mut std::net::TcpStream| {
        seen.fetch_add(1, SeqCst);
        false
    };
    let (a, b) = (Backend::with("a", breaks.clone()), Backend::with("b", breaks));
    let edge = Edge::with(pool(1, &[(1, &a), (2, &b)]));
    // PUT may be repeated by its meaning; but nobody keeps the body.
    let mut conn = Conn::new(edge.address);
    conn.write(format!("PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {}\r\n\r\n", body.len())).unwrap();
    let _ = conn.write(&body);
    assert_eq!(conn.read("PUT").unwrap().status, 502);
    assert_eq!(n.load(SeqCst), 1);
    // With a body of no length there is nothing to keep.
    let mut conn = Conn::new(edge.address);
    conn.write("PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n").unwrap();
    assert_eq!(conn.read("PUT").unwrap().status, 502);
    assert_eq!(n.load(SeqCst), 3);
}

fn case_34() {
    let backend = Backend::new("a");
    let policy = RoutePolicy { answer: Some(Millis(400)), ..RoutePolicy::default() };
    let edge = edge_with(policy, &[(1, &backend)]);
    // A body that stops in the middle.
    let mut conn = Conn::new(edge.address);
    conn.write("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100\r\n\r\nhalf").unwrap();
    let got = conn.read("POST").unwrap();
    assert_eq!((code(&got), got.header("connection")), ((408, Some("body-timeout")), Some("close")));
    assert!(!edge.target(1).ejected, "the client's fault is not the instance's");
    // A head that comes byte by byte is never done: the time of the whole head counts.
    let slow = Edge::start_with("TEST_HEAD_TIMEOUT_MS", "500");
    slow.set(1, &table(vec![(pool(1, &[(1, &backend)]), 1)])).unwrap();
    let mut conn = Conn::new(slow.address);
    conn.stream().set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    conn.write("GET / HTTP/1.1\r\nHost: a.test\r\n").unwrap();
    let mut n_bytes = 0;
    let ended = loop {
        match conn.stream().read(&mut [0; 256]) {
            Ok(_) => break true,
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => break true,
        }
        n_bytes += 1;
        if conn.write("x").is_err() || n_bytes > 300 {
            break n_bytes <= 300;
        }
    };
    assert!(ended, "a head of {n_bytes} bytes is still read");
}

fn case_38() {
    let (seen_end, go) = (Arc::new(AtomicBool::new(false)), Arc::new(Barrier::new(2)));
    let (s, g) = (seen_end.clone(), go.clone());
    let backend = Backend::with("a", move |_, asked, stream| {
        if asked.path == "/ends" {
            stream.write_all(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n").unwrap();
            return false;
        }
        g.wait();
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        let end = stream.read(&mut [0; 16]);
        s.store(
            matches!(end, Ok(0)) || end.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset),
            SeqCst,
        );
        false
    });
    let edge = Edge::with(pool(1, &[(1, &backend)]));
    let mut conn = Conn::new(edge.address);
    conn.write("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").unwrap();
    go.wait();
    drop(conn);
    edge.wait("the instance is free", |s| seen_end.load(SeqCst) && s.targets[0].in_flight == 0);
    assert_eq!(edge.tally().abandoned, 1);
    // The other way: the client's connection does not wait for an instance that is gone.
    let mut conn = Conn::new(edge.address);
    conn.write("GET /ends HTTP/1.1\r\nHost: a.test\r\n\r\n").unwrap();
    assert!(conn.read("GET").is_err());
    assert_eq!(conn.stream().read(&mut [0; 16]).unwrap_or(0), 0);
    edge.wait("nothing is left", |s| s.targets[0].in_flight == 0);
}

fn idle_answer() {
    let backend = Backend::with("a", |_, _, stream| {
        stream.write_all(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n").unwrap();
        let _ = stream.set_read_timeout(Some(Duration::from_secs(15)));
        let _ = stream.read(&mut [0]);
        false
    });
    let edge = edge_with(RoutePolicy { idle: Some(Millis(300)), ..RoutePolicy::default() }, &[(1, &backend)]);
    assert!(get(edge.address, "/").is_err(), "a silent answer looks whole");
    let tally = edge.wait("counted", |s| s.tally_of(&env()).requests == 1).tally_of(&env());
    assert_eq!((tally.cut, tally.failed), (1, 0));
}

fn total() {
    let backend = Backend::with("a", |_, asked, stream| {
        let _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
        if asked.path == "/drops" {
            // Never silent for long, and never done.
            stream.write_all(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
            while stream.write_all(b"1\r\nx\r\n").is_ok() {
                let _ = stream.read(&mut [0]);
            }
        }
        let _ = stream.set_read_timeout(Some(Duration::from_secs(15)));
        let _ = stream.read(&mut [0]);
        false
    });
    let edge =
        edge_with(RoutePolicy { total: Some(Millis(500)), ..RoutePolicy::default() }, &[(1, &backend)]);
    let got = get(edge.address, "/silent").unwrap();
    assert_eq!(code(&got), (504, Some("total-timeout")));
    assert!(get(edge.address, "/drops").is_err(), "an answer without end looks whole");
    // It is nobody's fault.
    assert_eq!((edge.target(1).ejections, edge.tally().requests), (0, 2));
}

fn idle_upgrade() {
    let backend = Backend::with("a", |_, _, stream| {
        stream.write_all(b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n").unwrap();
        let mut byte = [0];
        while stream.read(&mut byte).is_ok_and(|n| n == 1) && stream.write_all(&byte).is_ok() {}
        false
    });
    let edge = edge_with(RoutePolicy { idle: Some(Millis(400)), ..RoutePolicy::default() }, &[(1, &backend)]);
    let mut conn = Conn::new(edge.address);
    conn.write("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n").unwrap();
    assert_eq!(conn.read("GET").unwrap().status, 101);
    for _ in 0..20 {
        conn.write("x").unwrap();
        conn.reader.read_exact(&mut [0]).unwrap();
    }
    assert_eq!(conn.reader.read(&mut [0; 16]).unwrap_or(0), 0, "it is still open");
    let tally = edge.wait("counted", |s| s.tally_of(&env()).requests == 1).tally_of(&env());
    assert_eq!(tally.abandoned, 1);
    assert_eq!((route_of(&edge).bytes_in, route_of(&edge).bytes_out), (20, 20));
}

fn chunked(parts: &[usize]) -> Vec<u8> {
    let mut bytes = b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for part in parts {
        bytes.extend(format!("{part:x}\r\n").into_bytes());
        bytes.extend(vec![b'x'; *part]);
        bytes.extend(b"\r\n");
    }
    bytes.extend(b"0\r\n\r\n");
    bytes
}

fn too_large() {
    let backend =
        Backend::with("a", |_, asked, stream| answer(stream, 200, asked.body.len().to_string().as_bytes()));
    let edge = edge_with(RoutePolicy { body_max: Some(1000), ..RoutePolicy::default() }, &[(1, &backend)]);
    for length in [1001, 1_000_000_000] {
        let mut conn = Conn::new(edge.address);
        conn.write(format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {length}\r\n\r\n")).unwrap();
        let got = conn.read("POST").unwrap();
        assert_eq!((code(&got), got.header("connection")), ((413, Some("too-large")), Some("close")));
    }
    for parts in [&[1001][..], &[500, 500, 1]] {
        let mut conn = Conn::new(edge.address);
        conn.write(chunked(parts)).unwrap();
        let got = conn.read("POST").unwrap();
        assert_eq!(
            (code(&got), got.header("connection")),
            ((413, Some("too-large")), Some("close")),
            "{parts:?}"
        );
    }
    assert_eq!(backend.count(), 0, "an instance was bothered");
    let mut conn = Conn::new(edge.address);
    conn.write(chunked(&[500, 500])).unwrap();
    assert_eq!(conn.read("POST").unwrap().text(), "1000");
    assert_eq!(conn.post("/", &[b'x'; 1000]).unwrap().text(), "1000");
    assert_eq!(conn.get("/").unwrap().text(), "0");
    let route = route_of(&edge);
    assert_eq!((route.statuses[4], route.statuses[2], route.bytes_in >= 2000), (4, 3, true), "{route:?}");
}

/// A limit beyond what is held back: the body goes on its way, and is cut where the limit is.
fn too_large_streamed() {
    let backend =
        Backend::with("a", |_, asked, stream| answer(stream, 200, asked.body.len().to_string().as_bytes()));
    let max = 1 << 20;
    let edge = edge_with(RoutePolicy { body_max: Some(max), ..RoutePolicy::default() }, &[(1, &backend)]);
    let mut conn = Conn::new(edge.address);
    conn.write(chunked(&[100_000; 10])).unwrap();
    assert_eq!(conn.read("POST").unwrap().text(), "1000000");
    let mut conn = Conn::new(edge.address);
    let mut writer = conn.stream().try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        let _ = writer.write_all(&chunked(&[100_000; 11]));
    });
    let got = conn.read("POST").unwrap();
    assert_eq!(code(&got), (413, Some("too-large")));
    drop(conn);
    sending.join().unwrap();
    assert_eq!(backend.count(), 1, "a request that was cut looked whole");
    assert!(!edge.target(1).ejected && edge.target(1).ejections == 0);
}

/// A backend that holds every request until it is told to go on.
fn holding() -> (Backend, Arc<AtomicU64>, Arc<AtomicBool>) {
    let (inside, go) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (i, g) = (inside.clone(), go.clone());
    let backend = Backend::with("a", move |name, _, stream| {
        i.fetch_add(1, SeqCst);
        while !g.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        i.fetch_sub(1, SeqCst);
        answer(stream, 200, name.as_bytes())
    });
    (backend, inside, go)
}

fn bound() {
    let (backend, inside, go) = holding();
    let bound = InFlight { max: 3, queue: 2, wait: Millis(20_000) };
    let edge = edge_with(RoutePolicy { in_flight: Some(bound), ..RoutePolicy::default() }, &[(1, &backend)]);
    let address = edge.address;
    let ask = move || std::thread::spawn(move || get(address, "/").unwrap().status);
    let first: Vec<_> = (0..3).map(|_| ask()).collect();
    edge.wait("three are there", |s| s.targets[0].in_flight == 3 && inside.load(SeqCst) == 3);
    let second: Vec<_> = (0..2).map(|_| ask()).collect();
    edge.wait("two wait", |s| s.waiting == 2);
    for _ in 0..5 {
        let got = get(address, "/").unwrap();
        assert_eq!((code(&got), got.header("retry-after")), ((503, Some("overloaded")), Some("1")));
    }
    assert_eq!((inside.load(SeqCst), edge.target(1).in_flight), (3, 3), "more than the bound");
    go.store(true, SeqCst);
    assert!(first.into_iter().chain(second).all(|t| t.join().unwrap() == 200));
    let route = route_of(&edge);
    assert_eq!((route.shed, route.failed, route.statuses[2], edge.status().waiting), (5, 5, 5, 0));
    // Nothing is left taken.
    assert!((0..20).all(|_| get(address, "/").unwrap().status == 200));
}

fn bound_switch() {
    let (old, inside, go) = holding();
    let new = Backend::new("new");
    let bound = |wait| RoutePolicy {
        in_flight: Some(InFlight { max: 1, queue: 9, wait: Millis(wait) }),
        ..RoutePolicy::default()
    };
    let edge = edge_with(bound(200), &[(1, &old)]);
    let address = edge.address;
    let ask = move || std::thread::spawn(move || get(address, "/").unwrap());
    let first = ask();
    edge.wait("one is there", |_| inside.load(SeqCst) == 1);
    let got = get(address, "/").unwrap();
    assert_eq!(code(&got), (503, Some("overloaded")), "its turn did not come");
    edge.set(2, &asking(bound(20_000), &[(1, &old)])).unwrap();
    let waiting = ask();
    edge.wait("one waits", |s| s.waiting == 1);
    let mut routes = table(vec![(pool(2, &[(2, &new)]), 1)]);
    routes.routes[0].policy = bound(20_000);
    edge.set(3, &routes).unwrap();
    assert_eq!(waiting.join().unwrap().text(), "new", "it went to a release that had left");
    go.store(true, SeqCst);
    assert_eq!(first.join().unwrap().text(), "a");
}

fn raw_bound() {
    let backend = Raw::lines("a");
    let (edge, port) = (Edge::new(), free_port());
    let mut routes = raw_table(port, vec![(raw_pool(1, &[(1, backend.address)]), 1)]);
    routes.tcp[0].policy.in_flight = Some(InFlight { max: 2, queue: 1, wait: Millis(15_000) });
    edge.set(1, &routes).unwrap();
    let mut clients: Vec<_> = (0..2).map(|_| open(port)).collect();
    clients.iter_mut().for_each(|c| assert_eq!(ask(c, "x").unwrap(), "a x"));
    let waiting = std::thread::spawn(move || ask(&mut open(port), "waited"));
    edge.wait("one waits", |s| s.waiting == 1);
    assert!(ask(&mut open(port), "x").is_err(), "more than may wait");
    edge.wait("shed", |s| s.routes[0].shed == 1);
    drop(clients.pop());
    assert_eq!(waiting.join().unwrap().unwrap(), "a waited");
}

fn rate() {
    let backend = Backend::new("a");
    let rate = Rate { requests: 1, per: Millis(3_600_000), burst: 5 };
    let edge = edge_with(RoutePolicy { rate: Some(rate), ..RoutePolicy::default() }, &[(1, &backend)]);
    // Over as many connections as one likes, of any thread.
    for n in 0..5 {
        assert_eq!(get(edge.address, "/").unwrap().status, 200, "{n}");
    }
    let got = get(edge.address, "/").unwrap();
    assert_eq!(code(&got), (429, Some("rate")));
    let retry: u64 = got.header("retry-after").unwrap().parse().unwrap();
    assert!((3500..=3600).contains(&retry), "{retry}");
    // The same rule in the next table forgets nothing; another one begins anew.
    let policy = |burst| RoutePolicy { rate: Some(Rate { burst, ..rate }), ..RoutePolicy::default() };
    edge.set(2, &asking(policy(5), &[(1, &backend)])).unwrap();
    assert_eq!(get(edge.address, "/").unwrap().status, 429);
    assert_eq!((backend.count(), route_of(&edge).limited), (5, 2));
    edge.set(3, &asking(policy(6), &[(1, &backend)])).unwrap();
    assert_eq!(get(edge.address, "/").unwrap().status, 200);
}

fn sticky() {
    const N: usize = 300;
    let (old, new) = (Backend::new("old"), Backend::new("new"));
    let edge = Edge::new();
    let share = |generation, percent: u32| {
        let pools = vec![(pool(1, &[(1, &old)]), 100 - percent), (pool(2, &[(2, &new)]), percent)];
        let mut routes = table(pools);
        routes.routes[0].policy.sticky = true;
        edge.set(generation, &routes).unwrap();
    };
    let with = |cookie: &str| {
        let mut conn = Conn::new(edge.address);
        conn.write(format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: x=y; {cookie}\r\n\r\n")).unwrap();
        conn.read("GET").unwrap()
    };
    edge.set(1, &table(vec![(pool(1, &[(1, &old)]), 1)])).unwrap();
    assert_eq!(get(edge.address, "/").unwrap().header("set-cookie"), None, "there is nothing to choose");
    share(2, 10);
    let mut clients = vec![];
    for _ in 0..N {
        let got = get(edge.address, "/").unwrap();
        let cookie = got.header("set-cookie").expect("a place").to_owned();
        assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax"), "{cookie}");
        clients.push((cookie.split(';').next().unwrap().to_owned(), got.text().to_owned()));
    }
    let n_new = clients.iter().filter(|(_, release)| release == "new").count();
    assert!((5..=70).contains(&n_new), "{n_new} of {N} at 10 %");
    for (generation, percent) in [(3, 10), (4, 50), (5, 90)] {
        share(generation, percent);
        for (cookie, release) in &mut clients {
            let got = with(cookie);
            assert_eq!(got.header("set-cookie"), None, "it has a place");
            let moved = release == "old" && got.text() == "new" && percent > 10;
            assert!(
                got.text() == release || moved,
                "{cookie} went from {release} to {} at {percent} %",
                got.text()
            );
            *release = got.text().to_owned();
        }
    }
}

fn metrics() {
    let (a, b) = (
        Backend::with("a", |_, asked, stream| {
            let status = asked.path[1..].parse().unwrap_or(200);
            answer(stream, status, b"12345")
        }),
        Backend::new("b"),
    );
    let edge = Edge::with(pool(1, &[(1, &a)]));
    let mut conn = Conn::new(edge.address);
    for path in ["/200", "/201", "/404", "/503"] {
        conn.get(path).unwrap();
    }
    conn.post("/200", b"abc").unwrap();
    edge.set(2, &table(vec![(pool(2, &[(2, &b)]), 1)])).unwrap();
    conn.get("/").unwrap();
    drop(conn);
    let all = edge.status().routes;
    let of = |release: u64| all.iter().find(|r| r.release.0 == release).unwrap();
    let (one, two) = (of(1), of(2));
    assert_eq!((one.route.as_str(), one.in_table, two.in_table), ("*/", false, true));
    assert_eq!(one.statuses, [0, 0, 3, 0, 1, 1]);
    assert_eq!(two.statuses, [0, 0, 1, 0, 0, 0]);
    assert_eq!((one.bytes_in, one.bytes_out, two.bytes_out), (3, 25, 1));
    assert_eq!(one.latency.iter().sum::<u64>(), 5);
    let total: u64 = all.iter().flat_map(|r| &r.statuses).sum();
    assert_eq!(total, edge.tally().requests);
}

fn traces() {
    let backend = Backend::with("a", |_, asked, stream| {
        let text =
            format!("{} {}", asked.header("traceparent").join("+"), asked.header("tracestate").join("+"));
        answer(stream, 200, text.as_bytes())
    });
    let edge = Edge::with_access_log();
    edge.set(1, &table(vec![(pool(1, &[(1, &backend)]), 1)])).unwrap();
    let with = |lines: &str| {
        let mut conn = Conn::new(edge.address);
        conn.write(format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n")).unwrap();
        conn.read("GET").unwrap().text().to_owned()
    };
    let given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    assert_eq!(with(&format!("Traceparent: {given}\r\nTracestate: a=b\r\n")), format!("{given} a=b"));
    let made = with("Traceparent: 00-junk\r\nTracestate: a=b\r\n");
    let id = made.split('-').nth(1).unwrap().to_owned();
    assert!(made.ends_with("-00 ") && id.len() == 32, "{made}");
    assert_ne!(with("").split('-').nth(1).unwrap(), id);
    let path = edge.dir.path().join("access.log");
    edge.wait("logged", |_| std::fs::read_to_string(&path).is_ok_and(|text| text.lines().count() == 3));
    let text = std::fs::read_to_string(&path).unwrap();
    // Each thread writes its own lines when it comes to it.
    let traces: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["trace"].take())
        .collect();
    assert!(traces.contains(&"4bf92f3577b34da6a3ce929d0e0e4736".into()), "{traces:?}");
    assert!(traces.contains(&id.clone().into()), "{id}: {traces:?}");
}
