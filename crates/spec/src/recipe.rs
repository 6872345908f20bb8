//! What a server is made of: the `[images.NAME]` tables.

mod build;
mod lint;

pub use build::{BuildRecipe, Provision};
pub use lint::{LintKind, LintRule};

use crate::lock::{DebianRecipe, RecipeName};
use crate::reader::{Shared, Table, Value};
use kiln_model::{Digest, ImageName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The package that playbooks run with.
const ANSIBLE: &str = "ansible-core";

/// One `[images.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecipe {
    /// Its name.
    pub name: ImageName,
    /// What lies below.
    pub base: Base,
    /// Debian packages beside the base's own.
    pub packages: Vec<String>,
    /// Files of the commit or of the build, in order; a later rule hides an earlier one.
    pub copy: Vec<CopyRule>,
    /// What is compiled first, in a builder of its own.
    pub build: Option<BuildRecipe>,
    /// Configuration management that runs over the packages.
    pub provision: Option<Provision>,
    /// Findings of the lint that are meant to be.
    pub allow: Vec<LintRule>,
}

/// What lies below the application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Base {
    /// Nothing.
    Scratch,
    /// A configured Debian system.
    Debian {
        /// `bookworm`.
        suite: String,
    },
    /// Only the files of Debian packages: no maintainer script runs, and nothing is there that no package of the image needs.
    DebianSlim {
        /// `bookworm`.
        suite: String,
    },
    /// An OCI image: a layout or archive on the server's disk, or a reference of a registry. kiln.lock pins its digest.
    Oci {
        /// What stands behind `oci:`.
        reference: String,
    },
    /// Another image of the same kiln.toml.
    Image {
        /// Its name.
        name: ImageName,
    },
    /// What buildah makes of a Containerfile of the commit. Not reproducible.
    Containerfile {
        /// Path in the commit.
        path: String,
    },
}

/// Where a copied file comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopySource {
    /// The committed tree.
    Commit,
    /// The root of the builder, after its last command.
    Build,
}

/// Files of the commit and where they go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRule {
    /// Which tree `from` is a path of.
    pub source: CopySource,
    /// Path in the commit, or the absolute path in the builder; a trailing `/` copies the contents of a folder.
    pub from: String,
    /// Absolute path in the image.
    pub to: String,
    /// Mode of the files; none takes git's.
    pub mode: Option<u32>,
}

impl ImageRecipe {
    /// The digest of the recipe, for provenance and cache keys.
    pub fn digest(&self) -> Digest {
        Digest::of(&serde_json::to_vec(self).unwrap_or_default())
    }

    /// The images of the same kiln.toml that it, or its builder, stands on.
    pub fn images_below(&self) -> impl Iterator<Item = &ImageName> {
        let bases = std::iter::once(&self.base).chain(self.build.as_ref().map(|build| &build.base));
        bases.filter_map(|base| if let Base::Image { name } = base { Some(name) } else { None })
    }

    /// The parts that are resolved into Debian packages, by the name under which a lock keeps them: the image itself,
    /// and its builder.
    pub fn debian(&self) -> BTreeMap<RecipeName, DebianRecipe> {
        let mut parts = BTreeMap::new();
        let mut add = |name, base: &Base, packages: &[String]| {
            let (suite, slim) = match base {
                Base::Debian { suite } => (suite, false),
                Base::DebianSlim { suite } => (suite, true),
                _ => return,
            };
            let packages = packages.iter().cloned().collect();
            parts.insert(name, DebianRecipe { suite: suite.clone(), slim, packages });
        };
        add(RecipeName::image(&self.name), &self.base, &self.packages);
        if self.provision.is_some() {
            let packages: Vec<String> = self.packages.iter().cloned().chain([ANSIBLE.to_owned()]).collect();
            add(RecipeName::provisioner(&self.name), &self.base, &packages);
        }
        if let Some(build) = &self.build {
            add(RecipeName::builder(&self.name), &build.base, &build.packages);
        }
        parts
    }
}

