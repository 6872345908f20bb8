//! Backups: what is restored is what was taken, in whichever store; one that is not whole is refused with one clear error.

#[expect(dead_code, reason = "not every suite needs every helper")]
mod history;

use history::{event, history};
use kiln_model::*;
use kiln_store::{Dump, DumpError, Lease, MemStore, Restored, SqliteStore, Store, StoreError};

fn restored() -> Restored {
    let recovery = Recovery { reason: "a backup was restored".into(), since: Boot(7), at: Wall(7) };
    Restored { incarnation: Incarnation(3), epoch: Epoch(40), hold: Some((recovery, event(99))) }
}

fn taken(store: &dyn Store) -> (Dump, Vec<u8>) {
    let dump = Dump::take(store, Wall(5)).unwrap();
    let mut bytes = vec![];
    dump.write(&mut bytes).unwrap();
    (dump, bytes)
}

#[test]
fn what_is_restored_is_what_was_taken_in_whichever_store() {
    let folder = tempfile::tempdir().unwrap();
    let file = SqliteStore::open(&folder.path().join("kiln.db")).unwrap();
    let (memory, path) = (MemStore::default(), folder.path().join("restored.db"));
    let last = history(&file, 12).pop().unwrap();
    history(&memory, 12);
    let (dump, bytes) = taken(&file);
    assert_eq!(taken(&memory), (dump.clone(), bytes.clone()), "a backup does not tell the store");
    assert_eq!(Dump::read(&bytes[..]).unwrap(), dump);
    assert_eq!(dump.snapshot(), *last);

    let (into_memory, into_file) = (MemStore::default(), SqliteStore::open(&path).unwrap());
    into_memory.fill(&dump, &restored()).unwrap();
    into_file.fill(&dump, &restored()).unwrap();
    let loaded = into_file.load().unwrap();
    assert_eq!(*loaded, *into_memory.load().unwrap());
    assert_eq!(loaded.recovery, restored().hold.map(|(recovery, _)| recovery));
    assert_eq!((loaded.incarnation, loaded.revision), (Incarnation(3), last.revision.next()));
    assert_eq!((&loaded.instances, &loaded.answers), (&last.instances, &last.answers));
    drop(into_file);
    let reopened = SqliteStore::open(&path).unwrap();
    assert_eq!(*reopened.load().unwrap(), *loaded, "it is on the disk");
    for store in [&reopened as &dyn Store, &into_memory] {
        assert_eq!(store.verify_ledger().unwrap(), Ok(13), "the chain goes on");
        assert_eq!(store.tombstones().unwrap(), file.tombstones().unwrap());
        assert!(store.is_tombstoned(&dump.tombstones[0].id).unwrap());
        assert_eq!(store.take_lease("a").unwrap(), (Incarnation(3), Epoch(41)));
        assert!(matches!(store.fill(&dump, &restored()), Err(StoreError::Illegal { .. })), "not empty");
    }
}

#[test]
fn without_a_hold_it_is_a_copy_into_whichever_store() {
    let (from, memory, file) = (MemStore::default(), MemStore::default(), SqliteStore::in_memory().unwrap());
    history(&from, 7);
    let (dump, bytes) = taken(&from);
    let copy = Restored { incarnation: dump.head.incarnation, epoch: dump.head.epoch, hold: None };
    for store in [&memory as &dyn Store, &file] {
        store.fill(&dump, &copy).unwrap();
        assert_eq!(*store.load().unwrap(), *from.load().unwrap());
        assert_eq!(store.verify_ledger().unwrap(), from.verify_ledger().unwrap());
        assert_eq!(taken(store), (dump.clone(), bytes.clone()));
    }
}

