//! What the path, the owner's bits and the time of a node say, without its content.

use super::{Facts, Finding, Origin, has_content};
use crate::tree::{Kind, Node};
use kiln_spec::LintKind;

const STICKY: u32 = 0o1000;
const WORLD_WRITABLE: u32 = 0o002;
/// Files that every instance gets of its own.
const HOST_FILES: &[&[u8]] = &[b"etc/hostname", b"etc/resolv.conf"];
/// Files that have other content after every bake.
const CHANGING: &[(&[u8], &str)] = &[
    (b"var/cache/ldconfig/aux-cache", "it holds inode numbers and times"),
    (b"var/lib/systemd/random-seed", "a random seed that all instances would share"),
    (b"var/lib/urandom/random-seed", "a random seed that all instances would share"),
    (b"var/lib/misc/random-seed", "a random seed that all instances would share"),
    (b"var/cache/apt/pkgcache.bin", "a cache of the package manager"),
    (b"var/cache/apt/srcpkgcache.bin", "a cache of the package manager"),
];

pub(super) fn check(path: &[u8], node: &Node, facts: &Facts, found: &mut Vec<Finding>) {
    if node.mode & WORLD_WRITABLE != 0 {
        match &node.kind {
            Kind::File(_) => {
                let why = format!("every user may write to it (mode {:04o})", node.mode);
                found.push(Finding::new(LintKind::WorldWritable, path, why));
            }
            Kind::Dir if node.mode & STICKY == 0 => {
                let why = format!("every user may replace the files in it (mode {:04o})", node.mode);
                found.push(Finding::new(LintKind::WorldWritable, path, why));
            }
            _ => {}
        }
    }
    if HOST_FILES.contains(&path) && has_content(node) {
        found.push(Finding::new(LintKind::HostLeak, path, "it is of one host; each instance gets its own"));
    }
    if facts.origin != Origin::Foreign {
        changing(path, node, facts, found);
    }
}

fn changing(path: &[u8], node: &Node, facts: &Facts, found: &mut Vec<Finding>) {
    let mut push = |why: &str| found.push(Finding::new(LintKind::Unreproducible, path, why));
    let is_file = matches!(node.kind, Kind::File(_));
    if let Some((_, why)) = CHANGING.iter().find(|(name, _)| *name == path).filter(|_| has_content(node)) {
        push(why);
    }
    if path.starts_with(b"var/log/") && has_content(node) {
        push("a log with content");
    }
    let of_ssh = path.strip_prefix(b"etc/ssh/ssh_host_").is_some_and(|rest| rest.ends_with(b"_key.pub"));
    if of_ssh && is_file {
        push("a host key that all instances would share; have each make its own");
    }
    // What stands in the layers below keeps its time, and a directory is repeated above as it is there.
    let is_made_now = matches!(facts.origin, Origin::Application | Origin::Script) && node.kind != Kind::Dir;
    if is_made_now && node.mtime > facts.newest {
        push("it is newer than the commit and what lies below, so another bake gives it another time");
    }
}
