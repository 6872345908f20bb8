//! Which boot this is, and the two clocks of `kiln_model::time`.

use crate::{CallError, Context};
use rustix::time::{ClockId, clock_gettime};

fn milliseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

/// Milliseconds since the host booted, suspend included.
pub fn boot_ms() -> u64 {
    milliseconds(ClockId::Boottime)
}

/// Microseconds since the host booted, suspend included.
pub fn boot_us() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
}

/// Milliseconds since 1970.
pub fn wall_ms() -> u64 {
    milliseconds(ClockId::Realtime)
}

/// The random id that the kernel chose when it booted. In debug builds `KILN_BOOT_ID` is another one, so that a test can
/// reboot a host that stays up.
pub fn boot_id() -> Result<String, CallError> {
    if cfg!(debug_assertions)
        && let Ok(pretended) = std::env::var("KILN_BOOT_ID")
    {
        return Ok(pretended);
    }
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    Ok(std::fs::read_to_string(PATH).context("read", PATH)?.trim().to_owned())
}
