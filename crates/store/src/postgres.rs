//! The store on PostgreSQL, for several servers: every write transaction begins with the row `lease` and changes it only if
//! its epoch and its revision are the writer's, so that one that lost the lease writes nothing, whatever it believes.
//!
//! Nothing here relies on a session: no prepared statement, no setting and no lock outlives its transaction.

mod address;
mod rows;
mod schema;
mod session;
mod tls;

pub use address::{AddressError, PostgresAddress};

use crate::{Dump, Lease, LedgerEntry, Restored, Store, StoreError, Tombstone, ledger, rules};
use kiln_model::mutant::{Mutant, planted};
use kiln_model::{Epoch, Event, Incarnation, Instance, InstanceId, Millis, Mutation, Revision, Snapshot};
use rows::{count, int};
use session::{Fault, Line};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, IsolationLevel, Row, Transaction};

/// A server that stops in the middle of a transaction keeps the lease's row locked: the database ends such a transaction.
/// Less than any lease. It holds for one transaction only, so that poolers have nothing to remember.
const LIMIT: &str = "SET LOCAL idle_in_transaction_session_timeout = '2s'; SET LOCAL lock_timeout = '3s'";

/// Durable truth in a database that several servers share.
pub struct PostgresStore {
    line: Line,
}

impl PostgresStore {
    /// Connects, makes the tables or brings them up to date, and reads everything.
    pub fn open(address: PostgresAddress) -> Result<Self, StoreError> {
        let store = Self { line: Line::open(address)? };
        store.load()?;
        Ok(store)
    }

    /// The state folder that this database belongs to: `mine`, if it belonged to none so far.
    pub fn claim(&self, mine: &str) -> Result<String, StoreError> {
        let mine = mine.to_owned();
        self.line.ask("claiming the database", true, async move |client, _| {
            let claim = "INSERT INTO meta VALUES('home', $1) ON CONFLICT(key) DO NOTHING";
            client.query_typed(claim, &[(&mine, Type::TEXT)]).await?;
            let row = client.query_typed_one("SELECT value FROM meta WHERE key = 'home'", &[]).await?;
            Ok(row.get(0))
        })
    }

    /// Sets the end of the lease if its epoch is that; else answers with the epoch that it has.
    fn change_lease(
        &self,
        epoch: Epoch,
        span: Millis,
        step: &'static str,
    ) -> Result<Result<(), Epoch>, StoreError> {
        self.line.ask(step, true, async move |client, _| {
            let change = "UPDATE lease SET expires = clock_timestamp() + $2 * interval '1 millisecond' \
                          WHERE one = 1 AND epoch = $1 RETURNING epoch";
            let values = [(&int(epoch.0) as _, Type::INT8), (&(span.0 as f64) as _, Type::FLOAT8)];
            let changed = client.query_typed_opt(change, &values).await?.is_some();
            Ok(if changed { Ok(()) } else { Err(lease(client).await?.epoch) })
        })
    }
}

/// Who has the lease, by the database's clock.
async fn lease(client: &Client) -> Result<Lease, Fault> {
    let query = "SELECT holder, epoch, CAST(ceil(extract(epoch FROM expires - clock_timestamp()) * 1000) AS bigint) \
                 FROM lease WHERE one = 1";
    let row = client.query_typed_one(query, &[]).await?;
    let left = row.get::<_, Option<i64>>(2).map(|left| Millis(left.try_into().unwrap_or(0)));
    Ok(Lease { holder: row.get(0), epoch: Epoch(count(&row, 1)), left })
}

/// The newest snapshot: the known one if nobody wrote since.
async fn newest(client: &mut Client, known: &mut Option<Arc<Snapshot>>) -> Result<Arc<Snapshot>, Fault> {
    if let Some(known) = known {
        let row = client.query_typed_one("SELECT revision, incarnation FROM lease", &[]).await?;
        if (known.revision.0, known.incarnation.0) == (count(&row, 0), count(&row, 1)) {
            return Ok(known.clone());
        }
    }
    let tx = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
    let tx = tx.start().await?;
    let read = Arc::new(rows::read(&tx).await?);
    tx.commit().await?;
    *known = Some(read.clone());
    Ok(read)
}

