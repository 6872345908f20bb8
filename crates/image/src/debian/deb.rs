//! Reads a `.deb`: an `ar` archive of two compressed tar files (deb(5)).
//!
//! A package is verified by sha256 before it comes here, but whoever made it is not trusted to be careful: sizes are
//! bounded, paths stay below the root, and only directories, files and links are accepted.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;

/// Bytes that one package may hold once decompressed.
const INFLATED_BYTES_MAX: u64 = 4 << 30;
/// Bytes of the control part once decompressed.
const CONTROL_BYTES_MAX: u64 = 64 << 20;
/// Files and directories of one package.
const ENTRIES_MAX: usize = 400_000;
/// Bytes of one path.
const PATH_BYTES_MAX: usize = 3000;
/// Bytes that a decoder may allocate; `xz -9` needs 65 MiB.
const XZ_MEMORY_BYTES_MAX: u64 = 256 << 20;

/// A `.deb` that is not acceptable.
#[derive(Debug, thiserror::Error)]
pub enum DebError {
    /// Not an `ar` archive, or one that is cut off.
    #[error("the package is not a `.deb`: {0}")]
    Archive(&'static str),
    /// One of its two parts cannot be decompressed or is no tar.
    #[error("`{member}` of the package is damaged")]
    Member {
        /// The member of the `ar` archive.
        member: String,
        /// What the decoder said.
        #[source]
        source: std::io::Error,
    },
    /// A part is larger than it may be.
    #[error("`{member}` of the package is larger than {limit} bytes")]
    TooLarge {
        /// The member of the `ar` archive.
        member: String,
        /// The bound.
        limit: u64,
    },
    /// It holds something that a package may not hold.
    #[error("the package holds `{path}`, which is {why}")]
    Entry {
        /// The path as it stands in the archive.
        path: String,
        /// Why it is refused.
        why: &'static str,
    },
    /// The control part lacks a field.
    #[error("the package's control file has no `{0}`")]
    Field(&'static str),
}

/// What an entry of the data part is.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A file with its content.
    File(Vec<u8>),
    /// A symbolic link with its target.
    Symlink(Vec<u8>),
    /// Another name of the file at this path, relative to the root.
    Hardlink(Vec<u8>),
}

/// One entry of the data part.
#[derive(Debug)]
pub struct Entry {
    /// Path relative to the root, without `./`; empty for the root itself.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: i64,
}

/// A package, read into memory.
#[derive(Debug)]
pub struct Deb {
    /// The files of the control part with their permission bits, by name.
    pub control: BTreeMap<String, (Vec<u8>, u32)>,
    /// The entries of the data part, in its order.
    pub entries: Vec<Entry>,
}

impl Deb {
    /// Reads a package.
    ///
    /// # Errors
    /// [`DebError`] if it is malformed, too large, or holds what a package may not hold.
    pub fn read(bytes: &[u8]) -> Result<Self, DebError> {
        let mut members = members(bytes)?.into_iter().filter(|(name, _)| !name.starts_with('_'));
        // deb(5): these three in this order; dpkg takes nothing else either, so nothing can be smuggled past one of them.
        let mut next = |start: &str, missing| match members.next() {
            Some((name, body)) if name.starts_with(start) => Ok((name, body)),
            _ => Err(DebError::Archive(missing)),
        };
        let (_, version) = next("debian-binary", "it has no `debian-binary` in the first place")?;
        if !version.starts_with(b"2.") {
            return Err(DebError::Archive("it is of an unknown version"));
        }
        let (name, body) = next("control.tar", "it has no `control.tar` in the second place")?;
        let control = read_control(&name, body)?;
        let (name, body) = next("data.tar", "it has no `data.tar` in the third place")?;
        let entries = read_data(&name, body)?;
        if members.next().is_some() {
            return Err(DebError::Archive("something follows its `data.tar`"));
        }
        let deb = Self { control, entries };
        deb.field("Package").ok_or(DebError::Field("Package"))?;
        deb.field("Architecture").ok_or(DebError::Field("Architecture"))?;
        Ok(deb)
    }

