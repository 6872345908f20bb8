//! `Packages` indexes and their `InRelease`: what an archive offers, read as a stream with bounds.
//!
//! The texts come from the network, so every number in them is checked and every size bounded. Whether an `InRelease` is
//! to be believed is decided in `release`; each index has to be the one that its `InRelease` lists.

use super::version::Version;
use kiln_model::digest::Digest;
use std::collections::HashMap;
use std::io::BufRead;
use std::str::FromStr;

/// Bytes of one line of an index. Debian's longest (`Provides` of librust packages) is about 60 kB.
const LINE_BYTES_MAX: u64 = 1024 * 1024;
/// Packages in all indexes together. Debian bookworm has about 64 000.
const PACKAGES_MAX: usize = 400_000;
/// Bytes of one `.deb`. Debian's largest is about 1.5 GB.
pub(crate) const DEB_BYTES_MAX: u64 = 4 << 30;

/// An index or an `InRelease` could not be understood.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The stream broke, or its compression is damaged.
    #[error("cannot read the package index of `{suite}`")]
    Read {
        /// The suite that was read.
        suite: String,
        /// What the reader said.
        #[source]
        source: std::io::Error,
    },
    /// A line, a field or the number of packages is beyond its bound.
    #[error("the package index of `{suite}` is not acceptable: {why}")]
    Malformed {
        /// The suite that was read.
        suite: String,
        /// What is wrong with it.
        why: String,
    },
    /// The `InRelease` does not list what is needed.
    #[error("the `InRelease` of `{suite}` does not list `{path}` with a sha256")]
    NotListed {
        /// The suite that was read.
        suite: String,
        /// The path that is missing.
        path: String,
    },
}

/// One entry of the `SHA256:` list of an `InRelease`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// sha256 of the file.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// Finds the entry of `path` (for example `main/binary-amd64/Packages.xz`) in the text of an `InRelease`.
///
/// # Errors
/// [`IndexError::NotListed`] if there is no well-formed entry.
pub fn listed(suite: &str, in_release: &str, path: &str) -> Result<Listed, IndexError> {
    let mut inside = false;
    for line in in_release.lines() {
        if !line.starts_with(' ') {
            inside = line.trim_end() == "SHA256:";
            continue;
        }
        if !inside {
            continue;
        }
        let mut words = line.split_ascii_whitespace();
        if let (Some(hex), Some(size), Some(name), None) =
            (words.next(), words.next(), words.next(), words.next())
            && name == path
            && let (Ok(digest), Ok(size)) = (Digest::from_str(hex), size.parse())
        {
            return Ok(Listed { digest, size });
        }
    }
    Err(IndexError::NotListed { suite: suite.to_owned(), path: path.to_owned() })
}

/// One package of an index, with its relations as they are written there.
#[derive(Debug, Clone)]
pub struct Package {
    /// Its name.
    pub name: Box<str>,
    /// Its version.
    pub version: Version,
    /// `amd64` or `all`.
    pub architecture: Box<str>,
    /// `Essential: yes`.
    pub essential: bool,
    /// `Priority: required`.
    pub required: bool,
    /// `Depends` and `Pre-Depends`, joined.
    pub depends: Box<str>,
    /// `Provides`.
    pub provides: Box<str>,
    /// `Conflicts` and `Breaks`, joined.
    pub conflicts: Box<str>,
    /// Where it lies, relative to the archive.
    pub path: Box<str>,
    /// Its size in bytes.
    pub size: u64,
    /// sha256 of the `.deb`.
    pub sha256: Digest,
    /// The suite that offers it, as given to [`Index::add`].
    pub suite: Box<str>,
}

/// The packages of all suites, by name, newest first.
#[derive(Debug, Default)]
pub struct Index {
    packages: HashMap<Box<str>, Vec<Package>>,
    n_packages: usize,
}

