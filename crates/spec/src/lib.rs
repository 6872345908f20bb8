//! kiln.toml and kiln.lock: parse, validate, explain errors with line and column.
//!
//! [`Project::parse`] reads the whole format and reports every error it finds, each with its place and, where there is one, the
//! fix. Keys that belong to later versions are refused, never ignored.
#![forbid(unsafe_code)]

mod confinement;
pub mod error;
mod https;
pub mod lock;
mod policy;
pub mod project;
mod reader;
pub mod recipe;
mod rollout;
mod service;
mod units;

pub use error::{SpecError, SpecErrors};
pub use lock::{DebianRecipe, Lock, RecipeName, Recipes};
pub use project::{EnvironmentSpec, Project};
pub use recipe::{Base, BuildRecipe, CopyRule, CopySource, ImageRecipe, LintKind, LintRule, Provision};
pub use units::duration;
