//! The store on SQLite: one writer connection, WAL, every commit flushed to disk before it counts.

mod fill;

use crate::reserve::Reserve;
use crate::{Dump, Lease, LedgerEntry, Restored, Store, StoreError, Tombstone, damaged, ledger, rules};
use kiln_model::mutant::{Mutant, planted};
use kiln_model::{
    Answered, Damaged, Environment, Epoch, Event, Generation, Incarnation, Instance, InstanceId, Millis,
    Mutation, Op, OpId, Release, Revision, Rollout, RolloutId, RouteTable, Secret, Snapshot,
};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The schema that this kiln writes.
const SCHEMA: u32 = 2;
/// SQLite before 3.51.3 could corrupt a WAL that two connections reset.
const SQLITE_MIN: i32 = 3_051_003;

const TABLES: &str = "
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE environment(env TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
CREATE TABLE release(env TEXT NOT NULL, number INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY(env, number)) STRICT;
CREATE TABLE rollout(id INTEGER PRIMARY KEY, env TEXT NOT NULL, body TEXT NOT NULL) STRICT;
CREATE TABLE instance(id TEXT PRIMARY KEY, env TEXT NOT NULL, body TEXT NOT NULL) STRICT;
CREATE TABLE tombstone(id TEXT PRIMARY KEY, revision INTEGER NOT NULL, body TEXT) STRICT;
CREATE TABLE op(key TEXT PRIMARY KEY, id INTEGER NOT NULL, body TEXT NOT NULL) STRICT;
CREATE TABLE route(one INTEGER PRIMARY KEY CHECK(one = 1), generation INTEGER NOT NULL, body TEXT NOT NULL) STRICT;
CREATE TABLE ledger(sequence INTEGER PRIMARY KEY, revision INTEGER NOT NULL, body TEXT NOT NULL,
                    previous TEXT NOT NULL, hash TEXT NOT NULL) STRICT;
";

/// From schema 1 to 2.
const SECRETS: &str = "
CREATE TABLE secret(env TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, body TEXT NOT NULL,
                    PRIMARY KEY(env, name, version)) STRICT;
";

struct State {
    connection: Connection,
    snapshot: Arc<Snapshot>,
    reserve: Reserve,
    /// What kind of failure a commit met, after which nothing is known.
    poisoned: Option<ErrorKind>,
}

/// Durable truth in one file.
pub struct SqliteStore {
    state: Mutex<State>,
    path: PathBuf,
}

impl SqliteStore {
    /// Opens or makes the database, checks it, and reads it whole.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let fail = |step| move |source: rusqlite::Error| io(step, path, source);
        if rusqlite::version_number() < SQLITE_MIN {
            let text = format!("SQLite {} is too old", rusqlite::version());
            return Err(io("checking the SQLite version", path, std::io::Error::other(text)));
        }
        let mut connection = Connection::open(path).map_err(fail("opening"))?;
        let pragmas = "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON; PRAGMA busy_timeout=5000;
             PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON; PRAGMA mmap_size=0;";
        connection.execute_batch(pragmas).map_err(fail("setting up"))?;
        let check: String =
            connection.query_row("PRAGMA quick_check", [], |row| row.get(0)).map_err(fail("checking"))?;
        if check != "ok" {
            return Err(io("checking", path, std::io::Error::other(check)));
        }
        migrate(&mut connection, path)?;
        let snapshot = Arc::new(read(&connection).map_err(fail("reading"))?);
        let state = State {
            connection,
            snapshot,
            reserve: if path == Path::new(":memory:") { Reserve::none() } else { Reserve::beside(path) },
            poisoned: None,
        };
        Ok(Self { state: Mutex::new(state), path: path.to_owned() })
    }

    /// A database that is gone with the value, for the simulator.
    pub fn in_memory() -> Result<Self, StoreError> {
        Self::open(Path::new(":memory:"))
    }

    fn state(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kind) = state.poisoned {
            let text = match kind {
                ErrorKind::StorageFull => "the disk is full; nothing is known until a restart",
                _ => "an earlier commit failed; nothing is known until a restart",
            };
            return Err(io("using", &self.path, std::io::Error::new(kind, text)));
        }
        Ok(state)
    }

    fn fail(&self, step: &'static str) -> impl Fn(rusqlite::Error) -> StoreError + '_ {
        move |source| io(step, &self.path, source)
    }

    /// Sets the end of the lease if its epoch is that; else answers with the epoch that it has.
    fn change_lease(
        &self,
        epoch: Epoch,
        span: Millis,
        step: &'static str,
    ) -> Result<Result<(), Epoch>, StoreError> {
        let mut state = self.state()?;
        let changed = in_tx(&mut state.connection, |tx| {
            let holder = Epoch(meta(tx, "epoch")?);
            if holder != epoch {
                return Ok(Err(holder));
            }
            set_meta(tx, "lease_expires", now_ms(tx)?.saturating_add(span.0)).map(Ok)
        });
        changed.map_err(self.fail(step))
    }

    fn try_commit(
        &self,
        state: &mut State,
        epoch: Epoch,
        base: Revision,
        mutations: &[Mutation],
        events: &[Event],
    ) -> Result<Revision, StoreError> {
        let fail = self.fail("committing");
        let tx = state.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&fail)?;
        let holder = Epoch(meta(&tx, "epoch").map_err(&fail)?);
        if holder != epoch && !planted(Mutant::NoStoreFence) {
            return Err(StoreError::LeaseLost { mine: epoch, holder });
        }
        let newest = Revision(meta(&tx, "revision").map_err(&fail)?);
        if (base != newest || state.snapshot.revision != newest) && !planted(Mutant::NoConflict) {
            return Err(StoreError::Conflict { base, newest });
        }
        let tombstoned = |id: &InstanceId| tombstone_exists(&tx, id).unwrap_or(true);
        let mut after = rules::check(&state.snapshot, mutations, tombstoned)
            .map_err(|detail| StoreError::Illegal { detail })?;
        after.revision = newest.next();
        let written = write(&tx, &state.snapshot, &after, mutations)
            .and_then(|()| append(&tx, after.revision, events))
            .and_then(|()| tx.commit());
        if let Err(error) = written.map_err(fail) {
            let full = error.is_disk_full();
            state.poisoned = Some(if full { ErrorKind::StorageFull } else { ErrorKind::Other });
            return Err(error);
        }
        let revision = after.revision;
        state.snapshot = Arc::new(after);
        Ok(revision)
    }
}

