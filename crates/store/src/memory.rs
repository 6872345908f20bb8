//! The store in memory: the same rules, no durability. For tests and the simulator.

use crate::{Lease, LedgerEntry, Store, StoreError, ledger, rules};
use kiln_model::mutant::{Mutant, planted};
use kiln_model::{Epoch, Event, Incarnation, Instance, InstanceId, Millis, Mutation, Revision, Snapshot};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

#[derive(Default, Clone)]
struct State {
    snapshot: Arc<Snapshot>,
    epoch: Epoch,
    holder: String,
    /// None: without end.
    expires: Option<Instant>,
    tombstones: BTreeSet<InstanceId>,
    departed: Vec<Instance>,
    ledger: Vec<LedgerEntry>,
}

impl State {
    fn lease(&self) -> Lease {
        let left = |end: Instant| Millis(end.saturating_duration_since(Instant::now()).as_millis() as u64);
        Lease { holder: self.holder.clone(), epoch: self.epoch, left: self.expires.map(left) }
    }

    fn take_lease(&mut self, holder: &str, expires: Option<Instant>) -> (Incarnation, Epoch) {
        (self.epoch, self.expires) = (self.epoch.next(), expires);
        holder.clone_into(&mut self.holder);
        (self.snapshot.incarnation, self.epoch)
    }
}

/// A store that forgets everything with the process.
#[derive(Default)]
pub struct MemStore {
    state: Mutex<State>,
}

impl MemStore {
    /// Another one with the same content, to go back to.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self { state: Mutex::new(self.state().clone()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemStore {
    fn load(&self) -> Result<Arc<Snapshot>, StoreError> {
        Ok(self.state().snapshot.clone())
    }

    fn take_lease(&self, holder: &str) -> Result<(Incarnation, Epoch), StoreError> {
        Ok(self.state().take_lease(holder, None))
    }

    fn try_lease(
        &self,
        holder: &str,
        span: Millis,
    ) -> Result<Result<(Incarnation, Epoch), Lease>, StoreError> {
        let mut state = self.state();
        let lease = state.lease();
        if !lease.is_free_for(holder) {
            return Ok(Err(lease));
        }
        Ok(Ok(state.take_lease(holder, Some(Instant::now() + span.duration()))))
    }

    fn renew_lease(&self, epoch: Epoch, span: Millis) -> Result<(), StoreError> {
        let mut state = self.state();
        if state.epoch != epoch {
            return Err(StoreError::LeaseLost { mine: epoch, holder: state.epoch });
        }
        state.expires = Some(Instant::now() + span.duration());
        Ok(())
    }

    fn release_lease(&self, epoch: Epoch) -> Result<(), StoreError> {
        let mut state = self.state();
        if state.epoch == epoch {
            state.expires = Some(Instant::now());
        }
        Ok(())
    }

    fn lease(&self) -> Result<Lease, StoreError> {
        Ok(self.state().lease())
    }

    fn commit(
        &self,
        epoch: Epoch,
        base: Revision,
        mutations: &[Mutation],
        events: &[Event],
    ) -> Result<Revision, StoreError> {
        let mut state = self.state();
        if epoch != state.epoch && !planted(Mutant::NoStoreFence) {
            return Err(StoreError::LeaseLost { mine: epoch, holder: state.epoch });
        }
        let newest = state.snapshot.revision;
        if base != newest && !planted(Mutant::NoConflict) {
            return Err(StoreError::Conflict { base, newest });
        }
        let mut after = rules::check(&state.snapshot, mutations, |id| state.tombstones.contains(id))
            .map_err(|detail| StoreError::Illegal { detail })?;
        after.revision = newest.next();
        for mutation in mutations {
            if let Mutation::Gone { instance } = mutation {
                let row = state.snapshot.instances.get(instance).cloned();
                state.departed.extend(row.map(|row| Instance::clone(&row)));
                state.tombstones.insert(instance.clone());
            }
        }
        for event in events {
            let previous = state.ledger.last().map_or(ledger::GENESIS.to_owned(), |e| e.hash.clone());
            let entry = ledger::entry(&previous, state.ledger.len() as u64 + 1, after.revision, event);
            state.ledger.push(entry);
        }
        let revision = after.revision;
        state.snapshot = Arc::new(after);
        Ok(revision)
    }

    fn ledger(&self, from: u64, limit: usize) -> Result<Vec<LedgerEntry>, StoreError> {
        let start = from.saturating_sub(1) as usize;
        Ok(self.state().ledger.iter().skip(start).take(limit).cloned().collect())
    }

    fn verify_ledger(&self) -> Result<Result<u64, (u64, String)>, StoreError> {
        let state = self.state();
        let rows = state.ledger.iter().map(|e| {
            let body = serde_json::to_string(&e.event).unwrap_or_default();
            (e.sequence, e.revision.0, body, e.previous.clone(), e.hash.clone())
        });
        let head =
            state.ledger.last().map_or((0, ledger::GENESIS.to_owned()), |e| (e.sequence, e.hash.clone()));
        Ok(ledger::verify(rows, &head))
    }

    fn is_tombstoned(&self, id: &InstanceId) -> Result<bool, StoreError> {
        Ok(self.state().tombstones.contains(id))
    }

    fn departed(&self, limit: usize) -> Result<Vec<Instance>, StoreError> {
        Ok(self.state().departed.iter().rev().take(limit).cloned().collect())
    }
}
