//! Findings of the image lint that a project means to have: `allow = [{ lint = "setuid", path = "/usr/bin/sudo" }]`.

use crate::reader::{Shared, Table, Value};
use serde::{Deserialize, Serialize};

/// What the lint looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LintKind {
    /// A private key.
    PrivateKey,
    /// A password, a token or another credential.
    Credential,
    /// What names the host that baked.
    HostLeak,
    /// A file that gives its caller another user, group or capability.
    Setuid,
    /// A file or folder that every user may write to.
    WorldWritable,
    /// What would differ in another bake.
    Unreproducible,
}

impl LintKind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::PrivateKey,
        Self::Credential,
        Self::HostLeak,
        Self::Setuid,
        Self::WorldWritable,
        Self::Unreproducible,
    ];

    /// The word in kiln.toml.
    pub const fn word(self) -> &'static str {
        match self {
            Self::PrivateKey => "private-key",
            Self::Credential => "credential",
            Self::HostLeak => "host-leak",
            Self::Setuid => "setuid",
            Self::WorldWritable => "world-writable",
            Self::Unreproducible => "unreproducible",
        }
    }
}

/// One finding that is meant to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LintRule {
    /// Which finding.
    pub lint: LintKind,
    /// Absolute path of the file; with a trailing `/` all below that folder.
    pub path: String,
}

/// Reads `allow`.
pub(super) fn read(value: &Value<'_>, image: &Table<'_>, sink: Shared<'_, '_>) -> Vec<LintRule> {
    let rules = value.as_array("allow", "an array of tables { lint, path }", sink).unwrap_or_default();
    rules.iter().filter_map(|rule| one(rule, image, sink)).collect()
}

fn one(rule: &Value<'_>, image: &Table<'_>, sink: Shared<'_, '_>) -> Option<LintRule> {
    let mut table = rule.as_table(image.child("allow"), sink)?;
    let (lint, path) = (table.string("lint", sink), table.string("path", sink));
    for (key, value, example) in [("lint", &lint, "\"setuid\""), ("path", &path, "\"/usr/bin/sudo\"")] {
        if value.is_none() {
            table.missing(key, example, sink);
        }
    }
    table.finish(sink);
    let ((lint, lint_at), (path, path_at)) = (lint?, path?);
    let words = LintKind::ALL.map(LintKind::word);
    let kind = LintKind::ALL.into_iter().find(|kind| kind.word() == lint);
    if kind.is_none() {
        let hint =
            crate::error::did_you_mean(&lint, &words).unwrap_or_else(|| format!("use {}", words.join(", ")));
        sink.borrow_mut().push(lint_at, format!("there is no lint `{lint}`"), Some(hint));
    }
    if !super::is_absolute(path.trim_end_matches('/')) {
        let hint = "`path` is an absolute path in the image, without `..`".to_owned();
        sink.borrow_mut().push(path_at, format!("`{path}` is not a path in the image"), Some(hint));
        return None;
    }
    Some(LintRule { lint: kind?, path })
}
