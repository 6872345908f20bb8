//! What a backup needs of this store: its tombstones, its epoch, and one transaction that fills an empty one.

use super::{append, json, meta, parse, set_meta, write};
use crate::StoreError;
use crate::dump::{Dump, Restored, Tombstone};
use kiln_model::{Epoch, Incarnation, Revision, Snapshot};
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, params};
use std::path::Path;

pub(super) fn tombstones(connection: &Connection) -> rusqlite::Result<Vec<Tombstone>> {
    let query = "SELECT id, revision, body FROM tombstone ORDER BY revision, id";
    let mut statement = connection.prepare(query)?;
    let rows = statement.query_map([], |row| {
        let id: String = row.get(0)?;
        let last: Option<String> = row.get(2)?;
        Ok(Tombstone {
            id: parse(&json(&id))?,
            revision: Revision(row.get(1)?),
            last: last.map(|text| parse(&text)).transpose()?,
        })
    })?;
    rows.collect()
}

/// Makes the next lease higher than `floor`. What is higher already stays.
pub(super) fn raise(
    connection: &mut Connection,
    floor: (Incarnation, Epoch),
) -> rusqlite::Result<Incarnation> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let incarnation = Incarnation(meta(&tx, "incarnation")?).max(floor.0);
    let epoch = Epoch(meta(&tx, "epoch")?).max(floor.1);
    set_meta(&tx, "incarnation", incarnation)?;
    set_meta(&tx, "epoch", epoch)?;
    tx.commit()?;
    Ok(incarnation)
}

/// Writes everything in one transaction, and answers the snapshot. The store must be empty.
pub(super) fn fill(
    connection: &mut Connection,
    dump: &Dump,
    restored: &Restored,
) -> Result<rusqlite::Result<Snapshot>, StoreError> {
    let empty = |tx: &Transaction<'_>| meta::<u64>(tx, "revision").map(|revision| revision == 0);
    let tx = match connection.transaction_with_behavior(TransactionBehavior::Immediate) {
        Ok(tx) => tx,
        Err(error) => return Ok(Err(error)),
    };
    match empty(&tx) {
        Ok(true) => {}
        Ok(false) => return Err(StoreError::Illegal { detail: "a backup fills an empty store only".into() }),
        Err(error) => return Ok(Err(error)),
    }
    let after = crate::dump::restored(dump, restored);
    Ok(write_all(&tx, dump, restored, &after).and_then(|()| tx.commit()).map(|()| after))
}

fn write_all(
    tx: &Transaction<'_>,
    dump: &Dump,
    restored: &Restored,
    after: &Snapshot,
) -> rusqlite::Result<()> {
    write(tx, &Snapshot::default(), after, &dump.rows)?;
    for row in &dump.tombstones {
        tx.prepare_cached("INSERT INTO tombstone VALUES(?1, ?2, ?3)")?.execute(params![
            row.id.as_str(),
            row.revision.0,
            row.last.as_ref().map(json)
        ])?;
    }
    for entry in &dump.ledger {
        tx.prepare_cached("INSERT INTO ledger VALUES(?1, ?2, ?3, ?4, ?5)")?.execute(params![
            entry.sequence,
            entry.revision.0,
            json(&entry.event),
            entry.previous,
            entry.hash
        ])?;
    }
    if let Some(last) = dump.ledger.last() {
        set_meta(tx, "ledger_sequence", last.sequence)?;
        set_meta(tx, "ledger_hash", &last.hash)?;
    }
    if let Some((recovery, event)) = &restored.hold {
        append(tx, after.revision, std::slice::from_ref(event))?;
        set_meta(tx, "recovery", json(recovery))?;
    }
    set_meta(tx, "incarnation", after.incarnation)?;
    set_meta(tx, "epoch", restored.epoch)
}

impl super::SqliteStore {
    /// Whose a database is and where it ends, without changing it: (incarnation, newest epoch, revision).
    pub fn peek(path: &Path) -> Result<(Incarnation, Epoch, Revision), StoreError> {
        let fail = |source: rusqlite::Error| super::io("reading", path, source);
        let connection = existing(path).map_err(fail)?;
        let found: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(fail)?;
        if found > super::SCHEMA {
            let path = path.display().to_string();
            return Err(StoreError::NewerSchema { path, found, known: super::SCHEMA });
        }
        let number = |key| meta::<u64>(&connection, key).map_err(fail);
        Ok((Incarnation(number("incarnation")?), Epoch(number("epoch")?), Revision(number("revision")?)))
    }

    /// Writes the log of a database that nobody uses into it, so that it is one file.
    pub fn settle(path: &Path) -> Result<(), StoreError> {
        let fail = |source: rusqlite::Error| super::io("closing", path, source);
        let connection = existing(path).map_err(fail)?;
        let busy: i64 =
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).map_err(fail)?;
        if busy != 0 {
            return Err(super::io("closing", path, std::io::Error::other("its log is in use")));
        }
        connection.close().map_err(|(_, source)| fail(source))
    }
}

fn existing(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(path, flags)
}
