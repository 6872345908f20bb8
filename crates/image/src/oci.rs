//! OCI images as bases: found in a layout, an archive or a registry, locked by the digest of their manifest, kept blob by
//! blob in the content store, and turned into kiln's layers.
//!
//! ```text
//! oci:REFERENCE ─ place ─▶ manifest, config, layer blobs ─▶ content store      (kiln lock; a bake only if one is missing)
//!                 registry
//! manifest digest of kiln.lock ─ content store ─ blob ─ tar ─ layer ─▶ tree ─▶ EROFS layer               (kiln bake)
//! ```

pub mod blob;
pub mod layer;
pub mod manifest;
pub mod place;
pub mod push;
pub mod reference;
pub mod registry;
pub mod tar;

mod fetch;
#[cfg(test)]
mod tests;

pub use fetch::{FetchError, Fetcher};
pub use manifest::{Config, Manifest};
pub use reference::Reference;
pub use registry::{Registry, RegistryError};
