//! One pass over the bytes of a file for everything that can be known by how it begins.

use super::{Finding, credential, is_binary, key, place};
use aho_corasick::AhoCorasick;
use kiln_spec::LintKind;

/// What is looked for, compiled.
pub(super) struct Patterns {
    /// Keys, for files that are no text.
    keys: Option<AhoCorasick>,
    /// Keys, then tokens.
    all: Option<AhoCorasick>,
}

impl Patterns {
    pub fn new() -> Self {
        let tokens = credential::TOKENS.iter().map(|token| token.prefix);
        // They are constants, and few: only a bug could make this fail, which a test would see.
        Self {
            keys: AhoCorasick::new(key::MARKS).ok(),
            all: AhoCorasick::new(key::MARKS.iter().copied().chain(tokens)).ok(),
        }
    }

    /// Each kind of secret once per file, where it is first seen.
    pub fn check(&self, path: &[u8], bytes: &[u8], found: &mut Vec<Finding>) {
        let is_binary = is_binary(bytes);
        let mut push = |lint, why: &str, at: usize| {
            if found.iter().all(|f| (f.lint, f.why.as_str()) != (lint, why)) {
                found.push(Finding { at: Some(place(bytes, at)), ..Finding::new(lint, path, why) });
            }
        };
        if let Some(why) = key::binary(bytes) {
            push(LintKind::PrivateKey, why, 0);
        }
        let patterns = if is_binary { &self.keys } else { &self.all };
        let matches = patterns.iter().flat_map(|patterns| patterns.find_overlapping_iter(bytes));
        for found in matches {
            let (n, at) = (found.pattern().as_usize(), found.start());
            match key::MARKS.get(n) {
                Some(mark) => {
                    if let Some(why) = key::at(bytes, mark, at) {
                        push(LintKind::PrivateKey, why, at);
                    }
                }
                None => {
                    let token = &credential::TOKENS[n - key::MARKS.len()];
                    if let Some(at) = token.at(path, bytes, at) {
                        push(LintKind::Credential, token.why, at);
                    }
                }
            }
        }
    }
}