    /// The text of one control file, empty if there is none.
    pub fn control_text(&self, name: &str) -> &str {
        self.control.get(name).and_then(|(bytes, _)| std::str::from_utf8(bytes).ok()).unwrap_or("")
    }

    /// The first line of a field of the control file.
    pub fn field(&self, name: &str) -> Option<&str> {
        let value = |line: &'_ str| -> Option<(usize, usize)> {
            let rest = line.strip_prefix(name)?.strip_prefix(':')?;
            Some((line.len() - rest.len(), line.len()))
        };
        self.control_text("control").lines().find_map(|line| value(line).map(|(a, b)| line[a..b].trim()))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.field("Package").unwrap_or_default()
    }

    /// The paths of `conffiles`, relative to the root.
    pub fn conffiles(&self) -> impl Iterator<Item = &str> {
        self.control_text("conffiles").lines().filter_map(|line| line.trim().strip_prefix('/'))
    }
}

/// The members of an `ar` archive.
fn members(bytes: &[u8]) -> Result<Vec<(String, &[u8])>, DebError> {
    let cut = || DebError::Archive("it is cut off");
    let mut rest =
        bytes.strip_prefix(b"!<arch>\n").ok_or(DebError::Archive("it has another magic number"))?;
    let mut members = Vec::new();
    while !rest.is_empty() {
        let (header, body) = rest.split_at_checked(60).ok_or_else(cut)?;
        if &header[58..] != b"`\n" || members.len() == 16 {
            return Err(DebError::Archive("a member's header is malformed"));
        }
        let text = |range: std::ops::Range<usize>| {
            std::str::from_utf8(&header[range]).map(str::trim_end).unwrap_or_default()
        };
        let size: usize =
            text(48..58).parse().map_err(|_| DebError::Archive("a member's size is malformed"))?;
        let (content, after) = body.split_at_checked(size).ok_or_else(cut)?;
        members.push((text(0..16).trim_end_matches('/').to_owned(), content));
        rest = after.get(size % 2..).unwrap_or_default();
    }
    Ok(members)
}

/// A reader of the decompressed member that fails once it gave `limit` bytes.
struct Bounded<R> {
    reader: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.reader.read(buffer)?;
        self.left = self
            .left
            .checked_sub(n as u64)
            .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::FileTooLarge, "too large"))?;
        Ok(n)
    }
}

fn inflate<'a>(name: &str, body: &'a [u8], limit: u64) -> std::io::Result<Bounded<Box<dyn Read + 'a>>> {
    let reader: Box<dyn Read + 'a> = match name.rsplit_once('.').map(|(_, end)| end) {
        Some("xz") => {
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY_BYTES_MAX, 0)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(body, stream))
        }
        Some("zst") => Box::new(zstd::stream::read::Decoder::with_buffer(body)?),
        Some("gz") => Box::new(flate2::bufread::MultiGzDecoder::new(body)),
        Some("tar") => Box::new(body),
        _ => return Err(std::io::Error::new(std::io::ErrorKind::Unsupported, "unknown compression")),
    };
    Ok(Bounded { reader, left: limit })
}

/// One entry of a tar file with its long names put together.
struct Raw<'e, 'a, 'b> {
    path: &'e [u8],
    link: Option<&'e [u8]>,
    entry: &'e mut tar::Entry<'a, Bounded<Box<dyn Read + 'b>>>,
}

