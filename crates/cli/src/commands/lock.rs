//! `kiln lock`: resolves packages into kiln.lock.

use crate::progress::Progress;
use crate::project::{self, LOCK, SPEC};
use crate::{Context, Failure};
use clap::Args;
use kiln_api::lock::LockRequest;
use kiln_model::limits;
use kiln_spec::Project;

/// Options of `kiln lock`.
#[derive(Debug, Args)]
#[command(
    after_help = "What is locked stays as it is unless kiln.toml asks for something else; `--update` takes the newest versions. \
Commit kiln.lock: a bake takes the one of the commit.

Examples:
  kiln lock && git add kiln.lock && git commit -m 'Lock packages'
  kiln lock --update --plan           which newer versions there are"
)]
pub struct LockArgs {
    /// Take the newest versions
    #[arg(long)]
    update: bool,
    /// Only say what would change
    #[arg(long)]
    plan: bool,
}

pub(crate) async fn run(context: &Context<'_>, arguments: LockArgs) -> Result<(), Failure> {
    let dir = context.project_dir()?;
    let toml = project::read(&dir.join(SPEC), limits::SPEC_BYTES_MAX)?;
    Project::parse(&toml, SPEC)?;
    let path = dir.join(LOCK);
    let previous = if path.exists() { Some(project::read(&path, limits::LOCK_BYTES_MAX)?) } else { None };
    let request = LockRequest { toml, previous, update: arguments.update };
    let mut progress = Progress::start();
    let client = context.client()?;
    let view = client.lock(&request).await?.answer(|text| progress.now(text)).await?;
    drop(progress);
    let same = request.previous.as_ref() == Some(&view.text);
    if !same && !arguments.plan {
        project::write(&path, &view.text)?;
    }
    context.out().answer(&view, || {
        // In a first lock everything is new.
        let mut text: String = match request.previous {
            Some(_) => view.changes.iter().map(|change| format!("{change}\n")).collect(),
            None => format!("{} packages locked\n", view.changes.len()),
        };
        let verb = match (same, arguments.plan) {
            (true, _) => "is up to date",
            (false, true) => "would change",
            (false, false) => "written",
        };
        text.push_str(&format!("{LOCK} {verb}\n"));
        text
    })?;
    if !same && !arguments.plan {
        context.out().hint(&format!("`git add {LOCK} && git commit` pins what the project is made of"));
    }
    Ok(())
}
