//! TLS as curl, openssl and Python's ssl see it: names, certificates and their replacement, redirects.

use crate::Case;
use crate::backend::Backend;
use crate::client::{get, raw};
use crate::programs::{certificate, curl, run, script};
use crate::stage::{Edge, instance, pool, table};
use kiln_model::{Hsts, Https, RouteTable};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) const CASES: &[Case] = &[
    ("each_host_gets_its_own_certificate_and_unknown_ones_an_alert", names),
    ("both_versions_and_both_protocols_work_with_curl", versions),
    ("certificates_are_swapped_whole_and_connections_survive", swap),
    ("a_bad_pair_is_named_and_the_last_good_ones_stay", bad_pairs),
    ("plain_http_is_redirected_and_browsers_are_told", redirect),
    ("a_connection_is_only_for_the_hosts_of_its_certificate", misdirected),
    ("a_websocket_works_over_tls", websocket),
    ("a_client_that_does_not_shake_hands_is_let_go", slow_handshake),
];

fn dir(edge: &Edge) -> PathBuf {
    edge.dir.path().join("certificates")
}

/// `openssl s_client`: what it says. Without a name it sends none.
fn s_client(edge: &Edge, name: Option<&str>, extra: &[&str]) -> String {
    let address = edge.tls.unwrap().to_string();
    let mut args = vec!["s_client", "-connect", &address, "-ign_eof", "-no_ign_eof"];
    match name {
        Some(name) => args.extend(["-servername", name]),
        None => args.push("-noservername"),
    }
    args.extend(extra);
    let output = run("openssl", &args);
    [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat()
}

fn names() {
    let backend = Backend::new("a");
    let edge = Edge::secure(|dir| {
        certificate(dir, "shop", &["shop.test", "www.shop.test"]);
        certificate(dir, "wild", &["*.apps.test"]);
    });
    edge.set(1, &table(vec![(pool(1, &[(1, &backend)]), 1)])).unwrap();
    for (host, subject) in [
        ("shop.test", "shop"),
        ("WWW.shop.test", "shop"),
        ("one.apps.test", "wild"),
        ("two.apps.test", "wild"),
    ] {
        let said = s_client(&edge, Some(host), &[]);
        assert!(said.contains(&format!("subject=CN = {subject}\n")), "{host}: {said}");
    }
    // A wildcard is for one label; a name that nobody has, and no name, are refused before any certificate is shown.
    for host in [Some("a.b.apps.test"), Some("apps.test"), Some("other.test"), None] {
        let said = s_client(&edge, host, &[]);
        assert!(
            said.contains("unrecognized name") && !said.contains("BEGIN CERTIFICATE"),
            "{host:?}: {said}"
        );
    }
    assert_eq!(edge.status().tls.unwrap().refused, 4);
    certificate(&dir(&edge), "default", &["fallback.test"]);
    edge.wait("the default certificate", |s| s.tls.as_ref().is_some_and(|tls| tls.certificates == 3));
    for host in [Some("other.test"), Some("fallback.test"), None] {
        let said = s_client(&edge, host, &[]);
        assert!(said.contains("subject=CN = default\n"), "{host:?}: {said}");
    }
    // Whoever got the default one for a name that nobody has may ask for any host.
    let trust = dir(&edge).join("default.crt");
    let got = curl(edge.tls.unwrap(), "other.test", "/", &trust, &["-k"]);
    assert_eq!(String::from_utf8_lossy(&got.stdout), "a");
}

fn versions() {
    let backend = Backend::new("a");
    let edge = Edge::secure(|dir| certificate(dir, "shop", &["shop.test"]));
    edge.set(1, &table(vec![(pool(1, &[(1, &backend)]), 1)])).unwrap();
    let trust = dir(&edge).join("shop.crt");
    let told = "%{http_version} %{response_code}";
    for (options, version) in [
        (&["--tlsv1.3", "--http2"][..], "2 200"),
        (&["--tlsv1.3", "--http1.1"], "1.1 200"),
        (&["--tlsv1.2", "--tls-max", "1.2", "--http2"], "2 200"),
        (&["--tlsv1.2", "--tls-max", "1.2", "--no-alpn"], "1.1 200"),
    ] {
        let extra = [options, &["-o", "/dev/null", "-w", told][..]].concat();
        let got = curl(edge.tls.unwrap(), "shop.test", "/", &trust, &extra);
        assert_eq!(String::from_utf8_lossy(&got.stdout), version, "{options:?}: {got:?}");
    }
    // Older ones are refused, and so is a client that knows no protocol of ours.
    let said = s_client(&edge, Some("shop.test"), &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]);
    assert!(said.contains("no peer certificate available") && said.contains("alert"), "{said}");
    let said = s_client(&edge, Some("shop.test"), &["-alpn", "smtp"]);
    assert!(said.contains("no application protocol"), "{said}");
    let said = s_client(&edge, Some("shop.test"), &["-alpn", "h2,http/1.1"]);
    assert!(said.contains("ALPN protocol: h2"), "{said}");
    let asked = backend.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 4);
    for request in asked {
        assert_eq!(request.header("x-forwarded-proto"), ["https"], "{request:?}");
        assert_eq!(request.header("host"), [format!("shop.test:{}", edge.tls.unwrap().port())]);
    }
    get(edge.address, "/").unwrap();
    assert_eq!(backend.asked.lock().unwrap()[4].header("x-forwarded-proto"), ["http"]);
}

