//! What the API shows, made of a snapshot and an observation. Pure.

use kiln_api::audit::{AuditQuery, EntryView};
use kiln_api::environment::Scope;
use kiln_api::image::{ImageUse, ImageView};
use kiln_api::instance::{InstanceView, TrafficView};
use kiln_api::release::{ReleaseDetail, ReleaseView};
use kiln_api::rollout::{FiguresView, ReceiptView, RolloutView, SafetyView, SideView, StepView};
use kiln_api::status::{EdgeView, EnvironmentView, ServiceView, ServingView};
use kiln_api::why::ReasonView;
use kiln_model::edge::{EdgeStatus, TargetStatus};
use kiln_model::mix::BASELINE_SLOT;
use kiln_model::{
    Boot, Digest, EnvRef, Environment, ImageName, Instance, InstanceId, Release, Rollout, SeenState, Snapshot,
};
use kiln_plan::canary::Side;
use kiln_plan::explain::Reason;
use kiln_plan::route::replicas;
use kiln_plan::{Observed, mix};
use kiln_store::LedgerEntry;
use std::collections::{BTreeMap, BTreeSet};

/// A look at the world: what is desired, what was seen, and the time.
pub(crate) struct View<'a> {
    pub snapshot: &'a Snapshot,
    pub observed: &'a Observed,
    pub now: Boot,
    /// Whether an image is stored, whole.
    pub stored: &'a dyn Fn(Digest) -> bool,
}

