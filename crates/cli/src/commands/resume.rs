//! `kiln resume`: goes on after a pause.

use crate::{Context, Failure, watch};
use clap::Args;
use kiln_api::environment::EnvRequest;
use kiln_api::pause::ResumeRequest;
use kiln_model::{EnvName, EnvRef};

/// Options of `kiln resume`.
#[derive(Debug, Args)]
#[command(after_help = "Rollouts have as much time left as they had when they were paused.

Examples:
  kiln resume --env staging
  kiln resume                         ends the pause of the whole server")]
pub struct ResumeArgs {
    /// Only this environment; without it the pause of the whole server
    #[arg(long, value_name = "ENV")]
    env: Option<EnvName>,
}

/// The environment that is named; none is the whole server.
pub(crate) fn place(context: &Context<'_>, env: &Option<EnvName>) -> Result<Option<EnvRef>, Failure> {
    let Some(env) = env else { return Ok(None) };
    Ok(Some(EnvRequest { project: context.project()?, env: env.clone() }.env_ref()))
}

pub(crate) async fn run(context: &Context<'_>, arguments: ResumeArgs) -> Result<(), Failure> {
    let request = ResumeRequest { env: place(context, &arguments.env)? };
    let view = watch::once(context, async |client| client.resume(&request).await).await?;
    if let Some(still) = &view.still {
        context.out().note(&format!(
            "warning: the whole server is still paused by {} ({}); `kiln resume` ends that",
            still.actor, still.reason
        ));
    }
    context.out().answer(&view, || {
        let place = view.env.as_ref().map_or_else(|| "the whole server".to_owned(), ToString::to_string);
        format!("{place} goes on after {}\n", view.after_ms)
    })
}
