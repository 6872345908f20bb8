//! Layers over each other, asked for single paths: what an instance sees there, without reading the trees whole.

use super::{Found, Reader, entries};
use std::collections::BTreeSet;
use std::io;

/// What one layer says of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// It has it.
    Here(Found),
    /// It has nothing there, and hides what the layers below have.
    Hidden,
    /// It says nothing: the layers below decide.
    Nothing,
}

/// Layers, the highest first.
#[derive(Debug, Default)]
pub struct Stack(Vec<Reader>);

impl Stack {
    /// `layers` over each other, the lowest first.
    pub fn new(layers: impl DoubleEndedIterator<Item = Reader>) -> Self {
        Self(layers.rev().collect())
    }

    /// Lays another one on top.
    pub fn push(&mut self, layer: Reader) {
        self.0.insert(0, layer);
    }

    /// What an instance sees at `path`, and the layer that has it. Links are not followed.
    pub fn get(&self, path: &[u8]) -> io::Result<Option<(Found, &Reader)>> {
        for layer in &self.0 {
            match layer.see(path)? {
                Seen::Here(found) => return Ok(Some((found, layer))),
                Seen::Hidden => return Ok(None),
                Seen::Nothing => {}
            }
        }
        Ok(None)
    }

    /// The names in the root that an instance sees, sorted.
    pub fn names(&self) -> io::Result<BTreeSet<Vec<u8>>> {
        let mut all = BTreeSet::new();
        for layer in &self.0 {
            let Some(root) = layer.get(b"")? else { continue };
            let directory = layer.read(&root)?;
            let names = entries(&directory).map(|(name, _)| name.to_vec());
            all.extend(names.filter(|name| !matches!(name.as_slice(), b"." | b"..")));
        }
        let mut seen = BTreeSet::new();
        for name in all {
            if self.get(&name)?.is_some() {
                seen.insert(name);
            }
        }
        Ok(seen)
    }
}
