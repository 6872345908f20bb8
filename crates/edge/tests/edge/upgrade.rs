//! One edge takes the place of another: nothing is refused or lost, whatever becomes of either.

use crate::Case;
use crate::backend::{Backend, answer};
use crate::client::{Conn, get};
use crate::h2::{Door, Driven, backend as slow_backend};
use crate::programs::{Script, certificate, curl, script_path};
use crate::raw::{Raw, ask, free_port, open, raw_pool, raw_table};
use crate::stage::{Edge, pool, table};
use kiln_model::RouteTable;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

pub(crate) const CASES: &[Case] = &[
    ("case_22_upgrades_under_load_lose_nothing", under_load),
    ("case_23_an_edge_that_cannot_take_over_leaves_the_old_one_serving", failing),
    ("case_24_whoever_dies_in_a_hand_over_the_other_one_serves", kill_points),
    ("case_26_two_upgrades_in_a_row_while_the_first_edge_still_drains", in_a_row),
    ("case_27_a_websocket_and_a_raw_connection_live_across_an_upgrade", tunnels),
    ("case_28_an_http2_client_is_told_to_go_and_loses_no_stream", http2),
    ("case_29_no_listener_is_left_behind_when_the_number_of_threads_changes", threads),
    ("a_switch_reaches_the_connections_of_the_edge_before", follows),
    ("an_edge_that_was_replaced_ends_with_the_one_that_replaced_it", ends),
    ("an_edge_that_takes_over_where_none_runs_starts_as_usual", alone),
    ("systemd_hears_which_process_is_the_main_one", notified),
];

fn own() -> PathBuf {
    std::env::current_exe().unwrap()
}

/// Upgrades from one to the other, in all.
fn n_upgrades() -> usize {
    std::env::var("KILN_UPGRADES").ok().and_then(|n| n.parse().ok()).unwrap_or(10)
}

/// What clients met until they were told to stop.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    n_requests: AtomicU64,
    n_failed: AtomicU64,
}

impl Load {
    fn go_on(&self, mut one: impl FnMut() -> Result<(), String>) {
        while !self.stop.load(SeqCst) {
            self.n_requests.fetch_add(1, SeqCst);
            if let Err(problem) = one() {
                self.n_failed.fetch_add(1, SeqCst);
                println!("failed: {problem}");
            }
        }
    }

    /// One connection for as long as the edge keeps it.
    fn keep_alive(&self, address: SocketAddr) {
        let mut conn = None;
        self.go_on(|| {
            let mut own = conn.take().unwrap_or_else(|| Conn::new(address));
            let got = own.get("/").map_err(|e| format!("keep-alive: {e}"))?;
            if got.header("connection") != Some("close") {
                conn = Some(own);
            }
            if got.status == 200 { Ok(()) } else { Err(format!("keep-alive: {}", got.status)) }
        });
    }
}

/// Ends the load, also when a test fails.
struct Stop<'a>(&'a Load);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, SeqCst);
    }
}

/// HTTP for everything, and a raw port.
fn both(web: &Backend, raw: &Raw, port: u16) -> RouteTable {
    let mut all = raw_table(port, vec![(raw_pool(1, &[(9, raw.address)]), 1)]);
    let web = table(vec![(pool(1, &[(1, web)]), 1)]);
    all.pools.extend(web.pools);
    all.routes = web.routes;
    all.routes[0].pools[0].pool = 1;
    all
}

