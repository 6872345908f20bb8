//! Where Debian packages come from: an HTTP mirror, or a directory with the same layout.
//!
//! A mirror is chosen by `--mirror`; without it by the apt sources and the proxy of this host. Layout of both kinds,
//! below the address `M` that is given:
//!
//! | what | http, `M = http://HOST/debian` | `M = file:DIR` |
//! |---|---|---|
//! | release, updates | `M/dists/SUITE/…`, `M/pool/…` | `DIR/dists/SUITE/…`, `DIR/pool/…` |
//! | security | `M-security/dists/SUITE-security/…`, `M-security/pool/…` | `DIR/debian-security/dists/…`, `…/pool/…` |
//!
//! Only the component `main` for `amd64` is read. An `InRelease` is verified by its OpenPGP signature ([`release`]),
//! indexes by the sha256 in their `InRelease`, packages by the sha256 in the index or lock. So nothing has to be believed
//! of a mirror or of the network to it; what a bake takes is in the lock.
//!
//! [`release`]: super::release

use super::index::{DEB_BYTES_MAX, Index, IndexError, Listed, listed};
use super::openpgp::{Keyring, KeyringError};
use super::release::{self, ReleaseError};
use kiln_model::digest::Digest;
use kiln_spec::lock::{LockedPackage, LockedSuite};
use std::collections::BTreeMap;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The mirror of a host that has no Debian entries in its apt sources.
const DEFAULT_MAIN: &str = "http://deb.debian.org/debian";
/// The same for security updates.
const DEFAULT_SECURITY: &str = "http://deb.debian.org/debian-security";
/// Bytes of one `InRelease`. Debian's have about 150 kB.
const IN_RELEASE_BYTES_MAX: u64 = 4 << 20;
/// Bytes of one compressed index. Debian main has about 9 MB.
const INDEX_BYTES_MAX: u64 = 128 << 20;
/// Bytes of one index once decompressed. Debian main has about 50 MB.
const INDEX_TEXT_BYTES_MAX: u64 = 1 << 30;
/// Bytes that the decoder of an index may allocate.
const XZ_MEMORY_BYTES_MAX: u64 = 256 << 20;
/// The index of a suite that is read.
const INDEX_PATH: &str = "main/binary-amd64/Packages.xz";
/// Attempts for one file; the pause before the next one doubles from [`PAUSE`].
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const BODY_TIMEOUT: Duration = Duration::from_secs(300);

