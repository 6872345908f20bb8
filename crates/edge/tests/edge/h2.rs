//! HTTP/2 with clients that were not written here: curl, h2load, Python's h2, and attacks made of bytes.

use crate::Case;
use crate::backend::{Asked, Backend, answer, echo_name};
use crate::faults::again_with;
use crate::programs::{Script, certificate, curl, done, script};
use crate::stage::{Edge, pool, table};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{ChildStdin, ChildStdout};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

pub(crate) const CASES: &[Case] = &[
    ("new_streams_after_a_switch_go_to_the_new_release_on_the_same_connection", switch),
    ("h2load_loses_nothing_while_tables_are_switched", load),
    ("a_stopping_edge_says_goaway_and_ends_the_streams_that_it_has", goaway),
    ("a_stream_whose_client_takes_nothing_is_reset_and_the_others_go_on", stalled),
    ("cancelled_streams_are_counted_and_free_the_instance", cancelled),
    ("heads_of_http2_are_heads_of_http1_behind_the_edge", heads),
    ("requests_that_are_wrong_in_http2_are_refused_and_never_arrive", wrong),
    ("floods_of_http2_end_their_connection_or_cost_nothing", floods),
    ("bodies_stream_both_ways_over_http2", bodies),
    ("answers_without_bodies_and_interim_ones_are_framed_right_in_http2", framing),
];

