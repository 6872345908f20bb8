//! Layers of OCI archives as the kernel joins them: whiteouts, opaque folders, hard links and capabilities mean there what
//! they mean in [`Tree::merge`].
//!
//! Needs root for mounts, which are in a namespace of its own.

use kiln_image::erofs::{self, Reader, Stack};
use kiln_image::oci::layer;
use kiln_image::tree::{Kind, SharedFile, Tree};
use kiln_sys::mount;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

fn main() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: mounts need root");
        return;
    }
    // Before any thread exists.
    kiln_sys::namespace::unshare(kiln_sys::process::Namespaces::MOUNT).unwrap();
    mount::make_private().unwrap();
    let attributes = mount::Attributes::default();
    mount::attach_at(mount::filesystem("tmpfs", &[], attributes).unwrap(), "/mnt").unwrap();
    let first = ["a/", "a/x", "a/y", "b/", "b/x", "b/deep/", "b/deep/x", "c/", "c/x", "f", "g", "ping"];
    let second = ["a/.wh.x", "b/", "b/.wh..wh..opq", "b/new", ".wh.c", "c/", "c/new", ".wh.f", "g/", "g/x"];
    let mut trees: Vec<Tree> = vec![];
    let mut lower: Vec<String> = vec![];
    for (n, paths) in [&first[..], &second[..]].into_iter().enumerate() {
        let readers = (0..n).map(|n| Reader::open(File::open(format!("/mnt/{n}.erofs")).unwrap()).unwrap());
        let stack = Stack::new(readers.collect::<Vec<_>>().into_iter());
        let (archive, size) = archive(n, paths);
        let layer = layer::read(&archive, size, &stack).unwrap();
        let image = format!("/mnt/{n}.erofs");
        let mut file = File::create(&image).unwrap();
        erofs::write(&layer.tree, &mut file).unwrap();
        let place = format!("/mnt/{n}");
        fs::create_dir(&place).unwrap();
        let mounted = mount::erofs(Path::new(&image), mount::ErofsBacking::Auto).unwrap();
        mount::attach_at(mounted, &place).unwrap();
        lower.insert(0, place);
        trees.push(layer.tree);
    }
    fs::create_dir("/mnt/root").unwrap();
    let options = [("lowerdir", Some(lower.join(":")))];
    let options: Vec<_> = options.iter().map(|(key, value)| (*key, value.as_deref())).collect();
    let overlay = mount::filesystem("overlay", &options, attributes).unwrap();
    mount::attach_at(overlay, "/mnt/root").unwrap();
    let mut seen = BTreeMap::new();
    walk(Path::new("/mnt/root"), &mut seen);
    let merged = Tree::merge(trees).unwrap();
    let row = |path: &Vec<u8>, kind: &Kind| {
        let text = match kind {
            Kind::File(content) => Some(String::from_utf8(content.read().unwrap().into_owned()).unwrap()),
            _ => None,
        };
        (String::from_utf8(path.clone()).unwrap(), text)
    };
    let expected: BTreeMap<_, _> = merged.iter().skip(1).map(|(path, node)| row(path, &node.kind)).collect();
    assert_eq!(seen, expected, "the kernel and a merge");
    let names: Vec<_> = seen.keys().map(String::as_str).collect();
    assert_eq!(names, ["a", "a/y", "b", "b/new", "c", "c/new", "g", "g/x", "ping", "pong"]);
    let inode = |name: &str| fs::metadata(format!("/mnt/root/{name}")).unwrap().ino();
    assert_eq!(inode("ping"), inode("pong"), "one file with two names");
    let mut value = [0; 64];
    let n = rustix::fs::getxattr("/mnt/root/ping", "security.capability", &mut value).unwrap();
    assert_eq!(&value[..n], CAPABILITY);
    println!("overlay: {} entries of two layers are as they should be", seen.len());
}

/// An archive of these paths; those with a `/` at the end are folders. The first has a file with a capability and two names.
fn archive(n: usize, paths: &[&str]) -> (SharedFile, u64) {
    let mut builder = tar::Builder::new(vec![]);
    let header = |kind, size| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_mtime(7);
        header.set_size(size);
        header
    };
    for path in paths {
        if *path == "ping" {
            builder.append_pax_extensions([("SCHILY.xattr.security.capability", CAPABILITY)]).unwrap();
        }
        let kind = if path.ends_with('/') { tar::EntryType::Directory } else { tar::EntryType::Regular };
        let text =
            if path.ends_with('/') || path.contains(".wh.") { String::new() } else { format!("{n} {path}") };
        builder.append_data(&mut header(kind, text.len() as u64), path, text.as_bytes()).unwrap();
    }
    if paths.contains(&"ping") {
        builder.append_link(&mut header(tar::EntryType::Link, 0), "pong", "ping").unwrap();
    }
    let bytes = builder.into_inner().unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    (SharedFile(Arc::new(file)), bytes.len() as u64)
}

fn walk(dir: &Path, seen: &mut BTreeMap<String, Option<String>>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        let name = path.strip_prefix("/mnt/root").unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            seen.insert(name, None);
            walk(&path, seen);
        } else {
            seen.insert(name, Some(fs::read_to_string(&path).unwrap()));
        }
    }
}
