//! What is copied out of a builder, as a tree with the paths that it has there. Runs inside the builder, where no link
//! leads outside.

use super::protocol::Failure;
use crate::tree::{Kind, Node, Tree, TreeError, Xattrs, join};
use std::collections::HashSet;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Names that a message lists.
const NAMES_MAX: usize = 20;

/// The files that `from` names, all of root and of the time `epoch`, with the folders above them. A file with holes may be
/// larger than the disk that it is on, and no image grows that way: together they have at most `bytes_max`.
pub(super) fn collect(from: &[String], epoch: i64, bytes_max: u64) -> Result<Tree, Failure> {
    let mut tree = Tree::new();
    tree.insert(b"", Node::dir(0o755, epoch)).map_err(|error| unfit(&error))?;
    for from in from {
        let found = scan(from)?;
        let path = from.trim_matches('/').as_bytes();
        let mut above = vec![];
        for part in path.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
            let next = join(&above, part);
            if next != path && tree.get(&next).is_none_or(|node| node.kind != Kind::Dir) {
                tree.insert(&next, Node::dir(0o755, epoch)).map_err(|error| unfit(&error))?;
            }
            above = next;
        }
        for (below, node) in found.iter() {
            let mut node = node.clone();
            (node.uid, node.gid, node.mtime, node.xattrs) = (0, 0, epoch, Xattrs::default());
            if node.kind == Kind::Dir {
                node.mode &= 0o1777;
            }
            let place = if below.is_empty() { path.to_vec() } else { join(path, below) };
            tree.insert(&place, node).map_err(|error| unfit(&error))?;
        }
    }
    let mut seen = HashSet::new();
    let mut total = 0_u64;
    for (path, node) in tree.iter() {
        if let Kind::File(content) = &node.kind
            && content.file_id().is_none_or(|id| seen.insert(id))
        {
            total = total.saturating_add(content.size());
            if total > bytes_max {
                let path = String::from_utf8_lossy(path);
                let text = format!("with `/{path}` it has more than the {bytes_max} bytes of `build.disk`");
                return Err(Failure::Unfit { text });
            }
        }
    }
    Ok(tree)
}

/// The tree at one path. Links on the way are followed; what the path names is taken as it is, unless its content is
/// asked for.
fn scan(from: &str) -> Result<Tree, Failure> {
    let path = Path::new(from.trim_end_matches('/'));
    let content = from.ends_with('/');
    let place = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if !content => parent.canonicalize().map(|parent| parent.join(name)),
        _ => path.canonicalize(),
    };
    let place: io::Result<PathBuf> = place.and_then(|place| {
        let meta = std::fs::symlink_metadata(&place)?;
        if content && !meta.is_dir() { Err(io::ErrorKind::NotADirectory.into()) } else { Ok(place) }
    });
    match place {
        Ok(place) => Tree::scan(&place).map_err(|error| unfit(&error)),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory && path.exists() => {
            Err(Failure::Unfit { text: format!("`{from}` is no folder: take the `/` from its end") })
        }
        Err(_) => Err(missing(from, path)),
    }
}

fn missing(from: &str, path: &Path) -> Failure {
    let folder = path.ancestors().skip(1).find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    if names.len() > NAMES_MAX {
        names.truncate(NAMES_MAX);
        names.push("…".into());
    }
    let folder = String::from_utf8_lossy(folder.as_os_str().as_bytes()).into_owned();
    Failure::Missing { from: from.to_owned(), folder, names }
}

fn unfit(error: &TreeError) -> Failure {
    Failure::Unfit { text: crate::worker::chain(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn files_folders_links_and_modes_are_taken_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("out/sub")).unwrap();
        fs::write(root.join("out/app"), "x").unwrap();
        fs::set_permissions(root.join("out/app"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::hard_link(root.join("out/app"), root.join("out/same")).unwrap();
        symlink("app", root.join("out/link")).unwrap();
        symlink("out", root.join("there")).unwrap();
        let name = |path: &str| format!("{}/{path}", root.display());
        let tree = collect(&[name("there/"), name("there/app"), name("out/link")], 5, 1).unwrap();
        let at = |path: &str| {
            let path = name(path);
            tree.get(path.trim_start_matches('/').as_bytes()).unwrap_or_else(|| panic!("no {path}"))
        };
        assert!(matches!(&at("there/app").kind, Kind::File(content) if content.size() == 1));
        assert_eq!(at("there/app").mode, 0o4755, "whoever copies it decides");
        assert_eq!(at("there/link").kind, Kind::Symlink(b"app".to_vec()));
        assert_eq!(at("out/link").kind, Kind::Symlink(b"app".to_vec()));
        assert_eq!(at("there/sub").kind, Kind::Dir);
        assert!(tree.iter().all(|(_, node)| (node.uid, node.gid, node.mtime) == (0, 0, 5)));

        let missing = collect(&[name("out/nothing/here")], 5, 9).unwrap_err();
        let names = ["app", "link", "same", "sub"].map(str::to_owned).to_vec();
        assert_eq!(missing, Failure::Missing { from: name("out/nothing/here"), folder: name("out"), names });
        assert!(matches!(collect(&[name("out/app/")], 5, 9), Err(Failure::Unfit { .. })));
        let sparse = fs::File::create(root.join("out/sparse")).unwrap();
        sparse.set_len(1 << 43).unwrap();
        let error = collect(&[name("out")], 5, 1 << 30).unwrap_err();
        assert!(matches!(&error, Failure::Unfit { text } if text.contains("out/sparse")), "{error:?}");
        std::os::unix::net::UnixListener::bind(root.join("out/socket")).unwrap();
        assert!(matches!(collect(&[name("out")], 5, 9), Err(Failure::Unfit { .. })));
    }
}
