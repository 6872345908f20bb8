//! One function per path. Each reads a snapshot or submits a command; long work runs on threads of its own.

use crate::Context;
use crate::actor::Actor;
use crate::failure::Failure;
use crate::named;
use crate::once::Once;
use crate::promote;
use crate::stream::{Lines, one, stopped, stream};
use crate::views::{self, View};
use axum::Json;
use axum::extract::{ConnectInfo, FromRequest, FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::response::Response;
use kiln_api::Code;
use kiln_api::audit::{AuditQuery, AuditView, BrokenView, VerifyView};
use kiln_api::bake::{BakeRequest, BakeView};
use kiln_api::deploy::{Accepted, DeployRequest, DeployView, RollbackRequest};
use kiln_api::environment::{DestroyView, EnvRequest, Scope};
use kiln_api::instance::{InstanceDetail, InstanceList, InstanceQuery};
use kiln_api::lock::{LockRequest, LockView};
use kiln_api::release::{ReleaseDetail, ReleaseList};
use kiln_api::rollout::{AbortView, RolloutView};
use kiln_api::scale::{ScaleRequest, ScaleView};
use kiln_api::server::{LeaseView, ServerView};
use kiln_api::status::StatusView;
use kiln_api::update::Update;
use kiln_api::why::WhyView;
use kiln_control::WorkshopError;
use kiln_control::handle::Key;
use kiln_model::{
    Digest, EnvName, EnvRef, InstanceId, ProjectName, ReleaseNumber, RolloutId, RolloutKind, Snapshot,
};
use kiln_plan::preview::{Wish, preview};
use kiln_plan::route::replicas;
use kiln_plan::{Command, Observed, Outcome};
use kiln_spec::{Lock, Project};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Instances that are gone and are still listed.
const DEPARTED_MAX: usize = 1000;
/// Ledger entries that are read at a time.
const LEDGER_PAGE: usize = 1000;
/// Lines of output shown with an instance.
const TAIL_LINES: usize = 20;
/// Time between two looks at a rollout of which nothing was committed: checks pass without a commit.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(crate) type Answer<T> = Result<Json<T>, Failure>;

/// A JSON body, refused in kiln's own words.
pub(crate) struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Context> for Body<T> {
    type Rejection = Failure;
    async fn from_request(request: Request, context: &Context) -> Result<Self, Failure> {
        let body = Json::from_request(request, context).await;
        let body = body.map_err(|rejection| Failure::new(Code::Usage, rejection.body_text()));
        Ok(Self(body?.0))
    }
}

/// A query, refused in kiln's own words.
pub(crate) struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Context> for Query<T> {
    type Rejection = Failure;
    async fn from_request_parts(parts: &mut Parts, context: &Context) -> Result<Self, Failure> {
        let query = axum::extract::Query::from_request_parts(parts, context).await;
        let query = query.map_err(|rejection| Failure::new(Code::Usage, rejection.body_text()));
        Ok(Self(query?.0))
    }
}

/// A look at the world that lives as long as its view.
pub(crate) struct Look {
    pub(crate) snapshot: Arc<Snapshot>,
    observed: Arc<Observed>,
    now: kiln_model::Boot,
    stored: Box<dyn Fn(Digest) -> bool + Send + Sync>,
}

impl Look {
    pub(crate) fn take(context: &Context) -> Result<Self, Failure> {
        let handle = &context.handle;
        let workshop = context.workshop.clone();
        let stored = Box::new(move |image| workshop.manifest(image).is_ok());
        Ok(Self { snapshot: handle.snapshot()?, observed: handle.observed(), now: handle.now(), stored })
    }

    /// A look for a question about `scope`.
    pub(crate) fn about(context: &Context, scope: &Scope) -> Result<Self, Failure> {
        let look = Self::take(context)?;
        named::environment(&look.snapshot, scope)?;
        Ok(look)
    }

    pub(crate) fn view(&self) -> View<'_> {
        View { snapshot: &self.snapshot, observed: &self.observed, now: self.now, stored: &self.stored }
    }
}

pub(crate) async fn unknown(uri: axum::http::Uri) -> Failure {
    Failure::new(Code::Usage, format!("`{}` is not a path of this server", uri.path()))
}

