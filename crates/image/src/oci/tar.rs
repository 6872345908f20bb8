//! Reads the entries of a tar archive in an open file: ustar, pax and GNU, as image tools write them.
//!
//! Archives come from strangers. Every size is bounded before it is used, every header has to carry its checksum, and
//! nothing is allocated for what an entry only says to be large: the content of files stays in the archive.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of a header, and what everything is padded to.
const BLOCK: u64 = 512;
/// Bytes of one extended header, or of one long name.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;
/// Extended headers before one entry.
const EXTENSIONS_MAX: u32 = 8;
/// Headers of one archive.
pub const ENTRIES_MAX: u64 = 1_000_000;
/// Bytes of one path or of one target.
pub const PATH_BYTES_MAX: usize = 4096;
/// What pax keys of extended attributes begin with.
const PAX_XATTR: &str = "SCHILY.xattr.";

/// An archive that is not acceptable.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// It could not be read.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// It ends before it should.
    #[error("the archive is cut off")]
    Torn,
    /// Something in it is not as it has to be.
    #[error("the archive is malformed: {0}")]
    Malformed(&'static str),
    /// Something that kiln does not take apart.
    #[error("`{path}` is {what}")]
    Refused {
        /// The path as it stands in the archive.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// More headers than [`ENTRIES_MAX`].
    #[error("the archive has more than {ENTRIES_MAX} entries")]
    TooMany,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// Another name of an entry before.
    HardLink,
    /// A device or a pipe.
    Special,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As it stands in the archive.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// The target of a link.
    pub link: Vec<u8>,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970, rounded down.
    pub mtime: i64,
    /// Bytes of a regular file; 0 for everything else.
    pub size: u64,
    /// Where its content begins in the file.
    pub at: u64,
    /// Extended attributes by full name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The entries of the archive in a file.
#[derive(Debug)]
pub struct Entries<'a> {
    file: &'a File,
    at: u64,
    end: u64,
    n_headers: u64,
    global: BTreeMap<String, Vec<u8>>,
    done: bool,
}

/// What headers before an entry say of it.
#[derive(Debug, Default)]
struct Extension {
    pax: BTreeMap<String, Vec<u8>>,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<'a> Entries<'a> {
    /// The entries of the first `size` bytes of `file`.
    pub fn new(file: &'a File, size: u64) -> Self {
        Self { file, at: 0, end: size, n_headers: 0, global: BTreeMap::new(), done: false }
    }

    fn header(&mut self) -> Result<Option<[u8; BLOCK as usize]>, TarError> {
        if self.at == self.end {
            return Ok(None);
        }
        if self.end - self.at < BLOCK {
            return Err(TarError::Torn);
        }
        let mut header = [0; BLOCK as usize];
        self.file.read_exact_at(&mut header, self.at).map_err(TarError::Read)?;
        self.at += BLOCK;
        if header.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        self.n_headers += 1;
        if self.n_headers > ENTRIES_MAX {
            return Err(TarError::TooMany);
        }
        let sum = number(&header[148..156])?;
        let fields = header.iter().enumerate().filter(|(n, _)| !(148..156).contains(n)).map(|(_, b)| *b);
        let unsigned = fields.clone().map(u64::from).sum::<u64>() + 8 * u64::from(b' ');
        // Some old programs added the bytes up with their signs.
        let signed = fields.map(|b| i64::from(b as i8)).sum::<i64>() + 8 * i64::from(b' ');
        if sum != unsigned && i64::try_from(sum) != Ok(signed) {
            return Err(TarError::Malformed("a header has a wrong checksum"));
        }
        Ok(Some(header))
    }

    /// Moves over `size` bytes of content; answers with where they begin.
    fn skip(&mut self, size: u64) -> Result<u64, TarError> {
        let at = self.at;
        let end = at.checked_add(size).filter(|end| *end <= self.end).ok_or(TarError::Torn)?;
        // The padding of the last entry may be missing.
        self.at = end.next_multiple_of(BLOCK).min(self.end);
        Ok(at)
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > EXTENSION_BYTES_MAX {
            return Err(TarError::Malformed("an extended header is too large"));
        }
        let at = self.skip(size)?;
        let mut bytes = vec![0; size as usize];
        self.file.read_exact_at(&mut bytes, at).map_err(TarError::Read)?;
        Ok(bytes)
    }

    fn entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extension = Extension::default();
        let mut n_extensions = 0;
        loop {
            let Some(header) = self.header()? else {
                // Two zero blocks end an archive; one, or none, is taken too.
                return match n_extensions {
                    0 => Ok(None),
                    _ => Err(TarError::Torn),
                };
            };
            let flag = header[156];
            let size = number(&header[124..136])?;
            match flag {
                b'x' => extension.pax.extend(pax(&self.extension(size)?)?),
                b'g' => {
                    let records = pax(&self.extension(size)?)?;
                    self.global.extend(records);
                }
                b'L' => extension.path = Some(until_zero(&self.extension(size)?)),
                b'K' => extension.link = Some(until_zero(&self.extension(size)?)),
                // The label of a volume is no file.
                b'V' => drop(self.skip(size)?),
                _ => return self.finish(&header, extension).map(Some),
            }
            n_extensions += 1;
            if n_extensions > EXTENSIONS_MAX && flag != b'V' {
                return Err(TarError::Malformed("too many extended headers before one entry"));
            }
        }
    }

    fn finish(&mut self, header: &[u8; BLOCK as usize], mut extension: Extension) -> Result<Entry, TarError> {
        for (key, value) in &self.global {
            extension.pax.entry(key.clone()).or_insert_with(|| value.clone());
        }
        let pax = |key: &str| extension.pax.get(key);
        let path = pax("path").cloned().or(extension.path).unwrap_or_else(|| name(header));
        let link = pax("linkpath").cloned().or(extension.link);
        let link = link.unwrap_or_else(|| until_zero(&header[157..257]));
        if path.len() > PATH_BYTES_MAX || link.len() > PATH_BYTES_MAX {
            return Err(TarError::Malformed("a path is too long"));
        }
        if path.contains(&0) || link.contains(&0) {
            return Err(TarError::Malformed("a path has a zero byte"));
        }
        let refused = |what| TarError::Refused { path: String::from_utf8_lossy(&path).into_owned(), what };
        if extension.pax.keys().any(|key| key.starts_with("GNU.sparse.")) {
            return Err(refused("a sparse file"));
        }
        let kind = match header[156] {
            b'0' | 0 if path.ends_with(b"/") => EntryKind::Dir,
            b'0' | 0 | b'7' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' | b'4' | b'6' => EntryKind::Special,
            b'5' => EntryKind::Dir,
            b'S' => return Err(refused("a sparse file")),
            _ => return Err(refused("an entry of an unknown kind")),
        };
        let value = |key: &str, field: &[u8]| match pax(key) {
            Some(text) => decimal(text).ok_or(TarError::Malformed("an extended header has a bad number")),
            None => number(field),
        };
        let id = |key: &str, field: &[u8]| {
            u32::try_from(value(key, field)?).map_err(|_| TarError::Malformed("an owner is out of range"))
        };
        let mtime = match pax("mtime") {
            Some(text) => seconds(text).ok_or(TarError::Malformed("a time is malformed"))?,
            None => signed(&header[136..148])?,
        };
        // Only files have content, whatever the size of others says.
        let size = if kind == EntryKind::File { value("size", &header[124..136])? } else { 0 };
        let (uid, gid) = (id("uid", &header[108..116])?, id("gid", &header[116..124])?);
        let mode = (number(&header[100..108])? & 0o7777) as u32;
        let xattrs = extension.pax.iter().filter_map(|(key, value)| {
            Some((key.strip_prefix(PAX_XATTR)?.as_bytes().to_vec(), value.clone()))
        });
        let xattrs = xattrs.collect();
        let at = self.skip(size)?;
        Ok(Entry { path, kind, link, mode, uid, gid, mtime, size, at, xattrs })
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<Entry, TarError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let entry = self.entry().transpose();
        self.done = !matches!(entry, Some(Ok(_)));
        entry
    }
}

fn until_zero(bytes: &[u8]) -> Vec<u8> {
    bytes[..bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len())].to_vec()
}

