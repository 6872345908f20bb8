//! Files that give their caller another user, another group or a capability.
//!
//! Instances run with `no_new_privs`, so the kernel ignores all of it. A package's file loses its bits when the package is
//! installed ([`strip`]): wherever an image goes, it cannot be used to become root. The application has no business to bring one.

use super::Finding;
use crate::tree::{Kind, Node, Tree};
use kiln_spec::LintKind;
use std::sync::Arc;

/// The set-user-id and set-group-id bits.
const BITS: u32 = 0o6000;
/// The attribute that holds file capabilities.
const CAPABILITY: &[u8] = b"security.capability";

/// Whether a node is such a file. A set-group-id directory only says which group its files get.
pub(super) fn has(node: &Node) -> bool {
    matches!(node.kind, Kind::File(_)) && (node.mode & BITS != 0 || node.xattrs.contains_key(CAPABILITY))
}

pub(super) fn finding(path: &[u8], node: &Node) -> Finding {
    let why = match node.mode & BITS {
        0 => "it has file capabilities",
        0o4000 => "it is set-user-id",
        0o2000 => "it is set-group-id",
        _ => "it is set-user-id and set-group-id",
    };
    Finding::new(LintKind::Setuid, path, format!("{why}, which no instance can use"))
}

/// Takes the bits and capabilities from all files; answers with their paths.
pub fn strip(tree: &mut Tree) -> Vec<Vec<u8>> {
    let paths: Vec<Vec<u8>> =
        tree.iter().filter(|(_, node)| has(node)).map(|(path, _)| path.clone()).collect();
    for path in &paths {
        if let Some(node) = tree.get_mut(path) {
            node.mode &= !BITS;
            if !node.xattrs.is_empty() {
                Arc::make_mut(&mut node.xattrs).remove(CAPABILITY);
            }
        }
    }
    paths
}
