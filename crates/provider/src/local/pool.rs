//! Keeps sites and slots ready, in a thread of its own: slots for anything, and slots that fit what was started last and
//! lack nothing but which instance it is. Whoever needs one takes it, or makes one on the spot: all ways lead through the
//! same code.

use super::fit::Fit;
use super::order::Failure;
use super::root::Roots;
use super::site::Site;
use super::slot::{Host, Slot};
use super::turn::Turn;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time before the next try when something could not be made.
const PAUSE: Duration = Duration::from_secs(1);
/// After a start nothing is made for so long: a program that begins, or ends at once, needs the processors itself.
const QUIET: Duration = Duration::from_millis(10);
/// What slots are made to fit: that many releases share the stock.
pub(super) const FITS_MAX: usize = 4;

/// How many are kept ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spare {
    /// Sites: networks and control groups.
    pub sites: usize,
    /// Whole slots for anything, each with a site of its own.
    pub slots: usize,
    /// Slots that fit what was started last.
    pub fitted: usize,
}

impl Default for Spare {
    fn default() -> Self {
        Self { sites: 8, slots: 8, fitted: 8 }
    }
}

#[derive(Debug, Default)]
struct Stock {
    sites: VecDeque<Site>,
    slots: VecDeque<Slot>,
    fitted: Vec<Slot>,
    /// What the fitted ones fit, that of the last start first.
    fits: VecDeque<Fit>,
    /// Starts that are under way. What is made meanwhile would take the kernel's locks from them.
    n_starts: usize,
    /// Until when nothing is made.
    quiet: Option<Instant>,
    is_over: bool,
    /// Something changed since the keeper looked last.
    has_news: bool,
}

/// What the keeper does next.
enum Task {
    Slot(Option<Site>),
    Fitted(Fit, Option<Site>),
    Site,
    /// Nobody is going to need it.
    Discard(Slot),
}

impl Stock {
    /// A living one of these.
    fn take(&mut self, host: &Host, fit: &Fit) -> Option<Slot> {
        loop {
            let slot = match self.fitted.iter().position(|slot| slot.fits(fit)) {
                Some(n) => self.fitted.swap_remove(n),
                None => self.slots.pop_front()?,
            };
            if slot.is_alive() {
                return Some(slot);
            }
            // One whose shim was killed meanwhile is of no use.
            give_up(host, slot);
        }
    }

    /// A living one.
    fn site(&mut self, host: &Host) -> Option<Site> {
        loop {
            let site = self.sites.pop_front()?;
            if site.is_alive() {
                return Some(site);
            }
            let number = site.network.number;
            site.discard();
            host.give_back(number);
        }
    }

    /// How many slots are to fit the nth.
    fn share(&self, n: usize, spare: Spare) -> usize {
        let all = self.fits.len().max(1);
        spare.fitted / all + usize::from(n < spare.fitted % all)
    }

    fn next(&mut self, host: &Host, spare: Spare) -> Option<Task> {
        if self.slots.len() < spare.slots {
            return Some(Task::Slot(self.site(host)));
        }
        let count = |fit: &Fit| self.fitted.iter().filter(|slot| slot.fits(fit)).count();
        let lacking = (0..self.fits.len()).find(|n| count(&self.fits[*n]) < self.share(*n, spare));
        if let Some(n) = lacking {
            return Some(Task::Fitted(self.fits[n].clone(), self.site(host)));
        }
        if self.sites.len() < spare.sites {
            return Some(Task::Site);
        }
        let is_surplus = |slot: &Slot| {
            let n = self.fits.iter().position(|fit| slot.fits(fit));
            n.is_none_or(|n| count(&self.fits[n]) > self.share(n, spare))
        };
        let surplus = self.fitted.iter().position(is_surplus)?;
        Some(Task::Discard(self.fitted.swap_remove(surplus)))
    }
}

fn give_up(host: &Host, slot: Slot) {
    let number = slot.network.number;
    slot.discard();
    host.give_back(number);
}

/// A start that is under way.
#[derive(Debug)]
pub(super) struct Underway<'a>(&'a Shared);

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        let mut stock = self.0.stock();
        stock.n_starts -= 1;
        stock.quiet = Some(Instant::now() + QUIET);
        stock.has_news = true;
        self.0.wake.notify_all();
    }
}

