//! A layer as a tar archive of the OCI image specification ("Image Layer Filesystem Changeset"): the same bytes for the same
//! tree. Whiteouts become `.wh.NAME`, an opaque directory gets `.wh..wh..opq`, further names of a file become hard links, and
//! what the old header cannot hold goes into a pax header.

use crate::tree::{Content, FileId, Kind, Node, Tree, join, name, parent};
use std::collections::HashMap;
use std::io::{self, Write};
use tar::{EntryType, Header};

/// Bytes that a field of the header for names holds.
const NAME_BYTES_MAX: usize = 100;
/// The largest id and size that the header's octal digits hold.
const ID_MAX: u32 = 0o777_7777;
const SIZE_MAX: u64 = 0o777_7777_7777;
/// Bytes of a record; data is padded to it.
const RECORD: u64 = 512;
/// Bytes that are copied at a time.
const CHUNK: usize = 1 << 20;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Writes `tree` with the two empty records at the end.
///
/// # Errors
/// What `out` says, or that the content of a file cannot be read.
pub fn write(tree: &Tree, out: &mut impl Write) -> io::Result<()> {
    let mut first_names: HashMap<FileId<'_>, &[u8]> = HashMap::new();
    for (path, node) in tree.iter() {
        let file = match &node.kind {
            Kind::File(content) => content.file_id(),
            _ => None,
        };
        match file.and_then(|file| first_names.get(&file).copied()) {
            Some(first) => entry(out, path, node, EntryType::Link, Some(first))?,
            None => {
                whole(out, path, node)?;
                first_names.extend(file.map(|file| (file, path.as_slice())));
            }
        }
    }
    out.write_all(&[0; 2 * RECORD as usize])
}

fn whole(out: &mut impl Write, path: &[u8], node: &Node) -> io::Result<()> {
    match &node.kind {
        Kind::Dir => {
            // The root has a mode and a time as well.
            let named = if path.is_empty() { b"./".to_vec() } else { join(path, b"") };
            entry(out, &named, node, EntryType::Directory, None)?;
            if node.is_opaque() {
                marker(out, &join(path, OPAQUE))?;
            }
            Ok(())
        }
        Kind::Symlink(target) => entry(out, path, node, EntryType::Symlink, Some(target)),
        Kind::Whiteout => {
            let name = [WHITEOUT, name(path)].concat();
            marker(out, &join(parent(path).unwrap_or_default(), &name))
        }
        Kind::File(content) => {
            entry(out, path, node, EntryType::Regular, None)?;
            copy(out, content)
        }
    }
}

/// An empty file of root with the time 0, which says something about its name.
fn marker(out: &mut impl Write, path: &[u8]) -> io::Result<()> {
    let node = Node::file(Content::Bytes([][..].into()), 0, 0);
    entry(out, path, &node, EntryType::Regular, None)
}

fn copy(out: &mut impl Write, content: &Content) -> io::Result<()> {
    let (size, mut at) = (content.size(), 0);
    let mut chunk = vec![0; CHUNK.min(size as usize)];
    while at < size {
        let part = &mut chunk[..CHUNK.min((size - at) as usize)];
        content.read_at(part, at)?;
        out.write_all(part)?;
        at += part.len() as u64;
    }
    out.write_all(&[0; RECORD as usize][..((RECORD - size % RECORD) % RECORD) as usize])
}

fn entry(
    out: &mut impl Write,
    path: &[u8],
    node: &Node,
    kind: EntryType,
    target: Option<&[u8]>,
) -> io::Result<()> {
    let size = match (&node.kind, kind) {
        (Kind::File(content), EntryType::Regular) => content.size(),
        _ => 0,
    };
    let mut more: Vec<(Vec<u8>, Vec<u8>)> = vec![];
    let number = |n: u64| n.to_string().into_bytes();
    if path.len() > NAME_BYTES_MAX {
        more.push((b"path".to_vec(), path.to_vec()));
    }
    if let Some(target) = target.filter(|target| target.len() > NAME_BYTES_MAX) {
        more.push((b"linkpath".to_vec(), target.to_vec()));
    }
    if size > SIZE_MAX {
        more.push((b"size".to_vec(), number(size)));
    }
    for (key, id) in [("uid", node.uid), ("gid", node.gid)] {
        if id > ID_MAX {
            more.push((key.into(), number(id.into())));
        }
    }
    if node.mtime < 0 {
        more.push((b"mtime".to_vec(), node.mtime.to_string().into_bytes()));
    }
    // Another name of a file has the attributes of the file, and kiln's own mark of a directory is a file in an archive.
    let tags =
        node.xattrs.iter().filter(|(name, _)| *name != crate::tree::OPAQUE.0 && kind != EntryType::Link);
    more.extend(tags.map(|(name, value)| ([b"SCHILY.xattr.", &name[..]].concat(), value.clone())));
    if !more.is_empty() {
        let body: Vec<u8> = more.iter().flat_map(|(key, value)| pax(key, value)).collect();
        let plain = Node::file(Content::Bytes(body.clone().into()), 0o644, 0);
        header(out, b"pax", &plain, EntryType::XHeader, None, body.len() as u64)?;
        copy(out, &Content::Bytes(body.into()))?;
    }
    header(out, path, node, kind, target, size)
}

