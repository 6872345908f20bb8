//! The control plane: it reads the store, asks `plan`, and acts through provider, edge and image. The engines meet here
//! and nowhere else.
//!
//! One loop ([`reconcile`]) carries out everything: observe, load, plan, lint, commit, act. Commands of users only change
//! desired state ([`handle::Handle::submit`]) and wake it.
#![forbid(unsafe_code)]

pub mod backup;
pub mod clock;
pub mod collect;
pub mod crash;
pub mod execute;
pub mod handle;
mod hold;
pub mod home;
pub mod keeper;
pub mod keys;
pub mod lead;
pub mod reconcile;
pub mod recover;
pub mod start;
pub mod vault;
mod work;
pub mod workshop;

pub use collect::Collected;
pub use handle::{Handle, Progress, SubmitError};
pub use home::HomeError;
pub use keys::{Keys, KeysError};
pub use kiln_image::debian::changes as lock_changes;
pub use reconcile::ReconcileError;
pub use start::{Control, ControlConfig, StartError, share_state, take_state};
pub use vault::{Vault, VaultError};
pub use workshop::{Draft, Workshop, WorkshopError};
