//! The store in memory: the same rules, no durability. For tests and the simulator.

use crate::{Dump, Lease, LedgerEntry, Restored, Store, StoreError, Tombstone, dump, ledger, rules};
use kiln_model::mutant::{Mutant, planted};
use kiln_model::{Epoch, Event, Incarnation, Instance, InstanceId, Millis, Mutation, Revision, Snapshot};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

#[derive(Default, Clone)]
struct State {
    snapshot: Arc<Snapshot>,
    epoch: Epoch,
    holder: String,
    /// None: without end.
    expires: Option<Instant>,
    tombstones: BTreeMap<InstanceId, Tombstone>,
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
        let mut after = rules::check(&state.snapshot, mutations, |id| state.tombstones.contains_key(id))
            .map_err(|detail| StoreError::Illegal { detail })?;
        after.revision = newest.next();
        for mutation in mutations {
            if let Mutation::Gone { instance } = mutation {
                let row = state.snapshot.instances.get(instance).cloned();
                let last = row.map(|row| Box::new(Instance::clone(&row)));
                state.departed.extend(last.as_deref().cloned());
                let tombstone = Tombstone { id: instance.clone(), revision: after.revision, last };
                state.tombstones.entry(instance.clone()).or_insert(tombstone);
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
        Ok(self.state().tombstones.contains_key(id))
    }

    fn departed(&self, limit: usize) -> Result<Vec<Instance>, StoreError> {
        Ok(self.state().departed.iter().rev().take(limit).cloned().collect())
    }

    fn tombstones(&self) -> Result<Vec<Tombstone>, StoreError> {
        let mut all: Vec<Tombstone> = self.state().tombstones.values().cloned().collect();
        all.sort_by(|a, b| (a.revision, a.id.as_str()).cmp(&(b.revision, b.id.as_str())));
        Ok(all)
    }

    fn epoch(&self) -> Result<Epoch, StoreError> {
        Ok(self.state().epoch)
    }

    fn raise(&self, floor: (Incarnation, Epoch)) -> Result<(), StoreError> {
        let mut state = self.state();
        state.epoch = state.epoch.max(floor.1);
        if floor.0 > state.snapshot.incarnation {
            Arc::make_mut(&mut state.snapshot).incarnation = floor.0;
        }
        Ok(())
    }

    fn fill(&self, dump: &Dump, restored: &Restored) -> Result<(), StoreError> {
        let mut state = self.state();
        if state.snapshot.revision != Revision(0) {
            return Err(StoreError::Illegal { detail: "a backup fills an empty store only".into() });
        }
        let after = dump::restored(dump, restored);
        state.tombstones = dump.tombstones.iter().map(|row| (row.id.clone(), row.clone())).collect();
        state.departed = dump.tombstones.iter().filter_map(|row| row.last.as_deref().cloned()).collect();
        state.ledger.clone_from(&dump.ledger);
        if let Some((_, event)) = &restored.hold {
            let previous = state.ledger.last().map_or(ledger::GENESIS.to_owned(), |e| e.hash.clone());
            let sequence = state.ledger.len() as u64 + 1;
            state.ledger.push(ledger::entry(&previous, sequence, after.revision, event));
        }
        state.epoch = restored.epoch;
        state.snapshot = Arc::new(after);
        Ok(())
    }
}
