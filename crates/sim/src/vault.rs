//! The store that all processes share, and backups of its older states.

use kiln_model::{
    Epoch, Event, Incarnation, Instance, InstanceId, Millis, Mutation, Revision, Snapshot, Wall,
};
use kiln_store::{Dump, Lease, LedgerEntry, MemStore, Restored, SqliteStore, Store, StoreError, Tombstone};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Backups that are kept.
const PAST_MAX: usize = 4;
/// Commits from one backup to the next.
const EVERY: u64 = 6;

struct Inner {
    now: Arc<dyn Store>,
    past: VecDeque<Arc<Dump>>,
}

/// See the module.
pub(crate) struct Vault {
    inner: Mutex<Inner>,
    sqlite: bool,
    keep: bool,
}

fn empty(sqlite: bool) -> Result<Arc<dyn Store>, StoreError> {
    Ok(if sqlite { Arc::new(SqliteStore::in_memory()?) } else { Arc::new(MemStore::default()) })
}

impl Vault {
    /// One that takes backups only if somebody will want them: they are not free.
    pub(crate) fn new(sqlite: bool, keep: bool) -> Result<Self, StoreError> {
        let inner = Inner { now: empty(sqlite)?, past: VecDeque::new() };
        Ok(Self { inner: Mutex::new(inner), sqlite, keep })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Arc<dyn Store> {
        self.inner().now.clone()
    }

    /// Backups, oldest first.
    pub(crate) fn backups(&self) -> Vec<Arc<Dump>> {
        self.inner().past.iter().cloned().collect()
    }

    /// The newest lease.
    pub(crate) fn newest(&self) -> Option<(Incarnation, Epoch)> {
        let now = self.now();
        Some((now.load().ok()?.incarnation, now.epoch().ok()?))
    }

    /// Goes back. Nothing may use the store meanwhile.
    pub(crate) fn restore(&self, dump: &Dump, restored: &Restored) -> Result<(), StoreError> {
        let older = empty(self.sqlite)?;
        older.fill(dump, restored)?;
        let mut inner = self.inner();
        inner.now = older;
        // What was taken later is of a history that is lost.
        inner.past.retain(|past| past.head.revision <= dump.head.revision);
        Ok(())
    }
}

impl Store for Vault {
    fn load(&self) -> Result<Arc<Snapshot>, StoreError> {
        self.now().load()
    }

    fn take_lease(&self, holder: &str) -> Result<(Incarnation, Epoch), StoreError> {
        self.now().take_lease(holder)
    }

    fn try_lease(
        &self,
        holder: &str,
        span: Millis,
    ) -> Result<Result<(Incarnation, Epoch), Lease>, StoreError> {
        self.now().try_lease(holder, span)
    }

    fn renew_lease(&self, epoch: Epoch, span: Millis) -> Result<(), StoreError> {
        self.now().renew_lease(epoch, span)
    }

    fn release_lease(&self, epoch: Epoch) -> Result<(), StoreError> {
        self.now().release_lease(epoch)
    }

    fn lease(&self) -> Result<Lease, StoreError> {
        self.now().lease()
    }

    fn commit(
        &self,
        epoch: Epoch,
        base: Revision,
        mutations: &[Mutation],
        events: &[Event],
    ) -> Result<Revision, StoreError> {
        let now = self.now();
        let done = now.commit(epoch, base, mutations, events)?;
        if self.keep && done.0.is_multiple_of(EVERY) {
            let dump = Dump::take(&*now, Wall(0));
            let mut inner = self.inner();
            inner.past.extend(dump.ok().map(Arc::new));
            if inner.past.len() > PAST_MAX {
                inner.past.pop_front();
            }
        }
        Ok(done)
    }

    fn ledger(&self, from: u64, limit: usize) -> Result<Vec<LedgerEntry>, StoreError> {
        self.now().ledger(from, limit)
    }

    fn verify_ledger(&self) -> Result<Result<u64, (u64, String)>, StoreError> {
        self.now().verify_ledger()
    }

    fn is_tombstoned(&self, id: &InstanceId) -> Result<bool, StoreError> {
        self.now().is_tombstoned(id)
    }

    fn departed(&self, limit: usize) -> Result<Vec<Instance>, StoreError> {
        self.now().departed(limit)
    }

    fn tombstones(&self) -> Result<Vec<Tombstone>, StoreError> {
        self.now().tombstones()
    }

    fn epoch(&self) -> Result<Epoch, StoreError> {
        self.now().epoch()
    }

    fn raise(&self, floor: (Incarnation, Epoch)) -> Result<(), StoreError> {
        self.now().raise(floor)
    }

    fn fill(&self, dump: &Dump, restored: &Restored) -> Result<(), StoreError> {
        self.now().fill(dump, restored)
    }
}
