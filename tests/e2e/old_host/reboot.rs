//! A reboot that is one: the same disk, the power gone under a running server, another boot of the kernel.

use super::inside::{LIMIT, version};
use crate::tiny;
use kiln_tests::{Answer, Inventory, Project, kiln_program, mirror, run as run_program, wait_until};
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Stdio};

const STATE: &str = "/var/lib/kiln";
const EDGE: &str = "127.0.0.1:8080";
const SOCKET: &str = "unix:/run/kiln.sock";
/// Made in the first boot: the instances that served then.
const MARK: &str = "/before";

/// Whether this is the second boot.
pub fn is_second() -> bool {
    Path::new(MARK).exists()
}

fn kiln(arguments: &[&str]) -> Command {
    let mut command = Command::new(kiln_program());
    command.args(arguments).env("KILN_ADDR", SOCKET).stdin(Stdio::null());
    command
}

fn cli(arguments: &[&str]) -> Answer {
    run_program(&mut kiln(arguments))
}

fn serve() -> Child {
    let mirror = format!("file:{}", mirror().display());
    let server = kiln(&["serve", "--state", STATE, "--edge", EDGE, "--mirror", &mirror]).spawn();
    wait_until("the server answers", LIMIT, || cli(&["status"]).code == 0);
    server.expect("kiln serve starts")
}

fn serving() -> Vec<String> {
    let status = cli(&["status", "--json"]).expect(0).json();
    tiny::instances(&status["environments"][0], &["serving"]).into_iter().collect()
}

/// In the first boot: something serves. It is left running; nothing is told to end.
pub fn before(project: &Project) {
    let server = serve();
    cli(&["-C", &project.dir.path().display().to_string(), "deploy"]).expect(0);
    assert!(version(EDGE).contains("release-"), "it serves");
    std::fs::write(MARK, serde_json::to_vec(&serving()).expect("JSON")).expect("a mark");
    // The power takes it.
    drop(server);
}

/// In the second: nobody is asked before new instances are validated, and then they serve.
pub fn after() {
    let before: Vec<String> = serde_json::from_slice(&std::fs::read(MARK).expect("a mark")).expect("JSON");
    assert_eq!(before.len(), 2, "{before:?}");
    run_program(Command::new("modprobe").arg("loop")).expect(0);
    let mut edge =
        kiln(&["edge", "--dir", &format!("{STATE}/edge"), "--listen", EDGE]).spawn().expect("kiln edge");
    wait_until("the edge answers", LIMIT, || !version(EDGE).is_empty());
    for _ in 0..5 {
        let answer = version(EDGE);
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: 1"), "{answer}");
    }
    let mut server = serve();
    wait_until("why tells of the reboot", LIMIT, || {
        cli(&["--project", "shop", "why"]).stdout.contains("the host was started ")
    });
    wait_until("two others serve", LIMIT, || {
        let answer = version(EDGE);
        assert!(answer.starts_with("HTTP/1.1 503 ") || answer.contains("release-"), "{answer}");
        answer.contains("release-") && serving().len() == 2
    });
    let after = serving();
    assert!(after.iter().all(|id| !before.contains(id)), "{before:?} {after:?}");
    let audit: Value = cli(&["audit", "--json"]).expect(0).json();
    assert_eq!(audit.to_string().matches("the host was started anew").count(), 2, "{audit:#}");
    server.kill().expect("killed");
    server.wait().expect("reaped");
    cli(&["down", "--state", STATE]).expect(0);
    edge.wait().expect("the edge ended");
    let left = Inventory::take(Path::new(STATE));
    assert!(left.is_empty(), "left behind: {left:?}");
    println!("rebooted: 503 until {after:?} were validated in place of {before:?}");
}
