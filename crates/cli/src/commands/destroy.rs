//! `kiln destroy`: removes all that runs of an environment.

use crate::{Context, Failure, watch};
use clap::Args;
use kiln_api::Code;
use kiln_model::{EnvName, EnvRef};
use std::io::{IsTerminal, Write};

/// Options of `kiln destroy`.
#[derive(Debug, Args)]
#[command(
    after_help = "Instances and routes go; releases, images, logs and the audit record stay, and the next deploy makes a new release.

Examples:
  kiln destroy --env staging
  kiln destroy --env staging --yes    without a question, as in scripts"
)]
pub struct DestroyArgs {
    /// The environment; there is no default
    #[arg(long, value_name = "ENV")]
    env: EnvName,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub(crate) async fn run(context: &Context<'_>, arguments: DestroyArgs) -> Result<(), Failure> {
    let request = context.env_request(&Some(arguments.env))?;
    if !arguments.yes {
        confirm(&request.env_ref())?;
    }
    let view = watch::once(context, async |client| client.destroy(&request).await).await?;
    view.waits.iter().for_each(|text| context.out().note(&format!("warning: {text}")));
    context.out().answer(&view, || format!("{} is being removed: {} instances\n", view.env, view.instances))
}

/// Asks on the terminal. A script has to say what it wants.
fn confirm(env: &EnvRef) -> Result<(), Failure> {
    let help = Code::Refused.entry().help;
    if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        return Err(Failure::new(Code::Usage, format!("removing {env} needs a confirmation")).hint(help));
    }
    let mut answer = String::new();
    let asked = write!(std::io::stderr(), "remove all that runs of {env}? type `{}` to confirm: ", env.env);
    let read = asked.and_then(|()| std::io::stdin().read_line(&mut answer));
    match read {
        Ok(_) if answer.trim() == env.env.as_str() => Ok(()),
        _ => {
            Err(Failure::new(Code::Refused, format!("{env} was not touched: nobody confirmed it")).hint(help))
        }
    }
}
