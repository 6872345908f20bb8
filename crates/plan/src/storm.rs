//! A heal storm: when most instances of a service look sick at once, it is rather what they share, or who looks, that
//! fails. Replacing them all would cost the capacity that is there, so nothing is replaced; the edge sends to what it has.

use kiln_model::edge::{EdgeStatus, TargetStatus};
use kiln_model::{EnvRef, Instance, Millis, ServiceName};

/// After so long one at a time is replaced all the same: its replacement shows whether that helps.
pub const STORM_MAX: Millis = Millis::from_secs(5 * 60);
/// A service with fewer instances has no majority that could be wrong.
const INSTANCES_MIN: usize = 2;

/// A service of which most instances look sick.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storm {
    /// Instances that the edge sends nothing.
    pub sick: usize,
    /// Instances in the table.
    pub of: usize,
    /// For how long so many have been sick.
    pub age: Millis,
    /// What the edge says of one of them.
    pub reason: Option<String>,
}

/// The storm over a service, if there is one.
pub fn over(edge: &EdgeStatus, env: &EnvRef, service: &ServiceName) -> Option<Storm> {
    let own = |t: &&TargetStatus| t.in_table && &t.env == env && &t.service == service;
    let of = edge.targets.iter().filter(own).count();
    let sick: Vec<&TargetStatus> = edge.targets.iter().filter(own).filter(|t| t.ejected).collect();
    if of < INSTANCES_MIN || sick.len() * 2 <= of {
        return None;
    }
    let newest = sick.iter().min_by_key(|t| t.ejected_for)?;
    Some(Storm { sick: sick.len(), of, age: newest.ejected_for, reason: newest.reason.clone() })
}

/// Whether the instance must not be replaced for looking sick.
pub(crate) fn holds(edge: &EdgeStatus, instance: &Instance) -> bool {
    over(edge, &instance.env, &instance.service).is_some_and(|storm| storm.age < STORM_MAX)
}
