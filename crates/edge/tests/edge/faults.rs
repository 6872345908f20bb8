//! Backends that die, hang, cut and recover.

use crate::Case;
use crate::backend::{Backend, answer, echo_name};
use crate::client::{Conn, get, raw};
use crate::stage::{Edge, pool, table};
use kiln_model::edge::Tally;
use kiln_model::{Check, CheckKind, Health, Millis};
use std::collections::HashMap;
use std::io::Write;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

pub(crate) const CASES: &[Case] = &[
    ("case_39_without_descriptors_or_room_for_logs_it_serves_on", exhausted),
    ("the_death_of_one_of_two_fails_no_get_and_repeats_no_post", death),
    ("a_dead_target_comes_back_after_a_probe", comes_back),
    ("active_checks_eject_with_hysteresis_and_all_ejected_fails_open", active),
    ("an_answer_cut_by_the_instance_is_cut_for_the_client", cut),
    ("a_client_that_goes_away_is_counted_as_abandoned", abandoned),
    ("a_silent_instance_is_a_504_and_not_asked_again", silent),
    ("idle_connections_closed_by_the_instance_repeat_no_post", idle_close),
    ("retries_stay_within_their_budget", budget),
    ("a_check_that_only_control_can_run_readmits_nobody", command_check),
    ("a_client_that_stops_reading_is_not_in_flight_for_ever", stalled_reader),
    ("an_instance_that_does_not_read_is_at_fault_and_not_the_client", stalled_instance),
];

fn death() {
    let (a, b) = (Backend::new("a"), Backend::new("b"));
    let edge = Edge::with(pool(1, &[(1, &a), (2, &b)]));
    let (address, done) = (edge.address, AtomicBool::new(false));
    let (gets, posts, failed_posts) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (done, gets, posts, failed_posts) = (&done, &gets, &posts, &failed_posts);
            scope.spawn(move || {
                let mut conn = Conn::new(address);
                while !done.load(SeqCst) {
                    if thread % 2 == 0 {
                        assert_eq!(conn.get("/").expect("an answer").status, 200);
                        gets.fetch_add(1, SeqCst);
                    } else {
                        let n = posts.fetch_add(1, SeqCst);
                        let got = conn.post(&format!("/{n}"), b"once").expect("an answer");
                        failed_posts.fetch_add(u64::from(got.status != 200), SeqCst);
                        if got.header("connection") == Some("close") {
                            conn = Conn::new(address);
                        }
                    }
                }
            });
        }
        let more = |n: u64| {
            let (g, p) = (gets.load(SeqCst) + n, posts.load(SeqCst) + n);
            while gets.load(SeqCst) < g || posts.load(SeqCst) < p {
                std::thread::yield_now();
            }
        };
        more(200);
        a.kill();
        more(300);
        done.store(true, SeqCst);
    });
    let mut seen = HashMap::new();
    for asked in
        a.asked.lock().unwrap().iter().chain(b.asked.lock().unwrap().iter()).filter(|a| a.method == "POST")
    {
        *seen.entry(asked.path.clone()).or_insert(0) += 1;
    }
    assert!(seen.values().all(|n| *n == 1), "a POST was sent twice");
    // At most those that were in flight at the death: one per POST client.
    let n_failed = failed_posts.load(SeqCst);
    assert!(n_failed <= 2, "{n_failed} POSTs failed");
    assert_eq!(
        edge.tally(),
        Tally { requests: gets.load(SeqCst) + posts.load(SeqCst), failed: n_failed, ..Tally::default() }
    );
    assert!(edge.target(1).ejected);
}

fn comes_back() {
    let (a, b) = (Backend::new("a"), Backend::new("b"));
    let edge = Edge::with(pool(1, &[(1, &a), (2, &b)]));
    a.kill();
    let address = a.address;
    let mut conn = Conn::new(edge.address);
    edge.wait("ejected", |s| {
        assert_eq!(conn_get(edge.address), 200);
        s.targets[0].ejected
    });
    assert_eq!(edge.target(1).reason.as_deref(), Some("connection refused"));
    let _again = Backend::at(&address.to_string(), "again", echo_name);
    edge.wait("readmitted", |s| !s.targets[0].ejected);
    while conn.get("/").unwrap().text() != "again" {}
}

