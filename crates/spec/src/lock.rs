//! `kiln.lock`: exactly what the images of a project are made of.
//!
//! The file is TOML with one package on a line, sorted, so that an upgrade is one changed line in a review. It is
//! written by `kiln lock` and belongs into the commit; a bake takes nothing that is not in it. Each image of the
//! recipe has a digest of the part of `kiln.toml` that was resolved, so that a lock that no longer fits is recognised
//! ([`Lock::is_current`]) instead of half used.
//!
//! Written together with the Debian resolver (`kiln_image::debian`); the types are shared with the server, the bake
//! and the command line.

use kiln_model::digest::Digest;
use kiln_model::ids::ImageName;
use kiln_model::limits::LOCK_BYTES_MAX;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// The version of the format that this program writes and reads.
pub const LOCK_VERSION: u32 = 1;
/// Packages in one lock.
const PACKAGES_MAX: usize = 20_000;

/// A `kiln.lock` could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LockParseError {
    /// It is larger than any lock that kiln writes.
    #[error("kiln.lock is larger than {LOCK_BYTES_MAX} bytes")]
    TooLarge,
    /// Not TOML, or not of this shape.
    #[error("kiln.lock is malformed")]
    Syntax(#[source] Box<toml::de::Error>),
    /// Another version of the format.
    #[error("kiln.lock has version {found}, this kiln reads version {LOCK_VERSION}")]
    Version {
        /// The version in the file.
        found: u32,
    },
    /// A value that would be dangerous or ambiguous to use.
    #[error("kiln.lock is not acceptable: {why}")]
    Invalid {
        /// What is wrong with it.
        why: String,
    },
}

/// What a lock keeps rows for: an image by its name, or its builder as `NAME.build`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RecipeName(String);

impl RecipeName {
    /// The image itself.
    pub fn image(name: &ImageName) -> Self {
        Self(name.to_string())
    }

    /// What its `[images.NAME.build]` runs in.
    pub fn builder(name: &ImageName) -> Self {
        Self(format!("{name}{BUILDER}"))
    }

    /// As it stands in a lock.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What follows the image's name in the name of its builder; no image's name has a dot.
const BUILDER: &str = ".build";

impl TryFrom<String> for RecipeName {
    type Error = kiln_model::ids::NameError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        ImageName::new(text.strip_suffix(BUILDER).unwrap_or(&text))?;
        Ok(Self(text))
    }
}

impl std::str::FromStr for RecipeName {
    type Err = kiln_model::ids::NameError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.to_owned().try_into()
    }
}

impl From<RecipeName> for String {
    fn from(name: RecipeName) -> String {
        name.0
    }
}

impl std::fmt::Display for RecipeName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Everything of a `kiln.toml` that a lock pins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recipes {
    /// Debian packages of images and builders.
    pub debian: BTreeMap<RecipeName, DebianRecipe>,
    /// References of OCI images, as they stand behind `oci:`.
    pub oci: BTreeSet<String>,
}

impl Recipes {
    /// Whether there is nothing to lock.
    pub fn is_empty(&self) -> bool {
        self.debian.is_empty() && self.oci.is_empty()
    }
}

/// The Debian part of one image of a `kiln.toml`: what is resolved into a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebianRecipe {
    /// The suite, such as `bookworm`.
    pub suite: String,
    /// Whether it stands on nothing (`debian-slim`) instead of the suite's base.
    pub slim: bool,
    /// Package names as written, in any order.
    pub packages: BTreeSet<String>,
}

impl DebianRecipe {
    /// The base as kiln.toml names it.
    pub fn base(&self) -> String {
        format!("debian{}:{}", if self.slim { "-slim" } else { "" }, self.suite)
    }

    /// The digest that ties a lock to this recipe.
    pub fn digest(&self) -> Digest {
        let mut text = format!("kiln recipe 1\nbase {}\n", self.base());
        for package in &self.packages {
            let _ = writeln!(text, "package {package}");
        }
        Digest::of(text.as_bytes())
    }
}

