//! Layers as tools make them, as attackers would make them, and as damage makes them.

use super::blob::{self, BlobError};
use super::layer::{self, Layer, LayerError};
use super::manifest::{CONFIG_TYPE, Document, LAYER_TYPE, Manifest};
use super::tar::TarError;
use super::{FetchError, Fetcher};
use crate::erofs::{self, Reader, Stack};
use crate::objects::Objects;
use crate::tree::{Kind, SharedFile, Tree};
use kiln_model::Digest;
use proptest::prelude::*;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

/// One entry of an archive, byte by byte: no library would write most of these.
#[derive(Clone, Debug)]
struct Row {
    path: Vec<u8>,
    flag: u8,
    link: Vec<u8>,
    content: Vec<u8>,
    mode: u32,
    mtime: i64,
    pax: Vec<(String, Vec<u8>)>,
    /// What the size field says, if not the truth.
    size: Option<u64>,
}

fn row(path: &str, flag: u8) -> Row {
    let (path, link, content) = (path.into(), vec![], vec![]);
    Row { path, flag, link, content, mode: 0o644, mtime: 7, pax: vec![], size: None }
}

fn dir(path: &str) -> Row {
    Row { mode: 0o755, ..row(path, b'5') }
}

fn file(path: &str, text: &str) -> Row {
    Row { content: text.into(), ..row(path, b'0') }
}

fn link(path: &str, flag: u8, target: &str) -> Row {
    Row { link: target.into(), ..row(path, flag) }
}

fn header(row: &Row, flag: u8, size: u64) -> [u8; 512] {
    let mut header = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &row.path[..row.path.len().min(100)]);
    put(100, format!("{:07o}\0", row.mode).as_bytes());
    put(108, b"0000041\0");
    put(116, b"0000042\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, format!("{:011o}\0", row.mtime).as_bytes());
    put(148, b"        ");
    put(156, &[flag]);
    put(157, &row.link[..row.link.len().min(100)]);
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

fn padded(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(512), 0);
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let length = (1..).find(|n| n.to_string().len() + body.len() == *n).unwrap();
    [length.to_string().as_bytes(), &body].concat()
}

fn archive(rows: &[Row]) -> Vec<u8> {
    let mut out = vec![];
    for row in rows {
        if !row.pax.is_empty() {
            let records: Vec<u8> = row.pax.iter().flat_map(|(key, value)| record(key, value)).collect();
            out.extend(header(row, b'x', records.len() as u64));
            padded(&mut out, &records);
        }
        out.extend(header(row, row.flag, row.size.unwrap_or(row.content.len() as u64)));
        padded(&mut out, &row.content);
    }
    out.extend([0; 1024]);
    out
}

fn shared(bytes: &[u8]) -> SharedFile {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    SharedFile(Arc::new(file))
}

fn over(rows: &[Row], below: &Stack) -> Result<Layer, LayerError> {
    let bytes = archive(rows);
    layer::read(&shared(&bytes), bytes.len() as u64, below)
}

fn read(rows: &[Row]) -> Result<Layer, LayerError> {
    over(rows, &Stack::default())
}

/// The layer as it is read back from the file system image that it becomes.
fn written(tree: &Tree) -> Reader {
    let mut file = tempfile::tempfile().unwrap();
    erofs::write(tree, &mut file).unwrap();
    Reader::open(file).unwrap()
}

fn names(tree: &Tree) -> Vec<String> {
    let row = |(path, node): (&Vec<u8>, &crate::tree::Node)| {
        let path = String::from_utf8_lossy(path).into_owned();
        match node.kind {
            Kind::Whiteout => format!("!{path}"),
            Kind::Dir if node.is_opaque() => format!("={path}"),
            _ => path,
        }
    };
    tree.iter().map(row).collect()
}