fn io(step: &'static str, path: &Path, source: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Io { step, path: path.display().to_string(), source: Box::new(source) }
}

/// Forward only. A copy of the old file is made before anything changes.
fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let fail = |source: rusqlite::Error| io("migrating", path, source);
    let found: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(fail)?;
    if found > SCHEMA {
        return Err(StoreError::NewerSchema { path: path.display().to_string(), found, known: SCHEMA });
    }
    if found < SCHEMA {
        if found > 0 {
            let copy = path.with_extension(format!("schema-{found}.db"));
            let made = connection.execute("VACUUM INTO ?1", [copy.to_string_lossy()]);
            // One that is there is of an earlier try, which changed nothing.
            made.map(drop).or_else(|error| if copy.exists() { Ok(()) } else { Err(error) }).map_err(fail)?;
        }
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fail)?;
        for step in &[TABLES, SECRETS][found as usize..] {
            tx.execute_batch(step).map_err(fail)?;
        }
        tx.pragma_update(None, "user_version", SCHEMA).map_err(fail)?;
        tx.commit().map_err(fail)?;
    }
    Ok(())
}

fn meta<T: std::str::FromStr + Default>(connection: &Connection, key: &str) -> rusqlite::Result<T> {
    let text: Option<String> =
        connection.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional()?;
    let Some(text) = text else { return Ok(T::default()) };
    // A number that cannot be read is not zero: an epoch of zero would be refused by everybody, for ever.
    text.parse().map_err(|_| {
        let source = std::io::Error::other(format!("meta `{key}` is `{text}`"));
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(source))
    })
}

fn set_meta(tx: &Transaction<'_>, key: &str, value: impl ToString) -> rusqlite::Result<()> {
    tx.prepare_cached("INSERT INTO meta VALUES(?1, ?2) ON CONFLICT(key) DO UPDATE SET value = ?2")?
        .execute(params![key, value.to_string()])?;
    Ok(())
}

/// One durable transaction.
fn in_tx<T>(
    connection: &mut Connection,
    work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let done = work(&tx)?;
    tx.commit()?;
    Ok(done)
}

/// The clock that leases go by, in milliseconds since 1970.
fn now_ms(connection: &Connection) -> rusqlite::Result<u64> {
    connection.query_row("SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER)", [], |row| row.get(0))
}

