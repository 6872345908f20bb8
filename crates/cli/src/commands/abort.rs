//! `kiln abort`: stops the rollout under way.

use crate::{Context, Failure, watch};
use clap::Args;
use kiln_model::EnvName;

/// Options of `kiln abort`.
#[derive(Debug, Args)]
#[command(after_help = "Possible until traffic is switched; after that, `kiln rollback` is the way back.

Examples:
  kiln abort --env staging")]
pub struct AbortArgs {
    /// The environment [default: production]
    #[arg(long, value_name = "ENV")]
    env: Option<EnvName>,
}

pub(crate) async fn run(context: &Context<'_>, arguments: AbortArgs) -> Result<(), Failure> {
    let request = context.env_request(&arguments.env)?;
    let view = watch::once(context, async |client| client.abort(&request).await).await?;
    context.out().answer(&view, || {
        let serving = match view.serving {
            Some(release) => format!("release {release} serves on"),
            None => "nothing serves".to_owned(),
        };
        format!("rollout {} of {} is stopped; {serving}\n", view.rollout, view.env)
    })
}
