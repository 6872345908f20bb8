//! `kiln down`: its options. The binary carries it out.

use crate::commands::serve::STATE_DEFAULT;
use crate::{Context, Failure};
use clap::Args;
use std::path::PathBuf;

/// Options of `kiln down`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Instances, load balancer, network interfaces and control groups go; the folder with releases, images and logs stays, \
and the next `kiln serve` starts everything again. Stop the server first.

Examples:
  sudo kiln down
  sudo kiln down --state /tmp/kiln"
)]
pub struct DownArgs {
    /// The folder that holds all state
    #[arg(long, value_name = "DIR", default_value = STATE_DEFAULT)]
    pub state: PathBuf,
}

pub(crate) fn run(context: &Context<'_>, arguments: DownArgs) -> Result<(), Failure> {
    let lines = context.roles().down(&arguments)?;
    context.out().answer(&serde_json::json!({ "done": lines }), || {
        lines.iter().map(|line| format!("{line}\n")).collect()
    })
}
