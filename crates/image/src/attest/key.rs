//! Signing keys: ed25519, in the forms that OpenSSL reads. The private half is in one file that only root can read, and
//! nowhere else: it has no `Display`, and its `Debug` shows the public half.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::Signer as _;
use kiln_model::Digest;
use serde::{Deserialize, Serialize};
use std::io::Read as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// What comes before the 32 bytes of a private key in its PKCS#8 form (RFC 8410), version 1: OpenSSL 3.0 does not read
/// version 2.
const PRIVATE_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// The same with the public key behind it, version 2; read, never written.
const PRIVATE_PREFIX_2: [u8; 16] =
    [0x30, 0x51, 0x02, 0x01, 0x01, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// What comes before the 32 bytes of a public key in a `SubjectPublicKeyInfo`.
const PUBLIC_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// How a public key is written on one line.
const WORD: &str = "ed25519:";
/// Bytes of a key file.
const FILE_BYTES_MAX: u64 = 16 << 10;

/// A key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file.
    #[error("cannot {step} the key file `{}`", path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// Which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// It is no private ed25519 key.
    #[error("`{}` is not an ed25519 private key in PKCS#8 PEM", path.display())]
    Form {
        /// Which file.
        path: PathBuf,
    },
    /// Others than its owner can read it.
    #[error("the key file `{}` can be read by others (mode {mode:03o})", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A public key that is none.
    #[error("`{0}` is not a public key; expected `ed25519:` and 32 bytes in base64")]
    Public(String),
}

impl KeyError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Io { .. } => "check the path and the rights of that file",
            Self::Form { .. } => "`openssl genpkey -algorithm ed25519 -out FILE` makes one",
            Self::Open { .. } => "`chmod 600 FILE`, and rotate the key if somebody may have read it",
            Self::Public(_) => "`kiln key show` prints one",
        }
    }
}

/// A public key, written `ed25519:BASE64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Its DER form, a `SubjectPublicKeyInfo`.
    pub fn der(&self) -> Vec<u8> {
        [&PUBLIC_PREFIX[..], &self.0].concat()
    }

    /// Its PEM form, as `openssl pkey -pubin` reads it.
    pub fn pem(&self) -> String {
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(self.der()))
    }

    /// The name of the key in envelopes, messages and the ledger: the sha256 of its DER form, in hexadecimal.
    pub fn id(&self) -> String {
        Digest::of(&self.der()).hex()
    }

    /// The first digits of [`PublicKey::id`], for people.
    pub fn short(&self) -> String {
        self.id()[..12].to_owned()
    }

    /// Whether `signature` is this key's over `message`. Strict: one message has one signature.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let Ok(signature) = ed25519_dalek::Signature::from_slice(signature) else { return false };
        let Ok(key) = ed25519_dalek::VerifyingKey::from_bytes(&self.0) else { return false };
        key.verify_strict(message, &signature).is_ok()
    }
}

impl std::fmt::Display for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{WORD}{}", STANDARD.encode(self.0))
    }
}

impl std::str::FromStr for PublicKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bad = || KeyError::Public(text.chars().take(80).collect());
        let word = text.strip_prefix(WORD).ok_or_else(bad)?;
        let bytes: [u8; 32] = STANDARD.decode(word).ok().and_then(|b| b.try_into().ok()).ok_or_else(bad)?;
        // Not every 32 bytes are a point, and a point of small order would verify anything.
        let key = ed25519_dalek::VerifyingKey::from_bytes(&bytes).map_err(|_| bad())?;
        if key.is_weak() { Err(bad()) } else { Ok(Self(bytes)) }
    }
}

impl TryFrom<String> for PublicKey {
    type Error = KeyError;
    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> String {
        key.to_string()
    }
}

/// A private key. Its memory is wiped when it is dropped.
#[derive(Clone)]
pub struct SigningKey(ed25519_dalek::SigningKey);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SigningKey").field(&self.public().to_string()).finish()
    }
}

