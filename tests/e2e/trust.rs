//! Only what somebody trusted vouches for, and what still is what it was, starts. What serves goes on meanwhile, and what can
//! be mended is mended.

use crate::tiny::{self, environment, instances};
use kiln_tests::{Kiln, Project, free_address, root, run as run_program, wait_until};
use serde_json::Value;
use std::collections::BTreeSet;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

pub fn run() {
    let mut kiln = Kiln::started(&free_address());
    let project = tiny::project();
    tiny::deploy(&kiln, &project, 1).expect(0);
    let image = serving_image(&kiln, &project);
    documents(&kiln, &project, &image);
    the_key_is_nowhere_else(&kiln);
    let mut load = tiny::load(&kiln, 50);
    let layer = layer_of(&kiln, &project, &image);
    damage_is_mended(&kiln, &project, &image, &[&layer, &image]);
    without_a_source(&kiln, &project, &layer);
    foreign_keys(&mut kiln, &project);
    a_removed_key(&kiln, &project);
    wait_until("the client had answers", LIMIT, || load.snapshot()["requests"].as_u64() > Some(100));
    let report = load.stop();
    // Killing an instance may cut what it was answering; what is counted here is that the other one served on.
    let (requests, failed) = (report["requests"].as_u64(), report["failed"].as_u64());
    assert!(requests > Some(100) && failed < Some(20), "{report:#}");
    println!("{requests:?} requests meanwhile, {failed:?} cut by the kills");
    // Keys are of no project.
    let audit = kiln.cli(Path::new("/"), &["audit"]).expect(0).stdout;
    for kind in ["image.damaged", "image.refused", "key.signs", "key.trusted", "key.removed"] {
        assert!(audit.contains(kind), "{kind}: {audit}");
    }
    kiln.in_project(&project, &["audit", "verify"]).expect(0);
    kiln.down();
}

fn serving_image(kiln: &Kiln, project: &Project) -> String {
    let list = kiln.in_project(project, &["image", "list", "--json"]).expect(0).json();
    let images = list["images"].as_array().expect("images");
    let serving = |image: &&Value| {
        image["used_by"].as_array().is_some_and(|uses| uses.iter().any(|used| used["serving"] == true))
    };
    images.iter().find(serving).expect("one serves")["digest"].as_str().expect("digest").to_owned()
}

fn layer_of(kiln: &Kiln, project: &Project, image: &str) -> String {
    let shown = kiln.in_project(project, &["image", "show", image, "--json"]).expect(0).json();
    shown["manifest"]["layers"][0]["digest"].as_str().expect("a layer").to_owned()
}

/// What the commands print is what the official libraries accept; the tests of the image crate judge more of it.
fn documents(kiln: &Kiln, project: &Project, image: &str) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    for (format, name) in [("spdx", "image.spdx.json"), ("cyclonedx", "image.cdx.json")] {
        write(
            name,
            &kiln.in_project(project, &["image", "sbom", image, "--format", format]).expect(0).stdout,
        );
    }
    let hex = image.trim_start_matches("sha256:");
    let statement = kiln.state.path().join("images").join(format!("{hex}.json"));
    std::fs::copy(statement, folder.path().join("statement.json")).expect("a statement");
    write("key.pem", &kiln.in_project(project, &["key", "show", "--pem"]).expect(0).stdout);
    let python = root().join("target/validators/bin/python");
    assert!(python.exists(), "no `{}`: run `.ci/validators`", python.display());
    let mut validate = Command::new(python);
    validate.arg(root().join("crates/image/tests/validate.py")).arg(folder.path());
    print!("{}", run_program(&mut validate).expect(0).stdout);
    let shown = kiln.in_project(project, &["image", "show", image]).expect(0).stdout;
    assert!(shown.contains("signed by: key ") && shown.contains("builder: kiln "), "{shown}");
}