/// Exactly which packages the images of a project are made of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// [`LOCK_VERSION`].
    pub version: u32,
    /// The archive's state that was resolved, by suite.
    #[serde(default)]
    pub suites: BTreeMap<String, LockedSuite>,
    /// The images and builders, by name.
    #[serde(default)]
    pub images: BTreeMap<RecipeName, LockedImage>,
    /// OCI images by their reference.
    #[serde(default)]
    pub bases: BTreeMap<String, LockedBase>,
    /// All packages, sorted by name, then version.
    #[serde(default)]
    pub packages: Vec<LockedPackage>,
}

/// The state of one suite of an archive, such as `bookworm-security`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedSuite {
    /// sha256 of its `InRelease`.
    pub in_release: Digest,
}

/// What was resolved for one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedImage {
    /// The base, such as `debian:bookworm`.
    pub base: String,
    /// [`DebianRecipe::digest`] of the part of `kiln.toml` that was resolved.
    pub recipe: Digest,
}

/// What a reference of an OCI image meant when it was locked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedBase {
    /// sha256 of its manifest for this architecture.
    pub manifest: Digest,
}

/// One package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedPackage {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// `amd64` or `all`.
    pub architecture: String,
    /// sha256 of the `.deb`.
    pub sha256: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Where it lies in the archive of its suite, `pool/…`.
    pub path: String,
    /// The suite that offers it, such as `bookworm-security`.
    pub suite: String,
    /// What uses it: bases as `debian:bookworm`, and names of images that add it to their base.
    pub used_by: BTreeSet<String>,
}

impl Lock {
    /// Parses the text of a `kiln.lock`.
    ///
    /// # Errors
    /// [`LockParseError`] if it is not a lock, or one with values that no archive can have.
    pub fn parse(text: &str) -> Result<Self, LockParseError> {
        if text.len() > LOCK_BYTES_MAX {
            return Err(LockParseError::TooLarge);
        }
        let lock: Lock = toml::from_str(text).map_err(|e| LockParseError::Syntax(Box::new(e)))?;
        if lock.version != LOCK_VERSION {
            return Err(LockParseError::Version { found: lock.version });
        }
        lock.check().map_err(|why| LockParseError::Invalid { why })?;
        Ok(lock)
    }

    fn check(&self) -> Result<(), String> {
        if self.packages.len() > PACKAGES_MAX {
            return Err(format!("it has more than {PACKAGES_MAX} packages"));
        }
        let word = |text: &str, more: &[u8]| {
            !text.is_empty()
                && text.len() <= 256
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
        };
        for package in &self.packages {
            let bad = |what: &str| format!("package `{}` has a bad {what}", package.name);
            if !word(&package.name, b"+-.") || package.name.starts_with(['.', '-', '+']) {
                return Err(bad("name"));
            }
            if !word(&package.version, b"+-.~:") {
                return Err(bad("version"));
            }
            if !matches!(&*package.architecture, "amd64" | "all") {
                return Err(bad("architecture"));
            }
            if !word(&package.suite, b"-") || !self.suites.contains_key(&package.suite) {
                return Err(bad("suite"));
            }
            let part = |p: &str| word(p, b"+-._~%:") && !p.starts_with('.');
            if !package.path.starts_with("pool/") || !package.path.split('/').all(part) {
                return Err(bad("path"));
            }
        }
        let name = |p: &LockedPackage| (p.name.clone(), p.used_by.clone());
        let mut seen: BTreeMap<(String, String), &str> = BTreeMap::new();
        for (package, (name, users)) in self.packages.iter().map(|p| (p, name(p))) {
            for user in users {
                if let Some(other) = seen.insert((name.clone(), user.clone()), &package.version) {
                    return Err(format!("`{user}` has `{name}` twice: {other} and {}", package.version));
                }
            }
        }
        Ok(())
    }