fn under_load() {
    let (web, raw, port) = (Backend::new("a"), Raw::lines("raw"), free_port());
    let mut edge = Edge::secure(|dir| certificate(dir, "shop", &["shop.test"]));
    edge.set(1, &both(&web, &raw, port)).unwrap();
    let (address, tls) = (edge.address, edge.tls.unwrap());
    let trust = edge.dir.path().join("certificates/shop.crt");
    let load = Load::default();
    std::thread::scope(|scope| {
        let load = &load;
        scope.spawn(|| load.keep_alive(address));
        scope.spawn(|| load.keep_alive(address));
        scope.spawn(|| {
            load.go_on(|| match get(address, "/") {
                Ok(got) if got.status == 200 => Ok(()),
                other => Err(format!("new connection: {other:?}")),
            });
        });
        for protocol in ["--http1.1", "--http2"] {
            let trust = &trust;
            scope.spawn(move || {
                load.go_on(|| {
                    let got = curl(tls, "shop.test", "/", trust, &[protocol, "--fail", "-o", "/dev/null"]);
                    if got.status.success() { Ok(()) } else { Err(format!("{protocol}: {got:?}")) }
                });
            });
        }
        scope.spawn(|| {
            load.go_on(|| match ask(&mut open(port), "x") {
                Ok(line) if line == "raw x" => Ok(()),
                other => Err(format!("raw: {other:?}")),
            });
        });
        let _stop = Stop(load);
        for n in 0..n_upgrades() {
            let before = edge.status();
            let begun = load.n_requests.load(SeqCst);
            edge.upgrade(&own()).unwrap_or_else(|e| panic!("upgrade {n}: {e}"));
            let after = edge.status();
            assert_ne!(before.pid, after.pid);
            assert_eq!((&after.process, after.generation), (&before.process, before.generation));
            let tally = |s: &kiln_model::edge::EdgeStatus| s.tally_of(&crate::stage::env()).requests;
            assert!(tally(&edge.status()) >= tally(&before), "counts never go back");
            edge.wait("traffic goes on", |_| load.n_requests.load(SeqCst) > begun + 20);
        }
    });
    let (n, failed) = (load.n_requests.load(SeqCst), load.n_failed.load(SeqCst));
    println!("{} upgrades, {n} requests, {failed} failed", n_upgrades());
    assert_eq!(failed, 0);
    edge.wait("the edges before have ended", |s| s.replaced == 0);
    let tally = edge.tally();
    assert_eq!((tally.requests, tally.failed + tally.cut + tally.abandoned), (n, 0), "each is counted once");
}

