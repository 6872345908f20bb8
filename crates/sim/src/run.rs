//! One run: tasks, who goes next, and what goes wrong meanwhile.

use crate::edge::Edge;
use crate::faults::Faults;
use crate::finish;
use crate::host::Host;
use crate::node::{Node, serve};
use crate::process::Process;
use crate::script::{Act, Script};
use crate::vault::Vault;
use crate::world::Sim;
use kiln_control::Handle;
use kiln_plan::{Command, Outcome};

use kiln_store::Store;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};

/// Steps after which a run that has not come to an end is broken.
const STEPS_MAX: u64 = 400_000;
/// In how many simulated milliseconds an operator has surely heard of a recovery hold.
const NOTICED_MS: u64 = 20_000;

/// What to run.
#[derive(Debug, Clone)]
pub struct Config {
    /// From which everything is drawn.
    pub seed: u64,
    /// What goes wrong.
    pub faults: Faults,
    /// Control planes on the one store.
    pub nodes: usize,
    /// The real SQLite store, in memory.
    pub sqlite: bool,
    /// What operators ask for.
    pub script: Script,
    /// At which points, counted from the beginning, the process that stands there dies.
    pub crash_at: Vec<u64>,
    /// Keep the story.
    pub trace: bool,
}

impl Config {
    /// The run of a seed, with everything drawn from it.
    pub fn seeded(seed: u64) -> Self {
        Self {
            seed,
            faults: Faults::swarm(seed),
            nodes: 1 + (seed % 3 == 2) as usize,
            sqlite: seed % 16 == 15,
            script: Script::random(seed),
            crash_at: vec![],
            trace: false,
        }
    }

