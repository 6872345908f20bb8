//! Bad input meets one clear error with a hint, and nothing is lost.

use crate::tiny;
use kiln_tests::{Answer, Kiln, Project, free_address, kiln_program, run as run_program, wait_until};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

/// Asserts that a command failed as it should, in words that help.
#[track_caller]
fn refused(answer: Answer, code: i32, words: &[&str]) {
    let answer = answer.expect(code);
    for word in words.iter().chain(&["error:", "hint:"]) {
        assert!(answer.stderr.contains(word), "no {word:?} in:\n{}", answer.stderr);
    }
    assert_eq!(answer.stderr.matches("hint: ").count(), 1, "one hint:\n{}", answer.stderr);
    assert!(!answer.stderr.contains("panicked"), "{}", answer.stderr);
    tell(&answer);
}

/// Prints the error, for whoever reads the log of the test.
fn tell(answer: &Answer) {
    let line = answer.stderr.lines().find(|line| line.starts_with("error:"));
    println!("{}", line.expect("an error"));
}

pub fn run() {
    let kiln = Kiln::started(&free_address());
    let project = tiny::project();
    kiln.in_project(&project, &["deploy"]).expect(0);
    let before = tiny::environment(&kiln)["serving"].clone();

    project.edit("kiln.toml", "instances = 2", "instances = 2\ninstancez = 3");
    project.commit("an unknown key");
    let unknown_key = ["instancez", "error: kiln.toml:11:1: ", "hint: did you mean `instances`?"];
    refused(kiln.in_project(&project, &["deploy"]), 1, &unknown_key);
    project.write("kiln.toml", &tiny::TOML.replace("bin/api\", to", "bin/none\", to"));
    project.commit("a missing file");
    let answer = kiln.in_project(&project, &["deploy"]).expect(1);
    assert!(answer.stderr.contains("bin/none"), "{}", answer.stderr);
    tell(&answer);
    project.write("kiln.toml", tiny::TOML);
    project.commit("good again");

    names_that_do_not_exist(&kiln, &project);
    refused(kiln.cli(Path::new("/"), &["deploy"]), 64, &["kiln.toml"]);
    refused(kiln.in_project(&project, &["rollback", "--to", "77"]), 1, &["77"]);
    second_server(&kiln);
    port_in_use();
    without_root();
    no_way_to_start();
    read_only();
    full_disk(&project);
    assert_eq!(tiny::environment(&kiln)["serving"], before, "what served was never touched");
    kiln.down();
}

/// A mistyped name is told; an empty answer would read as "all is well".
fn names_that_do_not_exist(kiln: &Kiln, project: &Project) {
    for command in ["status", "why", "logs", "release list", "instance list", "image list", "audit"] {
        let words: Vec<&str> = command.split(' ').chain(["--env", "prodction"]).collect();
        refused(kiln.in_project(project, &words), 1, &["shop/prodction"]);
        refused(kiln.cli(Path::new("/"), &words), 1, &["`prodction`"]);
    }
    refused(kiln.in_project(project, &["logs", "ap"]), 1, &["`ap`"]);
    refused(kiln.in_project(project, &["logs", "--release", "77"]), 1, &["77"]);
    refused(kiln.in_project(project, &["logs", "--instance", "api-77"]), 1, &["api-77"]);
    kiln.in_project(project, &["logs", "api", "--env", "production", "--release", "1"]).expect(0);
}

/// A server that could not work says so at its start, and what to give it.
fn no_way_to_start() {
    let kiln = Kiln::new(&free_address());
    let serve = |more: &[&str]| {
        let mut command = Command::new(kiln_program());
        let socket = kiln.state.path().join("kiln.sock");
        command.arg("serve").arg("--state").arg(kiln.state.path());
        run_program(command.arg("--listen").arg(format!("unix:{}", socket.display())).args(more))
    };
    refused(serve(&[]), 64, &["without an address for traffic", "--edge 0.0.0.0:80"]);
    refused(serve(&["--edge", &kiln.edge, "--mirror", "somewhere"]), 64, &["`somewhere`", "--mirror file:"]);
    kiln.down();
}

/// A second server on the state folder that another one uses.
fn second_server(kiln: &Kiln) {
    let other = kiln.state.path().join("other.sock");
    let mut command = Command::new(kiln_program());
    command.arg("serve").arg("--state").arg(kiln.state.path()).arg("--edge").arg(free_address());
    command.arg("--listen").arg(format!("unix:{}", other.display()));
    refused(run_program(&mut command), 1, &["in use", "pid"]);
}

fn port_in_use() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback is up");
    let kiln = Kiln::new(&listener.local_addr().expect("bound").to_string());
    refused(run_program(&mut kiln.serve_command()), 1, &[&kiln.edge.clone()]);
    kiln.down();
}