/// A program that an edge can start in its place: a script with that text.
fn program(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A program that behaves as `scripts/successor.py` says.
fn half(edge: &Edge, step: &str, deed: &str) -> PathBuf {
    let (script, dir) = (script_path("successor"), edge.dir.path());
    let line = format!("#!/bin/sh\nexec /usr/bin/python3 -I {script} {} {step} {deed}\n", dir.display());
    program(dir, "half", &line)
}

fn failing() {
    let backend = Backend::new("a");
    let mut edge = Edge::with(pool(1, &[(1, &backend)]));
    let pid = edge.status().pid;
    let dir = edge.dir.path().to_owned();
    let other = table(vec![(pool(2, &[(2, &backend)]), 1)]);
    let programs = [
        (PathBuf::from("/nonexistent/kiln"), "cannot be started"),
        (PathBuf::from("/bin/false"), "ended at its start"),
        (program(&dir, "wrong", "#!/bin/sh\necho no such option >&2; exit 64\n"), "no such option"),
        (half(&edge, "connect", "die"), "ended at its start"),
    ];
    for (n, (path, words)) in programs.iter().enumerate() {
        let error = edge.upgrade(path).unwrap_err().to_string();
        assert!(error.contains(words), "{}: {error}", path.display());
        assert_eq!(edge.status().pid, pid);
        edge.set(2 + n as u64, &other).unwrap();
        assert_eq!(get(edge.address, "/").unwrap().release(), 2);
    }
    // One that cannot read its own certificates, or listen where it is told to, says so and leaves everything as it is.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = kiln_edge::Listen { plain: vec![taken.local_addr().unwrap()], ..Default::default() };
    let error = edge.upgrade_to(&own(), &listen).unwrap_err().to_string();
    assert!(error.contains("another program does"), "{error}");
    assert_eq!((edge.status().pid, get(edge.address, "/").unwrap().status), (pid, 200));
    edge.upgrade(&own()).unwrap();
    assert_ne!(edge.status().pid, pid);
    assert_eq!(get(edge.address, "/").unwrap().status, 200);
}

fn kill_points() {
    let backend = Backend::new("a");
    let mut edge = Edge::with(pool(1, &[(1, &backend)]));
    let pid = edge.status().pid;
    for (step, deed) in [("offer", "die"), ("ready", "die"), ("go", "die"), ("go", "hang")] {
        let error = edge.upgrade(&half(&edge, step, deed)).unwrap_err();
        assert_eq!(edge.status().pid, pid, "{step} {deed}: {error}");
        edge.set(edge.status().generation.0 + 1, &table(vec![(pool(1, &[(1, &backend)]), 1)])).unwrap();
        for _ in 0..20 {
            assert_eq!(get(edge.address, "/").unwrap().status, 200, "{step} {deed}");
        }
    }
    edge.upgrade(&own()).unwrap();
    // The edge before dies once it has given everything away.
    let dir = tempfile::tempdir().unwrap();
    let mut before = Script::start("predecessor", &[&dir.path().display().to_string()]);
    let mut port = String::new();
    BufReader::new(before.0.stdout.take().unwrap()).read_line(&mut port).unwrap();
    let address: SocketAddr = format!("127.0.0.1:{}", port.trim()).parse().unwrap();
    let mut early = TcpStream::connect(address).unwrap();
    let mut next = Command::new(own());
    next.arg("edge").arg("--dir").arg(dir.path()).args(["--listen", &address.to_string(), "--take-over"]);
    let mut next = next.stdin(Stdio::null()).spawn().unwrap();
    early.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut said = String::new();
    early.read_to_string(&mut said).unwrap();
    next.kill().unwrap();
    next.wait().unwrap();
    assert!(said.starts_with("HTTP/1.1 503 "), "one that waited is answered by the next edge: {said}");
}

/// A connection that is echoed.
fn websocket(address: SocketAddr) -> Conn {
    let mut conn = Conn::new(address);
    conn.write("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").unwrap();
    assert_eq!(conn.head().unwrap().status, 101);
    conn
}

fn echo(conn: &mut Conn, text: &str) -> std::io::Result<()> {
    conn.write(text)?;
    let mut bytes = vec![0; text.len()];
    conn.reader.read_exact(&mut bytes)?;
    if bytes == text.as_bytes() { Ok(()) } else { Err(std::io::Error::other("other bytes")) }
}

fn echoing(name: &str) -> Backend {
    Backend::with(name, |name, asked, stream| {
        if asked.header("upgrade") != ["websocket"] {
            return answer(stream, 200, name.as_bytes());
        }
        stream.write_all(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").unwrap();
        let mut bytes = [0; 64];
        while let Ok(n @ 1..) = stream.read(&mut bytes) {
            stream.write_all(&bytes[..n]).unwrap();
        }
        false
    })
}

fn tunnels() {
    let (web, raw, port) = (echoing("a"), Raw::lines("raw"), free_port());
    let mut edge = Edge::new();
    edge.set(1, &both(&web, &raw, port)).unwrap();
    let (mut socket, mut line) = (websocket(edge.address), open(port));
    assert_eq!(ask(&mut line, "a").unwrap(), "raw a");
    edge.upgrade(&own()).unwrap();
    let status = edge.status();
    assert_eq!(status.replaced, 1);
    assert_eq!(
        status.targets.iter().map(|t| t.in_flight).sum::<u64>(),
        2,
        "what the edge before serves counts"
    );
    // Well beyond the time that idle connections are left.
    for _ in 0..30 {
        echo(&mut socket, "still here").unwrap();
        assert_eq!(ask(&mut line, "b").unwrap(), "raw b");
        std::thread::park_timeout(std::time::Duration::from_millis(100));
    }
    drop((socket, line));
    let status = edge.wait("the edge before has ended", |s| s.replaced == 0);
    assert_eq!(status.targets.iter().map(|t| t.in_flight).sum::<u64>(), 0);
    assert_eq!(status.tally_of(&crate::stage::env()).requests, 2, "it has told what it counted");
}

fn in_a_row() {
    let web = echoing("a");
    let mut edge = Edge::with(pool(1, &[(1, &web)]));
    let mut sockets: Vec<Conn> = vec![];
    for n in 1..=3 {
        sockets.push(websocket(edge.address));
        edge.upgrade(&own()).unwrap();
        let status = edge.status();
        assert_eq!((status.replaced, status.targets[0].in_flight), (n, n), "each edge has its connection");
        sockets.iter_mut().for_each(|socket| echo(socket, "hello").unwrap());
    }
    sockets.clear();
    let status = edge.wait("all have ended", |s| s.replaced == 0);
    assert_eq!((status.targets[0].in_flight, status.targets[0].tally.requests), (0, 3));
}

fn http2() {
    let door = Door::default();
    let backend = slow_backend("a", &door);
    let mut edge = Edge::secure(|dir| certificate(dir, "shop", &["shop.test"]));
    edge.set(1, &table(vec![(pool(1, &[(1, &backend)]), 1)])).unwrap();
    let ways = [(edge.tls.unwrap(), "shop.test"), (edge.address, "-")];
    let mut clients = ways.map(|(address, name)| Driven::new(address, name, "65535"));
    let streams: Vec<String> = clients.iter_mut().map(|client| client.start("/slow")).collect();
    edge.wait("both are in flight", |s| s.targets.iter().any(|t| t.in_flight == 2));
    edge.upgrade(&own()).unwrap();
    for client in &mut clients {
        assert_eq!(client.get("/"), "200 1 a", "a client that has not heard yet");
    }
    for (address, name) in ways {
        assert_eq!(Driven::new(address, name, "65535").get("/"), "200 1 a", "the next edge");
    }
    door.open();
    for (client, stream) in clients.iter_mut().zip(&streams) {
        assert_eq!(client.say(&format!("finish {stream}")), "200 1 a");
        let end = client.say("goodbye");
        assert!(end.starts_with("goaway 0 "), "{end}");
    }
    let status = edge.wait("the edge before has ended", |s| s.replaced == 0);
    let tally = status.tally_of(&crate::stage::env());
    assert_eq!((tally.requests, tally.failed + tally.cut + tally.abandoned), (6, 0));
}

fn threads() {
    let backend = Backend::new("a");
    let mut edge = Edge::start_with("TEST_THREADS", "5");
    edge.set(1, &table(vec![(pool(1, &[(1, &backend)]), 1)])).unwrap();
    for n in ["1", "4", "2"] {
        // The next edge has the environment of the one before, and this one of its own.
        let dir = edge.dir.path().to_owned();
        let text = format!("#!/bin/sh\nTEST_THREADS={n} exec {} \"$@\"\n", own().display());
        edge.upgrade(&program(&dir, "threads", &text)).unwrap();
        // By the kernel's choice each would meet any of the listeners.
        for _ in 0..60 {
            assert_eq!(get(edge.address, "/").unwrap().status, 200, "{n} threads");
        }
    }
}

fn follows() {
    let (old, new) = (Backend::new("old"), Backend::new("new"));
    let mut edge = Edge::with(pool(1, &[(1, &old)]));
    // Asks once before and once after: the edge before has it all the time.
    let mut conns: Vec<Conn> = (0..8).map(|_| Conn::new(edge.address)).collect();
    conns.iter_mut().for_each(|conn| assert_eq!(conn.get("/").unwrap().release(), 1));
    edge.upgrade(&own()).unwrap();
    edge.set(2, &table(vec![(pool(2, &[(2, &new)]), 1)])).unwrap();
    for conn in &mut conns {
        let got = conn.get("/").unwrap();
        assert_eq!((got.release(), got.header("connection")), (2, Some("close")));
    }
    let status = edge.wait("the edge before has ended", |s| s.replaced == 0);
    assert_eq!(status.tally_of(&crate::stage::env()).requests, 16);
}

fn ends() {
    let web = echoing("a");
    let mut edge = Edge::with(pool(1, &[(1, &web)]));
    let mut socket = websocket(edge.address);
    let first = edge.status().pid;
    edge.upgrade(&own()).unwrap();
    echo(&mut socket, "hello").unwrap();
    let lives = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    };
    // Killed, it says nothing to the one before, which notices.
    let second = edge.status().pid;
    assert!(lives(first) && lives(second));
    drop(socket);
    edge.kill_now();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while lives(first) {
        assert!(std::time::Instant::now() < deadline, "edge {first} is left");
        std::thread::yield_now();
    }
}

fn alone() {
    let dir = tempfile::tempdir().unwrap();
    let backend = Backend::new("a");
    let mut edge = Edge::with(pool(1, &[(1, &backend)]));
    edge.kill();
    // A socket that nobody listens on is left.
    assert!(edge.dir.path().join("control.sock").exists());
    let mut next = Command::new(own());
    next.arg("edge").arg("--dir").arg(edge.dir.path());
    let address = edge.address.to_string();
    edge.child = Some(next.args(["--listen", &address, "--take-over"]).stdin(Stdio::null()).spawn().unwrap());
    edge.wait_until_it_answers();
    assert_eq!(get(edge.address, "/").unwrap().release(), 1);
    drop(dir);
}

fn notified() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    let mut edge = Edge::start_with("NOTIFY_SOCKET", &path.display().to_string());
    let heard = || {
        let mut bytes = [0; 256];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    };
    assert_eq!(heard(), format!("MAINPID={}\nREADY=1", edge.status().pid));
    edge.upgrade(&own()).unwrap();
    assert_eq!(heard(), format!("MAINPID={}\nREADY=1", edge.status().pid));
}
