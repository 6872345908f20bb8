//! HTTP/2 to instances: gRPC of grpcio at both ends, and servers that refuse, close and limit.

use crate::Case;
use crate::backend::Backend;
use crate::client::{Conn, get, raw};
use crate::programs::{Script, certificate};
use crate::stage::{Edge, instance, pool, table};
use kiln_model::edge::Tally;
use kiln_model::route::Pool;
use kiln_model::{Protocol, Target};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{ChildStdin, ChildStdout};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

pub(crate) const CASES: &[Case] = &[
    ("grpc_passes_whole_with_its_trailers_with_and_without_tls", grpc),
    ("a_grpc_stream_survives_a_switch_and_new_calls_go_to_the_new_release", grpc_switch),
    ("streams_that_an_instance_refuses_go_elsewhere_whatever_their_method", refused),
    ("streams_behind_a_goaway_go_to_a_new_connection", goaway),
    ("a_request_that_an_instance_has_begun_is_not_sent_twice", begun),
    ("an_instances_limit_of_streams_is_kept", limit),
    ("a_body_that_is_too_large_to_keep_is_not_sent_twice", too_large),
    ("http1_clients_reach_http2_instances", from_http1),
    ("a_dead_http2_instance_is_ejected", dead),
];

/// A script that prints its port first, and lines later.
struct Server {
    script: Script,
    address: SocketAddr,
    lines: Receiver<String>,
}

impl Server {
    fn new(name: &str, args: &[&str]) -> Self {
        let mut script = Script::start(name, args);
        let mut output = BufReader::new(script.0.stdout.take().unwrap()).lines();
        let port: u16 = output.next().unwrap().unwrap().trim().parse().unwrap();
        let (said, lines) = mpsc::channel();
        std::thread::spawn(move || output.map_while(Result::ok).try_for_each(|line| said.send(line)));
        Self { script, address: ([127, 0, 0, 1], port).into(), lines }
    }

    fn h2(args: &[&str]) -> Self {
        Self::new("h2_server", args)
    }

    /// What it has processed since the last call.
    fn processed(&self) -> Vec<String> {
        self.lines.try_iter().collect()
    }
}

/// A pool of servers that speak HTTP/2.
fn h2_pool(release: u64, servers: &[(u64, &Server)]) -> Pool {
    let target = |(n, server): &(u64, &Server)| Target {
        instance: instance(*n),
        address: server.address.ip(),
        port: server.address.port(),
    };
    Pool { targets: servers.iter().map(target).collect(), protocol: Protocol::H2c, ..pool(release, &[]) }
}

