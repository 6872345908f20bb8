//! Times bakes of the real binary against buildah, mmdebstrap and mkosi, alternating in one run. `bench/image` starts it in a
//! network namespace of its own. What is not installed, or cannot work here, is left out and said so.
//!
//! `bench-image [changed] [memory] [debian]` runs those parts.

use kiln_tests::{Answer, Kiln, Project, free_address, mirror, run};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: u64 = 9;
/// Bytes of the application's program beside which one small file changes.
const PROGRAM_BYTES: usize = 10_000_000;
/// Bytes of the image whose bake is watched.
const LARGE_BYTES: usize = 1_000_000_000;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |part: &str| words.is_empty() || words.iter().any(|word| word == part);
    if wanted("changed") {
        changed();
    }
    if wanted("memory") {
        memory();
    }
    if wanted("debian") {
        debian();
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn ms(answer: &Answer) -> f64 {
    answer.took.as_secs_f64() * 1e3
}

fn installed(program: &str) -> bool {
    let there = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let there = there.is_ok_and(|status| status.success());
    if !there {
        println!("LEFT OUT: {program} is not installed (`apt-get install {program}`)");
    }
    there
}

/// Bytes that do not compress, and differ with `seed`.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A project with one image on `scratch`: a program and a small site.
fn project(program: &[u8]) -> Project {
    let project = Project::from_example("shop");
    let toml = "name = \"shop\"\n\n[images.app]\nbase = \"scratch\"\n\
        copy = [{ from = \"bin/\", to = \"/bin\", mode = \"0755\" }, { from = \"site/\", to = \"/srv/site\" }]\n\n\
        [services.app]\nimage = \"app\"\ncommand = [\"/bin/api\"]\nport = 9000\nhealth = { tcp = true }\n";
    project.write("kiln.toml", toml);
    // git's own compression is not what is measured.
    project.git(&["config", "core.compression", "0"]);
    std::fs::write(project.path("bin/api"), program).expect("bin/api");
    project.write("Containerfile", "FROM scratch\nCOPY bin/ /bin/\nCOPY site/ /srv/site/\n");
    for n in 0..50 {
        project.write(&format!("site/page-{n}.html"), &format!("page {n}\n"));
    }
    project.commit("bench");
    project
}

/// Asks the API itself, without the command line: how long the server takes.
fn ask_bake(kiln: &Kiln, commit: &str) -> f64 {
    let body = format!("{{\"project\":\"shop\",\"commit\":\"{commit}\"}}");
    let start = Instant::now();
    let mut stream = UnixStream::connect(kiln.socket()).expect("the server listens");
    write!(
        stream,
        "POST /v1/bake HTTP/1.1\r\nhost: kiln\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer");
    let took = start.elapsed().as_secs_f64() * 1e3;
    assert!(answer.contains("sha256:"), "{answer}");
    took
}

/// buildah with a storage of its own.
struct Buildah {
    dir: tempfile::TempDir,
}

impl Buildah {
    fn new() -> Option<Self> {
        installed("buildah").then(|| Self { dir: tempfile::tempdir().expect("temporary folder") })
    }

    fn command(&self) -> Command {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(self.dir.path().join("root"));
        command.arg("--runroot").arg(self.dir.path().join("run")).args(["--storage-driver", "overlay"]);
        command
    }

    /// `buildah bud` of the Containerfile in `dir`, with its cache of layers.
    fn bud(&self, dir: &Path, more: &[&str]) -> Answer {
        let mut command = self.command();
        command.args([
            "bud",
            "--isolation",
            "chroot",
            "--layers",
            "--timestamp",
            "1700000000",
            "-q",
            "-t",
            "bench",
        ]);
        run(command.args(more).arg(dir))
    }
}

impl Drop for Buildah {
    fn drop(&mut self) {
        // The storage's own mounts go with it.
        let _ = run(self.command().args(["rmi", "--all", "--force"]));
        let _ = run(Command::new("umount").arg(self.dir.path().join("root/overlay")));
    }
}

/// One changed file, and nothing changed.
fn changed() {
    println!("== one changed file of an image on scratch (a program of 10 MB and 51 small files)");
    println!(
        "kiln: from a git commit; uploads the change, checks it, one sealed EROFS layer with every file, sha256, fsync, manifest, provenance"
    );
    println!(
        "buildah bud --layers: from a folder; the layers of unchanged COPY lines come from its cache, the image stays in its local store (no fsync, not sealed)"
    );
    let kiln = Kiln::started(&free_address());
    let project = project(&noise(PROGRAM_BYTES, 1));
    kiln.in_project(&project, &["bake"]).expect(0);
    let buildah = Buildah::new();
    if let Some(buildah) = &buildah {
        buildah.bud(project.dir.path(), &[]).expect(0);
    }
    for what in ["a small file", "the program of 10 MB"] {
        let (mut whole, mut bake, mut again, mut look_up, mut theirs, mut idle) =
            (vec![], vec![], vec![], vec![], vec![], vec![]);
        for round in 0..ROUNDS {
            let change = |n: u64| {
                match what {
                    "a small file" => project.write("site/page-1.html", &format!("round {n}\n")),
                    _ => {
                        std::fs::write(project.path("bin/api"), noise(PROGRAM_BYTES, n + 2)).expect("bin/api")
                    }
                }
                project.commit("changed")
            };
            change(2 * round);
            whole.push(ms(&kiln.in_project(&project, &["bake"]).expect(0)));
            // The source first, so that the bake is seen alone.
            let commit = change(2 * round + 1);
            kiln.in_project(&project, &["deploy", "--plan"]).expect(0);
            bake.push(ask_bake(&kiln, &commit));
            again.push(ms(&kiln.in_project(&project, &["bake"]).expect(0)));
            look_up.push(ask_bake(&kiln, &commit));
            if let Some(buildah) = &buildah {
                theirs.push(ms(&buildah.bud(project.dir.path(), &[]).expect(0)));
                idle.push(ms(&buildah.bud(project.dir.path(), &[]).expect(0)));
            }
        }
        println!("changed: {what} (medians of {ROUNDS})");
        let row = |name: &str, mine: &[f64], theirs: &[f64]| {
            let ratio = match theirs {
                [] => String::new(),
                theirs => {
                    format!("; buildah {:6.1} ms: {:.1} times", median(theirs), median(theirs) / median(mine))
                }
            };
            println!("  {name:<44} kiln {:6.1} ms{ratio}", median(mine));
        };
        row("changed, the bake alone (source is there)", &bake, &theirs);
        row("changed, the whole command `kiln bake`", &whole, &theirs);
        row("unchanged, the server's answer", &look_up, &idle);
        row("unchanged, the whole command `kiln bake`", &again, &idle);
    }
    kiln.down();
}

/// Whether a process is a child, however distant, of the server of a state folder: others may bake on this host too.
fn descends(process: &Path, state: &str) -> bool {
    let mut process = process.to_owned();
    for _ in 0..8 {
        let status = std::fs::read_to_string(process.join("status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap_or("0").trim();
        process = Path::new("/proc").join(parent);
        let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(" serve ") && line.contains(state) {
            return true;
        }
    }
    false
}

/// The largest resident size that each kind of process had: bake workers, git, the server.
fn peaks(server: &Path, until: &mut Child) -> Vec<(&'static str, u64)> {
    let state = server.display().to_string();
    let mut peaks = vec![("bake worker", 0), ("installer", 0), ("git of the worker", 0), ("server", 0)];
    while until.try_wait().expect("wait").is_none() {
        for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let kind = match () {
                () if line.contains("internal bake") => 0,
                () if line.contains("internal rootfs") => 1,
                () if line.starts_with("git ") && line.contains("cat-file") && line.contains(&state) => 2,
                () if line.contains(" serve ") && line.contains(&state) => 3,
                () => continue,
            };
            if kind != 3 && !descends(&entry.path(), &state) {
                continue;
            }
            let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let peak = peak.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(0);
            peaks[kind].1 = peaks[kind].1.max(peak);
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    peaks.into_iter().map(|(name, kb)| (name, kb / 1000)).collect()
}

/// How much memory the bake of a large image takes.
fn memory() {
    println!("== memory of a bake of an image of 1 GB (one file of 700 MB, 3000 of 100 kB)");
    let kiln = Kiln::started(&free_address());
    let project = project(&noise(LARGE_BYTES / 10 * 7, 1));
    std::fs::create_dir_all(project.path("site/many")).expect("folder");
    for n in 0..3000 {
        std::fs::write(project.path(&format!("site/many/{n}")), noise(LARGE_BYTES / 10_000, n))
            .expect("file");
    }
    project.commit("large");
    kiln.in_project(&project, &["deploy", "--plan"]).expect(0);
    let start = Instant::now();
    let mut command = kiln.command(project.dir.path(), &["bake"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("kiln bake");
    let peaks = peaks(kiln.state.path(), &mut child);
    assert!(child.wait().expect("wait").success());
    println!("  baked in {:.1} s; peak resident memory:", start.elapsed().as_secs_f64());
    for (name, mb) in peaks.iter().filter(|(_, mb)| *mb > 0) {
        println!("  {name:<20} {mb:5} MB");
    }
    kiln.down();
}

/// Debian with nginx from stored packages, and another list of packages.
fn debian() {
    println!("== Debian 12 with nginx-light from stored packages, no network");
    println!(
        "kiln: reads the .deb files itself, runs the maintainer scripts in a sandbox, two sealed EROFS layers and the application's, sha256, fsync"
    );
    println!(
        "mmdebstrap: apt and dpkg twice, a tar file; mkosi: debootstrap and apt, a folder; buildah: apt-get in a container on an imported base"
    );
    let kiln = Kiln::started(&free_address());
    let project = Project::from_example("shop");
    let text = std::fs::read_to_string(project.path("kiln.toml")).expect("kiln.toml");
    let (api, web) = (text.find("[images.api]").expect("api"), text.find("[services.web]").expect("web"));
    let service = text.find("[services.api]").expect("api service");
    project.write("kiln.toml", &format!("{}{}", &text[..api], &text[web..service]));
    project.commit("one image");
    kiln.in_project(&project, &["lock"]).expect(0);
    project.commit("locked");
    // Fetches the packages; what is measured below finds them stored.
    kiln.in_project(&project, &["bake"]).expect(0);
    layers(&kiln);
    let sets = [r#""nginx-light""#, r#""nginx-light", "libsqlite3-0""#];
    let (mut cold, mut list, mut theirs, mut their_list) = (vec![], vec![], vec![], vec![]);
    let buildah = Buildah::new().filter(buildah_base);
    let mmdebstrap = installed("mmdebstrap");
    let mut memory = vec![];
    for round in 0..3 {
        std::fs::remove_dir_all(kiln.state.path().join("cache")).expect("cache");
        let start = Instant::now();
        let mut command = kiln.command(project.dir.path(), &["bake"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("kiln bake");
        memory = peaks(kiln.state.path(), &mut child);
        assert!(child.wait().expect("wait").success());
        cold.push(start.elapsed().as_secs_f64());
        // Undone below, so that each round begins with the same list and no layer of the other.
        project.edit("kiln.toml", sets[0], sets[1]);
        kiln.in_project(&project, &["lock"]).expect(0);
        project.commit("another list of packages");
        list.push(kiln.in_project(&project, &["bake"]).expect(0).took.as_secs_f64());
        project.git(&["reset", "-q", "--hard", "HEAD~1"]);
        std::fs::remove_dir_all(kiln.state.path().join("cache/images")).expect("cache");
        if mmdebstrap {
            theirs.push(run_mmdebstrap(&["nginx-light"]).took.as_secs_f64());
        }
        if let Some(buildah) = &buildah {
            let packages = ["nginx-light", "nginx-light libsqlite3-0"][round % 2];
            their_list.push(buildah_apt(buildah, packages, round).took.as_secs_f64());
        }
    }
    let row = |name: &str, mine: &[f64], peer: &str, theirs: &[f64]| {
        let ratio = match theirs {
            [] => String::new(),
            theirs => {
                format!("; {peer} {:5.2} s: {:.1} times", median(theirs), median(theirs) / median(mine))
            }
        };
        println!("  {name:<36} kiln {:5.2} s{ratio}", median(mine));
    };
    row("cold, all layers (3 runs)", &cold, "mmdebstrap", &theirs);
    row("another list of packages (3 runs)", &list, "buildah", &their_list);
    for (name, mb) in memory.iter().filter(|(_, mb)| *mb > 0) {
        println!("  peak resident memory: {name:<20} {mb:5} MB");
    }
    mkosi(median(&cold));
    kiln.down();
}

fn sources() -> [String; 2] {
    let mirror = mirror().canonicalize().expect("target/mirror").display().to_string();
    [
        format!("deb [trusted=yes] copy:{mirror} bookworm main"),
        format!("deb [trusted=yes] copy:{mirror}/debian-security bookworm-security main"),
    ]
}

fn run_mmdebstrap(packages: &[&str]) -> Answer {
    let dir = tempfile::tempdir().expect("temporary folder");
    let mut command = Command::new("mmdebstrap");
    command.args(["--mode=root", "--variant=essential", "--quiet"]);
    // Patterns end at the end of an option.
    command.args(["--include=?priority(required)", &format!("--include={}", packages.join(","))]);
    command.arg("bookworm").arg(dir.path().join("out.tar")).args(sources());
    run(command.env("SOURCE_DATE_EPOCH", "1700000000").env("TMPDIR", dir.path())).expect(0)
}

/// Imports a base with apt, so that buildah has what an image of a registry would give it.
fn buildah_base(buildah: &Buildah) -> bool {
    if !installed("mmdebstrap") {
        return false;
    }
    let dir = buildah.dir.path().join("base");
    std::fs::create_dir_all(&dir).expect("folder");
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--mode=root", "--variant=apt", "--quiet", "bookworm"])
        .arg(dir.join("base.tar"))
        .args(sources());
    let made = run(command.env("TMPDIR", buildah.dir.path()));
    if made.code != 0 {
        println!(
            "LEFT OUT: buildah with apt: the mirror has no apt ({})",
            made.stderr.lines().last().unwrap_or("")
        );
        return false;
    }
    let text = "FROM scratch\nADD base.tar /\n";
    std::fs::write(dir.join("Containerfile"), text).expect("Containerfile");
    let mut command = buildah.command();
    run(command.args(["bud", "--isolation", "chroot", "-q", "-t", "base"]).arg(&dir)).expect(0);
    true
}

fn buildah_apt(buildah: &Buildah, packages: &str, round: usize) -> Answer {
    let dir = tempfile::tempdir().expect("temporary folder");
    let mirror = mirror().canonicalize().expect("target/mirror");
    let lines = sources().join("\\n");
    let text = format!(
        "FROM localhost/base\nRUN printf '{lines}\\n' >/etc/apt/sources.list && rm -f /etc/apt/sources.list.d/* && apt-get -o Acquire::Languages=none update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends {packages} && echo {round}\n"
    );
    std::fs::write(dir.path().join("Containerfile"), text).expect("Containerfile");
    let volume = format!("{0}:{0}:ro", mirror.display());
    buildah.bud(dir.path(), &["--volume", &volume]).expect(0)
}

/// One run, because it takes minutes.
fn mkosi(ours: f64) {
    if !installed("mkosi") {
        return;
    }
    let dir = tempfile::tempdir().expect("temporary folder");
    let mut command = Command::new("mkosi");
    command.args(["--distribution", "debian", "--release", "bookworm", "--format", "directory", "--force"]);
    command.args(["--with-docs", "--package", "nginx-light", "--output", "out"]);
    command.arg("--mirror").arg(format!("file://{}", mirror().canonicalize().expect("mirror").display()));
    let answer = run(command.current_dir(dir.path()));
    match answer.code {
        0 => {
            let theirs = answer.took.as_secs_f64();
            println!(
                "  cold, one run                        mkosi {theirs:5.1} s: {:.1} times",
                theirs / ours
            );
        }
        _ => println!(
            "LEFT OUT: mkosi, which needs more than the stored packages: {}",
            answer.stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("")
        ),
    }
}

/// Writes the layers of an image of three to a file for the bench of mounts.
fn layers(kiln: &Kiln) {
    let Some(out) = std::env::var_os("KILN_BENCH_LAYERS").map(PathBuf::from) else { return };
    let objects = kiln.state.path().join("objects/sha256");
    let mut found: Vec<PathBuf> = vec![];
    for image in std::fs::read_dir(kiln.state.path().join("images")).expect("images").flatten() {
        let name = image.file_name().to_string_lossy().into_owned();
        let Some(hex) = name.strip_suffix(".json").filter(|hex| hex.len() == 64) else { continue };
        let manifest = std::fs::read(objects.join(&hex[..2]).join(&hex[2..])).expect("manifest");
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
        let digests = manifest["layers"].as_array().expect("layers").iter();
        let hexes: Vec<String> = digests
            .filter_map(|l| l["digest"].as_str())
            .map(|d| d.trim_start_matches("sha256:").to_owned())
            .collect();
        if hexes.len() == 3 {
            found = hexes.iter().map(|hex| objects.join(&hex[..2]).join(&hex[2..])).collect();
        }
    }
    std::fs::create_dir_all(&out).expect("folder");
    for (n, path) in found.iter().enumerate() {
        std::fs::copy(path, out.join(n.to_string())).expect("copy");
    }
}
