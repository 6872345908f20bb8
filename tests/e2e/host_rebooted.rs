//! A reboot without rebooting: everything dies by SIGKILL, and what starts again takes itself for another boot of the host
//! (`KILN_BOOT_ID`, in debug builds). The saved table leads to dead addresses, some of them somebody else's by now:
//! nobody there ever hears from the edge.

use crate::tiny::{self, environment, instances};
use kiln_tests::{Kiln, free_address, kiln_program, run as run_program, wait_until};
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
/// The variable, and two boots.
const BOOT_ID: &str = "KILN_BOOT_ID";
const FIRST: &str = "00000000-0000-4000-8000-000000000001";
const SECOND: &str = "00000000-0000-4000-8000-000000000002";

/// The head and the body of one answer of the edge.
fn ask(kiln: &Kiln) -> String {
    let mut stream = TcpStream::connect(&kiln.edge).expect("the edge takes connections");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
    stream.write_all(b"GET /api/version HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").expect("asked");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    text
}

fn kill(pid: &str) {
    run_program(Command::new("kill").args(["-KILL", pid])).expect(0);
}

/// Power off: server, edge and instances at once, by their numbers.
fn power_off(kiln: &mut Kiln, ids: &std::collections::BTreeSet<String>) {
    kiln.kill();
    let state = kiln.state.path().canonicalize().expect("state");
    let pattern = format!("edge --dir {}", state.display());
    kill(run_program(Command::new("pgrep").args(["-o", "-f", &pattern])).expect(0).stdout.trim());
    for id in ids {
        let process =
            std::fs::read(state.join("instances").join(id).join("process.json")).expect("process.json");
        let process: Value = serde_json::from_slice(&process).expect("JSON");
        assert_eq!(process["boot"], FIRST, "it was started in the first boot");
        kill(&process["pid"].to_string());
    }
    wait_until("the edge is dead", LIMIT, || TcpStream::connect(&kiln.edge).is_err());
}

/// Another program at the address of a dead instance.
struct Stranger {
    host: String,
    listener: TcpListener,
}

impl Stranger {
    fn at(address: &str) -> Self {
        let host = format!("{address}/32");
        run_program(Command::new("ip").args(["address", "add", &host, "dev", "lo"])).expect(0);
        let listener = TcpListener::bind(format!("{address}:9000")).expect("the address is free");
        listener.set_nonblocking(true).expect("nonblocking");
        Self { host, listener }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        run_program(Command::new("ip").args(["address", "delete", &self.host, "dev", "lo"]));
    }
}

fn run_edge(kiln: &Kiln) -> std::process::Child {
    let mut command = Command::new(kiln_program());
    command.arg("edge").arg("--dir").arg(kiln.state.path().canonicalize().expect("state").join("edge"));
    command.args(["--listen", &kiln.edge]).env(BOOT_ID, SECOND);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let edge = command.spawn().expect("kiln edge starts");
    wait_until("the edge listens", LIMIT, || TcpStream::connect(&kiln.edge).is_ok());
    edge
}

pub fn run() {
    let mut kiln = Kiln::new(&free_address());
    kiln.start(&[(BOOT_ID, FIRST)]);
    let project = tiny::project();
    // Validating takes a second at least, so that there is something to see.
    project.edit("kiln.toml", "grace = \"3s\"", "grace = \"30s\", healthy_after = 100");
    project.commit("slow to be ready");
    kiln.in_project(&project, &["deploy"]).expect(0);
    assert!(ask(&kiln).contains("release-1"));
    let status = environment(&kiln);
    let before = instances(&status, &["serving"]);
    assert_eq!(before.len(), 2);

    power_off(&mut kiln, &before);
    let all = status["instances"].as_array().expect("instances").iter();
    let strangers: Vec<Stranger> =
        all.map(|instance| Stranger::at(instance["address"].as_str().expect("an address"))).collect();
    // As under systemd, the edge is there before the server.
    let mut edge = run_edge(&kiln);
    for _ in 0..50 {
        let answer = ask(&kiln);
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: 1"), "{answer}");
    }
    kiln.start(&[(BOOT_ID, SECOND)]);
    wait_until("why says that capacity is missing", LIMIT, || {
        kiln.in_project(&project, &["why"]).stdout.contains("`api` has 0 of 2 instances")
    });
    assert!(ask(&kiln).starts_with("HTTP/1.1 503 "), "nobody was validated yet");
    let mut n_unavailable = 0;
    wait_until("it serves", LIMIT, || {
        let answer = ask(&kiln);
        assert!(answer.starts_with("HTTP/1.1 503 ") || answer.contains("release-1"), "{answer}");
        n_unavailable += u32::from(!answer.contains("release-1"));
        answer.contains("release-1")
    });
    wait_until("two serve", LIMIT, || instances(&environment(&kiln), &["serving"]).len() == 2);
    for _ in 0..50 {
        assert!(ask(&kiln).contains("release-1"));
    }
    let after = instances(&environment(&kiln), &["serving"]);
    assert!(after.is_disjoint(&before), "ids are never used again: {before:?} {after:?}");
    for stranger in &strangers {
        let heard = stranger.listener.accept().map(drop).map_err(|error| error.kind());
        assert_eq!(heard, Err(ErrorKind::WouldBlock), "{} heard from the edge", stranger.host);
    }
    let audit = kiln.in_project(&project, &["audit", "--json"]).expect(0).stdout;
    assert_eq!(audit.matches("the host was started anew").count(), 2, "{audit}");
    tiny::deploy(&kiln, &project, 2).expect(0);
    println!(
        "rebooted: 503 before the server, {n_unavailable} while {after:?} were validated in place of {before:?}, then 200"
    );
    kiln.down();
    edge.wait().expect("the edge ended");
}
