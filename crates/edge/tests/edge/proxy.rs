//! The PROXY protocol, with proxies and servers of other houses: haproxy in front of the edge, nginx behind it.

use crate::Case;
use crate::backend::Backend;
use crate::client::{Conn, get};
use crate::raw::{Raw, ask, free_port, open, raw_pool, raw_table};
use crate::stage::{Edge, pool, table};
use kiln_model::route::Pool;
use kiln_model::{Check, CheckKind, Health, Millis};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) const CASES: &[Case] = &[
    ("haproxy_in_front_tells_who_the_client_is", haproxy),
    ("nginx_behind_is_told_who_the_client_is", nginx),
    ("a_header_is_believed_from_trusted_addresses_only_and_has_to_come_there", trust),
    ("a_header_from_inside_is_not_believed", inside),
];

/// A server of another house; it ends with the test.
pub(crate) struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        // nginx's workers end with their master only if it is asked.
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

pub(crate) fn start(program: &str, config: &Path, text: &str, args: &[&str], address: SocketAddr) -> Other {
    std::fs::write(config, text).unwrap();
    let mut command = Command::new(program);
    command.args(args).arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().unwrap_or_else(|e| panic!("{program}: {e}; `.ci/install` installs it"));
    let other = Other(child);
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "{program} does not listen on {address}");
        std::thread::yield_now();
    }
    other
}

/// A connection from another address of this host.
fn from(source: &str, to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let source: IpAddr = source.parse().unwrap();
    socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn ask_http(stream: TcpStream) -> String {
    let mut conn = Conn { reader: std::io::BufReader::new(stream) };
    conn.get("/who").unwrap().text().to_owned()
}

fn echo_client() -> Backend {
    Backend::with("a", |_, asked, stream| {
        let all = asked.header("x-forwarded-for").join(" and ");
        crate::backend::answer(stream, 200, all.as_bytes())
    })
}

fn haproxy() {
    let backend = echo_client();
    let edge = Edge::behind("127.0.0.1");
    let port = free_port();
    let mut routes = table(vec![(pool(1, &[(1, &backend)]), 1)]);
    let raw = Raw::lines("raw");
    let mut raws = raw_table(port, vec![(raw_pool(1, &[(1, raw.address)]), 1)]);
    raws.tcp[0].pools[0].pool = 1;
    (routes.tcp, routes.pools) = (raws.tcp, [routes.pools, raws.pools].concat());
    edge.set(1, &routes).unwrap();
    let (web, tcp) = (free_port(), free_port());
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "global\n maxconn 100\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
         listen web\n bind 127.0.0.1:{web}\n server e {} send-proxy-v2\n\
         listen raw\n bind 127.0.0.1:{tcp}\n server e 127.0.0.1:{port} send-proxy-v2\n",
        edge.address
    );
    let web = SocketAddr::from(([127, 0, 0, 1], web));
    let _haproxy = start("/usr/sbin/haproxy", &dir.path().join("haproxy.cfg"), &text, &["-db", "-f"], web);
    assert_eq!(ask_http(from("127.0.0.9", web)), "127.0.0.9");
    assert_eq!(ask_http(from("127.5.5.5", web)), "127.5.5.5");
    let mut client = from("127.0.0.9", SocketAddr::from(([127, 0, 0, 1], tcp)));
    assert_eq!(ask(&mut client, "x").unwrap(), "raw x", "the header is not of the connection's bytes");
}

