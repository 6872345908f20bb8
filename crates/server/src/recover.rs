//! The handlers of `kiln backup` and `kiln recover`, and what the status says of a recovery hold.

use crate::Context;
use crate::actor::Actor;
use crate::download::download;
use crate::failure::Failure;
use crate::handlers::{Answer, Body};
use crate::once::Once;
use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::response::Response;
use kiln_api::Code;
use kiln_api::backup::{
    AdoptedView, LostSecretView, RecoverRequest, RecoverView, RecoveryView, RemovedView, ServesView,
    StartedView,
};
use kiln_api::error::chain;
use kiln_model::{Boot, Snapshot};
use kiln_plan::recovery::{Lost, Survey, World, survey};
use kiln_plan::{Command, Refusal};
use kiln_store::DumpError;

pub(crate) fn view(snapshot: &Snapshot, now: Boot) -> Option<RecoveryView> {
    let recovery = snapshot.recovery.as_ref()?;
    Some(RecoveryView {
        reason: recovery.reason.clone(),
        since_ms: now.since(recovery.since),
        command: "kiln recover --plan".into(),
    })
}

impl From<DumpError> for Failure {
    fn from(error: DumpError) -> Self {
        let code = match &error {
            DumpError::Store(error) if error.is_disk_full() => Code::DiskFull,
            DumpError::Incomplete { .. } => Code::OnHold,
            _ => Code::Store,
        };
        Self::hinted(code, format!("no backup was taken: {}", chain(&error)), Some(error.hint().into()))
    }
}

pub(crate) async fn backup(
    State(context): State<Context>,
    ConnectInfo(Actor(actor)): ConnectInfo<Actor>,
) -> Result<Response, Failure> {
    let dump = tokio::task::spawn_blocking(move || context.handle.backup(&actor)).await??;
    Ok(download(move |out| dump.write(out)))
}

pub(crate) async fn recover(
    State(context): State<Context>,
    ConnectInfo(Actor(actor)): ConnectInfo<Actor>,
    once: Once,
    Body(request): Body<RecoverRequest>,
) -> Answer<RecoverView> {
    let snapshot = context.handle.snapshot()?;
    let world = World::of(&context.handle.observed());
    let key = once.of(&actor, "recover", &request);
    let command = Command::Recover { world: Box::new(world.clone()) };
    if request.plan {
        context.handle.consider(&actor, command)?;
    } else {
        context.handle.submit_once(&actor, key, command)?;
    }
    // Asked again after its answer was lost, there is no hold to tell of any more.
    let reason = snapshot.recovery.as_ref().map(|recovery| recovery.reason.clone()).unwrap_or_default();
    let survey = survey(&snapshot, &world).ok_or(Refusal::Unseen)?;
    Ok(Json(recover_view(survey, reason, !request.plan)))
}

fn recover_view(survey: Survey, reason: String, done: bool) -> RecoverView {
    let removed = |lost: Lost, serves| {
        let Lost { instance, env, why } = lost;
        RemovedView { instance, env, serves, why }
    };
    let Survey { adopted, pruned, unroutable, mut serving, changed, started, secrets, .. } = survey;
    let serves = changed.into_iter().map(|(env, state)| {
        let world = serving.remove(&env).unwrap_or_default();
        ServesView { env, state, world }
    });
    RecoverView {
        done,
        reason,
        serving: serves.collect(),
        adopted: adopted
            .into_iter()
            .map(|adopted| AdoptedView {
                instance: adopted.spec.id,
                env: adopted.spec.env,
                release: adopted.spec.release,
                service: adopted.spec.service,
            })
            .collect(),
        removed: (unroutable.into_iter().map(|lost| removed(lost, true)))
            .chain(pruned.into_iter().map(|lost| removed(lost, false)))
            .collect(),
        started: started
            .into_iter()
            .map(|(env, release, service)| StartedView { env, release, service })
            .collect(),
        lost_secrets: secrets
            .into_iter()
            .map(|(env, name, version)| LostSecretView { env, name, version })
            .collect(),
    }
}
