//! Where two trees differ first. Used where they should not: a bake that gave another layer than before.

use crate::tree::{Kind, Node, Tree};

/// The first path that two trees do not agree on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`/{path}` {what}")]
pub struct Difference {
    /// Relative to the root.
    pub path: String,
    /// What differs, as in "has mode 644 and 755".
    pub what: String,
}

/// The first difference in the order of paths; none if both trees are the same.
pub fn first_difference(a: &Tree, b: &Tree) -> std::io::Result<Option<Difference>> {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    loop {
        let only = |path: &[u8], which: &str| Difference {
            path: String::from_utf8_lossy(path).into_owned(),
            what: format!("is in the {which} only"),
        };
        let (path, old, new) = match (a.peek(), b.peek()) {
            (None, None) => return Ok(None),
            (Some((path, _)), None) => return Ok(Some(only(path, "first"))),
            (None, Some((path, _))) => return Ok(Some(only(path, "second"))),
            (Some((path, _)), Some((other, _))) if path < other => return Ok(Some(only(path, "first"))),
            (Some((path, _)), Some((other, _))) if path > other => return Ok(Some(only(other, "second"))),
            (Some((path, old)), Some((_, new))) => (*path, *old, *new),
        };
        if let Some(what) = node(old, new)? {
            return Ok(Some(Difference { path: String::from_utf8_lossy(path).into_owned(), what }));
        }
        a.next();
        b.next();
    }
}

/// What two nodes of one path do not agree on.
fn node(a: &Node, b: &Node) -> std::io::Result<Option<String>> {
    let word = |node: &Node| match node.kind {
        Kind::Dir => "a directory",
        Kind::File(_) => "a file",
        Kind::Symlink(_) => "a link",
        Kind::Whiteout => "a whiteout",
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let what = match (&a.kind, &b.kind) {
        (Kind::File(x), Kind::File(y)) if x.size() != y.size() => {
            format!("has {} and {} bytes", x.size(), y.size())
        }
        (Kind::File(x), Kind::File(y)) if !x.same(y)? => "has another content of the same size".to_owned(),
        (Kind::Symlink(x), Kind::Symlink(y)) if x != y => format!("leads to `{}` and `{}`", text(x), text(y)),
        (x, y) if std::mem::discriminant(x) != std::mem::discriminant(y) => {
            format!("is {} and {}", word(a), word(b))
        }
        _ if a.mode != b.mode => format!("has mode {:o} and {:o}", a.mode, b.mode),
        _ if (a.uid, a.gid) != (b.uid, b.gid) => {
            format!("belongs to {}:{} and {}:{}", a.uid, a.gid, b.uid, b.gid)
        }
        _ if a.mtime != b.mtime => format!("has time {} and {}", a.mtime, b.mtime),
        _ if a.xattrs != b.xattrs => "has other extended attributes".to_owned(),
        _ => return Ok(None),
    };
    Ok(Some(what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Content;

    #[test]
    fn the_first_difference_is_named() {
        let tree = |change: &dyn Fn(&mut Tree)| {
            let mut tree = Tree::new();
            tree.insert(b"", Node::dir(0o755, 5)).unwrap();
            tree.insert(b"a", Node::dir(0o755, 5)).unwrap();
            tree.insert(b"a/f", Node::file(Content::Bytes(b"one"[..].into()), 0o644, 5)).unwrap();
            tree.insert(b"l", Node { kind: Kind::Symlink(b"a".to_vec()), ..Node::dir(0o777, 5) }).unwrap();
            change(&mut tree);
            tree
        };
        let same = tree(&|_| {});
        let found = |change: &dyn Fn(&mut Tree)| {
            first_difference(&same, &tree(change)).unwrap().map(|difference| difference.to_string())
        };
        assert_eq!(found(&|_| {}), None);
        let content = |bytes: &'static [u8]| Kind::File(Content::Bytes(bytes.into()));
        type Change<'a> = &'a dyn Fn(&mut Tree);
        let cases: [(Change<'_>, &str); 9] = [
            (
                &|t| t.get_mut(b"a/f").unwrap().kind = content(b"two"),
                "`/a/f` has another content of the same size",
            ),
            (&|t| t.get_mut(b"a/f").unwrap().kind = content(b"longer"), "`/a/f` has 3 and 6 bytes"),
            (&|t| t.get_mut(b"a/f").unwrap().mode = 0o600, "`/a/f` has mode 644 and 600"),
            (&|t| t.get_mut(b"a").unwrap().mtime = 6, "`/a` has time 5 and 6"),
            (&|t| t.get_mut(b"l").unwrap().uid = 7, "`/l` belongs to 0:0 and 7:0"),
            (&|t| t.get_mut(b"l").unwrap().kind = Kind::Whiteout, "`/l` is a link and a whiteout"),
            (&|t| t.get_mut(b"l").unwrap().kind = Kind::Symlink(vec![b'b']), "`/l` leads to `a` and `b`"),
            (&|t| t.remove(b"a"), "`/a` is in the first only"),
            (&|t| t.insert(b"a/e", Node::dir(0, 0)).unwrap(), "`/a/e` is in the second only"),
        ];
        for (change, text) in cases {
            assert_eq!(found(change).as_deref(), Some(text));
        }
    }
}
