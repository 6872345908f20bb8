//! A deterministic simulator over the real code of control: [`kiln_control::reconcile::Reconciler`], `execute`, `Handle`,
//! the planner, its lint and the rules of the store, on a simulated clock, provider, edge, bakery and disk.
#![forbid(unsafe_code)]

mod bakery;
mod check;
mod disk;
mod edge;
pub mod explore;
pub mod faults;

mod finish;
mod host;
mod node;
mod process;
pub mod project;
mod restore;
pub mod rng;
pub mod run;
pub mod script;
mod truth;
mod vault;
mod world;

pub use faults::Faults;
pub use run::{Config, Report, run};
