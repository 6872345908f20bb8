//! kiln.toml and kiln.lock: parse, validate, explain errors with line and column.

pub mod lock;