struct Client {
    _script: Script,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Client {
    fn new(args: &[&str]) -> Self {
        let mut script = Script::start("grpc_client", args);
        let (input, output) = (script.0.stdin.take().unwrap(), script.0.stdout.take().unwrap());
        Self { _script: script, input, output: BufReader::new(output) }
    }

    fn say(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").unwrap();
        let mut told = String::new();
        self.output.read_line(&mut told).unwrap();
        told.trim().to_owned()
    }
}

fn grpc() {
    let server = Server::new("grpc_server", &["a"]);
    let edge = Edge::secure(|dir| certificate(dir, "shop", &["shop.test"]));
    edge.set(1, &table(vec![(h2_pool(1, &[(1, &server)]), 1)])).unwrap();
    let trust = edge.dir.path().join("certificates/shop.crt").display().to_string();
    let (plain, secure) = (edge.address.to_string(), edge.tls.unwrap().to_string());
    for (args, scheme) in [(&[plain.as_str()][..], "http"), (&[&secure, &trust, "shop.test"], "https")] {
        let mut client = Client::new(args);
        assert_eq!(client.say("unary hello"), format!("a:hello {scheme} of a"));
        assert_eq!(client.say("fail"), "NOT_FOUND no such thing behind a failure");
        assert!(client.say("unknown").starts_with("UNIMPLEMENTED"));
        assert_eq!(client.say("count 1000"), "1000 a:999");
        assert_eq!(client.say("total 100 50000"), "5000000");
        assert_eq!(client.say("open"), "opened");
        for text in ["one", "two", "three"] {
            assert_eq!(client.say(&format!("say {text}")), format!("a:{text}"));
        }
        assert_eq!(client.say("close"), "closed 0 OK");
    }
    let status = edge.wait("nothing is in flight", |s| s.targets.iter().all(|t| t.in_flight == 0));
    assert_eq!(status.tally_of(&crate::stage::env()), Tally { requests: 12, ..Tally::default() });
}

fn grpc_switch() {
    let (old, new) = (Server::new("grpc_server", &["old"]), Server::new("grpc_server", &["new"]));
    let edge = Edge::new();
    edge.set(1, &table(vec![(h2_pool(1, &[(1, &old)]), 1)])).unwrap();
    let mut client = Client::new(&[&edge.address.to_string()]);
    assert_eq!(client.say("open"), "opened");
    assert_eq!(client.say("say before"), "old:before");
    edge.set(2, &table(vec![(h2_pool(2, &[(2, &new)]), 1)])).unwrap();
    for _ in 0..20 {
        assert_eq!(client.say("unary x"), "new:x http of new");
    }
    assert_eq!(client.say("say after"), "old:after", "a stream stays where it began");
    assert_eq!(edge.target(1).in_flight, 1);
    assert_eq!(client.say("close"), "closed 0 OK");
    edge.wait("nothing is in flight", |s| s.targets.iter().all(|t| t.in_flight == 0));
    assert_eq!(edge.tally(), Tally { requests: 21, ..Tally::default() });
}

fn refused() {
    let (refuses, other) = (Server::h2(&["refuse", "1000000"]), Server::h2(&["plain"]));
    let edge = Edge::new();
    edge.set(1, &table(vec![(h2_pool(1, &[(1, &refuses), (2, &other)]), 1)])).unwrap();
    let mut conn = Conn::new(edge.address);
    for n in 0..20 {
        let got = conn.post("/order", &vec![b'x'; 1000 * n]).unwrap();
        assert_eq!((got.status, got.header("x-kiln-instance")), (200, Some("web-2")), "{got:?}");
        assert_eq!(got.text(), format!("a.test {}", 1000 * n));
    }
    let mut processed = other.processed();
    while processed.len() < 20 {
        processed.push(other.lines.recv_timeout(Duration::from_secs(10)).unwrap());
    }
    let expected: Vec<String> = (0..20).map(|n| format!("POST /order {}", 1000 * n)).collect();
    assert_eq!(processed, expected, "each once");
    assert!(!edge.target(1).ejected, "who refuses is not broken");
    // One that refuses for a moment is asked again, also if there is no other.
    let moment = Server::h2(&["refuse", "1"]);
    edge.set(2, &table(vec![(h2_pool(2, &[(3, &moment)]), 1)])).unwrap();
    assert_eq!(conn.post("/once", b"abc").unwrap().text(), "a.test 3");
    assert_eq!(moment.lines.recv_timeout(Duration::from_secs(10)).unwrap(), "POST /once 3");
    // One that always does is the end.
    edge.set(3, &table(vec![(h2_pool(3, &[(4, &refuses)]), 1)])).unwrap();
    let got = conn.post("/never", b"abc").unwrap();
    assert_eq!((got.status, got.header("x-kiln-error")), (502, Some("refused-stream")));
    assert_eq!(refuses.processed(), Vec::<String>::new());
}

fn goaway() {
    let server = Server::h2(&["goaway"]);
    let edge = Edge::new();
    edge.set(1, &table(vec![(h2_pool(1, &[(1, &server)]), 1)])).unwrap();
    let mut conn = Conn::new(edge.address);
    for n in 1..=20 {
        let got = conn.post("/order", &vec![b'x'; n]).unwrap();
        assert_eq!((got.status, got.text()), (200, &*format!("a.test {n}")), "{got:?}");
        assert_eq!(server.lines.recv_timeout(Duration::from_secs(10)).unwrap(), format!("POST /order {n}"));
    }
    assert_eq!(server.processed(), Vec::<String>::new());
    assert_eq!(edge.tally(), Tally { requests: 20, ..Tally::default() });
}

fn begun() {
    let (drops, other) = (Server::h2(&["drop"]), Server::h2(&["plain"]));
    let edge = Edge::new();
    edge.set(1, &table(vec![(h2_pool(1, &[(1, &drops)]), 1)])).unwrap();
    let mut conn = Conn::new(edge.address);
    let got = conn.post("/order", b"abc").unwrap();
    assert_eq!((got.status, got.header("x-kiln-error")), (502, Some("reset")), "{got:?}");
    assert_eq!(drops.lines.recv_timeout(Duration::from_secs(10)).unwrap(), "POST /order 3");
    // What may be done twice goes to another one.
    edge.set(2, &table(vec![(h2_pool(1, &[(1, &drops), (2, &other)]), 1)])).unwrap();
    for _ in 0..10 {
        assert_eq!(get(edge.address, "/read").unwrap().status, 200);
    }
    assert!(drops.processed().iter().all(|line| line == "GET /read 0"), "no POST came again");
    assert!(other.processed().iter().all(|line| line == "GET /read 0"));
}

fn limit() {
    let mut server = Server::h2(&["limit", "3"]);
    let edge = Edge::new();
    edge.set(1, &table(vec![(h2_pool(1, &[(1, &server)]), 1)])).unwrap();
    let clients: Vec<_> = (0..24)
        .map(|n| {
            let address = edge.address;
            std::thread::spawn(move || get(address, &format!("/{n}")).unwrap().status)
        })
        .collect();
    edge.wait("all are in flight", |s| s.targets.iter().any(|t| t.in_flight == 24));
    writeln!(server.script.0.stdin.as_mut().unwrap(), "go").unwrap();
    for client in clients {
        assert_eq!(client.join().unwrap(), 200);
    }
    assert_eq!(edge.tally(), Tally { requests: 24, ..Tally::default() });
}

fn too_large() {
    let (refuses, other) = (Server::h2(&["refuse", "1"]), Server::h2(&["plain"]));
    let edge = Edge::new();
    edge.set(1, &table(vec![(h2_pool(1, &[(1, &refuses)]), 1)])).unwrap();
    edge.set(2, &table(vec![(h2_pool(2, &[(2, &other)]), 1)])).unwrap();
    let mut conn = Conn::new(edge.address);
    let body = vec![b'x'; 5_000_000];
    assert_eq!(conn.post("/large", &body).unwrap().text(), "a.test 5000000");
    edge.set(3, &table(vec![(h2_pool(1, &[(1, &refuses)]), 1)])).unwrap();
    // It may have been refused before too much of it was sent; then it is asked again. Never does it come in part.
    let got = Conn::new(edge.address).post("/large", &body);
    let processed = refuses.processed();
    match got.map(|got| got.status) {
        Ok(200) => assert!(processed.len() <= 1, "{processed:?}"),
        Ok(502) => assert_eq!(processed, Vec::<String>::new()),
        // The edge closes a connection whose body nobody reads.
        Err(_) => assert_eq!(processed, Vec::<String>::new()),
        other => panic!("{other:?}"),
    }
}

fn from_http1() {
    let server = Server::h2(&["plain"]);
    let edge = Edge::new();
    edge.set(1, &table(vec![(h2_pool(1, &[(1, &server)]), 1)])).unwrap();
    assert_eq!(get(edge.address, "/x?y").unwrap().text(), "a.test 0");
    assert_eq!(server.lines.recv_timeout(Duration::from_secs(10)).unwrap(), "GET /x?y 0");
    let chunked = "POST /c HTTP/1.1\r\nHost: b.test:8\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    assert_eq!(raw(edge.address, chunked).unwrap().text(), "b.test:8 3");
    let old = raw(edge.address, "GET / HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(old.text(), format!("{} 0", server.address));
    let upgrade = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let got = raw(edge.address, upgrade).unwrap();
    assert_eq!((got.status, got.header("x-kiln-error")), (501, Some("no-upgrade")));
}

fn dead() {
    let (gone, other) = (Server::h2(&["plain"]), Server::h2(&["plain"]));
    let edge = Edge::new();
    edge.set(1, &table(vec![(h2_pool(1, &[(1, &gone), (2, &other)]), 1)])).unwrap();
    for _ in 0..20 {
        assert_eq!(get(edge.address, "/").unwrap().status, 200);
    }
    drop(gone);
    for _ in 0..50 {
        assert_eq!(get(edge.address, "/").unwrap().status, 200);
    }
    edge.wait("it is ejected", |s| s.targets.iter().any(|t| t.ejected && t.instance == instance(1)));
    // An instance of HTTP/1 that is said to speak HTTP/2 answers with nonsense: 502, no hang.
    let wrong = Backend::new("a");
    let pool = Pool { protocol: Protocol::H2c, ..pool(2, &[(3, &wrong)]) };
    edge.set(2, &table(vec![(pool, 1)])).unwrap();
    assert_eq!(get(edge.address, "/").unwrap().status, 502);
}
