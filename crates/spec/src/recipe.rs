//! What a server is made of: the `[images.NAME]` tables.

use crate::lock::DebianRecipe;
use crate::reader::{Shared, Table, Value};
use kiln_model::{Digest, ImageName};
use serde::{Deserialize, Serialize};

/// One `[images.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecipe {
    /// Its name.
    pub name: ImageName,
    /// What lies below.
    pub base: Base,
    /// Debian packages beside the base's own.
    pub packages: Vec<String>,
    /// Files of the commit, in order; a later rule hides an earlier one.
    pub copy: Vec<CopyRule>,
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
}

/// Files of the commit and where they go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRule {
    /// Path in the commit; a trailing `/` copies the contents of a folder.
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

    /// The part that is resolved into a lock; none for `scratch`.
    pub fn debian(&self) -> Option<DebianRecipe> {
        match &self.base {
            Base::Scratch => None,
            Base::Debian { suite } => {
                Some(DebianRecipe { suite: suite.clone(), packages: self.packages.iter().cloned().collect() })
            }
        }
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
    let mut packages = vec![];
    for (package, span) in table.strings("packages", sink).unwrap_or_default() {
        if !is_package(&package) {
            sink.borrow_mut().push(span, format!("`{package}` is not the name of a Debian package"), None);
        } else if base == Some(Base::Scratch) {
            let hint = "use `base = \"debian:bookworm\"`, or copy what the program needs".to_owned();
            sink.borrow_mut().push(span, "an image on `scratch` has no packages", Some(hint));
        } else if !packages.contains(&package) {
            packages.push(package);
        }
    }
    let rules =
        table.take("copy").and_then(|v| v.as_array("copy", "an array of tables { from, to, mode }", sink));
    let copy =
        rules.unwrap_or_default().into_iter().filter_map(|rule| copy_rule(&rule, &table, sink)).collect();
    for key in ["build", "provision", "network"] {
        table.reserved(key, "build before you commit, and `copy` the result", sink);
    }
    table.finish(sink);
    ImageRecipe { name, base: base.unwrap_or(Base::Scratch), packages, copy }
}

fn base(text: &str, span: std::ops::Range<usize>, sink: Shared<'_, '_>) -> Option<Base> {
    let (message, hint) = match text {
        "scratch" => return Some(Base::Scratch),
        "debian:bookworm" => return Some(Base::Debian { suite: "bookworm".into() }),
        _ if text.starts_with("oci:") || text.starts_with("image:") || text.starts_with("debian-slim") => {
            (format!("base `{text}` is not available yet"), "use `scratch` or `debian:bookworm`")
        }
        _ if text.starts_with("debian:") => (
            format!("base `{text}` is not available yet"),
            "the only Debian suite so far is `debian:bookworm`",
        ),
        _ => (format!("unknown base `{text}`"), "use `scratch` or `debian:bookworm`"),
    };
    sink.borrow_mut().push(span, message, Some(hint.into()));
    None
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
    if from.starts_with("build:") {
        let hint = "build before you commit, and copy the committed file".to_owned();
        sink.borrow_mut().push(from_span, "`from = \"build:…\"` is not available yet", Some(hint));
        return None;
    }
    if from != "./" && !is_inner_path(from.trim_end_matches('/')) {
        let hint = "`from` is a path in the commit, without `..`".to_owned();
        sink.borrow_mut().push(from_span, format!("`{from}` is not a path inside the project"), Some(hint));
    }
    if !is_absolute(to.trim_end_matches('/')) && to != "/" {
        let hint = "`to` is an absolute path in the image, without `..`".to_owned();
        sink.borrow_mut().push(to_span, format!("`{to}` is not a path in the image"), Some(hint));
    }
    table.finish(sink);
    Some(CopyRule { from, to, mode })
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
