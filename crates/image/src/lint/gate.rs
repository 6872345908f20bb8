//! The lint in a bake: which layers are looked at, what is kept of it, and the refusal.

use super::{Facts, Finding, Origin, Place, Report, TOLD_MAX, VERSION, check};
use crate::bake::BakeJob;
use crate::erofs::Reader;
use crate::objects::{Objects, write_durable};
use kiln_model::{Digest, LayerRef};
use kiln_spec::{Base, LintRule};
use std::fmt::Write;
use std::fs::File;

/// Bytes of all findings in one message.
const TOLD_BYTES_MAX: usize = 20_000;
/// Paths of base files that are named.
const NAMED_MAX: usize = 3;

/// An image that the lint refuses.
#[derive(Debug, thiserror::Error)]
pub enum LintError {
    /// It holds what it must not.
    #[error("image `{image}`: {} must not be in it:\n{}", count(findings.len()), list(findings))]
    Findings {
        /// Which image.
        image: String,
        /// What was found, without what is allowed.
        findings: Vec<Finding>,
        /// What kiln.toml allows already.
        allow: Vec<LintRule>,
    },
    /// A layer cannot be read.
    #[error("cannot look through layer {0}")]
    Read(Digest, #[source] std::io::Error),
}

impl LintError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let Self::Findings { image, findings, allow } = self else { return None };
        let mut rules: Vec<LintRule> = allow.clone();
        for rule in findings.iter().take(TOLD_MAX).map(Finding::rule) {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
        let line = format!("allow = [{}]", rules.iter().map(row).collect::<Vec<_>>().join(", "));
        let what = "take it out of the image, or say that it is meant to be";
        if line.len() > TOLD_BYTES_MAX {
            return Some(format!("{what}: the lines above belong into `[images.{image}]`"));
        }
        Some(format!("{what}, in `[images.{image}]` of kiln.toml: {line}"))
    }
}

fn count(n: usize) -> String {
    if n == 1 { "1 thing".into() } else { format!("{n} things") }
}

fn list(findings: &[Finding]) -> String {
    let mut text = String::new();
    let mut told = 0;
    for finding in findings.iter().take(TOLD_MAX) {
        let place = match finding.at {
            Some(Place::Line(line)) => format!(" line {line}"),
            Some(Place::Offset(at)) => format!(" byte {at}"),
            None => String::new(),
        };
        let (lint, path) = (finding.lint.word(), quote(&finding.path));
        let path = path.trim_matches('"');
        let rows =
            format!("  {lint}: {path}{place}: {}\n    allow = [{}]\n", finding.why, row(&finding.rule()));
        if told > 0 && text.len() + rows.len() > TOLD_BYTES_MAX {
            break;
        }
        text.push_str(&rows);
        told += 1;
    }
    if findings.len() > told {
        let _ = writeln!(text, "  and {} more", findings.len() - told);
    }
    text.trim_end().to_owned()
}

/// A rule as it stands in kiln.toml.
fn row(rule: &LintRule) -> String {
    format!("{{ lint = \"{}\", path = {} }}", rule.lint.word(), quote(&rule.path))
}

/// A string of JSON is one of TOML, but for one character.
fn quote(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default().replace('\u{7f}', "\\u007f")
}

/// Refuses an image that holds what it must not. `epoch` is the time of the commit.
///
/// # Errors
/// [`LintError`] with all findings at once.
pub fn gate(
    job: &BakeJob,
    objects: &Objects,
    layers: &[LayerRef],
    epoch: i64,
    progress: &mut dyn FnMut(String),
) -> Result<(), LintError> {
    let allow = &job.recipe.allow;
    let mut used = vec![false; allow.len()];
    let mut left: Vec<Finding> = Vec::new();
    let mut newest = epoch;
    for (n, layer) in layers.iter().enumerate() {
        let Some(origin) = origin(job, &layer.role, n + 1 == layers.len()) else { continue };
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let bound = match origin {
            // The installer gave all that a playbook wrote the newest time that it saw: that of locked packages, of the
            // tools' as well, which are not in the image.
            Origin::Script => i64::MAX,
            _ => newest,
        };
        let report = report(job, objects, layer, &Facts { origin, newest: bound, host }, progress)?;
        newest = newest.max(report.newest);
        for finding in report.findings {
            let mut allowed = false;
            for (_, used) in allow.iter().zip(&mut used).filter(|(rule, _)| finding.is_allowed_by(rule)) {
                (allowed, *used) = (true, true);
            }
            // A file of one layer may be repeated in the next.
            if !allowed
                && !left
                    .iter()
                    .any(|f| (f.lint, &f.path, &f.why) == (finding.lint, &finding.path, &finding.why))
            {
                left.push(finding);
            }
        }
    }
    for (rule, _) in allow.iter().zip(&used).filter(|(_, used)| !**used) {
        progress(format!("warning: `allow` in kiln.toml names {}, where nothing was found", row(rule)));
    }
    match left.is_empty() {
        true => Ok(()),
        false => Err(LintError::Findings {
            image: job.recipe.name.to_string(),
            findings: left,
            allow: allow.clone(),
        }),
    }
}

/// Who made a layer; none for one that was looked at when it was part of another image.
fn origin(job: &BakeJob, role: &str, is_last: bool) -> Option<Origin> {
    match (role, &job.recipe.base) {
        // The last layer is this image's own; those of the image below have passed with that one's `allow`.
        (_, Base::Image { .. }) if !is_last => None,
        ("app", _) => Some(Origin::Application),
        ("provision", _) => Some(Origin::Script),
        (_, Base::Image { .. }) => Some(Origin::Foreign),
        (_, Base::Debian { .. } | Base::DebianSlim { .. }) => Some(Origin::Packages),
        (_, Base::Oci { .. } | Base::Containerfile { .. }) => Some(Origin::Foreign),
        (_, Base::Scratch) => Some(Origin::Application),
    }
}

/// What is in a layer. What does not depend on the commit is kept in `cache/lint`, which may be deleted at any time.
fn report(
    job: &BakeJob,
    objects: &Objects,
    layer: &LayerRef,
    facts: &Facts,
    progress: &mut dyn FnMut(String),
) -> Result<Report, LintError> {
    let keep = matches!(facts.origin, Origin::Packages | Origin::Foreign);
    let key = format!("kiln lint {VERSION}\n{}\n{:?}\n", layer.digest, facts.origin);
    let path = job.state.join("cache/lint").join(Digest::of(key.as_bytes()).hex());
    let kept = std::fs::read(&path).ok().filter(|_| keep);
    if let Some(report) = kept.and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
        return Ok(report);
    }
    let failed = |source| LintError::Read(layer.digest, source);
    let tree = File::open(objects.path(layer.digest)).and_then(Reader::open).and_then(|reader| reader.tree());
    let report = check(&tree.map_err(failed)?, facts).map_err(failed)?;
    if let [first @ .., last] = &report.idle_setid[..report.idle_setid.len().min(NAMED_MAX)] {
        let names = first.iter().map(|path| format!("{path}, ")).collect::<String>() + last;
        let n = report.idle_setid.len();
        progress(format!("note: {n} files of the base are set-id ({names}), which no instance can use"));
    }
    if keep {
        // It is only a cache: the next bake looks again.
        let _ = write_durable(&path, &serde_json::to_vec(&report).unwrap_or_default());
    }
    Ok(report)
}