/// A mirror could not be used.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The text of `--mirror` is no address that kiln can use.
    #[error("`{text}` is not a mirror: {why}")]
    Address {
        /// The text as given.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The apt sources of this host cannot be read.
    #[error("cannot read the apt sources in `{}`", path.display())]
    Sources {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The mirror answers that it has no such file.
    #[error("the mirror has no `{url}`")]
    NotFound {
        /// What was asked for.
        url: String,
    },
    /// The file could not be read, after several attempts over the network.
    #[error("cannot read `{url}`")]
    Read {
        /// What was asked for.
        url: String,
        /// What went wrong last.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file is larger than it may be.
    #[error("`{url}` is larger than {limit} bytes")]
    TooLarge {
        /// What was asked for.
        url: String,
        /// The bound.
        limit: u64,
    },
    /// The file has other content than its list says.
    #[error("`{url}` has other content than expected ({found}, not {expected})")]
    Mismatch {
        /// What was asked for.
        url: String,
        /// What was listed or locked.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// The keyring that was named cannot be used.
    #[error("cannot use the keyring `{}`", path.display())]
    Keyring {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: KeyringError,
    },
    /// An `InRelease` is not to be believed.
    #[error("`{url}` is not to be believed")]
    Release {
        /// What was asked for.
        url: String,
        /// Why.
        #[source]
        source: ReleaseError,
    },
    /// An index is malformed.
    #[error("the mirror's index cannot be used")]
    Index(#[from] IndexError),
    /// The copy of a mirror could not be written.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl MirrorError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Address { .. } => "give `--mirror http://HOST/debian` or `--mirror file:/PATH`",
            Self::Sources { .. } => "name a mirror with `--mirror`",
            Self::NotFound { .. } => {
                "the archive may have replaced this version: run `kiln lock --update` and commit kiln.lock"
            }
            Self::Read { .. } => "check the network and the proxy, or name another mirror with `--mirror`",
            Self::TooLarge { .. } | Self::Mismatch { .. } | Self::Index(_) => {
                "the mirror may be in the middle of an update or damaged: try again, or name another with `--mirror`"
            }
            Self::Keyring { .. } => "write one with `gpg --export KEY... > FILE`",
            Self::Release { source, .. } => source.hint(),
            Self::Write { .. } => "check the space and the permissions of that folder",
        }
    }
}

/// The root of one archive.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Http(String),
    Dir(PathBuf),
}

/// A source of indexes and packages.
#[derive(Debug)]
pub struct Mirror {
    main: Place,
    updates: Place,
    security: Place,
    agent: ureq::Agent,
    keyring: Keyring,
}

/// The suites that make up a Debian release, in the order in which they are preferred.
pub fn suites_of(release: &str) -> [String; 3] {
    [format!("{release}-security"), format!("{release}-updates"), release.to_owned()]
}

impl Mirror {
    /// The mirror that `--mirror` names, else the one of this host for `release`; what it offers has to be signed by a
    /// key of the file `keyring`, else of Debian.
    ///
    /// # Errors
    /// [`MirrorError`] if the mirror or the keyring cannot be used.
    pub fn open(text: Option<&str>, release: &str, keyring: Option<&Path>) -> Result<Self, MirrorError> {
        let mirror = match text {
            Some(text) => Self::parse(text)?,
            None => Self::of_host(Path::new("/"), release)?,
        };
        let Some(path) = keyring else { return Ok(mirror) };
        let keyring = Keyring::read(path);
        let keyring = keyring.map_err(|source| MirrorError::Keyring { path: path.to_owned(), source })?;
        Ok(mirror.trusting(keyring))
    }

    /// The mirror that `--mirror` names.
    ///
    /// # Errors
    /// [`MirrorError::Address`] unless it is `http://…` or `file:DIR`.
    pub fn parse(text: &str) -> Result<Self, MirrorError> {
        let error = |why| MirrorError::Address { text: text.to_owned(), why };
        if let Some(dir) = text.strip_prefix("file:") {
            let dir = PathBuf::from(dir.strip_prefix("//").unwrap_or(dir));
            if dir.as_os_str().is_empty() {
                return Err(error("the directory is missing"));
            }
            let (main, security) = (Place::Dir(dir.clone()), Place::Dir(dir.join(SECURITY_DIR)));
            return Ok(Self {
                updates: main.clone(),
                main,
                security,
                agent: agent(None),
                keyring: Keyring::debian(),
            });
        }
        if text.starts_with("https://") {
            return Err(error(
                "https is not supported; all that comes is verified by signatures and sha256, so http is enough",
            ));
        }
        if !text.starts_with("http://") || text.contains(char::is_whitespace) {
            return Err(error("it is neither `http://…` nor `file:DIR`"));
        }
        let main = text.trim_end_matches('/').to_owned();
        let security = Place::Http(format!("{main}-security"));
        let main = Place::Http(main);
        Ok(Self { updates: main.clone(), main, security, agent: agent(None), keyring: Keyring::debian() })
    }

    /// The mirror that this host's apt uses for `release`, with apt's proxy; `root` is `/`. A host without Debian
    /// entries gets `deb.debian.org`.
    ///
    /// # Errors
    /// [`MirrorError::Sources`] if a file of the sources exists and cannot be read.
    pub fn of_host(root: &Path, release: &str) -> Result<Self, MirrorError> {
        let entries = apt_entries(root)?;
        let find = |suite: &str| entries.iter().find(|(s, _)| s == suite).map(|(_, uri)| uri.clone());
        let main = find(release).unwrap_or_else(|| DEFAULT_MAIN.to_owned());
        let updates = find(&format!("{release}-updates")).unwrap_or_else(|| main.clone());
        let security = find(&format!("{release}-security")).unwrap_or_else(|| DEFAULT_SECURITY.to_owned());
        let (main, updates, security) = (Place::Http(main), Place::Http(updates), Place::Http(security));
        let agent = agent(apt_proxy(root)?.as_deref());
        Ok(Self { main, updates, security, agent, keyring: Keyring::debian() })
    }

    /// The same mirror, of which only what `keyring` signed is believed.
    #[must_use]
    pub fn trusting(self, keyring: Keyring) -> Self {
        Self { keyring, ..self }
    }

    fn place(&self, suite: &str) -> &Place {
        match suite.rsplit_once('-') {
            Some((_, "security")) => &self.security,
            Some((_, "updates")) => &self.updates,
            _ => &self.main,
        }
    }

    /// Reads one file of the archive of `suite`; `path` is relative to the archive.
    ///
    /// # Errors
    /// [`MirrorError`], over the network after several attempts.
    pub fn read(&self, suite: &str, path: &str, limit: u64) -> Result<Vec<u8>, MirrorError> {
        match self.place(suite) {
            Place::Dir(dir) => read_file(&dir.join(path), limit),
            Place::Http(base) => {
                let url = format!("{base}/{path}");
                let mut pause = PAUSE;
                for _ in 1..ATTEMPTS {
                    match self.get(&url, limit) {
                        Err(MirrorError::Read { .. }) => std::thread::sleep(pause),
                        other => return other,
                    }
                    pause *= 2;
                }
                self.get(&url, limit)
            }
        }
    }

    fn get(&self, url: &str, limit: u64) -> Result<Vec<u8>, MirrorError> {
        let failed = |source| MirrorError::Read { url: url.to_owned(), source };
        let mut answer = match self.agent.get(url).call() {
            Ok(answer) => answer,
            Err(ureq::Error::StatusCode(404 | 410)) => {
                return Err(MirrorError::NotFound { url: url.to_owned() });
            }
            Err(error) => return Err(failed(error.into())),
        };
        let mut bytes = Vec::new();
        let mut body = answer.body_mut().with_config().limit(limit + 1).reader();
        body.read_to_end(&mut bytes).map_err(|e| failed(e.into()))?;
        if bytes.len() as u64 > limit {
            return Err(MirrorError::TooLarge { url: url.to_owned(), limit });
        }
        Ok(bytes)
    }

    /// Reads one file and verifies it.
    ///
    /// # Errors
    /// [`MirrorError::Mismatch`] if it is not what was listed, else as [`Mirror::read`].
    pub fn read_verified(&self, suite: &str, path: &str, expected: Listed) -> Result<Vec<u8>, MirrorError> {
        let bytes = self.read(suite, path, expected.size)?;
        let found = Digest::of(&bytes);
        if found == expected.digest && bytes.len() as u64 == expected.size {
            return Ok(bytes);
        }
        let url = format!("{path} ({suite})");
        Err(MirrorError::Mismatch { url, expected: expected.digest, found })
    }

    /// Reads a locked package and verifies it.
    ///
    /// # Errors
    /// As [`Mirror::read_verified`].
    pub fn read_package(&self, package: &LockedPackage) -> Result<Vec<u8>, MirrorError> {
        if package.size > DEB_BYTES_MAX {
            return Err(MirrorError::TooLarge { url: package.path.clone(), limit: DEB_BYTES_MAX });
        }
        let expected = Listed { digest: package.sha256, size: package.size };
        self.read_verified(&package.suite, &package.path, expected)
    }

    /// Reads the indexes of all suites of `release`. A mirror in a directory may lack the updates and the security
    /// suite; one on the network may not.
    ///
    /// # Errors
    /// [`MirrorError`] if a file is missing, damaged or malformed.
    pub fn index(&self, release: &str) -> Result<(Index, BTreeMap<String, LockedSuite>), MirrorError> {
        let mut index = Index::default();
        let mut suites = BTreeMap::new();
        for suite in suites_of(release) {
            let Some((in_release, packages)) = self.lists(&suite, suite != release)? else { continue };
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY_BYTES_MAX, 0)
                .map_err(|e| IndexError::Read { suite: suite.clone(), source: e.into() })?;
            let decoder = liblzma::bufread::XzDecoder::new_stream(&packages[..], stream);
            let text = BufReader::with_capacity(1 << 16, decoder.take(INDEX_TEXT_BYTES_MAX));
            index.add(&suite, text)?;
            suites.insert(suite, LockedSuite { in_release: Digest::of(&in_release) });
        }
        Ok((index, suites))
    }

    /// The `InRelease` and the verified, compressed index of one suite.
    fn lists(&self, suite: &str, optional: bool) -> Result<Option<Lists>, MirrorError> {
        let in_release = match self.read(suite, &format!("dists/{suite}/InRelease"), IN_RELEASE_BYTES_MAX) {
            Err(MirrorError::NotFound { .. }) if optional && matches!(self.place(suite), Place::Dir(_)) => {
                return Ok(None);
            }
            other => other?,
        };
        // A mirror in a directory is kept as it is on purpose; one on the network has to be fresh.
        let is_kept = matches!(self.place(suite), Place::Dir(_));
        let now = (!is_kept).then(release::now);
        let signed = release::verify(suite, &in_release, &self.keyring, now);
        let url = || format!("dists/{suite}/InRelease");
        let signed = signed.map_err(|source| MirrorError::Release { url: url(), source })?;
        let entry = listed(suite, &signed, INDEX_PATH)?;
        if entry.size > INDEX_BYTES_MAX {
            return Err(MirrorError::TooLarge { url: INDEX_PATH.to_owned(), limit: INDEX_BYTES_MAX });
        }
        let packages = self.read_verified(suite, &format!("dists/{suite}/{INDEX_PATH}"), entry)?;
        Ok(Some((in_release, packages)))
    }
}

