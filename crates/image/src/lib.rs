//! Recipe, lock, layers, digest: bakes sealed images into the content store.
//!
//! ```text
//! commit ─ source ─▶ tree ─ erofs ─▶ layer ─┐
//!                                            ├─ bake ─▶ manifest, in the object store
//! kiln.lock ─ debian ─▶ base, packages ─────┘
//! ```
#![forbid(unsafe_code)]

pub mod debian;
pub mod erofs;
pub mod tree;
