//! Which project the user stands in: the nearest kiln.toml, here or in a folder above.

use crate::Failure;
use kiln_api::Code;
use kiln_model::{ProjectName, limits};
use std::path::{Path, PathBuf};

/// The file that makes a folder a project.
pub(crate) const SPEC: &str = "kiln.toml";
/// What it is made of, exactly.
pub(crate) const LOCK: &str = "kiln.lock";

/// A project on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// Its name.
    pub name: ProjectName,
    /// Its folder.
    pub dir: PathBuf,
}

/// The project of `dir`, if it is in one. Only the name is read: a kiln.toml with an error elsewhere must not keep anybody
/// from `kiln status`.
pub(crate) fn find(dir: &Path) -> Result<Option<Found>, Failure> {
    let no_folder = |message: String| Failure::new(Code::File, message).hint("`-C` takes a folder");
    let start = std::path::absolute(dir)
        .map_err(|e| no_folder(format!("`{}` is not a folder: {e}", dir.display())))?;
    if !start.is_dir() {
        return Err(no_folder(format!("`{}` is not a folder", dir.display())));
    }
    let Some(folder) = start.ancestors().find(|folder| folder.join(SPEC).is_file()) else {
        return Ok(None);
    };
    let path = folder.join(SPEC);
    let text = read(&path, limits::SPEC_BYTES_MAX)?;
    let name = match name_of(&text) {
        Some(name) => name,
        // Only the whole reader knows the place and the words.
        None => kiln_spec::Project::parse(&text, SPEC)?.name,
    };
    Ok(Some(Found { name, dir: folder.to_owned() }))
}

fn name_of(text: &str) -> Option<ProjectName> {
    let table: toml::Table = text.parse().ok()?;
    ProjectName::new(table.get("name")?.as_str()?).ok()
}

/// Reads a text file of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: usize) -> Result<String, Failure> {
    let fail = |problem: String| {
        let message = format!("`{}` could not be read: {problem}", path.display());
        Failure::new(Code::File, message).hint(Code::File.entry().help)
    };
    let size = std::fs::metadata(path).map_err(|e| fail(e.to_string()))?.len();
    if size > limit as u64 {
        return Err(fail(format!("it has {size} bytes, at most {limit} are accepted")));
    }
    std::fs::read_to_string(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::InvalidData => fail("it is not UTF-8 text".to_owned()),
        _ => fail(e.to_string()),
    })
}

/// Writes a text file whole or not at all.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let fail = |e: std::io::Error| {
        let message = format!("`{}` could not be written: {e}", path.display());
        Failure::new(Code::File, message).hint(Code::File.entry().help)
    };
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    std::fs::write(&part, text).map_err(fail)?;
    std::fs::rename(&part, path).map_err(fail)
}

/// The failure of a command that needs a project and has none.
pub(crate) fn missing(dir: &Path) -> Failure {
    let place = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    Failure::new(Code::NoProject, format!("there is no `{SPEC}` in `{}` or above", place.display()))
        .hint("`kiln init` writes one; `-C DIR` or `--project NAME` names another project")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_file_above_counts_and_only_its_name_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        assert_eq!(find(&deep).unwrap(), None);
        std::fs::write(dir.path().join(SPEC), "name = \"shop\"\nunknown = 1\n").unwrap();
        let found = find(&deep).unwrap().unwrap();
        assert_eq!((found.name.as_str(), found.dir.as_path()), ("shop", dir.path()));
        for (bad, words) in [
            ("name = \"x\"\n[a]\nb = = 1", "error: kiln.toml:3:5: "),
            ("name = \"x\"\nname = \"y\"", "error: kiln.toml:2:1: duplicate key"),
            ("title = 1", "there is no `name`"),
            ("name = \"A B\"", "kiln.toml:1:8: `A B` is not a legal project name"),
            ("\nname = 3", "kiln.toml:2:8: `name` must be a string"),
        ] {
            std::fs::write(dir.path().join(SPEC), bad).unwrap();
            let failure = find(&deep).unwrap_err();
            assert_eq!(failure.code(), Code::InvalidProject, "{bad}");
            let text = failure.text();
            assert!(text.contains(words) && text.matches("hint: ").count() == 1, "{bad}: {text}");
        }
        std::fs::write(dir.path().join(SPEC), b"name = \"\xff\"").unwrap();
        let text = find(&deep).unwrap_err().text();
        assert!(text.contains("it is not UTF-8 text\nhint: "), "{text}");
        assert_eq!(find(&dir.path().join("none")).unwrap_err().code(), Code::File);
    }

    #[test]
    fn a_file_is_written_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOCK);
        write(&path, "a").unwrap();
        write(&path, "b").unwrap();
        assert_eq!(read(&path, 10).unwrap(), "b");
        assert_eq!(read(&path, 0).unwrap_err().code(), Code::File);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
