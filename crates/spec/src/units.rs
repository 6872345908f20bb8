//! Durations and sizes as people write them: `500ms`, `10s`, `2m`, `1h`; `64KiB`, `128MiB`, `1GiB`.

use kiln_model::Millis;

pub(crate) const DURATION: &str = "a duration such as \"500ms\", \"10s\", \"2m\" or \"1h\"";
pub(crate) const SIZE: &str = "a size such as \"64KiB\", \"128MiB\" or \"1GiB\"";

/// Longer than any sensible setting, short enough that sums cannot overflow: 30 days.
const DURATION_MAX_MS: u64 = 30 * 24 * 3_600_000;

/// A duration as people write it; none if it is none, or longer than 30 days.
pub fn duration(text: &str) -> Option<Millis> {
    let (number, unit) = split(text)?;
    let scale = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(scale).filter(|ms| *ms <= DURATION_MAX_MS).map(Millis)
}

pub(crate) const LONG_DURATION: &str = "a duration such as \"365d\", \"24h\" or \"0s\"";

/// Longer than any that a browser keeps: ten years.
const SECONDS_MAX: u64 = 10 * 365 * 86_400;

/// Seconds, of what is longer than any wait.
pub(crate) fn seconds(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let scale = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    number.checked_mul(scale).filter(|s| *s <= SECONDS_MAX)
}

pub(crate) fn size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    number.checked_mul(1 << shift).filter(|bytes| *bytes < 1 << 50)
}

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    Some((text[..digits].parse().ok()?, text[digits..].trim()))
}
