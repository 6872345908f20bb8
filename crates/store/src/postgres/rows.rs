//! What a snapshot is in rows, and what each mutation writes. The meaning of a mutation is the model's; that both agree is
//! what the conformance suite is for.

use super::session::Fault;
use crate::{Tombstone, damaged, ledger};
use kiln_model::{
    Answered, Damaged, Event, Generation, Incarnation, Mutation, Op, OpId, Revision, RolloutId, RouteTable,
    Snapshot,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, Transaction};

/// Counters and texts that have no table of their own, by their key in `meta`.
const META: &str = "INSERT INTO meta VALUES($1, $2) ON CONFLICT(key) DO UPDATE SET value = $2";

pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// As PostgreSQL counts. kiln's counters never come near the end of it.
pub(super) fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A counter that was read.
pub(super) fn count(row: &Row, index: usize) -> u64 {
    row.get::<_, i64>(index).try_into().unwrap_or(0)
}

/// A value of a statement: a text, a number or nothing.
pub(super) enum Value {
    Text(String),
    Number(i64),
    Maybe(Option<String>),
}

impl Value {
    fn typed(&self) -> (&(dyn ToSql + Sync), Type) {
        match self {
            Self::Text(text) => (text, Type::TEXT),
            Self::Number(number) => (number, Type::INT8),
            Self::Maybe(text) => (text, Type::TEXT),
        }
    }
}

fn text(value: impl ToString) -> Value {
    Value::Text(value.to_string())
}

fn number(value: u64) -> Value {
    Value::Number(int(value))
}

/// Statements without a name: poolers that hand out another connection for each transaction know no others.
async fn write_row(tx: &Transaction<'_>, statement: &str, values: &[Value]) -> Result<(), Fault> {
    let values: Vec<_> = values.iter().map(Value::typed).collect();
    tx.query_typed(statement, &values).await?;
    Ok(())
}

async fn set_meta(tx: &Transaction<'_>, key: &str, value: impl ToString) -> Result<(), Fault> {
    write_row(tx, META, &[text(key), text(value)]).await
}

/// A value of `meta`; its default if it was never written. One that cannot be read is not zero.
async fn meta<T: std::str::FromStr + Default>(tx: &Transaction<'_>, key: &'static str) -> Result<T, Fault> {
    let row = tx.query_typed_opt("SELECT value FROM meta WHERE key = $1", &[(&key, Type::TEXT)]).await?;
    let Some(row) = row else { return Ok(T::default()) };
    row.get::<_, String>(0).parse().map_err(|_| Fault::Damaged(key))
}

/// The rows of a table that can be read; the others are told apart.
async fn bodies<T: DeserializeOwned>(
    tx: &Transaction<'_>,
    (table, name): (&str, &str),
    lost: &mut Vec<Damaged>,
) -> Result<Vec<T>, Fault> {
    // Constants of this file, never what somebody typed.
    let rows = tx
        .query_typed(&format!("SELECT CAST({name} AS text), env, body FROM {table} ORDER BY 1"), &[])
        .await?;
    let row = |row: &Row| {
        damaged::read(table, row.get(0), Some(row.get(1)), Some(row.get(2))).map_err(|row| lost.push(row))
    };
    Ok(rows.iter().map(row).filter_map(Result::ok).collect())
}

