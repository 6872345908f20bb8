//! What a route asks of the edge beside where it leads: `timeouts`, `body_max`, `in_flight`, `rate`, `sticky`.

use crate::reader::{Shared, Table};
use kiln_model::policy::{InFlight, Rate};
use kiln_model::{Millis, RoutePolicy, limits};

const MS: Millis = Millis(1);
/// Requests that wait, and the time that they do, unless the file says so.
const QUEUE: u32 = 0;
const WAIT: Millis = Millis(1000);
/// What is of HTTP and means nothing for bytes.
const HTTP_KEYS: [&str; 5] = ["host", "path", "body_max", "rate", "sticky"];

/// Reads what belongs to a policy. `tcp` tells that the route is a raw one.
pub(crate) fn read(table: &mut Table<'_>, tcp: bool, sink: Shared<'_, '_>) -> RoutePolicy {
    if tcp {
        for key in HTTP_KEYS {
            refuse(table, key, sink);
        }
    }
    let mut policy = RoutePolicy { sticky: flag(table, "sticky", sink), ..RoutePolicy::default() };
    if let Some(mut times) = table.table("timeouts", sink) {
        if tcp {
            refuse(&mut times, "answer", sink);
            refuse(&mut times, "total", sink);
        }
        policy.connect = times.duration_from("connect", MS, sink);
        policy.answer = times.duration_from("answer", MS, sink);
        policy.idle = times.duration_from("idle", MS, sink);
        policy.total = times.duration_from("total", MS, sink);
        times.finish(sink);
    }
    policy.body_max = table.size("body_max", sink).map(|(bytes, _)| bytes);
    policy.in_flight = table.table("in_flight", sink).and_then(|table| in_flight(table, sink));
    policy.rate = table.table("rate", sink).and_then(|table| rate(table, sink));
    policy
}

/// `true` or `false`; absent is false.
pub(crate) fn flag(table: &mut Table<'_>, key: &'static str, sink: Shared<'_, '_>) -> bool {
    let Some(value) = table.take(key) else { return false };
    let flag = value.value.as_bool();
    if flag.is_none() {
        value.wrong(key, "`true` or `false`", sink);
    }
    flag.unwrap_or_default()
}

fn refuse(table: &mut Table<'_>, key: &'static str, sink: Shared<'_, '_>) {
    let Some(value) = table.take(key) else { return };
    let message =
        format!("`{key}` in `{}` is of HTTP, and a `tcp` route carries bytes as they are", table.name);
    let hint = format!("remove `{key}`, or `tcp` if the service speaks HTTP");
    sink.borrow_mut().push(value.span, message, Some(hint));
}

fn count(table: &mut Table<'_>, key: &'static str, least: u64, sink: Shared<'_, '_>) -> Option<u32> {
    let number = table.integer(key, least..=limits::IN_FLIGHT_MAX, sink);
    number.map(|n| u32::try_from(n).unwrap_or(u32::MAX))
}

/// `{ max = 100, queue = 50, wait = "1s" }`.
fn in_flight(mut table: Table<'_>, sink: Shared<'_, '_>) -> Option<InFlight> {
    if !table.has("max") {
        table.missing("max", "100", sink);
    }
    let max = count(&mut table, "max", 1, sink);
    let queue = count(&mut table, "queue", 0, sink).unwrap_or(QUEUE);
    let wait = table.duration_from("wait", MS, sink).unwrap_or(WAIT);
    table.finish(sink);
    Some(InFlight { max: max?, queue, wait })
}

/// `{ requests = 10, per = "1s", burst = 20 }`.
fn rate(mut table: Table<'_>, sink: Shared<'_, '_>) -> Option<Rate> {
    if !table.has("requests") {
        table.missing("requests", "10", sink);
    }
    let requests = count(&mut table, "requests", 1, sink);
    let per = table.duration_from("per", MS, sink).unwrap_or(Millis::from_secs(1));
    let burst = count(&mut table, "burst", 1, sink);
    table.finish(sink);
    let requests = requests?;
    Some(Rate { requests, per, burst: burst.unwrap_or(requests) })
}
