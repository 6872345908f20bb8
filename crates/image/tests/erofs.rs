//! The EROFS writer against the kernel, `fsck.erofs` and the reader; the reader against damaged images.
//!
//! The kernel's part needs root; without it, that one test says loudly that it was skipped.

use kiln_image::erofs::{Reader, write};
use kiln_image::tree::{Content, Kind, Node, Tree, Xattrs};
use kiln_sys::mount::{self, ErofsBacking};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

const EPOCH: i64 = 1_700_000_000;

fn bytes(body: &[u8]) -> Content {
    Content::Bytes(body.into())
}

fn file(body: &[u8]) -> Node {
    Node::file(bytes(body), 0o644, EPOCH)
}

fn xattrs(rows: &[(&str, &[u8])]) -> Xattrs {
    let rows = rows.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec()));
    Arc::new(rows.collect::<BTreeMap<_, _>>())
}

/// Thousands of nodes at every edge of the format.
fn edges(dir: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut put = |path: &str, node: Node| tree.insert(path.as_bytes(), node).unwrap();
    put("", Node::dir(0o755, EPOCH));
    put("sizes", Node::dir(0o755, EPOCH));
    for size in
        [0_usize, 1, 2, 4031, 4032, 4033, 4063, 4064, 4065, 4095, 4096, 4097, 8191, 8192, 8193, 1 << 20]
    {
        let body: Vec<u8> = (0..size).map(|n| (n * 31 + size) as u8).collect();
        // An extended inode leaves 32 bytes less for what lies inside.
        for (kind, mtime) in [("compact", EPOCH), ("extended", EPOCH + 1), ("past", -2_000_000_000)] {
            put(&format!("sizes/{kind}-{size}"), Node { mtime, ..file(&body) });
        }
    }
    // Directories of one block, of exactly full blocks, and of hundreds of blocks.
    for (folder, count, width) in
        [("short", 400, 3), ("exact", 681, 4), ("long", 4000, 200), ("longest", 40, 255)]
    {
        put(folder, Node::dir(0o1777, EPOCH));
        for n in 0..count {
            put(&format!("{folder}/{n:0width$}"), file(n.to_string().as_bytes()));
        }
    }
    let link = |target: &[u8]| Node { kind: Kind::Symlink(target.to_vec()), ..Node::dir(0o777, EPOCH) };
    put("link", link(b"sizes/compact-1"));
    put("dangling", link(b"../../none\xff"));
    put("far", link(&[b'x'; 3000]));
    put("farthest", link(&[b'y'; 4095]));
    put("setuid", Node { mode: 0o4755, ..file(b"#!") });
    put("setgid", Node { mode: 0o2755, gid: 5, ..file(b"#!") });
    put("owned", Node { uid: 100_000, gid: 100_001, ..file(b"ids beyond 16 bits") });
    put("mapped", Node { uid: 65_535, gid: 65_534, ..file(b"the last short ids") });
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    put("ping", Node { xattrs: xattrs(&[("security.capability", &capability)]), ..file(b"raw sockets") });
    let many: Vec<String> = (0..100).map(|n| format!("user.name-{n}")).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|name| (name.as_str(), name.as_bytes())).collect();
    put("many-xattrs", Node { xattrs: xattrs(&many), ..file(&[9; 5000]) });
    let large: &[(&str, &[u8])] = &[("user.large", &[7; 3900]), ("user.empty", b"")];
    put("large-xattr", Node { xattrs: xattrs(large), ..file(b"inside") });
    put("opaque", Node { xattrs: xattrs(&[("trusted.overlay.opaque", b"y")]), ..Node::dir(0o700, EPOCH) });
    put("gone", Node { kind: Kind::Whiteout, mtime: EPOCH, ..Node::dir(0, 0) });
    let mut deep = "deep".to_owned();
    put(&deep, Node::dir(0o755, EPOCH));
    for n in 0..100 {
        deep = format!("{deep}/d{n}");
        put(&deep, Node::dir(0o711, EPOCH + n));
    }
    let host = dir.join("shared");
    fs::write(&host, vec![3; 5000]).unwrap();
    for path in ["one", "two", "sizes/three"] {
        put(path, Node::file(Content::Path { path: host.clone(), size: 5000 }, 0o755, EPOCH));
    }
    let sparse = dir.join("sparse");
    let holes = File::create(&sparse).unwrap();
    holes.set_len(50 << 20).unwrap();
    holes.write_all_at(b"in the middle", 20 << 20).unwrap();
    put("sparse", Node::file(Content::Path { path: sparse, size: 50 << 20 }, 0o600, EPOCH));
    tree
}