fn swap() {
    let backend = Backend::new("a");
    let edge = Edge::secure(|dir| certificate(dir, "shop", &["shop.test"]));
    edge.set(1, &table(vec![(pool(1, &[(1, &backend)]), 1)])).unwrap();
    let serial = || {
        let said = script("tls_serial", &[&edge.tls.unwrap().to_string(), "shop.test"]);
        said.trim().to_owned()
    };
    let old = serial();
    // One that asks again and again over one connection, while the certificate changes.
    let mut busy =
        crate::programs::Script::start("tls_keepalive", &[&edge.tls.unwrap().to_string(), "shop.test"]);
    let elsewhere = tempfile::tempdir().unwrap();
    certificate(elsewhere.path(), "shop", &["shop.test"]);
    // As ACME clients do it: one file after the other.
    for name in ["shop.crt", "shop.key"] {
        fs::rename(elsewhere.path().join(name), dir(&edge).join(name))
            .or_else(|_| fs::copy(elsewhere.path().join(name), dir(&edge).join(name)).map(drop))
            .unwrap();
    }
    fs::set_permissions(dir(&edge).join("shop.key"), fs::Permissions::from_mode(0o640)).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while serial() == old {
        assert!(std::time::Instant::now() < deadline, "the new certificate is not used");
    }
    drop(busy.0.stdin.take());
    let mut said = String::new();
    busy.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    let (n_requests, began) = said.trim().split_once(' ').expect("what it did");
    assert_eq!(began, old, "it kept the connection that it began with");
    assert!(n_requests.parse::<u64>().unwrap() > 10, "{said}");
    assert_eq!(edge.tally().failed + edge.tally().cut + edge.tally().abandoned, 0);
}

/// Has the edge look at once.
fn hangup(edge: &Edge) {
    let pid = edge.child.as_ref().unwrap().id().to_string();
    crate::programs::done("kill", &["-HUP", &pid]);
}