/// Reads one `[images.NAME]`.
pub(crate) fn read(name: ImageName, mut table: Table<'_>, sink: Shared<'_, '_>) -> ImageRecipe {
    let base = match table.string("base", sink) {
        Some((text, span)) => base(&text, span, sink),
        None => {
            table.missing("base", "\"debian:bookworm\"", sink);
            None
        }
    };
    let packages = packages(&mut table, base.as_ref(), sink);
    let rules =
        table.take("copy").and_then(|v| v.as_array("copy", "an array of tables { from, to, mode }", sink));
    let copy: Vec<CopyRule> =
        rules.unwrap_or_default().into_iter().filter_map(|rule| copy_rule(&rule, &table, sink)).collect();
    let build = table.table("build", sink).map(|table| build::read(table, sink));
    let provision =
        table.table("provision", sink).and_then(|table| build::provision(table, base.as_ref(), sink));
    let allow = table.take("allow").map(|value| lint::read(&value, &table, sink)).unwrap_or_default();
    table.reserved("network", "a bake has no network: `kiln lock` pins what it is made of", sink);
    if build.is_none() && copy.iter().any(|rule| rule.source == CopySource::Build) {
        let hint = format!("add `[images.{name}.build]` with `base` and `run`");
        let message = format!("image `{name}` copies from a build that it does not have");
        sink.borrow_mut().push(table.span.clone(), message, Some(hint));
    }
    table.finish(sink);
    ImageRecipe { name, base: base.unwrap_or(Base::Scratch), packages, copy, build, provision, allow }
}

/// The packages of an image or of a builder.
fn packages(table: &mut Table<'_>, base: Option<&Base>, sink: Shared<'_, '_>) -> Vec<String> {
    let mut packages = vec![];
    for (package, span) in table.strings("packages", sink).unwrap_or_default() {
        let refused = match base {
            Some(Base::Scratch) => Some("use `base = \"debian:bookworm\"`, or copy what the program needs"),
            Some(Base::Oci { .. } | Base::Image { .. } | Base::Containerfile { .. }) => Some(
                "add packages to an image with `base = \"debian:bookworm\"`, and use that one as `image:NAME`",
            ),
            _ => None,
        };
        if !is_package(&package) {
            sink.borrow_mut().push(span, format!("`{package}` is not the name of a Debian package"), None);
        } else if let Some(hint) = refused {
            let message = match base {
                Some(Base::Scratch) => "an image on `scratch` has no packages",
                _ => "`packages` need a Debian base of the same image",
            };
            sink.borrow_mut().push(span, message, Some(hint.to_owned()));
        } else if !packages.contains(&package) {
            packages.push(package);
        }
    }
    packages
}

fn base(text: &str, span: std::ops::Range<usize>, sink: Shared<'_, '_>) -> Option<Base> {
    const KINDS: &str = "use `scratch`, `debian:bookworm`, `debian-slim:bookworm`, `oci:PATH-or-REFERENCE`, `image:NAME` or \
                         `containerfile:PATH`";
    let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
    let (message, hint) = match (kind, rest) {
        ("scratch", "") => return Some(Base::Scratch),
        ("debian", "bookworm") => return Some(Base::Debian { suite: rest.into() }),
        ("debian-slim", "bookworm") => return Some(Base::DebianSlim { suite: rest.into() }),
        ("debian" | "debian-slim", _) => {
            (format!("base `{text}` is not available yet"), "the only Debian suite so far is `bookworm`")
        }
        ("oci", _) if is_reference(rest) => return Some(Base::Oci { reference: rest.into() }),
        ("oci", _) => (
            format!("`{rest}` is neither an absolute path nor a reference of a registry"),
            "such as `oci:/srv/images/app`, `oci:registry.example.com/app:1.2` or `oci:…@sha256:…`",
        ),
        ("image", _) => match ImageName::new(rest) {
            Ok(name) => return Some(Base::Image { name }),
            Err(error) => (error.to_string(), "name another image of this file, as in `image:web`"),
        },
        ("containerfile", _) if is_inner_path(rest) => {
            return Some(Base::Containerfile { path: rest.into() });
        }
        ("containerfile", _) => (
            format!("`{rest}` is not a path inside the project"),
            "name a committed file, as in `containerfile:Containerfile`",
        ),
        _ => (format!("unknown base `{text}`"), KINDS),
    };
    sink.borrow_mut().push(span, message, Some(hint.into()));
    None
}