fn conn_get(address: std::net::SocketAddr) -> u16 {
    get(address, "/").unwrap().status
}

fn health(port: u16) -> Option<Health> {
    let kind = CheckKind::Http {
        port,
        path: "/health".into(),
        status: Some(200),
        contains: Some("well".into()),
        host: None,
    };
    Some(Health {
        check: Check { kind, timeout: Millis(2000) },
        every: Millis(50),
        grace: Millis(0),
        healthy_after: 2,
        unhealthy_after: 3,
    })
}

fn active() {
    let (well, checks) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
    let (w, c) = (well.clone(), checks.clone());
    let backend = Backend::with("a", move |name, asked, stream| {
        if asked.path != "/health" {
            return answer(stream, 200, name.as_bytes());
        }
        c.fetch_add(1, SeqCst);
        answer(stream, 200, if w.load(SeqCst) { b"all well" } else { b"ill" })
    });
    let mut pools = pool(1, &[(1, &backend)]);
    pools.health = health(backend.address.port());
    let edge = Edge::with(pools);
    edge.wait("checked", |_| checks.load(SeqCst) >= 3);
    assert!(!edge.target(1).ejected);
    well.store(false, SeqCst);
    let before = checks.load(SeqCst);
    let status = edge.wait("ejected", |s| s.targets[0].ejected);
    assert!(checks.load(SeqCst) >= before + 2, "ejected after one failure");
    assert!(status.targets[0].reason.as_ref().unwrap().contains("does not contain `well`"), "{status:?}");
    // It is the only one: it gets the requests all the same.
    assert_eq!(get(edge.address, "/").unwrap().text(), "a");
    well.store(true, SeqCst);
    let before = checks.load(SeqCst);
    edge.wait("readmitted", |s| !s.targets[0].ejected);
    assert!(checks.load(SeqCst) > before, "readmitted without a check");
}

fn cut() {
    let backend = Backend::with("a", |_, asked, stream| {
        let head: &[u8] = match asked.path.as_str() {
            "/length" => b"HTTP/1.1 200 X\r\nContent-Length: 100\r\n\r\nhalf",
            _ => b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        };
        stream.write_all(head).unwrap();
        false
    });
    let edge = Edge::with(pool(1, &[(1, &backend)]));
    for path in ["/length", "/chunked"] {
        assert!(get(edge.address, path).is_err(), "{path} ended cleanly");
    }
    // To HTTP/1.0 the end of the connection is the end of the answer: it must be a reset.
    assert!(raw(edge.address, "GET /chunked HTTP/1.0\r\nHost: a\r\n\r\n").is_err(), "HTTP/1.0 ended cleanly");
    edge.wait("counted", |s| s.targets[0].tally == Tally { requests: 3, cut: 3, ..Tally::default() });
}

