//! Several servers on one state folder and one PostgreSQL, which this test starts itself. Deploys go through any of them; the one
//! that leads is stopped in the middle of a rollout, killed, and the database restarted. No request fails, there are exactly
//! as many instances as wanted, the ledger's chain holds, and nothing is left.

use crate::tiny::{self, all_answered, instances};
use kiln_tests::postgres::Postgres;
use kiln_tests::{Inventory, Kiln, Load, Project, free_address, kiln_program, run, wait_until};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(90);
const SERVERS: usize = 3;

/// One of them.
struct Server {
    socket: PathBuf,
    log: PathBuf,
    process: Option<Child>,
}

impl Server {
    fn cli(&self, dir: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(kiln_program());
        command.arg("-C").arg(dir).args(arguments);
        command.env("KILN_ADDR", format!("unix:{}", self.socket.display()));
        command
    }

    fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    fn signal(&self, name: &str) {
        run(Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()])).expect(0);
    }

    /// What it said. Outlives the moment in which it steps down.
    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn status(&self) -> Option<Value> {
        let answer = run(&mut self.cli(Path::new("/"), &["status", "--json"]));
        (answer.code == 0).then(|| answer.json())
    }
}

/// All of them, and what they share.
struct Servers {
    all: Vec<Server>,
    postgres: Postgres,
    /// Makes the folder, and removes all that is in it.
    kiln: Kiln,
}

impl Servers {
    fn start() -> Self {
        let postgres = Postgres::started(true);
        let kiln = Kiln::new(&free_address());
        let all = (0..SERVERS).map(|n| {
            let path = |end: &str| kiln.state.path().join(format!("{n}.{end}"));
            Server { socket: path("sock"), log: path("log"), process: None }
        });
        let all = all.collect();
        let mut servers = Self { postgres, kiln, all };
        (0..SERVERS).for_each(|n| servers.begin(n));
        servers
    }

    fn begin(&mut self, n: usize) {
        let usual = self.kiln.serve_command();
        let mut command = Command::new(usual.get_program());
        let listen = format!("unix:{}", self.all[n].socket.display());
        let mut last = String::new();
        for argument in usual.get_args() {
            let own = last == "--listen";
            last = argument.to_string_lossy().into_owned();
            command.arg(if own { listen.as_ref() } else { argument });
        }
        command.env("KILN_STORE", self.postgres.address());
        let log = std::fs::File::options().create(true).append(true).open(&self.all[n].log).expect("log");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.all[n].process = Some(command.spawn().expect("kiln serve starts"));
    }

    /// Which one leads, as the database says.
    fn leader(&self) -> usize {
        let holder = self.postgres.query("SELECT holder FROM lease");
        let found = self.all.iter().position(|server| server.socket.display().to_string() == holder);
        found.unwrap_or_else(|| panic!("`{holder}` leads"))
    }

    fn epoch(&self) -> u64 {
        self.postgres.query("SELECT epoch FROM lease").parse().expect("a number")
    }

    fn status(&self) -> Option<Value> {
        self.all.iter().filter(|server| server.process.is_some()).find_map(Server::status)
    }

    /// Waits until release `n` serves with as many instances as wanted, and nothing is under way.
    fn settled(&self, n: u64, by: &[usize]) {
        let mut last = Value::Null;
        wait_until(&format!("release {n} serves alone"), LIMIT, || {
            let Some(status) = by.iter().find_map(|n| self.all[*n].status()) else { return false };
            last = status["environments"][0].clone();
            let (all, kept) =
                (last["instances"].as_array().map_or(0, Vec::len), instances(&last, &["validated"]).len());
            last["serving"]["subject"] == format!("release {n}")
                && last["rollout"]["ended"] == true
                && instances(&last, &["serving"]).len() == 2
                && all == 2 + kept
                && kept <= 2
        });
    }

    fn others(&self, than: usize) -> Vec<usize> {
        (0..SERVERS).filter(|n| *n != than).collect()
    }

