//! What the lock files of other package managers name. They come with the commit, so nothing in them is believed to have a
//! form; one that is not understood is named as such, and the bake goes on.

use super::quote;
use crate::attest::LockFile;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Components of one image.
const COMPONENTS_MAX: usize = 50_000;
/// Bytes of a name, a version, a digest.
const WORD_BYTES_MAX: usize = 512;

/// A hash function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    /// 32 bytes.
    Sha256,
    /// 48 bytes.
    Sha384,
    /// 64 bytes.
    Sha512,
}

impl Algorithm {
    pub(super) fn spdx(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "SHA256",
            Algorithm::Sha384 => "SHA384",
            Algorithm::Sha512 => "SHA512",
        }
    }

    pub(super) fn cyclonedx(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "SHA-256",
            Algorithm::Sha384 => "SHA-384",
            Algorithm::Sha512 => "SHA-512",
        }
    }

    fn bytes(self) -> usize {
        match self {
            Algorithm::Sha256 => 32,
            Algorithm::Sha384 => 48,
            Algorithm::Sha512 => 64,
        }
    }

    fn hex(self, text: &str) -> Option<(Self, String)> {
        let fits = text.len() == 2 * self.bytes() && text.bytes().all(|b| b.is_ascii_hexdigit());
        fits.then(|| (self, text.to_ascii_lowercase()))
    }
}

/// A library that a lock file names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Component {
    /// Its package URL.
    pub purl: String,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Digests of its archive.
    pub hashes: Vec<(Algorithm, String)>,
    /// The lock file.
    pub from: String,
}

/// What lock files (path, content) name, each component once, and which of them were not understood.
pub fn components(files: &[LockFile]) -> (Vec<Component>, Vec<String>) {
    let (mut found, mut unreadable) = (BTreeMap::new(), vec![]);
    for (path, bytes) in files {
        let text = String::from_utf8_lossy(bytes);
        let name = path.rsplit('/').next().unwrap_or_default();
        let rows = match name {
            "Cargo.lock" => cargo(&text, path),
            "package-lock.json" => npm(&text, path),
            _ => Ok(pip(&text, path)),
        };
        match rows {
            Ok(rows) => {
                for row in rows {
                    found.entry(row.purl.clone()).or_insert(row);
                }
            }
            Err(why) => unreadable.push(format!("{path}: {}", why.lines().next().unwrap_or_default())),
        }
    }
    if found.len() > COMPONENTS_MAX {
        unreadable.push(format!("more than {COMPONENTS_MAX} components; the rest is not listed"));
    }
    (found.into_values().take(COMPONENTS_MAX).collect(), unreadable)
}

fn component(
    kind: &str,
    name: &str,
    version: &str,
    hashes: Vec<(Algorithm, String)>,
    from: &str,
) -> Option<Component> {
    let word = |text: &str| {
        !text.is_empty() && text.len() <= WORD_BYTES_MAX && !text.chars().any(|c| c.is_control() || c == ' ')
    };
    if !word(name) || !word(version) {
        return None;
    }
    let path: Vec<String> = name.split('/').map(quote).collect();
    Some(Component {
        purl: format!("pkg:{kind}/{}@{}", path.join("/"), quote(version)),
        name: name.to_owned(),
        version: version.to_owned(),
        hashes,
        from: from.to_owned(),
    })
}

#[derive(Deserialize)]
struct CargoLock {
    #[serde(default)]
    package: Vec<CargoPackage>,
}

#[derive(Deserialize)]
struct CargoPackage {
    name: String,
    version: String,
    checksum: Option<String>,
}

fn cargo(text: &str, from: &str) -> Result<Vec<Component>, String> {
    let lock: CargoLock = toml::from_str(text).map_err(|e| e.message().to_owned())?;
    let row = |p: CargoPackage| {
        let hash = p.checksum.and_then(|sum| Algorithm::Sha256.hex(&sum));
        component("cargo", &p.name, &p.version, hash.into_iter().collect(), from)
    };
    Ok(lock.package.into_iter().filter_map(row).collect())
}

