//! `kiln deploy`: uploads the commit, asks for the rollout, follows it to its end.

use crate::progress::Progress;
use crate::{Context, Failure, source, watch};
use clap::Args;
use kiln_api::Client;
use kiln_api::deploy::{Accepted, DeployRequest, DeployView};
use kiln_api::rollout::RolloutView;
use kiln_model::{CommitId, EnvName};

/// Options of `kiln deploy`.
#[derive(Debug, Args)]
#[command(
    after_help = "The server does the work: a closed laptop changes nothing. A rollout that fails is taken back, and what \
served before serves on; the exit code is 1 then.

Examples:
  kiln deploy                         the commit that the work tree stands on, to production
  kiln deploy --env staging           to another environment
  kiln deploy --ref v1.4 --plan       what would happen with that tag"
)]
pub struct DeployArgs {
    /// The environment [default: production]
    #[arg(long, value_name = "ENV")]
    env: Option<EnvName>,
    /// A commit, branch or tag instead of the commit that the work tree stands on
    #[arg(long = "ref", value_name = "REV")]
    reference: Option<String>,
    /// Only say what would happen
    #[arg(long)]
    plan: bool,
}

pub(crate) async fn run(context: &Context<'_>, arguments: DeployArgs) -> Result<(), Failure> {
    let source = source::resolve(context, arguments.reference.as_deref())?;
    let env = context.env_request(&arguments.env)?.env;
    let client = context.client()?;
    let mut progress = Progress::start();
    source::upload(&client, &source, &mut progress).await?;
    let commit = source.commit.clone();
    let request = DeployRequest { project: source.project.clone(), env, commit, plan: arguments.plan };
    // Asking again is harmless: what serves already, or is on its way, is not started again.
    let mut view = watch::persist("`kiln status` shows whether it was accepted", async || {
        client.deploy(&request).await?.answer(|text| progress.now(text)).await
    })
    .await?;
    drop(progress);
    source::keep_lock(context, &source, view.lock.take())?;
    if view.result == Accepted::Planned {
        return context.out().answer(&view, || plan(&view, &source.commit));
    }
    follow(context, &client, view).await
}

fn plan(view: &DeployView, commit: &CommitId) -> String {
    let mut text =
        format!("commit {} would become release {} of {}\n", commit.short(), view.release, view.env);
    for line in &view.plan {
        text.push_str(&format!("  {line}\n"));
    }
    text
}

/// Follows what was accepted to its end. What serves already has reached it.
pub(crate) async fn follow(context: &Context<'_>, client: &Client, view: DeployView) -> Result<(), Failure> {
    let Some(rollout) = view.rollout else {
        return context
            .out()
            .answer(&view, || format!("release {} of {} serves already\n", view.release, view.env));
    };
    if view.result == Accepted::Already {
        context.out().note(&format!("release {} of {} is on its way already", view.release, view.env));
    }
    let ended = watch::rollout(context, client, rollout).await?;
    let document = document(&view, &ended);
    match watch::outcome(&ended) {
        Ok(text) => context.out().answer(&document, || text),
        Err(failure) => Err(failure.document(&document)),
    }
}

/// The answer and the rollout that came of it, as one document: the fields of both.
fn document(view: &DeployView, ended: &RolloutView) -> serde_json::Value {
    let fields = |value: Result<serde_json::Value, serde_json::Error>| match value {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let mut both = fields(serde_json::to_value(view));
    both.extend(fields(serde_json::to_value(ended)));
    both.into()
}
