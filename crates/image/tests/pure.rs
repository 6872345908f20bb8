//! The bake is pure: every image of the examples, baked in two state folders on two file systems, by workers with other
//! `umask`, `HOME`, `TZ`, `LANG`, `PATH`, host name and clock, with maintainer scripts that see another clock too, has the
//! same digest, layer by layer.
//!
//! The clock of the scripts is Debian's libfaketime, put into the base by a package of the test: nothing of the host's
//! environment reaches the scripts, so there is no other way in. Needs root, the packages of the examples in
//! `target/mirror`, `libfaketime` and `dpkg-deb`. It plays worker, installer and supervisor of builds itself.

use kiln_image::bake::{BakeJob, Baked, manifest};
use kiln_image::compare::first_difference;
use kiln_image::debian::lock::base_name;
use kiln_image::debian::{Mirror, resolve_lock, rootfs};
use kiln_image::erofs::Reader;
use kiln_image::{Objects, Sources, builder, worker};
use kiln_model::{CommitId, Digest, ProjectName};
use kiln_spec::Project;
use kiln_spec::lock::{Lock, LockedPackage};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

const LIBFAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
const DAY_S: u64 = 86_400;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if let (Some("internal"), Some(part)) = (args.next().as_deref(), args.next().as_deref()) {
        return match part {
            "bake" => worker::main(),
            "rootfs" => rootfs::main(args),
            "build" => builder::main(),
            _ => ExitCode::from(64),
        };
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: bakes of Debian images need root");
        return ExitCode::SUCCESS;
    }
    for (path, how) in [
        (root.join("target/mirror"), "run `.ci/mirror`"),
        (LIBFAKETIME.into(), "`apt-get install libfaketime`"),
        ("/dev/shm".into(), "mount a tmpfs there"),
    ] {
        if !path.exists() {
            println!("SKIPPED: no {}: {how}", path.display());
            return ExitCode::SUCCESS;
        }
    }
    let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let kinds = [&disk, &memory].map(|dir| rustix::fs::statfs(dir.path()).unwrap().f_type);
    assert_ne!(kinds[0], kinds[1], "both state folders are on one kind of file system");
    let hosts = [Host::plain(disk.path(), 0), Host::strange(memory.path(), 400)];
    let mut n_images = 0;
    for example in ["shop", "guestbook", "compiled"] {
        n_images += compare(&root, example, &hosts);
    }
    println!(
        "{n_images} images are the same on two hosts (file systems {:#x} and {:#x})",
        kinds[0], kinds[1]
    );
    ExitCode::SUCCESS
}

/// Where a bake happens.
struct Host {
    state: PathBuf,
    /// How far its clock is ahead.
    days: u64,
    umask: &'static str,
    name: &'static str,
    environment: &'static [(&'static str, &'static str)],
}

impl Host {
    fn plain(state: &Path, days: u64) -> Self {
        let environment = &[("HOME", "/root"), ("TZ", "UTC"), ("LANG", "C.UTF-8")];
        Self { state: state.to_owned(), days, umask: "022", name: "plain", environment }
    }

    fn strange(state: &Path, days: u64) -> Self {
        let environment = &[
            ("HOME", "/nowhere/at all"),
            ("TZ", "Pacific/Kiritimati"),
            ("LANG", "tr_TR.UTF-8"),
            ("LC_ALL", "tr_TR.UTF-8"),
            ("SOURCE_DATE_EPOCH", "1"),
            ("DEBIAN_FRONTEND", "dialog"),
            ("GIT_DIR", "/nowhere"),
            ("TMPDIR", "/nowhere"),
        ];
        Self { state: state.to_owned(), days, umask: "077", name: "strange.example", environment }
    }