/// An `InRelease` and the compressed index that it lists.
type Lists = (Vec<u8>, Vec<u8>);

/// Where a mirror in a directory keeps the security archive.
const SECURITY_DIR: &str = "debian-security";

/// Makes `dir` a mirror (`--mirror file:DIR`) of the indexes of `release` and of the packages in `rows`, for hosts and
/// tests without a network. What is there already with the right content is kept. Calls `progress` with each path.
///
/// # Errors
/// [`MirrorError`] if a file cannot be fetched or written.
pub fn fetch_into<'a>(
    mirror: &Mirror,
    dir: &Path,
    release: &str,
    rows: impl IntoIterator<Item = &'a LockedPackage>,
    mut progress: impl FnMut(&str),
) -> Result<(), MirrorError> {
    let root =
        |suite: &str| if suite.ends_with("-security") { dir.join(SECURITY_DIR) } else { dir.to_owned() };
    for suite in suites_of(release) {
        if let Some((in_release, packages)) = mirror.lists(&suite, suite != release)? {
            let list = format!("dists/{suite}/{INDEX_PATH}");
            progress(&list);
            write_file(&root(&suite).join(list), &packages)?;
            write_file(&root(&suite).join(format!("dists/{suite}/InRelease")), &in_release)?;
        }
    }
    for row in rows {
        let path = root(&row.suite).join(&row.path);
        if std::fs::read(&path).is_ok_and(|bytes| Digest::of(&bytes) == row.sha256) {
            continue;
        }
        progress(&row.path);
        write_file(&path, &mirror.read_package(row)?)?;
    }
    Ok(())
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), MirrorError> {
    let failed = |source| MirrorError::Write { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    let partial = path.with_extension("partial");
    std::fs::write(&partial, bytes).map_err(failed)?;
    std::fs::rename(&partial, path).map_err(failed)
}

fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, MirrorError> {
    let url = format!("file:{}", path.display());
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(MirrorError::NotFound { url }),
        Err(e) => return Err(MirrorError::Read { url, source: e.into() }),
    };
    let mut bytes = Vec::new();
    match file.take(limit + 1).read_to_end(&mut bytes) {
        Err(e) => Err(MirrorError::Read { url, source: e.into() }),
        Ok(n) if n as u64 > limit => Err(MirrorError::TooLarge { url, limit }),
        Ok(_) => Ok(bytes),
    }
}

