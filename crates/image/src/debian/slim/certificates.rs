//! What `update-ca-certificates` makes: one file with all trusted authorities, and links by name and by hash, by which
//! OpenSSL finds an authority in a directory.

use super::{Root, SlimError};
use crate::debian::openpgp::decode;
use crate::tree;
use ring::digest;
use std::collections::BTreeMap;

/// Where the package has the authorities.
const SOURCE: &str = "usr/share/ca-certificates/mozilla";
const TARGET: &str = "etc/ssl/certs";
/// Spaces as OpenSSL counts them.
const SPACES: &[u8] = b" \t\n\x0B\x0C\r";

pub(super) fn make(root: &mut Root) -> Result<(), SlimError> {
    let (mut bundle, mut conf) = (Vec::new(), String::new());
    let mut n_of_hash: BTreeMap<u32, u32> = BTreeMap::new();
    for path in root.list(SOURCE) {
        let name = String::from_utf8_lossy(tree::name(&path)).into_owned();
        let Some(stem) = name.strip_suffix(".crt") else { continue };
        let Some(pem) = root.read(&format!("{SOURCE}/{name}")).map(<[u8]>::to_vec) else { continue };
        bundle.extend_from_slice(&pem);
        if !pem.ends_with(b"\n") {
            bundle.push(b'\n');
        }
        conf.push_str(&format!("mozilla/{name}\n"));
        let pem_name = stem.replace([' ', ','], "_").replace(['(', ')'], "=") + ".pem";
        root.link(&format!("{TARGET}/{pem_name}"), &format!("/{SOURCE}/{name}"))?;
        // One that cannot be read is in the bundle all the same; who reads that one says so.
        if let Some(hash) = subject_hash(&String::from_utf8_lossy(&pem)) {
            let n = n_of_hash.entry(hash).or_default();
            root.link(&format!("{TARGET}/{hash:08x}.{n}"), &pem_name)?;
            *n += 1;
        }
    }
    if !bundle.is_empty() {
        root.file(&format!("{TARGET}/ca-certificates.crt"), &bundle, 0o644)?;
        root.file("etc/ca-certificates.conf", conf.as_bytes(), 0o644)?;
    }
    Ok(())
}

/// What `openssl x509 -subject_hash` prints: the first bytes of the SHA-1 of the subject in its canonical form.
fn subject_hash(pem: &str) -> Option<u32> {
    let (_, rest) = pem.split_once("-----BEGIN CERTIFICATE-----")?;
    let (base64, _) = rest.split_once("-----END CERTIFICATE-----")?;
    let der = decode(&base64.split_whitespace().collect::<String>()).ok()?;
    let (_, certificate, _) = element(&der)?;
    let (_, mut fields, _) = element(certificate)?;
    // The version is optional; then serial number, algorithm, issuer, validity, subject.
    if let (0xA0, _, rest) = element(fields)? {
        fields = rest;
    }
    for _ in 0..4 {
        fields = element(fields)?.2;
    }
    let (0x30, mut names, _) = element(fields)? else { return None };
    let mut canonical = Vec::new();
    while !names.is_empty() {
        let (0x31, mut set, rest) = element(names)? else { return None };
        names = rest;
        let mut attributes = Vec::new();
        while !set.is_empty() {
            let (_, attribute, rest) = element(set)?;
            set = rest;
            let (kind, value, _) = element(element(attribute)?.2)?;
            let id = &attribute[..attribute.len() - element(attribute)?.2.len()];
            let (kind, value) = canonical_value(kind, value)?;
            attributes.push(encode(0x30, &[id, &encode(kind, &value)].concat()));
        }
        attributes.sort();
        canonical.extend(encode(0x31, &attributes.concat()));
    }
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &canonical);
    Some(u32::from_le_bytes(hash.as_ref()[..4].try_into().ok()?))
}

/// A text as UTF-8 in lower case with single spaces; anything else as it is.
fn canonical_value(kind: u8, value: &[u8]) -> Option<(u8, Vec<u8>)> {
    let text: String = match kind {
        // UTF8String, PrintableString, IA5String, VisibleString
        0x0C | 0x13 | 0x16 | 0x1A => String::from_utf8(value.to_vec()).ok()?,
        // T61String, which everybody takes for Latin-1
        0x14 => value.iter().map(|byte| char::from(*byte)).collect(),
        // BMPString
        0x1E => value
            .chunks(2)
            .map(|c| char::from_u32(c.iter().fold(0, |n, b| n << 8 | u32::from(*b))))
            .collect::<Option<_>>()?,
        _ => return Some((kind, value.to_vec())),
    };
    let words = text.as_bytes().split(|b| SPACES.contains(b)).filter(|word| !word.is_empty());
    let words: Vec<Vec<u8>> = words.map(<[u8]>::to_ascii_lowercase).collect();
    Some((0x0C, words.join(&b' ')))
}

/// The tag and the content of the first DER element, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7F => (usize::from(*first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7F))?;
            (bytes.iter().fold(0, |n, byte| n << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

fn encode(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut der = vec![tag];
    let length = content.len().to_be_bytes();
    let length = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    match content.len() {
        n @ 0..0x80 => der.push(n as u8),
        _ => {
            der.push(0x80 | length.len() as u8);
            der.extend_from_slice(length);
        }
    }
    der.extend_from_slice(content);
    der
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Against OpenSSL, on the authorities of this host.
    #[test]
    fn hashes_are_openssl_s() {
        let Ok(entries) = std::fs::read_dir("/usr/share/ca-certificates/mozilla") else {
            return println!("SKIPPED: no ca-certificates on this host");
        };
        if Command::new("openssl").arg("version").output().is_err() {
            return println!("SKIPPED: no openssl on this host");
        }
        let mut n = 0;
        for entry in entries.flatten() {
            let pem = std::fs::read_to_string(entry.path()).unwrap();
            let mut openssl = Command::new("openssl");
            let output = openssl.args(["x509", "-noout", "-subject_hash", "-in"]).arg(entry.path()).output();
            let expected = String::from_utf8(output.unwrap().stdout).unwrap();
            let found = subject_hash(&pem).map(|hash| format!("{hash:08x}"));
            assert_eq!(found.as_deref(), Some(expected.trim()), "{:?}", entry.path());
            n += 1;
        }
        assert!(n > 50, "{n}");
        assert_eq!(subject_hash("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"), None);
    }
}
