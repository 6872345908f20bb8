//! HTTP/1.1 to the letter: smuggling, hop-by-hop fields, bodies, interim answers, upgrades.

use crate::Case;
use crate::backend::{Backend, answer};
use crate::client::{Conn, get, raw};
use crate::stage::{Edge, pool, table};
use std::io::{Read, Write};

pub(crate) const CASES: &[Case] = &[
    ("ambiguous_requests_are_refused_and_never_arrive", smuggling),
    ("fields_between_neighbours_stay_there_and_forged_ones_are_replaced", fields),
    ("head_204_304_and_http_1_0_are_framed_right", framing),
    ("expect_100_continue_passes", expect),
    ("large_bodies_stream_both_ways", large),
    ("pipelined_requests_are_answered_in_order", pipelined),
    ("a_websocket_survives_a_flip_and_is_in_flight_until_it_ends", websocket),
    ("bytes_behind_a_refused_upgrade_are_a_request_of_their_own", refused_upgrade),
    ("a_request_whose_body_nobody_reads_ends_the_connection_and_says_so", unread),
    ("answers_with_ambiguous_lengths_do_not_reach_the_client_as_such", ambiguous_answers),
    ("interim_answers_are_not_taken_for_the_answer", interim),
];

fn unread() {
    let edge = Edge::new();
    let other = Backend::new("a");
    let mut routes = table(vec![(pool(1, &[]), 1)]);
    routes.routes[0].path = "/x".into();
    edge.set(1, &routes).unwrap();
    for path in ["/", "/x"] {
        let mut conn = Conn::new(edge.address);
        conn.write(format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nxx")).unwrap();
        let got = conn.read("POST").unwrap();
        assert!(got.status == 404 || got.status == 503, "{got:?}");
        assert_eq!(got.header("connection"), Some("close"), "{path}: {got:?}");
        // One without a body keeps its connection.
        let mut conn = Conn::new(edge.address);
        assert_eq!(conn.get(path).unwrap().header("connection"), None);
        assert_eq!(conn.get(path).unwrap().status, got.status);
    }
    drop(other);
}

fn ambiguous_answers() {
    let backend = Backend::with("a", |_, asked, stream| {
        let bytes: &[u8] = match asked.path.as_str() {
            "/both" => b"HTTP/1.1 200 X\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "/two" => b"HTTP/1.1 200 X\r\nContent-Length: 5\r\nContent-Length: 3\r\n\r\nhello",
            "/equal" => b"HTTP/1.1 200 X\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
            "/204" => b"HTTP/1.1 204 X\r\nContent-Length: 5\r\n\r\nHTTP/",
            _ => b"HTTP/1.1 200 X\r\nContent-Length: 2\r\n\r\nok",
        };
        stream.write_all(bytes).is_ok()
    });
    let edge = Edge::with(pool(1, &[(1, &backend)]));
    for path in ["/both", "/two", "/equal", "/204"] {
        for _ in 0..3 {
            let mut conn = Conn::new(edge.address);
            let got = conn.get(path).unwrap();
            let lengths = got.headers.iter().filter(|(n, _)| n == "content-length").count();
            let codings = got.headers.iter().filter(|(n, _)| n == "transfer-encoding").count();
            assert!(lengths + codings <= 1, "{path}: {got:?}");
            assert!(got.status == 502 || got.status == 204 || got.body == b"hello", "{path}: {got:?}");
            if got.header("connection") != Some("close") {
                assert_eq!(conn.get("/").unwrap().text(), "ok", "after {path}");
            }
            // What was left over on the connection to the instance is nobody's answer.
            assert_eq!(get(edge.address, "/").unwrap().text(), "ok", "after {path}");
        }
    }
}

fn interim() {
    let backend = Backend::with("a", |_, asked, stream| {
        stream.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n").unwrap();
        stream.write_all(b"HTTP/1.1 102 Processing\r\n\r\n").unwrap();
        answer(stream, 200, asked.path.as_bytes())
    });
    let edge = Edge::with(pool(1, &[(1, &backend)]));
    let mut conn = Conn::new(edge.address);
    for path in ["/a", "/b"] {
        let mut got = conn.get(path).unwrap();
        while got.status < 200 {
            got = conn.read("GET").unwrap();
        }
        assert_eq!((got.status, got.text()), (200, path));
    }
}

fn smuggling() {
    let backend = Backend::new("a");
    let edge = Edge::with(pool(1, &[(1, &backend)]));
    let big = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(100 * 1024));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(120));
    let refused = [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\na",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
        "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, x-forwarded-for\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n folded\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        &big,
        &many,
    ];
    for bytes in refused {
        let got = raw(edge.address, bytes);
        let status = got.as_ref().map_or(0, |g| g.status);
        // hyper closes what it cannot read any further without an answer or with 4xx; either is a refusal.
        assert!(
            status == 0 || (400..=501).contains(&status),
            "{:?}: {got:?}",
            &bytes[..bytes.len().min(120)]
        );
        assert_eq!(backend.count(), 0, "{bytes:?} arrived");
    }
    assert_eq!(raw(edge.address, "GET http://a/x HTTP/1.1\r\nHost: A\r\n\r\n").unwrap().status, 200);
    assert_eq!(backend.asked.lock().unwrap()[0].path, "/x");
    let status = edge.status();
    let unrouted = status.unrouted.iter().find(|(e, _)| e.is_none()).unwrap().1;
    assert!(unrouted.requests >= 13 && unrouted.failed == 0, "{unrouted:?}");
    assert_eq!(edge.tally().requests, 1);
}