/// Those of the instances that mutations write that were destroyed before.
async fn tombstones(tx: &Transaction<'_>, mutations: &[Mutation]) -> Result<BTreeSet<String>, Fault> {
    let put = |mutation: &Mutation| match mutation {
        Mutation::PutInstance(row) => Some(row.id.to_string()),
        _ => None,
    };
    let ids: Vec<String> = mutations.iter().filter_map(put).collect();
    if ids.is_empty() {
        return Ok(BTreeSet::new());
    }
    let rows =
        tx.query_typed("SELECT id FROM tombstone WHERE id = ANY($1)", &[(&ids, Type::TEXT_ARRAY)]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// What a commit is asked for.
struct Wanted {
    epoch: Epoch,
    base: Revision,
    mutations: Vec<Mutation>,
    events: Vec<Event>,
    /// Faults that were planted in the caller's thread.
    no_fence: bool,
    no_conflict: bool,
}

/// One commit. It is known to have happened if this answers with a revision, known not to have if it refuses, and unknown
/// after anything else.
async fn commit(
    client: &mut Client,
    known: &mut Option<Arc<Snapshot>>,
    wanted: &Wanted,
) -> Result<Revision, Fault> {
    let before = newest(client, known).await?;
    let tx = client.transaction().await?;
    tx.batch_execute(LIMIT).await?;
    // First of all: it locks the row, so that writers follow each other, and is the check that everything depends on.
    let check = "UPDATE lease SET revision = revision + 1 \
                 WHERE one = 1 AND (epoch = $1 OR $3) AND (revision = $2 OR $4) RETURNING revision";
    let values = [
        (&int(wanted.epoch.0) as _, Type::INT8),
        (&int(wanted.base.0) as _, Type::INT8),
        (&wanted.no_fence as _, Type::BOOL),
        (&wanted.no_conflict as _, Type::BOOL),
    ];
    let Some(row) = tx.query_typed_opt(check, &values).await? else {
        let row = tx.query_typed_one("SELECT epoch, revision FROM lease", &[]).await?;
        let (holder, newest) = (Epoch(count(&row, 0)), Revision(count(&row, 1)));
        tx.rollback().await?;
        return Err(Fault::Refused(if holder == wanted.epoch {
            StoreError::Conflict { base: wanted.base, newest }
        } else {
            StoreError::LeaseLost { mine: wanted.epoch, holder }
        }));
    };
    let revision = Revision(count(&row, 0));
    if before.revision.next() != revision {
        // Somebody wrote between the look and the lock; the caller's base is the newest all the same only by a planted fault.
        tx.rollback().await?;
        return Err(Fault::Refused(StoreError::Conflict { base: before.revision, newest: revision }));
    }
    let buried = tombstones(&tx, &wanted.mutations).await?;
    let checked = rules::check(&before, &wanted.mutations, |id| buried.contains(id.as_str()));
    let mut after = match checked {
        Ok(after) => after,
        Err(detail) => {
            tx.rollback().await?;
            return Err(Fault::Refused(StoreError::Illegal { detail }));
        }
    };
    after.revision = revision;
    rows::write(&tx, &before, &after, &wanted.mutations).await?;
    rows::append(&tx, revision, &wanted.events).await?;
    tx.commit().await?;
    *known = Some(Arc::new(after));
    Ok(revision)
}

impl Store for PostgresStore {
    fn load(&self) -> Result<Arc<Snapshot>, StoreError> {
        self.line.ask("reading", true, async |client, known| newest(client, known).await)
    }

    fn take_lease(&self, holder: &str) -> Result<(Incarnation, Epoch), StoreError> {
        let holder = holder.to_owned();
        self.line.ask("taking the lease", false, async move |client, _| {
            let take = "UPDATE lease SET holder = $1, epoch = epoch + 1, expires = NULL WHERE one = 1 \
                        RETURNING incarnation, epoch";
            Ok(taken(&client.query_typed_one(take, &[(&holder, Type::TEXT)]).await?))
        })
    }

    fn try_lease(
        &self,
        holder: &str,
        span: Millis,
    ) -> Result<Result<(Incarnation, Epoch), Lease>, StoreError> {
        let holder = holder.to_owned();
        self.line.ask("taking the lease", false, async move |client, _| {
            // One statement, whose condition is looked at again once the row is locked.
            let take = "UPDATE lease SET holder = $1, epoch = epoch + 1, \
                                         expires = clock_timestamp() + $2 * interval '1 millisecond' \
                        WHERE one = 1 AND (epoch = 0 OR holder = $1 OR expires <= clock_timestamp()) \
                        RETURNING incarnation, epoch";
            let values = [(&holder as _, Type::TEXT), (&(span.0 as f64) as _, Type::FLOAT8)];
            Ok(match client.query_typed_opt(take, &values).await? {
                Some(row) => Ok(taken(&row)),
                None => Err(lease(client).await?),
            })
        })
    }

    fn renew_lease(&self, epoch: Epoch, span: Millis) -> Result<(), StoreError> {
        let renewed = self.change_lease(epoch, span, "renewing the lease")?;
        renewed.map_err(|holder| StoreError::LeaseLost { mine: epoch, holder })
    }

    fn release_lease(&self, epoch: Epoch) -> Result<(), StoreError> {
        self.change_lease(epoch, Millis(0), "releasing the lease").map(drop)
    }

    fn lease(&self) -> Result<Lease, StoreError> {
        self.line.ask("reading the lease", true, async |client, _| lease(client).await)
    }

    fn commit(
        &self,
        epoch: Epoch,
        base: Revision,
        mutations: &[Mutation],
        events: &[Event],
    ) -> Result<Revision, StoreError> {
        let wanted = Wanted {
            epoch,
            base,
            mutations: mutations.to_vec(),
            events: events.to_vec(),
            no_fence: planted(Mutant::NoStoreFence),
            no_conflict: planted(Mutant::NoConflict),
        };
        let work = async move |client: &mut Client, known: &mut _| commit(client, known, &wanted).await;
        self.line.ask("committing", false, work)
    }

    fn ledger(&self, from: u64, limit: usize) -> Result<Vec<LedgerEntry>, StoreError> {
        self.line.ask("reading the ledger", true, async move |client, _| {
            let query = "SELECT sequence, revision, body, previous, hash FROM ledger WHERE sequence >= $1 \
                         ORDER BY sequence LIMIT $2";
            let values = [(&int(from) as _, Type::INT8), (&int(limit as u64) as _, Type::INT8)];
            let entry = |row: &Row| {
                Ok(LedgerEntry {
                    sequence: count(row, 0),
                    revision: Revision(count(row, 1)),
                    event: serde_json::from_str(row.get(2)).map_err(|_| Fault::Damaged("the ledger"))?,
                    previous: row.get(3),
                    hash: row.get(4),
                })
            };
            client.query_typed(query, &values).await?.iter().map(entry).collect()
        })
    }

    fn verify_ledger(&self) -> Result<Result<u64, (u64, String)>, StoreError> {
        self.line.ask("verifying the ledger", true, async |client, _| {
            let tx = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead);
            let tx = tx.read_only(true).start().await?;
            let query = "SELECT sequence, revision, body, previous, hash FROM ledger ORDER BY sequence";
            let rows = tx.query_typed(query, &[]).await?;
            let head = rows::ledger_head(&tx).await?;
            tx.commit().await?;
            let raw = |row: &Row| (count(row, 0), count(row, 1), row.get(2), row.get(3), row.get(4));
            Ok(ledger::verify(rows.iter().map(raw), &head))
        })
    }

    fn is_tombstoned(&self, id: &InstanceId) -> Result<bool, StoreError> {
        let id = id.to_string();
        self.line.ask("reading tombstones", true, async move |client, _| {
            let query = "SELECT 1 FROM tombstone WHERE id = $1";
            Ok(client.query_typed_opt(query, &[(&id, Type::TEXT)]).await?.is_some())
        })
    }

    fn departed(&self, limit: usize) -> Result<Vec<Instance>, StoreError> {
        self.line.ask("reading tombstones", true, async move |client, _| {
            let query = "SELECT body FROM tombstone WHERE body IS NOT NULL ORDER BY revision DESC, id COLLATE \"C\" DESC LIMIT $1";
            let rows = client.query_typed(query, &[(&int(limit as u64), Type::INT8)]).await?;
            let instance =
                |row: &Row| serde_json::from_str(row.get(0)).map_err(|_| Fault::Damaged("a tombstone"));
            rows.iter().map(instance).collect()
        })
    }

    fn tombstones(&self) -> Result<Vec<Tombstone>, StoreError> {
        self.line.ask("reading tombstones", true, async |client, _| rows::tombstones(client).await)
    }

    fn epoch(&self) -> Result<Epoch, StoreError> {
        Ok(self.lease()?.epoch)
    }

    fn raise(&self, floor: (Incarnation, Epoch)) -> Result<(), StoreError> {
        self.line.ask("raising the lease", true, async move |client, _| {
            let raise =
                "UPDATE lease SET incarnation = greatest(incarnation, $1), epoch = greatest(epoch, $2)";
            let values = [(&int(floor.0.0) as _, Type::INT8), (&int(floor.1.0) as _, Type::INT8)];
            client.query_typed(raise, &values).await?;
            Ok(())
        })
    }

    fn fill(&self, _: &Dump, _: &Restored) -> Result<(), StoreError> {
        let detail = "a backup cannot be restored into PostgreSQL yet; hint: `pg_dump` and `pg_restore`";
        Err(StoreError::Illegal { detail: detail.into() })
    }
}

fn taken(row: &Row) -> (Incarnation, Epoch) {
    (Incarnation(count(row, 0)), Epoch(count(row, 1)))
}