#[derive(Debug)]
struct Shared {
    host: Arc<Host>,
    turn: Arc<Turn>,
    roots: Arc<Roots>,
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
    pub(super) fn open(
        host: Arc<Host>,
        roots: Arc<Roots>,
        spare: Spare,
        turn: Arc<Turn>,
    ) -> std::io::Result<Self> {
        let (stock, wake) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { host, turn, roots, spare, stock, wake });
        let own = shared.clone();
        let keeper = std::thread::Builder::new().name("spare".into()).spawn(move || own.keep())?;
        Ok(Self { shared, keeper: Some(keeper) })
    }

    /// Says that an instance is being started, until what this answers is dropped.
    pub(super) fn begin(&self) -> Underway<'_> {
        self.shared.stock().n_starts += 1;
        Underway(&self.shared)
    }

    /// A slot: one that fits already, or one that is ready for anything, or a new one.
    pub(super) fn take(&self, fit: &Fit) -> Result<Slot, Failure> {
        let Shared { host, .. } = &*self.shared;
        let site = {
            let mut stock = self.shared.stock();
            if let Some(slot) = stock.take(host, fit) {
                return Ok(slot);
            }
            if stock.sites.is_empty() && host.is_full() {
                // Those that fit others have the last addresses.
                stock.fitted.drain(..).for_each(|slot| give_up(host, slot));
            }
            stock.site(host)
        };
        self.shared.new_slot(site)
    }

    /// Another one like this may be started soon.
    pub(super) fn expect(&self, fit: Fit) {
        let mut stock = self.shared.stock();
        stock.fits.retain(|known| *known != fit);
        stock.fits.push_front(fit);
        stock.fits.truncate(FITS_MAX);
        stock.has_news = true;
        self.shared.wake.notify_all();
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
        while stock.slots.len() < spare.slots
            || stock.sites.len() < spare.sites
            || (!stock.fits.is_empty() && stock.fitted.len() < spare.fitted)
        {
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
        let Stock { sites, slots, fitted, .. } = std::mem::take(&mut *self.shared.stock());
        sites.into_iter().for_each(Site::discard);
        slots.into_iter().chain(fitted).for_each(Slot::discard);
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
            if stock.n_starts > 0 {
                stock = self.wake.wait(stock).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            if let Some(left) = stock.quiet.and_then(|end| end.checked_duration_since(Instant::now())) {
                stock = self.wake.wait_timeout(stock, left).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            stock.has_news = false;
            // For another server's books it makes nothing.
            let Ok(at_work) = self.turn.begin() else { return };
            let task = stock.next(&self.host, self.spare);
            drop(stock);
            let done = task.map(|task| self.work_on(task));
            drop(at_work);
            if done == Some(true) {
                self.wake.notify_all();
                stock = self.stock();
                continue;
            }
            let is_idle = !self.host.see_off() && done.is_none();
            stock = self.stock();
            if !stock.is_over && !stock.has_news {
                // Without anything to do until somebody has news; after a failure, or for who leaves, for a moment.
                let pause = if is_idle { PAUSE * 3600 } else { PAUSE };
                let waited = self.wake.wait_timeout(stock, pause);
                stock = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    /// Whether it could be done. If not, whoever needs it meets the failure and tells of it.
    fn work_on(&self, task: Task) -> bool {
        match task {
            Task::Slot(site) => self.new_ready(site),
            Task::Fitted(fit, site) => self.new_fitted(&fit, site),
            Task::Site => self.host.site().map(|site| self.stock().sites.push_back(site)).is_ok(),
            Task::Discard(slot) => {
                give_up(&self.host, slot);
                true
            }
        }
    }

    fn new_slot(&self, site: Option<Site>) -> Result<Slot, Failure> {
        let site = site.map_or_else(|| self.host.site(), Ok)?;
        let number = site.network.number;
        Slot::make(&self.host, site).inspect_err(|_| self.host.give_back(number))
    }

    fn new_ready(&self, site: Option<Site>) -> bool {
        let Ok(mut slot) = self.new_slot(site) else { return false };
        let is_ready = slot.get_ready().is_ok();
        match is_ready {
            true => self.stock().slots.push_back(slot),
            false => give_up(&self.host, slot),
        }
        is_ready
    }

    fn new_fitted(&self, fit: &Fit, site: Option<Site>) -> bool {
        let Ok(mut slot) = self.new_slot(site) else { return false };
        if slot.prepare(&self.host, &self.roots, fit).is_err() {
            give_up(&self.host, slot);
            self.stock().fits.retain(|known| known != fit);
            return false;
        }
        self.stock().fitted.push(slot);
        true
    }
}
