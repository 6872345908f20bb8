//! Rows that cannot be read. A database whose pages are whole may still hold a row that is not what this kiln wrote: one such
//! row must not keep the server from looking after everything else.

use kiln_model::{Damaged, EnvRef, InstanceId};
use rusqlite::Connection;
use serde::de::DeserializeOwned;

/// Reads the rows of a table that has a column for the environment, and tells of those that cannot be read. `what` says
/// which of a row's columns names it.
pub(crate) fn bodies<T: DeserializeOwned>(
    connection: &Connection,
    (table, name): (&str, &str),
    damaged: &mut Vec<Damaged>,
) -> rusqlite::Result<Vec<T>> {
    // Constants of this file's callers, never what somebody typed.
    let query = format!("SELECT CAST({name} AS TEXT), env, body FROM {table}");
    let mut statement = connection.prepare(&query)?;
    let mut rows = statement.query([])?;
    let mut found = vec![];
    while let Some(row) = rows.next()? {
        // Not even that it is text is certain.
        let text = |index| row.get_ref(index).ok().and_then(|value| value.as_str().ok()).map(str::to_owned);
        match read(table, text(0).unwrap_or_default(), text(1), text(2)) {
            Ok(value) => found.push(value),
            Err(row) => damaged.push(row),
        }
    }
    Ok(found)
}

/// What a row's body says, or what is wrong with the row.
pub(crate) fn read<T: DeserializeOwned>(
    table: &str,
    name: String,
    env: Option<String>,
    body: Option<String>,
) -> Result<T, Damaged> {
    let error = match body.map(|body| serde_json::from_str(&body)) {
        Some(Ok(value)) => return Ok(value),
        Some(Err(error)) => error.to_string(),
        None => "it is not text".to_owned(),
    };
    Err(Damaged {
        env: env.and_then(|env| EnvRef::try_from(env).ok()),
        instance: (table == "instance").then(|| name.parse::<InstanceId>().ok()).flatten(),
        what: format!("{table} {name}"),
        error,
    })
}
