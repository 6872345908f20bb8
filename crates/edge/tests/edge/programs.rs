//! Clients that were not written here: curl, openssl, and scripts for Debian's Python with its h2, ssl and grpc.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// Debian's, which has Debian's packages.
const PYTHON: &str = "/usr/bin/python3";

/// Runs a program to its end, without any terminal or configuration of whoever runs the tests.
pub(crate) fn run(program: &str, args: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).env_remove("SSL_CERT_FILE").env("HOME", "/nonexistent");
    command.output().unwrap_or_else(|e| panic!("{program} is not there ({e}): run .ci/install"))
}

/// Its output; it must have succeeded.
pub(crate) fn done(program: &str, args: &[&str]) -> String {
    let output = run(program, args);
    let error = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {} {text} {error}", output.status);
    text
}

/// curl, asking for `https://HOST` at the edge's address; it trusts `trust`. `extra` comes before the URL's path.
pub(crate) fn curl(edge: SocketAddr, host: &str, path: &str, trust: &Path, extra: &[&str]) -> Output {
    let (port, trust) = (edge.port().to_string(), trust.display().to_string());
    let resolve = format!("{host}:{port}:{}", edge.ip());
    let url = format!("https://{host}:{port}{path}");
    let mut args = vec!["-sS", "--max-time", "20", "--cacert", &trust, "--resolve", &resolve];
    args.extend(extra);
    args.push(&url);
    run("curl", &args)
}

/// A script of `tests/edge/scripts`; it must succeed. What it says is returned.
pub(crate) fn script(name: &str, args: &[&str]) -> String {
    let path = script_path(name);
    let mut all = vec!["-I", path.as_str()];
    all.extend(args);
    done(PYTHON, &all)
}

pub(crate) fn script_path(name: &str) -> String {
    format!("{}/tests/edge/scripts/{name}.py", env!("CARGO_MANIFEST_DIR"))
}

/// A script that runs beside a test and is killed with it.
pub(crate) struct Script(pub(crate) Child);

impl Script {
    pub(crate) fn start(name: &str, args: &[&str]) -> Self {
        let path = script_path(name);
        let mut command = Command::new(PYTHON);
        command.args(["-I", &path]).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Self(command.spawn().expect("python3"))
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes `NAME.crt` and `NAME.key` in `dir` for `hosts`, signed by itself.
pub(crate) fn certificate(dir: &Path, name: &str, hosts: &[&str]) {
    let names: Vec<String> = hosts.iter().map(|host| format!("DNS:{host}")).collect();
    let (key, crt) = (dir.join(format!("{name}.key")), dir.join(format!("{name}.crt")));
    let (key, crt) = (key.display().to_string(), crt.display().to_string());
    let (names, subject) = (format!("subjectAltName={}", names.join(",")), format!("/CN={name}"));
    let (kind, curve) = ("-newkey", "ec_paramgen_curve:prime256v1");
    let args = ["req", "-x509", kind, "ec", "-pkeyopt", curve, "-noenc", "-days", "30", "-subj", &subject];
    let more = ["-addext", &names, "-keyout", &key, "-out", &crt];
    done("openssl", &[&args[..], &more[..]].concat());
}
