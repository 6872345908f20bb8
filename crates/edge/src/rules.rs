//! What a request has to keep to before anybody is bothered with it: how often its client may ask, and how large it may be.

use crate::flight::Flight;
use crate::gate;
use crate::limits::HOLD_BYTES_MAX;
use crate::meter::Refused;
use crate::proxy::{Client, Failure, Message};
use crate::table::{Route, Upstream};
use http::{HeaderValue, Request, StatusCode};
use hyper::body::{Body, Incoming};
use kiln_model::{Millis, Protocol};
use std::sync::atomic::Ordering;
use std::time::Instant;

impl Client {
    /// Makes a message of a request that keeps to the rules of its route.
    pub(crate) fn accept(
        &self,
        (pool, route): (&Upstream, &Route),
        request: Request<Incoming>,
        id: &HeaderValue,
        flight: &mut Flight,
    ) -> Result<Box<Message>, Failure> {
        if pool.protocol == Protocol::H2c && gate::upgrade(&request).is_some() {
            return Err(no_upgrade(pool));
        }
        if let Some(limiter) = &route.limiter
            && let Err(wait) = limiter.take(self.ends.peer.ip(), Instant::now())
        {
            flight.refused = Some(Refused::Limited);
            let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
            let reason = format!("too many requests from this address; the next one may come in {seconds} s");
            let status = StatusCode::TOO_MANY_REQUESTS;
            return Err(Failure { status, code: "rate", reason, retry: Some(seconds) });
        }
        let max = route.policy.body_max.unwrap_or(u64::MAX);
        if request.body().size_hint().exact().is_some_and(|length| length > max) {
            return Err(too_large(route));
        }
        // On its way through several futures it is moved often, and it is large.
        let message = Box::new(self.message(request, id, pool.protocol, max));
        if !message.progress.ended.load(Ordering::Relaxed) {
            flight.upload = Some(message.progress.clone());
        }
        if let Some(record) = &mut flight.record {
            record.trace = message.trace;
        }
        Ok(message)
    }

    /// Holds a body of unknown length back until it is known to keep to the limit of its route, as far as memory allows; the
    /// rest is counted on its way. True if that took time.
    pub(crate) async fn hold(&self, route: &Route, message: &mut Message) -> Result<bool, Failure> {
        let (Some(max), Some(request)) = (route.policy.body_max, &mut message.request) else {
            return Ok(false);
        };
        if message.progress.ended.load(Ordering::Relaxed) || request.body().size_hint().exact().is_some() {
            return Ok(false);
        }
        let time = route.policy.answer.map_or(self.shared.answer_timeout, Millis::duration);
        // Few requests come here: most futures have no room for it.
        if !Box::pin(request.body_mut().hold(max.min(HOLD_BYTES_MAX), time)).await {
            return Err(body_timeout());
        }
        match message.progress.too_large.load(Ordering::Relaxed) {
            true => Err(too_large(route)),
            false => Ok(true),
        }
    }
}

/// The body is larger than its route allows.
pub(crate) fn too_large(route: &Route) -> Failure {
    let max = route.policy.body_max.unwrap_or_default();
    let reason = format!("the body of the request is larger than the {max} bytes that this route allows");
    Failure { status: StatusCode::PAYLOAD_TOO_LARGE, code: "too-large", reason, retry: None }
}

/// The client does not send the body that it announced.
pub(crate) fn body_timeout() -> Failure {
    let reason = "the body of the request did not arrive".to_owned();
    Failure { status: StatusCode::REQUEST_TIMEOUT, code: "body-timeout", reason, retry: None }
}

/// HTTP/2 has no upgrades.
fn no_upgrade(pool: &Upstream) -> Failure {
    let (service, env) = (&pool.service, &pool.env);
    let reason = format!("service `{service}` of `{env}` speaks HTTP/2, where nothing is upgraded");
    Failure { status: StatusCode::NOT_IMPLEMENTED, code: "no-upgrade", reason, retry: None }
}
