//! Recipe, lock, layers, digest: bakes sealed images into the content store.

pub mod debian;