    fn deploy(&self, through: usize, project: &Project, n: u64) -> Child {
        project.release(n);
        project.commit(&format!("release {n}"));
        let mut command = self.all[through].cli(project.dir.path(), &["deploy"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("kiln deploy starts")
    }

    /// Whether a rollout is in the middle of its way, as the database says: nobody else is asked.
    fn is_under_way(&self) -> bool {
        let bodies = self.postgres.query("SELECT body FROM rollout ORDER BY id DESC LIMIT 1");
        ["launching", "validating", "switching"]
            .iter()
            .any(|phase| bodies.contains(&format!("\"phase\":\"{phase}\"")))
    }

    fn down(mut self) {
        for server in &mut self.all {
            if server.process.is_some() {
                server.signal("TERM");
                server.process.take().expect("it runs").wait().expect("it ends");
            }
        }
        assert_eq!(
            self.postgres.query("SELECT expires <= now() FROM lease"),
            "t",
            "the last one gave the lease back"
        );
        let Self { kiln, .. } = self;
        kiln.down();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- {} said:\n{}", self.socket.display(), self.said());
        }
    }
}

fn project() -> Project {
    let project = tiny::project();
    // Long enough to be met in the middle.
    project.edit("kiln.toml", "grace = \"3s\"", "grace = \"30s\", healthy_after = 10");
    project.commit("slow");
    project
}

pub fn run_all() {
    let mut servers = Servers::start();
    let project = project();
    wait_until("one leads", LIMIT, || servers.status().is_some());
    // Through each of them, whoever leads.
    for n in 1..=SERVERS as u64 {
        assert!(servers.deploy(n as usize - 1, &project, n).wait().expect("it ends").success(), "deploy {n}");
        servers.settled(n, &[0]);
    }
    let load = Load::start(
        &servers.kiln.edge,
        &["--page", "/api/version", "--keepalive", "4", "--fresh", "2", "--rate", "200"],
    );

    assert!(stopped_half_way(&servers, &project, 4, true), "one that is at rest wakes");
    stopped_half_way(&servers, &project, 5, false);
    killed(&mut servers, &project, 6);
    database_restarted(&mut servers, &project, 7);
    handed_over(&mut servers, &project, 8);

    let requests = all_answered(&load.stop());
    let verified = run(&mut servers.all[0].cli(Path::new("/"), &["audit", "verify", "--json"])).expect(0);
    let status = servers.status().expect("one leads");
    assert_eq!(status["server"]["lease"]["epoch"].as_u64(), Some(servers.epoch()));
    let doctor = run(&mut servers.all[1].cli(Path::new("/"), &["doctor"]));
    assert!(doctor.stdout.contains("leads with epoch"), "{}", doctor.stdout);
    println!(
        "{SERVERS} servers, {} epochs: {requests} requests, 0 failed; ledger: {}",
        servers.epoch(),
        verified.stdout.trim()
    );
    servers.down();
}

/// Stops a process, and answers whether it is in the middle of an effect on the host.
fn stop(servers: &Servers, n: usize) -> bool {
    servers.all[n].signal("STOP");
    let owner = servers.kiln.state.path().join("instances/owner");
    run(Command::new("flock").arg("--nonblock").arg(owner).arg("true")).code != 0
}

/// The leader is stopped in the middle of a rollout, if need be `at_rest`; another one finishes it. What the first does when it
/// wakes is refused. Answers whether it woke: in the middle of an effect it is ended.
fn stopped_half_way(servers: &Servers, project: &Project, n: u64, at_rest: bool) -> bool {
    let (first, epoch) = (servers.leader(), servers.epoch());
    let others = servers.others(first);
    let mut client = servers.deploy(others[0], project, n);
    wait_until("the rollout is under way", LIMIT, || servers.is_under_way());
    wait_until("it is stopped", LIMIT, || {
        let fits = !stop(servers, first) || !at_rest;
        if !fits {
            servers.all[first].signal("CONT");
        }
        fits
    });
    assert!(servers.is_under_way(), "it was stopped too late");
    wait_until("another leads", LIMIT, || servers.epoch() > epoch);
    assert!(client.wait().expect("it ends").success(), "the deploy goes on with the next leader");
    servers.settled(n, &others);
    let before = settled_rows(servers);
    servers.all[first].signal("CONT");
    // It was ended if it stopped in the middle of an effect, and else finds that it leads no more.
    let said = || servers.all[first].said();
    let (now, since) = (servers.epoch(), said().len());
    wait_until("the woken one steps down", LIMIT, || {
        said().contains("leads no more")
            || run(Command::new("kill").args(["-0", &servers.all[first].pid().to_string()])).code != 0
            || is_zombie(servers.all[first].pid())
    });
    let woke = !is_zombie(servers.all[first].pid());
    if woke {
        wait_until("it stands by", LIMIT, || said()[since.min(said().len())..].contains("stands by; "));
        // It answers again, by handing on.
        wait_until("it answers", LIMIT, || servers.all[first].status().is_some());
    }
    assert_eq!(servers.epoch(), now, "the woken one took nothing");
    servers.settled(n, &others);
    assert_eq!(settled_rows(servers), before, "and changed nothing");
    println!(
        "stopped in a rollout; the first {}",
        if woke { "woke and stood by" } else { "was in the middle of an effect, and was ended" }
    );
    woke
}

/// What must not change when nobody asks for anything.
fn settled_rows(servers: &Servers) -> String {
    servers.postgres.query(
        "SELECT string_agg(id, ',' ORDER BY id), (SELECT generation FROM route), (SELECT max(id) FROM rollout), \
         (SELECT count(*) FROM release) FROM instance",
    )
}

fn is_zombie(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.is_empty() || status.contains("State:\tZ")
}

/// The leader is killed in the middle of a rollout.
fn killed(servers: &mut Servers, project: &Project, n: u64) {
    for server in 0..SERVERS {
        if is_zombie(servers.all[server].pid()) {
            servers.all[server].process.take().expect("it ran").wait().expect("it ended");
            servers.begin(server);
        }
    }
    let (first, epoch) = (servers.leader(), servers.epoch());
    let others = servers.others(first);
    let mut client = servers.deploy(others[1], project, n);
    wait_until("the rollout is under way", LIMIT, || servers.is_under_way());
    let mut process = servers.all[first].process.take().expect("it runs");
    process.kill().expect("killed");
    process.wait().expect("it ended");
    wait_until("another leads", LIMIT, || servers.epoch() > epoch);
    assert!(client.wait().expect("it ends").success(), "the deploy goes on with the next leader");
    servers.settled(n, &others);
    servers.begin(first);
    println!("killed in a rollout; another finished it");
}

/// The database is gone for a while, in the middle of a rollout.
fn database_restarted(servers: &mut Servers, project: &Project, n: u64) {
    let leader = servers.leader();
    let mut client = servers.deploy(servers.others(leader)[0], project, n);
    wait_until("the rollout is under way", LIMIT, || servers.is_under_way());
    servers.postgres.kill();
    servers.postgres.start();
    assert!(client.wait().expect("it ends").success(), "the deploy goes on");
    servers.settled(n, &[0, 1, 2]);
    println!("the database was killed and restarted in a rollout");
}

/// The leader is asked to end: the next one does not wait for the lease's end.
fn handed_over(servers: &mut Servers, project: &Project, n: u64) {
    let (first, epoch) = (servers.leader(), servers.epoch());
    servers.all[first].signal("TERM");
    servers.all[first].process.take().expect("it runs").wait().expect("it ends");
    wait_until("another leads", LIMIT, || servers.epoch() > epoch);
    let others = servers.others(first);
    assert!(servers.deploy(others[0], project, n).wait().expect("it ends").success());
    servers.settled(n, &others);
    servers.begin(first);
    wait_until("it stands by", LIMIT, || servers.all[first].status().is_some());
    let all = Inventory::take(servers.kiln.state.path()).instances;
    let left = all.iter().filter(|id| !id.starts_with(".spare")).count();
    assert!((2..=4).contains(&left), "{left} instances");
    println!("handed over on request");
}
