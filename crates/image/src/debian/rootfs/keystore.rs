//! Java's list of authorities (`/etc/ssl/certs/java/cacerts`), which a script of ca-certificates-java makes: every entry
//! carries the moment at which it was added. The times become one fixed time, the entries are sorted, and the checksum at
//! the end is made anew.
//!
//! The format is Java's own ("JKS"): numbers are big endian; at the end stands the SHA-1 of the password, a phrase, and all
//! that comes before. The password of this file is `changeit` on every Debian system: it protects nothing.

use crate::debian::openpgp::Cursor;
use ring::digest;

const MAGIC: usize = 0xFEED_FEED;
const VERSION: usize = 2;
/// An entry that is a trusted certificate; the other kind is a private key.
const TRUSTED: usize = 2;
const PASSWORD: &str = "changeit";
const PHRASE: &[u8] = b"Mighty Aphrodite";
const CHECKSUM_BYTES: usize = 20;

/// The same store with the time `epoch` (seconds since 1970) in every entry; none if it is no store of certificates.
pub(super) fn settled(store: &[u8], epoch: i64) -> Option<Vec<u8>> {
    let (content, sum) = store.split_at_checked(store.len().checked_sub(CHECKSUM_BYTES)?)?;
    if sum != checksum(content) {
        return None;
    }
    let mut cursor = Cursor(content);
    let mut number = |n: usize| cursor.number(n).ok();
    if number(4)? != MAGIC || number(4)? != VERSION {
        return None;
    }
    let n_entries = number(4)?;
    let mut entries = Vec::new();
    for _ in 0..n_entries {
        if cursor.number(4).ok()? != TRUSTED {
            return None;
        }
        let mut entry = (TRUSTED as u32).to_be_bytes().to_vec();
        copy(&mut cursor, 2, &mut entry)?;
        cursor.take(8).ok()?;
        entry.extend((epoch * 1000).to_be_bytes());
        copy(&mut cursor, 2, &mut entry)?;
        copy(&mut cursor, 4, &mut entry)?;
        entries.push(entry);
    }
    if !cursor.0.is_empty() {
        return None;
    }
    // Each begins with its name.
    entries.sort();
    let mut settled = content[..12].to_vec();
    settled.extend(entries.concat());
    let sum = checksum(&settled);
    settled.extend(sum);
    Some(settled)
}

/// Copies a string with its length, which has `n` bytes.
fn copy(from: &mut Cursor<'_>, n: usize, to: &mut Vec<u8>) -> Option<()> {
    let whole = from.0;
    let length = from.number(n).ok()?;
    from.take(length).ok()?;
    to.extend_from_slice(&whole[..n + length]);
    Some(())
}

fn checksum(content: &[u8]) -> Vec<u8> {
    let mut hashed: Vec<u8> = PASSWORD.encode_utf16().flat_map(u16::to_be_bytes).collect();
    hashed.extend_from_slice(PHRASE);
    hashed.extend_from_slice(content);
    digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &hashed).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(entries: &[(&str, u64)]) -> Vec<u8> {
        let mut store = [MAGIC, VERSION, entries.len()].map(|n| (n as u32).to_be_bytes()).concat();
        for (name, time) in entries {
            store.extend(2_u32.to_be_bytes());
            store.extend((name.len() as u16).to_be_bytes());
            store.extend(name.bytes());
            store.extend(time.to_be_bytes());
            store.extend(5_u16.to_be_bytes());
            store.extend(b"X.509");
            store.extend(3_u32.to_be_bytes());
            store.extend(b"der");
        }
        let sum = checksum(&store);
        [store, sum].concat()
    }

    #[test]
    fn times_and_order_do_not_matter_any_more() {
        let (one, other) = (store(&[("a", 77), ("b", 99)]), store(&[("b", 5), ("a", 6)]));
        let settled_one = settled(&one, 3).unwrap();
        assert_eq!(settled_one, store(&[("a", 3000), ("b", 3000)]));
        assert_eq!(settled(&other, 3).unwrap(), settled_one);
        for cut in 0..one.len() {
            assert_eq!(settled(&one[..cut], 3), None, "{cut}");
        }
        let mut damaged = one.clone();
        damaged[15] ^= 1;
        assert_eq!(settled(&damaged, 3), None);
    }
}
