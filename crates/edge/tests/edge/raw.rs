//! Raw TCP routes: what passes, what a switch leaves alone, what is cut, and who may have a port.

use crate::Case;
use crate::stage::{Edge, env, instance, pool};
use kiln_edge::client::RouterError;
use kiln_model::route::{Pool, WeightedPool};
use kiln_model::{Millis, RoutePolicy, RouteTable, Target, TcpRoute};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

pub(crate) const CASES: &[Case] = &[
    ("case_12_a_raw_connection_survives_a_flip_and_half_close_passes_both_ways", flip),
    ("raw_bytes_arrive_whole_and_in_order_both_ways_at_once", large),
    ("a_raw_connection_that_ends_with_its_retired_instance_is_a_counted_cut", cut),
    ("a_broken_raw_connection_is_broken_for_the_other_side_too", broken),
    ("a_raw_connection_finds_a_living_instance_or_is_reset_at_once", dead),
    ("weights_hold_for_raw_connections", weights),
    ("a_silent_raw_connection_ends", idle),
    ("a_port_that_is_taken_fails_the_table_and_the_last_one_stays", taken),
    ("a_port_with_two_owners_names_both", two_owners),
    ("a_raw_listener_closes_when_its_route_is_gone_and_comes_back", gone),
    ("raw_routes_survive_a_restart", restart),
    ("a_stalled_reader_costs_bounded_memory", stalled),
];

/// A server of raw connections.
pub(crate) struct Raw {
    pub(crate) address: SocketAddr,
    streams: Arc<Mutex<Vec<Weak<TcpStream>>>>,
    dead: Arc<AtomicBool>,
}

impl Raw {
    pub(crate) fn new(act: impl Fn(&TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (streams, dead) = (Arc::<Mutex<Vec<Weak<TcpStream>>>>::default(), Arc::<AtomicBool>::default());
        let (s, d, act) = (streams.clone(), dead.clone(), Arc::new(act));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if d.load(SeqCst) {
                    return;
                }
                let stream = Arc::new(stream.unwrap());
                s.lock().unwrap().push(Arc::downgrade(&stream));
                let act = act.clone();
                std::thread::spawn(move || act(&stream));
            }
        });
        Self { address, streams, dead }
    }

    /// Answers each line with its name and the line.
    pub(crate) fn lines(name: &'static str) -> Self {
        Self::new(move |mut stream| {
            let mut byte = [0];
            let mut line = vec![];
            while stream.read(&mut byte).is_ok_and(|n| n == 1) {
                line.push(byte[0]);
                if byte[0] == b'\n' {
                    let answer = [name.as_bytes(), b" ", &line].concat();
                    if stream.write_all(&answer).is_err() {
                        return;
                    }
                    line.clear();
                }
            }
            let _ = stream.write_all(b"bye");
        })
    }

    pub(crate) fn kill(&self) {
        self.dead.store(true, SeqCst);
        while TcpStream::connect(self.address).is_ok() {
            std::thread::yield_now();
        }
        let streams = self.streams.lock().unwrap();
        streams.iter().filter_map(Weak::upgrade).for_each(|s| drop(s.shutdown(Shutdown::Both)));
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that is free at this moment.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) fn raw_pool(release: u64, targets: &[(u64, SocketAddr)]) -> Pool {
    let target =
        |(n, a): &(u64, SocketAddr)| Target { instance: instance(*n), address: a.ip(), port: a.port() };
    Pool { targets: targets.iter().map(target).collect(), ..pool(release, &[]) }
}

pub(crate) fn raw_table(port: u16, pools: Vec<(Pool, u32)>) -> RouteTable {
    let weighted =
        pools.iter().enumerate().map(|(pool, (_, weight))| WeightedPool { pool, weight: *weight }).collect();
    let tcp = vec![TcpRoute { port, pools: weighted, policy: RoutePolicy::default() }];
    RouteTable { tcp, pools: pools.into_iter().map(|(p, _)| p).collect(), ..RouteTable::default() }
}

