//! The store that all processes share, and its older states: a restore of a backup puts one of them back.

use kiln_model::{Epoch, Event, Incarnation, Instance, InstanceId, Millis, Mutation, Revision, Snapshot};
use kiln_store::{Lease, LedgerEntry, MemStore, Store, StoreError};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Older states that are kept.
const PAST_MAX: usize = 8;

#[derive(Default)]
struct Inner {
    now: Arc<MemStore>,
    past: VecDeque<MemStore>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Vault {
    inner: Mutex<Inner>,
    keep: bool,
}

impl Vault {
    /// One that keeps older states only if somebody will want them: copies are not free.
    pub(crate) fn new(keep: bool) -> Self {
        Self { inner: Mutex::default(), keep }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Arc<MemStore> {
        self.inner().now.clone()
    }

    /// Goes `n` commits back, as far as there are any. Nothing may use the store meanwhile.
    pub(crate) fn back(&self, n: usize) {
        let mut inner = self.inner();
        for _ in 0..n {
            if let Some(older) = inner.past.pop_back() {
                inner.now = Arc::new(older);
            }
        }
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
        let older = self.keep.then(|| now.fork());
        let done = now.commit(epoch, base, mutations, events);
        if let (Ok(_), Some(older)) = (&done, older) {
            let mut inner = self.inner();
            inner.past.push_back(older);
            if inner.past.len() > PAST_MAX {
                inner.past.pop_front();
            }
        }
        done
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
}
