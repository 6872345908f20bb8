//! Debian packages in real images: `debian-slim` serves, servers start from their images, an old lock bakes without a
//! mirror, and what a new lock changes is told first.
//!
//! `KILN_PACKAGES=all` starts every server (`.ci/mirror KILN nightly` has their packages), else the smallest ones.

use kiln_tests::{Kiln, Project, free_address, mirror, run as run_program};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

const NGINX: &str = r#"
[images.web]
base     = "debian-slim:bookworm"
packages = ["nginx-light", "ca-certificates"]
copy     = [{ from = "site/", to = "/srv/site" }, { from = "conf/nginx.conf", to = "/etc/nginx/nginx.conf" }]

[services.web]
image    = "web"
command  = ["/usr/sbin/nginx", "-g", "daemon off;"]
port     = 8080
user     = "www-data"
writable = ["/var/lib/nginx", "/var/log/nginx"]
health   = { http = "/healthz" }
validate = [{ http = "/", contains = "shop" }, { file = "/etc/ssl/certs/ca-certificates.crt" }, { command = ["/usr/bin/openssl", "verify", "-no-CAfile", "-CApath", "/etc/ssl/certs", "/etc/ssl/certs/ISRG_Root_X1.pem"] }]

[[routes]]
path    = "/"
service = "web"
"#;

const REDIS: &str = r#"
[images.words]
base     = "debian-slim:bookworm"
packages = ["redis-server"]

[services.words]
image    = "words"
command  = ["/usr/bin/redis-server", "--port", "6379", "--bind", "0.0.0.0", "--protected-mode", "no", "--dir", "/data"]
port     = 6379
user     = "redis"
writable = ["/data"]
health   = { tcp = true }
validate = [{ listening = 6379 }, { command = ["/usr/bin/redis-cli", "ping"] }]
"#;

/// Servers of the long form, each on a whole Debian.
const MORE: &str = r#"
[images.full]
base     = "debian:bookworm"
packages = ["nginx"]
copy     = [{ from = "site/", to = "/srv/site" }, { from = "conf/nginx.conf", to = "/etc/nginx/nginx.conf" }]

[services.full]
image    = "full"
command  = ["/usr/sbin/nginx", "-g", "daemon off;"]
port     = 8080
user     = "www-data"
writable = ["/var/lib/nginx", "/var/log/nginx"]
health   = { http = "/healthz" }
validate = [{ http = "/", contains = "shop" }]

[images.python]
base     = "debian:bookworm"
packages = ["python3"]
copy     = [{ from = "site/", to = "/srv/site" }]

[services.python]
image    = "python"
command  = ["/usr/bin/python3", "-m", "http.server", "-d", "/srv/site", "8000"]
port     = 8000
health   = { http = "/" }
validate = [{ http = "/", contains = "shop" }, { command = ["/usr/bin/python3", "-c", "import ssl, sqlite3"] }]

[images.database]
base     = "debian:bookworm"
packages = ["postgresql-15"]
copy     = [{ from = "start-postgres", to = "/usr/bin/start-postgres", mode = "0755" }]

[services.database]
image    = "database"
command  = ["/usr/bin/start-postgres"]
port     = 5432
user     = "postgres"
writable = ["/data"]
health   = { tcp = true, grace = "30s" }
validate = [{ listening = 5432 }, { command = ["/usr/lib/postgresql/15/bin/pg_isready", "-h", "127.0.0.1"] }]
rollout  = { deadline = "120s" }

[images.java]
base     = "debian:bookworm"
packages = ["openjdk-17-jre-headless", "redis-server"]

[services.java]
image    = "java"
command  = ["/usr/bin/redis-server", "--port", "6379", "--bind", "0.0.0.0", "--protected-mode", "no", "--dir", "/data"]
port     = 6379
user     = "redis"
writable = ["/data"]
health   = { tcp = true }
validate = [{ command = ["/usr/bin/java", "-Xmx32m", "-version"] }]
"#;

const START_POSTGRES: &str = "#!/bin/sh\nset -e\n/usr/lib/postgresql/15/bin/initdb -A trust -D /data/main\n\
exec /usr/lib/postgresql/15/bin/postgres -D /data/main -c listen_addresses='*' -c unix_socket_directories=/tmp\n";

pub fn run() {
    let mut kiln = Kiln::started(&free_address());
    let project = Project::from_example("shop");
    let all = std::env::var("KILN_PACKAGES").is_ok_and(|text| text == "all");
    let more = if all { MORE } else { "" };
    project.write("kiln.toml", &format!("name = \"shop\"\n{NGINX}{REDIS}{more}"));
    project.write("start-postgres", START_POSTGRES);
    let locked = kiln.in_project(&project, &["lock"]).expect(0);
    assert!(locked.stdout.contains(" added; "), "{}", locked.stdout);
    let commit = project.commit("locked");
    let baked = kiln.in_project(&project, &["bake", "--json"]).expect(0);
    let deployed = kiln.in_project(&project, &["deploy"]).expect(0);
    let page = get(&kiln.edge);
    assert!(page.contains("shop"), "{page}");
    println!(
        "baked in {:.1} s, deployed in {:.1} s; all answer{}",
        baked.took.as_secs_f64(),
        deployed.took.as_secs_f64(),
        if all { "" } else { " (KILN_PACKAGES=all starts more)" }
    );
    an_update_is_told_first(&kiln, &project);
    an_old_lock_needs_no_mirror(&mut kiln, &project, &commit, &baked.json()["images"]);
    kiln.down();
    a_mirror_must_be_signed();
}

