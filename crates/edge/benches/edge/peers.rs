//! The proxies that are compared, each with the same work: one host, one backend, one line of log per request.

use kiln_edge::client::Router;
use kiln_edge::{EdgeClient, control_socket};
use kiln_model::route::{Pool, TableRoute, WeightedPool};
use kiln_model::*;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How all of them are set up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) threads: usize,
    pub(crate) log: bool,
    /// Bytes as they are, instead of HTTP.
    pub(crate) raw: bool,
    pub(crate) tls: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Haproxy,
    Nginx,
    Edge,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Edge => "kiln",
        }
    }
}

/// nginx with the files that are asked for.
pub(crate) struct Backend {
    address: SocketAddr,
    _child: Ending,
}

/// One running proxy.
pub(crate) struct Peer {
    pub(crate) kind: Kind,
    pub(crate) address: SocketAddr,
    child: Ending,
}

/// Ends its process.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        // nginx's master takes its workers along only if it is asked.
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

fn wait(address: SocketAddr) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "nobody listens on {address}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn spawn(program: &str, args: &[&str], output: &Path) -> Ending {
    let output = File::create(output).expect("a file");
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(output).stderr(Stdio::inherit());
    Ending(command.spawn().unwrap_or_else(|e| panic!("{program}: {e}; see bench/edge")))
}

/// An nginx of its own folder, in the foreground.
fn nginx(dir: &Path, name: &str, main: &str, http: &str) -> Ending {
    let own = dir.join(name);
    fs::create_dir_all(&own).expect("a folder");
    let own_text = own.display();
    let config = format!(
        "daemon off; user root; pid {own_text}/pid; error_log {own_text}/error.log crit; {main}
        events {{ worker_connections 9000; accept_mutex off; }}
        http {{ client_body_temp_path {own_text}/b; proxy_temp_path {own_text}/p; fastcgi_temp_path {own_text}/f;
        uwsgi_temp_path {own_text}/u; scgi_temp_path {own_text}/s; keepalive_requests 100000000; sendfile on;
        {http} }}"
    );
    let path = own.join("nginx.conf");
    fs::write(&path, config).expect("nginx.conf");
    spawn("/usr/sbin/nginx", &["-c", &path.display().to_string()], &own.join("output"))
}

/// The server behind all of them.
pub(crate) fn backend(dir: &Path) -> Backend {
    let address = free();
    for (name, size) in [("small", 34), ("10k", 10 << 10), ("1m", 1 << 20)] {
        fs::write(dir.join(name), "x".repeat(size)).expect("a file");
    }
    let root = dir.display();
    let http = format!(
        "access_log off; open_file_cache max=10; keepalive_timeout 600s;
        server {{ listen {address} backlog=4096; root {root}; }}"
    );
    let child = nginx(dir, "backend", "worker_processes 1;", &http);
    wait(address);
    Backend { address, _child: child }
}

/// One certificate for all: a folder with a pair for the edge and nginx, and both in one file for haproxy.
fn certificate(dir: &Path) -> std::path::PathBuf {
    let own = dir.join("certificates");
    if !own.exists() {
        fs::create_dir_all(&own).expect("a folder");
        let (key, crt) = (own.join("bench.key"), own.join("bench.crt"));
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"]);
        command.args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]);
        let output = command.arg("-keyout").arg(&key).arg("-out").arg(&crt).output().expect("openssl");
        assert!(output.status.success(), "{output:?}");
        let both = [crt, key].map(|path| fs::read(path).expect("a pair")).concat();
        fs::write(own.join("bench.pem"), both).expect("a file");
    }
    own
}

impl Peer {
    pub(crate) fn start(kind: Kind, setup: Setup, dir: &Path, backend: &Backend) -> Self {
        let address = free();
        let child = match kind {
            Kind::Haproxy => haproxy(setup, dir, address, backend.address),
            Kind::Nginx => nginx_proxy(setup, dir, address, backend.address),
            Kind::Edge => edge(setup, dir, address, backend.address),
        };
        wait(address);
        Self { kind, address, child }
    }

    /// The process and its children.
    fn pids(&self) -> Vec<u32> {
        let pid = self.child.0.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        std::iter::once(pid).chain(children.split_whitespace().filter_map(|p| p.parse().ok())).collect()
    }

    /// Nanoseconds on a CPU, of all threads.
    pub(crate) fn cpu_ns(&self) -> u64 {
        let tasks = self.pids().into_iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok());
        let stats =
            tasks.flatten().flatten().filter_map(|t| fs::read_to_string(t.path().join("schedstat")).ok());
        stats.filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok()).sum()
    }

    /// Resident memory in KiB.
    pub(crate) fn rss_kib(&self) -> u64 {
        let status = |pid| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let rss = |text: String| {
            let line = text.lines().find(|l| l.starts_with("VmRSS:"))?.to_owned();
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        self.pids().into_iter().filter_map(|pid| rss(status(pid))).sum()
    }
}

