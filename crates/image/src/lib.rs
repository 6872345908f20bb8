//! Recipe, lock, layers, digest: bakes sealed images into the content store.
//!
//! ```text
//! commit ─ source ─▶ tree ─ erofs ─▶ layer ─┐
//!                                            ├─ bake ─▶ manifest, in the object store
//! kiln.lock ─ debian ─▶ base, packages ─────┘
//! ```
#![forbid(unsafe_code)]

pub mod attest;
pub mod bake;
pub mod builder;
pub mod compare;
pub mod containerfile;
pub mod debian;
pub mod diff;
pub mod erofs;
pub mod export;
pub mod gc;
pub mod import;
pub mod kernel;
pub mod layers;
pub mod lint;
pub mod lookup;
pub mod objects;
pub mod oci;
pub mod replicate;
pub mod sbom;
pub mod source;
pub mod tree;
pub mod verify;
pub mod worker;

pub use bake::{BakeError, BakeJob, Baked};
pub use objects::{ObjectError, Objects};
pub use source::{SourceError, Sources};
