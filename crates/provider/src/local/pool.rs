//! Keeps networks and slots ready, in a thread of its own. Whoever needs one takes it, or makes one on the spot: both
//! ways lead through the same code.

use super::network::Network;
use super::order::Failure;
use super::slot::{Host, Slot};
use super::turn::Turn;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Time before the next try when something could not be made.
const PAUSE: Duration = Duration::from_secs(1);

/// How many are kept ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spare {
    /// Networks without a process.
    pub networks: usize,
    /// Whole slots, each with a network of its own.
    pub slots: usize,
}

impl Default for Spare {
    fn default() -> Self {
        Self { networks: 8, slots: 8 }
    }
}

#[derive(Debug, Default)]
struct Stock {
    networks: VecDeque<Network>,
    slots: VecDeque<Slot>,
    /// Starts that are under way. What is made meanwhile would take the kernel's locks from them.
    n_starts: usize,
    is_over: bool,
    /// Something changed since the keeper looked last.
    has_news: bool,
}

/// A start that is under way.
#[derive(Debug)]
pub(super) struct Underway<'a>(&'a Shared);

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        let mut stock = self.0.stock();
        stock.n_starts -= 1;
        stock.has_news = true;
        self.0.wake.notify_all();
    }
}

#[derive(Debug)]
struct Shared {
    host: Arc<Host>,
    turn: Arc<Turn>,
    spare: Spare,
    stock: Mutex<Stock>,
    wake: Condvar,
}

/// The stock and its keeper. Dropping it ends what nobody took.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    keeper: Option<JoinHandle<()>>,
}

impl Pool {
    pub(super) fn open(host: Arc<Host>, spare: Spare, turn: Arc<Turn>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { host, turn, spare, stock: Mutex::default(), wake: Condvar::new() });
        let own = shared.clone();
        let keeper = std::thread::Builder::new().name("spare".into()).spawn(move || own.keep())?;
        Ok(Self { shared, keeper: Some(keeper) })
    }

    /// Says that an instance is being started, until what this answers is dropped.
    pub(super) fn begin(&self) -> Underway<'_> {
        self.shared.stock().n_starts += 1;
        Underway(&self.shared)
    }

    /// A slot: one that is ready, or a new one.
    pub(super) fn take(&self) -> Result<Slot, Failure> {
        let Shared { host, .. } = &*self.shared;
        let (slot, network) = {
            let mut stock = self.shared.stock();
            // One whose shim was killed meanwhile is of no use.
            let mut slot = stock.slots.pop_front();
            while let Some(dead) = slot.take_if(|slot| !slot.is_alive()) {
                let number = dead.network.number;
                dead.discard();
                host.give_back(number);
                slot = stock.slots.pop_front();
            }
            let network = if slot.is_none() { stock.networks.pop_front() } else { None };
            (slot, network)
        };
        if let Some(slot) = slot {
            return Ok(slot);
        }
        let network = network.map_or_else(|| host.network(), Ok)?;
        let number = network.number;
        Slot::make(host, network).inspect_err(|_| host.give_back(number))
    }

    /// Something is on its way out.
    pub(super) fn look_after(&self) {
        // The lock, so that the keeper is not between its look and its sleep.
        self.shared.stock().has_news = true;
        self.shared.wake.notify_all();
    }

    /// Waits until everything is ready; for measuring.
    pub(super) fn wait_until_full(&self) {
        let Shared { spare, wake, .. } = &*self.shared;
        let mut stock = self.shared.stock();
        while stock.slots.len() < spare.slots || stock.networks.len() < spare.networks {
            let waited = wake.wait_timeout(stock, Duration::from_millis(5));
            stock = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stock().is_over = true;
        self.shared.wake.notify_all();
        if let Some(keeper) = self.keeper.take() {
            // It has nothing to tell.
            let _ = keeper.join();
        }
        let Stock { slots, .. } = std::mem::take(&mut *self.shared.stock());
        slots.into_iter().for_each(Slot::discard);
        self.shared.host.cloner.end();
    }
}

impl Shared {
    fn stock(&self) -> MutexGuard<'_, Stock> {
        // Every change of the stock is one step.
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self) {
        let mut stock = self.stock();
        while !stock.is_over {
            let (slots, networks) = (stock.slots.len(), stock.networks.len());
            if stock.n_starts > 0 {
                stock = self.wake.wait(stock).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            stock.has_news = false;
            // For another server's books it makes nothing.
            let Ok(at_work) = self.turn.begin() else { return };
            let made = if slots < self.spare.slots {
                let network = stock.networks.pop_front();
                drop(stock);
                Some(self.make_slot(network))
            } else if networks < self.spare.networks {
                drop(stock);
                Some(self.make_network())
            } else {
                drop(stock);
                None
            };
            drop(at_work);
            if made == Some(true) {
                self.wake.notify_all();
                stock = self.stock();
                continue;
            }
            let is_idle = !self.host.see_off() && made.is_none();
            stock = self.stock();
            if !stock.is_over && !stock.has_news {
                // Without anything to do until somebody has news; after a failure, or for who leaves, for a moment.
                let pause = if is_idle { PAUSE * 3600 } else { PAUSE };
                let waited = self.wake.wait_timeout(stock, pause);
                stock = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    fn make_slot(&self, network: Option<Network>) -> bool {
        let network = network.map_or_else(|| self.host.network(), Ok);
        let made = network.and_then(|network| {
            let number = network.number;
            Slot::make(&self.host, network).inspect_err(|_| self.host.give_back(number))
        });
        // Whoever needs one meets the failure and tells of it.
        made.map(|slot| self.stock().slots.push_back(slot)).is_ok()
    }

    fn make_network(&self) -> bool {
        self.host.network().map(|network| self.stock().networks.push_back(network)).is_ok()
    }
}