pub(crate) fn open(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Sends a line and reads one.
pub(crate) fn ask(stream: &mut TcpStream, line: &str) -> std::io::Result<String> {
    stream.write_all(format!("{line}\n").as_bytes())?;
    let (mut text, mut byte) = (vec![], [0]);
    while byte[0] != b'\n' {
        stream.read_exact(&mut byte)?;
        text.push(byte[0]);
    }
    Ok(String::from_utf8(text).unwrap().trim_end().to_owned())
}

fn rest(mut stream: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![];
    stream.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn flip() {
    let (old, new) = (Raw::lines("old"), Raw::lines("new"));
    let (edge, port) = (Edge::new(), free_port());
    edge.set(1, &raw_table(port, vec![(raw_pool(1, &[(1, old.address)]), 1)])).unwrap();
    assert_eq!(edge.status().ports, [port]);
    let mut client = open(port);
    assert_eq!(ask(&mut client, "a").unwrap(), "old a");
    edge.set(2, &raw_table(port, vec![(raw_pool(2, &[(2, new.address)]), 1)])).unwrap();
    for n in 0..20 {
        assert_eq!(ask(&mut open(port), "b").unwrap(), "new b", "connection {n}");
    }
    let target = edge.target(1);
    assert!(!target.in_table && target.in_flight == 1, "{target:?}");
    // The client has no more to say, and still hears the rest.
    assert_eq!(ask(&mut client, "c").unwrap(), "old c");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut client).unwrap(), b"bye");
    edge.wait("it ended", |s| s.targets.iter().all(|t| t.in_flight == 0));
    let tally = edge.target(1).tally;
    assert_eq!((tally.requests, tally.connections, tally.cut, tally.abandoned), (1, 1, 0, 0));
    assert_eq!(tally.bytes, ("a\nold a\nc\nold c\nbye".len()) as u64);
    // The other way: the instance has no more to say, and still hears the rest.
    let heard = Arc::new(Mutex::new(vec![]));
    let h = heard.clone();
    let first = Raw::new(move |mut stream| {
        stream.write_all(b"all").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        *h.lock().unwrap() = rest(stream).unwrap();
    });
    edge.set(3, &raw_table(port, vec![(raw_pool(3, &[(3, first.address)]), 1)])).unwrap();
    let mut client = open(port);
    assert_eq!(rest(&mut client).unwrap(), b"all");
    client.write_all(b"late").unwrap();
    drop(client);
    edge.wait("it ended", |s| s.targets.iter().all(|t| t.in_flight == 0));
    edge.wait("the instance heard it", |_| !heard.lock().unwrap().is_empty());
    assert_eq!(*heard.lock().unwrap(), b"late");
    assert_eq!(edge.target(3).tally.cut, 0);
}

/// A stream of bytes that shows what was lost, doubled or moved.
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..length / 8).flat_map(|_| next().to_le_bytes()).collect()
}

