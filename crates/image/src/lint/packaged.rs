//! Which files are a package's own, by the checksums in dpkg's database of the same layer.
//!
//! A locked package comes out of a signed index, for everybody to read: a test key in its documentation is no secret of
//! the project. What its scripts made, or changed, is not in the lists and is looked at.

use super::head;
use crate::tree::{Content, Kind, Tree};
use md5::{Digest, Md5};
use std::collections::HashMap;

/// Where the lists are: of a configured system in `info`, of one without scripts in `status.d`.
const DATABASE: &[u8] = b"var/lib/dpkg/";
const STATUS: &[u8] = b"var/lib/dpkg/status";
/// Bytes of one list.
const LIST_BYTES_MAX: u64 = 64 << 20;

/// Checksums of packages' files by path, as dpkg has them.
#[derive(Debug, Default)]
pub(super) struct Packaged(HashMap<Vec<u8>, [u8; 16]>);

impl Packaged {
    /// Reads the lists of a layer.
    pub fn of(tree: &Tree) -> std::io::Result<Self> {
        let mut sums = HashMap::new();
        let below = tree.iter().filter(|(path, _)| path.starts_with(DATABASE));
        for (path, node) in below {
            let Kind::File(content) = &node.kind else { continue };
            // `md5sums` has a sum and a path; `Conffiles` of `status` a path, with a slash, and a sum.
            if path.ends_with(b".md5sums") {
                let bytes = head(content, LIST_BYTES_MAX)?;
                let rows = bytes.split(|b| *b == b'\n').filter_map(|line| line.split_at_checked(32));
                sums.extend(
                    rows.filter_map(|(sum, path)| Some((path.trim_ascii_start().to_vec(), hex(sum)?))),
                );
            } else if path == STATUS || path.starts_with(b"var/lib/dpkg/status.d/") {
                let bytes = head(content, LIST_BYTES_MAX)?;
                let rows = bytes.split(|b| *b == b'\n').filter_map(|line| line.strip_prefix(b" /"));
                sums.extend(rows.filter_map(|row| {
                    let mut words = row.split(|b| *b == b' ');
                    Some((words.next()?.to_vec(), hex(words.next()?)?))
                }));
            }
        }
        Ok(Self(sums))
    }

    /// Whether the file at `path` is as its package brought it.
    pub fn holds(&self, path: &[u8], content: &Content) -> std::io::Result<bool> {
        // Packages name files of `/usr` by the links that a merged `/usr` has for them.
        let merged = path.strip_prefix(b"usr/").and_then(|path| self.0.get(path));
        match self.0.get(path).or(merged) {
            Some(sum) => Ok(Md5::digest(&content.read()?)[..] == sum[..]),
            None => Ok(false),
        }
    }
}

fn hex(text: &[u8]) -> Option<[u8; 16]> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.len() == 32 && text.is_ascii())?;
    let mut sum = [0; 16];
    for (n, byte) in sum.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * n..2 * n + 2], 16).ok()?;
    }
    Some(sum)
}
