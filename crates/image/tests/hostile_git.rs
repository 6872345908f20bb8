//! Uploads as attackers would make them (notes/control.md X3): packs that lie or ask for more than there is, trees that no
//! work tree can have, and commits that are checked out nowhere.

use flate2::Compression;
use flate2::write::ZlibEncoder;
use kiln_image::bake::{BakeJob, Baked, bake};
use kiln_image::erofs::Reader;
use kiln_image::tree::{Kind, Tree};
use kiln_image::worker::chain;
use kiln_image::{Objects, SourceError, Sources};
use kiln_model::{CommitId, ProjectName};
use kiln_spec::Project;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

struct Site {
    dir: tempfile::TempDir,
    sources: Sources,
    project: ProjectName,
}

/// A row of a tree object: mode, name, object.
type Row<'a> = (&'a str, &'a [u8], &'a str);

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("work");
        std::fs::create_dir(&work).unwrap();
        let site = Self {
            sources: Sources::new(&dir.path().join("repos")),
            project: ProjectName::new("x").unwrap(),
            dir,
        };
        site.git(&["init", "-q"], b"");
        site
    }

    fn git(&self, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let mut child = Command::new("git")
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .arg("-C")
            .arg(self.dir.path().join("work"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{arguments:?}");
        output.stdout
    }

    /// Writes an object as it is, whatever git thinks of it.
    fn object(&self, kind: &str, bytes: &[u8]) -> String {
        let id = self.git(&["hash-object", "-t", kind, "-w", "--literally", "--stdin"], bytes);
        String::from_utf8(id).unwrap().trim().to_owned()
    }

    fn blob(&self, bytes: &[u8]) -> String {
        self.object("blob", bytes)
    }

    fn tree(&self, rows: &[Row<'_>]) -> String {
        let row = |(mode, name, id): &Row<'_>| {
            let id = (0..id.len()).step_by(2).map(|at| u8::from_str_radix(&id[at..at + 2], 16).unwrap());
            [mode.as_bytes(), b" ", name, b"\0", &id.collect::<Vec<u8>>()].concat()
        };
        self.object("tree", &rows.iter().flat_map(row).collect::<Vec<u8>>())
    }

    fn commit_with(&self, tree: &str, more: &str) -> CommitId {
        let who = "a <a@example.invalid> 1700000000 +0000";
        let text = format!("tree {tree}\n{more}author {who}\ncommitter {who}\n\nsubject\n");
        self.object("commit", text.as_bytes()).parse().unwrap()
    }

    fn commit(&self, tree: &str) -> CommitId {
        self.commit_with(tree, "")
    }

    /// A pack of these objects and nothing else.
    fn pack(&self, ids: &[&str]) -> Vec<u8> {
        self.git(&["pack-objects", "--stdout", "-q"], format!("{}\n", ids.join("\n")).as_bytes())
    }

    /// A pack of all objects that were ever written.
    fn pack_all(&self) -> Vec<u8> {
        let all =
            self.git(&["cat-file", "--batch-all-objects", "--batch-check=%(objectname)", "--unordered"], b"");
        self.git(&["pack-objects", "--stdout", "-q"], &all)
    }

    fn accept(&self, commit: &CommitId, pack: &[u8]) -> Result<(), SourceError> {
        let start = Instant::now();
        let result = self.sources.accept(&self.project, commit, &mut &pack[..]);
        assert!(start.elapsed() < Duration::from_secs(60), "it took {:?}", start.elapsed());
        assert_eq!(result.is_ok(), self.sources.has(&self.project, commit));
        let names = std::fs::read_dir(self.dir.path()).unwrap().flatten().map(|entry| entry.file_name());
        let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        names.retain(|name| !matches!(name.as_str(), "work" | "repos" | "objects" | "images" | "cache"));
        assert_eq!(names, [""; 0], "nothing is written beside the repositories");
        result
    }

    /// Refused, whatever the reason.
    #[track_caller]
    fn refused(&self, commit: &CommitId, pack: &[u8], words: &str) {
        let error = self.accept(commit, pack).unwrap_err();
        assert!(chain(&error).contains(words), "{}", chain(&error));
    }

    fn bake(&self, commit: &CommitId, copy: &str) -> Result<(Baked, Tree), String> {
        let text = format!(
            "name = \"x\"\n[images.a]\nbase = \"scratch\"\ncopy = [{copy}]\n[services.a]\nimage = \"a\"\ncommand = [\"/a\"]\n"
        );
        let project = Project::parse(&text, "kiln.toml").unwrap_or_else(|e| panic!("{e}"));
        let job = BakeJob {
            state: self.dir.path().to_owned(),
            project: self.project.clone(),
            commit: commit.clone(),
            recipe: project.images.values().next().unwrap().clone(),
            lock: None,
            mount_points: Default::default(),
            mirror: None,
            program: PathBuf::from("/nonexistent"),
            images: std::collections::BTreeMap::new(),
            registry_auth: None,
            is_builder: false,
            describe: false,
        };
        let baked = bake(&job, &mut |_| {}).map_err(|error| chain(&error))?;
        let objects = Objects::open(&self.dir.path().join("objects")).unwrap();
        let manifest = kiln_image::bake::manifest(&objects, baked.image).unwrap();
        let layer = std::fs::File::open(objects.path(manifest.layers[0].digest)).unwrap();
        Ok((baked, Reader::open(layer).unwrap().tree().unwrap()))
    }
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The head of an object in a pack: its type and size (gitformat-pack).
fn head(kind: u8, mut size: u64) -> Vec<u8> {
    let mut out = vec![kind << 4 | (size & 15) as u8];
    size >>= 4;
    while size > 0 {
        *out.last_mut().unwrap() |= 0x80;
        out.push((size & 0x7F) as u8);
        size >>= 7;
    }
    out
}

const BLOB: u8 = 3;
const OFS_DELTA: u8 = 6;

/// A pack of raw entries, with a right checksum.
fn raw_pack(count: u32, entries: &[Vec<u8>]) -> Vec<u8> {
    let mut out = b"PACK\0\0\0\x02".to_vec();
    out.extend(count.to_be_bytes());
    entries.iter().for_each(|entry| out.extend(entry));
    out.extend(sha1(&out));
    out
}

fn sha1(bytes: &[u8]) -> Vec<u8> {
    let mut child =
        Command::new("sha1sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("coreutils");
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let text = child.wait_with_output().unwrap().stdout;
    let text = std::str::from_utf8(&text[..40]).unwrap();
    (0..20).map(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).unwrap()).collect()
}

/// A size as deltas write it.
fn varint(mut n: u64) -> Vec<u8> {
    let mut out = vec![];
    loop {
        out.push((n & 0x7F) as u8);
        n >>= 7;
        if n == 0 {
            return out;
        }
        *out.last_mut().unwrap() |= 0x80;
    }
}

#[test]
fn trees_that_no_work_tree_can_have() {
    let site = Site::new();
    let blob = site.blob(b"x");
    let empty = site.tree(&[("100644", b"a", &blob)]);
    for (what, rows) in [
        ("..", vec![("40000", &b".."[..], empty.as_str())]),
        (".", vec![("40000", b".", &empty)]),
        (".git", vec![("40000", b".git", &empty)]),
        (".GIT", vec![("40000", b".GIT", &empty)]),
        ("git~1", vec![("40000", b"git~1", &empty)]),
        (".git with a mark that is not seen", vec![("40000", ".g\u{200c}it".as_bytes(), &empty)]),
        ("a slash", vec![("100644", b"a/b", &blob)]),
        ("an absolute path", vec![("100644", b"/etc/passwd", &blob)]),
        ("no name", vec![("100644", b"", &blob)]),
        ("one name twice", vec![("100644", b"a", &blob), ("100644", b"a", &blob)]),
        ("a link and a folder of one name", vec![("120000", b"a", &blob), ("40000", b"a", &empty)]),
        (
            "a link and a folder of one name, apart",
            vec![("120000", b"a", &blob), ("100644", b"a.b", &blob), ("40000", b"a", &empty)],
        ),
        ("another order", vec![("100644", b"b", &blob), ("100644", b"a", &blob)]),
        ("a mode that is none", vec![("777", b"a", &blob)]),
        ("a mode with a zero before it", vec![("040000", b"a", &empty)]),
        ("no object", vec![("100644", b"a", &"0".repeat(40))]),
        (".gitmodules as a link", vec![("120000", b".gitmodules", &blob)]),
    ] {
        let commit = site.commit(&site.tree(&rows));
        assert!(site.accept(&commit, &site.pack_all()).is_err(), "{what}");
    }
    let good = site.commit(&empty);
    let other = Site::new();
    assert!(other.accept(&good, &site.pack_all()).is_err(), "what is beside the commit is checked as well");
    site.accept(&good, &site.pack(&[good.as_str(), &empty, &blob])).unwrap();
}

#[test]
fn set_id_modes_and_torn_trees() {
    let site = Site::new();
    let blob = site.blob(b"x");
    for (mode, is_taken) in [
        ("100644", true),
        ("100755", true),
        ("100664", true),
        ("104755", false),
        ("060000", false),
        ("140000", false),
    ] {
        let tree = site.tree(&[(mode, b"a", &blob)]);
        let commit = site.commit(&tree);
        let accepted = site.accept(&commit, &site.pack(&[commit.as_str(), &tree, &blob])).is_ok();
        if !accepted {
            assert!(!is_taken || mode == "100664", "{mode}");
            continue;
        }
        // Git itself takes some; then the image has nothing of them but read, write and execute, or git says that it is
        // a submodule.
        match site.bake(&commit, "{ from = \"a\", to = \"/a\" }") {
            Ok((_, found)) => assert_eq!(found.get(b"a").unwrap().mode & !0o777, 0, "{mode}"),
            Err(error) => assert!(error.contains("submodules") && !is_taken, "{mode}: {error}"),
        }
    }
    for bytes in [&b"100644 a"[..], b"100644 a\0short", b"garbage", b"100644\0a", &[0xFF; 100]] {
        let tree = site.object("tree", bytes);
        let commit = site.commit(&tree);
        assert!(site.accept(&commit, &site.pack(&[commit.as_str(), &tree, &blob])).is_err(), "{bytes:?}");
    }
}

#[test]
fn commits_that_are_none() {
    let site = Site::new();
    let blob = site.blob(b"x");
    let tree = site.tree(&[("100644", b"a", &blob)]);
    let who = "a <a@example.invalid> 1700000000 +0000";
    for text in [
        format!("tree {tree}\n\nno author\n"),
        format!("author {who}\ncommitter {who}\n\nno tree\n"),
        format!("tree {blob}\nauthor {who}\ncommitter {who}\n\na file as its tree\n"),
        format!("tree {tree}\nauthor {who}\ncommitter a <a> 99999999999999999999 +0000\n\nlate\n"),
        format!("tree {tree}\nauthor {who}\ncommitter a <a> -5 +0000\n\nearly\n"),
        format!("tree {tree}\nauthor {who}\ncommitter a <a> soon\n\nno time\n"),
        format!("tree {tree}\nauthor {who}\ncommitter {who}\0\n\na zero byte\n"),
        String::new(),
    ] {
        let commit: CommitId = site.object("commit", text.as_bytes()).parse().unwrap();
        assert!(site.accept(&commit, &site.pack(&[commit.as_str(), &tree, &blob])).is_err(), "{text}");
    }
    let file: CommitId = blob.parse().unwrap();
    assert!(
        site.accept(&file, &site.pack(&[&blob])).is_err() || site.sources.info(&site.project, &file).is_err()
    );
}

#[test]
fn packs_with_less_or_more_than_the_commit() {
    let site = Site::new();
    let (blob, other) = (site.blob(b"x"), site.blob(b"of nobody"));
    let inner = site.tree(&[("100644", b"a", &blob)]);
    let tree = site.tree(&[("40000", b"d", &inner)]);
    let commit = site.commit(&tree);
    let all = [commit.as_str(), &tree, &inner, &blob];
    for n in 0..all.len() {
        let rest: Vec<&str> = all.iter().enumerate().filter(|(at, _)| *at != n).map(|(_, id)| *id).collect();
        let other = Site::new();
        assert!(other.accept(&commit, &site.pack(&rest)).is_err(), "without object {n}");
    }
    site.accept(&commit, &site.pack(&[commit.as_str(), &tree, &inner, &blob, &other])).unwrap();
    assert_eq!(site.sources.list(&site.project, &commit).unwrap().len(), 1, "more is of no use, and no harm");
}

/// Later history, or none, takes nothing from a commit that was kept.
#[test]
fn a_reference_that_was_moved_by_force() {
    let site = Site::new();
    let make = |text: &[u8]| {
        let blob = site.blob(text);
        let tree = site.tree(&[("100644", b"a", &blob)]);
        let commit = site.commit(&tree);
        let pack = site.pack(&[commit.as_str(), &tree, &blob]);
        (commit, pack)
    };
    let ((first, first_pack), (second, second_pack)) = (make(b"first"), make(b"second"));
    site.accept(&first, &first_pack).unwrap();
    site.accept(&second, &second_pack).unwrap();
    let read = |commit| site.sources.read(&site.project, commit, "a", 100).unwrap().unwrap();
    assert_eq!((read(&first), read(&second)), (b"first".to_vec(), b"second".to_vec()));
    // The name of a commit is its content: a pack of another one cannot take its place.
    let fresh = Site::new();
    assert!(fresh.accept(&first, &second_pack).is_err());
}

#[test]
fn names_that_are_long_strange_or_no_text() {
    let site = Site::new();
    let blob = site.blob(b"x");
    for (name, is_file) in [
        (&b"\xFF\xFE"[..], true),
        (b"a\nb", true),
        (b"-rf", true),
        (b"a\\b", true),
        (b"$(touch x)", true),
        (&[b'n'; 255], true),
        (&[b'n'; 256], false),
        (&[b'n'; 5000], false),
    ] {
        let inner = site.tree(&[("100644", name, &blob)]);
        let tree = site.tree(&[("40000", b"d", &inner)]);
        let commit = site.commit(&tree);
        let taken = site.accept(&commit, &site.pack(&[commit.as_str(), &tree, &inner, &blob]));
        let baked =
            taken.map_err(|e| chain(&e)).and_then(|()| site.bake(&commit, "{ from = \"d/\", to = \"/d\" }"));
        assert_eq!(baked.is_ok(), is_file, "{:?}: {:?}", String::from_utf8_lossy(name), baked.as_ref().err());
        if let Ok((_, found)) = baked {
            assert!(found.get(&[b"d/", name].concat()).is_some());
        }
    }
}

#[test]
fn a_hundred_thousand_entries_and_deep_folders() {
    let site = Site::new();
    let blob = site.blob(b"");
    let names: Vec<String> = (0..100_000).map(|n| format!("{n:06}")).collect();
    let rows: Vec<Row<'_>> = names.iter().map(|name| ("100644", name.as_bytes(), blob.as_str())).collect();
    let inner = site.tree(&rows);
    let tree = site.tree(&[("40000", b"d", &inner)]);
    let commit = site.commit(&tree);
    site.accept(&commit, &site.pack(&[commit.as_str(), &tree, &inner, &blob])).unwrap();
    assert_eq!(site.sources.list(&site.project, &commit).unwrap().len(), 100_000);
    let start = Instant::now();
    let (_, found) = site.bake(&commit, "{ from = \"d/\", to = \"/d\" }").unwrap();
    assert!(found.len() > 100_000);
    println!("100 000 empty files were baked in {:.1} s", start.elapsed().as_secs_f64());

    // Each tree holds the one before twice: 2^40 paths in 40 objects.
    let mut ids = vec![site.tree(&[("100644", b"a", &blob)])];
    for _ in 0..40 {
        let below = ids.last().unwrap();
        ids.push(site.tree(&[("40000", b"a", below), ("40000", b"b", below)]));
    }
    let commit = site.commit(ids.last().unwrap());
    let mut all: Vec<&str> = ids.iter().map(String::as_str).collect();
    all.extend([commit.as_str(), &blob]);
    site.accept(&commit, &site.pack(&all)).unwrap();
    let start = Instant::now();
    assert!(site.bake(&commit, "{ from = \"a/\", to = \"/d\" }").is_err());
    assert!(start.elapsed() < Duration::from_secs(60), "it took {:?}", start.elapsed());
}

#[test]
fn objects_that_lie_about_their_size() {
    let site = Site::new();
    let commit: CommitId = "0123456789".repeat(4).parse().unwrap();
    let start = Instant::now();
    for (said, held) in [(1_u64 << 40, 10), (10, 50 << 20), (u64::MAX >> 4, 1)] {
        let entry = [head(BLOB, said), zlib(&vec![0; held])].concat();
        assert!(site.accept(&commit, &raw_pack(1, &[entry])).is_err(), "{said} said, {held} held");
    }
    let entry = [head(BLOB, 1), zlib(b"x")].concat();
    for count in [0, 2, u32::MAX] {
        assert!(
            site.accept(&commit, &raw_pack(count, std::slice::from_ref(&entry))).is_err(),
            "{count} objects said"
        );
    }
    let mut flipped = raw_pack(1, std::slice::from_ref(&entry));
    *flipped.last_mut().unwrap() ^= 1;
    assert!(site.accept(&commit, &flipped).is_err());
    for bytes in [&b""[..], b"PACK", b"PACK\0\0\0\x63\0\0\0\x01", b"GIF89a", &[0; 5000]] {
        assert!(site.accept(&commit, bytes).is_err());
    }
    assert!(start.elapsed() < Duration::from_secs(30));
}

/// Deltas of a few kilobytes that ask for 3.5 GiB: git may not take more than its bound.
#[test]
fn deltas_that_explode() {
    let site = Site::new();
    let commit: CommitId = "0123456789".repeat(4).parse().unwrap();
    const BASE: u64 = 15 << 20;
    let base = [head(BLOB, BASE), zlib(&vec![0; BASE as usize])].concat();
    let copies = 240_u64;
    let mut delta = [varint(BASE), varint(copies * BASE)].concat();
    for _ in 0..copies {
        // Copy, from offset 0, a size of three bytes.
        delta.extend([0x80 | 0x70]);
        delta.extend(&BASE.to_le_bytes()[..3]);
    }
    let mut offset = vec![(base.len() & 0x7F) as u8];
    let mut n = base.len() as u64 >> 7;
    while n > 0 {
        n -= 1;
        offset.insert(0, 0x80 | (n & 0x7F) as u8);
        n >>= 7;
    }
    let entry = [head(OFS_DELTA, delta.len() as u64), offset, zlib(&delta)].concat();
    let pack = raw_pack(2, &[base, entry]);
    assert!(pack.len() < 100_000, "{} bytes", pack.len());
    let start = Instant::now();
    site.refused(&commit, &pack, "emory");
    assert!(start.elapsed() < Duration::from_secs(20), "it took {:?}", start.elapsed());

    // Two deltas, each of the other, and one of what is not there.
    let loose = [head(7, 4), vec![0xAB; 20], zlib(&[1, 1, 1, b'x'])].concat();
    assert!(site.accept(&commit, &raw_pack(1, &[loose])).is_err());
}

#[test]
fn files_that_are_larger_than_they_may_be() {
    let site = Site::new();
    let blob = site.blob(&vec![b' '; 40 << 20]);
    let tree = site.tree(&[("100644", b"kiln.toml", &blob)]);
    let commit = site.commit(&tree);
    let pack = site.pack(&[commit.as_str(), &tree, &blob]);
    assert!(pack.len() < 1 << 20, "40 MB of spaces in {} bytes", pack.len());
    site.accept(&commit, &pack).unwrap();
    let read = site.sources.read(&site.project, &commit, "kiln.toml", 256 << 10);
    assert!(matches!(read, Err(SourceError::FileTooLarge { .. })), "{read:?}");
}

#[test]
fn links_lead_nowhere_but_into_the_image() {
    let site = Site::new();
    let outside = site.dir.path().join("work/outside");
    let mark = site.blob(b"written");
    let targets = [
        "../../../../../../../../../../etc",
        "/etc",
        outside.to_str().unwrap(),
        "/proc/self/root/etc",
        "x/../../etc",
    ];
    for target in targets {
        let link = site.blob(target.as_bytes());
        let tree = site.tree(&[("100644", b"file", &mark), ("120000", b"link", &link)]);
        let commit = site.commit(&tree);
        site.accept(&commit, &site.pack(&[commit.as_str(), &tree, &link, &mark])).unwrap();
        let copy =
            "{ from = \"link\", to = \"/srv/l\" }, { from = \"file\", to = \"/srv/l/kiln-hostile-mark\" }";
        let (_, found) = site.bake(&commit, copy).unwrap();
        let written: Vec<_> = found.iter().filter(|(path, _)| path.ends_with(b"kiln-hostile-mark")).collect();
        assert_eq!(written.len(), 1, "{target}: the file is in the image");
        assert!(matches!(found.get(b"srv/l").unwrap().kind, Kind::Symlink(_)));
        for host in [Path::new("/etc"), &outside] {
            assert!(!host.join("kiln-hostile-mark").exists(), "{target}: it left the image");
        }
    }
    // A link to itself, and one that is longer than any path.
    for target in [b"l".to_vec(), vec![b'x'; 70_000]] {
        let link = site.blob(&target);
        let tree = site.tree(&[("100644", b"file", &mark), ("120000", b"l", &link)]);
        let commit = site.commit(&tree);
        if site.accept(&commit, &site.pack(&[commit.as_str(), &tree, &link, &mark])).is_ok() {
            let copy = "{ from = \"l\", to = \"/l\" }, { from = \"file\", to = \"/l/a\" }";
            assert!(site.bake(&commit, copy).is_err());
        }
    }
}

/// Nothing is checked out, so no attribute, filter, hook or submodule has a say.
#[test]
fn submodules_attributes_and_pointers_are_only_files() {
    let site = Site::new();
    let commit_of_sub = "1".repeat(40);
    let attributes = site
        .blob(b"* filter=evil text eol=crlf ident export-ignore export-subst working-tree-encoding=UTF-16\n");
    let pointer_text =
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n$Id$ $Format:%H$\r\n";
    let pointer = site.blob(pointer_text);
    let modules = |text: &[u8]| {
        let modules = site.blob(text);
        let tree = site.tree(&[
            ("100644", b".gitattributes", &attributes),
            ("100644", b".gitmodules", &modules),
            ("100644", b"big", &pointer),
            ("160000", b"sub\r", &commit_of_sub),
        ]);
        let commit = site.commit(&tree);
        let pack = site.pack(&[commit.as_str(), &tree, &attributes, &modules, &pointer]);
        (commit, pack)
    };
    for text in [
        &b"[submodule \"x\"]\n\tpath = sub\n\turl = -u./payload\n"[..],
        b"[submodule \"../../x\"]\n\tpath = sub\n\turl = https://a.test/x\n",
        b"[submodule \"x\"]\n\tpath = -sub\n\turl = https://a.test/x\n",
        b"[submodule \"x\"]\n\tpath = sub\n\turl = https://a.test/x\n\tupdate = !touch x\n",
    ] {
        let (commit, pack) = modules(text);
        assert!(site.accept(&commit, &pack).is_err(), "{}", String::from_utf8_lossy(text));
    }
    let (commit, pack) = modules(b"[submodule \"x\"]\n\tpath = \"sub\\r\"\n\turl = https://a.test/x\n");
    site.accept(&commit, &pack).unwrap();
    let (_, found) = site.bake(&commit, "{ from = \"big\", to = \"/big\" }").unwrap();
    let Kind::File(content) = &found.get(b"big").unwrap().kind else { panic!("no file") };
    assert_eq!(*content.read().unwrap(), pointer_text[..]);
    let error = site.bake(&commit, "{ from = \"./\", to = \"/all\" }").unwrap_err();
    assert!(error.contains("submodules are not available"), "{error}");
}

#[test]
fn hooks_and_configuration_of_a_kept_repository_are_not_run() {
    let site = Site::new();
    let blob = site.blob(b"x");
    let tree = site.tree(&[("100644", b"a", &blob)]);
    let commit = site.commit(&tree);
    let pack = site.pack(&[commit.as_str(), &tree, &blob]);
    site.accept(&commit, &pack).unwrap();
    // As if somebody had got at the state folder, or a later git put something there.
    let repository = site.dir.path().join("repos/x.git");
    let (trap, mark) = (repository.join("trap"), repository.join("mark"));
    std::fs::write(&trap, format!("#!/bin/sh\ntouch '{}'\n", mark.display())).unwrap();
    std::fs::set_permissions(&trap, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::create_dir_all(repository.join("hooks")).unwrap();
    for hook in ["post-update", "reference-transaction", "proc-receive", "push-to-checkout"] {
        std::fs::copy(&trap, repository.join("hooks").join(hook)).unwrap();
    }
    let mut config = std::fs::read_to_string(repository.join("config")).unwrap();
    for key in ["fsmonitor", "sshCommand", "pager", "editor", "gitProxy"] {
        config.push_str(&format!("[core]\n\t{key} = {}\n", trap.display()));
    }
    config.push_str(&format!("[extensions]\n\tpartialClone = o\n[remote \"o\"]\n\tpromisor = true\n\turl = ext::{}\n[protocol \"ext\"]\n\tallow = always\n", trap.display()));
    std::fs::write(
        repository.join("config"),
        config.replace("repositoryformatversion = 0", "repositoryformatversion = 1"),
    )
    .unwrap();
    site.accept(&commit, &pack).unwrap();
    site.sources.info(&site.project, &commit).unwrap();
    site.sources.list(&site.project, &commit).unwrap();
    let absent = "2".repeat(40).parse().unwrap();
    assert!(site.sources.info(&site.project, &absent).is_err());
    assert!(site.sources.list(&site.project, &absent).is_err());
    assert!(!mark.exists(), "a program of the repository was run");
}
