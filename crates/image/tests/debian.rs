//! The Debian installer on real packages: bakes a base and two sets of packages twice, compares, mounts and runs them.
//!
//! Needs root, and the packages of the examples in `target/mirror` (`.ci/mirror`). It plays the installer itself.

use kiln_image::debian::lock::base_name;
use kiln_image::debian::rootfs::Done;
use kiln_image::debian::{Installer, Mirror, fill, resolve_lock, rootfs, slim};
use kiln_image::erofs::Reader;
use kiln_image::lint;
use kiln_image::objects::Objects;
use kiln_image::tree::{Kind, Tree};
use kiln_model::Digest;
use kiln_spec::RecipeName;
use kiln_spec::lock::{DebianRecipe, Lock, LockedPackage};
use kiln_sys::mount;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

const SUITE: &str = "bookworm";

/// Sets of the long form.
const SERVERS: &[(&str, &[&str])] = &[
    ("java", &["openjdk-17-jre-headless"]),
    ("nginx", &["nginx"]),
    ("database", &["postgresql-15"]),
    ("cache", &["redis-server"]),
    ("python", &["python3"]),
];

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if let (Some("internal"), Some(part)) = (args.next().as_deref(), args.next().as_deref()) {
        return match part {
            "mirror" => fill::main(args),
            "rootfs" => rootfs::main(args),
            // Runs one program in a root that consists of layers, lowest first: `chroot LAYER... -- PROGRAM ARGS`.
            "chroot" => chroot(args.collect()),
            _ => ExitCode::from(64),
        };
    }
    let mirror = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/mirror");
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: the Debian installer needs root");
        return ExitCode::SUCCESS;
    }
    if !mirror.is_dir() {
        println!("SKIPPED: no packages in target/mirror: run `.ci/mirror`");
        return ExitCode::SUCCESS;
    }
    let bench = Bench::new(&mirror);
    let base = bench.base();
    bench.web(&base);
    bench.python(&base);
    bench.slim();
    if std::env::var("KILN_PACKAGES").is_ok_and(|text| text == "all") {
        bench.servers(&base);
    } else {
        println!("KILN_PACKAGES=all installs more sets (`.ci/mirror KILN nightly` has their packages)");
    }
    bench.damaged_package();
    bench.missing_dependency(&base);
    ExitCode::SUCCESS
}

/// A layer that was made.
struct Layer {
    digest: Digest,
    path: PathBuf,
    done: Done,
}

struct Bench {
    dir: tempfile::TempDir,
    objects: Objects,
    lock: Lock,
}

impl Bench {
    /// Resolves both images and stores their packages.
    fn new(mirror: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::open(dir.path()).unwrap();
        let mirror = Mirror::parse(&format!("file:{}", mirror.display())).unwrap();
        let recipe = |packages: &[&str]| DebianRecipe {
            suite: SUITE.to_owned(),
            slim: false,
            packages: packages.iter().map(|name| (*name).to_owned()).collect(),
        };
        let recipes: BTreeMap<RecipeName, DebianRecipe> = BTreeMap::from([
            ("web".parse().unwrap(), recipe(&["nginx-light"])),
            ("app".parse().unwrap(), recipe(&["python3-minimal", "libpython3-stdlib"])),
        ]);
        let mut recipes = recipes;
        let slim = DebianRecipe { slim: true, ..recipe(&["nginx-light", "ca-certificates"]) };
        recipes.insert("slim".parse().unwrap(), slim);
        if std::env::var("KILN_PACKAGES").is_ok_and(|text| text == "all") {
            recipes.extend(SERVERS.iter().map(|(name, packages)| (name.parse().unwrap(), recipe(packages))));
        }
        let lock = resolve_lock(&mirror, &recipes, None, false).unwrap();
        for package in &lock.packages {
            assert_eq!(objects.put(&mirror.read_package(package).unwrap()).unwrap(), package.sha256);
        }
        Self { dir, objects, lock }
    }

