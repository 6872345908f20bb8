//! Pure decisions. [`plan()`] turns (desired, observed, now) into the next commit and the effects that follow it;
//! [`command::decide`] turns a request of a user into a commit; [`explain`] says why things are as they are.
//!
//! There is no I/O here, no clock, no randomness, no async: the same input gives the same output, which is what the
//! simulator and the tables rest on.
#![forbid(unsafe_code)]

pub mod autoscale;
pub mod canary;
pub mod command;
mod draft;
pub mod explain;
pub mod figures;
pub mod instance;
pub mod lint;
pub mod mix;
pub mod observed;
pub mod overdue;
pub mod pause;
pub mod plan;
pub mod preview;
pub mod progress;
pub mod recovery;
mod rest;
pub mod rollout;
pub mod route;
pub mod safety;
mod shift;
pub mod still;
pub mod storm;

pub use command::{Command, Decision, Outcome, Refusal, Request, decide};
pub use observed::Observed;
pub use plan::{Plan, plan};