/// An absolute path, or `HOST[:PORT]/NAME[:TAG][@DIGEST]` of the OCI distribution specification.
fn is_reference(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"._-/:@+".contains(&b);
    if text.is_empty() || text.len() > 512 || !text.bytes().all(legal) {
        return false;
    }
    if text.starts_with('/') {
        return is_absolute(text.trim_end_matches('/'));
    }
    let host = text.split('/').next().unwrap_or_default();
    let is_host = host.contains(['.', ':']) || host == "localhost";
    is_host
        && text.contains('/')
        && !text.ends_with('/')
        && text.split('/').all(|part| part.starts_with(|c: char| c.is_ascii_alphanumeric()))
}

/// Debian policy 5.6.1.
fn is_package(name: &str) -> bool {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b);
    (2..=100).contains(&name.len()) && name.as_bytes()[0].is_ascii_alphanumeric() && name.bytes().all(legal)
}

fn copy_rule(rule: &Value<'_>, image: &Table<'_>, sink: Shared<'_, '_>) -> Option<CopyRule> {
    let mut table = rule.as_table(image.child("copy"), sink)?;
    let (from, to) = (table.string("from", sink), table.string("to", sink));
    let mode = table.string("mode", sink).and_then(|(text, span)| {
        let mode = u32::from_str_radix(&text, 8).ok().filter(|m| *m <= 0o777 && text.len() >= 3);
        if mode.is_none() {
            let hint = "setuid, setgid and sticky bits cannot be given".to_owned();
            sink.borrow_mut().push(span, "`mode` must be octal digits such as \"0755\"", Some(hint));
        }
        mode
    });
    for (key, value) in [("from", &from), ("to", &to)] {
        if value.is_none() {
            table.missing(key, "\"…\"", sink);
        }
    }
    let ((from, from_span), (to, to_span)) = (from?, to?);
    let (source, from) = match from.strip_prefix("build:") {
        Some(path) => (CopySource::Build, path.to_owned()),
        None => (CopySource::Commit, from),
    };
    if source == CopySource::Build && !is_absolute(from.trim_end_matches('/')) {
        let hint = "as in `from = \"build:/out/app\"`".to_owned();
        sink.borrow_mut().push(
            from_span,
            format!("`{from}` is not an absolute path in the builder"),
            Some(hint),
        );
    } else if source == CopySource::Commit && from != "./" && !is_inner_path(from.trim_end_matches('/')) {
        let hint = "`from` is a path in the commit, without `..`".to_owned();
        sink.borrow_mut().push(from_span, format!("`{from}` is not a path inside the project"), Some(hint));
    }
    if !is_absolute(to.trim_end_matches('/')) && to != "/" {
        let hint = "`to` is an absolute path in the image, without `..`".to_owned();
        sink.borrow_mut().push(to_span, format!("`{to}` is not a path in the image"), Some(hint));
    }
    table.finish(sink);
    Some(CopyRule { source, from, to, mode })
}

pub(crate) fn is_inner_path(path: &str) -> bool {
    !path.is_empty() && path.len() <= 1024 && path.split('/').all(is_component)
}

pub(crate) fn is_absolute(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(is_inner_path)
}

fn is_component(part: &str) -> bool {
    !part.is_empty()
        && part != "."
        && part != ".."
        && part.len() <= 255
        && !part.contains(|c: char| c.is_control())
}
