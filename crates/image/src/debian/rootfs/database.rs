//! dpkg's database in the root: written as `dpkg --unpack` would, so that `dpkg --configure` takes it from there.

use crate::debian::deb::{Deb, Kind};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const ADMIN: &str = "/var/lib/dpkg";
const STATUS: &str = "/var/lib/dpkg/status";
const INFO: &str = "/var/lib/dpkg/info";
const TRIGGERS: &str = "/var/lib/dpkg/triggers";
const INSTALLED: &str = "Status: install ok installed";

/// The database could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write `{}`", path.display())]
pub(super) struct DatabaseError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn at<T>(path: impl AsRef<Path>, result: io::Result<T>) -> Result<T, DatabaseError> {
    result.map_err(|source| DatabaseError { path: path.as_ref().to_owned(), source })
}

/// Makes an empty database.
pub(super) fn create() -> Result<(), DatabaseError> {
    for name in ["alternatives", "info", "parts", "triggers", "updates"] {
        let dir = Path::new(ADMIN).join(name);
        at(&dir, fs::create_dir_all(&dir))?;
    }
    for (name, text) in [
        ("status", ""),
        ("available", ""),
        ("info/format", "1\n"),
        ("triggers/File", ""),
        ("triggers/Unincorp", ""),
    ] {
        let path = Path::new(ADMIN).join(name);
        at(&path, fs::write(&path, text))?;
    }
    Ok(())
}

/// The name of a package's files in the database.
fn qualified(deb: &Deb) -> String {
    match deb.field("Multi-Arch") {
        Some("same") => format!("{}:{}", deb.name(), deb.field("Architecture").unwrap_or_default()),
        _ => deb.name().to_owned(),
    }
}

/// Where a file of the control part of `deb` lies.
pub(super) fn control_path(deb: &Deb, file: &str) -> PathBuf {
    Path::new(INFO).join(format!("{}.{file}", qualified(deb)))
}

/// Writes the files of a package's control part.
pub(super) fn write_control(deb: &Deb) -> Result<(), DatabaseError> {
    for (name, (bytes, mode)) in deb.control.iter().filter(|(name, _)| *name != "control") {
        let path = control_path(deb, name);
        at(&path, fs::write(&path, bytes))?;
        at(&path, fs::set_permissions(&path, Permissions::from_mode(*mode)))?;
    }
    Ok(())
}

/// Notes packages as unpacked, with their files and what they trigger.
pub(super) fn record(debs: &[&Deb]) -> Result<(), DatabaseError> {
    let mut status = at(STATUS, fs::read_to_string(STATUS))?;
    for deb in debs {
        let path = control_path(deb, "list");
        at(&path, fs::write(&path, file_list(deb)))?;
        interests(deb)?;
    }
    let pending = pending(debs)?;
    status = stanzas(&status).map(|stanza| with_pending(stanza, &pending)).collect();
    for deb in debs {
        status.push_str(&unpacked(deb));
        status.push('\n');
    }
    at(STATUS, fs::write(STATUS, status))
}

fn file_list(deb: &Deb) -> Vec<u8> {
    let mut list = Vec::new();
    for entry in &deb.entries {
        list.push(b'/');
        list.extend_from_slice(if entry.path.is_empty() { b"." } else { &entry.path });
        list.push(b'\n');
    }
    list
}

/// The stanza of a package that is unpacked. The checksums of its conffiles are noted when it is configured.
fn unpacked(deb: &Deb) -> String {
    let control = deb.control_text("control").trim_end();
    let mut stanza = String::new();
    for (n, line) in control.lines().enumerate() {
        stanza.push_str(line);
        stanza.push('\n');
        if n == 0 {
            stanza.push_str("Status: install ok unpacked\n");
        }
    }
    for (n, path) in deb.conffiles().enumerate() {
        if n == 0 {
            stanza.push_str("Conffiles:\n");
        }
        stanza.push_str(&format!(" /{path} newconffile\n"));
    }
    stanza
}

fn stanzas(status: &str) -> impl Iterator<Item = &str> {
    status.split_inclusive("\n\n")
}

fn value<'a>(stanza: &'a str, field: &str) -> &'a str {
    let find = |line: &'a str| line.strip_prefix(field)?.strip_prefix(':');
    stanza.lines().find_map(find).unwrap_or_default().trim()
}

/// The directives of a package's `triggers` file.
fn directives(deb: &Deb) -> impl Iterator<Item = (&str, &str)> {
    let lines = deb.control_text("triggers").lines().filter(|line| !line.trim_start().starts_with('#'));
    lines.filter_map(|line| line.trim().split_once(char::is_whitespace)).map(|(a, b)| (a, b.trim()))
}