/// nginx that refuses connections without a header, and says whom it is told of.
fn told_server(dir: &Path, log: bool) -> (Other, SocketAddr) {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let at = dir.display();
    let log = if log { format!("{at}/access.log told") } else { "off".to_owned() };
    let text = format!(
        "daemon off; user root; worker_processes 1; pid {at}/pid; error_log {at}/error.log crit; events {{ }}
        http {{ client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f;
        uwsgi_temp_path {at}/u; scgi_temp_path {at}/s; log_format told \"$request_uri [$proxy_protocol_addr]\";
        access_log {log};
        server {{ listen {address} proxy_protocol; default_type text/plain;
        location / {{ return 200 \"$proxy_protocol_addr to $proxy_protocol_server_addr\"; }} }} }}"
    );
    (start("/usr/sbin/nginx", &dir.join("nginx.conf"), &text, &["-c"], address), address)
}

fn nginx() {
    let dir = tempfile::tempdir().unwrap();
    let (_nginx, address) = told_server(dir.path(), true);
    let (edge, port) = (Edge::new(), free_port());
    let kind = CheckKind::Http {
        port: address.port(),
        path: "/health".into(),
        status: Some(200),
        contains: None,
        host: None,
    };
    let health = Health {
        check: Check { kind, timeout: Millis(2000) },
        every: Millis(50),
        grace: Millis(0),
        healthy_after: 1,
        unhealthy_after: 1,
    };
    let told = |release| Pool {
        proxy_protocol: true,
        health: Some(health.clone()),
        ..raw_pool(release, &[(release, address)])
    };
    let mut routes = raw_table(port, vec![(told(1), 1)]);
    routes.routes = table(vec![(told(1), 1)]).routes;
    edge.set(1, &routes).unwrap();
    // Two clients in turn: no connection to the instance is shared between them.
    for source in ["127.0.0.9", "127.0.0.8", "127.0.0.9"] {
        let expected = format!("{source} to 127.0.0.1");
        assert_eq!(ask_http(from(source, edge.address)), expected);
        assert_eq!(ask_http(from(source, SocketAddr::from(([127, 0, 0, 1], port)))), expected);
    }
    // The edge's own checks are nobody's, and pass.
    let log = dir.path().join("access.log");
    edge.wait("checked", |_| {
        std::fs::read_to_string(&log).unwrap().lines().filter(|l| l.starts_with("/health")).count() > 3
    });
    assert!(!edge.target(1).ejected);
    // nginx says so of a header without addresses by those of the connection.
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(
        text.lines()
            .filter(|l| l.starts_with("/health"))
            .all(|l| l == "/health [-]" || l == "/health [127.0.0.1]"),
        "{text}"
    );
}

/// As it is written in the specification.
fn header(peer: [u8; 4]) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    bytes.extend(peer);
    bytes.extend([127, 0, 0, 1, 0x12, 0x34, 0, 80]);
    bytes
}

const GET: &[u8] = b"GET /who HTTP/1.1\r\nHost: a.test\r\n\r\n";

/// What comes back of bytes that are sent in two parts.
fn exchange(source: &str, to: SocketAddr, parts: [&[u8]; 2]) -> String {
    let mut stream = from(source, to);
    for part in parts {
        let _ = stream.write_all(part);
        std::thread::yield_now();
    }
    let mut text = vec![0; 4096];
    let n = stream.read(&mut text).unwrap_or(0);
    String::from_utf8_lossy(&text[..n]).into_owned()
}

fn trust() {
    let backend = echo_client();
    let edge = Edge::behind("127.0.0.9/32");
    edge.set(1, &table(vec![(pool(1, &[(1, &backend)]), 1)])).unwrap();
    let told = header([192, 0, 2, 7]);
    assert!(exchange("127.0.0.9", edge.address, [&told, GET]).ends_with("192.0.2.7"));
    // In pieces, and with a request right behind.
    assert!(
        exchange("127.0.0.9", edge.address, [&told[..5], &[&told[5..], GET].concat()]).ends_with("192.0.2.7")
    );
    let with_more = [&told[..14], &[0, 20], &told[16..], b"\x04\0\x05hello", GET].concat();
    assert!(exchange("127.0.0.9", edge.address, [&with_more, b""]).ends_with("192.0.2.7"), "further values");
    // The proxy's own check is its own.
    let own = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    assert!(exchange("127.0.0.9", edge.address, [own, GET]).ends_with("127.0.0.9"));
    let n_before = backend.count();
    for wrong in
        [GET, b"PROXY TCP4 192.0.2.7 127.0.0.1 1 80\r\n", b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0c0123456789ab"]
    {
        assert_eq!(exchange("127.0.0.9", edge.address, [wrong, GET]), "", "{wrong:?}");
    }
    // Nobody else is believed: it is what anybody could send.
    assert!(exchange("127.0.0.8", edge.address, [&told, GET]).starts_with("HTTP/1.1 400"));
    assert_eq!(backend.count(), n_before);
    assert!(exchange("127.0.0.8", edge.address, [GET, b""]).ends_with("127.0.0.8"));
    assert_eq!(get(edge.address, "/who").unwrap().text(), "127.0.0.1");
    assert_eq!(open(edge.address.port()).peer_addr().unwrap(), edge.address);
}

fn inside() {
    let backend = echo_client();
    let (edge, network) = crate::inside::edge_with_name(&backend, "0.0.0.0/0");
    let told = header([192, 0, 2, 7]);
    let request = b"GET /who HTTP/1.1\r\nHost: web.internal\r\n\r\n";
    let got = exchange("127.0.0.1", network, [&told, request]);
    assert!(got.starts_with("HTTP/1.1 400"), "{got}");
    let got = exchange("127.0.0.1", network, [request, b""]);
    assert!(got.starts_with("HTTP/1.1 200"), "{got}");
    drop(edge);
}