fn bad_pairs() {
    let backend = Backend::new("a");
    let edge = Edge::secure(|dir| {
        certificate(dir, "shop", &["shop.test"]);
        // At the start there is nothing to keep: what is sound is used.
        fs::write(dir.join("broken.crt"), "nothing").unwrap();
        fs::write(dir.join("broken.key"), "nothing").unwrap();
    });
    edge.set(1, &table(vec![(pool(1, &[(1, &backend)]), 1)])).unwrap();
    let problems = || edge.status().tls.unwrap().problems;
    assert_eq!(problems().len(), 1);
    assert!(problems()[0].contains("broken.crt` holds no certificate"), "{:?}", problems());
    let works = || s_client(&edge, Some("shop.test"), &[]).contains("subject=CN = shop\n");
    assert!(works());
    fs::remove_file(dir(&edge).join("broken.crt")).unwrap();
    fs::remove_file(dir(&edge).join("broken.key")).unwrap();
    edge.wait("the folder is whole", |s| s.tls.as_ref().unwrap().problems.is_empty());
    let key = dir(&edge).join("shop.key");
    let secret = fs::read_to_string(&key).unwrap();
    let other = tempfile::tempdir().unwrap();
    certificate(other.path(), "other", &["other.test"]);
    let foreign = fs::read_to_string(other.path().join("other.key")).unwrap();
    let spoil = |what: &str, act: &dyn Fn(), reason: &str| {
        act();
        hangup(&edge);
        edge.wait(what, |s| s.tls.as_ref().unwrap().problems.iter().any(|p| p.contains(reason)));
        assert!(works(), "{what}");
        fs::write(&key, &secret).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let _ = fs::remove_file(dir(&edge).join("lone.crt"));
        let _ = fs::remove_file(dir(&edge).join("twin.crt"));
        let _ = fs::remove_file(dir(&edge).join("twin.key"));
        hangup(&edge);
        edge.wait("it is whole again", |s| s.tls.as_ref().unwrap().problems.is_empty());
    };
    let mode = |mode| fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
    spoil("another key", &|| fs::write(&key, &foreign).unwrap(), "is not the key of the first certificate");
    spoil("a key that all may read", &|| mode(0o644), "has mode 644");
    spoil("a key that the group may write", &|| mode(0o660), "has mode 660");
    spoil("half a key", &|| fs::write(&key, &secret[..secret.len() / 2]).unwrap(), "holds no private key");
    spoil("no key", &|| fs::remove_file(&key).unwrap(), "has no `shop.key` beside it");
    let lone = || assert!(fs::copy(dir(&edge).join("shop.crt"), dir(&edge).join("lone.crt")).is_ok());
    spoil("a certificate without a key", &lone, "has no `lone.key` beside it");
    let twin = || certificate(&dir(&edge), "twin", &["shop.test"]);
    spoil("two for one host", &twin, "both `shop` and `twin` are for `shop.test`");
    // Nothing that the edge writes has anything of a key.
    let log = fs::read_to_string(edge.dir.path().join("edge.log")).unwrap();
    for line in secret.lines().chain(foreign.lines()).filter(|line| !line.starts_with("---")) {
        assert!(!log.contains(line), "a key is in the log");
    }
    assert!(log.matches("certificates refused").count() >= 7, "{log}");
}

fn https_table(backend: &Backend, https: Https) -> RouteTable {
    let mut table = table(vec![(pool(1, &[(1, backend)]), 1)]);
    table.routes[0].https = https;
    table
}

