//! `/etc/ld.so.cache`, in the form that glibc has read since 2.2 ("glibc-ld.so.cache1.1"): which file a library's name
//! stands for. The dynamic linker finds libraries in the usual directories without it; those in other directories of
//! `/etc/ld.so.conf.d` it finds only here.

use super::{Root, SlimError};
use crate::tree::{Content, Kind, name};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// The directories that `ldconfig` reads besides those of its configuration.
const USUAL: &[&str] = &["/lib", "/usr/lib"];
const CONFIGURATION: &str = "etc/ld.so.conf.d";
const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
/// `FLAG_ELF_LIBC6 | FLAG_X8664_LIB64`
const FLAGS: u32 = 0x0303;
/// The bytes of the file's own order: little endian.
const ENDIAN: u8 = 2;
const HEADER_BYTES: usize = 48;
const ENTRY_BYTES: usize = 24;

pub(super) fn make(root: &mut Root) -> Result<(), SlimError> {
    let mut directories = Vec::new();
    for path in root.list(CONFIGURATION) {
        let text = root.read(&String::from_utf8_lossy(&path)).unwrap_or_default();
        let text = String::from_utf8_lossy(text).into_owned();
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim().to_owned());
        directories.extend(lines.filter(|line| line.starts_with('/')));
    }
    directories.extend(USUAL.iter().map(|dir| (*dir).to_owned()));
    // The first directory that has a name wins.
    let mut libraries: BTreeMap<String, String> = BTreeMap::new();
    for directory in &directories {
        for path in root.list(directory) {
            let name = String::from_utf8_lossy(name(&path)).into_owned();
            if is_library(root, &path, &name) && !libraries.contains_key(&name) {
                libraries.insert(name.clone(), format!("{}/{name}", directory.trim_end_matches('/')));
            }
        }
    }
    if libraries.is_empty() {
        return Ok(());
    }
    root.file("etc/ld.so.cache", &cache(libraries.into_iter().collect()), 0o644)
}

/// Whether programs ask for the file at `path` by its name: it is the name that the library itself has, or a link that
/// programs open.
fn is_library(root: &Root, path: &[u8], name: &str) -> bool {
    if !(name.starts_with("lib") || name.starts_with("ld-")) || !name.contains(".so") {
        return false;
    }
    let Some((_, node)) = root.get(path) else { return false };
    let Kind::File(Content::Bytes(elf)) = &node.kind else { return false };
    let is_link = root.tree.get(path).is_some_and(|node| matches!(node.kind, Kind::Symlink(_)));
    match soname(elf) {
        Some(Some(own)) => own == name.as_bytes() || (is_link && name.ends_with(".so")),
        Some(None) => true,
        None => false,
    }
}

/// The file.
fn cache(mut libraries: Vec<(String, String)>) -> Vec<u8> {
    libraries.sort_by(|a, b| compare(b.0.as_bytes(), a.0.as_bytes()));
    let (mut entries, mut strings) = (Vec::new(), Vec::new());
    let first = HEADER_BYTES + ENTRY_BYTES * libraries.len();
    for (name, path) in &libraries {
        entries.extend(FLAGS.to_le_bytes());
        for text in [name, path] {
            entries.extend(((first + strings.len()) as u32).to_le_bytes());
            strings.extend_from_slice(text.as_bytes());
            strings.push(0);
        }
        // No version of the kernel, no hardware capabilities.
        entries.extend([0; 12]);
    }
    let mut file = MAGIC.to_vec();
    file.extend((libraries.len() as u32).to_le_bytes());
    file.extend((strings.len() as u32).to_le_bytes());
    file.push(ENDIAN);
    file.resize(HEADER_BYTES, 0);
    file.extend(entries);
    file.extend(strings);
    file
}

