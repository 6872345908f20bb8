//! The clocks, passed in so that tests and the simulator decide what time it is.

use kiln_model::{Boot, Wall};

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since boot, suspend included.
    fn boot(&self) -> Boot;
    /// Milliseconds since 1970.
    fn wall(&self) -> Wall;
    /// Names this boot of the host.
    fn boot_id(&self) -> String;
}

/// Milliseconds by which the wall clock jumped: what the file says that `KILN_CLOCK_JUMP` names, so that a test can set the
/// clock of a server and not that of the host. Nothing in a release build.
fn jumped() -> i64 {
    let file = cfg!(debug_assertions).then(|| std::env::var_os("KILN_CLOCK_JUMP")).flatten();
    let text = file.and_then(|file| std::fs::read_to_string(file).ok());
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// The host's clocks.
#[derive(Debug, Clone)]
pub struct HostClock {
    boot_id: String,
}

impl HostClock {
    /// Reads the boot id once.
    pub fn new() -> std::io::Result<Self> {
        let boot_id = kiln_sys::clock::boot_id().map_err(|error| error.source)?;
        Ok(Self { boot_id })
    }
}

impl Clock for HostClock {
    fn boot(&self) -> Boot {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Boot(time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000)
    }

    fn wall(&self) -> Wall {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Wall((since.as_millis() as u64).saturating_add_signed(jumped()))
    }

    fn boot_id(&self) -> String {
        self.boot_id.clone()
    }
}