    fn packages(&self, user: &str) -> Vec<(LockedPackage, PathBuf)> {
        let rows = self.lock.used_by(user);
        rows.map(|row| (row.clone(), self.objects.path(row.sha256))).collect()
    }

    fn installer(&self) -> Installer {
        Installer::new(std::env::current_exe().unwrap())
    }

    /// Makes a layer twice; both have the same bytes.
    fn layer(&self, user: &str, base: Option<&Path>) -> Layer {
        let packages = self.packages(user);
        let once = || {
            let (start, cpu) = (Instant::now(), cpu_seconds());
            let mut pending = self.objects.create().unwrap();
            let done = self.installer().install(base, &packages, pending.file()).unwrap_or_else(|error| {
                panic!("{}\n{}", kiln_image::worker::chain(&error), error.output());
            });
            let (digest, size) = pending.finish().unwrap();
            let path = self.dir.path().join(format!("{}-{}", digest.hex(), start.elapsed().as_nanos()));
            fs::copy(self.objects.path(digest), &path).unwrap();
            let seconds = start.elapsed().as_secs_f64();
            let steps: Vec<_> = done.steps.iter().map(|(step, ms)| format!("{step} {ms}")).collect();
            println!(
                "{user}: {} packages, {:.1} MB in {seconds:.2} s, {:.2} s of CPU ({} ms)",
                packages.len(),
                size as f64 / 1e6,
                cpu_seconds() - cpu,
                steps.join(", ")
            );
            Layer { digest, path, done }
        };
        let (first, second) = (once(), once());
        assert!(
            first.digest == second.digest,
            "{user} differs from run to run: {}",
            differing(&first, &second).join(" ")
        );
        assert_eq!(first.done.users, second.done.users);
        let tree =
            Reader::open(fs::File::open(&first.path).unwrap()).and_then(|reader| reader.tree()).unwrap();
        let facts = lint::Facts { origin: lint::Origin::Packages, newest: 0, host: "debian-test".into() };
        let start = Instant::now();
        let report = lint::check(&tree, &facts).unwrap();
        println!("{user}: {} nodes through the lint in {:.2} s", tree.len(), start.elapsed().as_secs_f64());
        assert_eq!(report.findings, [], "packages of Debian need no `allow`");
        assert_eq!(report.idle_setid, [""; 0], "set-id bits are gone");
        first
    }

