//! Files that are known by their names: what of their content must not be in an image.

use super::{Facts, Finding, Origin, Place, credential, is_binary, place};
use crate::tree::{Kind, Tree, join, name, parent};
use kiln_spec::LintKind;

/// Bytes of a text in which the name of the host is looked for.
const HOST_NAME_BYTES_MAX: usize = 64 << 10;
/// Shorter names are words.
const HOST_NAME_CHARS_MIN: usize = 6;

pub(super) fn check(tree: &Tree, path: &[u8], bytes: &[u8], facts: &Facts, found: &mut Vec<Finding>) {
    let mut push = |lint, why: &str, at| found.push(Finding { at, ..Finding::new(lint, path, why) });
    match path {
        b"etc/machine-id" | b"var/lib/dbus/machine-id" => {
            let text = bytes.trim_ascii();
            if !text.is_empty() && text != b"uninitialized" {
                push(LintKind::HostLeak, "all instances would be the same machine; leave it empty", None);
            }
        }
        b"etc/hosts" => {
            if let Some(line) = bytes.split(|b| *b == b'\n').position(names_a_host) {
                let why = "it names hosts; each instance gets its own";
                push(LintKind::HostLeak, why, Some(Place::Line(line + 1)));
            }
        }
        b"etc/shadow" | b"etc/gshadow" | b"etc/passwd" => {
            for (line, why) in credential::accounts(path, bytes) {
                push(LintKind::Credential, why, Some(Place::Line(line)));
            }
        }
        _ => {
            if let Some((at, why)) = credential::named_file(path, bytes) {
                push(LintKind::Credential, why, at.map(|at| place(bytes, at)));
            }
        }
    }
    let is_made_now = matches!(facts.origin, Origin::Application | Origin::Script);
    let host = match facts.origin == Origin::Script && bytes.len() <= HOST_NAME_BYTES_MAX && !is_binary(bytes)
    {
        true => host_name(bytes, &facts.host),
        false => None,
    };
    if let Some(at) = host {
        push(LintKind::HostLeak, "it has the name of the host that baked", Some(place(bytes, at)));
    }
    if let Some(why) = stale(tree, path, bytes).filter(|_| is_made_now) {
        push(LintKind::Unreproducible, why, None);
    }
}

/// Whether a line of `/etc/hosts` gives a name to more than this machine and the addresses that every one has.
fn names_a_host(line: &[u8]) -> bool {
    let line = line.split(|b| *b == b'#').next().unwrap_or_default().trim_ascii_start();
    let address = line.split(|b| b.is_ascii_whitespace()).next().unwrap_or_default();
    let common = [&b"127."[..], b"::1", b"fe00::", b"ff00::", b"ff02::"];
    !address.is_empty() && !common.iter().any(|start| address.starts_with(start))
}

/// Where `host` stands in a text as a word of its own. A name without a digit, a dash or a dot may be any word.
fn host_name(text: &[u8], host: &str) -> Option<usize> {
    let host = host.as_bytes();
    if host.len() < HOST_NAME_CHARS_MIN || host.iter().all(u8::is_ascii_alphabetic) {
        return None;
    }
    let is_word = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || b"-_".contains(b));
    let starts = text.windows(host.len()).enumerate().filter(|(_, window)| *window == host);
    let mut starts = starts.map(|(at, _)| at);
    starts.find(|at| {
        let before = at.checked_sub(1).and_then(|before| text.get(before));
        !is_word(before) && !is_word(text.get(at + host.len()))
    })
}

/// Why Python would not use this bytecode: it notes the time and size of its source, unless it was compiled by hash (PEP 552).
fn stale(tree: &Tree, path: &[u8], bytes: &[u8]) -> Option<&'static str> {
    if !path.ends_with(b".pyc") {
        return None;
    }
    let field = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    if field(4)? != 0 || bytes.get(2..4)? != b"\r\n" {
        return None;
    }
    let (folder, file) = (parent(path)?, name(path));
    // `__pycache__/NAME.cpython-311.pyc` is of `NAME.py` in the folder above.
    let module = file.split(|b| *b == b'.').next()?;
    let folder = match name(folder) {
        b"__pycache__" => parent(folder)?,
        _ => return None,
    };
    let source = tree.get(&join(folder, &[module, b".py"].concat()))?;
    let Kind::File(content) = &source.kind else { return None };
    let fits = field(8)? == source.mtime as u32 && u64::from(field(12)?) == content.size();
    (!fits).then_some("bytecode of a source with another time or size: python ignores it; compile with `--invalidation-mode checked-hash`")
}
