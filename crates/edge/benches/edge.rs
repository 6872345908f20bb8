//! The edge beside haproxy and nginx in the same run: alternating rounds of wrk or h2load, ratios of each round, CPU per request from the
//! kernel's books. Started by `bench/edge` in a network namespace of its own. This program is also the edge that it measures.

#[path = "edge/peers.rs"]
mod peers;
#[path = "edge/report.rs"]
mod report;

use kiln_edge::EdgeConfig;
use peers::{Kind, Peer, Setup};
use report::Round;
use std::process::{Command, ExitCode};

/// As in the program that it measures.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// One comparison.
struct Scenario {
    name: &'static str,
    setup: Setup,
    path: &'static str,
    /// Connections of the client.
    connections: u32,
    client: Client,
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Client {
    /// HTTP/1.1, kept alive.
    Wrk,
    /// HTTP/1.1, a connection and so a handshake for each request.
    WrkClose,
    /// HTTP/2, 16 requests at a time on each connection.
    H2load,
}

const PLAIN: Setup = Setup { threads: 1, log: true, raw: false, tls: false };
const TLS: Setup = Setup { tls: true, ..PLAIN };
/// A raw TCP route, beside haproxy in its TCP mode with `option splice-auto`.
const RAW: Setup = Setup { threads: 1, log: false, raw: true, tls: false };

const SCENARIOS: &[Scenario] = &[
    Scenario { name: "small", setup: PLAIN, path: "/small", connections: 64, client: Client::Wrk },
    Scenario {
        name: "small-unlogged",
        setup: Setup { log: false, ..PLAIN },
        path: "/small",
        connections: 64,
        client: Client::Wrk,
    },
    Scenario {
        name: "small-2-cores",
        setup: Setup { threads: 2, ..PLAIN },
        path: "/small",
        connections: 64,
        client: Client::Wrk,
    },
    Scenario { name: "10k", setup: PLAIN, path: "/10k", connections: 64, client: Client::Wrk },
    Scenario { name: "1m", setup: PLAIN, path: "/1m", connections: 16, client: Client::Wrk },
    Scenario { name: "tcp-small", setup: RAW, path: "/small", connections: 64, client: Client::Wrk },
    Scenario { name: "tcp-1m", setup: RAW, path: "/1m", connections: 16, client: Client::Wrk },
    Scenario { name: "tls", setup: TLS, path: "/small", connections: 64, client: Client::Wrk },
    Scenario { name: "handshakes", setup: TLS, path: "/small", connections: 16, client: Client::WrkClose },
    Scenario { name: "h2", setup: TLS, path: "/small", connections: 8, client: Client::H2load },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == "edge") {
        return edge(&args[1..]);
    }
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().expect("a number in the environment"))
    };
    let rounds = number("KILN_BENCH_ROUNDS", 7);
    let seconds = number("KILN_BENCH_SECONDS", 3);
    let words: Vec<&String> = args.iter().filter(|a| !a.starts_with('-')).collect();
    let wanted = |s: &&Scenario| words.is_empty() || words.iter().any(|w| s.name == w.as_str());
    let dir = tempfile::tempdir().expect("a folder");
    let backend = peers::backend(dir.path());
    for scenario in SCENARIOS.iter().filter(wanted) {
        compare(scenario, dir.path(), &backend, rounds, seconds);
    }
    if words.is_empty() || words.iter().any(|w| *w == "idle") {
        idle(dir.path(), &backend);
    }
    ExitCode::SUCCESS
}

fn compare(scenario: &Scenario, dir: &std::path::Path, backend: &peers::Backend, rounds: u64, seconds: u64) {
    // Debian's nginx has no TCP without a module.
    let kinds = [Kind::Haproxy, Kind::Nginx, Kind::Edge];
    let kinds = kinds.into_iter().filter(|kind| !(scenario.setup.raw && *kind == Kind::Nginx));
    let all: Vec<Peer> = kinds.map(|kind| Peer::start(kind, scenario.setup, dir, backend)).collect();
    let mut results: Vec<Vec<Round>> = vec![vec![]; all.len()];
    // The first round fills caches and pools.
    for n in 0..=rounds {
        // Another one begins each time: what a neighbour on this machine does hits all alike.
        for k in 0..all.len() {
            let at = (k + n as usize) % all.len();
            let round = load(scenario, &all[at], if n == 0 { 1 } else { seconds });
            if n > 0 {
                results[at].push(round);
            }
        }
    }
    report::print(scenario.name, &all.iter().map(|p| p.kind.name()).collect::<Vec<_>>(), &results);
}

fn load(scenario: &Scenario, peer: &Peer, seconds: u64) -> Round {
    let before = peer.cpu_ns();
    let scheme = if scenario.setup.tls { "https" } else { "http" };
    // wrk sends the host of its URL as the name, for which the certificate of all three is.
    let host = format!("localhost:{}", peer.address.port());
    let url = format!("{scheme}://{host}{}", scenario.path);
    let (connections, duration) = (format!("-c{}", scenario.connections), format!("-d{seconds}s"));
    let wrk = ["-t1", "--latency", &connections, &duration];
    let output = match scenario.client {
        Client::Wrk => Command::new("wrk").args(wrk).arg(&url).output(),
        Client::WrkClose => Command::new("wrk").args(wrk).args(["-H", "Connection: close", &url]).output(),
        Client::H2load => {
            let duration = seconds.to_string();
            let to = format!("--connect-to={}", peer.address);
            Command::new("h2load").args([&connections, "-m16", "-D", &duration, &to, &url]).output()
        }
    };
    let output = output.expect("the client (see bench/edge)");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut round = match scenario.client {
        Client::Wrk | Client::WrkClose => report::of_wrk(&text),
        Client::H2load => report::of_h2load(&text),
    };
    round.cpu_us = (peer.cpu_ns() - before) as f64 / 1e3 / round.requests.max(1) as f64;
    round
}

/// Memory of kept-alive connections that idle after one request each.
fn idle(dir: &std::path::Path, backend: &peers::Backend) {
    use std::io::{Read, Write};
    const N: usize = 4000;
    for kind in [Kind::Haproxy, Kind::Nginx, Kind::Edge] {
        let peer = Peer::start(kind, PLAIN, dir, backend);
        let ask = || {
            let mut stream = std::net::TcpStream::connect(peer.address).expect("connect");
            stream.write_all(b"GET /small HTTP/1.1\r\nHost: a.test\r\n\r\n").expect("write");
            assert!(stream.read(&mut [0; 4096]).expect("read") > 0, "{kind:?} answers");
            stream
        };
        drop(ask());
        let before = peer.rss_kib();
        let all: Vec<_> = (0..N).map(|_| ask()).collect();
        println!("idle connection, {}: {:.1} KiB", kind.name(), (peer.rss_kib() - before) as f64 / N as f64);
        drop(all);
    }
}

fn edge(args: &[String]) -> ExitCode {
    let values =
        |name: &str| -> Vec<&String> { args.windows(2).filter(|w| w[0] == name).map(|w| &w[1]).collect() };
    let addresses = |name| values(name).iter().map(|a| a.parse().expect("an address")).collect();
    let listen = addresses("--listen");
    let mut config = EdgeConfig::new(values("--dir")[0], listen, "bench");
    config.listen_tls = addresses("--listen-tls");
    config.certificates = values("--certificates").first().map(Into::into);
    config.threads = values("--threads").first().map(|text| text.parse().expect("a number"));
    config.access_log = args.iter().any(|a| a == "--access-log");
    match kiln_edge::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}
