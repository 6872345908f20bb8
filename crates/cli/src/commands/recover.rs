//! `kiln recover`: ends the hold on state that is older than what runs.

use crate::{Context, Failure, watch};
use clap::Args;
use kiln_api::backup::{RecoverRequest, RecoverView, RemovedView};

/// Options of `kiln recover`.
#[derive(Debug, Args)]
#[command(
    after_help = "After a restore nothing begins: nothing is destroyed, started or switched, and the load balancer serves its last table. \
This command adopts what serves, by what lies with each instance, makes a table of it, and lets everything else go the ordinary way.

Examples:
  kiln recover --plan                 what would be adopted, removed and started
  kiln recover"
)]
pub struct RecoverArgs {
    /// Say what would be done, and do nothing
    #[arg(long)]
    plan: bool,
}

pub(crate) async fn run(context: &Context<'_>, arguments: RecoverArgs) -> Result<(), Failure> {
    let request = RecoverRequest { plan: arguments.plan };
    let view = if request.plan {
        context.client()?.recover(&request).await?
    } else {
        watch::once(context, async |client| client.recover(&request).await).await?
    };
    context.out().answer(&view, || text(&view))
}

fn text(view: &RecoverView) -> String {
    let mut text = format!("hold: {}\n", view.reason);
    for serves in &view.serving {
        let state = serves.state.map_or("nothing".to_owned(), |number| format!("release {number}"));
        let world: Vec<String> = serves.world.iter().map(|number| format!("release {number}")).collect();
        text.push_str(&format!("{}: {} serves; the state says {state}\n", serves.env, world.join(" with ")));
    }
    for adopted in &view.adopted {
        let (instance, env, release) = (&adopted.instance, &adopted.env, adopted.release);
        text.push_str(&format!("adopt    {instance} of release {release} of {env}\n"));
    }
    for removed in &view.removed {
        text.push_str(&self::removed(removed));
    }
    for started in &view.started {
        let (service, env, release) = (&started.service, &started.env, started.release);
        text.push_str(&format!("start    {service} of release {release} of {env}: nothing of it runs\n"));
    }
    for secret in &view.lost_secrets {
        let (name, env, version) = (&secret.name, &secret.env, secret.version);
        text.push_str(&format!(
            "lost     version {version} of secret {name} of {env}: set it again and deploy\n"
        ));
    }
    text.push_str(if view.done {
        "the hold is over: what is wanted is made so, what nobody owns is removed\n"
    } else {
        "`kiln recover` does that\n"
    });
    text
}

fn removed(removed: &RemovedView) -> String {
    let warning = if removed.serves { " (it serves now!)" } else { "" };
    format!("remove   {}{warning}: {}\n", removed.instance, removed.why)
}