/// The private key is in its own file, and in no other file of the state folder, command line or output.
fn the_key_is_nowhere_else(kiln: &Kiln) {
    let path = kiln.state.path().join("keys/signing.pem");
    assert_eq!(std::fs::metadata(&path).expect("a key").permissions().mode() & 0o777, 0o600);
    let pem = std::fs::read_to_string(&path).expect("a key");
    let body = pem.lines().nth(1).expect("PEM").to_owned();
    let openssl = ["pkey", "-text", "-noout", "-in"];
    let text = run_program(Command::new("openssl").args(openssl).arg(&path)).expect(0).stdout;
    let seed: String =
        text.split("priv:").nth(1).expect("openssl reads it").split("pub:").next().expect("priv").into();
    let seed: String = seed.chars().filter(char::is_ascii_hexdigit).collect();
    assert_eq!(seed.len(), 64);
    let raw: Vec<u8> =
        (0..32).map(|n| u8::from_str_radix(&seed[2 * n..2 * n + 2], 16).expect("hex")).collect();
    // The last 40 characters of the base64 are of the secret part alone.
    let canaries: [&[u8]; 3] = [&body.as_bytes()[body.len() - 40..], seed.as_bytes(), &raw];
    let (mut n_files, mut folders) = (0, vec![kiln.state.path().to_owned()]);
    let shows = |bytes: &[u8]| canaries.iter().any(|c| bytes.windows(c.len()).any(|window| window == *c));
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
            let kind = entry.file_type().expect("a type");
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && entry.path() != path {
                n_files += 1;
                assert!(
                    !shows(&std::fs::read(entry.path()).expect("readable")),
                    "{}",
                    entry.path().display()
                );
            }
        }
    }
    assert!(shows(pem.as_bytes()) && n_files > 20, "{n_files} files");
    for process in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let arguments = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        assert!(!shows(&arguments), "{}", String::from_utf8_lossy(&arguments));
    }
    println!("the signing key is in none of {n_files} other files");
}

fn object(kiln: &Kiln, digest: &str) -> PathBuf {
    let hex = digest.trim_start_matches("sha256:");
    kiln.state.path().join("objects/sha256").join(&hex[..2]).join(&hex[2..])
}

/// Changes one bit in the middle of an object, as a disk or a hand does it.
fn flip(path: &Path) {
    assert_eq!(std::fs::metadata(path).expect("an object").permissions().mode() & 0o777, 0o444);
    let file = std::fs::File::options().read(true).write(true).open(path).expect("root may");
    let at = file.metadata().expect("an object").len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    file.write_all_at(&[byte[0] ^ 1], at).expect("a byte");
}

/// Kills one serving instance; answers which.
fn kill_one(kiln: &Kiln) -> String {
    let victim = instances(&environment(kiln), &["serving"]).pop_first().expect("an instance");
    let record = kiln.state.path().join("instances").join(&victim).join("process.json");
    let record: Value = serde_json::from_slice(&std::fs::read(record).expect("a record")).expect("JSON");
    run_program(Command::new("kill").args(["-KILL", &record["pid"].to_string()])).expect(0);
    victim
}

fn healed(kiln: &Kiln, victim: &str) {
    wait_until("two serve again", LIMIT, || {
        let now = instances(&environment(kiln), &["serving"]);
        now.len() == 2 && !now.contains(victim)
    });
}

fn why(kiln: &Kiln, project: &Project, words: &[&str]) {
    let mut said = String::new();
    wait_until(&format!("`kiln why` says {words:?}"), LIMIT, || {
        said = kiln.in_project(project, &["why"]).expect(0).stdout;
        words.iter().all(|word| said.contains(word))
    });
    println!("kiln why:\n{said}");
}

fn damage_is_mended(kiln: &Kiln, project: &Project, image: &str, objects: &[&str]) {
    for digest in objects {
        kiln.in_project(project, &["image", "verify", image]).expect(0);
        flip(&object(kiln, digest));
        let verify = kiln.in_project(project, &["image", "verify", "--all"]).expect(1);
        assert!(verify.stderr.contains(digest) && verify.stderr.contains(image), "{}", verify.stderr);
        let report = kiln.in_project(project, &["image", "verify", image, "--json"]).expect(1).json();
        assert!(
            report["images"][0]["broken"][0]["part"].as_str().expect("a part").contains(digest),
            "{report}"
        );
        let victim = kill_one(kiln);
        healed(kiln, &victim);
        let audit = kiln.in_project(project, &["audit"]).expect(0).stdout;
        let told = |line: &str| line.contains("image.damaged") && line.contains(digest);
        assert!(audit.lines().any(told), "{audit}");
        kiln.in_project(project, &["image", "verify", image]).expect(0);
        println!("{digest} was damaged, found, and made again; {victim} was replaced");
    }
    // Without waiting for a start.
    flip(&object(kiln, objects[0]));
    let mended = kiln.in_project(project, &["image", "verify", image, "--mend"]).expect(0).stdout;
    assert!(mended.contains("was baked again from commit") && mended.contains(objects[0]), "{mended}");
    // What stands beside the image.
    let hex = image.trim_start_matches("sha256:");
    for name in [format!("{hex}.spdx.json"), format!("{hex}.cdx.json"), format!("{hex}.json")] {
        let path = kiln.state.path().join("images").join(name);
        let good = std::fs::read(&path).expect("a document");
        let mut bad = good.clone();
        let at = bad.len() / 2;
        bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
        std::fs::write(&path, bad).expect("written");
        kiln.in_project(project, &["image", "verify", image]).expect(1);
        std::fs::write(&path, good).expect("written");
    }
    std::fs::write(kiln.state.path().join(format!("images/{hex}.spdx.json")), "").expect("written");
    kiln.in_project(project, &["image", "verify", image, "--mend"]).expect(0);
    kiln.in_project(project, &["image", "verify", image]).expect(0);
}

