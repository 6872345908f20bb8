//! An edge process with its folder, and tables for it.

use crate::backend::Backend;
use kiln_edge::client::{Router, RouterError};
use kiln_edge::{EdgeClient, Listen, control_socket, spawn_edge};
use kiln_model::edge::{EdgeStatus, Tally, TargetStatus};
use kiln_model::route::{Pool, TableRoute, WeightedPool};
use kiln_model::*;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) struct Edge {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) address: SocketAddr,
    pub(crate) child: Option<Child>,
    internal: Option<ServiceRange>,
    /// Where it listens for TLS, if it does.
    pub(crate) tls: Option<SocketAddr>,
    pub(crate) proxies: Vec<Cidr>,
    /// Edges that took over, which are no children of this process.
    others: Vec<u32>,
    runtime: tokio::runtime::Runtime,
}

pub(crate) fn env() -> EnvRef {
    EnvRef::try_from("shop/production".to_owned()).unwrap()
}

pub(crate) fn fence(epoch: u64) -> Fence {
    Fence { epoch: Epoch(epoch), ..Fence::default() }
}

pub(crate) fn instance(n: u64) -> InstanceId {
    InstanceId::new(&ServiceName::new("web").unwrap(), n)
}

/// A pool of `release`; each target is the number of its instance and its backend.
pub(crate) fn pool(release: u64, targets: &[(u64, &Backend)]) -> Pool {
    let target = |(n, b): &(u64, &Backend)| Target {
        instance: instance(*n),
        address: b.address.ip(),
        port: b.address.port(),
    };
    Pool {
        proxy_protocol: false,
        env: env(),
        service: ServiceName::new("web").unwrap(),
        release: ReleaseNumber(release),
        commit: "1".repeat(40).parse().unwrap(),
        image: Digest::of(b"image"),
        health: None,
        targets: targets.iter().map(target).collect(),
        protocol: Protocol::default(),
    }
}

/// One route for everything, to pools with weights.
pub(crate) fn table(pools: Vec<(Pool, u32)>) -> RouteTable {
    let weighted =
        pools.iter().enumerate().map(|(pool, (_, weight))| WeightedPool { pool, weight: *weight }).collect();
    RouteTable {
        routes: vec![TableRoute {
            host: None,
            path: "/".into(),
            pools: weighted,
            https: Https::default(),
            policy: RoutePolicy::default(),
        }],
        tcp: vec![],
        internal: vec![],
        pools: pools.into_iter().map(|(p, _)| p).collect(),
    }
}

impl Edge {
    /// An edge with one table, of generation 1.
    pub(crate) fn with(pool: Pool) -> Self {
        let edge = Self::new();
        edge.set(1, &table(vec![(pool, 1)])).unwrap();
        edge
    }

    pub(crate) fn new() -> Self {
        Self::at("127.0.0.1:0", None)
    }

    /// With a range of service addresses.
    pub(crate) fn at(address: &str, internal: Option<&str>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (address, internal) = (address.parse().unwrap(), internal.map(|range| range.parse().unwrap()));
        let (tls, proxies, others) = (None, vec![], vec![]);
        let mut edge = Self { dir, address, child: None, internal, tls, proxies, others, runtime };
        edge.start();
        edge
    }

