//! The load balancer: an HTTP/1.1 reverse proxy as a process of its own, and the client that control speaks to it with.
//!
//! A route table arrives whole, with one generation; it is made durable, put into use by one pointer swap, and
//! acknowledged when every data-path thread uses it. See [`client::Router`] for the contract.

pub mod client;