fn read_lease(connection: &Connection) -> rusqlite::Result<Lease> {
    let expires: String = meta(connection, "lease_expires")?;
    let left = match expires.as_str() {
        "" => None,
        // An end that cannot be read has passed: the epoch is what keeps others out.
        text => Some(Millis(text.parse().unwrap_or(0_u64).saturating_sub(now_ms(connection)?))),
    };
    Ok(Lease { holder: meta(connection, "holder")?, epoch: Epoch(meta(connection, "epoch")?), left })
}

/// Takes the lease, until `span` has passed or without end.
fn set_lease(tx: &Transaction<'_>, holder: &str, span: Option<Millis>) -> rusqlite::Result<Epoch> {
    let epoch = Epoch(meta::<u64>(tx, "epoch")? + 1);
    let expires = match span {
        Some(span) => now_ms(tx)?.saturating_add(span.0).to_string(),
        None => String::new(),
    };
    set_meta(tx, "epoch", epoch)?;
    set_meta(tx, "holder", holder)?;
    set_meta(tx, "lease_expires", expires)?;
    Ok(epoch)
}

fn bodies<T: DeserializeOwned>(connection: &Connection, table: &str) -> rusqlite::Result<Vec<Option<T>>> {
    let mut statement = connection.prepare(&format!("SELECT body FROM {table}"))?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
    rows.map(|text| Ok(parse(&text?).ok())).collect()
}

fn parse<T: DeserializeOwned>(text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(e)))
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn read(connection: &Connection) -> rusqlite::Result<Snapshot> {
    let mut snapshot = Snapshot::default();
    let mut lost = vec![];
    for environment in damaged::bodies::<Environment>(connection, ("environment", "env"), &mut lost)? {
        snapshot.apply(&Mutation::PutEnvironment(environment));
    }
    for release in damaged::bodies::<Release>(connection, ("release", "number"), &mut lost)? {
        snapshot.apply(&Mutation::PutRelease(Box::new(release)));
    }
    for secret in damaged::bodies::<Secret>(connection, ("secret", "name"), &mut lost)? {
        snapshot.apply(&Mutation::PutSecret(Box::new(secret)));
    }
    for rollout in damaged::bodies::<Rollout>(connection, ("rollout", "id"), &mut lost)? {
        snapshot.apply(&Mutation::PutRollout(Box::new(rollout)));
    }
    for instance in damaged::bodies::<Instance>(connection, ("instance", "id"), &mut lost)? {
        snapshot.apply(&Mutation::PutInstance(Box::new(instance)));
    }
    // An intent that cannot be read is one that was not written: what is still wanted is intended anew.
    for op in bodies::<Op>(connection, "op")?.into_iter().flatten() {
        snapshot.apply(&Mutation::PutOp(op));
    }
    let route = connection
        .query_row("SELECT generation, body FROM route", [], |row| {
            Ok((row.get::<_, u64>(0)?, row.get::<_, String>(1)?))
        })
        .optional()?;
    if let Some((generation, body)) = route {
        let table = parse::<RouteTable>(&body).unwrap_or_else(|error| {
            let error = error.to_string();
            lost.push(Damaged { env: None, instance: None, what: "the route table".into(), error });
            RouteTable::default()
        });
        snapshot.apply(&Mutation::PutRoute { generation: Generation(generation), table: Box::new(table) });
    }
    let mut answers = connection.prepare("SELECT value FROM meta WHERE key LIKE 'answer:%'")?;
    let answers = answers.query_map([], |row| row.get::<_, String>(0))?;
    for text in answers {
        // One that cannot be read is one that was forgotten.
        let answer = parse::<Answered>(&text?).ok();
        snapshot.answers.extend(answer.map(|answer| (answer.key.clone(), Arc::new(answer))));
    }
    snapshot.damaged = lost;
    let paused: String = meta(connection, "paused")?;
    snapshot.paused = if paused.is_empty() { None } else { parse(&paused)? };
    let recovery: String = meta(connection, "recovery")?;
    snapshot.recovery = if recovery.is_empty() { None } else { parse(&recovery)? };
    snapshot.revision = Revision(meta(connection, "revision")?);
    snapshot.incarnation = Incarnation(meta(connection, "incarnation")?);
    snapshot.boot_id = meta(connection, "boot_id")?;
    snapshot.acked = Generation(meta(connection, "acked")?);
    snapshot.next_instance = snapshot.next_instance.max(meta(connection, "next_instance")?);
    snapshot.next_rollout = snapshot.next_rollout.max(RolloutId(meta(connection, "next_rollout")?));
    snapshot.next_op = snapshot.next_op.max(OpId(meta(connection, "next_op")?));
    Ok(snapshot)
}

