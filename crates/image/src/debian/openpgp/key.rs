//! Public keys of version 4, and which of the keys of a certificate may sign (RFC 9580 sections 5.5 and 10.1).

use super::packet::{Cursor, Malformed, Packet};
use super::signature::{
    DIRECT_KEY, Hash, KEY_REVOCATION, PRIMARY_BINDING, SUBKEY_BINDING, SUBKEY_REVOCATION, Signature,
};
use ring::digest;
use ring::signature as verifier;

/// The curve Ed25519 by its older name, with its length.
const ED25519_LEGACY: &[u8] = &[9, 0x2B, 0x06, 0x01, 0x04, 0x01, 0xDA, 0x47, 0x0F, 0x01];

#[derive(Debug)]
enum Material {
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    Ed25519(Vec<u8>),
    /// It can verify nothing here.
    Other,
}

/// A public key.
#[derive(Debug)]
pub(super) struct PublicKey {
    /// The packet, as its own signatures cover it.
    covered: Vec<u8>,
    pub fingerprint: Vec<u8>,
    pub created: i64,
    material: Material,
}

impl PublicKey {
    /// Reads the body of a key packet.
    pub fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor(body);
        if cursor.byte()? != 4 {
            return Err(Malformed("a key of another version than 4"));
        }
        let created = cursor.number(4)? as i64;
        let material = match cursor.byte()? {
            1 | 3 => {
                Material::Rsa { modulus: cursor.integer()?.to_vec(), exponent: cursor.integer()?.to_vec() }
            }
            22 if cursor.0.starts_with(ED25519_LEGACY) => {
                cursor.take(ED25519_LEGACY.len())?;
                // 0x40 says that the point is in its native form.
                let point = cursor.integer()?.strip_prefix(&[0x40]).filter(|point| point.len() == 32);
                Material::Ed25519(point.ok_or(Malformed("a key that is no point of its curve"))?.to_vec())
            }
            _ => Material::Other,
        };
        let length = u16::try_from(body.len()).map_err(|_| Malformed("a key that is too large"))?;
        let mut covered = vec![0x99];
        covered.extend_from_slice(&length.to_be_bytes());
        covered.extend_from_slice(body);
        // Fingerprints of version 4 are SHA-1 by definition; they only name keys that are trusted already.
        let fingerprint = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &covered).as_ref().to_vec();
        Ok(Self { covered, fingerprint, created, material })
    }

    /// The fingerprint as people write it.
    pub fn name(&self) -> String {
        self.fingerprint.iter().map(|byte| format!("{byte:02X}")).collect()
    }

    /// Whether `signature` over `text` was made by this key. The clock is not asked.
    pub fn made(&self, signature: &Signature, text: &[u8]) -> bool {
        let Some(hash) = signature.hash else { return false };
        let mut message = text.to_vec();
        message.extend_from_slice(&signature.hashed);
        message.extend_from_slice(&[4, 0xFF]);
        message.extend_from_slice(&(signature.hashed.len() as u32).to_be_bytes());
        match (&self.material, &signature.numbers[..]) {
            (Material::Rsa { modulus, exponent }, [number]) => {
                let Some(padded) = padded(number, modulus.len()) else { return false };
                let parameters = match hash {
                    Hash::Sha256 => &verifier::RSA_PKCS1_2048_8192_SHA256,
                    Hash::Sha384 => &verifier::RSA_PKCS1_2048_8192_SHA384,
                    Hash::Sha512 => &verifier::RSA_PKCS1_2048_8192_SHA512,
                };
                let key = verifier::RsaPublicKeyComponents { n: modulus, e: exponent };
                key.verify(parameters, &message, &padded).is_ok()
            }
            (Material::Ed25519(point), [r, s]) => {
                let (Some(r), Some(s)) = (padded(r, 32), padded(s, 32)) else { return false };
                let algorithm = match hash {
                    Hash::Sha256 => &digest::SHA256,
                    Hash::Sha384 => &digest::SHA384,
                    Hash::Sha512 => &digest::SHA512,
                };
                let message = digest::digest(algorithm, &message);
                let key = verifier::UnparsedPublicKey::new(&verifier::ED25519, point);
                key.verify(message.as_ref(), &[r, s].concat()).is_ok()
            }
            _ => false,
        }
    }
}

/// A number with zeros at its front.
fn padded(number: &[u8], length: usize) -> Option<Vec<u8>> {
    let zeros = length.checked_sub(number.len())?;
    Some([vec![0; zeros], number.to_vec()].concat())
}

/// A key that may sign.
#[derive(Debug)]
pub(super) struct SigningKey {
    pub key: PublicKey,
    /// Whom it belongs to, for people.
    pub owner: String,
    /// Seconds since 1970; none is never.
    pub expires: Option<i64>,
    /// Its owner says that it is not to be used any more.
    pub is_revoked: bool,
}