impl SigningKey {
    /// A new one, from the kernel's random numbers.
    pub fn generate() -> std::io::Result<Self> {
        let mut seed = [0; 32];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut seed)?;
        Ok(Self::from_seed(&seed))
    }

    /// The key of a seed, its 32 secret bytes.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// Its signature over `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }

    /// Reads a PKCS#8 PEM file, as [`SigningKey::write`] or `openssl genpkey -algorithm ed25519` makes it. One that others
    /// can read is refused.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let io = |source| KeyError::Io { step: "read", path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(io)?;
        let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Open { path: path.to_owned(), mode });
        }
        let mut text = String::new();
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(io)?;
        Self::of_pem(&text).ok_or_else(|| KeyError::Form { path: path.to_owned() })
    }

    fn of_pem(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once("-----BEGIN PRIVATE KEY-----")?;
        let (body, _) = rest.split_once("-----END PRIVATE KEY-----")?;
        let body: String = body.split_whitespace().collect();
        let der = STANDARD.decode(body).ok()?;
        let whole = der.len() == 48 && der.starts_with(&PRIVATE_PREFIX);
        let with_public = der.len() > 48 && der.starts_with(&PRIVATE_PREFIX_2);
        if !whole && !with_public {
            return None;
        }
        Some(Self::from_seed(der[16..48].try_into().ok()?))
    }

    /// Writes it as PKCS#8 PEM to a file of mode 0600, durably; what is there is replaced at once or not at all.
    pub fn write(&self, path: &Path) -> Result<(), KeyError> {
        let der = [&PRIVATE_PREFIX[..], &self.0.to_bytes()].concat();
        let text =
            format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der));
        let part = path.with_extension("part");
        let write = || {
            // Half a file of an earlier try may have other rights.
            if let Err(error) = std::fs::remove_file(&part)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                return Err(error);
            }
            let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&part)?;
            std::io::Write::write_all(&mut file, text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&part, path)?;
            std::fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
        };
        write().map_err(|source| KeyError::Io { step: "write", path: path.to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8032, 7.1, test 2.
    const SEED: [u8; 32] = [
        0x4c, 0xcd, 0x08, 0x9b, 0x28, 0xff, 0x96, 0xda, 0x9d, 0xb6, 0xc3, 0x46, 0xec, 0x11, 0x4e, 0x0f, 0x5b,
        0x8a, 0x31, 0x9f, 0x35, 0xab, 0xa6, 0x24, 0xda, 0x8c, 0xf6, 0xed, 0x4f, 0xb8, 0xa6, 0xfb,
    ];

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn signatures_are_those_of_the_rfc() {
        let key = SigningKey::from_seed(&SEED);
        assert_eq!(hex(&key.public().0), "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c");
        let signature = key.sign(&[0x72]);
        assert_eq!(
            hex(&signature),
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        );
        assert!(key.public().verifies(&[0x72], &signature));
        assert!(!key.public().verifies(&[0x73], &signature));
        assert!(!key.public().verifies(&[0x72], &signature[..63]));
        let other = SigningKey::generate().unwrap();
        assert!(!other.public().verifies(&[0x72], &signature));
        assert_ne!(other.public(), SigningKey::generate().unwrap().public());
    }

    #[test]
    fn a_key_file_is_for_its_owner_alone_and_nothing_else_shows_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        let key = SigningKey::from_seed(&SEED);
        key.write(&path).unwrap();
        key.write(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(SigningKey::read(&path).unwrap().public(), key.public());
        let secret = STANDARD.encode(SEED);
        for shown in [format!("{key:?}"), key.public().to_string(), key.public().pem()] {
            assert!(!shown.contains(&hex(&SEED)) && !shown.contains(&secret), "{shown}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(SigningKey::read(&path), Err(KeyError::Open { mode: 0o640, .. })));
        std::fs::write(&path, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(SigningKey::read(&path), Err(KeyError::Form { .. })));
        assert!(matches!(SigningKey::read(&dir.path().join("none")), Err(KeyError::Io { .. })));
    }

    #[test]
    fn keys_of_openssl_are_read_and_ours_by_openssl() {
        use std::process::Command;
        let dir = tempfile::tempdir().unwrap();
        let (theirs, ours) = (dir.path().join("theirs.pem"), dir.path().join("ours.pem"));
        let openssl = |arguments: &[&str]| {
            let output = Command::new("openssl").args(arguments).output().expect("openssl is installed");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        openssl(&["genpkey", "-algorithm", "ed25519", "-out", theirs.to_str().unwrap()]);
        std::fs::set_permissions(&theirs, std::fs::Permissions::from_mode(0o600)).unwrap();
        let key = SigningKey::read(&theirs).unwrap();
        key.write(&ours).unwrap();
        for file in [&theirs, &ours] {
            assert_eq!(openssl(&["pkey", "-pubout", "-in", file.to_str().unwrap()]), key.public().pem());
        }
    }

    #[test]
    fn a_public_key_has_one_line_and_weak_ones_are_refused() {
        let key = SigningKey::from_seed(&SEED).public();
        assert_eq!(key.to_string().parse::<PublicKey>().unwrap(), key);
        for text in
            ["", "ed25519:", "ed25519:AAAA", "rsa:x", &format!("ed25519:{}", STANDARD.encode([0; 32]))]
        {
            assert!(text.parse::<PublicKey>().is_err(), "{text}");
        }
    }
}
