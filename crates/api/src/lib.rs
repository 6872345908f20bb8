//! What goes over the wire between the command line and the control plane, and the client that sends it.
//!
//! One file per noun holds its request and its views. They are a contract of their own, apart from the model: ids are
//! text, times are milliseconds since 1970 (`at`, `created`) or spans in milliseconds (`…_ms`), a digest is `sha256:HEX`.
//! Fields are only ever added. [`error`] holds the one table that says what each error means.
#![forbid(unsafe_code)]

pub mod address;
pub mod audit;
pub mod backup;
pub mod bake;
pub mod client;
pub mod deploy;
pub mod environment;
pub mod error;
pub mod export;
pub mod image;
pub mod instance;
pub mod key;
pub mod lock;
pub mod logs;
pub mod path;
pub mod pause;
pub mod release;
pub mod replicate;
pub mod rollout;
pub mod scale;
pub mod secret;
pub mod server;
pub mod source;
pub mod status;
pub mod update;
pub mod why;

pub use address::Address;
pub use client::{Client, ClientError};
pub use error::{Code, ErrorBody, Exit, Fault, WireError};
pub use update::Update;
