//! Failures that other systems had, one case each: docs/acceptance.md says which number is which and what else covers it.
//! `KILN_NIGHTLY` takes the long forms.

pub mod clock;
pub mod commands;
pub mod damage;
pub mod edge;
pub mod flaky;
pub mod idle;
pub mod pause;
pub mod phases;
pub mod race;

use crate::tiny::{self, environment, instances};
use kiln_tests::{Kiln, Project, free_address, wait_until};
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// `short` in CI, `long` at night.
pub(crate) fn times(short: u64, long: u64) -> u64 {
    if std::env::var_os("KILN_NIGHTLY").is_some() { long } else { short }
}

/// A server with the tiny project deployed once.
pub(crate) fn deployed() -> (Kiln, Project) {
    let kiln = Kiln::started(&free_address());
    let project = tiny::project();
    tiny::deploy(&kiln, &project, 1).expect(0);
    (kiln, project)
}

/// Waits until `n` instances serve.
#[track_caller]
pub(crate) fn serving(kiln: &Kiln, n: usize) {
    wait_until(&format!("{n} serve"), LIMIT, || instances(&environment(kiln), &["serving"]).len() == n);
}

/// Waits until the rollout under way is in `phase`.
#[track_caller]
pub(crate) fn in_phase(kiln: &Kiln, phase: &str) {
    wait_until(phase, LIMIT, || environment(kiln)["rollout"]["phase"] == phase);
}

/// The process of an instance.
pub(crate) fn pid_of(kiln: &Kiln, id: &str) -> String {
    let path = kiln.state.path().join("instances").join(id).join("process.json");
    let process: Value = serde_json::from_slice(&std::fs::read(path).expect("process.json")).expect("JSON");
    process["pid"].to_string()
}

/// The process of the edge; empty if there is none.
pub(crate) fn edge_pid(kiln: &Kiln) -> String {
    let state = kiln.state.path().canonicalize().expect("state");
    let pattern = format!("edge --dir {}", state.display());
    let found = kiln_tests::run(std::process::Command::new("pgrep").args(["-o", "-f", &pattern]));
    found.stdout.trim().to_owned()
}

pub(crate) fn signal(pid: &str, signal: &str) {
    kiln_tests::run(std::process::Command::new("kill").args([signal, pid])).expect(0);
}

/// One request to the server's API, as no command sends it. Answers status and body; none if there was no whole answer.
pub(crate) fn ask(
    kiln: &Kiln,
    method: &str,
    path: &str,
    key: Option<&str>,
    body: &str,
) -> Option<(u16, Value)> {
    let mut stream = UnixStream::connect(kiln.socket()).ok()?;
    let key = key.map(|key| format!("idempotency-key: {key}\r\n")).unwrap_or_default();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: kiln\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{key}connection: close\r\n\r\n"
    );
    stream.write_all(format!("{head}{body}").as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, serde_json::from_str(body).unwrap_or(Value::Null)))
}

/// Numbers from a seed; enough for choosing.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ z >> 31) % n
    }
}