fn fields() {
    let backend = Backend::with("a", |_, _, stream| {
        stream.write_all(b"HTTP/1.1 200 X\r\nContent-Length: 0\r\nServer: mine\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nX-Kiln-Release: 99\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\n").is_ok()
    });
    let edge = Edge::with(pool(3, &[(7, &backend)]));
    let got = raw(
        edge.address,
        "GET /p?q=1 HTTP/1.1\r\nHost: a.test:8080\r\nConnection: keep-alive, x-mine\r\nX-Mine: 1\r\nX-Request-ID: forged\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nForwarded: for=6.6.6.6\r\nUpgrade: h2c\r\nTE: gzip\r\n\r\n",
    )
    .unwrap();
    let asked = backend.asked.lock().unwrap()[0].clone();
    assert_eq!(asked.path, "/p?q=1");
    for gone in ["connection", "x-mine", "forwarded", "upgrade", "te", "keep-alive"] {
        assert!(asked.header(gone).is_empty(), "{gone}: {asked:?}");
    }
    assert_eq!(asked.header("host"), ["a.test:8080"]);
    assert_eq!(asked.header("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(asked.header("x-forwarded-proto"), ["http"]);
    assert_eq!(asked.header("x-forwarded-host"), ["a.test:8080"]);
    let id = asked.header("x-request-id");
    assert!(id.len() == 1 && id[0].len() == 32, "{id:?}");
    assert_eq!(got.header("x-request-id"), Some(id[0]));
    assert_eq!((got.header("x-kiln-release"), got.header("x-kiln-instance")), (Some("3"), Some("web-7")));
    assert_eq!(got.header("server"), Some("mine"));
    assert!(got.header("x-hop").is_none() && got.header("keep-alive").is_none());
    assert_eq!(got.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case("set-cookie")).count(), 2);
}

fn framing() {
    let backend = Backend::with("a", |_, asked, stream| {
        let bytes: &[u8] = match (asked.method.as_str(), asked.path.as_str()) {
            ("HEAD", _) => b"HTTP/1.1 200 X\r\nContent-Length: 1234\r\n\r\n",
            (_, "/204") => b"HTTP/1.1 204 X\r\n\r\n",
            (_, "/304") => b"HTTP/1.1 304 X\r\nETag: \"x\"\r\n\r\n",
            (_, "/103") => {
                b"HTTP/1.1 103 X\r\nLink: </x>\r\n\r\nHTTP/1.1 200 X\r\nContent-Length: 2\r\n\r\nok"
            }
            (_, "/close") => b"HTTP/1.1 200 X\r\nConnection: close\r\n\r\nuntil the end",
            (_, "/old") => b"HTTP/1.0 200 X\r\nContent-Length: 2\r\n\r\nok",
            _ => b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        };
        stream.write_all(bytes).is_ok() && !["/close", "/old"].contains(&asked.path.as_str())
    });
    let edge = Edge::with(pool(1, &[(1, &backend)]));
    let mut conn = Conn::new(edge.address);
    // All on one connection: an answer with wrong framing would spoil the next one.
    conn.write("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let got = conn.read("HEAD").unwrap();
    assert_eq!((got.status, got.header("content-length")), (200, Some("1234")));
    assert_eq!(conn.get("/204").unwrap().status, 204);
    let got = conn.get("/304").unwrap();
    assert_eq!((got.status, got.header("etag")), (304, Some("\"x\"")));
    for (path, body) in [("/103", "ok"), ("/close", "until the end"), ("/old", "ok"), ("/chunked", "ok")] {
        let got = conn.get(path).unwrap();
        assert_eq!((got.status, got.text()), (200, body), "{path}");
    }
    let got = raw(edge.address, "GET /chunked HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!((got.status, got.text(), got.header("transfer-encoding")), (200, "ok", None));
    assert_eq!(edge.tally().requests, 8);
}

fn expect() {
    let backend = Backend::with("a", |_, asked, stream| answer(stream, 200, &asked.body));
    let edge = Edge::with(pool(1, &[(1, &backend)]));
    let mut conn = Conn::new(edge.address);
    conn.write("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").unwrap();
    assert_eq!(conn.head().unwrap().status, 100);
    conn.write("body").unwrap();
    let got = conn.read("POST").unwrap();
    assert_eq!((got.status, got.text()), (200, "body"));
    // Without an instance nobody asks for the body.
    edge.set(2, &table(vec![(pool(2, &[]), 1)])).unwrap();
    let got =
        raw(edge.address, "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
            .unwrap();
    assert_eq!(got.status, 503);
}

fn large() {
    let backend = Backend::with("a", |_, asked, stream| answer(stream, 200, &asked.body));
    let edge = Edge::with(pool(1, &[(1, &backend)]));
    let body: Vec<u8> = (0..8u32 << 20).map(|n| ((n * 31) >> 3) as u8).collect();
    let mut conn = Conn::new(edge.address);
    assert!(conn.post("/", &body).unwrap().body == body);
    conn.write("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    for part in body.chunks(60_000) {
        conn.write(format!("{:x}\r\n", part.len())).unwrap();
        conn.write(part).unwrap();
        conn.write("\r\n").unwrap();
    }
    conn.write("0\r\n\r\n").unwrap();
    assert!(conn.read("POST").unwrap().body == body);
    assert_eq!(conn.get("/").unwrap().status, 200);
}

fn pipelined() {
    let backend = Backend::with("a", |_, asked, stream| answer(stream, 200, asked.path.as_bytes()));
    let edge = Edge::with(pool(1, &[(1, &backend)]));
    let mut conn = Conn::new(edge.address);
    let all: String =
        (0..20).map(|n| format!("POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab")).collect();
    conn.write(all).unwrap();
    for n in 0..20 {
        assert_eq!(conn.read("POST").unwrap().text(), format!("/{n}"));
    }
    assert_eq!(edge.tally().requests, 20);
}

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

fn websocket() {
    let backend = Backend::with("a", |_, asked, stream| {
        if asked.header("upgrade") != ["websocket"] {
            return answer(stream, 200, b"plain");
        }
        stream
            .write_all(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
            .unwrap();
        let mut bytes = [0; 64];
        while let Ok(n @ 1..) = stream.read(&mut bytes) {
            stream.write_all(&bytes[..n]).unwrap();
        }
        false
    });
    let other = Backend::new("b");
    let edge = Edge::with(pool(1, &[(1, &backend)]));
    let mut conn = Conn::new(edge.address);
    conn.write(UPGRADE).unwrap();
    let got = conn.head().unwrap();
    assert_eq!((got.status, got.header("upgrade"), got.release()), (101, Some("websocket"), 1));
    let mut echo = |text: &str, expected: &str| {
        conn.write(text).unwrap();
        let mut bytes = vec![0; expected.len()];
        conn.reader.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, expected.as_bytes());
    };
    echo("ping", "helloping");
    edge.set(2, &table(vec![(pool(2, &[(2, &other)]), 1)])).unwrap();
    assert_eq!(get(edge.address, "/").unwrap().release(), 2);
    echo("\r\n\r\nstill here", "\r\n\r\nstill here");
    let left = edge.target(1);
    assert_eq!((left.in_flight, left.tally.requests), (1, 0));
    drop(conn);
    edge.wait("ended", |s| {
        s.targets.iter().any(|t| t.release.0 == 1 && t.in_flight == 0 && t.tally.requests == 1)
    });
}

fn refused_upgrade() {
    let backend = Backend::with("a", |_, asked, stream| answer(stream, 200, asked.path.as_bytes()));
    let edge = Edge::with(pool(1, &[(1, &backend)]));
    let mut conn = Conn::new(edge.address);
    conn.write(format!("{UPGRADE}GET /next HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n"))
        .unwrap();
    assert_eq!(conn.read("GET").unwrap().text(), "/ws");
    assert_eq!(conn.read("GET").unwrap().text(), "/next");
    let asked = backend.asked.lock().unwrap();
    // The second one went through the gate like any other, not through a tunnel.
    assert_eq!(asked[1].header("x-forwarded-for"), ["127.0.0.1"]);
}
