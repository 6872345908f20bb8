//! What stands behind `oci:` in kiln.toml.

use kiln_model::Digest;
use std::path::PathBuf;

/// Where an image is, and which one it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Where it is.
    pub origin: Origin,
    /// The tag; none takes the only image of a file, or `latest` of a registry.
    pub tag: Option<String>,
    /// Its digest, if the reference says it.
    pub digest: Option<Digest>,
}

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// An OCI layout, an OCI archive or a Docker archive on the server.
    Path(PathBuf),
    /// A repository of a registry.
    Registry {
        /// Its host, with a port if one is given.
        host: String,
        /// The name of the repository in it.
        name: String,
    },
}

/// A reference that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`oci:{text}` is no reference: {why}")]
pub struct ReferenceError {
    text: String,
    why: &'static str,
}

impl Reference {
    /// Parses what stands behind `oci:`.
    ///
    /// # Errors
    /// [`ReferenceError`] if it is neither an absolute path nor a reference of a registry.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let error = |why| ReferenceError { text: text.chars().take(200).collect(), why };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest.strip_prefix("sha256:").and_then(|hex| hex.parse().ok());
                (rest, Some(digest.ok_or_else(|| error("what stands behind `@` is no sha256 digest"))?))
            }
            None => (text, None),
        };
        // A colon before the last slash belongs to a host's port.
        let (rest, tag) = match rest.rsplit_once(':') {
            Some((rest, tag)) if !tag.contains('/') => (rest, Some(tag.to_owned())),
            _ => (rest, None),
        };
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"._-+".contains(&b);
        if tag.as_ref().is_some_and(|t| t.is_empty() || t.len() > 128 || !t.bytes().all(legal)) {
            return Err(error("the tag is not one"));
        }
        if rest.starts_with('/') {
            if rest.split('/').any(|part| matches!(part, "." | "..")) {
                return Err(error("the path has `.` or `..` in it"));
            }
            return Ok(Self { origin: Origin::Path(rest.into()), tag, digest });
        }
        let (host, name) = rest.split_once('/').ok_or_else(|| error("there is no name behind the host"))?;
        let is_host = |b: u8| b.is_ascii_alphanumeric() || b".-:".contains(&b);
        if host.is_empty() || !host.bytes().all(is_host) {
            return Err(error("the host is not one"));
        }
        let part = |part: &str| {
            let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
            part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.bytes().all(legal)
        };
        if name.len() > 255 || !name.split('/').all(part) {
            return Err(error("the name has other characters than `a-z0-9._-`"));
        }
        let name =
            if host == "docker.io" && !name.contains('/') { format!("library/{name}") } else { name.into() };
        Ok(Self { origin: Origin::Registry { host: host.to_owned(), name }, tag, digest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_registries() {
        let parse = |text: &str| Reference::parse(text).unwrap();
        let hex = "a".repeat(64);
        let path = parse("/srv/app.tar:1.2");
        assert_eq!((path.origin, path.tag), (Origin::Path("/srv/app.tar".into()), Some("1.2".into())));
        assert_eq!(parse("/srv/a:b/c").origin, Origin::Path("/srv/a:b/c".into()));
        let registry = |text: &str| match parse(text).origin {
            Origin::Registry { host, name } => (host, name),
            Origin::Path(_) => panic!("{text}"),
        };
        assert_eq!(registry("localhost:5000/a/b:1"), ("localhost:5000".into(), "a/b".into()));
        assert_eq!(parse("localhost:5000/a/b").tag, None, "the port is no tag");
        assert_eq!(registry("docker.io/debian"), ("docker.io".into(), "library/debian".into()));
        let pinned = parse(&format!("h.test/a:2@sha256:{hex}"));
        assert_eq!((pinned.tag, pinned.digest), (Some("2".into()), Some(hex.parse().unwrap())));
        let bad = [
            "",
            "x",
            "/a/../b",
            "h.test/A",
            "h.test/a:",
            "h.test/a@sha256:1",
            "h_t/a",
            "h.test/..",
            "h.test/a//b",
        ];
        for bad in bad {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }
}
