//! Signature packets of version 4 (RFC 9580 section 5.2), and which of their hashes still count.

use super::packet::{Cursor, Malformed};

/// Over a text with its line ends as CR LF.
pub(super) const TEXT: u8 = 0x01;
/// By a primary key over a subkey.
pub(super) const SUBKEY_BINDING: u8 = 0x18;
/// By a subkey over its primary key.
pub(super) const PRIMARY_BINDING: u8 = 0x19;
/// By a primary key over itself.
pub(super) const DIRECT_KEY: u8 = 0x1F;
/// By a primary key: it is not to be used any more.
pub(super) const KEY_REVOCATION: u8 = 0x20;
/// The same for a subkey.
pub(super) const SUBKEY_REVOCATION: u8 = 0x28;

/// A hash that no one can make collisions of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

/// A signature, parsed and not yet verified.
#[derive(Debug, Clone)]
pub(super) struct Signature {
    pub kind: u8,
    /// None: a hash that is broken (MD5, SHA-1, RIPEMD-160) or that nobody uses.
    pub hash: Option<Hash>,
    /// From the version to the last hashed subpacket: what the signature covers of itself.
    pub hashed: Vec<u8>,
    /// Seconds since 1970.
    pub created: i64,
    /// Seconds after `created`; 0 is never.
    pub expires: i64,
    /// Seconds after the key's creation; 0 is never.
    pub key_expires: i64,
    /// What the key may do; bit 1 is to sign.
    pub flags: Option<u8>,
    /// The fingerprint, or its last 8 bytes, of who says to have made it. It only helps to find the key.
    pub issuer: Option<Vec<u8>>,
    /// A signature packet inside: a subkey's consent.
    pub embedded: Option<Vec<u8>>,
    /// It has a critical subpacket that kiln does not know.
    pub is_foreign: bool,
    /// The numbers of the signature itself.
    pub numbers: Vec<Vec<u8>>,
}

impl Signature {
    /// Reads the body of a signature packet.
    pub fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor(body);
        if cursor.byte()? != 4 {
            return Err(Malformed("a signature of another version than 4"));
        }
        let (kind, _algorithm, hash) = (cursor.byte()?, cursor.byte()?, cursor.byte()?);
        let length = cursor.number(2)?;
        let hashed_area = cursor.take(length)?;
        let hashed = body[..6 + length].to_vec();
        let length = cursor.number(2)?;
        let unhashed_area = cursor.take(length)?;
        cursor.take(2)?;
        let mut numbers = Vec::new();
        while !cursor.0.is_empty() && numbers.len() < 4 {
            numbers.push(cursor.integer()?.to_vec());
        }
        let hash = match hash {
            8 => Some(Hash::Sha256),
            9 => Some(Hash::Sha384),
            10 => Some(Hash::Sha512),
            _ => None,
        };
        let mut signature = Self {
            kind,
            hash,
            hashed,
            created: -1,
            expires: 0,
            key_expires: 0,
            flags: None,
            issuer: None,
            embedded: None,
            is_foreign: false,
            numbers,
        };
        signature.subpackets(hashed_area, true)?;
        signature.subpackets(unhashed_area, false)?;
        if signature.created < 0 {
            return Err(Malformed("a signature without a time"));
        }
        Ok(signature)
    }

    /// What stands in the unhashed area is under nobody's signature: only what proves itself is taken from there.
    fn subpackets(&mut self, area: &[u8], is_hashed: bool) -> Result<(), Malformed> {
        let mut cursor = Cursor(area);
        while !cursor.0.is_empty() {
            let length = match cursor.number(1)? {
                first @ 0..192 => first,
                first @ 192..255 => ((first - 192) << 8) + cursor.number(1)? + 192,
                _ => cursor.number(4)?,
            };
            let mut body = Cursor(cursor.take(length)?);
            let (critical, kind) = match body.byte()? {
                kind @ 0x80.. => (true, kind & 0x7F),
                kind => (false, kind),
            };
            match kind {
                2 if is_hashed => self.created = body.number(4)? as i64,
                3 if is_hashed => self.expires = body.number(4)? as i64,
                9 if is_hashed => self.key_expires = body.number(4)? as i64,
                27 if is_hashed => self.flags = Some(body.0.first().copied().unwrap_or(0)),
                16 if self.issuer.is_none() => self.issuer = Some(body.take(8)?.to_vec()),
                33 if body.0.first() == Some(&4) => self.issuer = Some(body.0[1..].to_vec()),
                32 => self.embedded = Some(body.0.to_vec()),
                // Preferences and remarks, which change nothing about what is valid.
                11 | 21..=25 | 30 | 34 | 35 => {}
                _ => self.is_foreign |= critical && is_hashed,
            }
        }
        Ok(())
    }
}
