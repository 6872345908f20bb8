//! What differs between two locks, for people who decide whether to take the newer one.

use super::version::Version;
use kiln_spec::Lock;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// One version of a package as a lock has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Locked {
    /// Its version; for an OCI base the digest of its manifest.
    pub version: String,
    /// Bytes of the `.deb`; 0 for an OCI base.
    pub size: u64,
}

/// A package that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its name; for an OCI base `oci:REFERENCE`.
    pub name: String,
    /// As it was; none if it is new.
    pub before: Option<Locked>,
    /// As it is to be; none if it goes.
    pub after: Option<Locked>,
    /// What uses it: images, builders as `NAME.build`, and bases as `debian:bookworm`.
    pub users: BTreeSet<String>,
}

impl Change {
    /// Whether its version goes up ([`Ordering::Greater`]) or down; equal for another build of the same version.
    pub fn direction(&self) -> Ordering {
        let version = |locked: &Option<Locked>| locked.as_ref().map(|l| l.version.parse::<Version>());
        match (version(&self.before), version(&self.after)) {
            (Some(Ok(before)), Some(Ok(after))) => after.cmp(&before),
            (before, after) => after.is_some().cmp(&before.is_some()),
        }
    }
}

/// The rows of a lock by name and user, with the digest that makes two of one version different.
fn rows(lock: &Lock) -> BTreeMap<(&str, &str), (Locked, String)> {
    let mut rows = BTreeMap::new();
    for package in &lock.packages {
        for user in &package.used_by {
            let locked = Locked { version: package.version.clone(), size: package.size };
            rows.insert((package.name.as_str(), user.as_str()), (locked, package.sha256.to_string()));
        }
    }
    rows
}

/// What differs from `before` (none is an empty lock) to `after`, by name.
pub fn changes(before: Option<&Lock>, after: &Lock) -> Vec<Change> {
    let empty = Lock::default();
    let before = before.unwrap_or(&empty);
    let (old, new) = (rows(before), rows(after));
    // The same step for several users is one change.
    let mut grouped: BTreeMap<(String, Option<Locked>, Option<Locked>), BTreeSet<String>> = BTreeMap::new();
    for key in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
        let (was, is) = (old.get(key), new.get(key));
        if was != is {
            let locked = |row: Option<&(Locked, String)>| row.map(|(locked, _)| locked.clone());
            let step = (key.0.to_owned(), locked(was), locked(is));
            grouped.entry(step).or_default().insert(key.1.to_owned());
        }
    }
    for reference in before.bases.keys().chain(after.bases.keys()).collect::<BTreeSet<_>>() {
        let locked = |lock: &Lock| {
            let base = lock.bases.get(reference)?;
            Some(Locked { version: base.manifest.to_string(), size: 0 })
        };
        let (was, is) = (locked(before), locked(after));
        if was != is {
            grouped.entry((format!("oci:{reference}"), was, is)).or_default();
        }
    }
    let change = |((name, before, after), users)| Change { name, before, after, users };
    grouped.into_iter().map(change).collect()
}

/// Bytes of all packages of a lock, each counted once.
pub fn size(lock: &Lock) -> u64 {
    let packages: BTreeMap<_, _> = lock.packages.iter().map(|p| (p.sha256, p.size)).collect();
    packages.values().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_model::Digest;
    use kiln_spec::lock::LockedPackage;

    fn lock(rows: &[(&str, &str, u64, &[&str])]) -> Lock {
        let row = |(name, version, size, users): &(&str, &str, u64, &[&str])| LockedPackage {
            name: (*name).into(),
            version: (*version).into(),
            architecture: "all".into(),
            sha256: Digest::of(format!("{name} {version}").as_bytes()),
            size: *size,
            path: "pool/x.deb".into(),
            suite: "bookworm".into(),
            used_by: users.iter().map(|user| (*user).to_owned()).collect(),
        };
        Lock { packages: rows.iter().map(row).collect(), ..Lock::default() }
    }

    #[test]
    fn tells_what_is_new_gone_newer_and_older() {
        let before = lock(&[
            ("aa", "1", 10, &["web", "app"]),
            ("bb", "2", 20, &["web"]),
            ("cc", "3", 30, &["web"]),
            ("dd", "4", 40, &["web"]),
        ]);
        let after = lock(&[
            ("aa", "2", 15, &["web", "app"]),
            ("bb", "1.9", 20, &["web"]),
            ("dd", "4", 40, &["web"]),
            ("ee", "5", 50, &["app"]),
        ]);
        let text = |change: &Change| {
            let version = |l: &Option<Locked>| l.as_ref().map_or("-", |l| l.version.as_str()).to_owned();
            let users: Vec<_> = change.users.iter().map(String::as_str).collect();
            let (old, new) = (version(&change.before), version(&change.after));
            format!("{} {old} {new} {} {:?}", change.name, users.join("+"), change.direction())
        };
        let lines: Vec<_> = changes(Some(&before), &after).iter().map(text).collect();
        assert_eq!(
            lines,
            ["aa 1 2 app+web Greater", "bb 2 1.9 web Less", "cc 3 - web Less", "ee - 5 app Greater"]
        );
        assert_eq!((size(&before), size(&after)), (100, 125));
        assert_eq!(changes(None, &after).len(), 4);
        assert!(changes(Some(&after), &after).is_empty());
    }
}