/// Calls `each` for every entry of the tar file in `body`.
///
/// The headers are taken as they are: packages have the long names of GNU, and no headers of pax, which dpkg refuses. The
/// tar crate would take those apart at line breaks instead of by their lengths, so that a value with one in it could pass
/// for a path or a size.
fn each_entry(
    name: &str,
    body: &[u8],
    limit: u64,
    mut each: impl FnMut(Raw<'_, '_, '_>) -> Result<(), EntryError>,
) -> Result<(), DebError> {
    let damaged = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::FileTooLarge => DebError::TooLarge { member: name.to_owned(), limit },
        _ => DebError::Member { member: name.to_owned(), source },
    };
    let mut archive = tar::Archive::new(inflate(name, body, limit).map_err(damaged)?);
    let (mut long_path, mut long_link) = (None, None);
    for (n, entry) in archive.entries().map_err(damaged)?.raw(true).enumerate() {
        let mut entry = entry.map_err(damaged)?;
        let kind = entry.header().entry_type();
        let header = entry.header().clone();
        let path = long_path.clone().unwrap_or_else(|| header.path_bytes().into_owned());
        let result = if n >= ENTRIES_MAX {
            Err(EntryError::Refused("one too many"))
        } else if kind.is_gnu_longname() {
            long_name(&mut entry).map(|name| long_path = Some(name))
        } else if kind.is_gnu_longlink() {
            long_name(&mut entry).map(|name| long_link = Some(name))
        } else {
            let link =
                long_link.take().or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
            long_path = None;
            each(Raw { path: &path, link: link.as_deref(), entry: &mut entry })
        };
        match result {
            Ok(()) => {}
            Err(EntryError::Read(source)) => return Err(damaged(source)),
            Err(EntryError::Refused(why)) => {
                let path = String::from_utf8_lossy(&path).chars().take(200).collect();
                return Err(DebError::Entry { path, why });
            }
        }
    }
    match long_path.or(long_link) {
        Some(_) => Err(DebError::Archive("it ends with the name of an entry that is not there")),
        None => Ok(()),
    }
}

/// The path or target that stands in an entry of its own, for the next one.
fn long_name(entry: &mut impl Read) -> Result<Vec<u8>, EntryError> {
    let mut name = Vec::new();
    entry.take(PATH_BYTES_MAX as u64 + 2).read_to_end(&mut name)?;
    if name.last() == Some(&0) {
        name.pop();
    }
    match name.len() <= PATH_BYTES_MAX && !name.contains(&0) {
        true => Ok(name),
        false => Err(EntryError::Refused("not an acceptable path")),
    }
}

enum EntryError {
    Read(std::io::Error),
    Refused(&'static str),
}

impl From<std::io::Error> for EntryError {
    fn from(error: std::io::Error) -> Self {
        Self::Read(error)
    }
}

fn read_control(name: &str, body: &[u8]) -> Result<BTreeMap<String, (Vec<u8>, u32)>, DebError> {
    let mut files = BTreeMap::new();
    each_entry(name, body, CONTROL_BYTES_MAX, |Raw { path, entry, .. }| {
        let path = clean(path)?;
        if entry.header().entry_type().is_file() {
            let name_ok = |b: &u8| b.is_ascii_alphanumeric() || b"-_.+".contains(b);
            let file = String::from_utf8(path).ok().filter(|p| p.bytes().all(|b| name_ok(&b)));
            let file = file.ok_or(EntryError::Refused("not a control file"))?;
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            if files.insert(file, (bytes, entry.header().mode()? & 0o777)).is_some() {
                return Err(EntryError::Refused("there twice"));
            }
        } else if !entry.header().entry_type().is_dir() {
            return Err(EntryError::Refused("neither a directory nor a file"));
        }
        Ok(())
    })?;
    Ok(files)
}

fn read_data(name: &str, body: &[u8]) -> Result<Vec<Entry>, DebError> {
    let mut entries = Vec::new();
    let mut seen = Seen::default();
    each_entry(name, body, INFLATED_BYTES_MAX, |Raw { path, link, entry }| {
        let path = clean(path)?;
        let header = entry.header();
        let id = |id: u64| u32::try_from(id).ok().filter(|id| *id < 65536);
        let owner = (id(header.uid()?), id(header.gid()?));
        let (Some(uid), Some(gid)) = owner else {
            return Err(EntryError::Refused("owned by an id above 65535"));
        };
        let mode = header.mode()? & 0o7777;
        let mtime = i64::try_from(header.mtime()?).unwrap_or(0).clamp(0, i64::from(u32::MAX));
        let kind = header.entry_type();
        let target = || {
            let target = link.filter(|t| !t.is_empty() && t.len() <= PATH_BYTES_MAX && !t.contains(&0));
            target.ok_or(EntryError::Refused("a link without a target"))
        };
        let kind = if kind.is_dir() {
            Kind::Dir
        } else if kind.is_symlink() {
            Kind::Symlink(target()?.to_vec())
        } else if kind.is_hard_link() {
            Kind::Hardlink(clean(target()?)?)
        } else if kind.is_file() || kind.is_contiguous() {
            let mut bytes = Vec::with_capacity(entry.size().min(16 << 20) as usize);
            entry.read_to_end(&mut bytes)?;
            Kind::File(bytes)
        } else if kind.is_pax_global_extensions() || kind.is_pax_local_extensions() {
            return Err(EntryError::Refused("preceded by a header of pax, which packages do not have"));
        } else {
            return Err(EntryError::Refused("neither a directory, a file nor a link"));
        };
        if path.is_empty() && kind != Kind::Dir {
            return Err(EntryError::Refused("in the place of the root"));
        }
        seen.check(&path, &kind)?;
        entries.push(Entry { path, kind, mode, uid, gid, mtime });
        Ok(())
    })?;
    Ok(entries)
}

/// What a package brought so far. It was packed from one tree, so that nothing in it is there twice, lies in what is no
/// directory, or is another name of something that is not there.
#[derive(Default)]
struct Seen(HashMap<Vec<u8>, Seat>);

/// What is at a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seat {
    Dir,
    File,
    Link,
}