    /// What a program prints in a root of `layers`.
    fn run(&self, layers: &[&Layer], argv: &[&str]) -> String {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["internal", "chroot"])
            .args(layers.iter().map(|layer| &layer.path))
            .arg("--")
            .args(argv)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(output.status.success(), "{argv:?}: {} {text}", output.status);
        text
    }

    fn base(&self) -> Layer {
        let base = self.layer(&base_name(SUITE), None);
        assert_eq!(base.done.users.get("root"), Some(&(0, 0)));
        assert_eq!(base.done.users.get("www-data"), Some(&(33, 33)));
        let reader = Reader::open(fs::File::open(&base.path).unwrap()).unwrap();
        for dir in ["dev", "etc", "proc", "run", "sys", "tmp", "var/log"] {
            let found = reader.get(dir.as_bytes()).unwrap().unwrap_or_else(|| panic!("no /{dir}"));
            assert!(found.is_dir(), "/{dir}");
        }
        assert_eq!(reader.get(b"tmp").unwrap().unwrap().mode & 0o7777, 0o1777);
        assert!(reader.get(b"etc/ld.so.cache").unwrap().is_some(), "no cache of the libraries");
        for gone in
            ["var/log/dpkg.log", "var/lib/dpkg/status-old", "usr/sbin/policy-rc.d", "etc/passwd-", "dev/null"]
        {
            assert!(reader.get(gone.as_bytes()).unwrap().is_none(), "/{gone} is in the layer");
        }
        let su = reader.get(b"bin/su").unwrap().or(reader.get(b"usr/bin/su").unwrap());
        assert!(su.is_some_and(|su| su.mode & 0o6000 == 0), "`su` is of no use in an instance");
        assert!(base.done.disarmed > 5, "{} files lost their set-id bits", base.done.disarmed);
        assert_eq!(
            self.run(&[&base], &["/bin/sh", "-c", "dpkg --audit && awk 'BEGIN { print 42 }'"]),
            "42\n"
        );
        base
    }

    fn web(&self, base: &Layer) {
        let web = self.layer("web", Some(&base.path));
        let reader = Reader::open(fs::File::open(&web.path).unwrap()).unwrap();
        assert!(reader.get(b"usr/sbin/nginx").unwrap().is_some());
        assert!(reader.get(b"usr/bin/perl").unwrap().is_none(), "files of the base are not repeated");
        assert!(reader.get(b"var/log/nginx").unwrap().is_some_and(|found| found.is_dir()));
        assert!(reader.get(b"etc/nginx/nginx.conf.dpkg-new").unwrap().is_none());
        assert!(self.run(&[base, &web], &["/usr/sbin/nginx", "-V"]).contains("nginx version: nginx/"));
        let audit = "dpkg --audit && dpkg-query -W -f '${Status}\\n' | sort -u && test -h /etc/nginx/sites-enabled/default";
        assert_eq!(self.run(&[base, &web], &["/bin/sh", "-c", audit]), "install ok installed\n");
    }

    fn python(&self, base: &Layer) {
        let app = self.layer("app", Some(&base.path));
        assert_eq!(self.run(&[base, &app], &["/usr/bin/python3", "-c", "print(1)"]), "1\n");
        let imports = "import json, hashlib, http.server, sqlite3, ssl; print(json.dumps([2]))";
        assert_eq!(self.run(&[base, &app], &["/usr/bin/python3", "-c", imports]), "[2]\n");
        // The trigger of the base's libc-bin has seen the new libraries.
        let cache = self.run(&[base, &app], &["/sbin/ldconfig", "-p"]);
        assert!(cache.contains("libsqlite3.so.0"), "{cache}");
    }

    /// No script has run, and yet nginx and OpenSSL find what they need.
    fn slim(&self) {
        let mut layers = vec![];
        for n in 0..2 {
            let start = Instant::now();
            let mut packages = self.packages("slim");
            if n == 1 {
                packages.reverse();
            }
            let path = self.dir.path().join(format!("slim-{n}"));
            let mut out = std::io::BufWriter::new(fs::File::create(&path).unwrap());
            let done = slim::install(&packages, &mut out).unwrap();
            let seconds = start.elapsed().as_secs_f64();
            let bytes = fs::read(&path).unwrap();
            println!(
                "slim: {} packages, {:.1} MB in {seconds:.2} s ({:?})",
                packages.len(),
                bytes.len() as f64 / 1e6,
                done.steps
            );
            layers.push(Layer { digest: Digest::of(&bytes), path, done });
        }
        assert!(layers[0].digest == layers[1].digest, "{}", differing(&layers[0], &layers[1]).join(" "));
        let layer = &layers[0];
        assert_eq!(layer.done.users.get("www-data"), Some(&(33, 33)));
        let reader = Reader::open(fs::File::open(&layer.path).unwrap()).unwrap();
        assert!(
            reader.get(b"usr/bin/perl").unwrap().is_none() && reader.get(b"usr/bin/dpkg").unwrap().is_none()
        );
        assert!(reader.get(b"var/lib/dpkg/status.d/nginx-light").unwrap().is_some());
        let verify = ["/usr/bin/openssl", "verify", "-no-CAfile", "-CApath", "/etc/ssl/certs"];
        let verified = self.run(&[layer], &[&verify[..], &["/etc/ssl/certs/ISRG_Root_X1.pem"]].concat());
        assert!(verified.contains(": OK"), "{verified}");
        assert!(self.run(&[layer], &["/usr/sbin/nginx", "-t"]).contains("test is successful"));
    }

    /// Whatever scripts do in them, these install cleanly and twice alike.
    fn servers(&self, base: &Layer) {
        for (name, _) in SERVERS {
            let layer = self.layer(name, Some(&base.path));
            let audit = "dpkg --audit && dpkg-query -W -f '${Status}\\n' | sort -u";
            assert_eq!(
                self.run(&[base, &layer], &["/bin/sh", "-c", audit]),
                "install ok installed\n",
                "{name}"
            );
        }
    }

    /// A package that is not the locked one is refused, by name.
    fn damaged_package(&self) {
        let mut packages = self.packages(&base_name(SUITE));
        let damaged = self.dir.path().join("damaged.deb");
        let mut bytes = fs::read(&packages[3].1).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&damaged, bytes).unwrap();
        packages[3].1 = damaged;
        let name = packages[3].0.name.clone();
        let out = tempfile::tempfile().unwrap();
        let error = self.installer().install(None, &packages, &out).unwrap_err();
        assert!(error.to_string().contains(&format!("`{name}`")), "{error}");
    }

    /// What dpkg says reaches the user, with the package at fault.
    fn missing_dependency(&self, base: &Layer) {
        let mut packages = self.packages("web");
        packages.retain(|(package, _)| package.name != "nginx-common");
        let out = tempfile::tempfile().unwrap();
        let error = self.installer().install(Some(&base.path), &packages, &out).unwrap_err();
        assert!(error.to_string().contains("package `nginx"), "{error}");
        assert!(error.output().contains("nginx-common"), "{}", error.output());
    }
}

