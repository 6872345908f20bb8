//! `kiln pause`: stops effects; observation goes on.

use crate::commands::resume::place;
use crate::output::{ago, now};
use crate::{Context, Failure, watch};
use clap::Args;
use kiln_api::pause::PauseRequest;
use kiln_model::EnvName;

/// Options of `kiln pause`.
#[derive(Debug, Args)]
#[command(
    after_help = "No bake, start, switch or destroy begins until `kiln resume`; what is under way ends. The edge serves on, and \
checks and counters are read on. Healing is stopped as well: an instance that dies is not replaced. \
Commands are accepted and recorded, and wait. Deadlines of rollouts do not run on.

Examples:
  kiln pause --env staging --reason \"the database is being moved\"
  kiln pause --reason \"host maintenance\"       the whole server"
)]
pub struct PauseArgs {
    /// Only this environment; without it the whole server
    #[arg(long, value_name = "ENV")]
    env: Option<EnvName>,
    /// Why, for whoever looks at `kiln status`
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

pub(crate) async fn run(context: &Context<'_>, arguments: PauseArgs) -> Result<(), Failure> {
    let env = place(context, &arguments.env)?;
    let request = PauseRequest { env, reason: arguments.reason };
    let view = watch::once(context, async |client| client.pause(&request).await).await?;
    context.out().answer(&view, || {
        let place = view.env.as_ref().map_or_else(|| "the whole server".to_owned(), ToString::to_string);
        format!("{place} is paused by {} ({}): {}\n", view.actor, ago(view.at, now()), view.reason)
    })
}