/// What signatures of a primary key say about it or one of its subkeys.
#[derive(Default)]
struct Claims {
    newest: Option<Signature>,
    /// About the key alone, without a name. It may end the key earlier, never later.
    direct: Option<Signature>,
    is_revoked: bool,
}

fn take(newest: &mut Option<Signature>, signature: Signature) {
    if newest.as_ref().is_none_or(|newest| newest.created <= signature.created) {
        *newest = Some(signature);
    }
}

/// The keys of one certificate that may sign: `packets` begin with its primary key. What others say about it does not
/// count here: whoever gave this certificate to kiln trusts it.
pub(super) fn signing_keys(packets: &[Packet<'_>]) -> Result<Vec<SigningKey>, Malformed> {
    let [first, rest @ ..] = packets else { return Ok(vec![]) };
    let primary = PublicKey::parse(first.body)?;
    let (mut about_primary, mut owner) = (Claims::default(), String::new());
    let mut subkeys: Vec<(PublicKey, Claims)> = Vec::new();
    // What the signatures that follow are about, besides the primary key.
    let mut covered: Option<Vec<u8>> = Some(vec![]);
    let mut is_subkey = false;
    for packet in rest {
        match packet.tag {
            2 => {
                let (Some(covered), Ok(signature)) = (&covered, Signature::parse(packet.body)) else {
                    continue;
                };
                let text = [&primary.covered[..], covered].concat();
                let by_primary = signature.issuer.as_ref().is_none_or(|i| primary.fingerprint.ends_with(i));
                if signature.is_foreign || !by_primary || !primary.made(&signature, &text) {
                    continue;
                }
                let claims = match subkeys.last_mut() {
                    Some((_, claims)) if is_subkey => claims,
                    _ => &mut about_primary,
                };
                match signature.kind {
                    SUBKEY_BINDING if is_subkey => take(&mut claims.newest, signature),
                    SUBKEY_REVOCATION if is_subkey => claims.is_revoked = true,
                    KEY_REVOCATION if covered.is_empty() => claims.is_revoked = true,
                    DIRECT_KEY if covered.is_empty() => take(&mut claims.direct, signature),
                    0x10..=0x13 if !is_subkey && !covered.is_empty() => take(&mut claims.newest, signature),
                    _ => {}
                }
            }
            13 => {
                is_subkey = false;
                if owner.is_empty() {
                    owner = String::from_utf8_lossy(packet.body).chars().take(200).collect();
                }
                let length = (packet.body.len() as u32).to_be_bytes();
                covered = Some([&[0xB4][..], &length, packet.body].concat());
            }
            14 => match PublicKey::parse(packet.body) {
                Ok(subkey) => {
                    covered = Some(subkey.covered.clone());
                    subkeys.push((subkey, Claims::default()));
                    is_subkey = true;
                }
                Err(_) => covered = None,
            },
            // Pictures and what is not known.
            _ => covered = None,
        }
    }
    Ok(usable(primary, owner, about_primary, subkeys))
}

fn usable(
    primary: PublicKey,
    owner: String,
    about_primary: Claims,
    subkeys: Vec<(PublicKey, Claims)>,
) -> Vec<SigningKey> {
    // A key that says nothing about itself is not known to be its owner's.
    let Claims { newest, direct, .. } = &about_primary;
    let Some(about) = newest.as_ref().or(direct.as_ref()) else { return vec![] };
    let end = |key: &PublicKey, claim: &Signature| match claim.key_expires {
        0 => None,
        seconds => Some(key.created + seconds),
    };
    let primary_end = [newest, direct].into_iter().flatten().filter_map(|claim| end(&primary, claim)).min();
    let mut keys = Vec::new();
    for (key, claims) in subkeys {
        let Some(binding) = claims.newest else { continue };
        let may_sign = binding.flags.is_some_and(|flags| flags & 2 != 0);
        // A signing subkey has to agree, or anyone could take it for his own.
        let consent = binding.embedded.as_deref().and_then(|body| Signature::parse(body).ok());
        let text = [&primary.covered[..], &key.covered].concat();
        let agrees = |s: &Signature| s.kind == PRIMARY_BINDING && !s.is_foreign && key.made(s, &text);
        if may_sign && consent.as_ref().is_some_and(agrees) {
            let expires = end(&key, &binding).into_iter().chain(primary_end).min();
            let is_revoked = claims.is_revoked || about_primary.is_revoked;
            keys.push(SigningKey { key, owner: owner.clone(), expires, is_revoked });
        }
    }
    if about.flags.is_none_or(|flags| flags & 2 != 0) {
        let is_revoked = about_primary.is_revoked;
        keys.push(SigningKey { key: primary, owner, expires: primary_end, is_revoked });
    }
    keys
}
