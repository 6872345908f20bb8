//! Every decoder of what strangers wrote, fed with damaged copies of good inputs: it may refuse them, but it does not panic,
//! does not hang, and what it takes keeps its promises. `KILN_FUZZ` is the seconds per decoder (default 1; `just nightly` takes
//! longer), `KILN_SEED` the first seed; a failure prints the seed of its case.

use kiln_image::debian::deb::Deb;
use kiln_image::debian::index::{self, Index};
use kiln_image::erofs::{self, Reader};
use kiln_image::lint;
use kiln_image::tree::{Content, Kind, Node, Tree};
use kiln_spec::{Lock, Project};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// One case may take so long in a debug build on a busy machine.
const CASE_MAX: Duration = Duration::from_secs(10);

/// xorshift64*: a case is known by its seed alone.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Values at the edges of sizes, offsets, lines, strings and compressions.
const EDGES: &[&[u8]] = &[
    b"\0",
    b"\xFF",
    b"\x7F",
    b"\x80",
    b"\n",
    b" ",
    b"\"",
    b"=",
    b"/",
    b"../",
    b"-1",
    b"99999999999999999999",
    b"\xFF\xFF\xFF\xFF",
    b"\0\0\0\0\0\0\0\0",
    b"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F",
    b"\x00\x10\x00\x00",
    b"[[",
    b"{",
    b"\xC3\x28",
];

fn damaged(good: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..=dice.below(6) {
        if bytes.is_empty() {
            return bytes;
        }
        let at = dice.below(bytes.len());
        match dice.below(7) {
            0 => bytes[at] ^= 1 << dice.below(8),
            1 => bytes[at] = dice.next() as u8,
            2 => bytes.truncate(at),
            3 => {
                let end = (at + 1 + dice.below(64)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                let to = dice.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            4 => drop(bytes.drain(at..(at + 1 + dice.below(64)).min(bytes.len()))),
            _ => {
                let edge = EDGES[dice.below(EDGES.len())];
                let end = (at + edge.len()).min(bytes.len());
                bytes.splice(at..end, edge.iter().copied());
            }
        }
    }
    bytes
}

fn fuzz(what: &str, good: &[Vec<u8>], decode: impl Fn(&[u8]) -> bool) {
    let number =
        |name: &str, default| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (seconds, first) = (number("KILN_FUZZ", 1_u64), number("KILN_SEED", 1_u64));
    for bytes in good {
        assert!(decode(bytes), "{what}: the input that is to be damaged has to be good");
    }
    let (end, mut n, mut n_taken) = (Instant::now() + Duration::from_secs(seconds), 0_u64, 0_u64);
    while Instant::now() < end {
        let seed = first.wrapping_add(n).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut dice = Dice(seed);
        let bytes = damaged(&good[dice.below(good.len())], &mut dice);
        let start = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| decode(&bytes))) {
            Ok(taken) => n_taken += u64::from(taken),
            Err(_) => panic!("{what}: KILN_SEED={} panics", first.wrapping_add(n)),
        }
        assert!(
            start.elapsed() < CASE_MAX,
            "{what}: KILN_SEED={} takes {:?}",
            first.wrapping_add(n),
            start.elapsed()
        );
        n += 1;
    }
    println!("{what}: {n} damaged inputs, {n_taken} taken all the same");
}