fn abandoned() {
    let backend = Backend::with("a", |_, asked, stream| {
        if asked.path == "/endless" {
            let _ = stream.write_all(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n");
            while stream.write_all(b"4\r\nmore\r\n").is_ok() {}
        } else {
            let mut byte = [0];
            let _ = std::io::Read::read(stream, &mut byte);
        }
        false
    });
    let edge = Edge::with(pool(1, &[(1, &backend)]));
    let mut reader = Conn::new(edge.address);
    reader.write("GET /endless HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    reader.head().unwrap();
    drop(reader);
    let mut waiter = Conn::new(edge.address);
    waiter.write("GET /never HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    edge.wait("in flight", |_| backend.count() == 2);
    drop(waiter);
    let mut uploader = Conn::new(edge.address);
    uploader.write("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf").unwrap();
    edge.wait("in flight", |s| s.targets[0].in_flight == 1);
    uploader.stream().shutdown(Shutdown::Both).unwrap();
    let expected = Tally { requests: 3, abandoned: 3, ..Tally::default() };
    edge.wait("counted", |s| s.targets[0].tally == expected && s.targets[0].in_flight == 0);
}

/// Starts the edge again with a variable in its environment.
pub(crate) fn again_with(edge: &mut Edge, name: &str, value: &str) {
    edge.kill();
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.env(name, value).arg("edge").arg("--dir").arg(edge.dir.path());
    command.arg("--listen").arg(edge.address.to_string()).stdin(std::process::Stdio::null());
    if let Some(address) = edge.tls {
        command.arg("--listen-tls").arg(address.to_string());
    }
    edge.child = Some(command.spawn().unwrap());
    let addresses = || [Some(edge.address), edge.tls].into_iter().flatten();
    while addresses().any(|address| std::net::TcpStream::connect(address).is_err()) {
        std::thread::yield_now();
    }
}

fn command_check() {
    let (a, b) = (Backend::new("a"), Backend::new("b"));
    let mut pools = pool(1, &[(1, &a), (2, &b)]);
    let check = Check { kind: CheckKind::Command { argv: vec!["/ok".into()] }, timeout: Millis(1000) };
    let (every, grace, healthy_after, unhealthy_after) = (Millis(50), Millis(0), 1, 1);
    pools.health = Some(Health { check, every, grace, healthy_after, unhealthy_after });
    let edge = Edge::with(pools);
    a.kill();
    edge.wait("ejected", |s| {
        assert_eq!(conn_get(edge.address), 200);
        s.targets[0].ejected
    });
    // Longer than it takes control to replace it, which asks for an uninterrupted ejection.
    edge.wait("ejected for two seconds", |s| {
        assert!(s.targets[0].ejected, "readmitted, and nothing listens there");
        s.targets[0].ejected_for >= Millis(2000)
    });
}

fn stalled_reader() {
    let backend = Backend::with("a", |_, _, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n");
        let chunk = [b"10000\r\n".as_slice(), &[b'x'; 0x10000], b"\r\n"].concat();
        while stream.write_all(&chunk).is_ok() {}
        false
    });
    let other = Backend::new("b");
    let mut edge = Edge::with(pool(1, &[(1, &backend)]));
    again_with(&mut edge, "TEST_STALL_TIMEOUT_MS", "500");
    let mut reader = Conn::new(edge.address);
    reader.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    reader.head().unwrap();
    edge.wait("in flight", |s| s.targets[0].in_flight == 1);
    edge.set(2, &crate::stage::table(vec![(pool(2, &[(2, &other)]), 1)])).unwrap();
    backend.kill();
    // The client holds its connection and reads nothing more of what it was sent.
    edge.wait("ended", |s| s.targets.iter().all(|t| t.in_flight == 0));
    assert_eq!(edge.target(1).tally.requests, 1);
    drop(reader);
}

fn stalled_instance() {
    let backend = Backend::with("a", |_, _, _| true);
    let mut edge = Edge::with(pool(1, &[(1, &backend)]));
    // Stands still: the kernel accepts for it, and nobody reads.
    let still = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut pools = pool(1, &[(1, &backend)]);
    pools.targets[0].port = still.local_addr().unwrap().port();
    edge.set(2, &crate::stage::table(vec![(pools, 1)])).unwrap();
    again_with(&mut edge, "TEST_ANSWER_TIMEOUT_MS", "300");
    let mut conn = Conn::new(edge.address);
    let length = 64 << 20;
    conn.write(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n")).unwrap();
    let mut sender = conn.stream().try_clone().unwrap();
    let sending = std::thread::spawn(move || drop(sender.write_all(&vec![b'x'; length])));
    let got = conn.head().unwrap();
    assert_eq!((got.status, got.header("x-kiln-error")), (504, Some("timeout")));
    conn.stream().shutdown(Shutdown::Both).unwrap();
    sending.join().unwrap();
    edge.wait("counted", |s| {
        s.targets.iter().map(|t| t.tally).fold(Tally::default(), Tally::plus)
            == Tally { requests: 1, failed: 1, ..Tally::default() }
    });
}

fn silent() {
    let backend = Backend::with("a", |_, asked, stream| match asked.path.as_str() {
        "/" => answer(stream, 200, b""),
        _ => {
            let mut byte = [0];
            let _ = std::io::Read::read(stream, &mut byte);
            false
        }
    });
    let mut edge = Edge::with(pool(1, &[(1, &backend)]));
    again_with(&mut edge, "TEST_ANSWER_TIMEOUT_MS", "300");
    let got = get(edge.address, "/silent").unwrap();
    assert_eq!((got.status, got.header("x-kiln-error")), (504, Some("timeout")));
    assert_eq!(Conn::new(edge.address).post("/silent", b"x").unwrap().status, 504);
    assert_eq!(backend.count(), 2);
    assert_eq!(edge.tally(), Tally { requests: 2, failed: 2, ..Tally::default() });
    // A client that stops sending is its own fault.
    let got = raw(edge.address, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf").unwrap();
    assert_eq!(got.status, 408);
    assert_eq!(edge.tally(), Tally { requests: 3, failed: 2, ..Tally::default() });
}

fn idle_close() {
    let backend = Backend::with("a", |name, _, stream| {
        answer(stream, 200, name.as_bytes());
        // Closes without having said so.
        false
    });
    let edge = Edge::with(pool(1, &[(1, &backend)]));
    let mut conn = Conn::new(edge.address);
    for n in 0..200 {
        let got = conn.post(&format!("/{n}"), b"once").unwrap();
        assert!(got.status == 200 || got.status == 502, "{got:?}");
        // The edge says so if it ends the connection; else it must go on.
        if got.header("connection") == Some("close") {
            conn = Conn::new(edge.address);
        }
        assert_eq!(conn.get("/").unwrap().status, 200);
    }
    let asked = backend.asked.lock().unwrap();
    let mut posts: Vec<_> = asked.iter().filter(|a| a.method == "POST").map(|a| &a.path).collect();
    let n = posts.len();
    posts.sort();
    posts.dedup();
    assert_eq!(posts.len(), n, "a POST was sent twice");
}

fn budget() {
    let reset = |_: &str, _: &crate::backend::Asked, _: &mut std::net::TcpStream| false;
    let (a, b) = (Backend::with("a", reset), Backend::with("b", reset));
    let edge = Edge::with(pool(1, &[(1, &a), (2, &b)]));
    let mut conn = Conn::new(edge.address);
    let n = 600;
    for _ in 0..n {
        let status = conn.get("/").unwrap().status;
        assert!(status == 502 || status == 503, "{status}");
    }
    let attempts = (a.count() + b.count()) as f64;
    // A fifth on top, and what a thread may have saved up.
    let bound = f64::from(n) * 1.2 + kiln_edge::limits::RETRY_TOKENS_MAX + 1.0;
    assert!(attempts <= bound, "{attempts} attempts for {n} requests");
    assert_eq!(edge.tally(), Tally { requests: n as u64, failed: n as u64, ..Tally::default() });
}

fn exhausted() {
    let backend = Backend::new("a");
    let mut edge = Edge::new();
    // From the next start on no line of its log can be written, and it has descriptors for a few connections.
    edge.kill();
    std::os::unix::fs::symlink("/dev/full", edge.dir.path().join("access.log")).unwrap();
    edge.start_limited(160);
    edge.set(1, &table(vec![(pool(1, &[(1, &backend)]), 1)])).unwrap();
    let mut conn = Conn::new(edge.address);
    for _ in 0..10 {
        assert_eq!(conn.get("/").unwrap().status, 200);
    }
    edge.wait("lost lines are counted", |s| s.log_lines_lost == 10);
    let mut many: Vec<Conn> = (0..200).map(|_| Conn::new(edge.address)).collect();
    for conn in &mut many {
        conn.write("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    }
    for _ in 0..20 {
        assert_eq!(conn.get("/").unwrap().status, 200, "who is there is served");
    }
    for conn in &mut many {
        assert_eq!(conn.read("GET").unwrap().status, 200, "who waits is served in turn");
    }
    assert_eq!(edge.tally().requests, 230);
    // Those that say nothing take the places of others until they are let go; control is not concerned.
    let idle: Vec<Conn> = (0..200).map(|_| Conn::new(edge.address)).collect();
    assert_eq!(edge.status().generation.0, 1);
    drop(idle);
    assert_eq!(conn.get("/").unwrap().status, 200);
}