impl Seen {
    fn check(&mut self, path: &[u8], kind: &Kind) -> Result<(), EntryError> {
        let seat = match kind {
            Kind::Dir => Seat::Dir,
            Kind::File(_) => Seat::File,
            Kind::Symlink(_) => Seat::Link,
            Kind::Hardlink(target) => match self.0.get(target) {
                Some(seat @ (Seat::File | Seat::Link)) => *seat,
                _ => {
                    return Err(EntryError::Refused("another name of a file that the package did not bring"));
                }
            },
        };
        for (at, _) in path.iter().enumerate().filter(|(_, b)| **b == b'/') {
            if *self.0.entry(path[..at].to_vec()).or_insert(Seat::Dir) != Seat::Dir {
                return Err(EntryError::Refused("in something of the package that is no directory"));
            }
        }
        match self.0.insert(path.to_vec(), seat) {
            Some(old) if old != Seat::Dir || seat != Seat::Dir => Err(EntryError::Refused("there twice")),
            _ => Ok(()),
        }
    }
}

/// The path without `./` and the slash at its end; refused if it could leave the root.
fn clean(path: &[u8]) -> Result<Vec<u8>, EntryError> {
    if path.starts_with(b"/") {
        return Err(EntryError::Refused("an absolute path"));
    }
    if path.len() > PATH_BYTES_MAX || path.contains(&0) || path.contains(&b'\n') {
        return Err(EntryError::Refused("not an acceptable path"));
    }
    let mut clean = Vec::with_capacity(path.len());
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err(EntryError::Refused("a path that leads upwards")),
            part if part.len() > 255 => return Err(EntryError::Refused("a name of more than 255 bytes")),
            part => {
                if !clean.is_empty() {
                    clean.push(b'/');
                }
                clean.extend_from_slice(part);
            }
        }
    }
    Ok(clean)
}