/// A damaged image that cannot be baked again is refused until it is whole.
fn without_a_source(kiln: &Kiln, project: &Project, layer: &str) {
    let (repos, away) = (kiln.state.path().join("repos"), kiln.state.path().join("repos.away"));
    let path = object(kiln, layer);
    let good = std::fs::read(&path).expect("a layer");
    std::fs::rename(&repos, &away).expect("renamed");
    flip(&path);
    let victim = kill_one(kiln);
    why(kiln, project, &["starting `", "failed", layer, "(app)", "is damaged", "cannot be mended"]);
    let serving = instances(&environment(kiln), &["serving"]);
    assert!(
        serving.len() == 1 && !serving.contains(&victim),
        "what serves goes on, nothing else starts: {serving:?}"
    );
    std::fs::rename(&away, &repos).expect("renamed");
    if path.exists() {
        std::fs::remove_file(&path).expect("removed");
    }
    std::fs::write(&path, good).expect("written");
    healed(kiln, &victim);
}

/// With a list of keys that lacks the one that signed, no instance starts; with the key in it, it does.
fn foreign_keys(kiln: &mut Kiln, project: &Project) {
    let own = kiln.in_project(project, &["key", "show"]).expect(0).stdout;
    let id = kiln.in_project(project, &["key", "list", "--json"]).expect(0).json()["keys"][0]["id"].clone();
    let folder = tempfile::tempdir().expect("temporary folder");
    let (pem, list) = (folder.path().join("ci.pem"), folder.path().join("trusted"));
    run_program(Command::new("openssl").args(["genpkey", "-algorithm", "ed25519", "-out"]).arg(&pem))
        .expect(0);
    std::fs::set_permissions(&pem, std::fs::Permissions::from_mode(0o600)).expect("0600");
    std::fs::write(&list, "# nobody\n").expect("written");
    kiln.terminate();
    let option = |path: &Path| path.display().to_string();
    kiln.start_with(&["--trust", &option(&list), "--signing-key", &option(&pem)]);
    wait_until("two serve", LIMIT, || instances(&environment(kiln), &["serving"]).len() == 2);
    let victim = kill_one(kiln);
    let short = &id.as_str().expect("id")[..12];
    why(kiln, project, &["starting `", &format!("is signed by key {short}, which is not trusted")]);
    assert_eq!(instances(&environment(kiln), &["serving"]).len(), 1);
    // A deploy of what this server signs with a key that nobody trusts is taken back.
    let refused = tiny::deploy(kiln, project, 2).expect(1);
    assert!(
        refused.stderr.contains("which is not trusted") || refused.stdout.contains("which is not trusted"),
        "{refused:?}"
    );
    std::fs::write(&list, &own).expect("written");
    healed(kiln, &victim);
    kiln.terminate();
    kiln.start_with(&[]);
    tiny::deploy(kiln, project, 3).expect(0);
}

/// What a removed key signed starts no more, until the commit is baked again and so signed by another.
fn a_removed_key(kiln: &Kiln, project: &Project) {
    let ids = |answer: Value| -> BTreeSet<String> {
        let keys = answer["keys"].as_array().expect("keys").clone();
        keys.iter().map(|key| key["id"].as_str().expect("id").to_owned()).collect()
    };
    let before = ids(kiln.in_project(project, &["key", "list", "--json"]).expect(0).json());
    kiln.in_project(project, &["key", "rotate"]).expect(0);
    tiny::deploy(kiln, project, 4).expect(0);
    kiln.in_project(project, &["rollback"]).expect(0);
    for id in &before {
        kiln.in_project(project, &["key", "remove", id]).expect(0);
    }
    let victim = kill_one(kiln);
    why(kiln, project, &["which is not trusted"]);
    kiln.in_project(project, &["bake", "--ref", "HEAD~1"]).expect(0);
    healed(kiln, &victim);
    assert_eq!(ids(kiln.in_project(project, &["key", "list", "--json"]).expect(0).json()).len(), 1);
}