fn large() {
    const BYTES: usize = 8 << 20;
    let (down, up) = (Arc::new(pattern(7, BYTES)), Arc::new(pattern(9, BYTES)));
    let sent = down.clone();
    let heard = Arc::new(Mutex::new(vec![]));
    let h = heard.clone();
    let backend = Raw::new(move |mut stream| {
        let mut reader = stream.try_clone().unwrap();
        let h = h.clone();
        let read = std::thread::spawn(move || h.lock().unwrap().push(rest(&mut reader).unwrap()));
        // In pieces of many sizes, so that it is copied and spliced in turn.
        let bytes = &sent;
        let (mut at, mut size) = (0, 1);
        while at < bytes.len() {
            let end = (at + size).min(bytes.len());
            stream.write_all(&bytes[at..end]).unwrap();
            (at, size) = (end, (size * 3) % 200_003 + 1);
        }
        stream.shutdown(Shutdown::Write).unwrap();
        read.join().unwrap();
    });
    let (edge, port) = (Edge::new(), free_port());
    edge.set(1, &raw_table(port, vec![(raw_pool(1, &[(1, backend.address)]), 1)])).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let client = open(port);
                let mut writer = client.try_clone().unwrap();
                let (mut client, up) = (client, up.clone());
                let write = std::thread::spawn(move || {
                    writer.write_all(&up).unwrap();
                    writer.shutdown(Shutdown::Write).unwrap();
                });
                assert!(rest(&mut client).unwrap() == *down, "what came down is not what was sent");
                write.join().unwrap();
            });
        }
    });
    edge.wait("they ended", |s| s.targets[0].tally.requests == 3 && heard.lock().unwrap().len() == 3);
    assert!(heard.lock().unwrap().iter().all(|bytes| *bytes == *up), "what came up is not what was sent");
    let tally = edge.target(1).tally;
    assert_eq!((tally.connections, tally.bytes, tally.cut), (3, 6 * BYTES as u64, 0));
}

fn cut() {
    let (old, new) = (Raw::lines("old"), Raw::lines("new"));
    let (edge, port) = (Edge::new(), free_port());
    edge.set(1, &raw_table(port, vec![(raw_pool(1, &[(1, old.address)]), 1)])).unwrap();
    let mut clients: Vec<TcpStream> = (0..5).map(|_| open(port)).collect();
    clients.iter_mut().for_each(|c| assert_eq!(ask(c, "a").unwrap(), "old a"));
    edge.set(2, &raw_table(port, vec![(raw_pool(2, &[(2, new.address)]), 1)])).unwrap();
    assert_eq!(edge.target(1).in_flight, 5);
    // One ends by itself before the drain limit; with the instance end the others.
    drop(clients.pop());
    edge.wait("one ended", |s| s.targets.iter().any(|t| t.in_flight == 4));
    old.kill();
    assert!(clients.iter_mut().all(|c| ask(c, "b").is_err()));
    drop(clients);
    edge.wait("all ended", |s| s.targets.iter().all(|t| t.in_flight == 0));
    let tally = edge.target(1).tally;
    assert_eq!((tally.connections, tally.cut), (5, 4), "{tally:?}");
    assert_eq!(ask(&mut open(port), "c").unwrap(), "new c");
}

fn broken() {
    let reset = |stream: &TcpStream| socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
    let seen = Arc::new(Mutex::new(vec![]));
    let s = seen.clone();
    let backend = Raw::new(move |mut stream| {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        if byte[0] == b'r' {
            stream.write_all(b"half").unwrap();
            // Only once the client has it: a reset overtakes what is under way.
            stream.read_exact(&mut byte).unwrap();
            reset(stream);
        } else {
            stream.write_all(b"x").unwrap();
            s.lock().unwrap().push(rest(stream).map_err(|e| e.kind()));
        }
    });
    let (edge, port) = (Edge::new(), free_port());
    edge.set(1, &raw_table(port, vec![(raw_pool(1, &[(1, backend.address)]), 1)])).unwrap();
    let mut client = open(port);
    client.write_all(b"r").unwrap();
    client.read_exact(&mut [0; 4]).unwrap();
    client.write_all(b"!").unwrap();
    let end = client.read(&mut [0; 16]);
    assert!(
        end.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset),
        "a cut looks like a clean end"
    );
    let mut client = open(port);
    client.write_all(b"c").unwrap();
    client.read_exact(&mut [0]).unwrap();
    reset(&client);
    drop(client);
    edge.wait("both ended", |s| s.targets[0].tally.requests == 2);
    let tally = edge.target(1).tally;
    assert_eq!((tally.cut, tally.abandoned), (1, 1), "{tally:?}");
    while seen.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
    assert_eq!(*seen.lock().unwrap(), [Err(std::io::ErrorKind::ConnectionReset)]);
}

