//! Images are the same bytes wherever they are baked, and a changed file of the application makes a new small layer only.

use kiln_tests::{Kiln, Project, free_address, kiln_program, run as run_program, wait_until};
use std::process::{Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

pub fn run() {
    let (first, second) = (Kiln::started(&free_address()), Kiln::started(&free_address()));
    let project = Project::from_example("shop");
    let lock = first.in_project(&project, &["lock"]).expect(0);
    project.commit("locked");
    let cold = first.in_project(&project, &["bake", "--json"]).expect(0);
    let again = first.in_project(&project, &["bake", "--json"]).expect(0);
    let other = second.in_project(&project, &["bake", "--json"]).expect(0);
    assert_eq!(cold.json()["images"], again.json()["images"], "the same state folder twice");
    assert_eq!(cold.json()["images"], other.json()["images"], "two state folders");
    project.release(2);
    project.commit("one file of each image");
    let mut changed_s = vec![];
    for n in 3..8 {
        let changed = first.in_project(&project, &["bake", "--json"]).expect(0);
        assert_ne!(changed.json()["images"], cold.json()["images"]);
        changed_s.push(changed.took.as_secs_f64());
        project.release(n);
        project.commit("again");
    }
    changed_s.sort_by(f64::total_cmp);
    println!(
        "lock {:.2} s; cold bake of both images {:.1} s, in another folder {:.1} s, nothing changed {:.2} s, one file of each changed: median {:.2} s, worst {:.2} s; digests {}",
        lock.took.as_secs_f64(),
        cold.took.as_secs_f64(),
        other.took.as_secs_f64(),
        again.took.as_secs_f64(),
        changed_s[2],
        changed_s[4],
        cold.json()["images"],
    );
    project.write("site/index.html", "uncommitted");
    let dirty = first.in_project(&project, &["deploy"]).expect(1);
    assert!(dirty.stderr.contains("site/index.html"), "{}", dirty.stderr);
    first.down();
    second.down();
    stopped_while_baking();
}

/// A bake ends with its server, and leaves no process and nothing half-made; the next server makes it.
fn stopped_while_baking() {
    let mut kiln = Kiln::started(&free_address());
    let project = Project::from_example("guestbook");
    kiln.in_project(&project, &["lock"]).expect(0);
    project.commit("locked");
    let mut client = kiln.command(project.dir.path(), &["bake"]);
    let mut client =
        client.stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("kiln bake");
    // Of this program: another checkout's tests may install packages on this host as well.
    let installer = format!("^{} internal rootfs", kiln_program().display());
    let baking = || run_program(Command::new("pgrep").args(["-f", &installer])).code == 0;
    wait_until("packages are being installed", LIMIT, baking);
    kiln.terminate();
    wait_until("nobody installs any more", LIMIT, || !baking());
    // It would wait for a server to come back.
    client.kill().and_then(|()| client.wait()).expect("the client ends");
    // The folder is made with the first layer that is kept.
    let layers = std::fs::read_dir(kiln.state.path().join("cache")).into_iter().flatten().flatten();
    let layers: Vec<_> = layers.filter(|e| !e.path().to_string_lossy().ends_with(".lock")).collect();
    assert!(layers.is_empty(), "the server waited for the bake: {layers:?}");
    kiln.start(&[]);
    kiln.in_project(&project, &["bake"]).expect(0);
    kiln.down();
}