fn same_content(content: &Content, path: &Path) -> bool {
    let mut found = File::open(path).unwrap();
    let mut other = vec![0; 1 << 20];
    let mut same = content.size() == found.metadata().unwrap().len();
    content
        .each_chunk(&mut vec![0; 1 << 20], &mut |chunk| {
            found.read_exact(&mut other[..chunk.len()])?;
            same &= other[..chunk.len()] == *chunk;
            Ok(())
        })
        .unwrap();
    same
}

fn host_xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0_u8; 64 << 10];
    let n = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..n].split(|b| *b == 0).filter(|name| !name.is_empty());
    let row = |name: &[u8]| {
        let mut value = vec![0_u8; 64 << 10];
        let n = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
        (name.to_vec(), value[..n].to_vec())
    };
    names.map(row).collect()
}

/// What the kernel shows below `root` is `tree`, node by node.
fn compare(tree: &Tree, root: &Path) {
    let mut inodes: HashMap<u64, u64> = HashMap::new();
    for (path, node) in tree.iter() {
        let place = match path.as_slice() {
            b"" => root.join("."),
            path => root.join(OsStr::from_bytes(path)),
        };
        let text = String::from_utf8_lossy(path);
        let meta = fs::symlink_metadata(&place).unwrap_or_else(|e| panic!("{text}: {e}"));
        let kind = match &node.kind {
            Kind::Dir => meta.is_dir() && fs::read_dir(&place).unwrap().count() == children(tree, path),
            Kind::File(content) => meta.is_file() && same_content(content, &place),
            Kind::Symlink(target) => fs::read_link(&place).unwrap().as_os_str().as_bytes() == target,
            Kind::Whiteout => meta.mode() & 0o170_000 == 0o020_000 && meta.rdev() == 0,
        };
        assert!(kind, "{text} is another one");
        let found = (meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.mtime());
        assert_eq!(found, (node.mode, node.uid, node.gid, node.mtime), "{text}");
        assert_eq!(host_xattrs(&place), *node.xattrs, "{text}");
        *inodes.entry(meta.ino()).or_default() += 1;
        if meta.is_file() {
            let expected =
                if matches!(&node.kind, Kind::File(Content::Path { size: 5000, .. })) { 3 } else { 1 };
            assert_eq!(meta.nlink(), expected, "{text}");
        }
    }
    let shared: Vec<_> = inodes.values().filter(|n| **n > 1).collect();
    assert_eq!(shared, [&3], "one file has three names");
}

fn children(tree: &Tree, path: &[u8]) -> usize {
    tree.iter().filter(|(other, _)| kiln_image::tree::parent(other) == Some(path)).count()
}