fn dead() {
    let (a, b) = (Raw::lines("a"), Raw::lines("b"));
    let (edge, port) = (Edge::new(), free_port());
    edge.set(1, &raw_table(port, vec![(raw_pool(1, &[(1, a.address), (2, b.address)]), 1)])).unwrap();
    a.kill();
    for n in 0..50 {
        assert_eq!(ask(&mut open(port), "x").unwrap(), "b x", "connection {n}");
    }
    assert!(edge.target(1).ejected);
    b.kill();
    let end = ask(&mut open(port), "x");
    assert!(end.is_err_and(|e| e.kind() != std::io::ErrorKind::WouldBlock), "it hangs");
    let status = edge.wait("counted", |s| s.tally_of(&env()).requests == 51);
    let tally = status.tally_of(&env());
    assert_eq!((tally.failed, tally.connections), (1, 51), "{tally:?}");
    // A pool without instances.
    edge.set(2, &raw_table(port, vec![(raw_pool(2, &[]), 1)])).unwrap();
    assert!(ask(&mut open(port), "x").is_err());
    edge.wait("counted", |s| s.tally_of(&env()).failed == 2);
}

fn weights() {
    const N: u32 = 600;
    let (a, b) = (Raw::lines("a"), Raw::lines("b"));
    let (edge, port) = (Edge::new(), free_port());
    let pools = vec![(raw_pool(1, &[(1, a.address)]), 75), (raw_pool(2, &[(2, b.address)]), 25)];
    edge.set(1, &raw_table(port, pools)).unwrap();
    let n = (0..N).filter(|_| ask(&mut open(port), "x").unwrap() == "b x").count() as f64;
    let (mean, sigma) = (f64::from(N) * 0.25, (f64::from(N) * 0.25 * 0.75).sqrt());
    assert!((n - mean).abs() < 4.0 * sigma, "{n} of {N} instead of {mean}");
}

fn idle() {
    let backend = Raw::lines("a");
    let (edge, port) = (Edge::new(), free_port());
    let mut table = raw_table(port, vec![(raw_pool(1, &[(1, backend.address)]), 1)]);
    table.tcp[0].policy.idle = Some(Millis(300));
    edge.set(1, &table).unwrap();
    let mut client = open(port);
    assert_eq!(ask(&mut client, "x").unwrap(), "a x");
    let end = client.read(&mut [0; 16]);
    assert!(end.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset), "it does not end");
    let tally = edge.wait("counted", |s| s.targets[0].tally.requests == 1).targets[0].tally;
    assert_eq!((tally.abandoned, tally.cut, tally.failed), (1, 0, 0));
}

fn taken() {
    let backend = Raw::lines("a");
    let (edge, good) = (Edge::new(), free_port());
    let pools = || vec![(raw_pool(1, &[(1, backend.address)]), 1)];
    edge.set(1, &raw_table(good, pools())).unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    for bad in [port, edge.address.port()] {
        let mut both = raw_table(good, pools());
        both.tcp.push(TcpRoute { port: bad, ..both.tcp[0].clone() });
        match edge.set(2, &both) {
            Err(RouterError::Invalid { detail, .. }) => {
                assert!(detail.contains(&format!("`127.0.0.1:{bad}`")), "{detail}");
                assert!(
                    detail.contains("service `web` of `shop/production`") && detail.contains("hint:"),
                    "{detail}"
                );
            }
            other => panic!("{other:?}"),
        }
        let status = edge.status();
        assert_eq!((status.generation.0, status.ports), (1, vec![good]));
        assert_eq!(ask(&mut open(good), "x").unwrap(), "a x");
    }
    drop(other);
    let mut both = raw_table(good, pools());
    both.tcp.push(TcpRoute { port, ..both.tcp[0].clone() });
    edge.set(2, &both).unwrap();
    assert_eq!(ask(&mut open(port), "x").unwrap(), "a x");
}