fn get(address: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("the edge");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("request");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("answer");
    text
}

/// An older version in kiln.lock, as if it had been locked before an upgrade.
fn an_update_is_told_first(kiln: &Kiln, project: &Project) {
    let text = fs::read_to_string(project.path("kiln.lock")).expect("kiln.lock");
    let row = text.lines().find(|line| line.contains("\"nginx-light\"")).expect("nginx-light is locked");
    let version = row.split('"').nth(3).expect("its version");
    let older = text.replacen(row, &row.replacen(version, "1.0-1", 1), 1);
    let gone = older.replace("\"ca-certificates\"", "\"no-longer-needed\"");
    project.write("kiln.lock", &gone);
    let plan = kiln.in_project(project, &["lock", "--update", "--plan"]).expect(0);
    for line in [
        format!("~ nginx-light 1.0-1 -> {version} (same size) web"),
        "- no-longer-needed ".to_owned(),
        "+ ca-certificates ".to_owned(),
        "1 added, 1 removed, 1 upgraded".to_owned(),
        "kiln.lock would change".to_owned(),
    ] {
        assert!(plan.stdout.contains(&line), "{line}: {}", plan.stdout);
    }
    assert_eq!(fs::read_to_string(project.path("kiln.lock")).expect("kiln.lock"), gone, "--plan wrote it");
    let json = kiln.in_project(project, &["lock", "--update", "--json"]).expect(0).json();
    assert_eq!((json["total"]["added"].as_u64(), json["total"]["upgraded"].as_u64()), (Some(1), Some(1)));
    assert_eq!(fs::read_to_string(project.path("kiln.lock")).expect("kiln.lock"), text);
}

/// The archive has moved on: its index and its pool are empty. What is in the store bakes to the same image; what is in
/// neither is named.
fn an_old_lock_needs_no_mirror(kiln: &mut Kiln, project: &Project, commit: &str, images: &serde_json::Value) {
    let empty = tempfile::tempdir().expect("temporary folder");
    kiln.terminate();
    kiln.start_with_mirror(empty.path());
    fs::remove_dir_all(kiln.state.path().join("cache")).expect("the cache may be removed");
    let again = kiln.in_project(project, &["bake", "--ref", commit, "--json"]).expect(0);
    assert_eq!(again.json()["images"], *images);
    let lock = fs::read_to_string(project.path("kiln.lock")).expect("kiln.lock");
    let row = lock.lines().find(|line| line.contains("\"nginx-light\"")).expect("nginx-light is locked");
    let field = |name: &str| {
        let rest = row.split_once(&format!("{name} = \"")).expect("the field").1;
        rest.split('"').next().expect("its end").to_owned()
    };
    let hex = field("sha256").trim_start_matches("sha256:").to_owned();
    let object = kiln.state.path().join("objects/sha256").join(&hex[..2]).join(&hex[2..]);
    fs::remove_file(&object).expect("the package is in the store");
    fs::remove_dir_all(kiln.state.path().join("cache")).expect("the cache may be removed");
    let failed = kiln.in_project(project, &["bake", "--ref", commit]).expect(1);
    for part in ["`nginx-light", &field("path"), "kiln lock --update"] {
        assert!(failed.stderr.contains(part), "{part}: {}", failed.stderr);
    }
}

/// One changed letter in a list that Debian signed.
fn a_mirror_must_be_signed() {
    let changed = tempfile::tempdir().expect("temporary folder");
    run_program(Command::new("cp").arg("-r").arg(mirror().join("dists")).arg(changed.path())).expect(0);
    let path = changed.path().join("dists/bookworm/InRelease");
    let text = fs::read_to_string(&path).expect("InRelease");
    fs::write(&path, text.replacen("Origin: Debian", "Origin: Debiam", 1)).expect("InRelease");
    let mut kiln = Kiln::new(&free_address());
    kiln.start_with_mirror(changed.path());
    let project = Project::from_example("guestbook");
    let refused = kiln.in_project(&project, &["lock"]).expect(1);
    assert!(refused.stderr.contains("the text was changed"), "{}", refused.stderr);
    assert!(refused.stderr.contains("hint:"), "{}", refused.stderr);
    assert!(!Path::new(&project.path("kiln.lock")).exists());
    kiln.down();
}
