//! HTTPS from kiln.toml to curl: certificates of a folder, the redirect, HSTS, and a service that speaks HTTP/2 only.

use crate::tiny;
use kiln_tests::{Kiln, Project, compiled, free_address, root, run};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

const TOML: &str = r#"name = "shop"

[images.api]
base = "scratch"
copy = [{ from = "bin/h2c", to = "/bin/h2c", mode = "0755" }, { from = "api/version.txt", to = "/srv/version" }]

[services.api]
image     = "api"
command   = ["/bin/h2c"]
port      = 9000
protocol  = "h2c"
resources = { cpu = 1.0, memory = "64MiB", pids = 64 }
health    = { tcp = true, grace = "3s" }
rollout   = { drain = "5s", deadline = "20s" }

[[routes]]
host = "shop.test"
service = "api"
https_only = true
hsts = { max_age = "365d", subdomains = true }

[[routes]]
host = "plain.test"
service = "api"
"#;

fn project() -> Project {
    let project = Project::from_example("shop");
    let source = root().join("tests/e2e/https/h2c.rs");
    std::fs::copy(compiled(&source, "https-h2c"), project.path("bin/h2c")).expect("bin/h2c");
    project.write("kiln.toml", TOML);
    project.release(1);
    project.commit("h2c");
    project
}

fn certificate(dir: &Path, name: &str, host: &str) {
    let path = |extension| dir.join(format!("{name}.{extension}"));
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"]);
    command.args(["-days", "30", "-subj", "/CN=test", "-addext", &format!("subjectAltName=DNS:{host}")]);
    run(command.arg("-keyout").arg(path("key")).arg("-out").arg(path("crt"))).expect(0);
}

/// curl's answer: head and body.
fn curl(url: &str, address: &str, trust: &Path, extra: &[&str]) -> String {
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "20", "-D", "-", "--connect-to", &format!("::{address}"), "--cacert"]);
    run(command.arg(trust).args(extra).arg(url)).expect(0).stdout
}

pub fn run_case() {
    let certificates = tempfile::tempdir().expect("a folder");
    certificate(certificates.path(), "shop", "shop.test");
    let trust = certificates.path().join("shop.crt");
    let mut kiln = Kiln::new(&free_address());
    let (tls, dir) = (free_address(), certificates.path().display().to_string());
    kiln.start_with(&["--edge-tls", &tls, "--certificates", &dir]);
    let project = project();
    kiln.in_project(&project, &["deploy", "--json"]).expect(0);

    let port = tls.rsplit_once(':').expect("a port").1;
    let said = curl("http://shop.test/a?b=c", &kiln.edge, &trust, &[]);
    assert!(said.starts_with("HTTP/1.1 308"), "{said}");
    assert!(said.contains(&format!("location: https://shop.test:{port}/a?b=c\r\n")), "{said}");
    let said = curl("https://shop.test/a", &tls, &trust, &["--http2"]);
    assert!(said.starts_with("HTTP/2 200") && said.ends_with("release-1"), "{said}");
    assert!(said.contains("strict-transport-security: max-age=31536000; includeSubDomains\r\n"), "{said}");
    assert!(said.contains("x-kiln-release: 1\r\n"), "{said}");
    let said = curl("http://plain.test/", &kiln.edge, &trust, &[]);
    assert!(said.starts_with("HTTP/1.1 200") && said.ends_with("release-1"), "{said}");

    tiny::deploy(&kiln, &project, 2).expect(0);
    let said = curl("https://shop.test/", &tls, &trust, &["--http1.1"]);
    assert!(said.starts_with("HTTP/1.1 200") && said.ends_with("release-2"), "{said}");

    // A pair that is no pair is told to people, and the good one serves on.
    std::fs::write(certificates.path().join("new.crt"), "nothing").expect("written");
    kiln_tests::wait_until("the status names it", std::time::Duration::from_secs(20), || {
        let status: Value = tiny::status(&kiln);
        let problems = status["edge"]["tls"]["problems"].as_array().cloned().unwrap_or_default();
        problems.iter().any(|p| p.as_str().is_some_and(|p| p.contains("has no `new.key` beside it")))
    });
    let text = kiln.cli(Path::new("/"), &["status"]).expect(0).stdout;
    assert!(text.contains(&format!("edge: TLS on {tls} with 1 certificate\n")), "{text}");
    assert!(text.contains("edge: not used: `"), "{text}");
    assert!(curl("https://shop.test/", &tls, &trust, &[]).ends_with("release-2"));

    // A restarted server adopts the edge; it warns of what is wrong.
    kiln.kill();
    kiln.start_with(&["--edge-tls", &tls, "--certificates", &dir]);
    assert!(kiln.log().contains("has no `new.key` beside it"), "{}", kiln.log());
    let other = Kiln::new(&free_address());
    let answer = run(other.serve_command().args(["--certificates", "/nonexistent"]));
    other.down();
    assert_eq!(answer.code, 64, "{answer:?}");
    assert!(answer.stderr.contains("cannot use the folder of certificates `/nonexistent`"), "{answer:?}");
    kiln.down();
}