/// The path in a header. Only POSIX has a prefix; GNU keeps times there.
fn name(header: &[u8]) -> Vec<u8> {
    let name = until_zero(&header[..100]);
    if &header[257..263] != b"ustar\0" {
        return name;
    }
    match until_zero(&header[345..500]) {
        prefix if prefix.is_empty() => name,
        prefix => [prefix, name].join(&b'/'),
    }
}

/// A number of a header: octal digits, or binary if the first bit is set.
fn number(field: &[u8]) -> Result<u64, TarError> {
    u64::try_from(signed(field)?).map_err(|_| TarError::Malformed("a header has a negative number"))
}

fn signed(field: &[u8]) -> Result<i64, TarError> {
    let bad = TarError::Malformed("a header has a bad number");
    if field[0] & 0x80 != 0 {
        // Two's complement over all bytes but the first bit.
        let negative = field[0] & 0x40 != 0;
        let first = if negative { field[0] } else { field[0] & 0x7f };
        let mut value = if negative { -1_i128 } else { 0 };
        for byte in std::iter::once(first).chain(field[1..].iter().copied()) {
            value = value.checked_mul(256).ok_or(TarError::Malformed("a header has a bad number"))?
                | i128::from(byte);
        }
        return i64::try_from(value).map_err(|_| bad);
    }
    let text = field.iter().copied().skip_while(|b| *b == b' ');
    let digits: Vec<u8> = text.take_while(|b| !matches!(b, 0 | b' ')).collect();
    let digit = |sum: i64, b: &u8| {
        let digit = i64::from(b.checked_sub(b'0').filter(|d| *d < 8)?);
        sum.checked_mul(8)?.checked_add(digit)
    };
    digits.iter().try_fold(0, digit).ok_or(bad)
}

fn decimal(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

/// The whole seconds of a time such as `-1.5`, rounded down.
fn seconds(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let rounds = whole.starts_with('-') && fraction.bytes().any(|b| b != b'0');
    seconds.checked_sub(i64::from(rounds))
}

/// The records of an extended header: `LENGTH KEY=VALUE\n`, where the length counts all of it.
fn pax(bytes: &[u8]) -> Result<BTreeMap<String, Vec<u8>>, TarError> {
    const BAD: TarError = TarError::Malformed("an extended header is no list of records");
    let mut records = BTreeMap::new();
    let mut rest = bytes;
    // Some programs pad it with zeros.
    while rest.first().is_some_and(|b| *b != 0) {
        let space = rest.iter().take(20).position(|b| *b == b' ').ok_or(BAD)?;
        let length = decimal(&rest[..space]).and_then(|n| usize::try_from(n).ok()).ok_or(BAD)?;
        let record = rest.get(space + 1..length).and_then(|r| r.strip_suffix(b"\n")).ok_or(BAD)?;
        let equals = record.iter().position(|b| *b == b'=').ok_or(BAD)?;
        let key = std::str::from_utf8(&record[..equals]).map_err(|_| BAD)?;
        records.insert(key.to_owned(), record[equals + 1..].to_vec());
        rest = &rest[length..];
    }
    Ok(records)
}
