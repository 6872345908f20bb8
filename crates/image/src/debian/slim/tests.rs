//! How files of packages come together.

use super::*;
use crate::debian::deb::Kind as DebKind;

fn deb(name: &str, fields: &str, entries: &[(&str, DebKind)]) -> Deb {
    let control = format!("Package: {name}\nArchitecture: all\n{fields}");
    let control = BTreeMap::from([("control".to_owned(), (control.into_bytes(), 0o644))]);
    let entry = |(path, kind): &(&str, DebKind)| {
        let kind = match kind {
            DebKind::Dir => DebKind::Dir,
            DebKind::File(bytes) => DebKind::File(bytes.clone()),
            DebKind::Symlink(target) => DebKind::Symlink(target.clone()),
            DebKind::Hardlink(target) => DebKind::Hardlink(target.clone()),
        };
        Entry { path: path.as_bytes().to_vec(), kind, mode: 0o644, uid: 0, gid: 0, mtime: 5 }
    };
    Deb { control, entries: entries.iter().map(entry).collect() }
}

fn file(text: &str) -> DebKind {
    DebKind::File(text.as_bytes().to_vec())
}

fn root(debs: Vec<Deb>) -> Result<Root, SlimError> {
    let mut root = Root::new(5)?;
    for mut deb in debs {
        root.package(&mut deb)?;
    }
    Ok(root)
}

#[test]
fn files_go_through_links_of_directories() {
    let root = root(vec![
        deb(
            "aa",
            "",
            &[("lib", DebKind::Dir), ("lib/x", file("1")), ("opt/a", DebKind::Symlink(b"../srv".to_vec()))],
        ),
        deb("bb", "", &[("opt/a/y", file("2")), ("bin/z", DebKind::Hardlink(b"lib/x".to_vec()))]),
    ])
    .unwrap();
    assert_eq!(root.read("usr/lib/x"), Some(&b"1"[..]));
    assert_eq!(root.read("lib/x"), Some(&b"1"[..]));
    assert_eq!(root.read("srv/y"), Some(&b"2"[..]));
    assert_eq!(root.read("usr/bin/z"), Some(&b"1"[..]));
}

#[test]
fn a_file_of_two_packages_needs_a_replaces() {
    let two = |fields: [&str; 2]| {
        let [a, b] = fields;
        root(vec![deb("aa", a, &[("etc/x", file("a"))]), deb("bb", b, &[("etc/x", file("b"))])])
    };
    assert!(matches!(two(["", ""]), Err(SlimError::Twice { .. })));
    assert_eq!(two(["", "Replaces: aa (<< 2)\n"]).unwrap().read("etc/x"), Some(&b"b"[..]));
    assert_eq!(two(["Replaces: bb\n", ""]).unwrap().read("etc/x"), Some(&b"a"[..]));
}

#[test]
fn hostile_packages_are_refused() {
    let link = |to: &str| DebKind::Symlink(to.as_bytes().to_vec());
    let circle = root(vec![deb("aa", "", &[("a", link("b")), ("b", link("a")), ("a/x", file(""))])]);
    assert!(matches!(circle, Err(SlimError::Place { .. })));
    let below_a_file = root(vec![deb("aa", "", &[("a", file("")), ("a/x", file(""))])]);
    assert!(matches!(below_a_file, Err(SlimError::Place { .. })));
    let over_a_directory = root(vec![deb("aa", "", &[("a", DebKind::Dir), ("a", file(""))])]);
    assert!(matches!(over_a_directory, Err(SlimError::Place { .. })));
    let nowhere = root(vec![deb("aa", "", &[("a", DebKind::Hardlink(b"b".to_vec()))])]);
    assert!(matches!(nowhere, Err(SlimError::Place { .. })));
    // A link that leads out of the root leads to the root.
    let out = root(vec![deb("aa", "", &[("a", link("../../..")), ("a/etc/x", file("1"))])]).unwrap();
    assert_eq!(out.read("etc/x"), Some(&b"1"[..]));
}
