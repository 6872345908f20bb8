//! What a route asks of the edge beside where it leads: how long things may take, how large they may be, how much at once.
//! What it does not say, the edge has defaults for; docs/how-to/protect-a-service.md lists them.

use crate::time::Millis;
use serde::{Deserialize, Serialize};

/// See the module. The default asks for nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RoutePolicy {
    /// How long connecting to an instance may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<Millis>,
    /// How long an instance may take until the head of its answer, and a client while its body does not move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Millis>,
    /// How long an answer, an upgraded or a raw connection may carry nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Millis>,
    /// How long a request may take from its head to the end of its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<Millis>,
    /// Bytes of the body of a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_max: Option<u64>,
    /// How much each instance gets at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<InFlight>,
    /// How often each client may ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Whether a client keeps its release while two share the route.
    #[serde(default, skip_serializing_if = "is_false")]
    pub sticky: bool,
}

/// A bound on the requests (or raw connections) that one instance has at once, and on those that wait for their turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InFlight {
    /// Requests that an instance has at once from routes with a bound.
    pub max: u32,
    /// Requests that may wait, per service; 0 sheds at once.
    pub queue: u32,
    /// How long one may wait.
    pub wait: Millis,
}

/// A bound on the requests of one client address: a bucket that holds `burst` and gets `requests` in each `per`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Rate {
    /// Requests in each [`Rate::per`].
    pub requests: u32,
    /// The time.
    pub per: Millis,
    /// Requests that may come at once.
    pub burst: u32,
}

impl RoutePolicy {
    /// Whether it asks for nothing.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

pub(crate) fn is_false(value: &bool) -> bool {
    !value
}