fn write(
    tx: &Transaction<'_>,
    before: &Snapshot,
    after: &Snapshot,
    mutations: &[Mutation],
) -> rusqlite::Result<()> {
    for mutation in mutations {
        match mutation {
            Mutation::PutEnvironment(row) => {
                tx.prepare_cached(
                    "INSERT INTO environment VALUES(?1, ?2) ON CONFLICT(env) DO UPDATE SET body = ?2",
                )?
                .execute(params![row.env.to_string(), json(row)])?;
            }
            Mutation::PutRelease(row) => {
                tx.prepare_cached(
                    "INSERT INTO release VALUES(?1, ?2, ?3) ON CONFLICT(env, number) DO UPDATE SET body = ?3",
                )?
                .execute(params![row.env.to_string(), row.number.0, json(row)])?;
            }
            Mutation::PutSecret(row) => {
                tx.prepare_cached(
                    "INSERT INTO secret VALUES(?1, ?2, ?3, ?4) ON CONFLICT(env, name, version) DO UPDATE SET body = ?4",
                )?
                .execute(params![row.env.to_string(), row.name.as_str(), row.version.0, json(row)])?;
            }
            Mutation::PutRollout(row) => {
                tx.prepare_cached(
                    "INSERT INTO rollout VALUES(?1, ?2, ?3) ON CONFLICT(id) DO UPDATE SET body = ?3",
                )?
                .execute(params![row.id.0, row.env.to_string(), json(row)])?;
            }
            Mutation::PutInstance(row) => {
                tx.prepare_cached(
                    "INSERT INTO instance VALUES(?1, ?2, ?3) ON CONFLICT(id) DO UPDATE SET body = ?3",
                )?
                .execute(params![row.id.as_str(), row.env.to_string(), json(row)])?;
            }
            Mutation::Gone { instance } => {
                let last = before.instances.get(instance).map(|row| json(&**row));
                tx.prepare_cached("INSERT OR IGNORE INTO tombstone VALUES(?1, ?2, ?3)")?.execute(params![
                    instance.as_str(),
                    after.revision.0,
                    last
                ])?;
                tx.prepare_cached("DELETE FROM instance WHERE id = ?1")?.execute([instance.as_str()])?;
            }
            Mutation::PutOp(row) => {
                tx.prepare_cached(
                    "INSERT INTO op VALUES(?1, ?2, ?3) ON CONFLICT(key) DO UPDATE SET id = ?2, body = ?3",
                )?
                .execute(params![json(&row.key), row.id.0, json(row)])?;
            }
            Mutation::DropOp { key, id } => {
                tx.prepare_cached("DELETE FROM op WHERE key = ?1 AND id = ?2")?
                    .execute(params![json(key), id.0])?;
            }
            Mutation::PutRoute { generation, table } => {
                tx.prepare_cached(
                    "INSERT INTO route VALUES(1, ?1, ?2) ON CONFLICT(one) DO UPDATE SET generation = ?1, body = ?2",
                )?
                .execute(params![generation.0, json(table)])?;
            }
            Mutation::RouteAcked { .. } => {}
            Mutation::Answer(row) => set_meta(tx, &format!("answer:{}", row.key), json(row))?,
            Mutation::Pause { env: None, .. } => {
                set_meta(tx, "paused", after.paused.as_ref().map(json).unwrap_or_default())?;
            }
            Mutation::Pause { env: Some(env), .. } => {
                if let Some(row) = after.environments.get(env) {
                    tx.execute(
                        "UPDATE environment SET body = ?2 WHERE env = ?1",
                        params![env.to_string(), json(&**row)],
                    )?;
                }
            }
            Mutation::Hold { .. } | Mutation::Recovered { .. } => {
                set_meta(tx, "recovery", after.recovery.as_ref().map(json).unwrap_or_default())?;
            }
            Mutation::Rebase { .. } => rewrite_times(tx, after)?,
        }
    }
    for key in before.answers.keys().filter(|key| !after.answers.contains_key(*key)) {
        tx.execute("DELETE FROM meta WHERE key = ?1", [format!("answer:{key}")])?;
    }
    set_meta(tx, "revision", after.revision)?;
    let counters = [
        ("acked", before.acked.0, after.acked.0),
        ("next_instance", before.next_instance, after.next_instance),
        ("next_rollout", before.next_rollout.0, after.next_rollout.0),
        ("next_op", before.next_op.0, after.next_op.0),
    ];
    for (key, _, new) in counters.into_iter().filter(|(_, old, new)| old != new) {
        set_meta(tx, key, new)?;
    }
    if before.boot_id != after.boot_id {
        set_meta(tx, "boot_id", &after.boot_id)?;
    }
    Ok(())
}

