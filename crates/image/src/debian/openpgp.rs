//! Verifies the OpenPGP signature of an `InRelease` against a keyring.
//!
//! Only what archives use is read: keys and signatures of version 4 with RSA (2048 bits or more) or Ed25519 over SHA-256,
//! SHA-384 or SHA-512, and texts in the cleartext form. All else does not count, which is the safe side. The arithmetic is
//! ring's; a whole OpenPGP library (rPGP) would bring 147 crates for the parts that are not needed.
//!
//! A text is believed if at least one key of the keyring signed it, the key was valid then, and no signature of a key of
//! the keyring is wrong. What is handed on is the text that the signature covers, and nothing around it.

mod key;
mod packet;
mod signature;

pub use packet::Malformed;
pub(super) use packet::{Cursor, decode};

use key::{SigningKey, signing_keys};
use packet::{Packet, armoured, packets};
use signature::{Signature, TEXT};

/// Bytes of a keyring.
const KEYRING_BYTES_MAX: usize = 4 << 20;
/// Signatures of one text.
const SIGNATURES_MAX: usize = 32;
/// Seconds that the clocks of this host and of the signer may differ.
const CLOCKS_DIFFER_MAX: i64 = 24 * 3600;
/// Debian's keys; openpgp/README.md says where they come from.
const DEBIAN: &[u8] = include_bytes!("openpgp/debian-archive-keyring.gpg");

/// A keyring cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The file cannot be read.
    #[error("it cannot be read")]
    Read(#[source] std::io::Error),
    /// It is neither a series of OpenPGP packets nor armoured ones.
    #[error("it is no OpenPGP keyring")]
    Malformed(#[source] Malformed),
    /// It is the private format of GnuPG.
    #[error("it is a keybox of GnuPG")]
    Keybox,
    /// Larger than any keyring.
    #[error("it is larger than {KEYRING_BYTES_MAX} bytes")]
    TooLarge,
    /// None of its keys can verify anything.
    #[error("it has no key that may sign (RSA of 2048 bits or more, or Ed25519)")]
    NoKey,
}

/// A text is not signed as it has to be.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// It is not in the cleartext form.
    #[error("it is not signed")]
    NotSigned,
    /// It cannot be read.
    #[error("its signature cannot be read")]
    Malformed(#[source] Malformed),
    /// Only keys that are not in the keyring signed it.
    #[error("it is signed by {keys} only, which the keyring does not have")]
    Untrusted {
        /// Their fingerprints or ids.
        keys: String,
    },
    /// A key of the keyring signed another text.
    #[error(
        "the signature of key {key} ({owner}) does not fit: the text was changed, or the signature is of another text"
    )]
    Wrong {
        /// Fingerprint.
        key: String,
        /// Whom it belongs to.
        owner: String,
    },
    /// A key of the keyring signed it in a way that does not count.
    #[error("the signature of key {key} ({owner}) does not count: {why}")]
    Void {
        /// Fingerprint.
        key: String,
        /// Whom it belongs to.
        owner: String,
        /// Why not.
        why: &'static str,
    },
}

/// Keys that are trusted.
#[derive(Debug)]
pub struct Keyring {
    keys: Vec<SigningKey>,
}

impl Keyring {
    /// The archive, security and release keys of Debian 11, 12 and 13.
    pub fn debian() -> Self {
        // The test of this function reads the same bytes; an empty keyring would trust nobody.
        Self::parse(DEBIAN).unwrap_or(Self { keys: vec![] })
    }

    /// Reads the keyring in a file.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn read(path: &std::path::Path) -> Result<Self, KeyringError> {
        use std::io::Read;
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(KeyringError::Read)?;
        file.take(KEYRING_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(KeyringError::Read)?;
        Self::parse(&bytes)
    }