    /// A fixed story without faults, for exhaustive crashes.
    pub fn fixed(crash_at: Vec<u64>) -> Self {
        Self {
            seed: 1,
            faults: Faults::default(),
            nodes: 1,
            sqlite: false,
            script: Script::fixed(),
            crash_at,
            trace: false,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The first invariant that broke.
    pub violation: Option<String>,
    /// Of all that happened: the same seed gives the same.
    pub hash: u64,
    /// Steps of the scheduler.
    pub steps: u64,
    /// Points that were passed.
    pub points: u64,
    /// Their names.
    pub names: BTreeSet<&'static str>,
    /// At which of them a process died.
    pub died_at: BTreeSet<&'static str>,
    /// Requests that clients made, and those that nobody answered.
    pub requests: (u64, u64),
    /// Simulated milliseconds.
    pub span_ms: u64,
    /// The story, if it was asked for.
    pub lines: Vec<String>,
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

struct Task {
    process: u64,
    future: Pin<Box<dyn Future<Output = ()>>>,
    flag: Arc<Flag>,
}

/// See the module.
pub(crate) struct Run {
    pub(crate) sim: Sim,
    pub(crate) store: Arc<dyn Store>,
    vault: Arc<Vault>,
    pub(crate) nodes: Vec<Node>,
    tasks: BTreeMap<u64, Task>,
    script: Vec<(u64, Act)>,
    crash_at: Vec<u64>,
    points: u64,
    died_at: BTreeSet<&'static str>,
    /// When the recovery hold was seen first, in simulated milliseconds.
    held_since: Option<u64>,
}

/// Runs it to its end.
pub fn run(config: &Config) -> Report {
    let sim = Sim::new(config.seed, config.faults, config.trace);
    let vault = match Vault::new(config.sqlite, config.faults.store_rollback > 0) {
        Ok(vault) => Arc::new(vault),
        Err(error) => return Report { violation: Some(error.to_string()), ..Report::default() },
    };
    let store: Arc<dyn Store> = vault.clone();
    let mut script = config.script.0.clone();
    script.reverse();
    let nodes = (0..config.nodes).map(Node::new).collect();
    let crash_at = config.crash_at.clone();
    let (tasks, died_at) = (BTreeMap::new(), BTreeSet::new());
    let mut run =
        Run { sim, store, vault, nodes, tasks, script, crash_at, points: 0, died_at, held_since: None };
    while !run.script.is_empty() && run.goes_on() {
        run.step();
    }
    finish::finish(&mut run);
    run.report()
}

impl Run {
    pub(crate) fn goes_on(&self) -> bool {
        let mut world = self.sim.world();
        if world.steps > STEPS_MAX {
            world.broken(|| "L1: it does not come to an end".into());
        }
        world.violation.is_none()
    }

    fn report(mut self) -> Report {
        self.nodes.iter().filter_map(|node| node.process.as_ref()).for_each(Process::revoke);
        self.tasks.clear();
        let mut world = self.sim.world();
        Report {
            violation: world.violation.take(),
            hash: world.trace.hash,
            steps: world.steps,
            points: self.points,
            names: std::mem::take(&mut world.passed),
            died_at: self.died_at,
            requests: (world.edge.requests, world.edge.failed),
            span_ms: world.now,
            lines: world.trace.lines.take().unwrap_or_default(),
        }
    }

    /// The control plane that holds the lease and listens.
    pub(crate) fn leader(&self) -> Option<(Process, Handle)> {
        let holder = self.sim.world().lease?.0;
        let node = self.nodes.get(holder)?;
        let serving = node.serving.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        Some((node.process.clone()?, serving.0))
    }

    fn spawn(&mut self, process: u64, future: Pin<Box<dyn Future<Output = ()>>>) {
        let id = self.sim.world().id();
        self.tasks.insert(id, Task { process, future, flag: Arc::new(Flag(AtomicBool::new(true))) });
    }

    /// A process ends at once: its tasks are dropped where they stand.
    pub(crate) fn crash(&mut self, node: usize) {
        let Some(process) = self.nodes[node].process.take() else { return };
        process.revoke();
        self.nodes[node].forget();
        let dead: Vec<u64> =
            self.tasks.iter().filter(|(_, task)| task.process == process.id).map(|(id, _)| *id).collect();
        for id in dead {
            drop(self.tasks.remove(&id));
        }
        let mut world = self.sim.world();
        world.tell(|| format!("process {} of node {node} dies", process.id));
        self.nodes[node].restart_at = world.now + world.rng.below(800) as u64;
    }

    fn start_processes(&mut self) {
        for index in 0..self.nodes.len() {
            let due =
                self.nodes[index].process.is_none() && self.nodes[index].restart_at <= self.sim.world().now;
            if due {
                let id = self.sim.world().id();
                let process = Process::new(&self.sim, id);
                self.sim.world().host.listen(process.changed.clone());
                self.sim.world().tell(|| format!("process {id} of node {index} starts"));
                let serving = self.nodes[index].serving.clone();
                let future = serve(process.clone(), index, self.store.clone(), serving);
                self.nodes[index].process = Some(process);
                self.spawn(id, Box::pin(future));
            }
        }
    }

    /// Sends a command to whoever leads; the answer, if one comes, is in what is returned.
    pub(crate) fn submit(&mut self, actor: &'static str, command: Command) -> Option<Answer> {
        let (process, handle) = self.leader()?;
        let answer: Answer = Arc::default();
        let own = answer.clone();
        self.spawn(
            process.id,
            Box::pin(async move {
                let outcome = handle.submit_in_steps(actor, None, command).await;
                *own.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(outcome.map_err(|e| e.to_string()));
            }),
        );
        Some(answer)
    }

    /// Whether a command is under way. It may have been asked long ago, by a process that was paused.
    pub(crate) fn somebody_asks(&self) -> bool {
        self.tasks.len() > self.nodes.iter().filter(|node| node.process.is_some()).count()
    }

    fn operate(&mut self) {
        let now = self.sim.world().now;
        while self.script.last().is_some_and(|(at, _)| *at <= now) {
            let Some((_, act)) = self.script.pop() else { return };
            let command = match act {
                Act::Ask(command) => command,
                Act::Rest => continue,
            };
            self.sim.world().tell(|| crate::script::words(&command));
            // Nobody may be there to be asked; then nothing was asked.
            let _ = self.submit("operator", command);
        }
    }

    /// An operator notices a recovery hold, some time; after [`NOTICED_MS`] soon.
    fn recover(&mut self) {
        if !self.store.load().is_ok_and(|snapshot| snapshot.recovery.is_some()) {
            self.held_since = None;
            return;
        }
        let now = self.sim.world().now;
        let held = now - *self.held_since.get_or_insert(now);
        let odds = if held < NOTICED_MS { 200 } else { 10 };
        if self.sim.world().rng.below(odds) > 0 {
            return;
        }
        let Some((_, handle)) = self.leader() else { return };
        let world = Box::new(kiln_plan::recovery::World::of(&handle.observed()));
        self.sim.world().tell(|| "operator: recover".into());
        let _ = self.submit("operator", Command::Recover { world });
    }

    /// What the world does by itself.
    fn misfortune(&mut self) {
        let mut world = self.sim.world();
        let faults = world.faults;
        if world.rng.chance(faults.death) {
            Host::death(&mut world);
        }
        if world.rng.chance(faults.hang) {
            Host::hang(&mut world);
        }
        if world.rng.chance(faults.forget) {
            Host::forget(&mut world);
        }
        if world.rng.chance(faults.stray) {
            Host::stray(&mut world);
        }
        if world.rng.chance(faults.edge_restart) {
            let boot = world.boots;
            Edge::restart(&mut world, boot);
        }
        if world.rng.chance(faults.edge_loss) {
            Edge::lose(&mut world);
        }
        if world.rng.chance(faults.edge_hang) {
            world.edge.hangs_until = world.now + world.rng.below(6_000) as u64;
            world.tell(|| "the edge hangs".into());
        }
        if world.rng.chance(faults.clock_jump) {
            world.jump();
        }
        let pause = world.rng.chance(faults.pause);
        let span = if pause { 1_000 + world.rng.below(8_000) as u64 } else { 0 };
        let reboot = world.rng.chance(faults.reboot);
        let restored = world.rng.chance(faults.store_rollback);
        let now = world.now;
        let victim = if pause { world.rng.below(self.nodes.len()) } else { 0 };
        if pause {
            world.tell(|| format!("node {victim} is paused for {span} ms"));
        }
        drop(world);
        if pause {
            self.nodes[victim].paused_until = now + span;
        }
        if restored {
            (0..self.nodes.len()).for_each(|node| self.crash(node));
            crate::restore::go_back(&self.vault, &mut self.sim.world());
        }
        if reboot {
            // Everything on the host dies together; effects on their way die with it.
            (0..self.nodes.len()).for_each(|node| self.crash(node));
            let mut world = self.sim.world();
            world.delayed.clear();
            world.reboot();
        }
    }

    fn node_of(&self, process: u64) -> Option<usize> {
        self.nodes.iter().position(|node| node.process.as_ref().is_some_and(|p| p.id == process))
    }

    fn runs(&self, process: u64, now: u64) -> bool {
        self.node_of(process).is_some_and(|node| self.nodes[node].paused_until <= now)
    }

    /// One step: somebody goes on, or time does.
    pub(crate) fn step(&mut self) {
        self.start_processes();
        self.operate();
        self.recover();
        self.misfortune();
        let mut world = self.sim.world();
        world.steps += 1;
        world.deliver();
        Edge::traffic(&mut world);
        let now = world.now;
        while world.timers.first_key_value().is_some_and(|((due, _), _)| *due <= now) {
            if let Some((_, waker)) = world.timers.pop_first() {
                waker.wake();
            }
        }
        let at_points: Vec<usize> =
            (0..world.waiting.len()).filter(|i| self.runs(world.waiting[*i].process, now)).collect();
        let woken: Vec<u64> = self
            .tasks
            .iter()
            .filter(|(_, task)| task.flag.0.load(Relaxed) && self.runs(task.process, now))
            .map(|(id, _)| *id)
            .collect();
        let choice = world.rng.below(at_points.len() + woken.len());
        if at_points.is_empty() && woken.is_empty() {
            let next = self.next_event(&world);
            world.now = next.clamp(now + 1, now + 500);
            return;
        }
        world.now += world.rng.next() & 1;
        if let Some(index) = at_points.get(choice) {
            self.points += 1;
            let process = world.waiting[*index].process;
            let name = world.waiting[*index].name;
            let rate = world.faults.crash;
            if self.crash_at.contains(&self.points) || world.rng.chance(rate) {
                drop(world);
                self.died_at.insert(name);
                if let Some(node) = self.node_of(process) {
                    self.crash(node);
                }
                return;
            }
            let waiting = world.release(*index);
            drop(world);
            waiting.waker.wake();
            let ids: Vec<u64> = self
                .tasks
                .iter()
                .filter(|(_, task)| task.process == process && task.flag.0.load(Relaxed))
                .map(|(id, _)| *id)
                .collect();
            ids.into_iter().for_each(|id| self.poll(id));
        } else if let Some(id) = woken.get(choice - at_points.len()) {
            drop(world);
            self.poll(*id);
        }
        self.refused_plan();
    }

    fn next_event(&self, world: &crate::world::World) -> u64 {
        let timers = world.timers.keys().next().map(|(due, _)| *due);
        let delayed = world.delayed.iter().map(|(due, _)| *due).min();
        let script = self.script.last().map(|(at, _)| *at);
        let nodes = self.nodes.iter().flat_map(|node| [node.paused_until, node.restart_at]);
        let nodes = nodes.filter(|at| *at > world.now).min();
        [timers, delayed, script, nodes].into_iter().flatten().min().unwrap_or(world.now + 500)
    }

    fn poll(&mut self, id: u64) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.flag.0.store(false, Relaxed);
        let waker = Waker::from(task.flag.clone());
        let done = task.future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        let process = task.process;
        if let Some(node) = self.node_of(process) {
            let mut world = self.sim.world();
            let now = world.now;
            // Whoever holds the lease renews it while it runs.
            if let Some((holder, renewed)) = &mut world.lease
                && *holder == node
            {
                *renewed = now;
            }
            drop(world);
            if done && self.nodes[node].main_ended() {
                self.crash(node);
            }
        }
        if done {
            self.tasks.remove(&id);
        }
    }

    /// The lint never refuses a plan but by a bug of the planner.
    fn refused_plan(&self) {
        for node in &self.nodes {
            let serving = node.serving.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let Some((_, shared)) = serving else { continue };
            let refused = shared.refused.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(text) = refused {
                self.sim.world().broken(|| format!("lint: {text}"));
            }
        }
    }

    /// Everything is well from now on.
    pub(crate) fn heal(&mut self) {
        let mut world = self.sim.world();
        world.tell(|| "everything heals".into());
        world.faults = Faults::default();
        world.edge.hangs_until = 0;
        drop(world);
        self.nodes.iter_mut().for_each(|node| node.paused_until = 0);
    }
}

/// What came of a command, once it came.
pub(crate) type Answer = Arc<Mutex<Option<Result<Outcome, String>>>>;