impl Index {
    /// Reads an uncompressed `Packages` text.
    ///
    /// # Errors
    /// [`IndexError`] if the stream breaks or a stanza is malformed or unbounded.
    pub fn add(&mut self, suite: &str, reader: impl BufRead) -> Result<(), IndexError> {
        let malformed = |why: String| IndexError::Malformed { suite: suite.to_owned(), why };
        let mut lines = Lines { reader, line: Vec::new() };
        let mut stanza = Stanza::default();
        loop {
            let line = match lines.next() {
                Err(source) => return Err(IndexError::Read { suite: suite.to_owned(), source }),
                Ok(line) => line,
            };
            match line {
                Some(line) if !line.is_empty() => stanza.line(line).map_err(malformed)?,
                end => {
                    if let Some(package) = std::mem::take(&mut stanza).finish(suite).map_err(malformed)? {
                        self.insert(package).map_err(malformed)?;
                    }
                    if end.is_none() {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn insert(&mut self, package: Package) -> Result<(), String> {
        self.n_packages += 1;
        if self.n_packages > PACKAGES_MAX {
            return Err(format!("it has more than {PACKAGES_MAX} packages"));
        }
        let versions = self.packages.entry(package.name.clone()).or_default();
        // A version that two suites offer is taken from the suite that was added first.
        if versions.iter().all(|p| p.version != package.version) {
            let at = versions.partition_point(|p| p.version > package.version);
            versions.insert(at, package);
        }
        Ok(())
    }

    /// The versions of a package, newest first.
    pub fn versions(&self, name: &str) -> &[Package] {
        self.packages.get(name).map_or(&[], Vec::as_slice)
    }

    /// The names of all packages, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.packages.keys().map(|name| &**name)
    }

    /// How many packages there are, versions counted apart.
    pub fn len(&self) -> usize {
        self.n_packages
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.n_packages == 0
    }
}

/// Lines of bounded length without their end.
struct Lines<R> {
    reader: R,
    line: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    fn next(&mut self) -> std::io::Result<Option<&str>> {
        use std::io::{Error, ErrorKind, Read};
        self.line.clear();
        let n = (&mut self.reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut self.line)?;
        if n == 0 {
            return Ok(None);
        }
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
        } else if n as u64 == LINE_BYTES_MAX {
            return Err(Error::new(ErrorKind::InvalidData, "a line is longer than 1 MiB"));
        }
        let text = std::str::from_utf8(&self.line).map_err(|e| Error::new(ErrorKind::InvalidData, e))?;
        Ok(Some(text))
    }
}

/// The fields of the stanza that is being read.
#[derive(Default)]
struct Stanza {
    name: Box<str>,
    version: Box<str>,
    architecture: Box<str>,
    essential: bool,
    required: bool,
    depends: String,
    provides: Box<str>,
    conflicts: String,
    path: Box<str>,
    size: Box<str>,
    sha256: Box<str>,
}

impl Stanza {
    fn line(&mut self, line: &str) -> Result<(), String> {
        if line.starts_with([' ', '\t']) {
            return Ok(());
        }
        let Some((key, value)) = line.split_once(':') else {
            return Err(format!("`{}` is not a field", line.chars().take(60).collect::<String>()));
        };
        let value = value.trim();
        let join = |list: &mut String| {
            if !list.is_empty() {
                list.push_str(", ");
            }
            list.push_str(value);
        };
        match key {
            "Package" => self.name = value.into(),
            "Version" => self.version = value.into(),
            "Architecture" => self.architecture = value.into(),
            "Essential" => self.essential = value == "yes",
            "Priority" => self.required = value == "required",
            "Depends" | "Pre-Depends" => join(&mut self.depends),
            "Conflicts" | "Breaks" => join(&mut self.conflicts),
            "Provides" => self.provides = value.into(),
            "Filename" => self.path = value.into(),
            "Size" => self.size = value.into(),
            "SHA256" => self.sha256 = value.into(),
            _ => {}
        }
        Ok(())
    }

    /// The package, or none for an empty stanza and for another architecture.
    fn finish(self, suite: &str) -> Result<Option<Package>, String> {
        if self.name.is_empty() || !matches!(&*self.architecture, "amd64" | "all") {
            return Ok(None);
        }
        let bad = |what: &str| format!("package `{}` has no acceptable {what}", self.name);
        if !valid_name(&self.name) {
            return Err(bad("name"));
        }
        if !valid_path(&self.path) {
            return Err(bad("`Filename`"));
        }
        let size = self.size.parse().ok().filter(|size| (1..=DEB_BYTES_MAX).contains(size));
        Ok(Some(Package {
            version: self.version.parse().map_err(|_| bad("`Version`"))?,
            size: size.ok_or_else(|| bad("`Size`"))?,
            sha256: self.sha256.parse().map_err(|_| bad("`SHA256`"))?,
            name: self.name,
            architecture: self.architecture,
            essential: self.essential,
            required: self.required,
            depends: self.depends.into(),
            provides: self.provides,
            conflicts: self.conflicts.into(),
            path: self.path,
            suite: suite.into(),
        }))
    }
}

/// Whether `name` is a Debian package name: two or more of `a-z0-9+-.`, the first a letter or digit.
pub(crate) fn valid_name(name: &str) -> bool {
    let first = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (2..=128).contains(&name.len())
        && name.bytes().enumerate().all(|(at, b)| first(b) || (at > 0 && b"+-.".contains(&b)))
}

/// Whether `path` is a plain relative path below `pool/` that can leave no directory.
pub(crate) fn valid_path(path: &str) -> bool {
    let part_ok = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._~%:".contains(&b))
    };
    path.len() <= 512 && path.starts_with("pool/") && path.ends_with(".deb") && path.split('/').all(part_ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "00000000000000000000000000000000000000000000000000000000000000aa";

    fn stanza(name: &str, version: &str, more: &str) -> String {
        format!(
            "Package: {name}\nVersion: {version}\nArchitecture: amd64\nDescription: x\n more: y\n{more}\
             Filename: pool/main/x/{name}.deb\nSize: 5\nSHA256: {HEX}\n\n"
        )
    }

    fn read(text: &str) -> Result<Index, IndexError> {
        let mut index = Index::default();
        index.add("bookworm", text.as_bytes())?;
        Ok(index)
    }

    #[test]
    fn reads_newest_first_and_joins_relations() {
        let more = "Pre-Depends: libc6\nDepends: b, c\nConflicts: d\nBreaks: e\nEssential: yes\n";
        let index = read(&(stanza("aa", "1.9", "") + &stanza("aa", "1.10", more))).unwrap();
        let versions = index.versions("aa");
        assert_eq!(versions.iter().map(|p| p.version.as_str()).collect::<Vec<_>>(), ["1.10", "1.9"]);
        assert_eq!(&*versions[0].depends, "libc6, b, c");
        assert_eq!(&*versions[0].conflicts, "d, e");
        assert!(versions[0].essential && !versions[1].essential);
    }

    #[test]
    fn refuses_hostile_stanzas() {
        let good = stanza("aa", "1", "");
        for (from, to) in [
            ("Size: 5", "Size: -5"),
            ("Size: 5", "Size: 99999999999999"),
            ("pool/main/x/aa.deb", "pool/../../etc/passwd.deb"),
            ("pool/main/x/aa.deb", "/pool/x.deb"),
            ("pool/main/x/aa.deb", "pool//x.deb"),
            ("pool/main/x/aa.deb", "http://evil/pool/x.deb"),
            (HEX, "xyz"),
            ("Package: aa", "Package: ../aa"),
            ("Package: aa", "Package: -aa"),
            ("Version: 1", "Version: 1 1"),
            ("Description: x", "Description"),
        ] {
            let bad = good.replace(from, to);
            assert_ne!(bad, good);
            assert!(matches!(read(&bad), Err(IndexError::Malformed { .. })), "{to}");
        }
        let long = format!("Package: aa\nDescription: {}\n", "x".repeat(2 << 20));
        assert!(matches!(read(&long), Err(IndexError::Read { .. })));
        assert!(read(&good.replace("amd64", "arm64")).unwrap().is_empty());
    }

    #[test]
    fn finds_the_entry_of_an_in_release() {
        let text = format!(
            "-----BEGIN PGP SIGNED MESSAGE-----\n\nOrigin: Debian\nMD5Sum:\n {HEX} 1 main/p\nSHA256:\n \
             {HEX}     77 main/q\n"
        );
        assert_eq!(listed("s", &text, "main/q").unwrap().size, 77);
        assert!(listed("s", &text, "main/p").is_err());
    }
}