    /// The text of the file; equal locks give equal bytes.
    pub fn to_text(&self) -> String {
        let mut text = String::from("# Written by `kiln lock`. Commit it; do not edit it by hand.\n");
        let quote = |s: &str| toml::Value::String(s.to_owned()).to_string();
        let _ = writeln!(text, "version = {}\n\n[suites]", self.version);
        for (name, suite) in &self.suites {
            let _ = writeln!(
                text,
                "{} = {{ in_release = {} }}",
                quote(name),
                quote(&suite.in_release.to_string())
            );
        }
        text.push_str("\n[images]\n");
        for (name, image) in &self.images {
            let (base, recipe) = (quote(&image.base), quote(&image.recipe.to_string()));
            let _ = writeln!(text, "{} = {{ base = {base}, recipe = {recipe} }}", quote(name.as_str()));
        }
        if !self.bases.is_empty() {
            text.push_str("\n[bases]\n");
        }
        for (reference, base) in &self.bases {
            let manifest = quote(&base.manifest.to_string());
            let _ = writeln!(text, "{} = {{ manifest = {manifest} }}", quote(reference));
        }
        // `packages` is a top-level key, so the file ends with an array of tables in their inline form.
        let mut rows: Vec<_> = self.packages.iter().collect();
        rows.sort_by(|a, b| (&a.name, &a.version, &a.suite).cmp(&(&b.name, &b.version, &b.suite)));
        let mut head = String::from("packages = [\n");
        for p in rows {
            let used_by = p.used_by.iter().map(|user| quote(user)).collect::<Vec<_>>().join(", ");
            let _ = writeln!(
                head,
                "  {{ name = {}, version = {}, architecture = {}, sha256 = {}, size = {}, path = {}, suite = {}, \
                 used_by = [{used_by}] }},",
                quote(&p.name),
                quote(&p.version),
                quote(&p.architecture),
                quote(&p.sha256.to_string()),
                p.size,
                quote(&p.path),
                quote(&p.suite),
            );
        }
        head.push_str("]\n");
        // Top-level keys have to stand before the first table.
        text.replacen("\n\n[suites]", &format!("\n{head}\n[suites]"), 1)
    }

    /// Whether the lock was resolved for exactly these recipes.
    pub fn is_current(&self, recipes: &Recipes) -> bool {
        self.images.len() == recipes.debian.len()
            && self.bases.len() == recipes.oci.len()
            && self.unfit(recipes).is_empty()
    }

    /// What of these recipes it was not resolved for, as a user names it.
    pub fn unfit(&self, recipes: &Recipes) -> Vec<String> {
        let debian = recipes.debian.iter().filter(|(name, recipe)| !self.fits(name, recipe));
        let debian = debian.map(|(name, _)| format!("image `{name}`"));
        let oci = recipes.oci.iter().filter(|reference| !self.bases.contains_key(*reference));
        debian.chain(oci.map(|reference| format!("base `oci:{reference}`"))).collect()
    }

    /// What differs between the OCI images of this lock and of the one `before`, one line each.
    pub fn base_changes(&self, before: Option<&Self>) -> Vec<String> {
        let mut lines = vec![];
        for (reference, base) in &self.bases {
            let new = base.manifest.short();
            match before.and_then(|lock| lock.bases.get(reference)) {
                None => lines.push(format!("+ oci:{reference} {new}")),
                Some(old) if old != base => {
                    lines.push(format!("~ oci:{reference} {} -> {new}", old.manifest.short()));
                }
                Some(_) => {}
            }
        }
        let gone = before.into_iter().flat_map(|lock| &lock.bases);
        let gone = gone.filter(|(reference, _)| !self.bases.contains_key(*reference));
        lines.extend(gone.map(|(reference, base)| format!("- oci:{reference} {}", base.manifest.short())));
        lines
    }

    /// Whether the rows of one image were resolved for this recipe.
    pub fn fits(&self, name: &RecipeName, recipe: &DebianRecipe) -> bool {
        self.images.get(name).is_some_and(|image| image.recipe == recipe.digest())
    }