    /// Has a worker bake on this host.
    fn bake(&self, job: &BakeJob) -> Baked {
        let mut command = Command::new("unshare");
        let script = "hostname \"$1\" && umask \"$2\" && shift 2 && exec \"$@\"";
        command.args(["--uts", "--", "sh", "-c", script, "sh", self.name, self.umask]);
        command.arg(std::env::current_exe().unwrap()).args(["internal", "bake"]);
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
            .envs(self.environment.iter().copied());
        if self.days > 0 {
            command.env("LD_PRELOAD", LIBFAKETIME).env("FAKETIME", format!("+{}d", self.days));
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&serde_json::to_vec(job).unwrap()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap();
        serde_json::from_value(last["done"].clone()).unwrap_or_else(|_| panic!("{}: {text}", self.name))
    }

    /// The package that gives the maintainer scripts this host's clock. It leaves the same files behind on every host.
    fn clock(&self, dir: &Path, objects: &Objects) -> LockedPackage {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let tree = dir.join("clock");
        let _ = fs::remove_dir_all(&tree);
        let mut library = fs::read(LIBFAKETIME).unwrap();
        // It takes its offset from a place that no image keeps, and shows the times of files as they are.
        patch(&mut library, b"/etc/faketimerc\0", b"/var/tmp/clock\0");
        patch(&mut library, b"NO_FAKE_STAT\0", b"PATH\0");
        let expected = now + self.days * DAY_S - DAY_S / 2;
        let check = format!(
            "test \"$(date +%s)\" -gt \"$(cat /var/tmp/expected)\" && test \"$(date +%s)\" -lt $(( $(cat /var/tmp/expected) + {DAY_S} ))"
        );
        for (path, content, mode) in [
            ("DEBIAN/control", CONTROL.as_bytes(), 0o644),
            ("DEBIAN/postinst", format!("#!/bin/sh\n{check}\n").as_bytes(), 0o755),
            ("etc/ld.so.preload", b"/usr/lib/clock.so\n", 0o644),
            ("usr/lib/clock.so", &library, 0o644),
            ("var/tmp/clock", format!("+{}d\n", self.days).as_bytes(), 0o644),
            ("var/tmp/expected", expected.to_string().as_bytes(), 0o644),
        ] {
            let path = tree.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        }
        fs::set_permissions(tree.join("var/tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o1777))
            .unwrap();
        let deb = dir.join("clock.deb");
        let mut build = Command::new("dpkg-deb");
        build.args(["-Znone", "--root-owner-group", "--build"]).arg(&tree).arg(&deb);
        let built = build.env("SOURCE_DATE_EPOCH", "1600000000").stdout(Stdio::null()).status().unwrap();
        assert!(built.success());
        let bytes = fs::read(&deb).unwrap();
        LockedPackage {
            name: "zz-clock".into(),
            version: "1".into(),
            architecture: "all".into(),
            sha256: objects.put(&bytes).unwrap(),
            size: bytes.len() as u64,
            path: "pool/clock.deb".into(),
            suite: "bookworm".into(),
            used_by: BTreeSet::from([base_name("bookworm")]),
        }
    }
}

const CONTROL: &str = "Package: zz-clock\nVersion: 1\nArchitecture: all\nMaintainer: tests <tests@kiln.test>\nDescription: another clock\n";

fn patch(library: &mut [u8], from: &[u8], to: &[u8]) {
    let at = library.windows(from.len()).position(|window| window == from).expect("another libfaketime");
    library[at..at + from.len()].fill(0);
    library[at..at + to.len()].copy_from_slice(to);
}

/// Bakes all images of an example on all hosts; answers with their number.
fn compare(root: &Path, example: &str, hosts: &[Host]) -> usize {
    let work = tempfile::tempdir().unwrap();
    let (commit, pack) = committed(root, example, work.path());
    let text = fs::read_to_string(work.path().join("kiln.toml")).unwrap();
    let project = Project::parse(&text, "kiln.toml").unwrap();
    let mirror = root.join("target/mirror");
    let address = format!("file:{}", mirror.display());
    let lock =
        resolve_lock(&Mirror::parse(&address).unwrap(), &project.recipes().debian, None, false).unwrap();
    let mut found: BTreeMap<String, Vec<Baked>> = BTreeMap::new();
    for host in hosts {
        let objects = Objects::open(&host.state.join("objects")).unwrap();
        let mut lock: Lock = lock.clone();
        lock.packages.push(host.clock(&host.state, &objects));
        Sources::new(&host.state.join("repos")).accept(&project.name, &commit, &mut &pack[..]).unwrap();
        for (name, recipe) in &project.images {
            let job = BakeJob {
                state: host.state.clone(),
                project: ProjectName::new(project.name.as_str()).unwrap(),
                commit: commit.clone(),
                recipe: recipe.clone(),
                lock: Some(lock.clone()),
                mount_points: project.writable_of(name),
                mirror: Some(address.clone()),
                program: std::env::current_exe().unwrap(),
                images: BTreeMap::new(),
                registry_auth: None,
                is_builder: false,
                describe: false,
            };
            let baked = host.bake(&job);
            println!("{example}/{name} on {}: {}", host.name, baked.image);
            found.entry(name.to_string()).or_default().push(baked);
        }
    }
    for (name, baked) in &found {
        if baked.iter().any(|other| other.image != baked[0].image) {
            panic!("{example}/{name} differs: {}", explain(hosts, baked));
        }
    }
    found.len()
}

/// The first file that differs between the images of the two hosts.
fn explain(hosts: &[Host], baked: &[Baked]) -> String {
    let layers = |n: usize| {
        let objects = Objects::open(&hosts[n].state.join("objects")).unwrap();
        let manifest = manifest(&objects, baked[n].image).unwrap();
        let open =
            |digest: Digest| Reader::open(File::open(objects.path(digest)).unwrap()).unwrap().tree().unwrap();
        manifest.layers.into_iter().map(|layer| (layer.role, open(layer.digest))).collect::<Vec<_>>()
    };
    for ((role, a), (_, b)) in layers(0).into_iter().zip(layers(1)) {
        if let Some(difference) = first_difference(&a, &b).unwrap() {
            return format!("layer {role}: {difference}");
        }
    }
    "the same files, other manifests".into()
}

/// A commit of an example, with its pack.
fn committed(root: &Path, example: &str, dir: &Path) -> (CommitId, Vec<u8>) {
    let copied =
        Command::new("cp").arg("-r").arg(root.join("examples").join(example).join(".")).arg(dir).status();
    assert!(copied.unwrap().success());
    fs::create_dir_all(dir.join("bin")).unwrap();
    fs::write(dir.join("bin/api"), "the compiled program of the shop").unwrap();
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        command.arg("-C").arg(dir).args(["-c", "user.name=t", "-c", "user.email=t@kiln.test"]).args(args);
        command.env("GIT_COMMITTER_DATE", "1700000000 +0000").env("GIT_AUTHOR_DATE", "1700000000 +0000");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    git(&["init", "-q"]);
    git(&["add", "-A"]);
    git(&["commit", "-q", "-m", "first"]);
    let commit = String::from_utf8(git(&["rev-parse", "HEAD"])).unwrap();
    let pack = git(&["pack-objects", "--all", "--stdout", "-q"]);
    (commit.trim().parse().unwrap(), pack)
}
