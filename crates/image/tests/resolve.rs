//! The resolver against apt: the same packages, byte for byte, for sets from a few to some hundred packages.
//!
//! Needs apt, and the package lists in `target/mirror` (`.ci/mirror`); nothing is fetched.

use kiln_image::debian::Mirror;
use kiln_image::debian::index::Index;
use kiln_image::debian::resolve::Resolver;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const SUITE: &str = "bookworm";

/// What is asked for, and whether a whole system is below it.
const SETS: &[(bool, &[&str])] = &[
    (false, &["libc6"]),
    (false, &["nginx-light", "ca-certificates"]),
    (false, &["redis-server"]),
    (true, &["nginx"]),
    (true, &["postgresql-15"]),
    (true, &["python3", "python3-venv", "python3-requests"]),
    (true, &["openjdk-17-jre-headless"]),
    (true, &["systemd", "openssh-server", "man-db", "vim", "linux-image-cloud-amd64"]),
    (true, &["php-fpm", "php-mysql", "mariadb-server", "apache2", "exim4-daemon-light"]),
    (true, &["build-essential", "git", "npm", "ffmpeg", "default-jdk-headless", "ansible"]),
];

/// apt in a folder of its own that knows no installed package.
struct Apt {
    dir: tempfile::TempDir,
}

impl Apt {
    fn new(mirror: &Path) -> Self {
        let apt = Self { dir: tempfile::tempdir().unwrap() };
        for name in ["etc/apt.conf.d", "etc/preferences.d", "state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(apt.dir.path().join(name)).unwrap();
        }
        fs::write(apt.dir.path().join("status"), "").unwrap();
        // Read before any other configuration, so that this host's is not read at all.
        let conf = format!("Dir::Etc \"{}\";\n", apt.dir.path().join("etc").display());
        fs::write(apt.dir.path().join("conf"), conf).unwrap();
        let options = "[arch=amd64 trusted=yes by-hash=no check-valid-until=no]";
        let mirror = mirror.display();
        let sources = format!(
            "deb {options} copy:{mirror} {SUITE} main\ndeb {options} copy:{mirror} {SUITE}-updates main\n\
             deb {options} copy:{mirror}/debian-security {SUITE}-security main\n"
        );
        fs::write(apt.dir.path().join("etc/sources.list"), sources).unwrap();
        apt.run(&["update"]);
        apt
    }

    fn run(&self, arguments: &[&str]) -> String {
        let dir = |name: &str| self.dir.path().join(name).display().to_string();
        let mut command = Command::new("apt-get");
        for option in [
            format!("Dir::State={}", dir("state")),
            format!("Dir::State::status={}", dir("status")),
            format!("Dir::Cache={}", dir("cache")),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures=amd64".to_owned(),
            "APT::Install-Recommends=false".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::ForceHash=SHA256".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        let output = command.args(arguments).env("APT_CONFIG", dir("conf")).output().unwrap();
        let (text, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {text}{errors}");
        text.into_owned()
    }

    /// The files that it would fetch, by name and sha256.
    fn resolve(&self, names: &[&str]) -> BTreeSet<(String, String)> {
        let text = self.run(&[&["--print-uris", "-qq", "-y", "install"], names].concat());
        let row = |line: &str| {
            let mut words = line.split(' ').skip(1);
            let (file, hash) = (words.next()?, words.nth(1)?);
            Some((file.split('_').next()?.to_owned(), hash.strip_prefix("SHA256:")?.to_owned()))
        };
        text.lines().filter_map(row).collect()
    }
}

fn mirror() -> Option<PathBuf> {
    let mirror = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/mirror");
    if Command::new("apt-get").arg("--version").output().is_err() {
        println!("SKIPPED: no apt on this host");
        return None;
    }
    match mirror.canonicalize() {
        Ok(mirror) => Some(mirror),
        Err(_) => {
            println!("SKIPPED: no package lists in target/mirror: run `.ci/mirror`");
            None
        }
    }
}

#[test]
fn ten_sets_are_resolved_as_apt_resolves_them() {
    let Some(place) = mirror() else { return };
    let apt = Apt::new(&place);
    let mirror = Mirror::parse(&format!("file:{}", place.display())).unwrap();
    let (index, _) = mirror.index(SUITE).unwrap();
    let resolver = Resolver::new(&index, &HashMap::new()).unwrap();
    let system = system(&index);
    for (whole, names) in SETS {
        let start = std::time::Instant::now();
        let wanted: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let ours = resolver.closure(&wanted, *whole, &[]).unwrap();
        let took = start.elapsed();
        let ours: BTreeSet<_> = ours.iter().map(|p| (p.name.to_string(), p.sha256.hex())).collect();
        let mut asked = names.to_vec();
        if *whole {
            asked.extend(system.iter().map(String::as_str));
        }
        let apts = apt.resolve(&asked);
        let only = |a: &BTreeSet<(String, String)>, b: &BTreeSet<(String, String)>| {
            a.difference(b).map(|(name, _)| name.clone()).collect::<Vec<_>>().join(" ")
        };
        println!("{names:?}: {} packages in {:.1} ms", apts.len(), took.as_secs_f64() * 1000.0);
        assert!(
            ours == apts,
            "{names:?}: only kiln has {}; only apt has {}",
            only(&ours, &apts),
            only(&apts, &ours)
        );
    }
}

/// What every whole system has.
fn system(index: &Index) -> Vec<String> {
    let newest = index.names().filter_map(|name| index.versions(name).first());
    newest.filter(|package| package.essential || package.required).map(|p| p.name.to_string()).collect()
}