/// The order in which the dynamic linker searches (`_dl_cache_libcmp`): digits as numbers.
fn compare(mut a: &[u8], mut b: &[u8]) -> Ordering {
    let number = |text: &mut &[u8]| {
        let n_digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, rest) = text.split_at(n_digits);
        *text = rest;
        digits.iter().fold(0_u64, |n, digit| n.wrapping_mul(10).wrapping_add(u64::from(digit - b'0')))
    };
    loop {
        let order = match (a.first(), b.first()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(x), Some(y)) => match (x.is_ascii_digit(), y.is_ascii_digit()) {
                (true, true) => number(&mut a).cmp(&number(&mut b)),
                (true, false) => Ordering::Greater,
                (false, true) => Ordering::Less,
                (false, false) => {
                    let order = x.cmp(y);
                    (a, b) = (&a[1..], &b[1..]);
                    order
                }
            },
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// The name that a 64-bit x86 shared object gives itself; none for any other file, and none inside for one without.
fn soname(elf: &[u8]) -> Option<Option<&[u8]>> {
    const DYNAMIC: u64 = 2;
    const LOAD: u64 = 1;
    const SHARED: u64 = 3;
    const X86_64: u64 = 62;
    let number = |at: usize, n: usize| -> Option<u64> {
        let bytes = elf.get(at..at.checked_add(n)?)?;
        Some(bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    let is_elf = elf.starts_with(b"\x7FELF\x02\x01") && number(16, 2)? == SHARED && number(18, 2)? == X86_64;
    if !is_elf {
        return None;
    }
    let (table, size, n) = (number(32, 8)? as usize, number(54, 2)? as usize, number(56, 2)? as usize);
    let headers: Vec<usize> = (0..n).filter_map(|n| table.checked_add(n * size)).collect();
    let place = |address: u64| -> Option<usize> {
        headers.iter().find_map(|at| {
            let (offset, start, length) = (number(at + 8, 8)?, number(at + 16, 8)?, number(at + 32, 8)?);
            let inside = number(*at, 4)? == LOAD && (start..start.checked_add(length)?).contains(&address);
            inside.then(|| usize::try_from(offset + (address - start)).ok())?
        })
    };
    let dynamic = headers.iter().find(|at| number(**at, 4) == Some(DYNAMIC))?;
    let (start, length) = (number(dynamic + 8, 8)? as usize, number(dynamic + 32, 8)? as usize);
    let rows = elf.get(start..start.checked_add(length)?)?.chunks_exact(16);
    let rows: Vec<(u64, u64)> = rows
        .map(|row| {
            let half = |bytes: &[u8]| bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
            (half(&row[..8]), half(&row[8..]))
        })
        .take_while(|(tag, _)| *tag != 0)
        .collect();
    let value = |tag: u64| rows.iter().find(|(t, _)| *t == tag).map(|(_, value)| *value);
    let (Some(strings), Some(name)) = (value(5).and_then(place), value(14)) else { return Some(None) };
    let name = elf.get(strings.checked_add(usize::try_from(name).ok()?)?..)?;
    Some(name.split(|byte| *byte == 0).next())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Against this host's ldconfig.
    #[test]
    fn ldconfig_reads_the_cache() {
        let names = ["libc.so.6", "libz.so.1", "libz.so.10", "libz.so.9", "libstdc++.so.6", "ld-linux.so.2"];
        let rows: Vec<_> = names.iter().map(|name| ((*name).to_owned(), format!("/lib/{name}"))).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache");
        std::fs::write(&path, cache(rows)).unwrap();
        let Ok(output) = Command::new("/sbin/ldconfig").args(["-p", "-C"]).arg(&path).output() else {
            return println!("SKIPPED: no ldconfig on this host");
        };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.starts_with("6 libs found"), "{text} {}", String::from_utf8_lossy(&output.stderr));
        for name in names {
            assert!(text.contains(&format!("{name} (libc6,x86-64) => /lib/{name}")), "{text}");
        }
        assert_eq!(compare(b"libz.so.10", b"libz.so.9"), Ordering::Greater);
    }

    #[test]
    fn libraries_tell_their_names() {
        assert_eq!(soname(b"\x7FELF\x02\x01"), None);
        assert_eq!(soname(b"text"), None);
        let Ok(libc) = std::fs::read("/lib/x86_64-linux-gnu/libc.so.6") else {
            return println!("SKIPPED: no libc of Debian on this host");
        };
        assert_eq!(soname(&libc), Some(Some(&b"libc.so.6"[..])));
        for cut in (0..libc.len()).step_by(libc.len() / 50) {
            let _ = soname(&libc[..cut]);
        }
    }
}