impl View<'_> {
    fn target(&self, id: &InstanceId) -> Option<&TargetStatus> {
        self.observed.edge.as_ref()?.targets.iter().find(|t| t.instance == *id)
    }

    /// The environments that are asked for, by name.
    pub(crate) fn environments(&self, scope: &Scope) -> Vec<EnvironmentView> {
        let covered = self.snapshot.environments.values().filter(|e| scope.covers(&e.env));
        covered.map(|environment| self.environment(environment)).collect()
    }

    fn environment(&self, environment: &Environment) -> EnvironmentView {
        let env = &environment.env;
        let release = environment.serving.and_then(|number| self.snapshot.release(env, number));
        let active = self.snapshot.active_rollouts(env).next_back();
        let rollout = active.or_else(|| self.snapshot.rollouts.values().rfind(|r| r.env == *env));
        let edge = self.observed.edge.as_ref();
        EnvironmentView {
            env: env.clone(),
            serving: release.map(|release| ServingView {
                release: release.number,
                commit: release.spec.commit.clone(),
                subject: release.spec.subject.clone(),
                created: release.created,
            }),
            kept: environment.keep.map(|(release, _)| release),
            destroyed: environment.destroyed,
            services: release.map(|release| self.services(environment, release)).unwrap_or_default(),
            routes: release.map(|release| release.spec.routes.clone()).unwrap_or_default(),
            instances: self.snapshot.instances_of(env).map(|i| self.instance(i)).collect(),
            rollout: rollout.map(|rollout| self.rollout(rollout)),
            rollback: release.and_then(|_| self.safety(env)),
            requests: edge.map(|edge| edge.tally_of(env)).unwrap_or_default(),
            reasons: kiln_plan::explain::explain(self.snapshot, self.observed, Some(env)).len(),
            paused: environment.paused.as_ref().map(|pause| crate::pause::view(Some(env), pause)),
        }
    }

    fn services(&self, environment: &Environment, release: &Release) -> Vec<ServiceView> {
        let service = |spec: &kiln_model::ServiceSpec| {
            let instances = || {
                let all = self.snapshot.instances_of(&environment.env);
                all.filter(|i| {
                    i.release == release.number && i.service == spec.name && i.slot < BASELINE_SLOT
                })
            };
            ServiceView {
                name: spec.name.clone(),
                image: release.image_of(spec),
                wanted: replicas(environment, spec),
                scaled: environment.scale.contains_key(&spec.name),
                autoscale: spec.autoscale,
                requests_per_second: self
                    .observed
                    .rates
                    .get(&(environment.env.clone(), spec.name.clone()))
                    .map(|rate| rate.now / 1000),
                validated: instances().filter(|i| i.state.is_validated()).count() as u32,
                serving: instances().filter(|i| i.state == kiln_model::InstanceState::Serving).count() as u32,
            }
        };
        release.spec.services.values().map(service).collect()
    }

    /// A rollout with what its instances have reached.
    pub(crate) fn rollout(&self, rollout: &Rollout) -> RolloutView {
        let release = self.snapshot.release(&rollout.env, rollout.to);
        let environment = self.snapshot.environments.get(&rollout.env);
        let wanted = release.zip(environment).map_or(0, |(release, environment)| {
            release.spec.services.values().map(|s| mix::slots(environment, release.number, s)).sum()
        });
        let slots = |reached: &dyn Fn(&Instance) -> bool| {
            let instances = self.snapshot.instances_of(&rollout.env);
            let reached = instances.filter(|i| i.release == rollout.to && reached(i));
            (reached.map(|i| (&i.service, i.slot)).collect::<BTreeSet<_>>().len() as u32).min(wanted)
        };
        let [before, during, after] = rollout.receipt.periods();
        let edge = self.observed.edge.as_ref();
        let shared = rollout.receipt.shares.iter().filter_map(|(number, period)| {
            let present = || Some(edge?.mark_of_release(&rollout.env, *number));
            Some((*number, period.closed.clone().or_else(present)?.since(&period.opened)))
        });
        RolloutView {
            id: rollout.id,
            env: rollout.env.clone(),
            kind: rollout.kind,
            to: rollout.to,
            from: rollout.from,
            // A rollout without its release cannot be: the release is recorded first.
            commit: release.map_or_else(no_commit, |release| release.spec.commit.clone()),
            images: release.and_then(|release| release.images.clone()).unwrap_or_default(),
            pinned: release.is_some_and(|release| release.spec.pinned),
            actor: rollout.actor.clone(),
            phase: rollout.phase,
            ended: rollout.phase.is_end(),
            instances_wanted: wanted,
            instances_running: slots(&|i| {
                i.state.is_validated() || i.state == kiln_model::InstanceState::Probing
            }),
            instances_validated: slots(&|i| i.state.is_validated()),
            strategy: release.map_or_else(String::new, |r| r.spec.strategy().word().to_owned()),
            step: self.step(rollout),
            rollback: rollout.phase.is_end().then(|| self.safety(&rollout.env)).flatten(),
            created: rollout.created,
            ended_at: rollout.ended,
            switched_after_ms: rollout.switched_after,
            reason: rollout.reason.clone().or_else(|| {
                let waits = kiln_plan::pause::waits(self.snapshot, &rollout.env);
                waits.filter(|_| !rollout.phase.is_end())
            }),
            evidence: rollout.evidence.clone(),
            receipt: ReceiptView { before, during, after, shared: shared.collect() },
        }
    }

    fn step(&self, rollout: &Rollout) -> Option<StepView> {
        let progress = kiln_plan::progress::progress(self.snapshot, self.observed, rollout)?;
        let side = |side: &Side| SideView {
            instances: side.instances,
            requests: side.requests(),
            failed: side.failed(),
            p50_us: side.quantile(0.5).map(|us| us.0),
            p95_us: side.quantile(0.95).map(|us| us.0),
        };
        let figures = progress.figures.iter().map(|figures| FiguresView {
            service: figures.service.clone(),
            candidate: side(&figures.candidate),
            baseline: side(&figures.baseline),
            text: figures.to_string(),
        });
        Some(StepView {
            number: progress.number,
            of: progress.of,
            weight: progress.weight,
            baseline_weight: progress.baseline,
            figures: figures.collect(),
            hold_ms: progress.hold.as_ref().map(|(_, age)| *age),
            hold: progress.hold.map(|(why, _)| why),
            next: progress.next,
            deadline_ms: progress.deadline,
        })
    }

    /// Whether a rollback would work; none where nothing serves.
    fn safety(&self, env: &EnvRef) -> Option<SafetyView> {
        self.snapshot.environments.get(env)?.serving?;
        let safety = kiln_plan::safety::safety(self.snapshot, self.observed, env, self.stored);
        let kiln_plan::safety::Safety { to, safe, warm_for, notes } = safety;
        Some(SafetyView { to, safe, warm_ms: warm_for, notes })
    }

    /// An instance that is not gone.
    pub(crate) fn instance(&self, instance: &Instance) -> InstanceView {
        let release = self.snapshot.release(&instance.env, instance.release);
        let seen = self.observed.seen.as_ref().map(|seen| seen.get(&instance.id));
        let process = seen.map(|seen| match seen.map(|s| &s.state) {
            None => "absent".to_owned(),
            Some(SeenState::Starting) => "starting".to_owned(),
            Some(SeenState::Running) => "running".to_owned(),
            Some(SeenState::Exited(reason)) => reason.to_string(),
        });
        let service = release.and_then(|release| release.spec.services.get(&instance.service));
        InstanceView {
            id: instance.id.clone(),
            env: instance.env.clone(),
            service: instance.service.clone(),
            release: instance.release,
            image: instance.image,
            commit: release.map(|release| release.spec.commit.clone()),
            state: Some(instance.state),
            state_ms: Some(self.now.since(instance.since)),
            created: instance.created,
            address: instance.address,
            port: service.and_then(|service| service.port),
            process,
            reason: instance.reason.clone(),
            traffic: self.target(&instance.id).map(|target| TrafficView {
                in_table: target.in_table,
                in_flight: target.in_flight,
                ejected: target
                    .ejected
                    .then(|| target.reason.clone().unwrap_or_else(|| "it failed its checks".into())),
                tally: target.tally,
            }),
        }
    }

    /// An instance that is gone, by its last record.
    pub(crate) fn departed(&self, instance: &Instance) -> InstanceView {
        let view = self.instance(instance);
        InstanceView { state: None, state_ms: None, process: None, traffic: None, ..view }
    }

    /// A release.
    pub(crate) fn release(&self, release: &Release) -> ReleaseView {
        let environment = self.snapshot.environments.get(&release.env);
        let rollout = self.last_rollout(release);
        ReleaseView {
            env: release.env.clone(),
            release: release.number,
            commit: release.spec.commit.clone(),
            subject: release.spec.subject.clone(),
            created: release.created,
            actor: release.actor.clone(),
            pinned: release.spec.pinned,
            serving: environment.is_some_and(|e| e.serving == Some(release.number)),
            served: release.served,
            rollout: rollout.map(|rollout| rollout.phase),
            images: release.images.clone().unwrap_or_default(),
        }
    }

    fn serves(&self, release: &Release) -> bool {
        let environment = self.snapshot.environments.get(&release.env);
        environment.is_some_and(|e| e.serving == Some(release.number))
    }

    fn last_rollout(&self, release: &Release) -> Option<&Rollout> {
        let of_it = |r: &&std::sync::Arc<Rollout>| r.env == release.env && r.to == release.number;
        self.snapshot.rollouts.values().rfind(of_it).map(|rollout| &**rollout)
    }

    /// A release with all that it records.
    pub(crate) fn release_detail(&self, release: &Release) -> ReleaseDetail {
        ReleaseDetail {
            release: self.release(release),
            services: release.spec.services.clone(),
            routes: release.spec.routes.clone(),
            secrets: release.spec.secrets.clone(),
            promoted_from: release.promoted_from.clone(),
            requires: release.spec.requires.clone(),
            overridden: release.overridden.clone(),
            rollback: self.serves(release).then(|| self.safety(&release.env)).flatten(),
            reason: self.last_rollout(release).and_then(|rollout| rollout.reason.clone()),
        }
    }

    /// The releases that are asked for: by environment, newest first.
    pub(crate) fn releases(&self, scope: &Scope) -> Vec<ReleaseView> {
        let environments = self.snapshot.environments.keys().filter(|env| scope.covers(env));
        environments
            .flat_map(|env| self.snapshot.releases_of(env).rev())
            .map(|release| self.release(release))
            .collect()
    }

    /// The images of releases, by digest; `size` tells the bytes of one.
    pub(crate) fn images(&self, scope: &Scope, size: &dyn Fn(Digest) -> Option<u64>) -> Vec<ImageView> {
        let mut images: BTreeMap<Digest, ImageView> = BTreeMap::new();
        for release in self.snapshot.releases.values().filter(|r| scope.covers(&r.env)) {
            for (name, digest) in release.images.iter().flatten() {
                let view = images.entry(*digest).or_insert_with(|| new_image(*digest, name, release, size));
                let serving = self.snapshot.environments.get(&release.env);
                let serving = serving.is_some_and(|e| e.serving == Some(release.number));
                view.used_by.push(ImageUse { env: release.env.clone(), release: release.number, serving });
            }
        }
        images.into_values().collect()
    }
}