fn tar_of(rows: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, content) in rows {
        let mut header = tar::Header::new_gnu();
        header.set_path(path).unwrap();
        header.set_entry_type(*kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(7);
        let body = if kind.is_file() { *content } else { "" };
        if !kind.is_file() && !content.is_empty() {
            header.set_link_name(content).unwrap();
        }
        header.set_size(body.len() as u64);
        header.set_cksum();
        builder.append(&header, body.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn packages() -> Vec<Vec<u8>> {
    use tar::EntryType as T;
    let long = "d/".repeat(60);
    let control = tar_of(&[
        ("control", T::Regular, "Package: aa\nArchitecture: all\n"),
        ("conffiles", T::Regular, "/etc/a\n"),
    ]);
    let data = tar_of(&[
        ("usr", T::Directory, ""),
        ("usr/a", T::Regular, "body"),
        ("usr/b", T::Symlink, "../etc/x"),
        ("usr/c", T::Link, "usr/a"),
    ]);
    let mut with_long = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    with_long.append_data(&mut header, &long, &b"x"[..]).unwrap();
    let with_long = with_long.into_inner().unwrap();
    let xz = |bytes: &[u8]| {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let deb = |members: &[(&str, &[u8])]| {
        let mut out = b"!<arch>\n".to_vec();
        for (name, body) in members {
            out.extend(
                format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100_644, body.len())
                    .into_bytes(),
            );
            out.extend_from_slice(body);
            out.resize(out.len().next_multiple_of(2), b'\n');
        }
        out
    };
    let (control_xz, data_zst) = (xz(&control), zstd::encode_all(&data[..], 1).unwrap());
    vec![
        deb(&[("debian-binary", b"2.0\n"), ("control.tar", &control), ("data.tar", &data)]),
        deb(&[("debian-binary", b"2.0\n"), ("control.tar.xz", &control_xz), ("data.tar.zst", &data_zst)]),
        deb(&[("debian-binary", b"2.0\n"), ("control.tar", &control), ("data.tar", &with_long)]),
    ]
}

#[test]
fn packages_and_the_archives_in_them() {
    fuzz("deb", &packages(), |bytes| {
        let Ok(deb) = Deb::read(bytes) else { return false };
        for entry in &deb.entries {
            assert!(
                !entry.path.split(|b| *b == b'/').any(|part| part == b".." || part == b"."),
                "{:?}",
                entry.path
            );
            assert!(!entry.path.starts_with(b"/") && !entry.path.contains(&0), "{:?}", entry.path);
            assert!(entry.mode <= 0o7777 && entry.uid < 65536 && entry.gid < 65536);
        }
        deb.conffiles().count();
        true
    });
}

#[test]
fn indexes_and_their_signed_lists() {
    let sum = "00000000000000000000000000000000000000000000000000000000000000aa";
    let stanza = |name: &str| {
        format!(
            "Package: {name}\nVersion: 1:1.10-2+b1~rc1\nArchitecture: amd64\nDescription: x\n more: y\nDepends: b (>= 1), c | d\nProvides: e (= 2)\nEssential: yes\nFilename: pool/main/x/{name}.deb\nSize: 5\nSHA256: {sum}\n\n"
        )
    };
    let text = (stanza("aa") + &stanza("bb")).into_bytes();
    fuzz("index", &[text], |bytes| {
        let mut index = Index::default();
        let taken = index.add("bookworm", bytes).is_ok();
        for name in index.names().map(str::to_owned).collect::<Vec<_>>() {
            assert!(!name.contains('/') && !name.starts_with(['-', '.']), "{name:?}");
            index
                .versions(&name)
                .iter()
                .for_each(|package| assert!(!package.path.contains("/../"), "{}", package.path));
        }
        taken
    });
    let list = format!(
        "Origin: Debian\nCodename: bookworm\nSuite: oldstable\nSHA256:\n {sum} 1234 main/binary-amd64/Packages.xz\n {sum} 9 main/x\n"
    );
    fuzz("InRelease", &[list.into_bytes()], |bytes| {
        let text = String::from_utf8_lossy(bytes);
        index::listed("bookworm", &text, "main/binary-amd64/Packages.xz").is_ok()
    });
}

#[test]
fn locks_and_projects() {
    let sum = format!("sha256:{}", "a".repeat(64));
    let lock = format!(
        "version = 1\npackages = [\n  {{ name = \"aa\", version = \"1:2.0~rc1-3\", architecture = \"amd64\", sha256 = \"{sum}\", size = 5, path = \"pool/main/a/aa_1%3a2.deb\", suite = \"bookworm\", used_by = [\"debian:bookworm\"] }},\n]\n\n[suites]\nbookworm = {{ in_release = \"{sum}\" }}\n\n[images]\nweb = {{ base = \"debian:bookworm\", recipe = \"{sum}\" }}\n"
    );
    fuzz("kiln.lock", &[lock.into_bytes()], |bytes| {
        let Ok(lock) = Lock::parse(&String::from_utf8_lossy(bytes)) else { return false };
        assert_eq!(
            Lock::parse(&lock.to_text()).ok().as_ref(),
            Some(&lock),
            "what is taken is written as it is read"
        );
        for package in &lock.packages {
            assert!(package.path.starts_with("pool/") && !package.path.contains("/../"), "{}", package.path);
        }
        true
    });
    let examples = ["shop", "guestbook"].map(|name| {
        std::fs::read(format!("{}/../../examples/{name}/kiln.toml", env!("CARGO_MANIFEST_DIR"))).unwrap()
    });
    fuzz("kiln.toml", &examples, |bytes| {
        match Project::parse(&String::from_utf8_lossy(bytes), "kiln.toml") {
            Ok(_) => true,
            Err(errors) => {
                let text = errors.to_string();
                assert!(text.len() < 64 << 10, "{} bytes", text.len());
                assert!(
                    !text.contains(|c: char| c.is_control() && c != '\n'),
                    "{text:?} would steer a terminal"
                );
                false
            }
        }
    });
}

fn tree() -> Tree {
    let mut tree = Tree::new();
    let dir = Node::dir(0o755, 1_700_000_000);
    tree.insert(b"", dir.clone()).unwrap();
    tree.insert(b"d", dir).unwrap();
    let file = |bytes: Vec<u8>| Node::file(Content::Bytes(bytes.into()), 0o644, 5);
    for (name, size) in [("a", 0), ("b", 10), ("d/c", 5000), ("d/e", 4096)] {
        tree.insert(name.as_bytes(), file(vec![7; size])).unwrap();
    }
    let link = Node { kind: Kind::Symlink(b"../a".to_vec()), ..Node::dir(0o777, 9) };
    tree.insert(b"d/l", link).unwrap();
    let xattrs = std::sync::Arc::new([(b"user.a".to_vec(), vec![1; 40])].into());
    tree.insert(b"d/x", Node { xattrs, ..file(vec![1]) }).unwrap();
    tree
}

/// The checksum of the superblock is made right again, or nothing behind it would be reached.
fn summed(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.len() >= 4096 {
        bytes[1028..1032].fill(0);
        let sum = !crc32c::crc32c(&bytes[1024..4096]);
        bytes[1028..1032].copy_from_slice(&sum.to_le_bytes());
    }
    bytes
}

#[test]
fn layers_and_the_lint_over_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layer");
    std::fs::write(&path, b"").unwrap();
    let mut file =
        std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    let mut good = Vec::new();
    erofs::write(&tree(), &mut file).unwrap();
    std::io::Read::read_to_end(&mut std::fs::File::open(&path).unwrap(), &mut good).unwrap();
    let facts = lint::Facts { origin: lint::Origin::Script, newest: 0, host: "build-host-7".into() };
    fuzz("erofs", &[good], |bytes| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&summed(bytes.to_vec())).unwrap();
        let Ok(reader) = Reader::open(file) else { return false };
        for path in [&b"d/c"[..], b"d/x", b"none/x", b"d/l"] {
            if let Ok(Some(found)) = reader.get(path) {
                let _ = reader.read(&found);
            }
        }
        let Ok(tree) = reader.tree() else { return false };
        for (path, _) in tree.iter().filter(|(path, _)| !path.is_empty()) {
            assert!(!path.split(|b| *b == b'/').any(|part| matches!(part, b"" | b"." | b"..")), "{path:?}");
        }
        lint::check(&tree, &facts).is_ok()
    });
}

