//! The store as one process sees it: the real rules over memory or SQLite, on a disk that fails. After a failed commit the
//! process knows nothing until it starts anew, as with the real one.

use crate::process::Process;
use kiln_model::{Epoch, Event, Incarnation, Instance, InstanceId, Millis, Mutation, Revision, Snapshot};
use kiln_store::{Dump, Lease, LedgerEntry, Restored, Store, StoreError, Tombstone};
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// See the module.
pub(crate) struct Disk {
    process: Process,
    store: Arc<dyn Store>,
    poisoned: AtomicBool,
}

impl Disk {
    pub(crate) fn new(process: Process, store: Arc<dyn Store>) -> Self {
        Self { process, store, poisoned: AtomicBool::new(false) }
    }

    fn fail<T>(&self, kind: ErrorKind) -> Result<T, StoreError> {
        self.poisoned.store(true, Relaxed);
        let source = Box::new(std::io::Error::from(kind));
        Err(StoreError::Io { step: "committing", path: "the simulated disk".into(), source })
    }

    fn whole(&self) -> Result<&dyn Store, StoreError> {
        if self.poisoned.load(Relaxed) { self.fail(ErrorKind::Other) } else { Ok(&*self.store) }
    }
}

impl Store for Disk {
    fn load(&self) -> Result<Arc<Snapshot>, StoreError> {
        self.whole()?.load()
    }

    fn take_lease(&self, holder: &str) -> Result<(Incarnation, Epoch), StoreError> {
        self.whole()?.take_lease(holder)
    }

    fn try_lease(
        &self,
        holder: &str,
        span: Millis,
    ) -> Result<Result<(Incarnation, Epoch), Lease>, StoreError> {
        self.whole()?.try_lease(holder, span)
    }

    fn renew_lease(&self, epoch: Epoch, span: Millis) -> Result<(), StoreError> {
        self.whole()?.renew_lease(epoch, span)
    }

    fn release_lease(&self, epoch: Epoch) -> Result<(), StoreError> {
        self.whole()?.release_lease(epoch)
    }

    fn lease(&self) -> Result<Lease, StoreError> {
        self.whole()?.lease()
    }

    fn commit(
        &self,
        epoch: Epoch,
        base: Revision,
        mutations: &[Mutation],
        events: &[Event],
    ) -> Result<Revision, StoreError> {
        let store = self.whole()?;
        let (fails, written, full) = self.process.act(|world| {
            let rate = world.faults.commit;
            let fails = world.rng.chance(rate);
            (fails, fails && world.rng.below(2) == 0, fails && world.rng.below(2) == 0)
        });
        if fails && !written {
            return self.fail(if full { ErrorKind::StorageFull } else { ErrorKind::Other });
        }
        let before = store.load()?;
        let done = store.commit(epoch, base, mutations, events);
        if done.is_ok() {
            let after = store.load()?;
            self.process
                .act(|world| crate::check::committed(world, epoch, &before, &after, mutations, events));
        }
        if let Err(StoreError::Illegal { detail }) = &done {
            self.process.act(|world| world.broken(|| format!("the store refused a mutation: {detail}")));
        }
        if written { self.fail(ErrorKind::Other) } else { done }
    }

    fn ledger(&self, from: u64, limit: usize) -> Result<Vec<LedgerEntry>, StoreError> {
        self.whole()?.ledger(from, limit)
    }

    fn verify_ledger(&self) -> Result<Result<u64, (u64, String)>, StoreError> {
        self.whole()?.verify_ledger()
    }

    fn is_tombstoned(&self, id: &InstanceId) -> Result<bool, StoreError> {
        self.whole()?.is_tombstoned(id)
    }

    fn departed(&self, limit: usize) -> Result<Vec<Instance>, StoreError> {
        self.whole()?.departed(limit)
    }

    fn tombstones(&self) -> Result<Vec<Tombstone>, StoreError> {
        self.whole()?.tombstones()
    }

    fn epoch(&self) -> Result<Epoch, StoreError> {
        self.whole()?.epoch()
    }

    fn raise(&self, floor: (Incarnation, Epoch)) -> Result<(), StoreError> {
        self.whole()?.raise(floor)
    }

    fn fill(&self, dump: &Dump, restored: &Restored) -> Result<(), StoreError> {
        self.whole()?.fill(dump, restored)
    }
}