/// After a reboot every row that holds a time of the old boot is written anew.
fn rewrite_times(tx: &Transaction<'_>, after: &Snapshot) -> rusqlite::Result<()> {
    set_meta(tx, "paused", after.paused.as_ref().map(json).unwrap_or_default())?;
    set_meta(tx, "recovery", after.recovery.as_ref().map(json).unwrap_or_default())?;
    for row in after.environments.values() {
        tx.execute(
            "UPDATE environment SET body = ?2 WHERE env = ?1",
            params![row.env.to_string(), json(&**row)],
        )?;
    }
    for row in after.rollouts.values() {
        tx.execute("UPDATE rollout SET body = ?2 WHERE id = ?1", params![row.id.0, json(&**row)])?;
    }
    for row in after.instances.values() {
        tx.execute("UPDATE instance SET body = ?2 WHERE id = ?1", params![row.id.as_str(), json(&**row)])?;
    }
    for row in after.ops.values() {
        tx.execute("UPDATE op SET body = ?2 WHERE key = ?1", params![json(&row.key), json(row)])?;
    }
    Ok(())
}

/// Where the ledger ends, as it was written with its last entry.
fn ledger_head(connection: &Connection) -> rusqlite::Result<ledger::Head> {
    let hash: String = meta(connection, "ledger_hash")?;
    if !hash.is_empty() {
        return Ok((meta(connection, "ledger_sequence")?, hash));
    }
    // Nothing was written yet, or by a kiln that did not keep it.
    let last =
        connection.query_row("SELECT sequence, hash FROM ledger ORDER BY sequence DESC LIMIT 1", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        });
    Ok(last.optional()?.unwrap_or((0, ledger::GENESIS.to_owned())))
}

fn append(tx: &Transaction<'_>, revision: Revision, events: &[Event]) -> rusqlite::Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    let (mut sequence, mut previous) = ledger_head(tx)?;
    for event in events {
        sequence += 1;
        let entry = ledger::entry(&previous, sequence, revision, event);
        tx.prepare_cached("INSERT INTO ledger VALUES(?1, ?2, ?3, ?4, ?5)")?.execute(params![
            sequence,
            revision.0,
            json(event),
            previous,
            entry.hash
        ])?;
        previous = entry.hash;
    }
    set_meta(tx, "ledger_sequence", sequence)?;
    set_meta(tx, "ledger_hash", &previous)
}

impl Store for SqliteStore {
    fn load(&self) -> Result<Arc<Snapshot>, StoreError> {
        Ok(self.state()?.snapshot.clone())
    }

    fn take_lease(&self, holder: &str) -> Result<(Incarnation, Epoch), StoreError> {
        let mut state = self.state()?;
        let taken = in_tx(&mut state.connection, |tx| set_lease(tx, holder, None));
        let epoch = taken.map_err(self.fail("taking the lease"))?;
        Ok((state.snapshot.incarnation, epoch))
    }

    fn try_lease(
        &self,
        holder: &str,
        span: Millis,
    ) -> Result<Result<(Incarnation, Epoch), Lease>, StoreError> {
        let mut state = self.state()?;
        let taken = in_tx(&mut state.connection, |tx| {
            let lease = read_lease(tx)?;
            if lease.is_free_for(holder) { set_lease(tx, holder, Some(span)).map(Ok) } else { Ok(Err(lease)) }
        });
        let taken = taken.map_err(self.fail("taking the lease"))?;
        Ok(taken.map(|epoch| (state.snapshot.incarnation, epoch)))
    }

    fn renew_lease(&self, epoch: Epoch, span: Millis) -> Result<(), StoreError> {
        self.change_lease(epoch, span, "renewing the lease")?
            .map_err(|holder| StoreError::LeaseLost { mine: epoch, holder })
    }

    fn release_lease(&self, epoch: Epoch) -> Result<(), StoreError> {
        self.change_lease(epoch, Millis(0), "releasing the lease").map(drop)
    }