#[test]
fn files_that_the_lint_reads() {
    let mut der = vec![0x30, 0x2E, 2, 1, 0, 0x30, 5, 6, 3, 0x2B, 0x65, 0x70, 4, 0x22, 4, 0x20];
    der.extend([7; 32]);
    let good = [
        format!("-----BEGIN {} KEY-----\nMC4CAQAwBQYDK2VwBCIEIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH\n-----END", "PRIVATE").into_bytes(),
        b"PuTTY-User-Key-File-3: x\nPrivate-Lines: 1\nAGE-SECRET-KEY-1QQ PrivateKey = abc\nLS0tLS1CRUdJTiBQUklWQVRF".to_vec(),
        b"url = postgres://shop:hunter22%21@db/x\nghp_abc glpat-x AKIAQ3EGRIJ5KLMNOPQS\n_authToken=x\nmachine a password b".to_vec(),
        b"{\"auths\":{\"a\":{\"auth\":\"b\"}}}".to_vec(),
        b"root:*:1::\nme:$6$abc$defghijklmnopqrstu:1::".to_vec(),
        b"\xA7\r\r\n\0\0\0\0\x01\0\0\0\x02\0\0\0".to_vec(),
        b"127.0.0.1 localhost\n10.0.0.1 build-host-7".to_vec(),
        [&[0x95, 0, 100, 4, 0, 0, 0, 0, 1][..], &[0; 94], &[0xB4]].concat(),
        der,
    ];
    let names = [
        "x",
        "a.conf",
        "etc/shadow",
        "etc/hosts",
        "etc/machine-id",
        ".netrc",
        ".pgpass",
        ".git-credentials",
        ".npmrc",
        ".pypirc",
        ".docker/config.json",
        "__pycache__/a.cpython-311.pyc",
        "var/lib/dpkg/info/a.md5sums",
        "var/lib/dpkg/status",
    ];
    fuzz("lint", &good, |bytes| {
        for origin in [lint::Origin::Packages, lint::Origin::Script] {
            let mut tree = Tree::new();
            tree.insert(b"", Node::dir(0o755, 0)).unwrap();
            for name in names.iter().chain(&["a.py"]) {
                for (at, _) in name.match_indices('/') {
                    tree.insert(&name.as_bytes()[..at], Node::dir(0o755, 0)).unwrap();
                }
                tree.insert(name.as_bytes(), Node::file(Content::Bytes(bytes.into()), 0o644, 0)).unwrap();
            }
            let facts = lint::Facts { origin, newest: 0, host: "build-host-7".into() };
            lint::check(&tree, &facts).unwrap();
        }
        true
    });
}
