//! The outer form of OpenPGP data (RFC 9580 sections 4 to 6): packets, and the text armour around them.

/// Packets in one keyring or signature block.
const PACKETS_MAX: usize = 20_000;

/// Data that is not OpenPGP, or a form of it that kiln does not read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

const CUT: Malformed = Malformed("it is cut off");

/// Reads numbers and strings from the front of a slice.
pub(in crate::debian) struct Cursor<'a>(pub &'a [u8]);

impl<'a> Cursor<'a> {
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(CUT)?;
        self.0 = rest;
        Ok(head)
    }

    /// A big-endian number of `n` bytes, at most four.
    pub fn number(&mut self, n: usize) -> Result<usize, Malformed> {
        Ok(self.take(n)?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    }

    pub fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    /// A multi-precision integer, without the zeros at its front.
    pub fn integer(&mut self) -> Result<&'a [u8], Malformed> {
        let bits = self.number(2)?;
        let bytes = self.take(bits.div_ceil(8))?;
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Ok(&bytes[zeros..])
    }
}

/// One packet.
pub(super) struct Packet<'a> {
    pub tag: u8,
    pub body: &'a [u8],
}

/// Splits `bytes` into packets.
pub(super) fn packets(bytes: &[u8]) -> Result<Vec<Packet<'_>>, Malformed> {
    let mut cursor = Cursor(bytes);
    let mut packets = Vec::new();
    while !cursor.0.is_empty() {
        if packets.len() == PACKETS_MAX {
            return Err(Malformed("it has too many packets"));
        }
        let head = cursor.byte()?;
        let (tag, length) = match head {
            0..0x80 => return Err(Malformed("it is not OpenPGP data")),
            // The older form: the two lowest bits say how long the length is; 3 is a length that is not told.
            0x80..0xC0 if head & 3 == 3 => return Err(Malformed("it has a packet without a length")),
            0x80..0xC0 => (head >> 2 & 0x0F, cursor.number(1 << (head & 3))?),
            0xC0.. => {
                let length = match cursor.number(1)? {
                    first @ 0..192 => first,
                    first @ 192..224 => ((first - 192) << 8) + cursor.number(1)? + 192,
                    255 => cursor.number(4)?,
                    _ => return Err(Malformed("it has a packet in parts")),
                };
                (head & 0x3F, length)
            }
        };
        packets.push(Packet { tag, body: cursor.take(length)? });
    }
    Ok(packets)
}

/// The bytes of the first armoured block of `kind` at the beginning of `text`, and what follows it.
pub(super) fn armoured<'a>(text: &'a str, kind: &str) -> Result<(Vec<u8>, &'a str), Malformed> {
    let mut rest = text;
    let mut next = || -> Option<&'a str> {
        let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
        let ended = rest.is_empty();
        rest = after;
        (!ended).then(|| line.trim_end())
    };
    if next() != Some(&format!("-----BEGIN PGP {kind}-----")) {
        return Err(Malformed("it is not armoured as it should be"));
    }
    // Headers such as `Version:` end with an empty line; they say nothing that is believed.
    while !next().ok_or(CUT)?.is_empty() {}
    let mut base64 = String::new();
    let end = format!("-----END PGP {kind}-----");
    loop {
        match next().ok_or(CUT)? {
            line if line == end => break,
            // The checksum against transmission errors; the signature says more.
            line if line.starts_with('=') && line.len() == 5 => {}
            line => base64.push_str(line),
        }
    }
    Ok((decode(&base64)?, rest))
}

/// The bytes of a base64 text without line ends.
pub(in crate::debian) fn decode(base64: &str) -> Result<Vec<u8>, Malformed> {
    let digits = base64.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut bits, mut n_bits) = (0_u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return Err(Malformed("it has characters that base64 does not have")),
        };
        bits = bits << 6 | u32::from(value);
        n_bits += 6;
        if n_bits >= 8 {
            n_bits -= 8;
            bytes.push((bits >> n_bits) as u8);
            bits &= (1 << n_bits) - 1;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn armour_holds_what_was_put_in() {
        let text = "-----BEGIN PGP SIGNATURE-----\nVersion: x\n\naGFs\nbG8=\n=abcd\n-----END PGP SIGNATURE-----\nrest";
        assert_eq!(armoured(text, "SIGNATURE").unwrap(), (b"hallo".to_vec(), "rest"));
        assert!(armoured(text, "PUBLIC KEY BLOCK").is_err());
        assert!(armoured(&text[..60], "SIGNATURE").is_err());
        assert!(armoured(&text.replace("aGFs", "a-Fs"), "SIGNATURE").is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = packets(&bytes);
            let _ = armoured(&String::from_utf8_lossy(&bytes), "SIGNATURE");
        }
    }
}
