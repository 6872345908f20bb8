//! `kiln instance`: those that live, and those that are gone and left their black box.

use crate::output::{ago, now, table, timestamp};
use crate::{Context, Failure};
use clap::{Args, Subcommand};
use kiln_api::instance::{InstanceDetail, InstanceQuery, InstanceView};
use kiln_model::{EnvName, InstanceId};

/// What to show.
#[derive(Debug, Args)]
pub struct InstanceArgs {
    #[command(subcommand)]
    command: InstanceCommand,
}

#[derive(Debug, Subcommand)]
enum InstanceCommand {
    /// List instances
    #[command(after_help = "Examples:\n  kiln instance list\n  kiln instance list --gone --env staging")]
    List {
        /// Only this environment
        #[arg(long, value_name = "ENV")]
        env: Option<EnvName>,
        /// Those that are gone as well
        #[arg(long)]
        gone: bool,
    },
    /// Show one instance with the evidence of its checks and its last lines
    #[command(after_help = "Examples:\n  kiln instance show web-17")]
    Show {
        /// Its id, as `kiln instance list` shows it
        #[arg(value_name = "ID")]
        id: InstanceId,
    },
}

pub(crate) async fn run(context: &Context<'_>, arguments: InstanceArgs) -> Result<(), Failure> {
    let client = context.client()?;
    match arguments.command {
        InstanceCommand::List { env, gone } => {
            let query = InstanceQuery { project: context.project_if_any()?, env, gone };
            let view = client.instances(&query).await?;
            context.out().answer(&view, || list(&view.instances))
        }
        InstanceCommand::Show { id } => {
            let view = client.instance(&id).await?;
            context.out().answer(&view, || show(&view))
        }
    }
}

/// The word for where it is in its life.
pub(crate) fn state(view: &InstanceView) -> String {
    view.state.map_or("gone", |state| state.word()).to_owned()
}

/// `10.83.0.2:8080`.
pub(crate) fn address(view: &InstanceView) -> String {
    match (view.address, view.port) {
        (Some(address), Some(port)) => std::net::SocketAddr::new(address, port).to_string(),
        (Some(address), None) => address.to_string(),
        (None, _) => "-".to_owned(),
    }
}

fn list(instances: &[InstanceView]) -> String {
    let now = now();
    let row = |i: &InstanceView| {
        let note = i.reason.clone().or_else(|| i.process.clone()).unwrap_or_else(|| "-".into());
        let created = ago(i.created, now);
        vec![
            i.id.to_string(),
            i.env.to_string(),
            i.release.to_string(),
            state(i),
            address(i),
            i.image.short(),
            created,
            note,
        ]
    };
    let rows: Vec<_> = instances.iter().map(row).collect();
    table(&["INSTANCE", "ENVIRONMENT", "RELEASE", "STATE", "ADDRESS", "IMAGE", "CREATED", "PROCESS"], &rows)
}

fn show(view: &InstanceDetail) -> String {
    let i = &view.instance;
    let span = i.state_ms.map(|span| format!(" for {span}")).unwrap_or_default();
    let mut text = format!("instance     {}\nenvironment  {}\nservice      {}\n", i.id, i.env, i.service);
    text.push_str(&format!("release      {}\nimage        {}\n", i.release, i.image));
    if let Some(commit) = &i.commit {
        text.push_str(&format!("commit       {commit}\n"));
    }
    text.push_str(&format!("state        {}{span}\ncreated      {}\n", state(i), timestamp(i.created)));
    text.push_str(&format!("address      {}\n", address(i)));
    for (name, value) in [("process", &i.process), ("reason", &i.reason)] {
        if let Some(value) = value {
            text.push_str(&format!("{name:<11}  {value}\n"));
        }
    }
    if let Some(traffic) = &i.traffic {
        let tally = &traffic.tally;
        let place = if traffic.in_table { "in the table" } else { "not in the table" };
        text.push_str(&format!(
            "traffic      {place}; {} in flight; {} requests; failed {}; cut {}\n",
            traffic.in_flight, tally.requests, tally.failed, tally.cut
        ));
        if let Some(why) = &traffic.ejected {
            text.push_str(&format!("ejected      {why}\n"));
        }
    }
    if !view.evidence.is_empty() {
        text.push_str("checks:\n");
    }
    for check in &view.evidence {
        let verdict = if check.passed { "passed" } else { "failed" };
        text.push_str(&format!("  {verdict}  {} ({}): {}\n", check.check, check.took_ms, check.detail));
    }
    if !view.tail.is_empty() {
        text.push_str("last lines:\n");
    }
    for line in &view.tail {
        text.push_str(&format!("  {line}\n"));
    }
    text
}
