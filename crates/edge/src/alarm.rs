//! Timeouts of connections, kept by each data-path thread in one list that it looks through every [`ALARM_TICK`]. Setting, clearing
//! and polling one costs a store or a load: tokio's wheel costs a lock for every request. They are never early, and late by a tick.

use crate::limits::ALARM_TICK;
use hyper::rt::{Sleep, Timer};
use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

static START: LazyLock<Instant> = LazyLock::new(Instant::now);
const NEVER: u64 = u64::MAX;

thread_local! {
    static ALARMS: RefCell<Vec<Weak<Alarm>>> = const { RefCell::new(vec![]) };
    /// Milliseconds from `START` to the last tick.
    static NOW: Cell<u64> = Cell::new(elapsed());
}

fn elapsed() -> u64 {
    START.elapsed().as_millis() as u64
}

/// One timeout of a connection, set anew for each thing that it waits for.
#[derive(Debug)]
pub(crate) struct Alarm {
    /// In milliseconds, as `NOW`.
    due: AtomicU64,
    /// The tick has seen that it is due.
    rings: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Alarm {
    /// One of this thread, not set.
    pub(crate) fn new() -> Arc<Self> {
        let (due, rings) = (AtomicU64::new(NEVER), AtomicBool::new(false));
        let alarm = Arc::new(Self { due, rings, waker: Mutex::new(None) });
        ALARMS.with_borrow_mut(|alarms| alarms.push(Arc::downgrade(&alarm)));
        alarm
    }

    /// Rings when `after` has passed.
    pub(crate) fn set(&self, after: Duration) {
        let due = NOW.get() + (after + ALARM_TICK).as_millis() as u64;
        self.rings.store(false, Ordering::Relaxed);
        self.due.store(due, Ordering::Relaxed);
    }

    pub(crate) fn clear(&self) {
        self.due.store(NEVER, Ordering::Relaxed);
        self.rings.store(false, Ordering::Relaxed);
    }

    /// Ready once it rings; the task is woken then, and whenever [`wake_all`] is called.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.rings.load(Ordering::Relaxed) {
            return Poll::Ready(());
        }
        self.watch(cx);
        Poll::Pending
    }

    /// Has the task woken when it rings, and by [`wake_all`].
    pub(crate) fn watch(&self, cx: &mut Context<'_>) {
        let mut waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    fn wake(&self) {
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Looks through this thread's alarms.
pub(crate) fn tick() {
    let now = elapsed();
    NOW.set(now);
    each(|alarm| {
        if alarm.due.load(Ordering::Relaxed) <= now {
            alarm.rings.store(true, Ordering::Relaxed);
            alarm.wake();
        }
    });
}

/// Wakes every task of this thread that waits for an alarm.
pub(crate) fn wake_all() {
    each(Alarm::wake);
}

fn each(mut act: impl FnMut(&Alarm)) {
    ALARMS.with_borrow_mut(|alarms| {
        alarms.retain(|alarm| match alarm.upgrade() {
            Some(alarm) => {
                act(&alarm);
                true
            }
            None => false,
        });
        if alarms.capacity() > 4 * alarms.len() + 64 {
            alarms.shrink_to_fit();
        }
    });
}

/// The timer that hyper gets for one connection, which waits for one thing at a time: the next head.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionTimer(pub(crate) Arc<Alarm>);

impl Timer for ConnectionTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.0.set(duration);
        Box::pin(Waiting(self.0.clone()))
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        self.sleep(deadline.saturating_duration_since(Instant::now()))
    }

    fn reset(&self, _sleep: &mut Pin<Box<dyn Sleep>>, deadline: Instant) {
        self.0.set(deadline.saturating_duration_since(Instant::now()));
    }
}

struct Waiting(Arc<Alarm>);

impl Future for Waiting {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll(cx)
    }
}

impl Sleep for Waiting {}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn an_alarm_rings_once_it_is_due_and_not_if_it_was_cleared_or_set_anew() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        let mut cx = Context::from_waker(&waker);
        let (due, late) = (Alarm::new(), Alarm::new());
        due.set(Duration::from_secs(60));
        late.set(Duration::from_secs(60));
        tick();
        assert!(due.poll(&mut cx).is_pending() && late.poll(&mut cx).is_pending());
        due.due.store(0, Ordering::Relaxed);
        tick();
        assert!(due.poll(&mut cx).is_ready() && late.poll(&mut cx).is_pending());
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        due.set(Duration::from_secs(60));
        assert!(due.poll(&mut cx).is_pending());
        due.due.store(0, Ordering::Relaxed);
        due.clear();
        tick();
        assert!(due.poll(&mut cx).is_pending());
        wake_all();
        assert_eq!(count.0.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn hypers_timer_may_be_reset_and_is_clear_once_it_is_dropped() {
        let alarm = Alarm::new();
        let timer = ConnectionTimer(alarm.clone());
        let mut sleep = timer.sleep(Duration::from_secs(1));
        timer.reset(&mut sleep, Instant::now() + Duration::from_secs(60));
        assert!((60_000..NEVER).contains(&alarm.due.load(Ordering::Relaxed)));
        drop(sleep);
        assert_eq!(alarm.due.load(Ordering::Relaxed), NEVER);
        let weak = Arc::downgrade(&alarm);
        drop((timer, alarm));
        tick();
        assert!(weak.upgrade().is_none() && ALARMS.with_borrow(Vec::is_empty));
    }
}