/// Connections that are kept open; a proxy of apt wins over the environment's.
fn agent(apt_proxy: Option<&str>) -> ureq::Agent {
    let mut config = ureq::Agent::config_builder()
        .user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(ANSWER_TIMEOUT))
        .timeout_recv_body(Some(BODY_TIMEOUT))
        .max_idle_connections_per_host(super::fetch::FETCHERS);
    if let Some(proxy) = apt_proxy.and_then(|p| ureq::Proxy::new(p).ok()) {
        config = config.proxy(Some(proxy));
    }
    config.build().into()
}

/// The files of a configuration that is a file and a `.d` directory, in apt's order.
fn files_of(
    root: &Path,
    file: &str,
    dir: &str,
    suffixes: &[&str],
) -> Result<Vec<(PathBuf, String)>, MirrorError> {
    let failed = |path: &Path, source| MirrorError::Sources { path: path.to_owned(), source };
    let mut paths = vec![root.join(file)];
    match std::fs::read_dir(root.join(dir)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(&root.join(dir), e)),
        Ok(entries) => {
            let mut names: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
            names.retain(|p| suffixes.iter().any(|s| p.to_string_lossy().ends_with(s)));
            names.sort();
            paths.extend(names);
        }
    }
    let mut texts = Vec::new();
    for path in paths {
        match std::fs::read_to_string(&path) {
            Ok(text) => texts.push((path, text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(&path, e)),
        }
    }
    Ok(texts)
}

