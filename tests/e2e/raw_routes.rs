//! Raw TCP routes and the PROXY protocol from `kiln.toml` to the bytes: what a deploy leaves alone, what it cuts at the drain limit
//! and counts, who is told of the client, and what becomes of a port that is somebody else's.

use kiln_tests::{Kiln, Project, compiled, free_address, root, wait_until};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const TOML: &str = r#"name = "lines"

[images.lines]
base = "scratch"
copy = [{ from = "bin/lines", to = "/bin/lines", mode = "0755" }, { from = "api/version.txt", to = "/srv/version" }]

[services.lines]
image     = "lines"
command   = ["/bin/lines"]
instances = 2
port      = 7000
health    = { tcp = true, grace = "3s" }
rollout   = { drain = "2s", deadline = "20s" }

[services.told]
image     = "lines"
command   = ["/bin/lines", "--told"]
port      = 7000
proxy_protocol = true
health    = { http = "/healthz", grace = "3s" }
validate  = [{ http = "/", contains = "nobody" }]
rollout   = { drain = "2s", deadline = "20s" }

[[routes]]
tcp = PORT_A
service = "lines"
timeouts = { idle = "1m" }

[[routes]]
tcp = PORT_B
service = "told"

[[routes]]
service = "told"
"#;

struct Client(BufReader<TcpStream>);

impl Client {
    /// A connection from another address of this host.
    fn from(source: &str, port: u16) -> Self {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        let source: IpAddr = source.parse().expect("an address");
        socket.bind(&SocketAddr::new(source, 0).into()).expect("bound");
        socket.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into()).expect("the edge listens");
        let stream: TcpStream = socket.into();
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        Self(BufReader::new(stream))
    }

    fn ask(&mut self, text: &str) -> std::io::Result<String> {
        self.0.get_mut().write_all(format!("{text}\n").as_bytes())?;
        let mut line = String::new();
        match self.0.read_line(&mut line)? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}

fn port_of(address: &str) -> u16 {
    address.parse::<SocketAddr>().expect("an address").port()
}

/// What the server's socket answers to a `GET`.
fn api(kiln: &Kiln, path: &str) -> String {
    let mut stream = UnixStream::connect(kiln.socket()).expect("the server listens");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: kiln\r\nConnection: close\r\n\r\n").expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("answered");
    text
}

pub fn run() {
    let kiln = Kiln::started(&free_address());
    let project = Project::from_example("shop");
    let (a, b) = (port_of(&free_address()), port_of(&free_address()));
    let source = root().join("tests/e2e/raw_routes/lines.rs");
    std::fs::copy(compiled(&source, "raw-routes-lines"), project.path("bin/lines")).expect("bin/lines");
    project.write("kiln.toml", &TOML.replace("PORT_A", &a.to_string()).replace("PORT_B", &b.to_string()));
    let deploy = |n: u64, arguments: &[&str]| {
        project.release(n);
        project.commit(&format!("release {n}"));
        let arguments: Vec<&str> = ["deploy", "--json"].iter().chain(arguments).copied().collect();
        kiln.in_project(&project, &arguments)
    };
    deploy(1, &[]).expect(0);
    assert_eq!(Client::from("127.0.0.9", a).ask("hello").expect("answered"), "release-1 somebody hello");
    // Who asks is told through a raw route and through one of HTTP.
    assert_eq!(Client::from("127.0.0.9", b).ask("hello").expect("answered"), "release-1 127.0.0.9 hello");
    let mut web = Client::from("127.0.0.8", port_of(&kiln.edge));
    web.0.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("sent");
    let mut text = String::new();
    web.0.read_to_string(&mut text).expect("answered");
    assert!(text.ends_with("release-1 127.0.0.8"), "{text}");
    switch(&deploy, a);
    metrics(&kiln, a);
    two_owners(&kiln, &project, a);
    taken(&kiln, &project, a);
    kiln.down();
}