fn two_owners() {
    let (edge, port) = (Edge::new(), free_port());
    let mut both = raw_table(port, vec![(raw_pool(1, &[]), 1)]);
    let other = kiln_model::EnvRef::try_from("blog/staging".to_owned()).unwrap();
    both.pools.push(Pool { env: other, ..raw_pool(1, &[]) });
    both.tcp.push(TcpRoute { pools: vec![WeightedPool { pool: 1, weight: 1 }], ..both.tcp[0].clone() });
    match edge.set(1, &both) {
        Err(RouterError::Invalid { detail, .. }) => {
            let owners = "service `web` of `shop/production`, and of service `web` of `blog/staging`";
            assert!(detail.contains(owners) && detail.contains(&port.to_string()), "{detail}");
        }
        other => panic!("{other:?}"),
    }
}

fn gone() {
    let backend = Raw::lines("a");
    let (edge, port) = (Edge::new(), free_port());
    let with = raw_table(port, vec![(raw_pool(1, &[(1, backend.address)]), 1)]);
    let without = RouteTable { tcp: vec![], ..with.clone() };
    for n in 0..20 {
        edge.set(2 * n + 1, &with).unwrap();
        let mut client = open(port);
        assert_eq!(ask(&mut client, "x").unwrap(), "a x");
        edge.set(2 * n + 2, &without).unwrap();
        assert_eq!(edge.status().ports, [0; 0]);
        // Every other time at once: its own listener of before may be closing still.
        if n % 2 == 0 {
            edge.wait("closed", |_| TcpStream::connect(("127.0.0.1", port)).is_err());
        }
        // Who was there stays.
        assert_eq!(ask(&mut client, "y").unwrap(), "a y");
    }
}

fn restart() {
    let backend = Raw::lines("a");
    let (mut edge, port) = (Edge::new(), free_port());
    edge.set(1, &raw_table(port, vec![(raw_pool(1, &[(1, backend.address)]), 1)])).unwrap();
    edge.kill();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    edge.start();
    assert_eq!(ask(&mut open(port), "x").unwrap(), "a x");
    // While it was away somebody took one of its ports: the other one works, and this one as soon as it is free.
    let second = free_port();
    let mut both = raw_table(port, vec![(raw_pool(1, &[(1, backend.address)]), 1)]);
    both.tcp.push(TcpRoute { port: second, ..both.tcp[0].clone() });
    edge.set(2, &both).unwrap();
    edge.kill();
    let other = TcpListener::bind(("127.0.0.1", port)).unwrap();
    edge.start();
    assert_eq!((ask(&mut open(second), "x").unwrap().as_str(), edge.status().ports), ("a x", vec![second]));
    drop(other);
    edge.wait("it listens", |s| s.ports.len() == 2);
    assert_eq!(ask(&mut open(port), "y").unwrap(), "a y");
}

fn stalled() {
    let backend = Raw::new(|mut stream| {
        let bytes = vec![7; 1 << 20];
        while stream.write_all(&bytes).is_ok() {}
    });
    let (edge, port) = (Edge::new(), free_port());
    edge.set(1, &raw_table(port, vec![(raw_pool(1, &[(1, backend.address)]), 1)])).unwrap();
    let pid = edge.child.as_ref().unwrap().id();
    let rss = || {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = text.lines().find(|l| l.starts_with("VmRSS:")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = rss();
    // Each takes a little and then nothing.
    let stall = |_| {
        let mut client = open(port);
        client.read_exact(&mut vec![0; 200_000]).unwrap();
        client
    };
    let mut clients: Vec<TcpStream> = (0..60).map(stall).collect();
    let grown = rss().saturating_sub(before);
    assert!(grown < 60 * 96 + 2048, "{grown} KiB for 60 stalled connections");
    // And they all go on.
    for client in &mut clients {
        client.read_exact(&mut vec![0; 4 << 20]).unwrap();
    }
}