/// (suite, address) of the Debian archives in the apt sources.
fn apt_entries(root: &Path) -> Result<Vec<(String, String)>, MirrorError> {
    let files = files_of(root, "etc/apt/sources.list", "etc/apt/sources.list.d", &[".list", ".sources"])?;
    let mut entries = Vec::new();
    for (path, text) in files {
        if path.extension().is_some_and(|e| e == "sources") {
            text.split("\n\n").for_each(|stanza| deb822_entries(stanza, &mut entries));
        } else {
            text.lines().for_each(|line| one_line_entry(line, &mut entries));
        }
    }
    Ok(entries)
}

/// Adds an address if it looks like a Debian archive that can be read over http.
fn add_entry(entries: &mut Vec<(String, String)>, uri: &str, suite: &str) {
    let uri = uri.trim_end_matches('/');
    if uri.starts_with("http://") && (uri.ends_with("/debian") || uri.ends_with("/debian-security")) {
        entries.push((suite.trim_end_matches('/').to_owned(), uri.to_owned()));
    }
}

fn deb822_entries(stanza: &str, entries: &mut Vec<(String, String)>) {
    let mut fields: BTreeMap<String, String> = BTreeMap::new();
    let mut last = String::new();
    for line in stanza.lines().filter(|line| !line.starts_with('#')) {
        if line.starts_with([' ', '\t']) {
            let value = fields.entry(last.clone()).or_default();
            value.push(' ');
            value.push_str(line.trim());
        } else if let Some((key, value)) = line.split_once(':') {
            last = key.to_ascii_lowercase();
            fields.insert(last.clone(), value.trim().to_owned());
        }
    }
    let words = |key: &str| fields.get(key).map_or("", String::as_str).split_ascii_whitespace();
    let off = words("enabled").any(|w| matches!(w, "no" | "false" | "0"));
    if off || !words("types").any(|w| w == "deb") || !words("components").any(|w| w == "main") {
        return;
    }
    for uri in words("uris") {
        words("suites").for_each(|suite| add_entry(entries, uri, suite));
    }
}

fn one_line_entry(line: &str, entries: &mut Vec<(String, String)>) {
    let line = line.split('#').next().unwrap_or_default().trim();
    let Some(rest) = line.strip_prefix("deb").filter(|rest| rest.starts_with([' ', '\t'])) else { return };
    let rest = rest.trim_start();
    let rest = match rest.strip_prefix('[') {
        None => rest,
        Some(options) => options.split_once(']').map_or("", |(_, rest)| rest),
    };
    let mut words = rest.split_ascii_whitespace();
    if let (Some(uri), Some(suite)) = (words.next(), words.next())
        && words.any(|component| component == "main")
    {
        add_entry(entries, uri, suite);
    }
}

/// `Acquire::http::Proxy` of apt's configuration, in its one-line form.
fn apt_proxy(root: &Path) -> Result<Option<String>, MirrorError> {
    let mut proxy = None;
    for (_, text) in files_of(root, "etc/apt/apt.conf", "etc/apt/apt.conf.d", &[""])? {
        for line in text.lines() {
            let Some((key, value)) = line.trim().split_once(char::is_whitespace) else { continue };
            if key.eq_ignore_ascii_case("Acquire::http::Proxy") {
                let value = value.trim().trim_end_matches(';').trim().trim_matches('"');
                proxy = value.starts_with("http://").then(|| value.to_owned());
            }
        }
    }
    Ok(proxy)
}