fn haproxy(setup: Setup, dir: &Path, address: SocketAddr, backend: SocketAddr) -> Ending {
    if setup.raw {
        return haproxy_raw(setup, dir, address, backend);
    }
    let log = if setup.log { "log stdout len 1024 format raw local0 info" } else { "" };
    let (use_log, threads) = (if setup.log { "log global\n option httplog" } else { "" }, setup.threads);
    let tls = match setup.tls {
        true => format!("ssl crt {}/bench.pem alpn h2,http/1.1", certificate(dir).display()),
        false => String::new(),
    };
    let config = format!(
        "global\n maxconn 8000\n nbthread {threads}\n {log}\n
defaults\n mode http\n timeout connect 1s\n timeout client 60s\n timeout server 60s\n option forwardfor\n http-reuse always\n {use_log}\n
frontend f\n bind {address} {tls}\n unique-id-format %[uuid]\n http-request set-header x-request-id %[unique-id]\n http-response set-header x-request-id %[unique-id]\n default_backend b\n
backend b\n server s {backend}\n"
    );
    let path = dir.join("haproxy.cfg");
    fs::write(&path, config).expect("haproxy.cfg");
    spawn("/usr/sbin/haproxy", &["-db", "-f", &path.display().to_string()], &dir.join("haproxy.log"))
}

fn haproxy_raw(setup: Setup, dir: &Path, address: SocketAddr, backend: SocketAddr) -> Ending {
    let threads = setup.threads;
    let config = format!(
        "global\n maxconn 4000\n nbthread {threads}\n
defaults\n mode tcp\n option splice-auto\n timeout connect 1s\n timeout client 60s\n timeout server 60s\n
listen l\n bind {address}\n server s {backend}\n"
    );
    let path = dir.join("haproxy-raw.cfg");
    fs::write(&path, config).expect("haproxy-raw.cfg");
    spawn("/usr/sbin/haproxy", &["-db", "-f", &path.display().to_string()], &dir.join("haproxy-raw.log"))
}

fn nginx_proxy(setup: Setup, dir: &Path, address: SocketAddr, backend: SocketAddr) -> Ending {
    let log = match setup.log {
        true => format!("access_log {}/nginx.log combined buffer=64k;", dir.display()),
        false => "access_log off;".to_owned(),
    };
    let (tls, pair) = match setup.tls {
        true => {
            let own = certificate(dir);
            let own = own.display();
            let pair = format!("ssl_certificate {own}/bench.crt; ssl_certificate_key {own}/bench.key;");
            ("ssl http2", format!("{pair} ssl_protocols TLSv1.2 TLSv1.3;"))
        }
        false => ("", String::new()),
    };
    let http = format!(
        "{log} {pair} keepalive_timeout 600s; upstream b {{ server {backend}; keepalive 256; keepalive_requests 100000000; }}
        server {{ listen {address} {tls} reuseport backlog=4096; add_header x-request-id $request_id;
        location / {{ proxy_pass http://b; proxy_http_version 1.1; proxy_set_header Connection \"\";
        proxy_set_header Host $host; proxy_set_header x-forwarded-for $remote_addr;
        proxy_set_header x-request-id $request_id; }} }}"
    );
    nginx(dir, "proxy", &format!("worker_processes {};", setup.threads), &http)
}

fn edge(setup: Setup, dir: &Path, address: SocketAddr, backend: SocketAddr) -> Ending {
    let folder = dir.join(format!("edge-{}", address.port()));
    let program = std::env::current_exe().expect("this program");
    let pool = Pool {
        proxy_protocol: false,
        env: EnvRef::try_from("bench/production".to_owned()).expect("an environment"),
        service: ServiceName::new("web").expect("a name"),
        release: ReleaseNumber(1),
        commit: "1".repeat(40).parse().expect("a commit"),
        image: Digest::of(b"image"),
        health: None,
        targets: vec![Target {
            instance: InstanceId::new(&ServiceName::new("web").expect("a name"), 1),
            address: backend.ip(),
            port: backend.port(),
        }],
        protocol: kiln_model::Protocol::default(),
    };
    let pools = vec![WeightedPool { pool: 0, weight: 1 }];
    // The port that was asked for is the raw route's then, and the edge's own is another one.
    let own = if setup.raw { free() } else { address };
    let raw = TcpRoute { port: address.port(), pools: pools.clone(), policy: RoutePolicy::default() };
    let table = RouteTable {
        routes: vec![TableRoute {
            host: None,
            path: "/".into(),
            pools,
            https: kiln_model::Https::default(),
            policy: RoutePolicy::default(),
        }],
        tcp: if setup.raw { vec![raw] } else { vec![] },
        internal: vec![],
        pools: vec![pool],
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let threads = setup.threads.to_string();
    let folder_text = folder.display().to_string();
    let address_text = own.to_string();
    let certificates = certificate(dir).display().to_string();
    let listen = if setup.tls { "--listen-tls" } else { "--listen" };
    let mut args = vec!["edge", "--dir", &folder_text, listen, &address_text, "--threads", &threads];
    args.extend(["--certificates", &certificates]);
    if setup.log {
        args.push("--access-log");
    }
    let child = spawn(&program.display().to_string(), &args, &dir.join("edge.txt"));
    let client = EdgeClient::new(control_socket(&folder));
    let deadline = Instant::now() + Duration::from_secs(10);
    while runtime.block_on(client.status()).is_err() {
        assert!(Instant::now() < deadline, "the edge does not answer");
        std::thread::sleep(Duration::from_millis(10));
    }
    runtime.block_on(client.set(Fence::default(), Generation(1), &table)).expect("a table");
    child
}
