//! Takes out of the root what differs from run to run or does not belong into an image: logs, caches, copies of
//! earlier states, keys that scripts made, and the times of what scripts wrote.

use super::keystore::settled;
use super::sandbox::MOUNT_POINTS;
use super::unpack::set_time;
use crate::tree::Tree;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A file could not be normalised.
#[derive(Debug, thiserror::Error)]
#[error("cannot normalise `{}`", path.display())]
pub(super) struct NormaliseError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, NormaliseError> {
    result.map_err(|source| NormaliseError { path: path.to_owned(), source })
}

/// Directories whose files go; the directories stay, for daemons expect them with their owners.
const FILES_GO: &[&str] = &["/var/log", "/var/cache/apt", "/var/lib/apt/lists"];
/// Directories whose whole content goes.
const CONTENT_GOES: &[&str] = &["/run", "/tmp", "/var/tmp"];
/// Directories whose directories are emptied, down to this depth: databases that scripts made. Each one has an identity
/// of its own, and an instance keeps its data in a volume there.
const DATABASES: &[(&str, u32)] = &[("/var/lib/mysql", 0), ("/var/lib/postgresql", 2)];
/// Files that go.
const GO: &[&str] = &[
    "/etc/.pwd.lock",
    // Each instance has its own; what a script wrote is the sandbox's.
    "/etc/hostname",
    "/etc/resolv.conf",
    "/var/cache/ldconfig/aux-cache",
    "/var/lib/dbus/machine-id",
    "/var/lib/dpkg/lock",
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/triggers/Lock",
];
/// Files of a directory that go by how their names end: what programs keep of the state before.
const ENDINGS_GO: &[(&str, &str)] =
    &[("/etc", "-"), ("/var/cache/debconf", "-old"), ("/var/lib/dpkg", "-old")];
/// Files of a directory that go by how their names begin. A private key in an image would be no secret, so each
/// instance has to make its own.
const BEGINNINGS_GO: &[(&str, &str)] = &[
    ("/etc/ssh", "ssh_host_"),
    ("/etc/ssl/certs", "ssl-cert-snakeoil"),
    ("/etc/ssl/private", "ssl-cert-snakeoil"),
];
/// Java's authorities, with the times at which they were added.
const JAVA_AUTHORITIES: &str = "/etc/ssl/certs/java/cacerts";
/// Empty, so that each instance gets an identity of its own.
const MACHINE_ID: &str = "/etc/machine-id";

/// Removes what does not belong into a layer, then gives everything without a time of a package the time `epoch`.
pub(super) fn normalise(root: &Path, epoch: i64, base: Option<&Tree>) -> Result<(), NormaliseError> {
    let below = |path: &str| root.join(path.trim_start_matches('/'));
    for dir in CONTENT_GOES {
        empty(&below(dir), 0)?;
    }
    for (dir, depth) in DATABASES {
        empty(&below(dir), *depth)?;
    }
    for dir in FILES_GO {
        remove_files(&below(dir))?;
    }
    for path in GO.iter().map(|path| below(path)) {
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return at(&path, Err(e)),
            _ => {}
        }
    }
    remove_named(root, ENDINGS_GO, |name, end| name.ends_with(end))?;
    remove_named(root, BEGINNINGS_GO, |name, start| name.starts_with(start))?;
    for path in list(&below("etc/ssl/certs"))? {
        // The links by hash of a certificate that is gone.
        let snakeoil = |target: PathBuf| target.to_string_lossy().contains("ssl-cert-snakeoil");
        if fs::read_link(&path).is_ok_and(snakeoil) {
            at(&path, fs::remove_file(&path))?;
        }
    }
    let machine_id = below(MACHINE_ID);
    if fs::symlink_metadata(&machine_id).is_ok_and(|m| m.len() > 0) {
        at(&machine_id, fs::write(&machine_id, ""))?;
    }
    let java = below(JAVA_AUTHORITIES);
    if fs::symlink_metadata(&java).is_ok_and(|m| m.is_file()) {
        let store = at(&java, fs::read(&java))?;
        if let Some(settled) = settled(&store, epoch).filter(|settled| *settled != store) {
            at(&java, fs::write(&java, settled))?;
        }
    }
    let device = at(root, fs::symlink_metadata(root))?.dev();
    times(root, device, epoch)?;
    for name in MOUNT_POINTS {
        // They were emptied or mounted upon, which is no change.
        let path = root.join(name);
        let time = base.and_then(|base| base.get(name.as_bytes())).map_or(epoch, |node| node.mtime);
        at(&path, set_time(&path, time))?;
    }
    Ok(())
}

/// The paths in a directory that may be missing, sorted.
fn list(dir: &Path) -> Result<Vec<PathBuf>, NormaliseError> {
    let entries = match fs::read_dir(dir) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(vec![]);
        }
        other => at(dir, other)?,
    };
    let mut paths = at(dir, entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>())?;
    paths.sort();
    Ok(paths)
}