#[cfg(test)]
mod tests {
    use super::super::openpgp::tests::Gpg;
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        write_file(&root.join(path), text.as_bytes()).unwrap();
    }

    #[test]
    fn reads_the_host_s_apt_sources() {
        let root = tempfile::tempdir().unwrap();
        let deb822 = "# c\nTypes: deb\nURIs: http://m.example/debian\nSuites: bookworm\n bookworm-updates\n\
                      Components: main\n\nTypes: deb\nEnabled: no\nURIs: http://off.example/debian\n\
                      Suites: bookworm\nComponents: main\n";
        write(root.path(), "etc/apt/sources.list.d/debian.sources", deb822);
        let lines = "deb https://packages.example/apt cloud main\n# deb http://c.example/debian bookworm main\n\
                     deb [arch=amd64 signed-by=/x] http://s.example/debian-security/ bookworm-security main\n\
                     deb http://third.example/other bookworm main\ndeb-src http://x.example/debian bookworm main\n";
        write(root.path(), "etc/apt/sources.list", lines);
        let conf = "Acquire::Retries 3;\nAcquire::http::Proxy \"http://proxy.example:3128/\";\n";
        write(root.path(), "etc/apt/apt.conf.d/90proxy", conf);
        let mirror = Mirror::of_host(root.path(), "bookworm").unwrap();
        assert_eq!(mirror.main, Place::Http("http://m.example/debian".into()));
        assert_eq!(mirror.updates, Place::Http("http://m.example/debian".into()));
        assert_eq!(mirror.security, Place::Http("http://s.example/debian-security".into()));
        assert_eq!(apt_proxy(root.path()).unwrap().unwrap(), "http://proxy.example:3128/");
        let empty = tempfile::tempdir().unwrap();
        let mirror = Mirror::of_host(empty.path(), "bookworm").unwrap();
        assert_eq!(mirror.security, Place::Http(DEFAULT_SECURITY.into()));
    }

    #[test]
    fn parses_addresses() {
        let mirror = Mirror::parse("http://m.example/debian/").unwrap();
        assert_eq!(mirror.security, Place::Http("http://m.example/debian-security".into()));
        assert_eq!(Mirror::parse("file:/m").unwrap().security, Place::Dir("/m/debian-security".into()));
        assert_eq!(Mirror::parse("file:///m").unwrap().main, Place::Dir("/m".into()));
        for bad in ["", "https://x/debian", "ftp://x", "/m", "file:", "http://x y/"] {
            assert!(matches!(Mirror::parse(bad), Err(MirrorError::Address { .. })), "{bad}");
        }
    }

    #[test]
    fn a_directory_is_a_mirror_and_its_index_is_verified() {
        let root = tempfile::tempdir().unwrap();
        let packages = format!(
            "Package: aa\nVersion: 1\nArchitecture: all\nFilename: pool/aa.deb\nSize: 3\nSHA256: {}\n",
            Digest::of(b"deb").hex()
        );
        let mut xz = Vec::new();
        liblzma::read::XzEncoder::new(packages.as_bytes(), 1).read_to_end(&mut xz).unwrap();
        let list =
            format!("Codename: bookworm\nSHA256:\n {} {} {INDEX_PATH}\n", Digest::of(&xz).hex(), xz.len());
        let gpg = Gpg::new("ed25519", "0");
        let signed = gpg.sign(&list, &[]);
        write(root.path(), "dists/bookworm/InRelease", &signed);
        write_file(&root.path().join("dists/bookworm").join(INDEX_PATH), &xz).unwrap();
        write(root.path(), "pool/aa.deb", "deb");
        let mirror = Mirror::parse(&format!("file:{}", root.path().display())).unwrap();
        assert!(
            matches!(mirror.index("bookworm"), Err(MirrorError::Release { .. })),
            "Debian did not sign it"
        );
        let mirror = mirror.trusting(gpg.keyring());
        let (index, suites) = mirror.index("bookworm").unwrap();
        assert_eq!(index.versions("aa").len(), 1);
        assert_eq!(suites["bookworm"].in_release, Digest::of(signed.as_bytes()));
        assert_eq!(suites.len(), 1, "updates and security are optional in a directory");

        let unsigned = list.replace("bookworm", "bookworm ");
        write(root.path(), "dists/bookworm/InRelease", &unsigned);
        assert!(matches!(mirror.index("bookworm"), Err(MirrorError::Release { .. })), "it is not signed");
        write(root.path(), "dists/bookworm/InRelease", &signed);

        xz[20] ^= 1;
        write_file(&root.path().join("dists/bookworm").join(INDEX_PATH), &xz).unwrap();
        assert!(matches!(mirror.index("bookworm"), Err(MirrorError::Mismatch { .. })));
        assert!(matches!(mirror.read("bookworm", "pool/aa.deb", 2), Err(MirrorError::TooLarge { .. })));
        assert!(matches!(mirror.read("bookworm", "pool/b.deb", 2), Err(MirrorError::NotFound { .. })));
    }
}