/// `h2_client.py`, driven.
pub(crate) struct Driven {
    _script: Script,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Driven {
    pub(crate) fn new(address: SocketAddr, name: &str, window: &str) -> Self {
        let mut script = Script::start("h2_client", &[&address.to_string(), name, window]);
        let input = script.0.stdin.take().unwrap();
        let output = BufReader::new(script.0.stdout.take().unwrap());
        Self { _script: script, input, output }
    }

    fn order(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    fn told(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    pub(crate) fn say(&mut self, line: &str) -> String {
        self.order(line);
        self.told()
    }

    /// Opens a stream and returns its number.
    pub(crate) fn start(&mut self, path: &str) -> String {
        self.say(&format!("start {path}")).trim_start_matches("stream ").to_owned()
    }

    pub(crate) fn get(&mut self, path: &str) -> String {
        let stream = self.start(path);
        self.say(&format!("finish {stream}"))
    }
}

/// Lets requests to `/slow` wait until it is opened.
#[derive(Clone, Default)]
pub(crate) struct Door(Arc<(Mutex<bool>, Condvar)>);

impl Door {
    pub(crate) fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn wait(&self) {
        let guard = self.0.0.lock().unwrap();
        drop(self.0.1.wait_timeout_while(guard, Duration::from_secs(20), |open| !*open).unwrap());
    }
}

/// Answers with its name; `/slow` only once the door is open, `/big` with 1 MiB.
pub(crate) fn backend(name: &str, door: &Door) -> Backend {
    let door = door.clone();
    Backend::with(name, move |name, asked: &Asked, stream: &mut TcpStream| match asked.path.as_str() {
        "/slow" => {
            door.wait();
            answer(stream, 200, name.as_bytes())
        }
        "/big" => answer(stream, 200, &vec![b'b'; 1 << 20]),
        "/echo" => answer(stream, 200, &asked.body),
        _ => echo_name(name, asked, stream),
    })
}

fn secure(backend: &Backend) -> Edge {
    let edge = Edge::secure(|dir| certificate(dir, "shop", &["shop.test"]));
    edge.set(1, &table(vec![(pool(1, &[(1, backend)]), 1)])).unwrap();
    edge
}

fn switch() {
    let door = Door::default();
    let (old, new) = (backend("old", &door), backend("new", &door));
    let edge = secure(&old);
    for (address, name) in [(edge.tls.unwrap(), "shop.test"), (edge.address, "-")] {
        let generation = edge.status().generation.0;
        edge.set(generation + 1, &table(vec![(pool(1, &[(1, &old)]), 1)])).unwrap();
        let mut client = Driven::new(address, name, "65535");
        assert_eq!(client.get("/"), "200 1 old");
        let slow = client.start("/slow");
        edge.wait("it is in flight", |s| s.targets.iter().any(|t| t.in_flight == 1));
        edge.set(generation + 2, &table(vec![(pool(2, &[(2, &new)]), 1)])).unwrap();
        for _ in 0..20 {
            assert_eq!(client.get("/"), "200 2 new", "on the connection from before the switch");
        }
        door.open();
        assert_eq!(client.say(&format!("finish {slow}")), "200 1 old");
        edge.wait("nothing is in flight", |s| s.targets.iter().all(|t| t.in_flight == 0));
        *door.0.0.lock().unwrap() = false;
    }
    assert_eq!(edge.tally().cut + edge.tally().failed + edge.tally().abandoned, 0);
}

fn load() {
    let door = Door::default();
    let backends = [backend("a", &door), backend("b", &door)];
    let edge = secure(&backends[0]);
    let before = edge.tally().requests;
    let url = format!("https://shop.test:{}/", edge.tls.unwrap().port());
    let to = format!("--connect-to={}", edge.tls.unwrap());
    let running =
        std::thread::spawn(move || done("h2load", &["-n", "20000", "-c", "4", "-m", "16", &to, &url]));
    let mut generation = 1;
    while !running.is_finished() {
        generation += 1;
        let release = generation % 2;
        let own = pool(release + 1, &[(release + 1, &backends[release as usize])]);
        edge.set(generation, &table(vec![(own, 1)])).unwrap();
    }
    let said = running.join().unwrap();
    assert!(said.contains("20000 succeeded, 0 failed, 0 errored, 0 timeout"), "{said}");
    assert!(said.contains("status codes: 20000 2xx"), "{said}");
    assert!(generation > 10, "{generation}");
    assert_eq!(edge.tally().requests - before, 20000);
}

fn goaway() {
    let door = Door::default();
    let backend = backend("a", &door);
    let edge = secure(&backend);
    let mut clients =
        [Driven::new(edge.tls.unwrap(), "shop.test", "65535"), Driven::new(edge.address, "-", "65535")];
    let streams: Vec<String> = clients.iter_mut().map(|client| client.start("/slow")).collect();
    edge.wait("both are in flight", |s| s.targets.iter().any(|t| t.in_flight == 2));
    edge.stop();
    // The first GOAWAY allows every stream, so that none that is on its way is refused; the last one names the last stream.
    for client in &mut clients {
        assert_eq!(client.get("/"), "200 1 a", "a client that has not heard yet");
    }
    door.open();
    for (client, stream) in clients.iter_mut().zip(&streams) {
        assert_eq!(client.say(&format!("finish {stream}")), "200 1 a");
        let end = client.say("goodbye");
        assert!(end.starts_with("goaway 0 "), "{end}");
    }
}

fn stalled() {
    let door = Door::default();
    let backend = backend("a", &door);
    let mut edge = secure(&backend);
    again_with(&mut edge, "TEST_STALL_TIMEOUT_MS", "600");
    for (address, name) in [(edge.tls.unwrap(), "shop.test"), (edge.address, "-")] {
        let mut client = Driven::new(address, name, "10");
        let big = client.start("/big");
        assert_eq!(client.get("/"), "200 1 a", "ten bytes are enough for it");
        assert_eq!(client.say(&format!("finish {big}")), "reset 8");
        assert_eq!(client.get("/"), "200 1 a", "the connection goes on");
    }
    edge.wait("nothing is in flight", |s| s.targets.iter().all(|t| t.in_flight == 0));
    assert_eq!(edge.tally().abandoned, 2);
    // An instance that thinks for longer than that is not stalled by its client.
    let mut client = Driven::new(edge.address, "-", "10");
    let slow = client.start("/slow");
    std::thread::sleep(Duration::from_millis(1200));
    door.open();
    assert_eq!(client.say(&format!("finish {slow}")), "200 1 a");
}

fn cancelled() {
    let door = Door::default();
    let backend = backend("a", &door);
    let edge = secure(&backend);
    let mut client = Driven::new(edge.tls.unwrap(), "shop.test", "65535");
    let slow = client.start("/slow");
    edge.wait("it is in flight", |s| s.targets.iter().any(|t| t.in_flight == 1));
    assert_eq!(client.say(&format!("cancel {slow}")), "cancelled");
    edge.wait("it is counted", |s| s.targets.iter().any(|t| t.in_flight == 0 && t.tally.abandoned == 1));
    door.open();
    assert_eq!(client.get("/"), "200 1 a");
}

fn heads() {
    let backend = Backend::new("a");
    let edge = secure(&backend);
    let mut client = Driven::new(edge.tls.unwrap(), "shop.test", "65535");
    let stream = client
        .say("start /x?y cookie=a=1 cookie=b=2 x-forwarded-for=6.6.6.6 x-request-id=forged te=trailers");
    let stream = stream.trim_start_matches("stream ").to_owned();
    assert_eq!(client.say(&format!("finish {stream}")), "200 1 a");
    let asked = backend.asked.lock().unwrap()[0].clone();
    assert_eq!((asked.method.as_str(), asked.path.as_str()), ("GET", "/x?y"));
    assert_eq!(asked.header("host"), ["shop.test"]);
    assert_eq!(asked.header("cookie"), ["a=1; b=2"]);
    assert_eq!(asked.header("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(asked.header("x-forwarded-host"), ["shop.test"]);
    assert_eq!(asked.header("x-request-id").len(), 1);
    assert_ne!(asked.header("x-request-id"), ["forged"]);
    assert_eq!(asked.header("te"), ["trailers"]);
}

fn wrong() {
    let backend = Backend::new("a");
    let edge = Edge::with(pool(1, &[(1, &backend)]));
    let address = edge.address.to_string();
    assert_eq!(script("h2_attack", &[&address, "one_at_a_time"]).trim(), "status 200 alive");
    for kind in [
        "connection_field",
        "transfer_encoding",
        "upper_case",
        "line_break_in_value",
        "line_break_in_name",
        "line_break_in_path",
        "space_in_path",
        "two_hosts",
        "two_lengths",
        "userinfo",
        "pseudo_behind",
        "no_path",
        "no_authority",
        "two_paths",
        "connect",
        "trace",
        "te",
        "length_too_small",
        "length_too_large",
    ] {
        let said = script("h2_attack", &[&address, kind]);
        println!("     {kind}: {}", said.trim());
        let refused =
            ["reset", "goaway", "closed", "status 400", "status 405"].iter().any(|w| said.contains(w));
        assert!(refused && !said.contains("status 200"), "{kind}: {said}");
    }
    let asked = backend.asked.lock().unwrap().clone();
    for request in &asked {
        assert!(request.header("x-injected").is_empty() && !request.path.contains("injected"), "{request:?}");
    }
}

/// KiB that a process has in memory.
pub(crate) fn resident(edge: &Edge) -> u64 {
    let pid = edge.child.as_ref().unwrap().id();
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn floods() {
    let door = Door::default();
    let backend = backend("a", &door);
    let mut edge = Edge::with(pool(1, &[(1, &backend)]));
    again_with(&mut edge, "TEST_STALL_TIMEOUT_MS", "600");
    let address = edge.address.to_string();
    let mut client = Driven::new(edge.address, "-", "65535");
    assert_eq!(client.get("/"), "200 1 a");
    let before = resident(&edge);
    for (kind, ends) in [
        ("rapid_reset", &["goaway 11", "closed"][..]),
        ("continuation", &["goaway 11", "closed"]),
        ("empty_continuation", &["goaway 11", "closed"]),
        ("header_list", &["status 431 alive", "reset", "goaway 11", "closed"]),
        ("hpack_bomb", &["status 431 alive", "reset", "goaway 11", "closed"]),
        ("pings", &["alive", "goaway 11", "closed"]),
        ("settings", &["alive", "goaway 11", "closed"]),
        ("empty_data", &["goaway 11", "alive", "closed"]),
        ("zero_window", &["reset 8 alive", "reset 7"]),
        ("too_many_streams", &["reset 7"]),
        ("window_overflow", &["goaway 3", "closed"]),
    ] {
        let said = script("h2_attack", &[&address, kind]);
        let grown = resident(&edge).saturating_sub(before);
        println!("     {kind}: {}; {grown} KiB more", said.trim());
        assert!(ends.iter().any(|end| said.contains(end)), "{kind}: {said}");
        assert!(grown < 64 * 1024, "{kind}: {grown} KiB more in memory");
        // Everybody else is served, on old connections and new ones.
        assert_eq!(client.get("/"), "200 1 a", "{kind}");
        assert_eq!(crate::client::get(edge.address, "/").unwrap().status, 200, "{kind}");
    }
    door.open();
    edge.wait("nothing is in flight", |s| s.targets.iter().all(|t| t.in_flight == 0));
}

fn bodies() {
    let door = Door::default();
    let backend = backend("a", &door);
    let edge = secure(&backend);
    let trust = edge.dir.path().join("certificates/shop.crt");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let body: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    file.write_all(&body).unwrap();
    let data = format!("@{}", file.path().display());
    let got = curl(edge.tls.unwrap(), "shop.test", "/echo", &trust, &["--http2", "--data-binary", &data]);
    assert!(got.stdout == body, "{} bytes came back", got.stdout.len());
    let got = curl(edge.tls.unwrap(), "shop.test", "/big", &trust, &["--http2"]);
    assert_eq!(got.stdout.len(), 1 << 20);
    let got =
        curl(edge.tls.unwrap(), "shop.test", "/", &trust, &["--http2", "--head", "-w", "%{http_version}"]);
    let mut said = String::new();
    got.stdout.as_slice().read_to_string(&mut said).unwrap();
    assert!(said.starts_with("HTTP/2 200") && said.ends_with('2'), "{said}");
}

fn framing() {
    let backend = Backend::with("a", |_, asked, stream| {
        let bytes: &[u8] = match asked.path.as_str() {
            "/204" => b"HTTP/1.1 204 X\r\n\r\n",
            "/304" => b"HTTP/1.1 304 X\r\nContent-Length: 5\r\n\r\n",
            "/103" => b"HTTP/1.1 103 X\r\nLink: </x>\r\n\r\nHTTP/1.1 200 X\r\nContent-Length: 2\r\n\r\nok",
            "/chunked" => b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\nConnection: close, x-own\r\nX-Own: 1\r\nKeep-Alive: 5\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "/until-close" => b"HTTP/1.1 200 X\r\n\r\nok",
            "/cut" => b"HTTP/1.1 200 X\r\nContent-Length: 5\r\n\r\nok",
            _ => b"HTTP/1.1 200 X\r\nContent-Length: 2\r\n\r\nok",
        };
        stream.write_all(bytes).is_ok()
            && !["/chunked", "/until-close", "/cut"].contains(&asked.path.as_str())
    });
    let edge = secure(&backend);
    let mut client = Driven::new(edge.tls.unwrap(), "shop.test", "65535");
    for (path, told) in [
        ("/204", "204 1 -"),
        ("/304", "304 1 -"),
        ("/103", "200 1 ok"),
        ("/chunked", "200 1 ok"),
        ("/until-close", "200 1 ok"),
        // A cut answer is never a clean end, and costs the connection nothing.
        ("/cut", "reset 2"),
        ("/", "200 1 ok"),
    ] {
        assert_eq!(client.get(path), told, "{path}");
    }
    assert_eq!(edge.tally().cut, 1);
}
