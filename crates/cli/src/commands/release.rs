//! `kiln release`: the numbered, immutable records of an environment.

mod diff;

use crate::commands::status::route;
use crate::context::env_or_default;
use crate::output::{ago, now, table, timestamp};
use crate::{Context, Failure};
use clap::{Args, Subcommand};
use kiln_api::release::{ReleaseDetail, ReleaseView};
use kiln_model::{EnvName, EnvRef, ReleaseNumber, ServiceSpec};

/// What to show.
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    #[command(subcommand)]
    command: ReleaseCommand,
}

#[derive(Debug, Subcommand)]
enum ReleaseCommand {
    /// List releases, newest first
    #[command(after_help = "Examples:\n  kiln release list\n  kiln release list --env staging")]
    List {
        /// Only this environment
        #[arg(long, value_name = "ENV")]
        env: Option<EnvName>,
    },
    /// Show what differs between two releases; of secrets the versions, never the values
    #[command(
        after_help = "Examples:\n  kiln release diff 3 4\n  kiln release diff 3 4 --env staging --json"
    )]
    Diff {
        /// The number of one
        #[arg(value_name = "N")]
        before: ReleaseNumber,
        /// The number of the other
        #[arg(value_name = "M")]
        after: ReleaseNumber,
        /// The environment [default: production]
        #[arg(long, value_name = "ENV")]
        env: Option<EnvName>,
    },
    /// Show all that a release records
    #[command(after_help = "Examples:\n  kiln release show 4\n  kiln release show 4 --env staging --json")]
    Show {
        /// Its number
        #[arg(value_name = "N")]
        number: ReleaseNumber,
        /// The environment [default: production]
        #[arg(long, value_name = "ENV")]
        env: Option<EnvName>,
    },
}

pub(crate) async fn run(context: &Context<'_>, arguments: ReleaseArgs) -> Result<(), Failure> {
    let client = context.client()?;
    match arguments.command {
        ReleaseCommand::List { env } => {
            let view = client.releases(&context.scope(&env)?).await?;
            context.out().answer(&view, || list(&view.releases))
        }
        ReleaseCommand::Diff { before, after, env } => {
            let env = EnvRef { project: context.project()?, env: env_or_default(&env) };
            let (before, after) = (client.release(&env, before).await?, client.release(&env, after).await?);
            let changes = diff::changes(&before, &after);
            context.out().answer(&changes, || diff::text(&changes))
        }
        ReleaseCommand::Show { number, env } => {
            let env = EnvRef { project: context.project()?, env: env_or_default(&env) };
            let view = client.release(&env, number).await?;
            context.out().answer(&view, || show(&view))
        }
    }
}

/// `serving`, else how its last rollout stands.
fn standing(view: &ReleaseView) -> String {
    match view.rollout {
        _ if view.serving => "serving".to_owned(),
        Some(phase) => phase.word().to_owned(),
        None => "-".to_owned(),
    }
}

fn list(releases: &[ReleaseView]) -> String {
    let now = now();
    let row = |r: &ReleaseView| {
        let served = if r.served { "yes" } else { "no" };
        vec![
            r.env.to_string(),
            r.release.to_string(),
            standing(r),
            served.to_owned(),
            r.commit.short().to_owned(),
            ago(r.created, now),
            r.actor.clone(),
            r.subject.clone(),
        ]
    };
    let rows: Vec<_> = releases.iter().map(row).collect();
    table(&["ENVIRONMENT", "RELEASE", "STATE", "SERVED", "COMMIT", "CREATED", "BY", "SUBJECT"], &rows)
}

fn show(view: &ReleaseDetail) -> String {
    let r = &view.release;
    let pinned = if r.pinned { "yes" } else { "no: the commit has no kiln.lock" };
    let served = if r.served { "served" } else { "never served" };
    let mut text = format!("release      {} of {}\ncommit       {}\n", r.release, r.env, r.commit);
    text.push_str(&format!(
        "subject      {}\ncreated      {} by {}\n",
        r.subject,
        timestamp(r.created),
        r.actor
    ));
    text.push_str(&format!("pinned       {pinned}\nstate        {}, {served}\n", standing(r)));
    if let Some(reason) = &view.reason {
        text.push_str(&format!("reason       {reason}\n"));
    }
    if let Some(rollback) = &view.rollback {
        let line = crate::watch::safety(rollback);
        text.push_str(&format!("rollback     {}", line.trim_start_matches("rollback: ")));
    }
    for (name, digest) in &r.images {
        text.push_str(&format!("image        {name} {digest}\n"));
    }
    for rule in &view.routes {
        text.push_str(&format!("route        {}\n", route(rule)));
    }
    for (name, version) in &view.secrets {
        text.push_str(&format!("secret       {name} version {version}\n"));
    }
    if let Some(origin) = &view.promoted_from {
        text.push_str(&format!("promoted     from release {} of {}\n", origin.release, origin.env));
    }
    if let Some(required) = &view.requires {
        text.push_str(&format!(
            "requires     that {} served the images for {}\n",
            required.env, required.time
        ));
    }
    if let Some(overridden) = &view.overridden {
        text.push_str(&format!("overridden   {overridden}\n"));
    }
    for service in view.services.values() {
        text.push_str(&format!("service      {}\n", describe(service)));
    }
    text
}

fn describe(service: &ServiceSpec) -> String {
    let port = service.port.map(|port| format!(", port {port}")).unwrap_or_default();
    let ServiceSpec { name, image, instances, .. } = service;
    format!("{name}: {instances} × {image}{port}: {}", service.command.join(" "))
}