    /// With TLS on a port of its own. `prepare` gets the folder of certificates before the edge starts.
    pub(crate) fn secure(prepare: impl FnOnce(&Path)) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let certificates = dir.path().join("certificates");
        std::fs::create_dir(&certificates).unwrap();
        prepare(&certificates);
        let address: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let (tls, proxies, others) = (Some(address), vec![], vec![]);
        let mut edge = Self { dir, address, child: None, internal: None, tls, proxies, others, runtime };
        edge.start();
        edge
    }

    /// One that believes PROXY protocol headers of these addresses.
    pub(crate) fn behind(proxies: &str) -> Self {
        let mut edge = Self::new();
        edge.kill();
        edge.proxies = vec![proxies.parse().unwrap()];
        edge.start();
        edge
    }

    /// One with a setting that only tests need.
    pub(crate) fn start_with(variable: &str, value: &str) -> Self {
        let mut edge = Self::new();
        edge.start_anew(|command| {
            command.env(variable, value);
        });
        edge
    }

    pub(crate) fn with_access_log() -> Self {
        let mut edge = Self::new();
        edge.start_logging();
        edge
    }

    /// Starts it anew, with an access log.
    pub(crate) fn start_logging(&mut self) {
        self.start_anew(|command| {
            command.arg("--access-log");
        });
    }

    /// Starts it anew with so many descriptors at most, and an access log.
    pub(crate) fn start_limited(&mut self, descriptors: u32) {
        let own = std::env::current_exe().unwrap();
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={descriptors}:{descriptors}")).arg("--").arg(own);
        self.start_as(command, |command| {
            command.arg("--access-log");
        });
    }

    fn start_anew(&mut self, change: impl FnOnce(&mut Command)) {
        self.start_as(Command::new(std::env::current_exe().unwrap()), change);
    }

    fn start_as(&mut self, mut command: Command, change: impl FnOnce(&mut Command)) {
        self.kill();
        let (dir, listen) = (self.dir.path(), self.address.to_string());
        command.arg("edge").arg("--dir").arg(dir).arg("--listen").arg(listen).stdin(Stdio::null());
        change(&mut command);
        self.child = Some(command.spawn().unwrap());
        self.wait_until_it_answers();
    }

    /// Traffic is listened for before control is.
    pub(crate) fn wait_until_it_answers(&self) {
        while self.runtime.block_on(self.client().status()).is_err() {
            std::thread::yield_now();
        }
    }

    /// Has `program` take over at the same addresses.
    pub(crate) fn upgrade(&mut self, program: &Path) -> Result<(), RouterError> {
        self.upgraded(program, None)
    }

    pub(crate) fn upgrade_to(&mut self, program: &Path, listen: &Listen) -> Result<(), RouterError> {
        self.upgraded(program, Some(listen))
    }

    fn upgraded(&mut self, program: &Path, listen: Option<&Listen>) -> Result<(), RouterError> {
        self.runtime.block_on(self.client().upgrade(program, listen))?;
        self.others.push(self.status().pid);
        Ok(())
    }

    /// Kills the edge that serves now, and no other.
    pub(crate) fn kill_now(&mut self) {
        self.others.pop().into_iter().for_each(kill);
    }

    pub(crate) fn start(&mut self) {
        let program = std::env::current_exe().unwrap();
        let started = self.runtime.block_on(spawn_edge(&program, self.dir.path(), &self.listen()));
        self.child = Some(started.expect("an edge"));
        let status = self.status();
        self.address = status.listening[0].parse().unwrap();
        self.tls = status.tls.map(|tls| tls.listening[0].parse().unwrap());
    }

    fn listen(&self) -> Listen {
        Listen {
            plain: vec![self.address],
            tls: self.tls.into_iter().collect(),
            certificates: None,
            internal: self.internal,
            proxies: self.proxies.clone(),
        }
    }

    pub(crate) fn spawn_error(&self, dir: &Path, address: SocketAddr) -> kiln_edge::SpawnError {
        let program = std::env::current_exe().unwrap();
        let listen = Listen { plain: vec![address], ..Listen::default() };
        match self.runtime.block_on(spawn_edge(&program, dir, &listen)) {
            Err(error) => error,
            Ok(mut child) => {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("a second edge started")
            }
        }
    }

    pub(crate) fn kill(&mut self) {
        self.others.drain(..).for_each(kill);
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn client(&self) -> EdgeClient {
        EdgeClient::new(control_socket(self.dir.path()))
    }

    pub(crate) fn stop(&self) {
        self.runtime.block_on(self.client().stop()).unwrap();
    }

    pub(crate) fn set(&self, generation: u64, table: &RouteTable) -> Result<(), RouterError> {
        self.set_fenced(fence(1), generation, table)
    }

    pub(crate) fn set_fenced(
        &self,
        fence: Fence,
        generation: u64,
        table: &RouteTable,
    ) -> Result<(), RouterError> {
        self.runtime.block_on(self.client().set(fence, Generation(generation), table))
    }

    pub(crate) fn status(&self) -> EdgeStatus {
        self.runtime.block_on(self.client().status()).unwrap()
    }

    pub(crate) fn tally(&self) -> Tally {
        self.status().tally_of(&env())
    }

    pub(crate) fn target(&self, n: u64) -> TargetStatus {
        self.status().targets.into_iter().find(|t| t.instance == instance(n)).expect("a target")
    }

    /// Waits until the status fulfils `condition`.
    pub(crate) fn wait(&self, what: &str, condition: impl Fn(&EdgeStatus) -> bool) -> EdgeStatus {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            let status = self.status();
            if condition(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{what}: {status:#?}");
            std::thread::yield_now();
        }
    }
}

/// Ends a process that this one has caused to be started.
fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).expect("a process");
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.kill();
    }
}