/// Removes all that is in `dir`, or in the directories `depth` levels below it.
fn empty(dir: &Path, depth: u32) -> Result<(), NormaliseError> {
    for path in list(dir)? {
        let is_dir = at(&path, fs::symlink_metadata(&path))?.is_dir();
        match (depth, is_dir) {
            (0, true) => at(&path, fs::remove_dir_all(&path))?,
            (0, false) => at(&path, fs::remove_file(&path))?,
            (_, true) => empty(&path, depth - 1)?,
            (_, false) => {}
        }
    }
    Ok(())
}

fn remove_files(dir: &Path) -> Result<(), NormaliseError> {
    for path in list(dir)? {
        let is_dir = at(&path, fs::symlink_metadata(&path))?.is_dir();
        if is_dir {
            remove_files(&path)?;
        } else {
            at(&path, fs::remove_file(&path))?;
        }
    }
    Ok(())
}

fn remove_named(
    root: &Path,
    rules: &[(&str, &str)],
    matches: impl Fn(&str, &str) -> bool,
) -> Result<(), NormaliseError> {
    for (dir, part) in rules {
        for path in list(&root.join(dir.trim_start_matches('/')))? {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let is_dir = at(&path, fs::symlink_metadata(&path))?.is_dir();
            if !is_dir && matches(&name, part) {
                at(&path, fs::remove_file(&path))?;
            }
        }
    }
    Ok(())
}

/// Packages and base layers have whole seconds; a time with a fraction is one that the kernel set in this run.
fn times(path: &Path, device: u64, epoch: i64) -> Result<(), NormaliseError> {
    let meta = at(path, fs::symlink_metadata(path))?;
    if meta.dev() != device {
        return Ok(());
    }
    if meta.is_dir() {
        for path in list(path)? {
            times(&path, device, epoch)?;
        }
    }
    if meta.mtime_nsec() != 0 || meta.mtime() > epoch {
        at(path, set_time(path, epoch))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const EPOCH: i64 = 1_700_000_000;

    fn files(root: &Path) -> BTreeSet<String> {
        let tree = Tree::scan(root).unwrap();
        let files = tree.iter().filter(|(_, node)| node.kind != crate::tree::Kind::Dir);
        files.map(|(path, _)| String::from_utf8_lossy(path).into_owned()).collect()
    }

    /// One row for each of what differs from run to run, or is the host's, or is a secret.
    #[test]
    fn what_does_not_belong_into_an_image_goes_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let goes = [
            "var/cache/ldconfig/aux-cache",
            "var/log/dpkg.log",
            "var/log/alternatives.log",
            "var/log/bootstrap.log",
            "var/log/apt/history.log",
            "var/log/btmp",
            "var/log/wtmp",
            "var/log/lastlog",
            "var/lib/dpkg/status-old",
            "var/lib/dpkg/lock",
            "var/lib/dpkg/lock-frontend",
            "var/lib/dpkg/triggers/Lock",
            "var/cache/debconf/config.dat-old",
            "etc/passwd-",
            "etc/group-",
            "etc/shadow-",
            "etc/.pwd.lock",
            "var/lib/apt/lists/lock",
            "var/cache/apt/archives/x.deb",
            "var/cache/apt/pkgcache.bin",
            "etc/hostname",
            "etc/resolv.conf",
            "var/lib/dbus/machine-id",
            "etc/ssh/ssh_host_ed25519_key",
            "etc/ssh/ssh_host_ed25519_key.pub",
            "etc/ssl/private/ssl-cert-snakeoil.key",
            "etc/ssl/certs/ssl-cert-snakeoil.pem",
            "var/lib/postgresql/15/main/PG_VERSION",
            "var/lib/mysql/ibdata1",
            "run/nginx.pid",
            "tmp/x",
            "var/tmp/x",
        ];
        let stays = [
            "etc/passwd",
            "etc/shadow",
            "etc/ssh/sshd_config",
            "etc/ssl/certs/ca-certificates.crt",
            "var/lib/dpkg/status",
            "var/cache/debconf/config.dat",
            "usr/share/x-",
        ];
        for path in goes.iter().chain(&stays) {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        std::os::unix::fs::symlink("ssl-cert-snakeoil.pem", root.join("etc/ssl/certs/12345678.0")).unwrap();
        fs::write(root.join("etc/machine-id"), "0123456789abcdef\n").unwrap();
        for name in MOUNT_POINTS {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        set_time(&root.join("etc/passwd"), EPOCH - 5).unwrap();
        set_time(&root.join("etc/shadow"), EPOCH + 5).unwrap();
        normalise(root, EPOCH, None).unwrap();
        let mut expected: BTreeSet<String> = stays.iter().map(|path| (*path).to_owned()).collect();
        expected.insert("etc/machine-id".into());
        assert_eq!(files(root), expected);
        assert_eq!(fs::read(root.join("etc/machine-id")).unwrap(), b"", "each instance makes its own");
        for dir in ["var/log/apt", "var/lib/postgresql/15/main", "var/lib/mysql", "run"] {
            assert!(root.join(dir).is_dir(), "daemons expect /{dir}");
        }
        let times: BTreeSet<i64> = Tree::scan(root).unwrap().iter().map(|(_, node)| node.mtime).collect();
        assert_eq!(times, [EPOCH - 5, EPOCH].into(), "older times stay, newer ones and those of now do not");
    }
}
