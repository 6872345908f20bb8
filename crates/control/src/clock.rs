//! The clocks, passed in so that tests and the simulator decide what time it is, and what happens between two steps.

use crate::crash::{self, Point};
use kiln_model::{Boot, Millis, Wall};
use std::pin::Pin;

/// What [`Clock::sleep`] and [`Clock::pass`] answer.
pub type Pause = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Tells the time, and lets it pass.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since boot, suspend included.
    fn boot(&self) -> Boot;
    /// Milliseconds since 1970.
    fn wall(&self) -> Wall;
    /// Names this boot of the host.
    fn boot_id(&self) -> String;

    /// Waits.
    fn sleep(&self, span: Millis) -> Pause {
        Box::pin(tokio::time::sleep(span.duration()))
    }

    /// Passes a named point. A process dies there if its environment says so, and else goes on at once; the simulator lets
    /// others run, or drops the task.
    fn pass(&self, point: Point) -> Pause {
        crash::here(point);
        Box::pin(std::future::ready(()))
    }
}

/// What `work` answers, or none if it takes longer than `limit`.
pub(crate) async fn within<T>(clock: &dyn Clock, limit: Millis, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        () = clock.sleep(limit) => None,
    }
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