    fn lease(&self) -> Result<Lease, StoreError> {
        read_lease(&self.state()?.connection).map_err(self.fail("reading the lease"))
    }

    fn commit(
        &self,
        epoch: Epoch,
        base: Revision,
        mutations: &[Mutation],
        events: &[Event],
    ) -> Result<Revision, StoreError> {
        let mut guard = self.state()?;
        let state = &mut *guard;
        let mut done = self.try_commit(state, epoch, base, mutations, events);
        let full = done.as_ref().is_err_and(StoreError::is_disk_full);
        // It was taken back whole, so that it can be done again with the space that is kept for this.
        if full && state.connection.is_autocommit() && state.reserve.give() {
            state.poisoned = None;
            done = self.try_commit(state, epoch, base, mutations, events);
        }
        if done.is_ok() {
            state.reserve.keep();
        }
        done
    }

    fn ledger(&self, from: u64, limit: usize) -> Result<Vec<LedgerEntry>, StoreError> {
        let state = self.state()?;
        let fail = self.fail("reading the ledger");
        let query = "SELECT sequence, revision, body, previous, hash FROM ledger WHERE sequence >= ?1 ORDER BY sequence LIMIT ?2";
        let mut statement = state.connection.prepare_cached(query).map_err(&fail)?;
        let rows = statement
            .query_map(params![from, limit as u64], |row| {
                Ok(LedgerEntry {
                    sequence: row.get(0)?,
                    revision: Revision(row.get(1)?),
                    event: parse(&row.get::<_, String>(2)?)?,
                    previous: row.get(3)?,
                    hash: row.get(4)?,
                })
            })
            .map_err(&fail)?;
        rows.collect::<Result<_, _>>().map_err(&fail)
    }

    fn verify_ledger(&self) -> Result<Result<u64, (u64, String)>, StoreError> {
        let state = self.state()?;
        let fail = self.fail("verifying the ledger");
        let query = "SELECT sequence, revision, body, previous, hash FROM ledger ORDER BY sequence";
        let mut statement = state.connection.prepare(query).map_err(&fail)?;
        let rows = statement
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))
            .map_err(&fail)?;
        let rows: Vec<_> = rows.collect::<Result<_, _>>().map_err(&fail)?;
        let head = ledger_head(&state.connection).map_err(&fail)?;
        Ok(ledger::verify(rows.into_iter(), &head))
    }

    fn is_tombstoned(&self, id: &InstanceId) -> Result<bool, StoreError> {
        let state = self.state()?;
        tombstone_exists(&state.connection, id).map_err(self.fail("reading tombstones"))
    }

    fn departed(&self, limit: usize) -> Result<Vec<Instance>, StoreError> {
        let state = self.state()?;
        let fail = self.fail("reading tombstones");
        let query =
            "SELECT body FROM tombstone WHERE body IS NOT NULL ORDER BY revision DESC, id DESC LIMIT ?1";
        let mut statement = state.connection.prepare_cached(query).map_err(&fail)?;
        let rows = statement.query_map([limit as u64], |row| row.get::<_, String>(0)).map_err(&fail)?;
        rows.map(|text| parse(&text?)).collect::<Result<_, _>>().map_err(&fail)
    }

    fn tombstones(&self) -> Result<Vec<Tombstone>, StoreError> {
        fill::tombstones(&self.state()?.connection).map_err(self.fail("reading tombstones"))
    }

    fn epoch(&self) -> Result<Epoch, StoreError> {
        Ok(Epoch(meta(&self.state()?.connection, "epoch").map_err(self.fail("reading the lease"))?))
    }

    fn raise(&self, floor: (Incarnation, Epoch)) -> Result<(), StoreError> {
        let mut state = self.state()?;
        let raised = fill::raise(&mut state.connection, floor).map_err(self.fail("raising the lease"))?;
        if raised != state.snapshot.incarnation {
            Arc::make_mut(&mut state.snapshot).incarnation = raised;
        }
        Ok(())
    }

    fn fill(&self, dump: &Dump, restored: &Restored) -> Result<(), StoreError> {
        let mut state = self.state()?;
        let filled = fill::fill(&mut state.connection, dump, restored)?;
        state.snapshot = Arc::new(filled.map_err(self.fail("restoring"))?);
        Ok(())
    }
}

fn tombstone_exists(connection: &Connection, id: &InstanceId) -> rusqlite::Result<bool> {
    connection.prepare_cached("SELECT 1 FROM tombstone WHERE id = ?1")?.exists([id.as_str()])
}