fn redirect() {
    let backend = Backend::new("a");
    let edge = Edge::secure(|dir| certificate(dir, "shop", &["shop.test"]));
    let hsts = Some(Hsts { max_age_s: 86_400, subdomains: true, preload: false });
    edge.set(1, &https_table(&backend, Https { only: true, hsts })).unwrap();
    let port = edge.tls.unwrap().port();
    for (head, location) in [
        ("GET /a?b=c HTTP/1.1\r\nHost: Shop.test:80\r\n\r\n", "/a?b=c"),
        ("POST /a/%2e%2e//x HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 1\r\n\r\nx", "/a/%2e%2e//x"),
        ("GET http://shop.test/y HTTP/1.1\r\nHost: shop.test\r\n\r\n", "/y"),
    ] {
        let got = raw(edge.address, head).unwrap();
        assert_eq!(got.status, 308, "{got:?}");
        assert_eq!(got.header("location"), Some(&*format!("https://shop.test:{port}{location}")));
        assert_eq!(
            got.header("strict-transport-security"),
            None,
            "it means nothing there, and may be forged"
        );
    }
    // Without a host nobody knows where to.
    assert_eq!(raw(edge.address, "GET / HTTP/1.0\r\n\r\n").unwrap().status, 400);
    assert_eq!(backend.count(), 0);
    let trust = dir(&edge).join("shop.crt");
    let got = curl(edge.tls.unwrap(), "shop.test", "/", &trust, &["-D", "-"]);
    let said = String::from_utf8_lossy(&got.stdout).to_lowercase();
    assert!(said.contains("strict-transport-security: max-age=86400; includesubdomains\r\n"), "{said}");
    assert!(said.starts_with("http/2 200") && said.ends_with("\r\n\r\na"), "{said}");
    edge.set(2, &https_table(&backend, Https::default())).unwrap();
    assert_eq!(get(edge.address, "/").unwrap().status, 200);
    let got = curl(edge.tls.unwrap(), "shop.test", "/", &trust, &["-D", "-"]);
    assert!(!String::from_utf8_lossy(&got.stdout).contains("strict-transport"), "{got:?}");
}

fn misdirected() {
    let backend = Backend::new("a");
    let edge = Edge::secure(|dir| {
        certificate(dir, "shop", &["shop.test", "*.shop.test"]);
        certificate(dir, "bank", &["bank.test"]);
    });
    edge.set(1, &table(vec![(pool(1, &[(1, &backend)]), 1)])).unwrap();
    let trust = dir(&edge).join("shop.crt");
    for protocol in ["--http1.1", "--http2"] {
        for (host, status) in
            [("shop.test", "200"), ("Www.Shop.test:99", "200"), ("bank.test", "421"), ("1.2.3.4", "421")]
        {
            let field = format!("Host: {host}");
            let extra = [protocol, "-H", &field, "-o", "/dev/null", "-w", "%{response_code}"];
            let got = curl(edge.tls.unwrap(), "shop.test", "/", &trust, &extra);
            assert_eq!(String::from_utf8_lossy(&got.stdout), status, "{protocol} {host}: {got:?}");
        }
    }
    assert_eq!(backend.count(), 4);
}

fn websocket() {
    let backend = Backend::with("a", |_, asked, stream| {
        assert_eq!(asked.header("upgrade"), ["websocket"]);
        stream.write_all(b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").unwrap();
        let mut buffer = [0; 64];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            stream.write_all(&buffer[..n]).unwrap();
        }
        false
    });
    let edge = Edge::secure(|dir| certificate(dir, "shop", &["shop.test"]));
    edge.set(1, &table(vec![(pool(1, &[(1, &backend)]), 1)])).unwrap();
    let said = script("tls_upgrade", &[&edge.tls.unwrap().to_string(), "shop.test"]);
    assert_eq!(said.trim(), "101 echoed");
    edge.wait("it has ended", |s| s.targets.iter().all(|t| t.in_flight == 0));
    assert_eq!(edge.target(1).instance, instance(1));
}

fn slow_handshake() {
    let backend = Backend::new("a");
    let edge = Edge::secure(|dir| certificate(dir, "shop", &["shop.test"]));
    edge.set(1, &table(vec![(pool(1, &[(1, &backend)]), 1)])).unwrap();
    // One that says nothing, one that speaks HTTP, one that stops in the middle of its hello.
    for bytes in [&b""[..], b"GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"] {
        let mut stream = TcpStream::connect(edge.tls.unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(bytes).unwrap();
        let mut rest = vec![];
        let ended = stream.read_to_end(&mut rest);
        assert!(ended.is_ok() || ended.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
        assert!(!rest.starts_with(b"HTTP"), "{rest:?}");
    }
    assert_eq!(edge.status().tls.unwrap().refused, 3);
    assert_eq!(backend.count(), 0);
}