#[test]
fn a_layer_becomes_a_tree_with_all_that_it_says() {
    let long = format!("usr/{}", "n".repeat(150));
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let pax = |key: &str, value: &[u8]| (key.to_owned(), value.to_vec());
    let rows = [
        dir("./"),
        dir("./usr/"),
        Row { mode: 0o4755, ..file("usr/su", "suid") },
        link("usr/other", b'1', "./usr/su"),
        link("usr/link", b'2', "../../../etc/passwd"),
        Row { pax: vec![pax("path", long.as_bytes()), pax("mtime", b"1600000000.75")], ..file("short", "1") },
        Row {
            pax: vec![
                pax("SCHILY.xattr.security.capability", capability),
                pax("SCHILY.xattr.user.a", b"b=\nc"),
                pax("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
                pax("uid", b"100000"),
            ],
            ..file("usr/ping", "2")
        },
        row("dev/null", b'3'),
        dir("gone-again"),
        file("gone-again/x", "x"),
        file("gone-again", "a file now"),
    ];
    let layer = read(&rows).unwrap();
    let expected = ["", "gone-again", "usr", "usr/link", &long, "usr/other", "usr/ping", "usr/su"];
    assert_eq!(names(&layer.tree), expected);
    let get = |path: &str| layer.tree.get(path.as_bytes()).unwrap();
    assert_eq!(get("usr/other"), get("usr/su"), "one file with two names");
    let su = get("usr/su");
    assert_eq!((su.mode, su.uid, su.gid, su.mtime), (0o4755, 0o41, 0o42, 7));
    assert_eq!(get(&long).mtime, 1_600_000_000);
    assert_eq!(get("usr/link").kind, Kind::Symlink(b"../../../etc/passwd".to_vec()));
    let ping = get("usr/ping");
    assert_eq!(ping.uid, 100_000);
    let kept: Vec<_> = ping.xattrs.keys().map(|key| String::from_utf8_lossy(key).into_owned()).collect();
    assert_eq!(kept, ["security.capability", "user.a"], "nothing steers the overlay");
    assert_eq!(layer.notes.len(), 2, "{:?}", layer.notes);
    assert!(!layer.leans, "every folder has an entry");
    let back = written(&layer.tree).tree().unwrap();
    assert_eq!(names(&back), names(&layer.tree));
    assert_eq!(back.get(b"usr/ping").unwrap().xattrs, ping.xattrs);
}

#[test]
fn whiteouts_hide_what_is_below_and_nothing_else() {
    let below = read(&[
        dir("a"),
        file("a/x", "1"),
        dir("b"),
        file("b/x", "1"),
        dir("c"),
        file("c/x", "1"),
        Row { mode: 0o700, ..dir("d") },
        file("d/x", "1"),
        file("f", "1"),
    ]);
    let below = written(&below.unwrap().tree);
    let below_tree = below.tree().unwrap();
    let stack = Stack::new([below].into_iter());
    let layer = over(
        &[
            dir("a"),
            row("a/.wh.x", b'0'),
            dir("b"),
            row("b/.wh..wh..opq", b'0'),
            file("b/y", "2"),
            row(".wh.c", b'0'),
            dir("c"),
            file("c/z", "2"),
            file("d/y", "2"),
            row(".wh.f", b'0'),
            row("none/.wh.g", b'0'),
            row(".wh..wh.plnk", b'0'),
        ],
        &stack,
    )
    .unwrap();
    assert_eq!(names(&layer.tree), ["", "a", "!a/x", "=b", "b/y", "=c", "c/z", "d", "d/y", "!f"]);
    assert_eq!(layer.tree.get(b"d").unwrap().mode, 0o700, "as the layer below has it");
    assert!(layer.leans);
    let merged = Tree::merge([below_tree, layer.tree]).unwrap();
    assert_eq!(names(&merged), ["", "a", "b", "b/y", "c", "c/z", "d", "d/x", "d/y"]);
    let root = over(&[row(".wh..wh..opq", b'0'), file("n", "1")], &stack).unwrap();
    assert_eq!(names(&root.tree), ["", "!a", "!b", "!c", "!d", "!f", "n"]);
}

/// What the layers together show at single paths is what [`Tree::merge`] says.
#[test]
fn a_stack_sees_what_a_merge_has() {
    let lower =
        read(&[dir("a"), dir("a/b"), file("a/b/x", "1"), dir("c"), file("c/x", "1"), dir("d")]).unwrap();
    let stack = Stack::new([written(&lower.tree)].into_iter());
    let upper = over(&[row(".wh.a", b'0'), dir("c"), row("c/.wh..wh..opq", b'0'), file("d", "f")], &stack);
    let upper = upper.unwrap();
    let merged = Tree::merge([lower.tree.clone(), upper.tree.clone()]).unwrap();
    let stack = Stack::new([written(&lower.tree), written(&upper.tree)].into_iter());
    for path in ["", "a", "a/b", "a/b/x", "c", "c/x", "d", "d/x", "e"] {
        let seen = stack.get(path.as_bytes()).unwrap();
        assert_eq!(seen.is_some(), merged.get(path.as_bytes()).is_some(), "{path}");
    }
    let names: Vec<_> = stack.names().unwrap().into_iter().collect();
    assert_eq!(names, [b"c".to_vec(), b"d".to_vec()]);
}

#[test]
fn a_hard_link_may_reach_a_layer_below() {
    let below = read(&[file("a", "one")]).unwrap();
    let stack = Stack::new([written(&below.tree)].into_iter());
    let layer = over(&[link("b", b'1', "a")], &stack).unwrap();
    assert!(layer.leans);
    match &layer.tree.get(b"b").unwrap().kind {
        Kind::File(content) => assert_eq!(&*content.read().unwrap(), b"one"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn escapes_and_impossible_entries_are_refused() {
    let x = || file("l/x", "1");
    let many = |n: usize| vec!["d"; n].join("/");
    let pax = |key: &str, value: &[u8]| Row { pax: vec![(key.into(), value.to_vec())], ..file("p", "1") };
    let cases: Vec<(&str, Vec<Row>)> = vec![
        ("leads out of its folder", vec![file("../x", "1")]),
        ("leads out of its folder", vec![file("a/../../x", "1")]),
        ("is an absolute path", vec![file("/etc/passwd", "1")]),
        ("is an absolute path", vec![file("a", "1"), link("b", b'1', "/etc/passwd")]),
        ("leads out of its folder", vec![file("a", "1"), link("b", b'1', "../a")]),
        ("not there", vec![link("b", b'1', "a"), file("a", "1")]),
        ("no file", vec![dir("a"), link("b", b'1', "a")]),
        ("leads through a link", vec![link("l", b'2', "/"), x()]),
        ("leads through a link", vec![link("l", b'2', ".."), x()]),
        ("no folder", vec![file("l", "1"), x()]),
        ("links to nothing", vec![link("l", b'2', "")]),
        ("would be the root", vec![dir("./"), file(".", "1")]),
        ("hides nothing", vec![row("a/.wh.", b'0')]),
        ("hides nothing", vec![row(".wh...", b'0')]),
        ("too deep", vec![pax("path", many(300).as_bytes())]),
        ("sparse", vec![row("s", b'S')]),
        ("sparse", vec![pax("GNU.sparse.major", b"1")]),
        ("unknown kind", vec![row("s", b'Q')]),
        ("too long", vec![pax("path", &[b'x'; 5000])]),
        ("cannot be in an image", vec![pax("path", &[b'x'; 300])]),
        ("zero byte", vec![pax("path", b"a\0b")]),
        ("bad number", vec![pax("size", b"-1")]),
        ("out of range", vec![pax("uid", b"4294967296")]),
        ("cut off", vec![pax("size", b"18446744073709551615")]),
        ("cut off", vec![Row { size: Some(1 << 32), ..row("a", b'0') }]),
        ("too large", vec![Row { size: Some(1 << 32), ..row("a", b'L') }]),
        ("malformed", vec![pax("mtime", b"x")]),
        ("attributes", vec![pax("SCHILY.xattr.user.a", &[1; 4000])]),
        ("attributes", vec![pax("SCHILY.xattr.user.", b"1")]),
        ("no list of records", vec![Row { content: b"99 a=b\n".to_vec(), ..row("x", b'x') }, file("a", "1")]),
    ];
    for (why, rows) in cases {
        let paths: Vec<_> = rows.iter().map(|r| String::from_utf8_lossy(&r.path).into_owned()).collect();
        let error = match read(&rows) {
            Ok(layer) => panic!("{paths:?} is taken: {:?}", names(&layer.tree)),
            Err(error) => crate::worker::chain(&error),
        };
        assert!(error.contains(why), "{paths:?}: {error}");
    }
    // A whiteout through a link hides nothing.
    let through = read(&[dir("etc"), link("l", b'2', "etc"), row("l/.wh.passwd", b'0')]).unwrap();
    assert_eq!(names(&through.tree), ["", "etc", "l"]);
    let mut torn = archive(&[file("a", "1")]);
    torn[0] ^= 1;
    let wrong = layer::read(&shared(&torn), torn.len() as u64, &Stack::default());
    assert!(matches!(wrong, Err(LayerError::Tar(TarError::Malformed(_)))), "a wrong checksum");
    let torn = layer::read(&shared(&torn[..700]), 700, &Stack::default());
    assert!(torn.is_err());
    // A link below, and a path through it: nothing is written where it points to.
    let below = written(&read(&[link("l", b'2', "etc"), dir("etc")]).unwrap().tree);
    let error = over(&[x()], &Stack::new([below].into_iter())).unwrap_err();
    assert!(error.to_string().contains("a link of a layer below"), "{error}");
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    flate2::read::GzEncoder::new(bytes, flate2::Compression::fast()).read_to_end(&mut out).unwrap();
    out
}

#[test]
fn blobs_are_decompressed_verified_and_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let objects = Objects::open(&dir.path().join("objects")).unwrap();
    let tar = archive(&[file("a", "1")]);
    let archive_digest = Digest::of(&tar);
    let path = dir.path().join("blob");
    let twice = [gzip(&tar[..512]), gzip(&tar[512..])].concat();
    for bytes in [tar.clone(), gzip(&tar), twice, zstd::encode_all(&tar[..], 1).unwrap()] {
        std::fs::write(&path, &bytes).unwrap();
        let blob = Some(Digest::of(&bytes));
        let (mut pending, size, found) = blob::inflate(&path, blob, Some(archive_digest), &objects).unwrap();
        assert_eq!((size, found), (tar.len() as u64, archive_digest));
        let mut back = vec![];
        std::io::Seek::rewind(pending.file()).unwrap();
        pending.file().read_to_end(&mut back).unwrap();
        assert_eq!(back, tar);
        for (blob, archive) in [(Some(archive_digest), None), (None, blob)] {
            if blob == archive || bytes == tar {
                continue;
            }
            let wrong = blob::inflate(&path, blob, archive, &objects);
            assert!(matches!(wrong, Err(BlobError::Mismatch { .. })));
        }
    }
    // 300 MB of zeros in a few kB.
    let mut bomb = zstd::stream::Encoder::new(vec![], 3).unwrap();
    for _ in 0..300 {
        bomb.write_all(&[0; 1 << 20]).unwrap();
    }
    std::fs::write(&path, bomb.finish().unwrap()).unwrap();
    assert!(matches!(blob::inflate(&path, None, None, &objects), Err(BlobError::TooLarge { .. })));
    std::fs::write(&path, b"\xfd7zXZ\0...").unwrap();
    assert!(matches!(blob::inflate(&path, None, None, &objects), Err(BlobError::Compression("xz"))));
    std::fs::write(&path, &gzip(&tar)[..30]).unwrap();
    assert!(matches!(blob::inflate(&path, None, None, &objects), Err(BlobError::Read(_))));
    let left = std::fs::read_dir(dir.path().join("objects/tmp")).unwrap().count();
    assert_eq!(left, 0, "nothing is left of what was decompressed");
}

/// An image in all three forms that a file can have. Answers with the digests of its layers' blobs.
fn images(dir: &Path) -> Digest {
    let tar = archive(&[file("a", "1")]);
    let blob = gzip(&tar);
    let diff = Digest::of(&tar);
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Env":["A=b"],"Cmd":["/a"]}},"rootfs":{{"type":"layers","diff_ids":["{diff}"]}}}}"#
    );
    let descriptor = |media: &str, bytes: &[u8]| {
        format!(r#"{{"mediaType":"{media}","digest":"{}","size":{}}}"#, Digest::of(bytes), bytes.len())
    };
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
        descriptor(CONFIG_TYPE, config.as_bytes()),
        descriptor(LAYER_TYPE, &blob)
    );
    let digest = Digest::of(manifest.as_bytes());
    let size = manifest.len();
    let entry = |tag: &str, digest: Digest, arch: &str| {
        format!(
            r#"{{"mediaType":"m","digest":"{digest}","size":{size},"platform":{{"architecture":"{arch}","os":"linux"}},"annotations":{{"org.opencontainers.image.ref.name":"{tag}"}}}}"#
        )
    };
    let other = Digest::of(b"other");
    let rows = [entry("1", digest, "amd64"), entry("1", other, "arm64"), entry("2", other, "amd64")];
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, rows.join(","));
    let blob_path = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let files = [
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), index.into_bytes()),
        (blob_path(manifest.as_bytes()), manifest.clone().into_bytes()),
        (blob_path(config.as_bytes()), config.clone().into_bytes()),
        (blob_path(&blob), blob),
    ];
    std::fs::create_dir_all(dir.join("layout/blobs/sha256")).unwrap();
    let mut rows = vec![];
    for (path, bytes) in files {
        std::fs::write(dir.join("layout").join(&path), &bytes).unwrap();
        rows.push(Row { content: bytes, ..row(&path, b'0') });
    }
    std::fs::write(dir.join("oci.tar"), archive(&rows)).unwrap();
    let docker = [
        file("c.json", &config),
        row("l/", b'5'),
        Row { content: tar, ..row("l/layer.tar", b'0') },
        file("manifest.json", r#"[{"Config":"c.json","RepoTags":["x/y:1"],"Layers":["l/layer.tar"]}]"#),
    ];
    std::fs::write(dir.join("docker.tar.gz"), gzip(&archive(&docker))).unwrap();
    digest
}