/// Everything, within a transaction that sees one moment.
pub(super) async fn read(tx: &Transaction<'_>) -> Result<Snapshot, Fault> {
    let mut snapshot = Snapshot::default();
    let mut lost = vec![];
    for row in bodies(tx, ("environment", "env"), &mut lost).await? {
        snapshot.apply(&Mutation::PutEnvironment(row));
    }
    for row in bodies(tx, ("release", "number"), &mut lost).await? {
        snapshot.apply(&Mutation::PutRelease(Box::new(row)));
    }
    for row in bodies(tx, ("secret", "name"), &mut lost).await? {
        snapshot.apply(&Mutation::PutSecret(Box::new(row)));
    }
    for row in bodies(tx, ("rollout", "id"), &mut lost).await? {
        snapshot.apply(&Mutation::PutRollout(Box::new(row)));
    }
    for row in bodies(tx, ("instance", "id"), &mut lost).await? {
        snapshot.apply(&Mutation::PutInstance(Box::new(row)));
    }
    for row in tx.query_typed("SELECT body FROM op", &[]).await? {
        // An intent that cannot be read is one that was not written: what is still wanted is intended anew.
        if let Ok(op) = serde_json::from_str::<Op>(row.get(0)) {
            snapshot.apply(&Mutation::PutOp(op));
        }
    }
    if let Some(row) = tx.query_typed_opt("SELECT generation, body FROM route", &[]).await? {
        let table = serde_json::from_str::<RouteTable>(row.get(1)).unwrap_or_else(|error| {
            let error = error.to_string();
            lost.push(Damaged { env: None, instance: None, what: "the route table".into(), error });
            RouteTable::default()
        });
        let generation = Generation(count(&row, 0));
        snapshot.apply(&Mutation::PutRoute { generation, table: Box::new(table) });
    }
    for row in tx.query_typed("SELECT body FROM answer", &[]).await? {
        // One that cannot be read is one that was forgotten.
        let answer = serde_json::from_str::<Answered>(row.get(0)).ok();
        snapshot.answers.extend(answer.map(|answer| (answer.key.clone(), Arc::new(answer))));
    }
    snapshot.damaged = lost;
    let paused: String = meta(tx, "paused").await?;
    if !paused.is_empty() {
        snapshot.paused = serde_json::from_str(&paused).map_err(|_| Fault::Damaged("paused"))?;
    }
    let recovery: String = meta(tx, "recovery").await?;
    if !recovery.is_empty() {
        snapshot.recovery = Some(serde_json::from_str(&recovery).map_err(|_| Fault::Damaged("recovery"))?);
    }
    let row = tx.query_typed_one("SELECT revision, incarnation FROM lease", &[]).await?;
    (snapshot.revision, snapshot.incarnation) = (Revision(count(&row, 0)), Incarnation(count(&row, 1)));
    snapshot.boot_id = meta(tx, "boot_id").await?;
    snapshot.acked = Generation(meta(tx, "acked").await?);
    snapshot.next_instance = snapshot.next_instance.max(meta(tx, "next_instance").await?);
    snapshot.next_rollout = snapshot.next_rollout.max(RolloutId(meta(tx, "next_rollout").await?));
    snapshot.next_op = snapshot.next_op.max(OpId(meta(tx, "next_op").await?));
    Ok(snapshot)
}

/// Writes what the mutations changed. The revision is written already: it is what the transaction began with.
pub(super) async fn write(
    tx: &Transaction<'_>,
    before: &Snapshot,
    after: &Snapshot,
    mutations: &[Mutation],
) -> Result<(), Fault> {
    for mutation in mutations {
        write_one(tx, before, after, mutation).await?;
    }
    for key in before.answers.keys().filter(|key| !after.answers.contains_key(*key)) {
        write_row(tx, "DELETE FROM answer WHERE key = $1", &[text(key)]).await?;
    }
    let counters = [
        ("acked", before.acked.0, after.acked.0),
        ("next_instance", before.next_instance, after.next_instance),
        ("next_rollout", before.next_rollout.0, after.next_rollout.0),
        ("next_op", before.next_op.0, after.next_op.0),
    ];
    for (key, _, new) in counters.into_iter().filter(|(_, old, new)| old != new) {
        set_meta(tx, key, new).await?;
    }
    if before.boot_id != after.boot_id {
        set_meta(tx, "boot_id", &after.boot_id).await?;
    }
    Ok(())
}

async fn write_one(
    tx: &Transaction<'_>,
    before: &Snapshot,
    after: &Snapshot,
    mutation: &Mutation,
) -> Result<(), Fault> {
    let (statement, values): (&str, Vec<Value>) = match mutation {
        Mutation::PutEnvironment(row) => (
            "INSERT INTO environment VALUES($1, $2) ON CONFLICT(env) DO UPDATE SET body = $2",
            vec![text(&row.env), text(json(row))],
        ),
        Mutation::PutRelease(row) => (
            "INSERT INTO release VALUES($1, $2, $3) ON CONFLICT(env, number) DO UPDATE SET body = $3",
            vec![text(&row.env), number(row.number.0), text(json(row))],
        ),
        Mutation::PutSecret(row) => (
            "INSERT INTO secret VALUES($1, $2, $3, $4) ON CONFLICT(env, name, version) DO UPDATE SET body = $4",
            vec![text(&row.env), text(&row.name), number(row.version.0), text(json(row))],
        ),
        Mutation::PutRollout(row) => (
            "INSERT INTO rollout VALUES($1, $2, $3) ON CONFLICT(id) DO UPDATE SET body = $3",
            vec![number(row.id.0), text(&row.env), text(json(row))],
        ),
        Mutation::PutInstance(row) => (
            "INSERT INTO instance VALUES($1, $2, $3) ON CONFLICT(id) DO UPDATE SET body = $3",
            vec![text(&row.id), text(&row.env), text(json(row))],
        ),
        Mutation::Gone { instance } => {
            let last = before.instances.get(instance).map(|row| json(&**row));
            let bury = "INSERT INTO tombstone VALUES($1, $2, $3) ON CONFLICT(id) DO NOTHING";
            write_row(tx, bury, &[text(instance), number(after.revision.0), Value::Maybe(last)]).await?;
            ("DELETE FROM instance WHERE id = $1", vec![text(instance)])
        }
        Mutation::PutOp(row) => (
            "INSERT INTO op VALUES($1, $2, $3) ON CONFLICT(key) DO UPDATE SET id = $2, body = $3",
            vec![text(json(&row.key)), number(row.id.0), text(json(row))],
        ),
        Mutation::DropOp { key, id } => {
            ("DELETE FROM op WHERE key = $1 AND id = $2", vec![text(json(key)), number(id.0)])
        }
        Mutation::PutRoute { generation, table } => (
            "INSERT INTO route VALUES(1, $1, $2) ON CONFLICT(one) DO UPDATE SET generation = $1, body = $2",
            vec![number(generation.0), text(json(table))],
        ),
        Mutation::RouteAcked { .. } => return Ok(()),
        Mutation::Answer(row) => (
            "INSERT INTO answer VALUES($1, $2) ON CONFLICT(key) DO UPDATE SET body = $2",
            vec![text(&row.key), text(json(row))],
        ),
        Mutation::Pause { env: None, .. } => (META, vec![text("paused"), text(paused(after))]),
        Mutation::Pause { env: Some(env), .. } => match after.environments.get(env) {
            Some(row) => {
                ("UPDATE environment SET body = $2 WHERE env = $1", vec![text(env), text(json(&**row))])
            }
            None => return Ok(()),
        },
        Mutation::Hold { .. } | Mutation::Recovered { .. } => {
            (META, vec![text("recovery"), text(recovery(after))])
        }
        Mutation::Rebase { .. } => return rewrite_times(tx, after).await,
    };
    write_row(tx, statement, &values).await
}

