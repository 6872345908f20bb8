//! The certificates that the edge shows: a folder of pairs, `NAME.crt` (PEM, the chain) and `NAME.key` (PEM). For which hosts a
//! pair is, its certificate says; `default.crt` is also for clients that name no host, or one that nobody has.
//!
//! The folder is read whole and each pair is checked before any is used. No message has anything of a key's content.

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{InconsistentKeys, ServerConfig};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::limits::{CERTIFICATE_BYTES_MAX, CERTIFICATES_MAX};

/// The pair for clients that name no host that another one is for.
const DEFAULT: &str = "default";
/// Rights that a key must not give: to write to the group, anything to everybody.
const OPEN_BITS: u32 = 0o027;

/// Why a pair is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PairError {
    #[error("the folder of certificates `{path}` cannot be read")]
    Folder {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("there are more than {CERTIFICATES_MAX} files in `{path}`")]
    TooMany { path: PathBuf },
    #[error("`{path}` cannot be read")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{path}` is not a file of at most {CERTIFICATE_BYTES_MAX} bytes")]
    NotAFile { path: PathBuf },
    #[error("`{path}` has no `{missing}` beside it")]
    Alone { path: PathBuf, missing: String },
    #[error(
        "`{path}` has mode {mode:03o}: a key must be readable by its owner and group only; hint: `chmod 640`"
    )]
    Open { path: PathBuf, mode: u32 },
    #[error("`{path}` holds no certificate in PEM")]
    NoCertificate { path: PathBuf },
    #[error("`{path}` holds no private key in PEM that can be used (PKCS#8, PKCS#1 or SEC1, not encrypted)")]
    NoKey { path: PathBuf },
    #[error("`{key}` is not the key of the first certificate in `{certificate}`")]
    Mismatch { certificate: PathBuf, key: PathBuf },
    #[error("`{path}` is not a certificate for servers: {reason}")]
    Certificate { path: PathBuf, reason: String },
    #[error("`{path}` names no host (no DNS name in its subjectAltName)")]
    Nameless { path: PathBuf },
    #[error("both `{first}` and `{second}` are for `{host}`")]
    Twice { host: String, first: String, second: String },
}

/// One pair, ready for use.
#[derive(Debug)]
pub(crate) struct Certificate {
    /// `NAME` of its files.
    name: String,
    /// In lower case; wildcards as `*.example.com`.
    hosts: Vec<String>,
    /// What a handshake with it is done by.
    pub(crate) config: Arc<ServerConfig>,
}

