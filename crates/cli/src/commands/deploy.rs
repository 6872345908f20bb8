//! `kiln deploy`: uploads the commit, asks for the rollout, follows it to its end.

use crate::progress::Progress;
use crate::{Context, Failure, source, watch};
use clap::Args;
use kiln_api::Client;
use kiln_api::deploy::{Accepted, DeployRequest, DeployView};
use kiln_api::rollout::RolloutView;
use kiln_model::EnvName;

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
    /// Go on although what the environment requires is not met; the reason is recorded
    #[arg(long = "override", value_name = "REASON")]
    override_reason: Option<String>,
}

pub(crate) async fn run(context: &Context<'_>, arguments: DeployArgs) -> Result<(), Failure> {
    let source = source::resolve(context, arguments.reference.as_deref())?;
    let env = context.env_request(&arguments.env)?.env;
    // Asked again after a lost connection, it is answered the same.
    let client = context.client()?.once(watch::key()?);
    let mut progress = Progress::start();
    source::upload(&client, &source, &mut progress).await?;
    let commit = source.commit.clone();
    let request = DeployRequest {
        project: source.project.clone(),
        env,
        commit,
        plan: arguments.plan,
        override_reason: arguments.override_reason,
    };
    let mut view = watch::persist("`kiln status` shows whether it was accepted", async || {
        client.deploy(&request).await?.answer(|text| progress.now(text)).await
    })
    .await?;
    drop(progress);
    source::keep_lock(context, &source, view.lock.take())?;
    view.warnings.iter().for_each(|warning| context.out().note(&format!("warning: {warning}")));
    if arguments.plan {
        let what =
            format!("commit {} would become release {} of {}", source.commit.short(), view.release, view.env);
        return context.out().answer(&view, || plan(&view, &what));
    }
    follow(context, &client, view).await
}

/// What would happen: `what`, then one line each.
pub(crate) fn plan(view: &DeployView, what: &str) -> String {
    if view.result == Accepted::Already {
        return already(view);
    }
    let mut text = format!("{what}\n");
    for line in &view.plan {
        text.push_str(&format!("  {line}\n"));
    }
    text
}

fn already(view: &DeployView) -> String {
    let how = if view.rollout.is_some() { "is on its way" } else { "serves" };
    format!("release {} of {} {how} already\n", view.release, view.env)
}

/// Follows what was accepted to its end. What serves already has reached it.
pub(crate) async fn follow(context: &Context<'_>, client: &Client, view: DeployView) -> Result<(), Failure> {
    let Some(rollout) = view.rollout else {
        return context.out().answer(&view, || already(&view));
    };
    if view.result == Accepted::Already {
        context.out().note(already(&view).trim_end());
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

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_model::{ReleaseNumber, RolloutId};

    #[test]
    fn a_plan_says_what_would_happen_or_that_nothing_would() {
        let what = "commit aaaaaaaaaa would become release 4 of shop/production";
        let mut view = DeployView {
            env: "shop/production".to_owned().try_into().unwrap(),
            result: Accepted::Planned,
            rollout: None,
            release: ReleaseNumber(4),
            lock: None,
            plan: vec!["switch".into()],
            warnings: vec![],
        };
        assert_eq!(
            plan(&view, what),
            "commit aaaaaaaaaa would become release 4 of shop/production\n  switch\n"
        );
        view.result = Accepted::Already;
        assert_eq!(plan(&view, what), "release 4 of shop/production serves already\n");
        view.rollout = Some(RolloutId(7));
        assert_eq!(plan(&view, what), "release 4 of shop/production is on its way already\n");
    }
}