#[derive(Deserialize)]
struct NpmLock {
    packages: BTreeMap<String, NpmPackage>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NpmPackage {
    name: Option<String>,
    version: Option<String>,
    integrity: Option<String>,
    #[serde(default)]
    dev: bool,
    #[serde(default)]
    link: bool,
}

/// Versions 2 and 3 of the format. What only development needs is not in the image.
fn npm(text: &str, from: &str) -> Result<Vec<Component>, String> {
    let lock: NpmLock = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let row = |(place, p): (String, NpmPackage)| {
        if p.dev || p.link {
            return None;
        }
        // The root of the project has no place below node_modules, and is not a library.
        let (_, place) = place.rsplit_once("node_modules/")?;
        let name = p.name.unwrap_or_else(|| place.to_owned());
        component(
            "npm",
            &name,
            &p.version?,
            p.integrity.iter().flat_map(|sri| integrity(sri)).collect(),
            from,
        )
    };
    Ok(lock.packages.into_iter().filter_map(row).collect())
}

/// Subresource integrity: `sha512-BASE64`, several of them separated by blanks.
fn integrity(text: &str) -> Vec<(Algorithm, String)> {
    let one = |word: &str| {
        let (algorithm, sum) = word.split_once('-')?;
        let algorithm = match algorithm {
            "sha256" => Algorithm::Sha256,
            "sha384" => Algorithm::Sha384,
            "sha512" => Algorithm::Sha512,
            _ => return None,
        };
        let bytes = STANDARD.decode(sum).ok()?;
        algorithm.hex(&bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    };
    text.split_ascii_whitespace().filter_map(one).collect()
}

/// Lines `NAME==VERSION … --hash=sha256:HEX …`. Others pin nothing.
fn pip(text: &str, from: &str) -> Vec<Component> {
    // A line that ends in `\` goes on.
    let text = text.replace("\\\r\n", " ").replace("\\\n", " ");
    let row = |line: &str| {
        let line = line.split(" #").next().unwrap_or_default().trim();
        if line.starts_with(['#', '-']) {
            return None;
        }
        let mut words = line.split([' ', ';', '\t']).filter(|word| !word.is_empty());
        let (name, version) = words.next()?.split_once("==")?;
        let name = name.split('[').next().unwrap_or_default();
        // The canonical name, as the index has it.
        let canonical: String = name.to_ascii_lowercase().replace(['_', '.'], "-");
        let hash = |word: &str| Algorithm::Sha256.hex(word.strip_prefix("--hash=sha256:")?);
        let hashes: Vec<_> = words.filter_map(hash).collect();
        // Several are of several archives of one version, of which one was used: none is certain.
        let hashes = if hashes.len() == 1 { hashes } else { vec![] };
        component("pypi", &canonical, version, hashes, from)
    };
    text.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str, text: &str) -> (Vec<Component>, Vec<String>) {
        components(&[(path.to_owned(), text.as_bytes().to_vec())])
    }

    #[test]
    fn lock_files_of_cargo_npm_and_pip_are_read() {
        let sum = "a".repeat(64);
        let text = format!(
            "version = 4\n[[package]]\nname = \"own\"\nversion = \"0.1.0\"\n[[package]]\nname = \"serde\"\nversion = \"1.0.1+x\"\nsource = \"registry\"\nchecksum = \"{sum}\"\n"
        );
        let (rows, bad) = of("api/Cargo.lock", &text);
        assert!(bad.is_empty());
        assert_eq!(rows[0].purl, "pkg:cargo/own@0.1.0");
        assert_eq!(
            (rows[1].purl.as_str(), &rows[1].hashes),
            ("pkg:cargo/serde@1.0.1%2Bx", &vec![(Algorithm::Sha256, sum.clone())])
        );
        assert_eq!(rows[1].from, "api/Cargo.lock");

        let integrity = STANDARD.encode([7; 64]);
        let text = format!(
            r#"{{"lockfileVersion":3,"packages":{{"":{{"name":"site","version":"1.0.0"}},
            "node_modules/@babel/core":{{"version":"7.1.0","integrity":"sha512-{integrity}"}},
            "node_modules/a/node_modules/b":{{"version":"2.0.0"}},
            "node_modules/jest":{{"version":"29.0.0","dev":true}}}}}}"#
        );
        let (rows, bad) = of("package-lock.json", &text);
        assert!(bad.is_empty(), "{bad:?}");
        let purls: Vec<&str> = rows.iter().map(|row| row.purl.as_str()).collect();
        assert_eq!(purls, ["pkg:npm/%40babel/core@7.1.0", "pkg:npm/b@2.0.0"]);
        assert_eq!(rows[0].hashes, [(Algorithm::Sha512, "07".repeat(64))]);

        let text = format!(
            "# c\nFlask[async]==3.0.0 ; python_version > \"3\" \\\n    --hash=sha256:{sum}\nloose>=1\n-r other.txt\nTyping_Extensions==4.1\n"
        );
        let (rows, _) = of("requirements.txt", &text);
        let purls: Vec<&str> = rows.iter().map(|row| row.purl.as_str()).collect();
        assert_eq!(purls, ["pkg:pypi/flask@3.0.0", "pkg:pypi/typing-extensions@4.1"]);
        assert_eq!(rows[0].hashes.len(), 1);
    }

    #[test]
    fn what_is_no_lock_file_is_named_and_harms_nothing() {
        let (rows, bad) = of("Cargo.lock", "<<<<<<< HEAD");
        assert!(rows.is_empty() && bad.len() == 1 && bad[0].starts_with("Cargo.lock: "), "{bad:?}");
        assert_eq!(of("x/package-lock.json", "{}").1.len(), 1);
        let (rows, bad) = of(
            "Cargo.lock",
            "[[package]]\nname = \"a b\"\nversion = \"1\"\n[[package]]\nname = \"ok\"\nversion = \"1\"\nchecksum = \"zz\"\n",
        );
        assert!(bad.is_empty());
        assert_eq!(rows.len(), 1);
        assert!(rows[0].hashes.is_empty());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_harm_the_readers(bytes: Vec<u8>, which in 0..3usize) {
            let name = ["Cargo.lock", "package-lock.json", "requirements.txt"][which];
            let (rows, _) = components(&[(name.to_owned(), bytes)]);
            proptest::prop_assert!(rows.iter().all(|row| row.purl.is_ascii()));
        }
    }
}