impl Certificate {
    /// Whether it is for this host, in lower case.
    pub(crate) fn covers(&self, host: &str) -> bool {
        let above = host.split_once('.').map(|(_, above)| above);
        self.hosts
            .iter()
            .any(|own| own == host || own.strip_prefix("*.").is_some_and(|own| Some(own) == above))
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Certificates {
    /// By host; wildcards with their `*.`.
    by_host: HashMap<String, Arc<Certificate>>,
    default: Option<Arc<Certificate>>,
    /// Pairs in use.
    pub(crate) count: usize,
}

impl Certificates {
    /// The pair for a client that names `host`: the exact one, then the wildcard of its parent; none but the default one for
    /// other hosts.
    pub(crate) fn find(&self, host: Option<&str>) -> Option<&Arc<Certificate>> {
        let named = host.and_then(|host| {
            let host = host.trim_end_matches('.').to_ascii_lowercase();
            let wildcard = || self.by_host.get(&format!("*.{}", host.split_once('.')?.1));
            self.by_host.get(&host).or_else(wildcard)
        });
        named.or(self.default.as_ref())
    }

    /// Whether `certificate` is the one for everybody.
    pub(crate) fn is_default(&self, certificate: &Arc<Certificate>) -> bool {
        self.default.as_ref().is_some_and(|own| Arc::ptr_eq(own, certificate))
    }
}

/// What of a folder changes when a certificate is replaced: each file with its number, time of change and size.
pub(crate) type Look = BTreeMap<OsString, (u64, i64, i64, u64)>;

/// Looks without reading anything.
pub(crate) fn look(dir: &Path) -> Result<Look, PairError> {
    let broken = |source| PairError::Folder { path: dir.to_owned(), source };
    let mut look = Look::new();
    for entry in dir.read_dir().map_err(broken)? {
        let name = entry.map_err(broken)?.file_name();
        let path = dir.join(&name);
        if !path.extension().is_some_and(|e| e == "crt" || e == "key") {
            continue;
        }
        if look.len() == 2 * CERTIFICATES_MAX {
            return Err(PairError::TooMany { path: dir.to_owned() });
        }
        // Through links: ACME clients replace what they lead to. One that leads nowhere is told when it is read.
        let seen = path.metadata().map_or((0, 0, 0, 0), |m| (m.ino(), m.ctime(), m.ctime_nsec(), m.size()));
        look.insert(name, seen);
    }
    Ok(look)
}

/// Reads and checks all pairs that `look` found: those that are sound, and what is wrong with the others.
pub(crate) fn load(
    dir: &Path,
    look: &Look,
    make: &dyn Fn(CertifiedKey) -> Result<ServerConfig, rustls::Error>,
    provider: &CryptoProvider,
) -> (Certificates, Vec<PairError>) {
    let (mut certificates, mut errors) = (Certificates::default(), vec![]);
    let mut owners: HashMap<String, String> = HashMap::new();
    for (stem, has) in pairs(look) {
        let paths = (dir.join(format!("{stem}.crt")), dir.join(format!("{stem}.key")));
        match has {
            (true, true) => {}
            (true, false) => {
                errors.push(PairError::Alone { path: paths.0, missing: format!("{stem}.key") });
                continue;
            }
            _ => {
                errors.push(PairError::Alone { path: paths.1, missing: format!("{stem}.crt") });
                continue;
            }
        }
        let certificate = match pair(&stem, &paths.0, &paths.1, make, provider) {
            Ok(certificate) => Arc::new(certificate),
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        if let Some(host) = certificate.hosts.iter().find(|host| owners.contains_key(*host)) {
            let (host, first) = (host.clone(), owners[host].clone());
            errors.push(PairError::Twice { host, first, second: certificate.name.clone() });
            continue;
        }
        for host in &certificate.hosts {
            owners.insert(host.clone(), certificate.name.clone());
            certificates.by_host.insert(host.clone(), certificate.clone());
        }
        if stem == DEFAULT {
            certificates.default = Some(certificate);
        }
        certificates.count += 1;
    }
    (certificates, errors)
}

/// Which of both files each name has.
fn pairs(look: &Look) -> BTreeMap<String, (bool, bool)> {
    let mut pairs: BTreeMap<String, (bool, bool)> = BTreeMap::new();
    for name in look.keys() {
        let name = name.to_string_lossy();
        if let Some((stem, extension)) = name.rsplit_once('.') {
            let has = pairs.entry(stem.to_owned()).or_default();
            if extension == "crt" { has.0 = true } else { has.1 = true }
        }
    }
    pairs
}

fn pair(
    name: &str,
    certificate: &Path,
    key: &Path,
    make: &dyn Fn(CertifiedKey) -> Result<ServerConfig, rustls::Error>,
    provider: &CryptoProvider,
) -> Result<Certificate, PairError> {
    let (text, _) = read(certificate)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty());
    let chain = chain.ok_or_else(|| PairError::NoCertificate { path: certificate.to_owned() })?;
    let unusable = |reason: String| PairError::Certificate { path: certificate.to_owned(), reason };
    let first = webpki::EndEntityCert::try_from(&chain[0]).map_err(|e| unusable(e.to_string()))?;
    let mut hosts: Vec<String> = first.valid_dns_names().map(str::to_ascii_lowercase).collect();
    hosts.sort();
    hosts.dedup();
    if hosts.is_empty() && name != DEFAULT {
        return Err(PairError::Nameless { path: certificate.to_owned() });
    }
    let (text, mode) = read(key)?;
    if mode & OPEN_BITS != 0 {
        return Err(PairError::Open { path: key.to_owned(), mode });
    }
    // What is wrong with it is not told: it could quote it.
    let private = PrivateKeyDer::from_pem_slice(&text).ok();
    let private = private.ok_or_else(|| PairError::NoKey { path: key.to_owned() })?;
    let certified = CertifiedKey::from_der(chain, private, provider).map_err(|e| match e {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            PairError::Mismatch { certificate: certificate.to_owned(), key: key.to_owned() }
        }
        _ => PairError::NoKey { path: key.to_owned() },
    })?;
    let config = make(certified).map_err(|e| unusable(e.to_string()))?;
    Ok(Certificate { name: name.to_owned(), hosts, config: Arc::new(config) })
}

/// The content of a file of bounded size and its mode.
fn read(path: &Path) -> Result<(Vec<u8>, u32), PairError> {
    let broken = |source| PairError::Read { path: path.to_owned(), source };
    // A pipe must not hold it up.
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(broken)?;
    let metadata = file.metadata().map_err(broken)?;
    let mut bytes = vec![];
    file.take(CERTIFICATE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(broken)?;
    if !metadata.is_file() || bytes.len() as u64 > CERTIFICATE_BYTES_MAX {
        return Err(PairError::NotAFile { path: path.to_owned() });
    }
    Ok((bytes, metadata.mode() & 0o777))
}

/// A configuration that shows one pair.
pub(crate) fn resolver(certified: CertifiedKey) -> Arc<SingleCertAndKey> {
    Arc::new(SingleCertAndKey::from(certified))
}
