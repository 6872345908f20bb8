//! Durable truth. One [`Store`] has one writer; every commit is one transaction that carries mutations and ledger events
//! together, refused if the lease was lost or the base revision is not the newest.
//!
//! [`SqliteStore`] is for one server, [`PostgresStore`] for several that share one database and take turns by a [`Lease`];
//! [`MemStore`] has the same rules ([`rules`]) for tests.
#![forbid(unsafe_code)]

mod damaged;
pub mod dump;
pub mod lease;
mod ledger;
pub mod lock;
mod memory;
mod postgres;
mod reserve;
pub mod rules;
mod sqlite;

pub use dump::{Dump, DumpError, Restored, Tombstone};
pub use lease::Lease;
pub use lock::{LockedBy, StateLock};
pub use memory::MemStore;
pub use postgres::{AddressError, PostgresAddress, PostgresStore};
pub use sqlite::SqliteStore;

use kiln_model::{Epoch, Event, Incarnation, InstanceId, Millis, Mutation, Revision, Snapshot};
use std::sync::Arc;

/// One entry of the ledger, chained to the one before it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LedgerEntry {
    /// From 1, without gaps.
    pub sequence: u64,
    /// The commit that carried it.
    pub revision: Revision,
    /// What happened.
    pub event: Event,
    /// Hash of the previous entry; 64 zeros for the first.
    pub previous: String,
    /// sha256 over (previous, sequence, revision, event as canonical JSON), hexadecimal.
    pub hash: String,
}

/// Why the store refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another commit came first: load and plan again.
    #[error("revision {base} is not the newest ({newest})")]
    Conflict {
        /// The revision that the plan was made from.
        base: Revision,
        /// The newest one.
        newest: Revision,
    },
    /// A newer server holds the lease: stop all effects and exit.
    #[error("epoch {mine} lost the lease to epoch {holder}")]
    LeaseLost {
        /// The caller's.
        mine: Epoch,
        /// The holder's.
        holder: Epoch,
    },
    /// A mutation breaks a rule of the model; nothing was written.
    #[error("refused mutation: {detail}")]
    Illegal {
        /// Which rule, of which row.
        detail: String,
    },
    /// Reading or writing failed. After a failed commit nothing is known: stop effects, exit, start from disk.
    #[error("{step} failed on `{path}`")]
    Io {
        /// The failed step.
        step: &'static str,
        /// The file.
        path: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The state was written by a newer kiln.
    #[error("`{path}` has schema {found}, this kiln knows up to {known}")]
    NewerSchema {
        /// The file.
        path: String,
        /// Its schema.
        found: u32,
        /// Ours.
        known: u32,
    },
}

impl StoreError {
    /// Whether the store is on another machine or process that did not answer. Whether a commit happened is unknown, and asking
    /// again later may help.
    pub fn is_unreachable(&self) -> bool {
        let StoreError::Io { source, .. } = self else { return false };
        let io = source.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        source.is::<tokio_postgres::Error>() || io == Some(std::io::ErrorKind::TimedOut)
    }

    /// Whether a full disk is at fault.
    pub fn is_disk_full(&self) -> bool {
        let StoreError::Io { source, .. } = self else { return false };
        let sqlite = source.downcast_ref::<rusqlite::Error>().and_then(rusqlite::Error::sqlite_error_code);
        let io = source.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        sqlite == Some(rusqlite::ErrorCode::DiskFull) || io == Some(std::io::ErrorKind::StorageFull)
    }
}

/// The narrow trait that control knows. `load` and `commit` are what matters.
pub trait Store: Send + Sync + 'static {
    /// The newest snapshot. Cheap: the store keeps it in memory.
    fn load(&self) -> Result<Arc<Snapshot>, StoreError>;

    /// Takes the lease from whoever has it, without end: a new epoch, higher than any before. Older ones can no longer commit.
    /// For who knows otherwise that the last holder has ended, as the owner of the state folder's lock does.
    fn take_lease(&self, holder: &str) -> Result<(Incarnation, Epoch), StoreError>;

    /// Takes the lease for a time if it is free for `holder`; else answers who has it.
    fn try_lease(
        &self,
        holder: &str,
        span: Millis,
    ) -> Result<Result<(Incarnation, Epoch), Lease>, StoreError>;

    /// Holds the lease for `span` from now on. [`StoreError::LeaseLost`] if somebody else took it.
    fn renew_lease(&self, epoch: Epoch, span: Millis) -> Result<(), StoreError>;

    /// Gives the lease back, so that nobody has to wait for its end. Nothing happens if somebody else has it by now.
    fn release_lease(&self, epoch: Epoch) -> Result<(), StoreError>;

    /// Who has the lease.
    fn lease(&self) -> Result<Lease, StoreError>;

    /// Writes mutations and events in one durable transaction and answers the new revision.
    fn commit(
        &self,
        epoch: Epoch,
        base: Revision,
        mutations: &[Mutation],
        events: &[Event],
    ) -> Result<Revision, StoreError>;

    /// Ledger entries from `from` on (1 is the first), at most `limit`.
    fn ledger(&self, from: u64, limit: usize) -> Result<Vec<LedgerEntry>, StoreError>;

    /// Checks the whole chain. `Err(n)`: entry n is the first bad one, with the reason.
    fn verify_ledger(&self) -> Result<Result<u64, (u64, String)>, StoreError>;

    /// Whether the instance was ever destroyed.
    fn is_tombstoned(&self, id: &InstanceId) -> Result<bool, StoreError>;

    /// The last records of instances that were destroyed, newest first, at most `limit`.
    fn departed(&self, limit: usize) -> Result<Vec<kiln_model::Instance>, StoreError>;

    /// That of every instance that was ever destroyed, oldest first.
    fn tombstones(&self) -> Result<Vec<Tombstone>, StoreError>;

    /// The newest epoch that was given.
    fn epoch(&self) -> Result<Epoch, StoreError>;

    /// Makes the next lease higher than one that receivers have seen, also if this store has not. What is higher already
    /// stays.
    fn raise(&self, floor: (Incarnation, Epoch)) -> Result<(), StoreError>;

    /// Fills an empty store from a backup, in one durable transaction.
    fn fill(&self, dump: &Dump, restored: &Restored) -> Result<(), StoreError>;
}