fn new_image(
    digest: Digest,
    name: &ImageName,
    release: &Release,
    size: &dyn Fn(Digest) -> Option<u64>,
) -> ImageView {
    let commit = release.spec.commit.clone();
    ImageView { digest, name: name.clone(), commit, size: size(digest), used_by: vec![] }
}

/// An image that no release uses, as the record beside it says.
pub(crate) fn baked(digest: Digest, provenance: &serde_json::Value, size: Option<u64>) -> Option<ImageView> {
    let word = |key: &str| provenance.get(key)?.as_str();
    let (name, commit) = (word("name")?.parse().ok()?, word("commit")?.parse().ok()?);
    Some(ImageView { digest, name, commit, size, used_by: vec![] })
}

fn no_commit() -> kiln_model::CommitId {
    "0".repeat(40).parse().unwrap_or_else(|_| unreachable!("forty digits are a commit"))
}

/// The edge, against the generation that it should use.
pub(crate) fn edge(status: &EdgeStatus, snapshot: &Snapshot) -> EdgeView {
    EdgeView {
        generation: status.generation.0,
        wanted: snapshot.route.0.0,
        listening: status.listening.clone(),
        pid: status.pid,
        program: status.program.clone(),
        replaced: status.replaced,
        tls: status.tls.clone(),
    }
}

/// One reason.
pub(crate) fn reason(reason: Reason) -> ReasonView {
    ReasonView {
        env: reason.env,
        what: reason.what,
        since_ms: reason.since,
        next: reason.next,
        deadline_ms: reason.deadline,
        command: reason.command,
        evidence: reason.evidence,
    }
}

/// Whether an entry of the ledger is asked for.
pub(crate) fn wanted(query: &AuditQuery, entry: &LedgerEntry) -> bool {
    let env: Option<&EnvRef> = entry.event.env.as_ref();
    query.project.as_ref().is_none_or(|p| env.is_some_and(|e| e.project == *p))
        && query.env.as_ref().is_none_or(|name| env.is_some_and(|e| e.env == *name))
}

/// One entry of the ledger.
pub(crate) fn entry(entry: LedgerEntry) -> EntryView {
    EntryView {
        sequence: entry.sequence,
        at: entry.event.at,
        actor: entry.event.actor,
        env: entry.event.env,
        kind: entry.event.kind,
        subject: entry.event.subject,
        detail: entry.event.detail,
        hash: entry.hash,
    }
}
