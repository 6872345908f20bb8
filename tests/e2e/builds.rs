//! Builds in sealed builders: what they compile runs; what they cannot reach; what becomes of those that fail, exceed a limit,
//! or lose their server.

use kiln_tests::{Answer, Inventory, Kiln, Project, free_address, run as run_program, wait_until};
use std::process::{Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const RUN: &str = r#"run      = ["make", "make DESTDIR=/out install"]"#;

pub fn run() {
    let mut kiln = Kiln::started(&free_address());
    let project = Project::from_example("compiled");
    kiln.in_project(&project, &["lock"]).expect(0);
    project.commit("locked");
    let good = std::fs::read_to_string(project.path("kiln.toml")).expect("kiln.toml");
    compiled(&kiln, &project);
    reproducible(&kiln, &project);
    folders(&kiln, &project, &good);
    sealed(&kiln, &project, &good);
    failing(&kiln, &project, &good);
    limits(&kiln, &project, &good);
    killed(&mut kiln, &project, &good);
    kiln.down();
}

/// What the edge answers to `GET /`.
fn page(kiln: &Kiln) -> String {
    let url = format!("http://{}/", kiln.edge);
    run_program(Command::new("curl").args(["-s", "--max-time", "5", &url])).stdout
}

/// Commits kiln.toml with other commands, and more lines for `[images.app.build]`.
fn with_run(project: &Project, good: &str, run: &str, more: &str) {
    assert!(good.contains(RUN), "{good}");
    project.write("kiln.toml", &good.replace(RUN, &format!("run = {run}\n{more}")));
    project.commit(run);
}

fn compiled(kiln: &Kiln, project: &Project) {
    let first = kiln.in_project(project, &["deploy"]).expect(0);
    assert_eq!(page(kiln), "hello from release-1\n");
    assert!(first.stderr.contains("gcc") || first.stderr.contains("cc -O2"), "{}", first.stderr);
    project.edit("src/main.c", "release-1", "release-2");
    project.commit("changed");
    let second = kiln.in_project(project, &["deploy"]).expect(0);
    assert_eq!(page(kiln), "hello from release-2\n");
    println!("build: first {:.1} s, changed {:.1} s", first.took.as_secs_f64(), second.took.as_secs_f64());
}

fn bake(kiln: &Kiln, project: &Project) -> Answer {
    kiln.in_project(project, &["bake", "--json"])
}

/// Built again from a cold cache, the image is the same; built again from a warm one, nothing runs.
fn reproducible(kiln: &Kiln, project: &Project) {
    let warm = bake(kiln, project).expect(0);
    assert!(!warm.stderr.contains("build: $"), "{}", warm.stderr);
    let mut n_forgotten = 0;
    for entry in std::fs::read_dir(kiln.state.path().join("cache")).expect("cache").flatten() {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        if text.contains(r#""role":"build""#) {
            std::fs::remove_file(entry.path()).expect("a cached result");
            n_forgotten += 1;
        }
    }
    assert!(n_forgotten > 0, "no result is cached");
    std::fs::remove_dir_all(kiln.state.path().join("cache/images")).expect("what was baked before");
    // Two at once: one builds, the other waits for it.
    let (cold, other) = std::thread::scope(|scope| {
        let dir = project.dir.path();
        let other = scope.spawn(move || kiln.cli(dir, &["bake", "--json"]).expect(0));
        (bake(kiln, project).expect(0), other.join().expect("the other bake"))
    });
    let n_built = [&cold, &other].iter().filter(|answer| answer.stderr.contains("build: $ make")).count();
    assert_eq!(n_built, 1, "{}\n{}", cold.stderr, other.stderr);
    assert_eq!(other.json()["images"], warm.json()["images"]);
    assert_eq!(cold.json()["images"], warm.json()["images"]);
    let image = cold.json()["images"]["app"].as_str().expect("a digest").to_owned();
    let log = kiln.in_project(project, &["image", "show", "--build-log", &image]).expect(0).stdout;
    assert!(log.starts_with("$ make\n") && log.contains("-static"), "{log}");
    println!(
        "build from a cold cache {:.2} s, from a warm one {:.2} s",
        cold.took.as_secs_f64(),
        warm.took.as_secs_f64()
    );
}

/// Whole folders are copied, with files of the base, of the build, and with two names.
fn folders(kiln: &Kiln, project: &Project, good: &str) {
    let run = r#"["make", "make DESTDIR=/out install", "mkdir /out/doc", "cp README.md /out/doc", "ln /out/doc/README.md /out/doc/again", "touch /usr/share/doc/make/mine"]"#;
    let copy = r#"to = "/bin/app" }, { from = "build:/out/doc/", to = "/srv/doc" }, { from = "build:/usr/share/doc/make", to = "/srv/make" }"#;
    let found = r#"validate  = [{ file = "/srv/doc/README.md" }, { file = "/srv/doc/again" }, { file = "/srv/make/copyright" }, { file = "/srv/make/mine" }, "#;
    let toml = good.replace(r#"to = "/bin/app" }"#, copy).replace("validate  = [", found);
    with_run(project, &toml, run, "");
    kiln.in_project(project, &["deploy"]).expect(0);
}

/// A build that tries to look outside. Each line prints its name if it gets through.
fn sealed(kiln: &Kiln, project: &Project, good: &str) {
    let state = kiln.state.path().display();
    let work = project.dir.path().display();
    let script = format!(
        r#"#!/bin/sh
# Nothing of the host, of pid 1, of git or of the kernel's doors.
try() {{ name=$1; shift; if "$@" >/dev/null 2>&1; then echo "OPEN: $name"; fi; }}
try "environ of pid 1" cat /proc/1/environ
try "files of pid 1" ls /proc/1/fd
try "memory of pid 1" head -c 1 /proc/1/mem
# The kernel lets nobody in here kill pid 1; if it did, the build would end.
perl -e 'kill 9, 1'
try "state folder" ls "{state}"
try "work tree" ls "{work}"
try "git" ls /src/.git
try "host's disk" sh -c 'ls /dev/vda || ls /dev/sda || ls /dev/loop0'
try "device" mknod /tmp/disk b 7 0
try "mount" mount -t tmpfs none /mnt
try "namespace" unshare -U true
try "chroot" chroot / true
try "host name" hostname other
try "sysctl" sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
try "kernel log" dmesg
for name in acpi asound scsi kcore keys timer_list; do
    test ! -e /proc/$name || grep -q " /proc/$name " /proc/self/mounts || echo "OPEN: /proc/$name"
done
try "root of pid 1" ls /proc/1/root/
try "network" perl -MIO::Socket::INET -e 'exit !IO::Socket::INET->new(PeerAddr => "10.0.0.1:80", Timeout => 1)'
for name in $(ls /sys/class/net 2>/dev/null) $(sed -n 's/^ *\([^ ]*\):.*/\1/p' /proc/net/dev); do
    test "$name" = lo || echo "OPEN: interface $name"
done
test "$(perl -MIO::Socket::INET -e 'print "up" if IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1:0")')" = up || echo "CLOSED: loopback"
test "$(cat /proc/sys/kernel/hostname)" = localhost || echo "host name: $(cat /proc/sys/kernel/hostname)"
test "$(id -u):$(umask):$PWD" = 0:0022:/src || echo "as $(id -u):$(umask):$PWD"
test "$(ls /src)" = "$(printf 'Makefile\nREADME.md\nkiln.lock\nkiln.toml\nprobe\nsrc')" || ls /src
env | sort
touch /src/mine /tmp/mine /dev/shm/mine
tar -cf /tmp/a.tar --owner=1234 mine && tar -xf /tmp/a.tar && test "$(stat -c %u mine)" = 1234
mkdir /out && echo done > /out/app
"#
    );
    project.write("probe", &script);
    with_run(project, good, r#"["sh -e ./probe"]"#, r#"env = { MINE = "yes" }"#);
    let answer = bake(kiln, project).expect(0);
    let image = answer.json()["images"]["app"].as_str().expect("a digest").to_owned();
    let log = kiln.in_project(project, &["image", "show", "--build-log", &image]).expect(0).stdout;
    let time = project.git(&["log", "-1", "--format=%ct"]);
    let expected = format!(
        "$ sh -e ./probe\nHOME=/root\nLANG=C.UTF-8\nMINE=yes\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nPWD=/src\nSOURCE_DATE_EPOCH={time}\nTZ=UTC\n"
    );
    assert_eq!(log, expected, "what a build sees");
    std::fs::remove_file(project.path("probe")).expect("probe");
}

/// Asserts that a deploy fails with these words, and that what served before still does.
#[track_caller]
fn taken_back(kiln: &Kiln, project: &Project, words: &[&str]) {
    let answer = kiln.in_project(project, &["deploy"]).expect(1);
    for word in words.iter().chain(&["hint:"]) {
        assert!(answer.stderr.contains(word), "no {word:?} in:\n{}", answer.stderr);
    }
    let line = answer.stderr.lines().find(|line| line.contains("error:") || line.contains("failed:"));
    println!("{:.1} s: {}", answer.took.as_secs_f64(), line.unwrap_or(&answer.stderr));
    assert_eq!(page(kiln), "hello from release-2\n", "what served before");
}

fn failing(kiln: &Kiln, project: &Project, good: &str) {
    project.write("kiln.toml", good);
    project.edit("src/main.c", "int main(void) {", "int main(void) { undeclared();");
    project.commit("an error");
    taken_back(kiln, project, &["command 1 of 2, `make`,", "status 2", "src/main.c:", "undeclared"]);
    let why = kiln.in_project(project, &["why"]).expect(0).stdout;
    assert!(why.contains("src/main.c:"), "{why}");
    project.edit("src/main.c", "int main(void) { undeclared();", "int main(void) {");

    with_run(project, good, r#"["mkdir -p /out/bin", "touch /out/bin/other"]"#, "");
    taken_back(kiln, project, &["`build:/out/app` is not in the builder; `/out` has bin"]);
    with_run(project, good, r#"["mkdir /out", "cp /bin/su /out/app", "chmod 4755 /out/app"]"#, "");
    taken_back(kiln, project, &["`/out/app` has a set-id"]);
    with_run(
        project,
        good,
        r#"["getent ahosts example.com || perl -e 'die qq(Could not resolve host: example.com)'"]"#,
        "",
    );
    taken_back(kiln, project, &["no network in a build: commit or vendor"]);
}

fn limits(kiln: &Kiln, project: &Project, good: &str) {
    let cases = [
        (r#"["echo begun", "perl -e 'my @x; push @x, q(x) x 1000000 while 1'"]"#, "memory = \"64MiB\""),
        (r#"["echo begun", "head -c 1000000000 /dev/zero > /big"]"#, "disk = \"16MiB\""),
        (r#"["echo begun", "for n in $(seq 50); do sleep 60 & done; wait"]"#, "pids = 16"),
        (r#"["echo begun; sleep 1000"]"#, "time = \"1s\""),
    ];
    for (run, limit) in cases {
        with_run(project, good, run, limit);
        taken_back(kiln, project, &[&format!("`build.{limit}` of kiln.toml"), "begun"]);
    }
    let left = Inventory::take(kiln.state.path());
    assert!(!left.cgroups.iter().any(|group| group.contains("build.")), "{left:?}");
    assert!(!left.processes.iter().any(|process| process.contains("internal build")), "{left:?}");
}

/// kill -9 in mid-build, of the server, of the bake's worker, of the build's supervisor, leaves no process, mount, control
/// group or file.
fn killed(kiln: &mut Kiln, project: &Project, good: &str) {
    // Told from that of another run on this machine.
    let sleep = format!("sleep 1234.{}", std::process::id());
    with_run(project, good, &format!(r#"["echo begun", "{sleep}"]"#), "");
    let state = kiln.state.path().to_owned();
    let sleeping = || run_program(Command::new("pgrep").args(["-f", &format!("^{sleep}")])).code == 0;
    let groups = || Inventory::take(&state).cgroups.iter().filter(|group| group.contains("/build.")).count();
    let supervisor = || {
        let line = format!("internal build {}", state.display());
        let found = run_program(Command::new("pgrep").args(["-o", "-f", &line])).stdout;
        found.trim().to_owned()
    };
    for victim in ["worker", "supervisor", "server"] {
        let mut client = kiln.command(project.dir.path(), &["bake"]);
        let client = client.stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::null());
        let mut client = client.spawn().expect("kiln bake");
        wait_until("the build runs", LIMIT, || sleeping() && groups() > 0);
        let pid = supervisor();
        match victim {
            "server" => kiln.kill(),
            "worker" => kill(&parent(&pid)),
            _ => kill(&pid),
        }
        wait_until("nothing of it runs", LIMIT, || {
            !sleeping() && supervisor().is_empty() && Inventory::take(&state).mounts.is_empty()
        });
        if victim == "server" {
            wait_until("the group is gone without a server", LIMIT, || groups() == 0);
            // It would wait for a server to come back.
            client.kill().expect("the client ends");
            kiln.start(&[]);
        }
        assert!(!client.wait().expect("the client ends").success());
        wait_until("the group is gone", LIMIT, || groups() == 0);
        println!("killed the {victim}: nothing left");
    }
    let tmp = std::fs::read_dir(state.join("objects/tmp")).expect("objects/tmp");
    assert_eq!(tmp.count(), 0, "files of the interrupted builds");
    project.write("kiln.toml", good);
    project.commit("good again");
    kiln.in_project(project, &["deploy"]).expect(0);
}

fn kill(pid: &str) {
    run_program(Command::new("kill").args(["-9", pid])).expect(0);
}

fn parent(pid: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the supervisor lives");
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.expect("a parent").trim().to_owned()
}
