//! How control speaks to the edge.

use async_trait::async_trait;
use kiln_model::edge::EdgeStatus;
use kiln_model::{Fence, Generation, RouteTable};

/// Why the edge refused or could not be reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouterError {
    /// The edge has a newer table or fence, or the same generation with other content.
    #[error("the edge refused generation {generation}: {detail}")]
    Stale {
        /// The one that was sent.
        generation: Generation,
        /// What the edge has.
        detail: String,
    },
    /// The table is not usable (too large, dangling pool, duplicate route); the edge keeps its last good one.
    #[error("the edge refused generation {generation}: {detail}")]
    Invalid {
        /// The one that was sent.
        generation: Generation,
        /// What is wrong with it.
        detail: String,
    },
    /// No edge answered; the table may or may not be in use.
    #[error("the edge did not answer: {detail}")]
    Unreachable {
        /// The cause.
        detail: String,
    },
}

/// What control needs of the edge. The simulated one and the real one pass the same suite.
#[async_trait]
pub trait Router: Send + Sync + 'static {
    /// What the edge uses and has counted.
    async fn status(&self) -> Result<EdgeStatus, RouterError>;

    /// Puts a table into use. `Ok` means that it is durable and that every data-path thread uses it: a request that
    /// begins after that sees no older table. Idempotent.
    async fn set(&self, fence: Fence, generation: Generation, table: &RouteTable) -> Result<(), RouterError>;
}
