//! Takes turns with other servers: waits for the lease, and keeps it alive while it leads.

use crate::home::{self, HomeError};
use kiln_model::{Epoch, Incarnation, Millis};
use kiln_store::{Lease, PostgresAddress, PostgresStore, Store, StoreError};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long a lease lasts without a sign of its holder: the longest time that nobody leads after a server was lost.
pub const LEASE: Millis = Millis(8_000);
/// Time between two renewals. Three may fail.
const RENEW_EVERY: Duration = Duration::from_secs(2);

/// A server that may lead.
pub struct Candidate {
    /// Where the database is.
    pub address: PostgresAddress,
    /// The state folder.
    pub state: PathBuf,
    /// Its name, see [`home::name_of`].
    pub home: String,
    /// Where the others reach this server. No two that live have the same.
    pub holder: String,
    /// The database, once it answered.
    pub store: Option<Arc<PostgresStore>>,
}

/// What came of a look at the lease.
pub enum Turn {
    /// It is ours.
    Leads {
        /// The database.
        store: Arc<PostgresStore>,
        /// What effects are fenced with.
        server: (Incarnation, Epoch),
    },
    /// Another server has it.
    Waits(Lease),
}

impl Candidate {
    /// Takes the lease if it is free. Blocks as long as the database lets it.
    pub fn look(&mut self) -> Result<Turn, HomeError> {
        let store = match &self.store {
            Some(store) => store.clone(),
            None => {
                let store = Arc::new(PostgresStore::open(self.address.clone())?);
                home::claim(&store, &self.state, &self.home)?;
                self.store = Some(store.clone());
                store
            }
        };
        Ok(match store.try_lease(&self.holder, LEASE)? {
            Ok(server) => Turn::Leads { store, server },
            Err(lease) => Turn::Waits(lease),
        })
    }
}

/// Renews the lease in a thread of its own, whatever else the process is busy with, until it is lost or may be: then `lost` is
/// called, which must not return to what the process did.
pub fn keep_lease(
    store: Arc<dyn Store>,
    epoch: Epoch,
    lost: impl Fn(&str) + Send + 'static,
) -> std::io::Result<()> {
    let mut good_until = now() + LEASE.0;
    let keep = move || {
        loop {
            std::thread::sleep(RENEW_EVERY);
            // Counted from before the question: the store's clock began to count later.
            let asked = now();
            match store.renew_lease(epoch, LEASE) {
                Ok(()) => good_until = asked + LEASE.0,
                Err(StoreError::LeaseLost { holder, .. }) => {
                    return lost(&format!("epoch {holder} has the lease"));
                }
                Err(_) if now() < good_until => {}
                Err(_) => return lost("the lease could not be renewed in time"),
            }
        }
    };
    std::thread::Builder::new().name("lease".into()).spawn(keep).map(drop)
}

/// Milliseconds since boot, suspend included: a host that slept has lost its lease.
fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}