#[test]
fn an_image_is_found_in_a_layout_an_archive_and_a_docker_archive() {
    let dir = tempfile::tempdir().unwrap();
    let digest = images(dir.path());
    let at = |name: &str| format!("{}/{name}", dir.path().display());
    let fetch = |objects: &Objects, text: &str, pinned: Option<Digest>| {
        Fetcher { objects, auth: None }.fetch(text, pinned, &mut |_| {})
    };
    for text in [at("layout:1"), at("oci.tar:1"), format!("{}@{digest}", at("layout"))] {
        let objects = Objects::open(&dir.path().join(Digest::of(text.as_bytes()).short())).unwrap();
        assert_eq!(fetch(&objects, &text, None).unwrap(), digest, "{text}");
        let manifest = Manifest::parse(&objects.get(digest, 9999).unwrap()).unwrap();
        assert!(manifest.blobs().all(|blob| objects.has(blob.digest)));
        // A part that is gone from the store comes back, and without its origin it is named.
        let gone = manifest.layers[0].digest;
        std::fs::remove_file(objects.path(gone)).unwrap();
        assert_eq!(fetch(&objects, &text, Some(digest)).unwrap(), digest);
        assert!(objects.has(gone));
        let wrong = Digest::of(b"wrong");
        let error = fetch(&objects, &text, Some(wrong)).unwrap_err();
        assert!(matches!(error, FetchError::Gone { digest, .. } if digest == wrong), "{error}");
    }
    let objects = Objects::open(&dir.path().join("objects")).unwrap();
    let docker = fetch(&objects, &at("docker.tar.gz:1"), None).unwrap();
    assert_eq!(fetch(&objects, &at("docker.tar.gz"), Some(docker)).unwrap(), docker);
    let bytes = objects.get(docker, 9999).unwrap();
    assert!(matches!(Document::parse(&bytes), Ok(Document::Manifest(_))));
    for (text, why) in [
        (at("layout"), "more than one image"),
        (at("layout:3"), "no such image"),
        (at("docker.tar.gz:3"), "has to fit"),
        (at("none"), "cannot read"),
        ("/dev/null".to_owned(), "neither a file nor a folder"),
    ] {
        let error = crate::worker::chain(&fetch(&objects, &text, None).unwrap_err());
        assert!(error.contains(why), "{text}: {error}");
    }
    // A blob that is not what its name says is not kept.
    let objects = Objects::open(&dir.path().join("fresh")).unwrap();
    let manifest =
        Manifest::parse(&std::fs::read(dir.path().join("layout/blobs/sha256").join(digest.hex())).unwrap());
    let layer = manifest.unwrap().layers[0].digest;
    let mut bytes = std::fs::read(dir.path().join("layout/blobs/sha256").join(layer.hex())).unwrap();
    bytes[20] ^= 1;
    std::fs::write(dir.path().join("layout/blobs/sha256").join(layer.hex()), bytes).unwrap();
    assert!(fetch(&objects, &at("layout:1"), None).is_err());
    assert!(!objects.has(layer) && !objects.has(digest));
}

