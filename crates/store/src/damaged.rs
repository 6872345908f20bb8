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
    let mut read = vec![];
    while let Some(row) = rows.next()? {
        // Not even that it is text is certain.
        let text = |index| row.get_ref(index).ok().and_then(|value| value.as_str().ok()).map(str::to_owned);
        let error = match text(2).map(|body| serde_json::from_str(&body)) {
            Some(Ok(value)) => {
                read.push(value);
                continue;
            }
            Some(Err(error)) => error.to_string(),
            None => "it is not text".to_owned(),
        };
        let name = text(0).unwrap_or_default();
        damaged.push(Damaged {
            env: text(1).and_then(|env| EnvRef::try_from(env).ok()),
            instance: (table == "instance").then(|| name.parse::<InstanceId>().ok()).flatten(),
            what: format!("{table} {name}"),
            error,
        });
    }
    Ok(read)
}