#[test]
fn what_comes_while_a_backup_is_taken_is_not_in_it() {
    /// Commits between the two looks.
    struct Busy(MemStore);
    impl Store for Busy {
        fn load(&self) -> Result<std::sync::Arc<Snapshot>, StoreError> {
            let before = self.0.load()?;
            let epoch = self.0.epoch()?;
            let oldest = before.instances.keys().next().cloned();
            let gone: Vec<_> = oldest.map(|instance| Mutation::Gone { instance }).into_iter().collect();
            self.0.commit(epoch, before.revision, &gone, &[event(50)])?;
            Ok(before)
        }
        fn take_lease(&self, holder: &str) -> Result<(Incarnation, Epoch), StoreError> {
            self.0.take_lease(holder)
        }
        fn try_lease(
            &self,
            holder: &str,
            span: Millis,
        ) -> Result<Result<(Incarnation, Epoch), Lease>, StoreError> {
            self.0.try_lease(holder, span)
        }
        fn renew_lease(&self, epoch: Epoch, span: Millis) -> Result<(), StoreError> {
            self.0.renew_lease(epoch, span)
        }
        fn release_lease(&self, epoch: Epoch) -> Result<(), StoreError> {
            self.0.release_lease(epoch)
        }
        fn lease(&self) -> Result<Lease, StoreError> {
            self.0.lease()
        }
        fn commit(&self, e: Epoch, b: Revision, m: &[Mutation], v: &[Event]) -> Result<Revision, StoreError> {
            self.0.commit(e, b, m, v)
        }
        fn ledger(&self, from: u64, limit: usize) -> Result<Vec<kiln_store::LedgerEntry>, StoreError> {
            self.0.ledger(from, limit)
        }
        fn verify_ledger(&self) -> Result<Result<u64, (u64, String)>, StoreError> {
            self.0.verify_ledger()
        }
        fn is_tombstoned(&self, id: &InstanceId) -> Result<bool, StoreError> {
            self.0.is_tombstoned(id)
        }
        fn departed(&self, limit: usize) -> Result<Vec<Instance>, StoreError> {
            self.0.departed(limit)
        }
        fn tombstones(&self) -> Result<Vec<kiln_store::Tombstone>, StoreError> {
            self.0.tombstones()
        }
        fn epoch(&self) -> Result<Epoch, StoreError> {
            self.0.epoch()
        }
        fn raise(&self, floor: (Incarnation, Epoch)) -> Result<(), StoreError> {
            self.0.raise(floor)
        }
        fn fill(&self, dump: &Dump, restored: &Restored) -> Result<(), StoreError> {
            self.0.fill(dump, restored)
        }
    }
    let store = Busy(MemStore::default());
    history(&store.0, 5);
    let (whole, _) = taken(&store.0);
    let (dump, _) = taken(&store);
    assert_eq!(dump, whole);
    assert_eq!(store.0.tombstones().unwrap().len(), whole.tombstones.len() + 1, "it came");
}

#[test]
fn one_that_is_not_whole_is_refused_wherever_it_is_cut_or_changed() {
    let store = MemStore::default();
    history(&store, 4);
    let (_, bytes) = taken(&store);
    for cut in 0..bytes.len() {
        let error = Dump::read(&bytes[..cut]).unwrap_err();
        let is_told = matches!(error, DumpError::Cut { .. } | DumpError::NotOne);
        assert!(is_told, "cut at {cut}: {error}");
        assert!(cut < 9 || matches!(error, DumpError::Cut { .. }), "cut at {cut}: {error}");
    }
    for at in (0..bytes.len()).step_by(7) {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!(Dump::read(&changed[..]).is_err(), "changed at {at}");
    }
    let newer = String::from_utf8(bytes.clone()).unwrap().replacen("\"format\":1", "\"format\":9", 1);
    assert!(matches!(Dump::read(newer.as_bytes()), Err(DumpError::Newer { found: 9 })));
    let longer = [&bytes[..], b"x"].concat();
    assert!(matches!(Dump::read(&longer[..]), Err(DumpError::Damaged { .. })));
    assert!(matches!(Dump::read(&b"SQLite format 3\n"[..]), Err(DumpError::NotOne)));
}

#[test]
fn a_backup_without_what_cannot_be_read_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kiln.db");
    history(&SqliteStore::open(&path).unwrap(), 4);
    let change = "UPDATE environment SET body = 'x'";
    rusqlite::Connection::open(&path).unwrap().execute_batch(change).unwrap();
    let error = Dump::take(&SqliteStore::open(&path).unwrap(), Wall(5)).unwrap_err();
    assert!(matches!(&error, DumpError::Incomplete { what } if what.contains("environment")), "{error}");
}

#[test]
fn a_lease_is_raised_above_what_receivers_saw_and_never_lowered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kiln.db");
    for store in [&SqliteStore::open(&path).unwrap() as &dyn Store, &MemStore::default()] {
        store.raise((Incarnation(0), Epoch(7))).unwrap();
        assert_eq!(store.take_lease("a").unwrap(), (Incarnation(0), Epoch(8)));
        store.raise((Incarnation(2), Epoch(3))).unwrap();
        assert_eq!(store.take_lease("a").unwrap(), (Incarnation(2), Epoch(9)));
        store.raise((Incarnation(1), Epoch(1))).unwrap();
        assert_eq!(store.take_lease("a").unwrap(), (Incarnation(2), Epoch(10)));
    }
}