    /// Reads a keyring as `gpg --export` writes it, armoured or not.
    ///
    /// # Errors
    /// [`KeyringError`] if it is no keyring or has no key that may sign.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeyringError> {
        if bytes.len() > KEYRING_BYTES_MAX {
            return Err(KeyringError::TooLarge);
        }
        if bytes.get(8..12) == Some(b"KBXf") {
            return Err(KeyringError::Keybox);
        }
        let bytes = match std::str::from_utf8(bytes) {
            Ok(text) if text.trim_start().starts_with("-----BEGIN") => blocks(text),
            _ => Ok(bytes.to_vec()),
        };
        let bytes = bytes.map_err(KeyringError::Malformed)?;
        let packets = packets(&bytes).map_err(KeyringError::Malformed)?;
        let mut keys = Vec::new();
        for certificate in certificates(&packets) {
            // One that kiln cannot read does not spoil the others.
            keys.extend(signing_keys(certificate).unwrap_or_default());
        }
        if keys.is_empty() { Err(KeyringError::NoKey) } else { Ok(Self { keys }) }
    }

    /// The fingerprints of the keys that may sign, with their owners.
    pub fn keys(&self) -> impl Iterator<Item = (String, &str)> {
        self.keys.iter().map(|key| (key.key.name(), key.owner.as_str()))
    }

    /// Verifies a text in the cleartext form and answers with what was signed. Keys have to be valid at `now` (seconds
    /// since 1970); without it, when they signed.
    ///
    /// # Errors
    /// [`SignatureError`]: then nothing of the text may be believed.
    pub fn verify(&self, text: &str, now: Option<i64>) -> Result<String, SignatureError> {
        let signed = cleartext(text)?;
        let (block, after) = armoured(signed.block, "SIGNATURE").map_err(SignatureError::Malformed)?;
        let malformed = |why| SignatureError::Malformed(Malformed(why));
        if !after.trim().is_empty() {
            return Err(malformed("something follows it"));
        }
        let packets = packets(&block).map_err(SignatureError::Malformed)?;
        if packets.is_empty() || packets.len() > SIGNATURES_MAX {
            return Err(malformed("it has no signature, or too many"));
        }
        let message = signed.text.replace('\n', "\r\n");
        let (mut n_good, mut void, mut strangers) = (0, None, Vec::new());
        for packet in packets {
            if packet.tag != 2 {
                return Err(malformed("it holds something else"));
            }
            // One of a version or form that is not known is a stranger's.
            let Ok(signature) = Signature::parse(packet.body) else { continue };
            let issuer = signature.issuer.clone().unwrap_or_default();
            // A keyring may hold a key twice; the copy that knows of a revocation counts.
            let known = self.keys.iter().filter(|key| key.key.fingerprint.ends_with(&issuer));
            let known = known.max_by_key(|key| key.is_revoked);
            let Some(key) = known.filter(|_| !issuer.is_empty()) else {
                strangers.push(issuer.iter().map(|byte| format!("{byte:02X}")).collect::<String>());
                continue;
            };
            let (name, owner) = (key.key.name(), key.owner.clone());
            match void_because(key, &signature, now) {
                Some(why) => void = Some(SignatureError::Void { key: name, owner, why }),
                None if key.key.made(&signature, message.as_bytes()) => n_good += 1,
                None => return Err(SignatureError::Wrong { key: name, owner }),
            }
        }
        match (n_good, void) {
            (1.., _) => Ok(signed.text),
            (_, Some(void)) => Err(void),
            _ if strangers.is_empty() => Err(malformed("no signature of a version that kiln knows")),
            _ => Err(SignatureError::Untrusted { keys: strangers.join(", ") }),
        }
    }
}

/// Why a signature does not count, whatever its numbers say.
fn void_because(key: &SigningKey, signature: &Signature, now: Option<i64>) -> Option<&'static str> {
    let at = now.unwrap_or(signature.created);
    if signature.kind != TEXT || signature.is_foreign {
        return Some("it is not a signature of a text");
    }
    if signature.hash.is_none() {
        return Some("its hash is broken or unknown (SHA-256, SHA-384 and SHA-512 are accepted)");
    }
    if key.is_revoked {
        return Some("the key is revoked");
    }
    if signature.created < key.key.created {
        return Some("it is older than its key");
    }
    if key.expires.is_some_and(|end| end <= at) {
        return Some("the key has expired");
    }
    if signature.expires != 0 && signature.created + signature.expires <= at {
        return Some("it has expired");
    }
    (signature.created > at + CLOCKS_DIFFER_MAX)
        .then_some("it is from the future: check the clock of this host")
}

/// The bytes of all armoured keys of a text.
fn blocks(text: &str) -> Result<Vec<u8>, Malformed> {
    let (mut bytes, mut rest) = (Vec::new(), text.trim_start());
    while !rest.is_empty() {
        let (block, after) = armoured(rest, "PUBLIC KEY BLOCK")?;
        bytes.extend(block);
        rest = after.trim_start();
    }
    Ok(bytes)
}

/// The packets of each primary key with what belongs to it.
fn certificates<'a, 'b>(packets: &'a [Packet<'b>]) -> Vec<&'a [Packet<'b>]> {
    let starts: Vec<usize> = packets.iter().enumerate().filter(|(_, p)| p.tag == 6).map(|(n, _)| n).collect();
    let ends = starts.iter().skip(1).copied().chain([packets.len()]);
    starts.iter().zip(ends).map(|(start, end)| &packets[*start..end]).collect()
}

/// A text in the cleartext form (RFC 9580 section 7), taken apart.
struct Cleartext<'a> {
    /// What the signature covers, without white space at the ends of lines, which it does not cover.
    text: String,
    /// From the line that begins the signature.
    block: &'a str,
}

fn cleartext(text: &str) -> Result<Cleartext<'_>, SignatureError> {
    let malformed = |why| SignatureError::Malformed(Malformed(why));
    let body = text.strip_prefix("-----BEGIN PGP SIGNED MESSAGE-----").ok_or(SignatureError::NotSigned)?;
    let start = body.find("\n-----BEGIN PGP SIGNATURE-----").ok_or(SignatureError::NotSigned)?;
    let (body, block) = (&body[..start], &body[start + 1..]);
    let mut lines = body.split('\n').map(|line| line.trim_end_matches([' ', '\t', '\r']));
    if lines.next() != Some("") {
        return Err(malformed("its first line is not as it should be"));
    }
    for line in lines.by_ref() {
        match line {
            "" => break,
            // The signatures say which hash they use; this line is under none of them.
            line if line.starts_with("Hash: ") => {}
            _ => return Err(malformed("it has a header that is not `Hash`")),
        }
    }
    let mut plain = Vec::new();
    for line in lines {
        plain.push(match line.strip_prefix("- ") {
            Some(line) => line,
            None if line.starts_with('-') => return Err(malformed("a line begins with an unescaped dash")),
            None => line,
        });
    }
    Ok(Cleartext { text: plain.join("\n"), block })
}

#[cfg(test)]
pub(crate) mod tests;