fn some_row() -> impl Strategy<Value = Row> {
    let path = "(\\./)?(a|b|usr|\\.\\.|\\.wh\\.a|\\.wh\\.\\.wh\\.\\.opq|/)(/(a|b|\\.wh\\.b|\\.\\.)){0,3}/?";
    let flag = prop::sample::select(b"0001235267xgLKS\0".to_vec());
    let content = prop::collection::vec(any::<u8>(), 0..600);
    (path, flag, "[ab./]{0,6}", content).prop_map(|(path, flag, target, content)| {
        let content =
            if matches!(flag, b'0' | b'7' | b'x' | b'g' | b'L' | b'K' | b'S') { content } else { vec![] };
        Row { content, ..link(&path, flag, &target) }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever an archive holds, and however it is damaged, reading it ends, and what comes of it can be written, read
    /// back, and holds only paths below the root.
    #[test]
    fn damaged_archives_do_no_harm(
        rows in prop::collection::vec(some_row(), 0..12),
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        mend in any::<bool>(),
    ) {
        let mut bytes = archive(&rows);
        for (at, with) in hits {
            let at = at.index(bytes.len());
            bytes[at] = with;
            if mend {
                // A damaged header that nevertheless has its checksum.
                let start = at / 512 * 512;
                let block = &mut bytes[start..start + 512];
                block[148..156].copy_from_slice(b"        ");
                let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        let below = written(&read(&[dir("a"), file("a/b", "1"), link("usr", b'2', "a")]).unwrap().tree);
        let stack = Stack::new([below].into_iter());
        if let Ok(layer) = layer::read(&shared(&bytes), bytes.len() as u64, &stack) {
            for (path, _) in layer.tree.iter().filter(|(path, _)| !path.is_empty()) {
                prop_assert!(!path.split(|b| *b == b'/').any(|p| matches!(p, b"" | b"." | b"..")));
            }
            let back = written(&layer.tree).tree().unwrap();
            prop_assert_eq!(names(&back), names(&layer.tree));
        }
    }
}

/// Trees of real tools: what GNU tar writes of a folder is what a scan of it finds.
#[test]
fn archives_of_gnu_tar_are_understood() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let deep = root.join(format!("{}/{}", "d".repeat(120), "e".repeat(120)));
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("f".repeat(90)), "long").unwrap();
    std::os::unix::fs::symlink("t".repeat(180), deep.join("link")).unwrap();
    std::fs::write(root.join("a"), vec![7; 5000]).unwrap();
    std::fs::hard_link(root.join("a"), root.join("b")).unwrap();
    let scanned = names(&Tree::scan(&root).unwrap());
    for format in ["gnu", "pax", "oldgnu"] {
        let out = dir.path().join("out.tar");
        let made = std::process::Command::new("tar")
            .args(["--format", format, "-cf"])
            .arg(&out)
            .arg("-C")
            .arg(&root)
            .arg(".")
            .status()
            .unwrap();
        assert!(made.success());
        let file = File::open(&out).unwrap();
        let size = file.metadata().unwrap().len();
        let layer = layer::read(&SharedFile(Arc::new(file)), size, &Stack::default()).unwrap();
        assert_eq!(names(&layer.tree), scanned, "{format}");
        let at = |path: &[u8]| layer.tree.get(path).unwrap().kind.clone();
        assert_eq!(at(b"a"), at(b"b"), "{format}: one file with two names");
    }
}
