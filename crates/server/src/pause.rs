//! The handlers of `kiln pause` and `kiln resume`, and what the status says of both.

use crate::Context;
use crate::actor::Actor;
use crate::failure::Failure;
use crate::handlers::{Answer, Body};
use crate::once::Once;
use axum::Json;
use axum::extract::{ConnectInfo, State};
use kiln_api::Code;
use kiln_api::pause::{HoldView, PauseRequest, PauseView, ResumeRequest, ResumeView};
use kiln_model::{Boot, EnvRef, Pause, Snapshot};
use kiln_plan::{Command, Observed, Outcome};

pub(crate) fn view(env: Option<&EnvRef>, pause: &Pause) -> PauseView {
    PauseView { env: env.cloned(), actor: pause.actor.clone(), reason: pause.reason.clone(), at: pause.at }
}

/// Environments that kiln itself leaves as they are.
pub(crate) fn holds(snapshot: &Snapshot, observed: &Observed, now: Boot) -> Vec<HoldView> {
    let held = kiln_plan::still::held(snapshot, observed);
    held.into_iter()
        .map(|(env, hold)| HoldView { env, reason: hold.reason, since_ms: now.since(hold.since) })
        .collect()
}

pub(crate) async fn pause(
    State(context): State<Context>,
    ConnectInfo(Actor(actor)): ConnectInfo<Actor>,
    once: Once,
    Body(request): Body<PauseRequest>,
) -> Answer<PauseView> {
    let command = Command::Pause { env: request.env.clone(), reason: request.reason.clone() };
    match context.handle.submit_once(&actor, once.of(&actor, "pause", &request), command)? {
        Outcome::Paused { pause } => Ok(Json(view(request.env.as_ref(), &pause))),
        other => Err(Failure::new(Code::Internal, format!("unexpected outcome {other:?}"))),
    }
}

pub(crate) async fn resume(
    State(context): State<Context>,
    ConnectInfo(Actor(actor)): ConnectInfo<Actor>,
    once: Once,
    Body(request): Body<ResumeRequest>,
) -> Answer<ResumeView> {
    let command = Command::Resume { env: request.env.clone() };
    match context.handle.submit_once(&actor, once.of(&actor, "resume", &request), command)? {
        Outcome::Resumed { after } => {
            let snapshot = context.handle.snapshot()?;
            let still = request.env.as_ref().and(snapshot.paused.as_ref()).map(|pause| view(None, pause));
            Ok(Json(ResumeView { env: request.env, after_ms: after, still }))
        }
        other => Err(Failure::new(Code::Internal, format!("unexpected outcome {other:?}"))),
    }
}
