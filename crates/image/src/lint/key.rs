//! Private keys in all forms that are text, and the common ones that are not.
//!
//! A word such as `BEGIN PRIVATE KEY` alone is no key: programs that read keys have it, and manuals show it. The key itself
//! has to follow.

/// What introduces a key in a text: [`at`] tells whether one follows.
pub(super) const MARKS: &[&str] = &[
    "PRIVATE KEY-----",
    "PRIVATE KEY BLOCK-----",
    "PRIVATE KEY ----",
    "PuTTY-User-Key-File-",
    "AGE-SECRET-KEY-1",
    "PrivateKey",
    "Key: (private-key",
    "Key: (protected-private-key",
    // `-----BEGIN ` in base64, as in the `client-key-data` of Kubernetes.
    "LS0tLS1CRUdJTi",
];

/// Characters of base64 that a key has at least; the smallest, of Ed25519, has 64.
const BASE64_CHARS_MIN: usize = 56;
/// Bytes between a header and the first line of the key: `Proc-Type`, `DEK-Info`, `Comment`, `Version`.
const HEADERS_BYTES_MAX: usize = 600;
/// Characters of an age key after its prefix.
const AGE_CHARS: usize = 58;
/// Characters of a 32-byte key in base64.
const WIREGUARD_CHARS: usize = 44;

/// What key begins at the mark `mark` at `at`; none if it is only a word.
pub(super) fn at(bytes: &[u8], mark: &str, at: usize) -> Option<&'static str> {
    let after = &bytes[at + mark.len()..];
    match mark {
        "PRIVATE KEY-----" => pem(bytes, at, after),
        "PRIVATE KEY BLOCK-----" => {
            let begins = line_before(bytes, at).ends_with(b"-----BEGIN PGP ");
            (begins && body(after).is_some()).then_some("a secret key of OpenPGP")
        }
        "PRIVATE KEY ----" => {
            let begins = line_before(bytes, at).starts_with(b"---- BEGIN SSH2 ");
            (begins && body(after).is_some()).then_some("a private key of SSH2")
        }
        "PuTTY-User-Key-File-" => {
            let lines = &after[..after.len().min(64 << 10)];
            let starts = line_before(bytes, at).is_empty() && after.first().is_some_and(u8::is_ascii_digit);
            let has_key = lines.windows(14).any(|window| window == b"Private-Lines:");
            (starts && has_key).then_some("a private key of PuTTY")
        }
        "AGE-SECRET-KEY-1" => {
            let chars = after.iter().take_while(|b| b"QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L".contains(b));
            (chars.count() == AGE_CHARS).then_some("a secret key of age")
        }
        "PrivateKey" => {
            let value = after.trim_ascii_start().strip_prefix(b"=")?.trim_ascii_start();
            let key = value.get(..WIREGUARD_CHARS).filter(|key| key[WIREGUARD_CHARS - 1] == b'=')?;
            let is_key = key[..WIREGUARD_CHARS - 1].iter().all(|b| is_base64(*b));
            let ends = value.get(WIREGUARD_CHARS).is_none_or(|b| b.is_ascii_whitespace());
            (is_key && ends && key.iter().any(u8::is_ascii_lowercase)).then_some("a private key of WireGuard")
        }
        "Key: (private-key" | "Key: (protected-private-key" => {
            line_before(bytes, at).is_empty().then_some("a private key of GnuPG")
        }
        "LS0tLS1CRUdJTi" => {
            let text = &bytes[at..];
            let length = text.iter().take(4096).take_while(|b| is_base64(**b)).count();
            let start = decode(&text[..length.min(80)]);
            let is_key = start.windows(11).any(|window| window == b"PRIVATE KEY");
            (is_key && length >= BASE64_CHARS_MIN).then_some("a private key in base64")
        }
        _ => None,
    }
}

/// `-----BEGIN … PRIVATE KEY-----` of RFC 7468 and its forerunners, also within a string of JSON or indented in YAML.
fn pem(bytes: &[u8], at: usize, after: &[u8]) -> Option<&'static str> {
    let start = bytes[..at].len().saturating_sub(40);
    let label = &bytes[start..at];
    let begin = label.windows(11).rposition(|window| window == b"-----BEGIN ")?;
    let label = label[begin + 11..].trim_ascii_end();
    if !label.iter().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b' ') {
        return None;
    }
    let key = body(after)?;
    match label {
        b"OPENSSH" => key.starts_with(b"openssh-key-v1").then_some("a private key of OpenSSH"),
        b"ENCRYPTED" => (key.first() == Some(&0x30)).then_some("an encrypted private key (PKCS#8)"),
        b"" => (key.first() == Some(&0x30)).then_some("a private key (PKCS#8)"),
        // An old encrypted one has no structure that can be seen.
        b"RSA" | b"EC" | b"DSA" => Some("a private key"),
        _ => (key.first() == Some(&0x30)).then_some("a private key"),
    }
}

