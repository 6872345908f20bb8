//! The small things that scripts or other packages would have made.

use super::{Root, SlimError};
use crate::debian::deb::Deb;

/// Directories of every root.
const DIRS: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
];
/// Links of every root.
const LINKS: &[(&str, &str)] = &[("var/run", "/run"), ("var/lock", "/run/lock")];
/// `update-alternatives` would choose among these: the link, and what it may point to, the best first.
const ALTERNATIVES: &[(&str, &[&str])] = &[
    ("usr/bin/awk", &["/usr/bin/gawk", "/usr/bin/mawk", "/usr/bin/original-awk"]),
    ("usr/bin/nawk", &["/usr/bin/gawk", "/usr/bin/mawk", "/usr/bin/original-awk"]),
    ("usr/bin/pager", &["/usr/bin/less", "/usr/bin/more"]),
    ("usr/bin/which", &["/usr/bin/which.gnu", "/usr/bin/which.debianutils"]),
    ("usr/bin/nc", &["/usr/bin/nc.openbsd", "/usr/bin/nc.traditional"]),
    ("usr/bin/java", &["/usr/lib/jvm/java-17-openjdk-amd64/bin/java"]),
    ("usr/bin/keytool", &["/usr/lib/jvm/java-17-openjdk-amd64/bin/keytool"]),
];
/// What libc-bin would make `/etc/nsswitch.conf` of; without it the C library asks no DNS for some names.
const NSSWITCH: &str = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\n\
                        protocols: db files\nservices: db files\nethers: db files\nrpc: db files\n";
/// What base-files says, for programs that ask which system this is.
const OS_RELEASE: &str = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\n\
                          VERSION=\"12 (bookworm)\"\nVERSION_CODENAME=bookworm\nID=debian\n\
                          HOME_URL=\"https://www.debian.org/\"\n";

pub(super) fn make(root: &mut Root, debs: &[Deb]) -> Result<(), SlimError> {
    for (path, mode) in DIRS {
        root.dir(path, *mode)?;
    }
    for (path, target) in LINKS {
        root.link(path, target)?;
    }
    for (link, targets) in ALTERNATIVES {
        if let Some(target) = targets.iter().find(|target| root.has(target)) {
            root.link(link, target)?;
        }
    }
    if !root.has("etc/nsswitch.conf") {
        let own = root.read("usr/share/libc-bin/nsswitch.conf").map(<[u8]>::to_vec);
        root.file("etc/nsswitch.conf", own.as_deref().unwrap_or(NSSWITCH.as_bytes()), 0o644)?;
    }
    if !root.has("usr/lib/os-release") {
        root.file("usr/lib/os-release", OS_RELEASE.as_bytes(), 0o644)?;
    }
    root.link("etc/os-release", "../usr/lib/os-release")?;
    if root.has("usr/share/zoneinfo/Etc/UTC") {
        root.link("etc/localtime", "/usr/share/zoneinfo/Etc/UTC")?;
        root.file("etc/timezone", b"Etc/UTC\n", 0o644)?;
    }
    for deb in debs {
        // Where scanners look in images without dpkg's database.
        let path = format!("var/lib/dpkg/status.d/{}", deb.name());
        let control = format!("{}\n", deb.control_text("control").trim_end());
        root.file(&path, control.as_bytes(), 0o644)?;
        if let Some((sums, _)) = deb.control.get("md5sums") {
            root.file(&format!("{path}.md5sums"), sums, 0o644)?;
        }
    }
    Ok(())
}