fn without_root() {
    let state = tempfile::tempdir().expect("temporary folder");
    let program = state.path().join("kiln");
    std::fs::copy(kiln_program(), &program).expect("a copy that others may run");
    for path in [state.path(), &program] {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("mode");
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(&program);
    command.arg("serve").arg("--state").arg(state.path().join("state"));
    refused(run_program(&mut command), 1, &["root"]);
}

/// A state folder that cannot be written.
fn read_only() {
    let state = tempfile::tempdir().expect("temp dir");
    let mut mount = Command::new("mount");
    run_program(mount.args(["-t", "tmpfs", "-o", "ro", "tmpfs"]).arg(state.path())).expect(0);
    let answer = run_program(Command::new(kiln_program()).arg("serve").arg("--state").arg(state.path()));
    run_program(Command::new("umount").arg(state.path())).expect(0);
    refused(answer, 1, &["Read-only file system", "name a folder that can be made and written"]);
}

/// A state folder on a small file system: the bake fails in plain words, and works when there is space again.
fn full_disk(project: &Project) {
    let mut kiln = Kiln::new(&free_address());
    let state = kiln.state.path().to_owned();
    let mount = |option: &str| {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", option, "tmpfs"]).arg(&state);
        run_program(&mut command).expect(0);
    };
    mount("size=24m");
    kiln.start(&[]);
    kiln.in_project(project, &["deploy"]).expect(0);
    let mut noise = vec![0; 30 << 20];
    let random = std::fs::File::open("/dev/urandom").expect("random bytes");
    std::io::Read::read_exact(&mut &random, &mut noise).expect("random bytes");
    std::fs::write(project.path("site/noise"), noise).expect("noise");
    project.commit("too big for an upload");
    refused(kiln.in_project(project, &["deploy"]), 1, &["No space left", "free some space"]);
    std::fs::remove_file(project.path("site/noise")).expect("noise");
    project.write("site/big", &"x".repeat(20 << 20));
    project.write(
        "kiln.toml",
        &tiny::TOML.replace("copy = [", "copy = [{ from = \"site/big\", to = \"/srv/big\" }, "),
    );
    project.commit("too big");
    let answer = kiln.in_project(project, &["deploy"]).expect(1);
    assert!(answer.stderr.contains("full") || answer.stderr.contains("space"), "{}", answer.stderr);
    tell(&answer);
    mount("remount,size=128m");
    kiln.in_project(project, &["deploy"]).expect(0);
    kiln.in_project(project, &["audit", "verify"]).expect(0);
    full_while_serving(&mut kiln, project);
    project.write("kiln.toml", tiny::TOML);
    std::fs::remove_file(project.path("site/big")).expect("big");
    project.commit("small again");
    // The mount has to go before the folder can.
    kiln.kill();
    let down = || run_program(Command::new(kiln_program()).arg("down").arg("--state").arg(&state));
    let fill = state.join("fill");
    fill_up(&mut std::fs::File::create(&fill).expect("fill"));
    refused(down(), 1, &["No space left", "`kiln down` again"]);
    let [processes, _the_disk, links, cgroups, _] = tiny::counts(&kiln);
    assert_eq!([processes, links, cgroups], [0; 3], "nothing runs, although that cannot be written down");
    std::fs::remove_file(fill).expect("fill");
    down().expect(0);
    run_program(Command::new("umount").arg("--lazy").arg(&state)).expect(0);
}

/// Writes until nothing more fits.
fn fill_up(file: &mut std::fs::File) {
    for size in [1 << 20, 4096, 1] {
        let chunk = vec![0; size];
        while std::io::Write::write_all(file, &chunk).is_ok() {}
    }
}

/// With a full disk commands are still recorded, in the space that the store keeps for itself. When that is full as well, not
/// even a command can be: it is refused, the server gives up, traffic goes on, and with space again the next server goes on
/// where it was.
fn full_while_serving(kiln: &mut Kiln, project: &Project) {
    let fill = kiln.state.path().join("fill");
    let mut file = std::fs::File::create(&fill).expect("fill");
    // Both mean two instances: something to record, and nothing to do.
    let mut numbers = ["api=2", "api=default"].iter().cycle();
    let mut scale = || kiln.in_project(project, &["scale", numbers.next().expect("endless")]);
    fill_up(&mut file);
    let reserve = kiln.state.path().join("kiln.reserve");
    wait_until("the reserve is needed", LIMIT, || {
        scale().expect(0);
        !reserve.exists()
    });
    scale().expect(0);
    fill_up(&mut file);
    let mut answer = scale();
    wait_until("a command is refused", LIMIT, || {
        answer = scale();
        answer.code != 0
    });
    // Whichever wrote first, the command or the server for itself.
    let word = if answer.stderr.contains("no server answers") { "no server" } else { "full" };
    refused(answer, 1, &[word]);
    wait_until("the server gives up", LIMIT, || kiln.exited());
    assert!(kiln.log().contains("disk is full"), "{}", kiln.log());
    let mut load = tiny::load(kiln, 200);
    wait_until("traffic goes on", LIMIT, || load.snapshot()["requests"].as_u64() > Some(50));
    tiny::all_answered(&load.stop());
    drop(file);
    std::fs::remove_file(fill).expect("fill");
    kiln.start(&[]);
    kiln.in_project(project, &["scale", "api=3"]).expect(0);
    let serving = |kiln: &Kiln| tiny::instances(&tiny::environment(kiln), &["serving"]).len();
    wait_until("three serve", LIMIT, || serving(kiln) == 3);
    println!("a full disk while serving: refused, traffic went on, and the next server as well");
}
