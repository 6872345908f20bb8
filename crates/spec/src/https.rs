//! What a route says of HTTPS: the keys `https_only` and `hsts` of `[[routes]]`.

use crate::reader::{Shared, Table};
use crate::units;
use kiln_model::{Hsts, Https};

/// A year, without which browsers' makers take no host into their lists.
const PRELOAD_MIN_S: u64 = 365 * 86_400;

/// Reads both keys.
pub(crate) fn read(table: &mut Table<'_>, sink: Shared<'_, '_>) -> Https {
    Https { only: table.flag("https_only", sink).unwrap_or(false), hsts: hsts(table, sink) }
}

/// A duration, or a table of one and of what else the field may say.
fn hsts(table: &mut Table<'_>, sink: Shared<'_, '_>) -> Option<Hsts> {
    let value = table.take("hsts")?;
    let plain = |max_age_s| Hsts { max_age_s, subdomains: false, preload: false };
    if let Some(text) = value.value.as_str() {
        let seconds = units::seconds(text);
        if seconds.is_none() {
            value.wrong("hsts", units::LONG_DURATION, sink);
        }
        return seconds.map(plain);
    }
    let span = value.span.clone();
    let mut table = value.as_table("hsts".into(), sink)?;
    if !table.has("max_age") {
        table.missing("max_age", "\"365d\"", sink);
    }
    let max_age = table.take("max_age");
    let seconds = max_age.as_ref().and_then(|v| v.value.as_str()).and_then(units::seconds);
    if let (Some(value), None) = (&max_age, seconds) {
        value.wrong("max_age", units::LONG_DURATION, sink);
    }
    let subdomains = table.flag("subdomains", sink).unwrap_or(false);
    let preload = table.flag("preload", sink).unwrap_or(false);
    table.finish(sink);
    let max_age_s = seconds?;
    if preload && (!subdomains || max_age_s < PRELOAD_MIN_S) {
        let hint = "browsers list a host only with `subdomains = true` and a `max_age` of at least \"365d\"";
        let message = "`preload` without what it needs";
        sink.borrow_mut().push(span, message, Some(hint.to_owned()));
    }
    Some(Hsts { subdomains, preload, ..plain(max_age_s) })
}