fn server_view(context: &Context, snapshot: &Snapshot) -> Result<ServerView, Failure> {
    let lease = context.handle.store().lease()?;
    Ok(ServerView {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        revision: snapshot.revision.0,
        lease: Some(LeaseView {
            holder: lease.holder,
            epoch: lease.epoch.0,
            left_ms: lease.left.map(|left| left.0),
        }),
    })
}

pub(crate) async fn server(State(context): State<Context>) -> Answer<ServerView> {
    Ok(Json(server_view(&context, &*context.handle.snapshot()?)?))
}

pub(crate) async fn status(State(context): State<Context>, Query(scope): Query<Scope>) -> Answer<StatusView> {
    let look = Look::about(&context, &scope)?;
    Ok(Json(StatusView {
        server: server_view(&context, &look.snapshot)?,
        edge: look.observed.edge.as_ref().map(|edge| views::edge(edge, &look.snapshot)),
        environments: look.view().environments(&scope),
        paused: look.snapshot.paused.as_ref().map(|pause| crate::pause::view(None, pause)),
        recovery: crate::recover::view(&look.snapshot, look.now),
        holds: crate::pause::holds(&look.snapshot, &look.observed, look.now)
            .into_iter()
            .filter(|hold| scope.covers(&hold.env))
            .collect(),
    }))
}

pub(crate) async fn deploy(
    State(context): State<Context>,
    ConnectInfo(Actor(actor)): ConnectInfo<Actor>,
    once: Once,
    Body(request): Body<DeployRequest>,
) -> Response {
    one(move |lines: Lines<DeployView>| async move {
        let work = move || -> Result<DeployView, Failure> {
            let mut progress = |text| lines.progress(text);
            let draft = context.workshop.draft(&request.project, &request.commit, &mut progress)?;
            let key = once.of(&actor, "deploy", &request);
            let env = EnvRef { project: request.project, env: request.env };
            let spec = draft.release(&env.env, &context.handle.snapshot()?.names_of(&env))?;
            let command = Command::Deploy { env, spec: Box::new(spec) };
            begin(&context, (&actor, key), &draft, (command, request.override_reason), request.plan)
        };
        tokio::task::spawn_blocking(work).await?
    })
}

/// Submits a deploy or a promotion, or says what it would do. With a reason it goes on also if a requirement is not met.
pub(crate) fn begin(
    context: &Context,
    (actor, key): (&str, Option<Key>),
    draft: &kiln_control::Draft,
    (command, reason): (Command, Option<String>),
    plan: bool,
) -> Result<DeployView, Failure> {
    let (Command::Deploy { env, spec } | Command::Promote { env, spec, .. }) = &command else {
        return Err(Failure::new(Code::Internal, "neither a deploy nor a promotion"));
    };
    let (env, spec) = (env.clone(), spec.clone());
    let command = match reason {
        Some(reason) => Command::Override { command: Box::new(command), reason },
        None => command,
    };
    let mut warnings = draft.warnings();
    warnings.extend(waits(context, &env)?);
    if !plan {
        let outcome = context.handle.submit_once(actor, key, command)?;
        return Ok(DeployView { warnings, ..deploy_view(env, outcome, draft.resolved_lock())? });
    }
    let decision = context.handle.consider(actor, command)?;
    let release = promote::release_of(&decision);
    let given = release.and_then(|release| release.images.clone());
    let of_image =
        |image: &kiln_model::ImageName| Some((image.clone(), context.workshop.baked(draft, image)?));
    let baked = given.unwrap_or_else(|| spec.images.iter().filter_map(of_image).collect());
    let lines = release.map(promote::foresee).unwrap_or_default();
    let view = deploy_view(env.clone(), decision.outcome, draft.resolved_lock())?;
    let view = DeployView { warnings, ..view };
    let wish = Wish { env: &env, kind: RolloutKind::Deploy, to: view.release, spec: &spec, baked: &baked };
    let mut view = planned(context, plan, view, &wish)?;
    if view.result == Accepted::Planned {
        view.plan.splice(0..0, lines);
    }
    Ok(view)
}