#[cfg(test)]
mod hostile;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member(name: &str, body: &[u8]) -> Vec<u8> {
        let mut out =
            format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100644, body.len()).into_bytes();
        out.extend_from_slice(body);
        if body.len() % 2 == 1 {
            out.push(b'\n');
        }
        out
    }

    /// (path, type, link target or content) rows as a tar file, without the checks of the tar crate.
    fn tar_of(rows: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, content) in rows {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o755);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(7);
            let body = if kind.is_file() { *content } else { "" };
            if !kind.is_file() && !content.is_empty() {
                header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
            }
            header.set_size(body.len() as u64);
            header.set_cksum();
            builder.append(&header, body.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn deb(rows: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
        let control = tar_of(&[("./control", tar::EntryType::Regular, "Package: aa\nArchitecture: all\n")]);
        let mut out = b"!<arch>\n".to_vec();
        out.extend(member("debian-binary", b"2.0\n"));
        out.extend(member("control.tar", &control));
        out.extend(member("data.tar", &tar_of(rows)));
        out
    }

    use tar::EntryType as T;

    #[test]
    fn reads_a_package() {
        let rows = [
            ("./", T::Directory, ""),
            ("./usr/", T::Directory, ""),
            ("./usr/a", T::Regular, "body"),
            ("./usr/b", T::Symlink, "../etc/x"),
            ("./usr/c", T::Link, "./usr/a"),
        ];
        let deb = Deb::read(&deb(&rows)).unwrap();
        assert_eq!(deb.field("Package"), Some("aa"));
        let paths: Vec<_> =
            deb.entries.iter().map(|e| String::from_utf8_lossy(&e.path).into_owned()).collect();
        assert_eq!(paths, ["", "usr", "usr/a", "usr/b", "usr/c"]);
        assert_eq!(deb.entries[2].kind, Kind::File(b"body".to_vec()));
        assert_eq!(deb.entries[3].kind, Kind::Symlink(b"../etc/x".to_vec()));
        assert_eq!(deb.entries[4].kind, Kind::Hardlink(b"usr/a".to_vec()));
    }

    #[test]
    fn refuses_what_a_package_may_not_hold() {
        for row in [
            ("../x", T::Regular, ""),
            ("./a/../../x", T::Regular, ""),
            ("/etc/x", T::Regular, ""),
            ("./dev/x", T::Char, ""),
            ("./dev/x", T::Block, ""),
            ("./x", T::Fifo, ""),
            ("./x", T::Link, "../../etc/shadow"),
            ("./x", T::Link, "/etc/shadow"),
            ("./x", T::Symlink, ""),
            ("./", T::Regular, "x"),
        ] {
            let error = Deb::read(&deb(&[row])).unwrap_err();
            assert!(matches!(error, DebError::Entry { .. }), "{row:?}: {error}");
        }
    }

    #[test]
    fn refuses_hostile_archives() {
        let good = deb(&[]);
        assert!(Deb::read(&good).is_ok());
        for at in [3, 8, 40, 70, good.len() - 600] {
            assert!(Deb::read(&good[..at]).is_err(), "cut at {at}");
        }
        let mut huge = good.clone();
        huge[8 + 48..8 + 58].copy_from_slice(b"9999999999");
        assert!(matches!(Deb::read(&huge), Err(DebError::Archive(_))));
        huge[8 + 48..8 + 58].copy_from_slice(b"-1        ");
        assert!(matches!(Deb::read(&huge), Err(DebError::Archive(_))));
    }

    #[test]
    fn a_bomb_is_stopped() {
        let zeros = vec![0_u8; (CONTROL_BYTES_MAX as usize) + (8 << 20)];
        let mut header = tar::Header::new_gnu();
        header.set_path("control").unwrap();
        header.set_entry_type(T::Regular);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(zeros.len() as u64);
        header.set_cksum();
        let mut builder = tar::Builder::new(Vec::new());
        builder.append(&header, &zeros[..]).unwrap();
        let packed = zstd::encode_all(&builder.into_inner().unwrap()[..], 1).unwrap();
        assert!(packed.len() < 1 << 20);
        let mut bomb = b"!<arch>\n".to_vec();
        bomb.extend(member("debian-binary", b"2.0\n"));
        bomb.extend(member("control.tar.zst", &packed));
        assert!(matches!(Deb::read(&bomb), Err(DebError::TooLarge { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn damage_never_panics(at in 0_usize..4000, value: u8) {
            let mut bytes = deb(&[("./usr/a", T::Regular, "body"), ("./usr/c", T::Link, "./usr/a")]);
            let at = at % bytes.len();
            bytes[at] = value;
            let _ = Deb::read(&bytes);
        }
    }
}