fn recovery(after: &Snapshot) -> String {
    after.recovery.as_ref().map(json).unwrap_or_default()
}

fn paused(after: &Snapshot) -> String {
    after.paused.as_ref().map(json).unwrap_or_default()
}

/// After a reboot every row that holds a time of the old boot is written anew.
async fn rewrite_times(tx: &Transaction<'_>, after: &Snapshot) -> Result<(), Fault> {
    set_meta(tx, "paused", paused(after)).await?;
    set_meta(tx, "recovery", recovery(after)).await?;
    for row in after.environments.values() {
        let statement = "UPDATE environment SET body = $2 WHERE env = $1";
        write_row(tx, statement, &[text(&row.env), text(json(&**row))]).await?;
    }
    for row in after.rollouts.values() {
        let statement = "UPDATE rollout SET body = $2 WHERE id = $1";
        write_row(tx, statement, &[number(row.id.0), text(json(&**row))]).await?;
    }
    for row in after.instances.values() {
        let statement = "UPDATE instance SET body = $2 WHERE id = $1";
        write_row(tx, statement, &[text(&row.id), text(json(&**row))]).await?;
    }
    for row in after.ops.values() {
        let statement = "UPDATE op SET body = $2 WHERE key = $1";
        write_row(tx, statement, &[text(json(&row.key)), text(json(row))]).await?;
    }
    Ok(())
}

/// Where the ledger ends, as it was written with its last entry.
pub(super) async fn ledger_head(tx: &Transaction<'_>) -> Result<ledger::Head, Fault> {
    let hash: String = meta(tx, "ledger_hash").await?;
    if hash.is_empty() {
        return Ok((0, ledger::GENESIS.to_owned()));
    }
    Ok((meta(tx, "ledger_sequence").await?, hash))
}

/// Chains the events to the end of the ledger.
pub(super) async fn append(tx: &Transaction<'_>, revision: Revision, events: &[Event]) -> Result<(), Fault> {
    if events.is_empty() {
        return Ok(());
    }
    let (mut sequence, mut previous) = ledger_head(tx).await?;
    for event in events {
        sequence += 1;
        let entry = ledger::entry(&previous, sequence, revision, event);
        let values =
            [number(sequence), number(revision.0), text(json(event)), text(previous), text(&entry.hash)];
        write_row(tx, "INSERT INTO ledger VALUES($1, $2, $3, $4, $5)", &values).await?;
        previous = entry.hash;
    }
    set_meta(tx, "ledger_sequence", sequence).await?;
    set_meta(tx, "ledger_hash", previous).await
}

/// Those of every instance that was ever destroyed, oldest first.
pub(super) async fn tombstones(client: &Client) -> Result<Vec<Tombstone>, Fault> {
    let query = "SELECT id, revision, body FROM tombstone ORDER BY revision, id COLLATE \"C\"";
    let tombstone = |row: &Row| {
        let damaged = |_| Fault::Damaged("a tombstone");
        let last: Option<String> = row.get(2);
        Ok(Tombstone {
            id: serde_json::from_str(&json(&row.get::<_, String>(0))).map_err(damaged)?,
            revision: Revision(count(row, 1)),
            last: last.map(|text| serde_json::from_str(&text).map_err(damaged)).transpose()?,
        })
    };
    client.query_typed(query, &[]).await?.iter().map(tombstone).collect()
}