/// Notes which triggers a package wants to hear of: a line each in `File` for paths, or in a file of that name.
fn interests(deb: &Deb) -> Result<(), DatabaseError> {
    for (directive, trigger) in directives(deb) {
        let suffix = match directive {
            "interest" | "interest-await" => "",
            "interest-noawait" => "/noawait",
            _ => continue,
        };
        let who = format!("{}{suffix}", qualified(deb));
        let (path, line) = match trigger.starts_with('/') {
            true => (Path::new(TRIGGERS).join("File"), format!("{trigger} {who}\n")),
            // A slash inside would lead out of the directory; dpkg refuses such a name too.
            false if trigger.contains('/') => continue,
            false => (Path::new(TRIGGERS).join(trigger), format!("{who}\n")),
        };
        let file = fs::OpenOptions::new().append(true).create(true).open(&path);
        at(&path, file.and_then(|mut file| file.write_all(line.as_bytes())))?;
    }
    Ok(())
}

/// What `debs` trigger, by the package that is interested.
fn pending(debs: &[&Deb]) -> Result<BTreeMap<String, BTreeSet<String>>, DatabaseError> {
    let mut pending: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut note = |who: &str, trigger: &str| {
        let who = who.split('/').next().unwrap_or(who).to_owned();
        pending.entry(who).or_default().insert(trigger.to_owned());
    };
    let path = Path::new(TRIGGERS).join("File");
    let below =
        |file: &[u8], dir: &[u8]| file.strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&b'/'));
    for (dir, who) in at(&path, fs::read_to_string(&path))?.lines().filter_map(|line| line.split_once(' ')) {
        let relative = dir.trim_start_matches('/').as_bytes();
        let files = debs.iter().flat_map(|deb| &deb.entries).filter(|entry| entry.kind != Kind::Dir);
        if files.into_iter().any(|entry| entry.path == relative || below(&entry.path, relative)) {
            note(who, dir);
        }
    }
    for (directive, trigger) in debs.iter().flat_map(|deb| directives(deb)) {
        if !directive.starts_with("activate") || trigger.contains('/') {
            continue;
        }
        // A trigger that nobody is interested in has no file.
        let interested = fs::read_to_string(Path::new(TRIGGERS).join(trigger)).unwrap_or_default();
        interested.lines().for_each(|who| note(who, trigger));
    }
    Ok(pending)
}

/// A stanza of an installed package with the triggers that it has to process. One that is only unpacked has none:
/// it will see everything when it is configured.
fn with_pending(stanza: &str, pending: &BTreeMap<String, BTreeSet<String>>) -> String {
    let name = value(stanza, "Package");
    let of_architecture = format!("{name}:{}", value(stanza, "Architecture"));
    match pending.get(name).or_else(|| pending.get(&of_architecture)) {
        Some(triggers) if stanza.contains(INSTALLED) => {
            let triggers: Vec<&str> = triggers.iter().map(String::as_str).collect();
            let status =
                format!("Status: install ok triggers-pending\nTriggers-Pending: {}", triggers.join(" "));
            stanza.replacen(INSTALLED, &status, 1)
        }
        _ => stanza.to_owned(),
    }
}

/// The first package that is not wholly installed.
pub(super) fn unfinished() -> Result<Option<String>, DatabaseError> {
    let status = at(STATUS, fs::read_to_string(STATUS))?;
    let mut open = stanzas(&status).filter(|stanza| !stanza.contains(INSTALLED) && !stanza.trim().is_empty());
    Ok(open.next().map(|stanza| value(stanza, "Package").to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn triggers_are_pending_for_installed_packages_only() {
        let installed = "Package: libc-bin\nStatus: install ok installed\nArchitecture: amd64\n\n";
        let unpacked = "Package: libc-bin\nStatus: install ok unpacked\nArchitecture: amd64\n\n";
        let pending =
            |who: &str| BTreeMap::from([(who.to_owned(), BTreeSet::from(["b".into(), "a".into()]))]);
        let expected = "Package: libc-bin\nStatus: install ok triggers-pending\nTriggers-Pending: a b\nArchitecture: amd64\n\n";
        assert_eq!(with_pending(installed, &pending("libc-bin")), expected);
        assert_eq!(with_pending(installed, &pending("libc-bin:amd64")), expected);
        assert_eq!(with_pending(installed, &pending("libc")), installed);
        assert_eq!(with_pending(unpacked, &pending("libc-bin")), unpacked);
    }

    #[test]
    fn an_unpacked_package_has_its_conffiles_open() {
        let control = b"Package: aa\nVersion: 1\nDescription: x\n y\n".to_vec();
        let files = [("control", control), ("conffiles", b"/etc/a\n/etc/b\n".to_vec())];
        let control = files.into_iter().map(|(name, bytes)| (name.to_owned(), (bytes, 0o644))).collect();
        let text = super::unpacked(&Deb { control, entries: vec![] });
        let expected = "Package: aa\nStatus: install ok unpacked\nVersion: 1\nDescription: x\n y\n\
                        Conffiles:\n /etc/a newconffile\n /etc/b newconffile\n";
        assert_eq!(text, expected);
    }
}
