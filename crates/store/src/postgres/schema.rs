//! The tables, as plain SQL, and how an older set of them becomes the newest: forward only, by one server at a time.

use super::session::Fault;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

/// From nothing to schema 1, and so on.
const STEPS: &[&str] = &["
CREATE TABLE meta(key text PRIMARY KEY, value text NOT NULL);
CREATE TABLE lease(one integer PRIMARY KEY CHECK(one = 1), holder text NOT NULL, epoch bigint NOT NULL,
                   expires timestamptz, revision bigint NOT NULL, incarnation bigint NOT NULL);
INSERT INTO lease VALUES(1, '', 0, NULL, 0, 0);
CREATE TABLE environment(env text PRIMARY KEY, body text NOT NULL);
CREATE TABLE release(env text NOT NULL, number bigint NOT NULL, body text NOT NULL, PRIMARY KEY(env, number));
CREATE TABLE secret(env text NOT NULL, name text NOT NULL, version bigint NOT NULL, body text NOT NULL,
                    PRIMARY KEY(env, name, version));
CREATE TABLE rollout(id bigint PRIMARY KEY, env text NOT NULL, body text NOT NULL);
CREATE TABLE instance(id text PRIMARY KEY, env text NOT NULL, body text NOT NULL);
CREATE TABLE tombstone(id text PRIMARY KEY, revision bigint NOT NULL, body text);
CREATE INDEX tombstone_revision ON tombstone(revision);
CREATE TABLE op(key text PRIMARY KEY, id bigint NOT NULL, body text NOT NULL);
CREATE TABLE route(one integer PRIMARY KEY CHECK(one = 1), generation bigint NOT NULL, body text NOT NULL);
CREATE TABLE answer(key text PRIMARY KEY, body text NOT NULL);
CREATE TABLE ledger(sequence bigint PRIMARY KEY, revision bigint NOT NULL, body text NOT NULL,
                    previous text NOT NULL, hash text NOT NULL);
"];

/// Any number that no other program takes the lock by: "kiln" in ASCII.
const LOCK: i64 = 0x6b69_6c6e;

/// The schema that this kiln writes.
pub(super) const SCHEMA: u32 = STEPS.len() as u32;

/// Makes the tables what this kiln knows. Servers that start together wait for each other.
pub(super) async fn migrate(client: &mut Client) -> Result<(), Fault> {
    let tx = client.transaction().await?;
    tx.query_typed("SELECT pg_advisory_xact_lock($1)", &[(&LOCK, Type::INT8)]).await?;
    let is_there = "SELECT to_regclass('meta') IS NOT NULL";
    let found: u32 = if tx.query_typed_one(is_there, &[]).await?.get(0) {
        let row = tx.query_typed_opt("SELECT value FROM meta WHERE key = 'schema'", &[]).await?;
        let text: String = row.map(|row| row.get(0)).unwrap_or_default();
        text.parse().map_err(|_| Fault::Foreign)?
    } else {
        0
    };
    if found > SCHEMA {
        return Err(Fault::Newer { found });
    }
    if found < SCHEMA {
        for step in &STEPS[found as usize..] {
            tx.batch_execute(step).await?;
        }
        let write = "INSERT INTO meta VALUES('schema', $1) ON CONFLICT(key) DO UPDATE SET value = $1";
        tx.query_typed(write, &[(&SCHEMA.to_string(), Type::TEXT)]).await?;
    }
    tx.commit().await?;
    Ok(())
}
