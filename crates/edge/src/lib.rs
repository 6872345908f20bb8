//! The load balancer: a reverse proxy for HTTP/1.1 and HTTP/2, with and without TLS, as a process of its own, and the client that control speaks to it with.
//!
//! A route table arrives whole, with one generation; it is made durable, put into use by one pointer swap, and
//! acknowledged when every data-path thread uses it. See [`client::Router`] for the contract.
//!
//! ```text
//! client → guard (socket) → [tls] → tap (raw framing of HTTP/1) → hyper [h2] → gate → table → choose → pool → instance
//!                                └── flight: counted once, when the answer ended
//! service address:80 → inside: the same, by the names of one environment
//! port of a raw TCP route → ports → door → tcp: table, choose, splice
//! next edge ◀─ sockets, lock, control socket ─ handover ; counts, switches ─▶ predecessor
//! control.sock → control: fence, persist, switch, wait for the threads; health: one task per target
//! ```
//!
//! Answers carry `x-kiln-release: N`, `x-kiln-instance: ID` and `x-request-id`. An answer that the edge made itself has
//! `x-kiln-error: CODE` instead of the first two, and a line of text that names the service and the reason.
#![forbid(unsafe_code)]

mod access;
mod acme;
mod admission;
mod alarm;
mod bind;
mod certificates;
mod choose;
pub mod client;
mod connection;
mod control;
mod door;
mod flight;
mod gate;
mod guard;
mod h2;
mod handover;
mod health;
mod inside;
pub mod limits;
mod log;
mod meter;
mod mux;
mod notify;
mod persist;
mod pool;
mod ports;
mod predecessor;
mod proxy;
mod proxy_protocol;
mod rate;
mod remote;
mod replay;
mod rules;
mod server;
mod shared;
mod sockets;
mod splice;
mod sticky;
mod table;
mod tap;
mod target;
mod tcp;
mod tls;
mod trace;
mod upload;
mod watched;
mod wire;

pub use persist::kept_fence;
pub use remote::{EdgeClient, Listen, SpawnError, spawn_edge};
pub use server::{EdgeConfig, EdgeError, control_socket, program_identity, run};
pub use table::TableError;
