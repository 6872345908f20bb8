//! `kiln rollback`: a rollout to a release that exists.

use crate::commands::deploy::{follow, plan};
use crate::{Context, Failure, watch};
use clap::Args;
use kiln_api::deploy::RollbackRequest;
use kiln_model::{EnvName, ReleaseNumber};

/// Options of `kiln rollback`.
#[derive(Debug, Args)]
#[command(
    after_help = "Restores all of a release: images, configuration, routes, checks. It takes the same path as a deploy.

Examples:
  kiln rollback                       to the release that served before
  kiln rollback --to 3                to release 3
  kiln rollback --plan                what would happen"
)]
pub struct RollbackArgs {
    /// The environment [default: production]
    #[arg(long, value_name = "ENV")]
    env: Option<EnvName>,
    /// Only say what would happen
    #[arg(long)]
    plan: bool,
    /// The release; without it the newest below the serving one that ever served
    #[arg(long, value_name = "N")]
    to: Option<ReleaseNumber>,
}

pub(crate) async fn run(context: &Context<'_>, arguments: RollbackArgs) -> Result<(), Failure> {
    let about = context.env_request(&arguments.env)?;
    let client = context.client()?;
    let request =
        RollbackRequest { project: about.project, env: about.env, to: arguments.to, plan: arguments.plan };
    let view = watch::once(context, async |client| client.rollback(&request).await).await?;
    if arguments.plan {
        let what = format!("release {} would serve {} again", view.release, view.env);
        return context.out().answer(&view, || plan(&view, &what));
    }
    view.warnings.iter().for_each(|warning| context.out().note(&format!("warning: {warning}")));
    follow(context, &client, view).await
}
