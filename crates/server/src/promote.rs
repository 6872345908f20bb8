//! Promotion: the images of one environment's release, configured for another one by the same commit.

use crate::Context;
use crate::actor::Actor;
use crate::failure::Failure;
use crate::handlers::{Body, begin};
use crate::once::Once;
use crate::stream::{Lines, one};
use axum::extract::{ConnectInfo, State};
use axum::response::Response;
use kiln_api::deploy::{DeployView, PromoteRequest};
use kiln_model::{EnvRef, Mutation, Release};
use kiln_plan::Command;
use kiln_plan::command::{Decision, source};

pub(crate) async fn promote(
    State(context): State<Context>,
    ConnectInfo(Actor(actor)): ConnectInfo<Actor>,
    once: Once,
    Body(request): Body<PromoteRequest>,
) -> Response {
    one(move |lines: Lines<DeployView>| async move {
        let work = move || -> Result<DeployView, Failure> {
            let mut progress = |text| lines.progress(text);
            let key = once.of(&actor, "promote", &request);
            let from = EnvRef { project: request.project.clone(), env: request.from };
            let env = EnvRef { project: request.project, env: request.to };
            let snapshot = context.handle.snapshot()?;
            let commit = source(&snapshot, &from, request.release)?.spec.commit.clone();
            let draft = context.workshop.draft(&env.project, &commit, &mut progress)?;
            let spec = draft.release(&env.env, &snapshot.names_of(&env))?;
            let spec = Box::new(spec);
            let command = Command::Promote { env, from: from.env, release: request.release, spec };
            begin(&context, (&actor, key), &draft, (command, request.override_reason), request.plan)
        };
        tokio::task::spawn_blocking(work).await?
    })
}

/// The release that a decision makes.
pub(crate) fn release_of(decision: &Decision) -> Option<&Release> {
    decision.mutations.iter().find_map(|mutation| match mutation {
        Mutation::PutRelease(release) => Some(&**release),
        _ => None,
    })
}

/// What a new release takes beside the commit, for people: secrets, images of others, and what was overridden.
pub(crate) fn foresee(release: &Release) -> Vec<String> {
    let mut lines = vec![];
    if let Some(origin) = &release.promoted_from {
        let (number, env) = (origin.release, &origin.env);
        lines.push(format!("take the images of release {number} of {env}; nothing is baked"));
    }
    if let Some(overridden) = &release.overridden {
        lines.push(format!("override what is required: {overridden}"));
    }
    let secret = |(name, version)| format!("give it version {version} of the secret {name}");
    lines.extend(release.spec.secrets.iter().map(secret));
    lines
}