#[test]
fn the_kernel_sees_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let tree = edges(dir.path());
    assert!(tree.len() > 5000);
    let image = dir.path().join("image");
    let mut out = File::create(&image).unwrap();
    let size = write(&tree, &mut out).unwrap();
    assert_eq!(out.metadata().unwrap().len(), size);
    match Command::new("fsck.erofs").arg(&image).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => println!("SKIPPED: fsck.erofs is not installed"),
    }
    let back = Reader::open(File::open(&image).unwrap()).unwrap().tree().unwrap();
    let mut again = File::create(dir.path().join("again")).unwrap();
    assert_eq!(write(&back, &mut again).unwrap(), size);
    let same = same_content(&Content::Path { path: image.clone(), size }, &dir.path().join("again"));
    assert!(same, "what was read back is written as the same bytes");
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: the kernel was not asked, for that needs root");
        return;
    }
    for backing in [ErofsBacking::Auto, ErofsBacking::Loop] {
        let mounted = mount::erofs(&image, backing).unwrap();
        compare(&tree, &PathBuf::from(format!("/proc/self/fd/{}", mounted.as_raw_fd())));
    }
}

/// A tree as somebody could make it.
fn trees() -> impl Strategy<Value = Tree> {
    let name = proptest::collection::vec(prop_oneof![1_u8..b'/', b'0'..=255], 1..60)
        .prop_filter("not a name", |name| !matches!(name.as_slice(), b"." | b".."));
    let size = prop_oneof![0..20_usize, 3900..4200_usize, 8000..8300_usize];
    let kind = prop_oneof![
        4 => (size, any::<u8>()).prop_map(|(size, fill)| Kind::File(bytes(&vec![fill; size]))),
        2 => Just(Kind::Dir),
        1 => proptest::collection::vec(1_u8..=255, 1..4095).prop_map(Kind::Symlink),
        1 => Just(Kind::Whiteout),
    ];
    let attribute = ("(user|trusted|security)\\.[a-z]{1,40}", proptest::collection::vec(any::<u8>(), 0..300));
    let attributes =
        proptest::collection::btree_map(attribute.0.prop_map(String::into_bytes), attribute.1, 0..4);
    let node = (kind, 0..0o10_000_u32, any::<[u32; 2]>(), any::<i64>(), attributes, any::<[bool; 2]>())
        .prop_map(|(kind, mode, [uid, gid], mtime, attributes, [short, now])| Node {
            kind,
            mode,
            uid: if short { uid % 70_000 } else { uid },
            gid: if short { gid % 70_000 } else { gid },
            mtime: if now { EPOCH } else { mtime },
            xattrs: Arc::new(attributes),
        });
    // Each row says below which of the directories so far it goes.
    proptest::collection::vec((any::<prop::sample::Index>(), name, node), 0..60).prop_map(|rows| {
        let mut tree = Tree::new();
        tree.insert(b"", Node::dir(0o755, EPOCH)).unwrap();
        let mut dirs: Vec<Vec<u8>> = vec![vec![]];
        for (dir, name, node) in rows {
            let parent: &Vec<u8> = dir.get(&dirs);
            let path = kiln_image::tree::join(parent, &name);
            if path.len() > 3000 || tree.get(&path).is_some() {
                continue;
            }
            if node.kind == Kind::Dir {
                dirs.push(path.clone());
            }
            tree.insert(&path, node).unwrap();
        }
        tree
    })
}

fn image_of(tree: &Tree) -> Vec<u8> {
    let mut image = vec![];
    write(tree, &mut image).unwrap();
    image
}

fn reader_of(image: &[u8]) -> std::io::Result<Reader> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(image).unwrap();
    Reader::open(file)
}