/// The first bytes of the base64 text that follows a header; none if too little follows.
fn body(after: &[u8]) -> Option<Vec<u8>> {
    let mut rest = after;
    let mut skipped = 0;
    loop {
        rest = skip_breaks(rest);
        let line = rest.iter().position(|b| matches!(b, b'\n' | b'\r' | b'\\')).unwrap_or(rest.len());
        let is_header = rest[..line].windows(2).any(|window| window == b": ") && !rest.starts_with(b"-");
        skipped += line;
        if !is_header || skipped > HEADERS_BYTES_MAX {
            break;
        }
        rest = &rest[line..];
    }
    let mut chars = Vec::with_capacity(BASE64_CHARS_MIN);
    while chars.len() < BASE64_CHARS_MIN {
        match rest.first() {
            Some(b) if is_base64(*b) => {
                chars.push(*b);
                rest = &rest[1..];
            }
            _ => {
                let next = skip_breaks(rest);
                if next.len() == rest.len() {
                    return None;
                }
                rest = next;
            }
        }
    }
    Some(decode(&chars))
}

/// Skips white space and line breaks as strings of JSON, C and shell write them.
fn skip_breaks(mut bytes: &[u8]) -> &[u8] {
    loop {
        bytes = match bytes {
            [b'\\', b'n' | b'r', rest @ ..] => rest,
            [b' ' | b'\t' | b'\r' | b'\n' | b'"' | b'\'' | b'+' | b'>' | b'|', rest @ ..]
                if bytes[0] != b'+' || rest.first().is_some_and(|b| !is_base64(*b)) =>
            {
                rest
            }
            _ => return bytes,
        };
    }
}

fn is_base64(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'+' || b == b'/'
}

/// Whole groups of base64; what is left over is dropped.
fn decode(chars: &[u8]) -> Vec<u8> {
    let value = |b: u8| -> u32 {
        match b {
            b'A'..=b'Z' => u32::from(b - b'A'),
            b'a'..=b'z' => u32::from(b - b'a') + 26,
            b'0'..=b'9' => u32::from(b - b'0') + 52,
            b'+' => 62,
            _ => 63,
        }
    };
    let group = |group: &[u8]| group.iter().fold(0, |sum, b| sum << 6 | value(*b)).to_be_bytes();
    chars.chunks_exact(4).flat_map(|chars| group(chars).into_iter().skip(1)).collect()
}

/// What stands before `at` in its line.
fn line_before(bytes: &[u8], at: usize) -> &[u8] {
    let start = bytes[..at].iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
    &bytes[start..at]
}

/// What key a whole file is, if it is one that is no text.
pub(super) fn binary(bytes: &[u8]) -> Option<&'static str> {
    if bytes.starts_with(b"(11:private-key") || bytes.starts_with(b"(21:protected-private-key") {
        return Some("a private key of GnuPG");
    }
    if der(bytes) {
        return Some("a private key (DER)");
    }
    packet(bytes).then_some("a secret key of OpenPGP")
}

/// PKCS#8, PKCS#1 and SEC1: a sequence that fills the file, of a version and what only a key has next.
fn der(bytes: &[u8]) -> bool {
    let Some((length, content)) = element(bytes, 0x30) else { return false };
    if length != content.len() {
        return false;
    }
    match content {
        // PKCS#8: version 0 or 1, then the algorithm, then an octet string.
        [2, 1, 0 | 1, rest @ ..] if rest.first() == Some(&0x30) => element(rest, 0x30)
            .is_some_and(|(length, after)| after.get(length) == Some(&4) && after.starts_with(&[6])),
        // PKCS#1: version 0, then the modulus, which is large, and the exponent.
        [2, 1, 0, rest @ ..] => {
            element(rest, 2).is_some_and(|(length, after)| length >= 64 && after.get(length) == Some(&2))
        }
        // SEC1: version 1, then an octet string of the size of a curve, then the name of the curve.
        [2, 1, 1, 4, size @ (28 | 32 | 48 | 66), rest @ ..] => rest.get(usize::from(*size)) == Some(&0xA0),
        _ => false,
    }
}

/// The length and all bytes after the head of a DER element with `tag`.
fn element(bytes: &[u8], tag: u8) -> Option<(usize, &[u8])> {
    match bytes {
        [first, length @ 0..=0x7F, rest @ ..] if *first == tag => Some((usize::from(*length), rest)),
        [first, 0x81, length, rest @ ..] if *first == tag => Some((usize::from(*length), rest)),
        [first, 0x82, high, low, rest @ ..] if *first == tag => {
            Some((usize::from(u16::from_be_bytes([*high, *low])), rest))
        }
        _ => None,
    }
}

/// A packet of OpenPGP with a secret key of version 4 (RFC 4880, 5.5.3).
fn packet(bytes: &[u8]) -> bool {
    let (length, body) = match bytes {
        [0x94, length, rest @ ..] | [0xC5, length @ 0..=191, rest @ ..] => (usize::from(*length), rest),
        [0x95, high, low, rest @ ..] => (usize::from(u16::from_be_bytes([*high, *low])), rest),
        [0xC5, high @ 192..=223, low, rest @ ..] => {
            ((usize::from(*high) - 192) * 256 + usize::from(*low) + 192, rest)
        }
        _ => return false,
    };
    let algorithms = [1, 16, 17, 18, 19, 22];
    // A user id or a signature follows: another packet.
    let next = body.get(length).is_some_and(|b| b & 0x80 != 0);
    length > 40 && next && body[0] == 4 && algorithms.contains(&body[5])
}