fn deploy_view(env: EnvRef, outcome: Outcome, lock: Option<String>) -> Result<DeployView, Failure> {
    let (result, rollout, release) = match outcome {
        Outcome::Started { rollout, release } => (Accepted::Started, Some(rollout), release),
        Outcome::Already { rollout, release } => (Accepted::Already, rollout, release),
        other => return Err(Failure::new(Code::Internal, format!("unexpected outcome {other:?}"))),
    };
    Ok(DeployView { env, result, rollout, release, lock, plan: vec![], warnings: vec![] })
}

/// The answer, with what would happen instead of what was accepted, if only the plan was asked for.
fn planned(context: &Context, plan: bool, view: DeployView, wish: &Wish<'_>) -> Result<DeployView, Failure> {
    if !plan || view.result != Accepted::Started {
        return Ok(view);
    }
    let plan = preview(&*context.handle.snapshot()?, wish);
    Ok(DeployView { result: Accepted::Planned, rollout: None, plan, ..view })
}

pub(crate) async fn rollback(
    State(context): State<Context>,
    ConnectInfo(Actor(actor)): ConnectInfo<Actor>,
    once: Once,
    Body(request): Body<RollbackRequest>,
) -> Answer<DeployView> {
    let key = once.of(&actor, "rollback", &request);
    let env = EnvRef { project: request.project, env: request.env };
    let command = Command::Rollback { env: env.clone(), to: request.to };
    let warnings = waits(&context, &env)?.into_iter().collect();
    if !request.plan {
        let outcome = context.handle.submit_once(&actor, key, command)?;
        return Ok(Json(DeployView { warnings, ..deploy_view(env, outcome, None)? }));
    }
    let outcome = context.handle.consider(&actor, command)?.outcome;
    let view = DeployView { warnings, ..deploy_view(env.clone(), outcome, None)? };
    let snapshot = context.handle.snapshot()?;
    let release = snapshot.release(&env, view.release).cloned();
    let release = release.ok_or_else(|| Failure::new(Code::NoRelease, "the release is gone"))?;
    let mut baked = release.images.clone().unwrap_or_default();
    baked.retain(|_, image| context.workshop.manifest(*image).is_ok());
    let (kind, to) = (RolloutKind::Rollback, view.release);
    let wish = Wish { env: &env, kind, to, spec: &release.spec, baked: &baked };
    Ok(Json(planned(&context, true, view, &wish)?))
}

pub(crate) async fn scale(
    State(context): State<Context>,
    ConnectInfo(Actor(actor)): ConnectInfo<Actor>,
    once: Once,
    Body(request): Body<ScaleRequest>,
) -> Answer<ScaleView> {
    let key = once.of(&actor, "scale", &request);
    let env = EnvRef { project: request.project, env: request.env };
    let instances = request.instances;
    context.handle.submit_once(&actor, key, Command::Scale { env: env.clone(), instances })?;
    let snapshot = context.handle.snapshot()?;
    let mut wanted = BTreeMap::new();
    if let Some(environment) = snapshot.environments.get(&env) {
        let release = environment.serving.and_then(|number| snapshot.release(&env, number));
        let services = release.map(|release| &release.spec.services).into_iter().flatten();
        wanted.extend(services.map(|(name, spec)| (name.clone(), replicas(environment, spec))));
    }
    let waits = waits(&context, &env)?;
    Ok(Json(ScaleView { env, wanted, waits }))
}

pub(crate) async fn abort(
    State(context): State<Context>,
    ConnectInfo(Actor(actor)): ConnectInfo<Actor>,
    once: Once,
    Body(request): Body<EnvRequest>,
) -> Answer<AbortView> {
    let key = once.of(&actor, "abort", &request);
    let env = request.env_ref();
    match context.handle.submit_once(&actor, key, Command::Abort { env: env.clone() })? {
        Outcome::Aborted { rollout } => {
            let serving = context.handle.snapshot()?.environments.get(&env).and_then(|e| e.serving);
            Ok(Json(AbortView { env, rollout, serving }))
        }
        other => Err(Failure::new(Code::Internal, format!("unexpected outcome {other:?}"))),
    }
}

