//! What must not be in an image: keys, credentials, traces of the host that baked, files that change their caller's rights
//! or that everybody may write to, and what another bake would make differently.
//!
//! [`check`] is a pure function of one layer. [`gate`] reads the layers of an image, keeps what it found in those that do
//! not change, and refuses the image if anything is left that `allow` does not name. Of each file the first
//! [`SCANNED_BYTES_MAX`] bytes are read; tokens and passwords are looked for in text only, keys in everything.

mod content;
mod credential;
mod files;
mod gate;
mod key;
mod node;
mod packaged;
pub mod setid;

pub use gate::{LintError, gate};

use crate::tree::{Content, Kind, Node, Tree};
use kiln_spec::{LintKind, LintRule};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::FileExt;

/// Changes whenever the lint finds other things in the same layer.
pub const VERSION: u32 = 1;
/// Bytes of each file that are looked at.
pub const SCANNED_BYTES_MAX: u64 = 1 << 20;
/// Findings that are told; the rest is counted.
pub const TOLD_MAX: usize = 50;
/// Findings of one layer that are kept.
const FINDINGS_MAX: usize = 10_000;

/// Who made a layer. What is a mistake in one is how things are in another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The installer, of locked Debian packages. The packages' own files are exempt from findings about their content.
    Packages,
    /// Somebody else, long before: a base that is pinned by its digest. That it cannot be made again is nothing new.
    Foreign,
    /// A script of the project, during the bake.
    Script,
    /// kiln, of committed files and of what was compiled.
    Application,
}

/// What is known beside the layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Who made it.
    pub origin: Origin,
    /// No file that a bake makes is newer; seconds since 1970.
    pub newest: i64,
    /// The name of the host that bakes.
    pub host: String,
}

/// Where in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// A line, counted from 1.
    Line(usize),
    /// Bytes from the start, where there are no lines.
    Offset(usize),
}

/// Something that does not belong into an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is.
    pub lint: LintKind,
    /// Absolute path in the image. Bytes that are no text are replaced as [`String::from_utf8_lossy`] does.
    pub path: String,
    /// Why it is one. Never what was found: a message is no place for a secret.
    pub why: String,
    /// Where in the file; none if it is the file itself.
    pub at: Option<Place>,
}

impl Finding {
    fn new(lint: LintKind, path: &[u8], why: impl Into<String>) -> Self {
        let path = format!("/{}", String::from_utf8_lossy(path));
        Self { lint, path, why: why.into(), at: None }
    }

    /// Whether `rule` says that it is meant to be.
    pub fn is_allowed_by(&self, rule: &LintRule) -> bool {
        let below = rule.path.ends_with('/') && self.path.starts_with(&rule.path);
        rule.lint == self.lint && (below || self.path == rule.path)
    }

    /// The rule that allows it.
    pub fn rule(&self) -> LintRule {
        LintRule { lint: self.lint, path: self.path.clone() }
    }
}

/// What a layer holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// In the order of their paths.
    pub findings: Vec<Finding>,
    /// Files of the base that give their caller other rights, which no instance lets them do. They are told, not refused.
    pub idle_setid: Vec<String>,
    /// The newest time of a file, in seconds since 1970.
    pub newest: i64,
}

/// Looks through one layer.
///
/// # Errors
/// The content of a file that cannot be read.
pub fn check(tree: &Tree, facts: &Facts) -> std::io::Result<Report> {
    let packaged = match facts.origin {
        Origin::Packages => packaged::Packaged::of(tree)?,
        _ => packaged::Packaged::default(),
    };
    let patterns = content::Patterns::new();
    let mut report = Report { newest: i64::MIN, ..Report::default() };
    for (path, node) in tree.iter().filter(|(_, node)| node.kind != Kind::Whiteout) {
        report.newest = report.newest.max(node.mtime);
        let mut found = Vec::new();
        node::check(path, node, facts, &mut found);
        if setid::has(node) {
            match facts.origin {
                Origin::Application | Origin::Script => found.push(setid::finding(path, node)),
                Origin::Packages | Origin::Foreign => {
                    report.idle_setid.push(format!("/{}", String::from_utf8_lossy(path)));
                }
            }
        }
        if let Kind::File(content) = &node.kind {
            let bytes = head(content, SCANNED_BYTES_MAX)?;
            let mut inside = Vec::new();
            files::check(tree, path, &bytes, facts, &mut inside);
            patterns.check(path, &bytes, &mut inside);
            if !inside.is_empty() && !packaged.holds(path, content)? {
                found.append(&mut inside);
            }
        }
        let room = FINDINGS_MAX.saturating_sub(report.findings.len());
        report.findings.extend(found.into_iter().take(room));
    }
    Ok(report)
}

/// The first `bytes_max` bytes of a content.
fn head(content: &Content, bytes_max: u64) -> std::io::Result<std::borrow::Cow<'_, [u8]>> {
    match content {
        Content::Slice { file, at, size } => {
            let mut bytes = vec![0; (*size).min(bytes_max) as usize];
            file.0.read_exact_at(&mut bytes, *at)?;
            Ok(bytes.into())
        }
        Content::Bytes(bytes) => Ok((&bytes[..bytes.len().min(bytes_max as usize)]).into()),
        other => Ok(match other.read()? {
            std::borrow::Cow::Borrowed(bytes) => (&bytes[..bytes.len().min(bytes_max as usize)]).into(),
            std::borrow::Cow::Owned(mut bytes) => {
                bytes.truncate(bytes_max as usize);
                bytes.into()
            }
        }),
    }
}

/// Whether bytes are no text, as git decides it.
fn is_binary(bytes: &[u8]) -> bool {
    bytes[..bytes.len().min(8000)].contains(&0)
}

/// Where in `bytes` the position `at` is, as a reader of the file would say it.
fn place(bytes: &[u8], at: usize) -> Place {
    if is_binary(bytes) {
        return Place::Offset(at);
    }
    Place::Line(1 + bytes[..at].iter().filter(|b| **b == b'\n').count())
}

/// Whether a node is a regular file with something in it.
fn has_content(node: &Node) -> bool {
    matches!(&node.kind, Kind::File(content) if content.size() > 0)
}

#[cfg(test)]
mod tests;