/// A deploy under connections: one that ends by itself, and one that stays until it is cut.
fn switch(deploy: &dyn Fn(u64, &[&str]) -> kiln_tests::Answer, port: u16) {
    let (mut brief, mut stays) = (Client::from("127.0.0.1", port), Client::from("127.0.0.1", port));
    assert_eq!(stays.ask("1").expect("answered"), "release-1 somebody 1");
    let old = std::thread::spawn(move || {
        let (mut n, begun) = (0, Instant::now());
        while let Ok(answer) = stays.ask("on") {
            assert_eq!(answer, "release-1 somebody on", "it went to another release");
            n += 1;
            assert!(begun.elapsed() < Duration::from_secs(60), "it was never cut");
            std::thread::sleep(Duration::from_millis(5));
        }
        n
    });
    assert_eq!(brief.ask("1").expect("answered"), "release-1 somebody 1");
    drop(brief);
    let answer = deploy(2, &[]).expect(0).json();
    assert_eq!(Client::from("127.0.0.1", port).ask("2").expect("answered"), "release-2 somebody 2");
    assert!(old.join().expect("it saw one release") > 10, "it was not left alone");
    let receipt = &answer["receipt"];
    let sum = |name: &str| -> u64 {
        ["before", "during", "after"].iter().filter_map(|period| receipt[period][name].as_u64()).sum()
    };
    assert!(sum("connections") >= 3 && sum("bytes") > 100, "{receipt:#}");
    assert_eq!((sum("cut"), sum("failed")), (1, 0), "{receipt:#}");
}

fn metrics(kiln: &Kiln, port: u16) {
    let own = format!(
        r#"kiln_edge_requests_total{{route="tcp:{port}",env="lines/production",service="lines",release="2",code="none"}}"#
    );
    wait_until("the metrics name the route", Duration::from_secs(10), || {
        api(kiln, "/v1/metrics").contains(&own)
    });
    let text = api(kiln, "/v1/metrics");
    assert!(text.contains("text/plain; version=0.0.4") && text.contains("kiln_edge_up 1"), "{text}");
    assert!(text.contains(&format!(r#"kiln_edge_cut_total{{route="tcp:{port}",env="lines/production",service="lines",release="1"}} 1"#)), "{text}");
}

fn two_owners(kiln: &Kiln, project: &Project, port: u16) {
    let refused = kiln.in_project(project, &["deploy", "--env", "staging"]).expect(1);
    assert!(
        refused.stderr.contains(&format!("the route `tcp:{port}` is taken by `lines/production`")),
        "{}",
        refused.stderr
    );
}

/// A port that another program has: the rollout is taken back with a reason, and what served goes on.
fn taken(kiln: &Kiln, project: &Project, port: u16) {
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let bad = other.local_addr().expect("an address").port();
    let mut file = std::fs::read_to_string(project.path("kiln.toml")).expect("kiln.toml");
    file.push_str(&format!("\n[[routes]]\ntcp = {bad}\nservice = \"lines\"\n"));
    project.write("kiln.toml", &file);
    project.release(3);
    project.commit("release 3");
    let mut deploy = kiln.command(&project.path("."), &["deploy", "--json"]).spawn().expect("deploy");
    let words = format!(
        "cannot listen on `127.0.0.1:{bad}` for the `tcp` route of service `lines` of `lines/production`"
    );
    wait_until("it is said why", Duration::from_secs(30), || {
        let why: Value = kiln.in_project(project, &["why", "--json"]).json();
        why.to_string().contains(&words)
    });
    // Meanwhile the last table serves on.
    assert_eq!(Client::from("127.0.0.1", port).ask("x").expect("answered"), "release-2 somebody x");
    drop(other);
    assert!(deploy.wait().expect("it ended").success(), "the port is free again, and the rollout goes on");
    for known in [port, bad] {
        assert_eq!(Client::from("127.0.0.1", known).ask("x").expect("answered"), "release-3 somebody x");
    }
}