pub(crate) async fn destroy(
    State(context): State<Context>,
    ConnectInfo(Actor(actor)): ConnectInfo<Actor>,
    once: Once,
    Body(request): Body<EnvRequest>,
) -> Answer<DestroyView> {
    let key = once.of(&actor, "destroy", &request);
    let env = request.env_ref();
    context.handle.submit_once(&actor, key, Command::Destroy { env: env.clone() })?;
    let instances = context.handle.snapshot()?.instances_of(&env).count();
    let waits = waits(&context, &env)?;
    Ok(Json(DestroyView { env, instances, waits }))
}

/// What holds up a command that was recorded.
fn waits(context: &Context, env: &EnvRef) -> Result<Option<String>, Failure> {
    Ok(kiln_plan::pause::waits(&*context.handle.snapshot()?, env))
}

fn rollout_view(context: &Context, id: RolloutId) -> Result<RolloutView, Failure> {
    let look = Look::take(context)?;
    let rollout = look.snapshot.rollouts.get(&id);
    let rollout =
        rollout.ok_or_else(|| Failure::new(Code::NoRollout, format!("there is no rollout {id}")))?;
    Ok(look.view().rollout(rollout))
}

pub(crate) async fn rollout(
    State(context): State<Context>,
    Path(id): Path<RolloutId>,
) -> Answer<RolloutView> {
    Ok(Json(rollout_view(&context, id)?))
}