/// Seconds of CPU of this process and of its children that have ended: what a loaded machine does not blur.
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(4);
    fields.map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

/// The paths that differ between two layers.
fn differing(first: &Layer, second: &Layer) -> Vec<String> {
    let tree = |layer: &Layer| Reader::open(fs::File::open(&layer.path).unwrap()).unwrap().tree().unwrap();
    let layer = Tree::difference(&tree(first), &tree(second)).unwrap();
    let files = layer.iter().filter(|(_, node)| node.kind != Kind::Dir);
    files.map(|(path, _)| format!("/{}", String::from_utf8_lossy(path))).collect()
}

/// Mounts layers over each other where nobody else sees it, and runs a program in there.
fn chroot(args: Vec<String>) -> ExitCode {
    let (layers, argv) = args.split_at(args.iter().position(|arg| arg == "--").unwrap());
    kiln_sys::namespace::unshare(kiln_sys::process::Namespaces::MOUNT).unwrap();
    mount::make_private().unwrap();
    let room = Path::new("/mnt");
    let attributes = mount::Attributes::default();
    mount::attach_at(mount::filesystem("tmpfs", &[], attributes).unwrap(), "/mnt").unwrap();
    let mut lower = Vec::new();
    for (n, layer) in layers.iter().enumerate() {
        let place = room.join(n.to_string());
        fs::create_dir(&place).unwrap();
        let place = place.to_str().unwrap().to_owned();
        mount::attach_at(mount::erofs(Path::new(layer), mount::ErofsBacking::Auto).unwrap(), &place).unwrap();
        lower.insert(0, place);
    }
    for name in ["root", "up", "work"] {
        fs::create_dir(room.join(name)).unwrap();
    }
    let options = [
        ("lowerdir", Some(lower.join(":"))),
        ("upperdir", Some("/mnt/up".to_owned())),
        ("workdir", Some("/mnt/work".to_owned())),
    ];
    let options: Vec<_> = options.iter().map(|(key, value)| (*key, value.as_deref())).collect();
    mount::attach_at(mount::filesystem("overlay", &options, attributes).unwrap(), "/mnt/root").unwrap();
    std::os::unix::fs::chroot("/mnt/root").unwrap();
    std::env::set_current_dir("/").unwrap();
    let status = Command::new(&argv[1]).args(&argv[2..]).status().unwrap();
    ExitCode::from(u8::try_from(status.code().unwrap_or(255)).unwrap_or(255))
}
