//! `kiln environment`: the places where a project runs, before and after their first release.

use crate::output::table;
use crate::{Context, Failure};
use clap::{Args, Subcommand};
use kiln_api::Code;
use kiln_api::environment::{CreateRequest, EnvironmentDetail, Scope};
use kiln_model::EnvName;

/// What to do with environments.
#[derive(Debug, Args)]
pub struct EnvironmentArgs {
    #[command(subcommand)]
    command: EnvironmentCommand,
}

#[derive(Debug, Subcommand)]
enum EnvironmentCommand {
    /// Make an environment, without a release
    #[command(
        after_help = "With `--like` it has the settings of another one but its data and its secrets: what was set with \
`kiln scale`, and `[environments.OTHER]` of kiln.toml as long as there is no `[environments.NAME]`. Nothing is deployed: \
set its secrets, give it routes of its own in kiln.toml, and deploy or promote to it.

Examples:
  kiln environment create staging --like production
  kiln deploy --env staging
  kiln promote --from production --to staging      or with the very images that run there"
    )]
    Create {
        /// Its name
        #[arg(value_name = "NAME")]
        name: EnvName,
        /// The environment whose settings it gets
        #[arg(long, value_name = "ENV")]
        like: Option<EnvName>,
    },
    /// List environments
    #[command(after_help = "Examples:\n  kiln environment list")]
    List,
    /// Show the settings of an environment; `kiln status` shows what runs
    #[command(after_help = "Examples:\n  kiln environment show staging")]
    Show {
        /// Its name
        #[arg(value_name = "NAME")]
        name: EnvName,
    },
}

pub(crate) async fn run(context: &Context<'_>, arguments: EnvironmentArgs) -> Result<(), Failure> {
    let client = context.client()?;
    match arguments.command {
        EnvironmentCommand::Create { name, like } => {
            let request = CreateRequest { project: context.project()?, env: name, like };
            let view = client.create_environment(&request).await?;
            context.out().answer(&view, || format!("{} exists, and has no release yet\n", view.env))?;
            context
                .out()
                .hint(&format!("`kiln deploy --env {}` deploys the commit you stand on", view.env.env));
            Ok(())
        }
        EnvironmentCommand::List => {
            let view = client.environments(&context.scope(&None)?).await?;
            context.out().answer(&view, || list(&view.environments))
        }
        EnvironmentCommand::Show { name } => {
            let scope = Scope { project: Some(context.project()?), env: Some(name) };
            let view = client.environments(&scope).await?;
            let one = view.environments.first();
            let one = one.ok_or_else(|| Failure::new(Code::Protocol, "the server named no environment"))?;
            context.out().answer(one, || show(one))
        }
    }
}

fn serving(view: &EnvironmentDetail) -> String {
    match view.serving {
        Some(number) => number.to_string(),
        None if view.destroyed => "destroyed".to_owned(),
        None => "-".to_owned(),
    }
}

fn list(environments: &[EnvironmentDetail]) -> String {
    let row = |view: &EnvironmentDetail| {
        let like = view.like.as_ref().map_or("-".to_owned(), ToString::to_string);
        vec![view.env.to_string(), serving(view), view.releases.to_string(), view.secrets.to_string(), like]
    };
    let rows: Vec<_> = environments.iter().map(row).collect();
    table(&["ENVIRONMENT", "SERVING", "RELEASES", "SECRETS", "LIKE"], &rows)
}

fn show(view: &EnvironmentDetail) -> String {
    let mut text = format!("environment  {}\nserving      {}\n", view.env, serving(view));
    text.push_str(&format!("releases     {}\nsecrets      {}\n", view.releases, view.secrets));
    if let Some(like) = &view.like {
        text.push_str(&format!(
            "like         {like}, where kiln.toml has no [environments.{}]\n",
            view.env.env
        ));
    }
    for (service, count) in &view.scale {
        text.push_str(&format!("scale        {service}={count}\n"));
    }
    for required in &view.requires {
        text.push_str(&format!(
            "requires     that {} served the images for {}\n",
            required.env, required.time
        ));
    }
    text
}
