//! The commands, one file each, named like the command.

pub(crate) mod abort;
pub(crate) mod audit;
pub(crate) mod backup;
pub(crate) mod bake;
pub(crate) mod completions;
pub(crate) mod deploy;
pub(crate) mod destroy;
pub(crate) mod doctor;
pub(crate) mod down;
pub(crate) mod edge;
pub(crate) mod environment;
pub(crate) mod image;
pub(crate) mod init;
pub(crate) mod instance;
pub(crate) mod key;
pub(crate) mod lock;
pub(crate) mod logs;
pub(crate) mod pause;
pub(crate) mod promote;
pub(crate) mod recover;
pub(crate) mod reference;
pub(crate) mod release;
pub(crate) mod restore;
pub(crate) mod resume;
pub(crate) mod rollback;
pub(crate) mod scale;
pub(crate) mod secret;
pub(crate) mod serve;
pub(crate) mod status;
pub(crate) mod version;
pub(crate) mod why;

use crate::{Context, Failure};
use kiln_api::Code;

/// Waits for a command to end, or for the user to lose patience.
pub(crate) fn wait(
    context: &Context<'_>,
    command: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new(Code::Internal, format!("cannot start: {e}")))?;
    let ended = runtime.block_on(async {
        tokio::select! {
            // In this order: as long as a command has waited for nothing yet, as when it asks on the terminal, an
            // interruption ends the process at once.
            biased;
            ended = command => ended,
            _ = tokio::signal::ctrl_c() => Err(context.interrupted()),
        }
    });
    // A thread may hang in reading a pipe; nobody needs it any more.
    runtime.shutdown_background();
    ended
}