/// `LENGTH KEY=VALUE\n`, whose length counts its own digits.
fn pax(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

fn header(
    out: &mut impl Write,
    path: &[u8],
    node: &Node,
    kind: EntryType,
    target: Option<&[u8]>,
    size: u64,
) -> io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(node.mode);
    header.set_uid(node.uid.min(ID_MAX).into());
    header.set_gid(node.gid.min(ID_MAX).into());
    header.set_mtime(u64::try_from(node.mtime).unwrap_or(0));
    header.set_size(size.min(SIZE_MAX));
    let fields = header.as_old_mut();
    let cut = |text: &[u8]| text.len().min(NAME_BYTES_MAX);
    fields.name[..cut(path)].copy_from_slice(&path[..cut(path)]);
    if let Some(target) = target {
        fields.linkname[..cut(target)].copy_from_slice(&target[..cut(target)]);
    }
    header.set_cksum();
    out.write_all(header.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_tree_becomes_an_archive_that_tar_understands() {
        let dir = tempfile::tempdir().unwrap();
        let mut tree = Tree::new();
        let mut put = |path: &[u8], node: Node| tree.insert(path, node).unwrap();
        put(b"", Node::dir(0o755, 7));
        put(b"d", Node { xattrs: opaque(), ..Node::dir(0o1777, 7) });
        put(b"d/gone", Node { kind: Kind::Whiteout, ..Node::dir(0, 0) });
        let long = [b"d/".as_slice(), &[b'n'; 180]].concat();
        put(&long, Node::file(Content::Bytes(vec![5; 1000].into()), 0o4755, 1_700_000_000));
        put(b"link", Node { kind: Kind::Symlink(vec![b't'; 300]), ..Node::dir(0o777, 7) });
        let host = dir.path().join("shared");
        std::fs::write(&host, "one file").unwrap();
        for path in [b"one", b"two"] {
            put(
                path,
                Node {
                    uid: 3_000_000,
                    ..Node::file(Content::Path { path: host.clone(), size: 8 }, 0o644, 9)
                },
            );
        }
        let caps = Arc::new([(b"security.capability".to_vec(), vec![0, 1, 2, b'='])].into());
        put(b"able", Node { xattrs: caps, ..Node::file(Content::Bytes([][..].into()), 0o755, 9) });
        let (mut first, mut second) = (vec![], vec![]);
        write(&tree, &mut first).unwrap();
        write(&tree, &mut second).unwrap();
        assert_eq!(first, second);
        assert_eq!(first.len() % 512, 0);

        let mut archive = tar::Archive::new(&first[..]);
        let mut rows = vec![];
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            let target = entry.link_name_bytes().map(|target| target.len());
            let pax: Vec<_> = entry
                .pax_extensions()
                .unwrap()
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.value_bytes().to_vec())
                .collect();
            rows.push((path, entry.header().entry_type(), target, entry.header().uid().unwrap(), pax.len()));
        }
        let long = String::from_utf8(long).unwrap();
        let expected = [
            ("./", EntryType::Directory, None, 0, 0),
            ("able", EntryType::Regular, None, 0, 1),
            ("d/", EntryType::Directory, None, 0, 0),
            ("d/.wh..wh..opq", EntryType::Regular, None, 0, 0),
            ("d/.wh.gone", EntryType::Regular, None, 0, 0),
            (&long, EntryType::Regular, None, 0, 1),
            ("link", EntryType::Symlink, Some(300), 0, 1),
            ("one", EntryType::Regular, None, 3_000_000, 1),
            ("two", EntryType::Link, Some(3), 3_000_000, 1),
        ];
        let expected =
            expected.map(|(path, kind, target, uid, n_pax)| (path.to_owned(), kind, target, uid, n_pax));
        assert_eq!(rows, expected);

        // GNU tar as a second opinion.
        let file = dir.path().join("layer.tar");
        std::fs::write(&file, &first).unwrap();
        let listed = std::process::Command::new("tar").arg("-tvf").arg(&file).output().unwrap();
        assert!(
            listed.status.success() && listed.stderr.is_empty(),
            "{}",
            String::from_utf8_lossy(&listed.stderr)
        );
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(
            text.contains("two link to one") && text.contains("3000000/") && text.contains(&long),
            "{text}"
        );
    }

    fn opaque() -> crate::tree::Xattrs {
        Arc::new([(crate::tree::OPAQUE.0.to_vec(), crate::tree::OPAQUE.1.to_vec())].into())
    }

    #[test]
    fn the_length_of_a_pax_record_counts_itself() {
        for (key, value, expected) in
            [("a", "b", "6 a=b\n"), ("ab", "cd", "8 ab=cd\n"), ("abc", "d\nf", "11 abc=d\nf\n")]
        {
            assert_eq!(pax(key.as_bytes(), value.as_bytes()), expected.as_bytes());
        }
    }
}
