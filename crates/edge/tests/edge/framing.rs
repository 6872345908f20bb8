//! Where one HTTP/1 message ends and the next begins: the edge beside haproxy, nginx and hyper, on messages that were made to be
//! read in two ways, and on mutations of good ones by the thousand.

use crate::Case;
use crate::backend::Backend;
use crate::proxy::{Other, start};
use crate::raw::free_port;
use crate::stage::{Edge, pool};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

pub(crate) const CASES: &[Case] = &[
    ("case_31_smuggling_beside_haproxy_and_nginx", matrix),
    ("framing_is_read_as_hyper_and_nginx_read_it", fuzz),
];

/// A request as it arrived: method, target, body.
type Arrived = (String, String, Vec<u8>);

/// All but what follows every message.
fn arrived(backend: &Backend) -> Vec<Arrived> {
    let mut asked = backend.asked.lock().unwrap();
    let all = asked.drain(..).map(|one| (one.method, one.path, one.body));
    all.filter(|(method, target, _)| (method.as_str(), target.as_str()) != ("GET", "/end")).collect()
}

/// Follows every message, so that its end is seen by what becomes of this.
const END: &str = "GET /end HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

/// How long an answer may keep a client waiting that has said everything, until it hangs up. A message whose end is missing ends by
/// that.
const PATIENCE: Duration = Duration::from_millis(30);

/// Sends bytes and [`END`], and reads to the end; the statuses of what came back, as far as they can be told.
fn exchange(address: SocketAddr, bytes: &[u8]) -> Vec<u16> {
    let mut stream = TcpStream::connect(address).unwrap();
    // Whoever refuses early may hear no more.
    let _ = stream.write_all(&[bytes, END.as_bytes()].concat());
    let (mut all, mut buffer) = (vec![], [0; 4096]);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut hung_up = false;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => all.extend(&buffer[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                assert!(!hung_up, "{address} neither answers nor ends: {:?}", String::from_utf8_lossy(bytes));
                let _ = stream.shutdown(Shutdown::Write);
                stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                hung_up = true;
            }
            Err(_) => break,
        }
    }
    let text = String::from_utf8_lossy(&all);
    let heads = text.split("HTTP/1.").skip(1);
    heads.filter_map(|head| head.get(2..5)?.parse().ok()).filter(|status| *status >= 200).collect()
}

fn haproxy(dir: &Path, backend: &Backend) -> (Other, SocketAddr) {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let text = format!(
        "global\n maxconn 100\ndefaults\n mode http\n timeout connect 5s\n timeout client 3s\n timeout server 3s\n \
         timeout http-request 3s\nlisten web\n bind {address}\n server b {}\n",
        backend.address
    );
    (start("/usr/sbin/haproxy", &dir.join("haproxy.cfg"), &text, &["-db", "-f"], address), address)
}

