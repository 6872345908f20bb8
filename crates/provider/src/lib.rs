//! Where instances run. [`Provider`] is the contract, [`conformance`] its test suite, and each provider has one folder:
//! [`local`] runs sandboxes on this host, and virtual machines by [`vm`]; [`fake`] keeps them in memory for tests.
//!
//! A provider is told what must exist (`ensure`) and what must not (`absent`), never "create" or "delete": both may be
//! repeated, lost, delayed and answered late. Each carries a [`Fence`]; see [`ProviderError::Stale`].

#![forbid(unsafe_code)]

pub mod conformance;
pub mod fake;
pub mod local;
pub mod vm;

use async_trait::async_trait;
use kiln_model::{Check, Evidence, Fence, InstanceId, InstanceSpec, Memory, SecretValues};
pub use kiln_model::{Seen, SeenState};

/// Why a provider refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// The fence is older than one seen before, or the id comes again with other content.
    #[error("stale request for `{id}`: {detail}")]
    Stale {
        /// Which instance.
        id: InstanceId,
        /// What was seen before.
        detail: String,
    },
    /// The id was destroyed; it never runs again.
    #[error("`{id}` was destroyed and is never started again")]
    Tombstoned {
        /// Which instance.
        id: InstanceId,
    },
    /// It will not work however often it is tried: the command is missing, the image is damaged.
    #[error("{step} failed for `{id}`: {detail}")]
    Permanent {
        /// Which instance.
        id: InstanceId,
        /// The failed step, such as `mount layer sha256:…`.
        step: String,
        /// The cause.
        detail: String,
    },
    /// The image is damaged, and nothing was started. It works when the image was mended.
    #[error("{step} failed for `{id}`: {detail}")]
    Damaged {
        /// Which instance.
        id: InstanceId,
        /// The failed step, with layer and role.
        step: String,
        /// What is wrong with it.
        detail: String,
    },
    /// It may work later. The effect may or may not have happened: observe before the next try.
    #[error("{step} failed for `{id}` for now: {detail}")]
    Retry {
        /// Which instance.
        id: InstanceId,
        /// The failed step.
        step: String,
        /// The cause.
        detail: String,
    },
}

/// A place where instances run.
#[async_trait]
pub trait Provider: Send + Sync + 'static {
    /// All instances that exist in any form, in no order. An error means that nothing is known, which is not the same
    /// as nothing being there. Fast (under a millisecond per hundred instances): it is asked on every pass.
    async fn list(&self) -> Result<Vec<Seen>, ProviderError>;

    /// What it remembers: the newest fence, the highest number, and what each instance that is there was started with. Asked
    /// by a server when it begins to lead, and while the state is older than the world.
    async fn memory(&self) -> Result<Memory, ProviderError>;

    /// Makes the instance exist and its program started (not necessarily ready). Idempotent: the same id with the same
    /// content again answers what is there, also if its program has ended since: it is never restarted. `secrets` are the
    /// values of [`InstanceSpec::secrets`]: the instance gets them as files in memory, and they are kept nowhere else.
    async fn ensure(
        &self,
        fence: Fence,
        spec: &InstanceSpec,
        secrets: &SecretValues,
    ) -> Result<Seen, ProviderError>;

    /// Asks the program to end ([`InstanceSpec::stop`]), kills what is left at its time-out, removes everything but what
    /// it printed, and leaves a tombstone, also for an id never seen. Idempotent. Only an `Ok` means gone.
    async fn absent(&self, fence: Fence, id: &InstanceId) -> Result<(), ProviderError>;

    /// Runs one check from outside the instance (`command`: as an extra process in it). A check that could not be run is
    /// evidence that did not pass, never an error that could be taken for success.
    async fn check(&self, id: &InstanceId, check: &Check) -> Evidence;

    /// Resolves when something may have changed: an instance ended. Spurious answers are fine.
    async fn changed(&self);
}
