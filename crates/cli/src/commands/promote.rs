//! `kiln promote`: a rollout to a new release with the very images that another environment runs.

use crate::commands::deploy::{follow, plan};
use crate::progress::Progress;
use crate::{Context, Failure, watch};
use clap::Args;
use kiln_api::Code;
use kiln_api::deploy::PromoteRequest;
use kiln_model::{EnvName, ReleaseNumber};

/// Options of `kiln promote`.
#[derive(Debug, Args)]
#[command(
    after_help = "Nothing is baked: the release has the digests that served there, and the configuration that kiln.toml of the \
same commit has for the target. Secrets are the target's own.

Examples:
  kiln promote --from staging --to production
  kiln promote --from staging --to production --plan
  kiln promote --from staging --to production --release 7
  kiln promote --from staging --to production --override \"fixes the outage\""
)]
pub struct PromoteArgs {
    /// The environment whose images are taken
    #[arg(long, value_name = "ENV")]
    from: EnvName,
    /// The environment that gets them
    #[arg(long, value_name = "ENV")]
    to: EnvName,
    /// A release of the first; without it the one that serves
    #[arg(long, value_name = "N")]
    release: Option<ReleaseNumber>,
    /// Only say what would happen
    #[arg(long)]
    plan: bool,
    /// Go on although what the environment requires is not met; the reason is recorded
    #[arg(long = "override", value_name = "REASON")]
    override_reason: Option<String>,
}

pub(crate) async fn run(context: &Context<'_>, arguments: PromoteArgs) -> Result<(), Failure> {
    let PromoteArgs { from, to, release, plan: only_plan, override_reason } = arguments;
    if from == to {
        return Err(Failure::new(Code::Usage, "both environments are the same")
            .hint("`kiln rollback --to N` goes back to a release of one environment"));
    }
    let client = context.client()?;
    let request =
        PromoteRequest { project: context.project()?, from, to, release, plan: only_plan, override_reason };
    let mut progress = Progress::start();
    // Asking again is harmless, as with a deploy.
    let view = watch::persist("`kiln status` shows whether it was accepted", async || {
        client.promote(&request).await?.answer(|text| progress.now(text)).await
    })
    .await?;
    drop(progress);
    view.warnings.iter().for_each(|warning| context.out().note(&format!("warning: {warning}")));
    if only_plan {
        return context.out().answer(&view, || plan(&view, &format!("what serves in {}", request.from)));
    }
    follow(context, &client, view).await
}