fn nginx(dir: &Path, backend: &Backend) -> (Other, SocketAddr) {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let at = dir.display();
    let text = format!(
        "daemon off; user root; worker_processes 1; pid {at}/pid; error_log {at}/error.log crit; events {{ }}
        http {{ client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f;
        uwsgi_temp_path {at}/u; scgi_temp_path {at}/s; access_log off; client_header_timeout 3s; client_body_timeout 3s;
        upstream u {{ server {}; keepalive 4; }}
        server {{ listen {address}; location / {{ proxy_pass http://u; proxy_http_version 1.1;
        proxy_request_buffering off; proxy_set_header Connection \"\"; }} }} }}",
        backend.address
    );
    (start("/usr/sbin/nginx", &dir.join("nginx.conf"), &text, &["-c"], address), address)
}

/// Named messages that somebody, somewhere, has read in two ways.
const AMBIGUOUS: &[(&str, &str)] = &[
    ("good, a length", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"),
    (
        "good, chunks",
        "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "good, trailers",
        "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
    ),
    (
        "length and chunks",
        "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    ),
    (
        "chunks and length",
        "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\nG",
    ),
    ("two lengths", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhelloG"),
    (
        "two equal lengths",
        "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    ),
    ("a list of lengths", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello"),
    ("a plus", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello"),
    ("a minus", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\nhello"),
    ("hexadecimal", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello"),
    ("a length with an underscore", "POST /x HTTP/1.1\r\nHost: a\r\nContent_Length: 5\r\n\r\nhello"),
    ("an empty length", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\nhello"),
    (
        "too large a length",
        "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551621\r\n\r\nhello",
    ),
    ("blank before the colon", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length : 5\r\n\r\nhello"),
    ("blank before the name", "POST /x HTTP/1.1\r\nHost: a\r\n Content-Length: 5\r\n\r\nhello"),
    ("folded", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n 5\r\n\r\nhello"),
    ("folded coding", "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    (
        "two codings",
        "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    ("chunked twice", "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    (
        "identity",
        "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello",
    ),
    ("xchunked", "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    (
        "chunked with a tab",
        "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\tchunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "chunked in capitals",
        "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ),
    ("chunked in quotes", "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n"),
    ("a vertical tab", "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    ("a NUL in a value", "GET /x HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"),
    ("a NUL in a name", "GET /x HTTP/1.1\r\nHost: a\r\nX\0: a\r\n\r\n"),
    ("a bare CR in a value", "GET /x HTTP/1.1\r\nHost: a\r\nX: a\rY: b\r\n\r\n"),
    ("bare LF", "POST /x HTTP/1.1\nHost: a\nContent-Length: 5\n\nhello"),
    ("a bare LF in the head", "POST /x HTTP/1.1\r\nHost: a\r\nX: y\nContent-Length: 5\r\n\r\nhello"),
    (
        "chunk extension",
        "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "chunk ends by LF",
        "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
    ),
    (
        "chunk extension with a bare LF",
        "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;\nhello\r\n0\r\n\r\n",
    ),
    (
        "chunk size with a sign",
        "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "chunk size with 0x",
        "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "chunk longer than told",
        "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "chunk size too large",
        "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "chunks in 1.0",
        "POST /x HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ),
    ("two hosts", "GET /x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    ("no host", "GET /x HTTP/1.1\r\n\r\n"),
    ("another host in the target", "GET http://b/x HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("a host with a user", "GET /x HTTP/1.1\r\nHost: a@b\r\n\r\n"),
    ("a host with a path", "GET /x HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    ("a blank in the target", "GET /x y HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("two blanks", "GET  /x HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("a tab in the request line", "GET\t/x HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("HTTP/1.2", "GET /x HTTP/1.2\r\nHost: a\r\n\r\n"),
    ("HTTP/9.9", "GET /x HTTP/9.9\r\nHost: a\r\n\r\n"),
    ("HTTP/0.9", "GET /x\r\n\r\n"),
    ("CONNECT", "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"),
    ("a field without a colon", "GET /x HTTP/1.1\r\nHost: a\r\nNonsense\r\n\r\n"),
    ("a field without a name", "GET /x HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n"),
];

fn matrix() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("nginx")).unwrap();
    let backends = ["kiln", "haproxy", "nginx"].map(Backend::new);
    let edge = Edge::with(pool(1, &[(1, &backends[0])]));
    let (_haproxy, haproxy) = haproxy(dir.path(), &backends[1]);
    let (_nginx, nginx) = nginx(&dir.path().join("nginx"), &backends[2]);
    let addresses = [edge.address, haproxy, nginx];
    backends.iter().for_each(|backend| drop(arrived(backend)));
    let mut looser = vec![];
    println!("{:<32} kiln            haproxy         nginx", "message");
    for (name, bytes) in AMBIGUOUS {
        let seen = [0, 1, 2].map(|n| {
            let statuses = exchange(addresses[n], bytes.as_bytes());
            (statuses.first().copied().unwrap_or(0), arrived(&backends[n]))
        });
        let cell = |(status, arrived): &(u16, Vec<Arrived>)| {
            let bodies: Vec<_> = arrived.iter().map(|(_, _, body)| String::from_utf8_lossy(body)).collect();
            format!("{status} {bodies:?}")
        };
        println!("{name:<32} {:<15} {:<15} {}", cell(&seen[0]), cell(&seen[1]), cell(&seen[2]));
        let [(status, own), others @ ..] = &seen;
        if name.starts_with("good") {
            let whole = [("POST".to_owned(), "/x".to_owned(), b"hello".to_vec())];
            assert_eq!((*status, &own[..]), (200, &whole[..]), "{name}");
            continue;
        }
        assert!(!own.is_empty() || *status == 0 || (400..=505).contains(status), "{name}: {status}");
        if own.len() > others.iter().map(|(_, others)| others.len()).max().unwrap_or(0) {
            looser.push(*name);
        }
        for (_, others) in others {
            let same = own.iter().zip(others).all(|(own, other)| own == other);
            assert!(same, "{name}: {own:?}, and {others:?} for others");
        }
    }
    assert!(looser.is_empty(), "only kiln lets these through: {looser:?}");
}

/// How hyper reads a stream of requests.
async fn as_hyper_reads(bytes: &[u8]) -> Vec<Arrived> {
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let seen = Arc::<Mutex<Vec<Arrived>>>::default();
    let all = seen.clone();
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let all = all.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes().to_vec();
            let target = head.uri.path_and_query().map_or("*".to_owned(), ToString::to_string);
            all.lock().unwrap().push((head.method.to_string(), target, body));
            Ok::<_, hyper::Error>(hyper::Response::new(Full::new(Bytes::from_static(b"ok"))))
        }
    });
    let served = async {
        let timer = TokioTimer::new();
        let served = hyper::server::conn::http1::Builder::new()
            .timer(timer)
            .serve_connection(TokioIo::new(server), service);
        let _ = tokio::time::timeout(Duration::from_secs(5), served).await;
    };
    let spoken = async {
        let _ = client.write_all(&[bytes, END.as_bytes()].concat()).await;
        let mut answers = vec![];
        let heard = tokio::io::AsyncReadExt::read_to_end(&mut client, &mut answers);
        if tokio::time::timeout(PATIENCE, heard).await.is_err() {
            let _ = client.shutdown().await;
            let _ = tokio::io::AsyncReadExt::read_to_end(&mut client, &mut answers).await;
        }
    };
    tokio::join!(served, spoken);
    let mut all = std::mem::take(&mut *seen.lock().unwrap());
    all.retain(|(method, target, _)| (method.as_str(), target.as_str()) != ("GET", "/end"));
    all
}

/// Splitmix64: the same numbers for the same seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }
}

const PIECES: &[&str] = &[
    "\r\n",
    "\n",
    "\r",
    " ",
    "\t",
    ":",
    ";",
    "0",
    "5",
    "a",
    "_",
    "+",
    "-",
    ",",
    "\"",
    "\0",
    "\x0b",
    "\r\n ",
    "HTTP/1.0",
    "HTTP/1.1",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "Content-Length:5\r\n",
    "content-length: 7\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: identity\r\n",
    "Transfer-Encoding : chunked\r\n",
    "chunked",
    "Connection: close\r\n",
    "Connection: keep-alive\r\n",
    "Host: b\r\n",
    "Expect: 100-continue\r\n",
    "X: y\r\n",
    "0\r\n\r\n",
    "5\r\nhello\r\n",
    "5;a=b\r\nhello\r\n",
    "ffffffffffffffff\r\n",
    "00000005\r\nhello\r\n",
    "\r\n\r\n",
];

/// One to three requests behind each other, some of them damaged. Every target begins with `/N/`.
fn stream_of_requests(numbers: &mut Numbers, n: usize) -> Vec<u8> {
    let mut all = vec![];
    for part in 0..=numbers.below(3) {
        let method = numbers.of(&["GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS"]);
        let host = numbers.of(&["Host: a\r\n", "host: a\r\n", "Host: A\r\n"]);
        let body = numbers.of(&[
            "\r\n",
            "Content-Length: 5\r\n\r\nhello",
            "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\nT: x\r\n\r\n",
        ]);
        all.extend(format!("{method} /{n}/{part} HTTP/1.1\r\n{host}{body}").into_bytes());
    }
    for _ in 0..numbers.below(4) {
        let at = numbers.below(all.len());
        match numbers.below(4) {
            0 => drop(all.splice(at..at, numbers.of(PIECES).bytes())),
            1 => {
                let end = (at + 1 + numbers.below(4)).min(all.len());
                drop(all.splice(at..end, numbers.of(PIECES).bytes()));
            }
            2 => {
                let end = (at + 1 + numbers.below(12)).min(all.len());
                all.drain(at..end);
            }
            _ => all[at] ^= 1 << numbers.below(8),
        }
        if all.is_empty() {
            all.push(b'G');
        }
    }
    all
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn fuzz() {
    let dir = tempfile::tempdir().unwrap();
    let backends = ["kiln", "nginx"].map(Backend::new);
    let edge = Edge::with(pool(1, &[(1, &backends[0])]));
    let (_nginx, nginx) = nginx(dir.path(), &backends[1]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (count, seed) = (setting("KILN_FRAMING", 3000), setting("KILN_SEED", 1));
    let (mut n_arrived, mut n_stopped) = (0, 0);
    for n in 0..count as usize {
        let bytes = stream_of_requests(&mut Numbers(seed << 32 | n as u64), n);
        let told = || format!("seed {seed}, message {n}: {:?}", String::from_utf8_lossy(&bytes));
        exchange(edge.address, &bytes);
        exchange(nginx, &bytes);
        let reference = runtime.block_on(as_hyper_reads(&bytes));
        // What was under way when a client broke off may still arrive while the next one speaks.
        let late = |one: &Arrived| {
            let number = one.1.trim_start_matches('/').split('/').next().and_then(|text| text.parse().ok());
            !reference.contains(one) && number.is_some_and(|number: usize| number < n && number + 50 > n)
        };
        let [own, others] = [&backends[0], &backends[1]].map(|backend| {
            let mut all = arrived(backend);
            all.retain(|one| !late(one));
            all
        });
        // The edge may stop before hyper does; what it let through must be the same messages.
        assert!(reference.starts_with(&own), "{}\nedge: {own:?}\nhyper: {reference:?}", told());
        for (own, other) in own.iter().zip(&others) {
            let same = (&own.0, &own.2) == (&other.0, &other.2);
            assert!(same, "{}\nedge: {own:?}\nnginx: {other:?}", told());
        }
        n_arrived += own.len();
        n_stopped += usize::from(own.len() < reference.len());
    }
    println!(
        "{count} streams of seed {seed}: {n_arrived} requests arrived, {n_stopped} streams stopped before hyper would"
    );
    assert!(n_arrived as u64 > count / 2, "most are good");
}