/// Gives the superblock the checksum that its damaged block should have, so that the damage behind it is seen.
fn seal(image: &mut [u8]) {
    image[1028..1032].fill(0);
    let sum = !crc32c::crc32c(&image[1024..4096]);
    image[1028..1032].copy_from_slice(&sum.to_le_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_back(tree in trees()) {
        let image = image_of(&tree);
        let back = reader_of(&image).unwrap().tree().unwrap();
        prop_assert_eq!(back.len(), tree.len());
        for ((path, node), (at, found)) in tree.iter().zip(back.iter()) {
            prop_assert_eq!(path, at);
            match (&node.kind, &found.kind) {
                (Kind::File(a), Kind::File(b)) => prop_assert_eq!(a.read().unwrap(), b.read().unwrap()),
                (a, b) => prop_assert_eq!(a, b),
            }
            let properties = |n: &Node| (n.mode, n.uid, n.gid, n.mtime, n.xattrs.clone());
            prop_assert_eq!(properties(node), properties(found));
        }
        prop_assert!(image_of(&back) == image);
    }

    /// Damage is an error or another tree, and either at once: no panic, no endless walk, no more memory than the image
    /// has bytes.
    #[test]
    fn damaged_images_are_refused_or_read(
        tree in trees(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut image = image_of(&tree);
        for (at, byte) in damage {
            // Half of it goes into what follows the superblock: inodes and directories.
            let span = if byte % 2 == 0 { image.len() } else { image.len().min(4096) - 1024 };
            let at = at.index(span) + if byte % 2 == 0 { 0 } else { 1024 };
            image[at] = byte;
        }
        seal(&mut image);
        if let Some(cut) = cut {
            image.truncate(cut.index(image.len()));
        }
        if let Ok(reader) = reader_of(&image) {
            if let Ok(tree) = reader.tree() {
                let sizes = tree.iter().map(|(_, node)| match &node.kind {
                    Kind::File(content) => content.size(),
                    _ => 0,
                });
                prop_assert!(sizes.max().unwrap_or(0) <= image.len() as u64);
            }
            let _ = reader.get(b"a/b/c");
        }
    }
}

/// An image whose root has itself below it, one that repeats a large file, and one with the features of another kernel.
#[test]
fn images_that_would_never_end_are_refused() {
    let mut tree = Tree::new();
    tree.insert(b"", Node::dir(0o755, EPOCH)).unwrap();
    tree.insert(b"d", Node::dir(0o755, EPOCH)).unwrap();
    tree.insert(b"f", file(&[1; 9000])).unwrap();
    tree.insert(b"g", file(&[1; 9000])).unwrap();
    let image = image_of(&tree);
    let refused = |image: &[u8]| reader_of(image).and_then(|r| r.tree()).unwrap_err().to_string();
    // The root's entries: ".", "..", "d", "f", "g", each 12 bytes, right behind its inode of 32 bytes.
    let root = usize::from(u16::from_le_bytes([image[1024 + 14], image[1024 + 15]])) * 32;
    let entry = |n: usize| root + 32 + 12 * n;
    let mut cycle = image.clone();
    cycle.copy_within(entry(0)..entry(0) + 8, entry(2));
    seal(&mut cycle);
    assert!(refused(&cycle).contains("a directory in two places"), "{}", refused(&cycle));
    let mut twice = image.clone();
    let name = |n: usize| usize::from(u16::from_le_bytes([image[entry(n) + 8], image[entry(n) + 9]]));
    twice[root + 32 + name(4)] = b'f';
    seal(&mut twice);
    assert!(refused(&twice).contains("two entries of one name"), "{}", refused(&twice));
    let mut slash = image.clone();
    slash[root + 32 + name(4)] = b'/';
    seal(&mut slash);
    assert!(refused(&slash).contains("a name that no file can have"), "{}", refused(&slash));
    let mut large = image.clone();
    let inode = u64::from_le_bytes(image[entry(3)..entry(3) + 8].try_into().unwrap()) as usize * 32;
    let room = image.len() as u32 - 4096;
    large[inode + 8..inode + 12].copy_from_slice(&room.to_le_bytes());
    seal(&mut large);
    assert!(refused(&large).contains("more content than bytes"), "{}", refused(&large));
    for (at, value) in [(1024 + 80, 1), (1024 + 8, 7), (1024 + 13, 1), (1024 + 36, 200)] {
        let mut feature = image.clone();
        feature[at] = value;
        seal(&mut feature);
        assert!(refused(&feature).contains("image has"), "{at}");
    }
    let mut flipped = image;
    flipped[1024 + 40] ^= 1;
    assert!(refused(&flipped).contains("checksum"), "{}", refused(&flipped));
}