    /// The packages that `user` needs: a base such as `debian:bookworm`, or what an image adds to its base.
    pub fn used_by<'a>(&'a self, user: &'a str) -> impl Iterator<Item = &'a LockedPackage> {
        self.packages.iter().filter(move |package| package.used_by.contains(user))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock() -> Lock {
        let digest = Digest::of(b"x");
        let package = |name: &str, users: &[&str]| LockedPackage {
            name: name.into(),
            version: "1:2.0~rc1-3+deb12u1".into(),
            architecture: "amd64".into(),
            sha256: digest,
            size: 5,
            path: format!("pool/main/x/{name}_1%3a2.deb"),
            suite: "bookworm".into(),
            used_by: users.iter().map(|u| (*u).to_owned()).collect(),
        };
        Lock {
            version: LOCK_VERSION,
            suites: [("bookworm".to_owned(), LockedSuite { in_release: digest })].into(),
            images: [(
                "web".parse().unwrap(),
                LockedImage { base: "debian:bookworm".into(), recipe: digest },
            )]
            .into(),
            bases: [("a.test/b:1".to_owned(), LockedBase { manifest: digest })].into(),
            packages: vec![
                package("libc6", &["debian:bookworm"]),
                package("nginx", &["web", "debian:bookworm"]),
            ],
        }
    }

    #[test]
    fn round_trip() {
        let text = lock().to_text();
        assert_eq!(Lock::parse(&text).unwrap(), lock());
        assert_eq!(Lock::parse(&text).unwrap().to_text(), text);
        let empty = Lock { version: LOCK_VERSION, ..Lock::default() };
        assert_eq!(Lock::parse(&empty.to_text()).unwrap(), empty);
    }

    #[test]
    fn changed_bases_are_told() {
        let (before, mut after) = (lock(), lock());
        assert!(after.base_changes(Some(&before)).is_empty());
        assert_eq!(after.base_changes(None).len(), 1);
        let new = Digest::of(b"y");
        after.bases.insert("a.test/b:1".into(), LockedBase { manifest: new });
        after.bases.insert("/srv/c".into(), LockedBase { manifest: new });
        let (old, new) = (Digest::of(b"x").short(), new.short());
        let lines = [format!("+ oci:/srv/c {new}"), format!("~ oci:a.test/b:1 {old} -> {new}")];
        assert_eq!(after.base_changes(Some(&before)), lines);
        assert_eq!(before.base_changes(Some(&after))[1], format!("- oci:/srv/c {new}"));
    }

    #[test]
    fn refuses_what_no_archive_can_have() {
        let text = lock().to_text();
        for (from, to) in [
            ("pool/main/x/libc6", "pool/../x/libc6"),
            ("\"libc6\"", "\"../libc6\""),
            ("\"amd64\"", "\"arm64\""),
            ("suite = \"bookworm\"", "suite = \"trixie\""),
            ("\"nginx\"", "\"libc6\""),
            ("version = 1\n", "version = 2\n"),
            ("size = 5", "size = -5"),
            ("size = 5", "size = 5, more = 1"),
        ] {
            let bad = text.replacen(from, to, 1);
            assert_ne!(bad, text, "{from}");
            assert!(Lock::parse(&bad).is_err(), "{to}");
        }
    }

    #[test]
    fn a_changed_recipe_makes_it_stale() {
        let packages = ["nginx".to_owned()].into();
        let mut recipe = DebianRecipe { suite: "bookworm".into(), slim: false, packages };
        let mut lock = lock();
        lock.bases.clear();
        let name: RecipeName = "web".parse().unwrap();
        let recipes = |recipe: &DebianRecipe, oci: &[&str]| Recipes {
            debian: [(name.clone(), recipe.clone())].into(),
            oci: oci.iter().map(|s| (*s).to_owned()).collect(),
        };
        assert!(!lock.fits(&name, &recipe));
        lock.images.get_mut(&name).unwrap().recipe = recipe.digest();
        assert!(lock.is_current(&recipes(&recipe, &[])));
        assert_eq!(lock.unfit(&recipes(&recipe, &["a.test/b"])), ["base `oci:a.test/b`"]);
        let slim = DebianRecipe { slim: true, ..recipe.clone() };
        assert!(!lock.is_current(&recipes(&slim, &[])));
        recipe.packages.insert("curl".into());
        assert!(!lock.is_current(&recipes(&recipe, &[])));
    }
}