pub(crate) async fn watch_rollout(State(context): State<Context>, Path(id): Path<RolloutId>) -> Response {
    stream(move |lines: Lines<RolloutView>| async move {
        let mut revision = context.handle.revision();
        let mut progress = context.handle.progress();
        let mut stopping = context.handle.stopping();
        let mut shown = None;
        loop {
            revision.mark_unchanged();
            let view = rollout_view(&context, id)?;
            let ended = view.ended;
            let env = view.env.clone();
            if shown.as_ref() != Some(&view) {
                shown = Some(view.clone());
                if lines.send(Update::Item(view)).await.is_err() {
                    return Ok(());
                }
            }
            if ended {
                return Ok(());
            }
            tokio::select! {
                _ = revision.changed() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = lines.closed() => return Ok(()),
                () = stopped(&mut stopping) => {
                    return Err(Failure::new(Code::Unavailable, "the server stops"));
                }
                // What was missed by a slow listener is only a line less.
                Ok(line) = progress.recv() => {
                    if line.env.as_ref() == Some(&env) && lines.send(Update::Progress(line.text)).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    })
}

pub(crate) async fn releases(
    State(context): State<Context>,
    Query(scope): Query<Scope>,
) -> Answer<ReleaseList> {
    Ok(Json(ReleaseList { releases: Look::about(&context, &scope)?.view().releases(&scope) }))
}

pub(crate) async fn release(
    State(context): State<Context>,
    Path((project, env, number)): Path<(ProjectName, EnvName, ReleaseNumber)>,
) -> Answer<ReleaseDetail> {
    let env = EnvRef { project, env };
    let look = Look::take(&context)?;
    let release = look.snapshot.release(&env, number);
    let release =
        release.ok_or_else(|| Failure::new(Code::NoRelease, format!("`{env}` has no release {number}")))?;
    Ok(Json(look.view().release_detail(release)))
}

pub(crate) async fn instances(
    State(context): State<Context>,
    Query(query): Query<InstanceQuery>,
) -> Answer<InstanceList> {
    let scope = Scope { project: query.project, env: query.env };
    let look = Look::about(&context, &scope)?;
    let alive = look.snapshot.instances.values().filter(|i| scope.covers(&i.env));
    let mut instances: Vec<_> = alive.map(|i| look.view().instance(i)).collect();
    if query.gone {
        let departed = context.handle.store().departed(DEPARTED_MAX)?;
        let departed = departed.iter().filter(|i| scope.covers(&i.env));
        instances.extend(departed.map(|i| look.view().departed(i)));
    }
    instances.sort_by_key(|i| i.id.sequence());
    Ok(Json(InstanceList { instances }))
}

pub(crate) async fn instance(
    State(context): State<Context>,
    Path(id): Path<InstanceId>,
) -> Answer<InstanceDetail> {
    let look = Look::take(&context)?;
    let (view, evidence) = match look.snapshot.instances.get(&id) {
        Some(instance) => (look.view().instance(instance), instance.evidence.clone()),
        None => {
            let departed = context.handle.store().departed(DEPARTED_MAX)?;
            let instance = departed.into_iter().find(|i| i.id == id).ok_or_else(|| {
                Failure::new(Code::NoInstance, format!("there is no instance `{id}`, alive or gone"))
            })?;
            (look.view().departed(&instance), instance.evidence)
        }
    };
    let evidence = evidence.iter().map(Into::into).collect();
    let tail = context.workshop.logs().tail_of(&id, TAIL_LINES);
    Ok(Json(InstanceDetail { instance: view, evidence, tail }))
}

pub(crate) async fn why(State(context): State<Context>, Query(scope): Query<Scope>) -> Answer<WhyView> {
    named::environment(&*context.handle.snapshot()?, &scope)?;
    let reasons = context.handle.explain(None)?;
    let reasons = reasons.into_iter().filter(|r| scope.covers(&r.env)).map(views::reason).collect();
    Ok(Json(WhyView { reasons }))
}

pub(crate) async fn audit(
    State(context): State<Context>,
    Query(query): Query<AuditQuery>,
) -> Answer<AuditView> {
    let scope = Scope { project: query.project.clone(), env: query.env.clone() };
    named::environment(&*context.handle.snapshot()?, &scope)?;
    let work = move || -> Result<AuditView, Failure> {
        let mut kept = VecDeque::new();
        let mut from = 1;
        loop {
            let page = context.handle.store().ledger(from, LEDGER_PAGE)?;
            let Some(last) = page.last() else { break };
            from = last.sequence + 1;
            for entry in page {
                if views::wanted(&query, &entry) {
                    kept.push_back(views::entry(entry));
                }
                if query.lines.is_some_and(|lines| kept.len() > lines) {
                    kept.pop_front();
                }
            }
        }
        Ok(AuditView { entries: kept.into() })
    };
    Ok(Json(tokio::task::spawn_blocking(work).await??))
}

pub(crate) async fn verify_audit(State(context): State<Context>) -> Answer<VerifyView> {
    let store = context.handle.store().clone();
    Ok(Json(match tokio::task::spawn_blocking(move || store.verify_ledger()).await?? {
        Ok(verified) => VerifyView { verified, broken: None },
        Err((sequence, reason)) => {
            VerifyView { verified: sequence.saturating_sub(1), broken: Some(BrokenView { sequence, reason }) }
        }
    }))
}

pub(crate) async fn lock(State(context): State<Context>, Body(request): Body<LockRequest>) -> Response {
    one(move |lines: Lines<LockView>| async move {
        let work = move || -> Result<LockView, Failure> {
            let project = Project::parse(&request.toml, "kiln.toml").map_err(WorkshopError::Spec)?;
            let previous = request.previous.as_deref().map(Lock::parse).transpose();
            let previous = previous.map_err(|e| WorkshopError::Lock { text: e.to_string() });
            // With `--update` a damaged lock does not matter: it is replaced.
            let previous = if request.update { previous.ok().flatten() } else { previous? };
            lines.progress("reading the indexes of the mirror".into());
            let recipes = project.recipes();
            let mut progress = |text: String| lines.progress(text);
            let lock =
                context.workshop.resolve(&recipes, previous.as_ref(), request.update, &mut progress)?;
            Ok(crate::locks::view(previous.as_ref(), &lock))
        };
        tokio::task::spawn_blocking(work).await?
    })
}

pub(crate) async fn bake(State(context): State<Context>, Body(request): Body<BakeRequest>) -> Response {
    one(move |lines: Lines<BakeView>| async move {
        let work = move || -> Result<BakeView, Failure> {
            let mut progress = |text: String| lines.progress(text);
            let draft = context.workshop.draft(&request.project, &request.commit, &mut progress)?;
            let mut images = BTreeMap::new();
            for name in draft.project.images.keys() {
                let mut progress = |text: String| lines.progress(format!("image {name}: {text}"));
                images.insert(name.clone(), context.workshop.bake(&draft, name, &mut progress)?);
            }
            let warnings = draft.warnings();
            Ok(BakeView { commit: request.commit, images, lock: draft.resolved_lock(), warnings })
        };
        tokio::task::spawn_blocking(work).await?
    })
}
