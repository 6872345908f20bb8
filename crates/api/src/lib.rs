//! Wire types and typed client.
