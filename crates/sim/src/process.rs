//! One process of kiln: its clock, the points it stands at, and the handles that die with it.

use crate::world::{Delayed, Sim, Waiting, World};
use kiln_control::clock::{Clock, Pause};
use kiln_control::crash::Point;
use kiln_model::{Boot, Millis, Wall};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use tokio::sync::Notify;

/// What all handles of one process share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Process {
    pub(crate) sim: Sim,
    pub(crate) id: u64,
    alive: Arc<AtomicBool>,
    /// Something happened to an instance.
    pub(crate) changed: Arc<Notify>,
}

/// How a call to a receiver goes wrong.
pub(crate) enum Fate {
    /// Not at all.
    Fine,
    /// Before its effect.
    Fails,
    /// After its effect.
    AnswerLost,
    /// Before its effect, which comes later.
    Late(u64),
    /// Fine, and its effect comes again later.
    Twice(u64),
    /// Fine, after that many milliseconds.
    Slow(u64),
}

impl Process {
    pub(crate) fn new(sim: &Sim, id: u64) -> Self {
        Self { sim: sim.clone(), id, alive: Arc::new(AtomicBool::new(true)), changed: Arc::default() }
    }

    /// Takes back all handles: what runs afterwards, in a destructor, is a bug.
    pub(crate) fn revoke(&self) {
        self.alive.store(false, Relaxed);
    }

    /// The world, for an effect of this process.
    pub(crate) fn act<T>(&self, effect: impl FnOnce(&mut World) -> T) -> T {
        let mut world = self.sim.world();
        if !self.alive.load(Relaxed) {
            world.broken(|| "an effect ran in a process that was dead".into());
        }
        effect(&mut world)
    }

    /// Stands at a named point until the scheduler says so.
    pub(crate) fn stand(&self, name: &'static str) -> Stand {
        Stand { sim: self.sim.clone(), process: self.id, name, id: None, go: Arc::default() }
    }

    /// Waits.
    pub(crate) fn wait(&self, ms: u64) -> Sleep {
        Sleep { sim: self.sim.clone(), span: ms, key: None }
    }

    /// Draws what becomes of a call.
    pub(crate) fn fate(&self) -> Fate {
        self.act(|world| {
            let faults = world.faults;
            let span = |world: &mut World| {
                let longest = if world.rng.below(4) == 0 { 30_000 } else { 3_000 };
                1 + world.rng.below(longest) as u64
            };
            if world.rng.chance(faults.error) {
                Fate::Fails
            } else if world.rng.chance(faults.lost) {
                Fate::AnswerLost
            } else if world.rng.chance(faults.late) {
                Fate::Late(span(world))
            } else if world.rng.chance(faults.twice) {
                Fate::Twice(span(world))
            } else if world.rng.chance(faults.slow) {
                Fate::Slow(1 + world.rng.below(4_000) as u64)
            } else {
                Fate::Fine
            }
        })
    }

    /// Makes one call to a receiver, with all that may happen to it. None is an answer that never came.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        points: [&'static str; 2],
        effect: impl Fn(&mut World) -> T + Send + Sync + Clone + 'static,
    ) -> Option<T> {
        self.stand(points[0]).await;
        let again = |effect: &(dyn Fn() -> Delayed + Send + Sync), span: u64| {
            self.act(|world| {
                let due = world.now + span;
                world.delayed.push((due, effect()));
            });
        };
        let boxed = {
            let effect = effect.clone();
            move || -> Delayed {
                let effect = effect.clone();
                Box::new(move |world| drop(effect(world)))
            }
        };
        let answer = match self.fate() {
            Fate::Fine => Some(self.act(&effect)),
            Fate::Fails => None,
            Fate::AnswerLost => {
                self.act(&effect);
                None
            }
            Fate::Late(span) => {
                again(&boxed, span);
                None
            }
            Fate::Twice(span) => {
                let answer = self.act(&effect);
                again(&boxed, span);
                Some(answer)
            }
            Fate::Slow(span) => {
                self.wait(span).await;
                Some(self.act(&effect))
            }
        };
        self.stand(points[1]).await;
        answer
    }
}

impl Clock for Process {
    fn boot(&self) -> Boot {
        self.sim.world().boot()
    }

    fn wall(&self) -> Wall {
        self.sim.world().wall()
    }

    fn boot_id(&self) -> String {
        self.sim.world().boot_id()
    }

    fn sleep(&self, span: Millis) -> Pause {
        Box::pin(self.wait(span.0))
    }

    fn pass(&self, point: Point) -> Pause {
        Box::pin(self.stand(point.name()))
    }
}

/// See [`Process::stand`].
pub(crate) struct Stand {
    sim: Sim,
    process: u64,
    name: &'static str,
    id: Option<u64>,
    go: Arc<AtomicBool>,
}

impl Future for Stand {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.go.load(Relaxed) {
            return Poll::Ready(());
        }
        let mut world = self.sim.world();
        let waker = context.waker().clone();
        match self.id {
            Some(id) => {
                if let Some(waiting) = world.waiting.iter_mut().find(|w| w.id == id) {
                    waiting.waker = waker;
                }
            }
            None => {
                let id = world.id();
                let (process, name, go) = (self.process, self.name, self.go.clone());
                world.waiting.push(Waiting { id, process, name, go, waker });
                drop(world);
                self.id = Some(id);
            }
        }
        Poll::Pending
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.sim.world().waiting.retain(|w| w.id != id);
        }
    }
}

/// See [`Process::wait`].
pub(crate) struct Sleep {
    sim: Sim,
    span: u64,
    key: Option<(u64, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut world = self.sim.world();
        let key = match self.key {
            Some(key) if world.now >= key.0 => return Poll::Ready(()),
            Some(key) => key,
            None => (world.now + self.span, world.id()),
        };
        world.timers.insert(key, context.waker().clone());
        drop(world);
        self.key = Some(key);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.sim.world().timers.remove(&key);
        }
    }
}
