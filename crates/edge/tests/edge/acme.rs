//! A certificate from an authority that was not written here, Pebble of Let's Encrypt, by a client that was not either, certbot.

use crate::Case;
use crate::backend::Backend;
use crate::client::{get, raw};
use crate::programs::{certificate, curl, done};
use crate::stage::{Edge, pool, table};
use kiln_model::Https;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) const CASES: &[Case] = &[("certbot_gets_a_certificate_from_pebble_through_the_edge", certbot)];

/// A program that runs beside the test.
struct Beside(Child);

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts it and waits until it listens on `port`.
fn beside(program: &str, args: &[&str], port: u16) -> Beside {
    let mut command = Command::new(program);
    command.args(args).env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_WFE_NONCEREJECT", "0");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().unwrap_or_else(|e| panic!("{program} is not there ({e}): run .ci/install"));
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "{program} does not listen");
    }
    Beside(child)
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn certbot() {
    let backend = Backend::new("a");
    let edge = Edge::secure(|_| {});
    let mut routes = table(vec![(pool(1, &[(1, &backend)]), 1)]);
    routes.routes[0].https = Https { only: true, hsts: None };
    edge.set(1, &routes).unwrap();
    // Until there is a certificate, nobody is served over TLS, and plain HTTP is sent there all the same.
    assert_eq!(get(edge.address, "/").unwrap().status, 308);
    assert_eq!(edge.status().tls.unwrap().certificates, 0);
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    certificate(dir.path(), "pebble", &["localhost"]);
    let [directory, management, dns, dns_management] = [free_port(), free_port(), free_port(), free_port()];
    let config = serde_json::json!({ "pebble": {
        "listenAddress": format!("127.0.0.1:{directory}"),
        "managementListenAddress": format!("127.0.0.1:{management}"),
        "certificate": path("pebble.crt"), "privateKey": path("pebble.key"),
        "httpPort": edge.address.port(), "tlsPort": edge.tls.unwrap().port(),
        "ocspResponderURL": "", "externalAccountBindingRequired": false,
    }});
    fs::write(path("pebble.json"), config.to_string()).unwrap();
    let (dns, dns_management) = (format!("127.0.0.1:{dns}"), format!("127.0.0.1:{dns_management}"));
    // It answers every name with this host.
    let args =
        ["-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-http01", "", "-https01", "", "-tlsalpn01", ""];
    let args = [&args[..], &["-dns01", &dns, "-management", &dns_management]].concat();
    let port = dns_management.rsplit_once(':').unwrap().1.parse().unwrap();
    let _names = beside("pebble-challtestsrv", &args, port);
    let _authority = beside("pebble", &["-config", &path("pebble.json"), "-dnsserver", &dns], directory);

    let server = format!("https://127.0.0.1:{directory}/dir");
    let webroot = edge.dir.path().join("acme");
    fs::create_dir(&webroot).unwrap();
    let webroot = webroot.display().to_string();
    let (conf, work, logs) = (path("conf"), path("work"), path("logs"));
    let said = done(
        "certbot",
        &[
            "certonly",
            "-n",
            "--agree-tos",
            "--register-unsafely-without-email",
            "--no-verify-ssl",
            "--server",
            &server,
            "--webroot",
            "-w",
            &webroot,
            "-d",
            "shop.test",
            "-d",
            "www.shop.test",
            "--config-dir",
            &conf,
            "--work-dir",
            &work,
            "--logs-dir",
            &logs,
        ],
    );
    assert!(said.contains("Successfully received certificate"), "{said}");
    let live = dir.path().join("conf/live/shop.test");
    let to = edge.dir.path().join("certificates");
    for (from, name) in [("privkey.pem", "shop.key"), ("fullchain.pem", "shop.crt")] {
        // certbot's key has mode 0600, and so has a copy of it.
        fs::copy(live.join(from), to.join(name)).unwrap();
    }
    edge.wait("the certificate is used", |s| s.tls.as_ref().is_some_and(|tls| tls.certificates == 1));
    let root = curl(
        ([127, 0, 0, 1], management).into(),
        "localhost",
        "/roots/0",
        &dir.path().join("pebble.crt"),
        &[],
    );
    fs::write(path("root.crt"), root.stdout).unwrap();
    for host in ["shop.test", "www.shop.test"] {
        let got = curl(edge.tls.unwrap(), host, "/", &dir.path().join("root.crt"), &[]);
        assert_eq!(String::from_utf8_lossy(&got.stdout), "a", "{got:?}");
    }
    // The proofs are gone; what was asked for there is a request like all others.
    let gone = "GET /.well-known/acme-challenge/gone HTTP/1.1\r\nHost: shop.test\r\n\r\n";
    assert_eq!(raw(edge.address, gone).unwrap().status, 308);
}
