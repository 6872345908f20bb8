//! Effects and checks under way, as futures that the loop owns: they go on while it waits, and end with it. Whoever drives
//! the loop drives them, be it a runtime or the simulator.

use crate::clock::{Clock, within};
use crate::crash::Point;
use crate::execute::{Bakery, Ended, Engines, execute};
use futures_util::future::{AbortHandle, Aborted, Either, FutureExt, abortable, select};
use futures_util::stream::{FuturesUnordered, StreamExt};
use kiln_edge::client::Router;
use kiln_model::mutant::{Mutant, planted};
use kiln_model::{
    Digest, EnvRef, Epoch, Evidence, ImageName, Incarnation, InstanceId, Millis, Op, OpKey, ReleaseNumber,
    Snapshot,
};
use kiln_plan::observed::{OpOutcome, OpResult, Probe};
use kiln_provider::Provider;
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;

/// How long starting an instance may take; a damaged image is baked anew meanwhile.
const START_MAX: Millis = Millis::from_secs(60 * 60);
/// How long ending one may take, beside its own `stop.timeout`.
const END_MAX: Millis = Millis::from_secs(60);
/// How long the edge may take for a table.
const SWITCH_MAX: Millis = Millis::from_secs(30);

/// After so long an effect counts as one that failed: it is tried again, and `kiln why` shows it. A bake has its own limit.
fn effect_max(snapshot: &Snapshot, key: &OpKey) -> Option<Millis> {
    match key {
        OpKey::Bake { .. } => None,
        OpKey::Ensure { .. } => Some(START_MAX),
        OpKey::Absent { instance } => {
            let instance = snapshot.instances.get(instance);
            let stop = instance.and_then(|instance| {
                let release = snapshot.release(&instance.env, instance.release)?;
                Some(release.spec.services.get(&instance.service)?.stop.timeout)
            });
            Some(Millis(END_MAX.0.saturating_add(stop.unwrap_or_default().0)))
        }
        OpKey::SetRoute { .. } => Some(SWITCH_MAX),
    }
}

/// Something that was under way and ended.
#[derive(Debug)]
pub(crate) enum Finished {
    Effect { result: OpResult, baked: Option<((EnvRef, ReleaseNumber, ImageName), Digest)> },
    Probe { instance: InstanceId, step: usize, evidence: Evidence },
}

/// See the module.
#[derive(Default)]
pub(crate) struct Work {
    futures: FuturesUnordered<Pin<Box<dyn Future<Output = Finished> + Send>>>,
    /// Ended, and not asked for yet. What of it is an effect counts as running.
    finished: VecDeque<Finished>,
    running: BTreeSet<OpKey>,
    stops: BTreeMap<OpKey, AbortHandle>,
    probing: BTreeSet<(InstanceId, usize)>,
}

impl Work {
    /// Begins an effect.
    pub(crate) fn begin<P: Provider, R: Router, B: Bakery>(
        &mut self,
        engines: &Engines<P, R, B>,
        clock: &Arc<dyn Clock>,
        server: (Incarnation, Epoch),
        op: Op,
        snapshot: Arc<Snapshot>,
    ) {
        let (key, id) = (op.key.clone(), op.id);
        if !planted(Mutant::ForgetRunning) {
            self.running.insert(key.clone());
        }
        let limit = effect_max(&snapshot, &key);
        let effect = execute(engines.clone(), clock.clone(), server, op, snapshot);
        let (effect, stop) = abortable(AssertUnwindSafe(effect).catch_unwind());
        self.stops.insert(key.clone(), stop);
        let clock = clock.clone();
        self.futures.push(Box::pin(async move {
            let ended = match limit {
                Some(limit) => within(&*clock, limit, effect).await.ok_or(limit),
                None => Ok(effect.await),
            };
            // Whether it had happened before is unknown.
            let retry = |text: String| Ended { outcome: OpOutcome::Retry(text), baked: None };
            let Ended { outcome, baked } = match ended {
                Ok(Ok(Ok(ended))) => ended,
                Ok(Ok(Err(panic))) => retry(text(&*panic)),
                Ok(Err(Aborted)) => retry("nobody wants it any more".into()),
                Err(limit) => retry(format!("it did not end within {limit}")),
            };
            Finished::Effect { result: OpResult { key, id, outcome }, baked }
        }));
    }

    /// Begins a check, unless it is under way.
    pub(crate) fn look<P: Provider, R: Router, B: Bakery>(
        &mut self,
        engines: &Engines<P, R, B>,
        clock: &Arc<dyn Clock>,
        probe: &Probe,
    ) {
        if !self.probing.insert((probe.instance.clone(), probe.step)) {
            return;
        }
        let (provider, clock) = (engines.provider.clone(), clock.clone());
        let Probe { instance, step, check, .. } = probe.clone();
        self.futures.push(Box::pin(async move {
            let check_it = async {
                clock.pass(Point::ProbeBefore).await;
                let evidence = provider.check(&instance, &check).await;
                clock.pass(Point::ProbeAfter).await;
                evidence
            };
            let evidence = AssertUnwindSafe(check_it).catch_unwind().await.unwrap_or_else(|panic| Evidence {
                check: check.kind.to_string(),
                passed: false,
                detail: text(&*panic),
                took: Millis(0),
                at: clock.wall(),
            });
            Finished::Probe { instance, step, evidence }
        }));
    }

    /// Gives up an effect that nobody wants any more.
    pub(crate) fn abandon(&self, key: &OpKey) {
        self.stops.get(key).iter().for_each(|stop| stop.abort());
    }

    /// Effects that were begun and not taken yet.
    pub(crate) fn running(&self) -> &BTreeSet<OpKey> {
        &self.running
    }

    /// Whether no effect is under way.
    pub(crate) fn runs_nothing(&self) -> bool {
        self.running.is_empty()
    }

    /// Takes something that ended, without waiting.
    pub(crate) fn try_next(&mut self) -> Option<Finished> {
        if self.finished.is_empty() {
            self.finished.extend(self.futures.next().now_or_never().flatten());
        }
        let finished = self.finished.pop_front()?;
        match &finished {
            Finished::Effect { result, .. } => {
                self.stops.remove(&result.key);
                self.running.remove(&result.key)
            }
            Finished::Probe { instance, step, .. } => self.probing.remove(&(instance.clone(), *step)),
        };
        Some(finished)
    }

    /// Waits until something has ended; for ever, if nothing is under way.
    pub(crate) async fn ended(&mut self) {
        if self.finished.is_empty() {
            match self.futures.next().await {
                Some(finished) => self.finished.push_back(finished),
                None => std::future::pending().await,
            }
        }
    }

    /// Waits for `other`, while everything goes on.
    pub(crate) async fn while_working<F: Future + Unpin>(&mut self, mut other: F) -> F::Output {
        loop {
            if self.futures.is_empty() {
                return other.await;
            }
            match select(other, self.futures.next()).await {
                Either::Left((done, _)) => return done,
                Either::Right((finished, rest)) => {
                    self.finished.extend(finished);
                    other = rest;
                }
            }
        }
    }
}

/// What a panic says.
fn text(panic: &(dyn Any + Send)) -> String {
    let said = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("a bug in kiln: panicked: {}", said.unwrap_or_default())
}
