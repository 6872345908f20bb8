//! Debian package versions and their order, as `dpkg --compare-versions` defines it (deb-version(7)).
//!
//! The order decides which package is newer and whether a dependency is met, so it is checked against dpkg itself
//! in the tests where dpkg is present.

use std::cmp::Ordering;
use std::fmt;

/// Bytes of one version text. Debian's longest is about 60.
const VERSION_BYTES_MAX: usize = 256;

/// A version that is well formed: `[epoch:]upstream[-revision]`.
#[derive(Clone)]
pub struct Version {
    text: Box<str>,
    epoch: u32,
    /// Byte offset of the upstream part.
    upstream: usize,
    /// Byte offset of the `-` before the revision, or the length of the text.
    revision: usize,
}

/// The text is not a Debian version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a Debian version: {why}")]
pub struct VersionError {
    text: String,
    why: &'static str,
}

impl Version {
    /// The version as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn upstream(&self) -> &str {
        &self.text[self.upstream..self.revision]
    }

    /// A missing revision counts as an empty one, which sorts as `0` does.
    fn revision(&self) -> &str {
        self.text.get(self.revision + 1..).unwrap_or("")
    }
}

impl std::str::FromStr for Version {
    type Err = VersionError;
    fn from_str(text: &str) -> Result<Self, VersionError> {
        let error = |why| VersionError { text: text.chars().take(80).collect(), why };
        if text.len() > VERSION_BYTES_MAX {
            return Err(error("it is longer than 256 bytes"));
        }
        let (epoch, upstream) = match text.split_once(':') {
            None => (0, 0),
            Some((digits, _)) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
                let epoch = digits.parse::<i32>().map_err(|_| error("its epoch is too large"))?;
                (epoch.unsigned_abs(), digits.len() + 1)
            }
            Some(_) => return Err(error("its epoch is not a number")),
        };
        let revision = text.rfind('-').filter(|at| *at >= upstream).unwrap_or(text.len());
        let version = Self { text: text.into(), epoch, upstream, revision };
        if version.upstream().is_empty() {
            return Err(error("it is empty"));
        }
        if revision < text.len() && version.revision().is_empty() {
            return Err(error("its revision is empty"));
        }
        let upstream_ok = |b: u8| b.is_ascii_alphanumeric() || b"-+.~:".contains(&b);
        let revision_ok = |b: u8| b.is_ascii_alphanumeric() || b"+.~".contains(&b);
        if !version.upstream().bytes().all(upstream_ok) || !version.revision().bytes().all(revision_ok) {
            return Err(error("it has a character that versions may not have"));
        }
        Ok(version)
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.epoch
            .cmp(&other.epoch)
            .then_with(|| compare_part(self.upstream().as_bytes(), other.upstream().as_bytes()))
            .then_with(|| compare_part(self.revision().as_bytes(), other.revision().as_bytes()))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Equal in dpkg's order: `1.0` and `1.0-0` are the same version.
impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Version {}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The weight of one byte outside a number: `~` before the end, the end before letters, letters before the rest.
fn weight(byte: Option<&u8>) -> i32 {
    match byte {
        None => 0,
        Some(b'~') => -1,
        Some(b) if b.is_ascii_digit() => 0,
        Some(b) if b.is_ascii_alphabetic() => i32::from(*b),
        Some(b) => i32::from(*b) + 256,
    }
}

/// Compares one part: runs of non-digits by [`weight`], runs of digits as numbers of any length, in turn.
fn compare_part(mut a: &[u8], mut b: &[u8]) -> Ordering {
    let in_text = |s: &[u8]| s.first().is_some_and(|c| !c.is_ascii_digit());
    while !a.is_empty() || !b.is_empty() {
        while in_text(a) || in_text(b) {
            let order = weight(a.first()).cmp(&weight(b.first()));
            if order != Ordering::Equal {
                return order;
            }
            a = a.get(1..).unwrap_or_default();
            b = b.get(1..).unwrap_or_default();
        }
        let (x, y) = (take_number(&mut a), take_number(&mut b));
        let order = x.len().cmp(&y.len()).then_with(|| x.cmp(y));
        if order != Ordering::Equal {
            return order;
        }
    }
    Ordering::Equal
}

/// Takes the digits at the front of `text`; returns them without leading zeros.
fn take_number<'a>(text: &mut &'a [u8]) -> &'a [u8] {
    let digits = text.iter().take_while(|c| c.is_ascii_digit()).count();
    let (number, rest) = text.split_at(digits);
    *text = rest;
    let zeros = number.iter().take_while(|c| **c == b'0').count();
    &number[zeros..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    /// Each row is (smaller, larger).
    const LESS: &[(&str, &str)] = &[
        ("1.0~rc1", "1.0"),
        ("1.0~~", "1.0~"),
        ("1.0", "1.0a"),
        ("1.0a", "1.0+"),
        ("1.0", "1.0+b1"),
        ("1.9", "1.10"),
        ("9", "1:0"),
        ("1.22.1-9+deb12u1", "1.22.1-9+deb12u2"),
        ("2.36-9+deb12u9", "2.36-9+deb12u10"),
        ("1.0-1", "1.0-1.1"),
        ("1-1", "1-2"),
        ("0~0", "0"),
        ("1.2.3-a", "1.2.3-b"),
        ("99999999999999999999998", "99999999999999999999999"),
    ];
    const EQUAL: &[(&str, &str)] = &[("1.0", "1.0-0"), ("01.00", "1.0"), ("0:1", "1"), ("1.0-00", "1.0")];

    #[test]
    fn table() {
        for (a, b) in LESS {
            assert!(version(a) < version(b), "{a} < {b}");
            assert!(version(b) > version(a), "{b} > {a}");
        }
        for (a, b) in EQUAL {
            assert_eq!(version(a), version(b));
        }
        for bad in ["", ":1", "a:1", "1:", "1-", "1.0 2", "1_0", "-1", "99999999999:1", "1.0-a:b"] {
            assert!(bad.parse::<Version>().is_err(), "{bad}");
        }
    }

    /// dpkg's own answer, if this machine has dpkg.
    fn dpkg(a: &str, b: &str) -> Option<Ordering> {
        let ask = |op: &str| Command::new("dpkg").args(["--compare-versions", a, op, b]).status().ok();
        Some(match (ask("lt")?.success(), ask("eq")?.success()) {
            (true, _) => Ordering::Less,
            (_, true) => Ordering::Equal,
            _ => Ordering::Greater,
        })
    }

    #[test]
    fn dpkg_agrees_on_the_table() {
        for (a, b) in LESS.iter().chain(EQUAL) {
            match dpkg(a, b) {
                None => return eprintln!("SKIPPED: no dpkg on this machine"),
                Some(order) => assert_eq!(version(a).cmp(&version(b)), order, "{a} {b}"),
            }
        }
    }

    const TEXT: &str = "([0-2]:)?[0-9][0-9ab~+.]{0,6}(-[0-9ab~+.]{1,4})?";

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..Default::default() })]

        #[test]
        fn dpkg_agrees(a in TEXT, b in TEXT) {
            if let Some(order) = dpkg(&a, &b) {
                prop_assert_eq!(version(&a).cmp(&version(&b)), order);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn is_a_total_order(a in TEXT, b in TEXT, c in TEXT) {
            let (a, b, c) = (version(&a), version(&b), version(&c));
            prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
            if a <= b && b <= c {
                prop_assert!(a <= c);
            }
            if a == b {
                prop_assert_eq!(a.cmp(&c), b.cmp(&c));
            }
        }

        #[test]
        fn never_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<Version>();
        }
    }
}
