//! Environments: those that there are, with their settings, and new ones.

use crate::Context;
use crate::actor::Actor;
use crate::failure::Failure;
use crate::handlers::{Answer, Body, Look, Query};
use axum::Json;
use axum::extract::{ConnectInfo, State};
use kiln_api::Code;
use kiln_api::environment::{CreateRequest, EnvironmentDetail, EnvironmentList, Scope};
use kiln_model::{EnvRef, Environment, Snapshot};
use kiln_plan::Command;

pub(crate) async fn list(
    State(context): State<Context>,
    Query(scope): Query<Scope>,
) -> Answer<EnvironmentList> {
    let look = Look::about(&context, &scope)?;
    let covered = look.snapshot.environments.values().filter(|e| scope.covers(&e.env));
    Ok(Json(EnvironmentList { environments: covered.map(|e| detail(&look.snapshot, e)).collect() }))
}

pub(crate) async fn create(
    State(context): State<Context>,
    ConnectInfo(Actor(actor)): ConnectInfo<Actor>,
    Body(request): Body<CreateRequest>,
) -> Answer<EnvironmentDetail> {
    let env = EnvRef { project: request.project, env: request.env };
    context.handle.submit(&actor, Command::CreateEnvironment { env: env.clone(), like: request.like })?;
    let snapshot = context.handle.snapshot()?;
    let made = snapshot.environments.get(&env);
    let made = made.ok_or_else(|| Failure::new(Code::Internal, format!("`{env}` vanished")))?;
    Ok(Json(detail(&snapshot, made)))
}

fn detail(snapshot: &Snapshot, environment: &Environment) -> EnvironmentDetail {
    let env = &environment.env;
    let serving = environment.serving.and_then(|number| snapshot.release(env, number));
    let newest = |secret: &kiln_model::Secret| {
        snapshot.current_secret(env, &secret.name).is_some_and(|current| current.version == secret.version)
    };
    EnvironmentDetail {
        env: env.clone(),
        like: environment.like.clone(),
        serving: environment.serving,
        destroyed: environment.destroyed,
        releases: snapshot.releases_of(env).count(),
        scale: environment.scale.clone(),
        requires: serving.and_then(|release| release.spec.requires.clone()).into_iter().collect(),
        secrets: snapshot.secrets_of(env, None).filter(|secret| newest(secret)).count(),
    }
}
