//! `kiln version`: of this program and of the server.

use crate::{Context, Failure};
use clap::Args;
use kiln_api::server::ServerView;
use serde::Serialize;

/// Options of `kiln version`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  kiln version --json")]
pub struct VersionArgs {}

#[derive(Serialize)]
struct VersionView {
    client: &'static str,
    server: Option<ServerView>,
}

pub(crate) async fn run(context: &Context<'_>, _: VersionArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let server = match client.server().await {
        Ok(server) => Some(server),
        // A version is asked for when nothing runs yet, too.
        Err(error) if error.is_lost() => None,
        Err(error) => return Err(error.into()),
    };
    let view = VersionView { client: env!("CARGO_PKG_VERSION"), server };
    context.out().answer(&view, || {
        let server = match &view.server {
            Some(server) => format!("{} (process {})", server.version, server.pid),
            None => format!("none answers at `{}`", client.address()),
        };
        format!("client  {}\nserver  {server}\n", view.client)
    })
}
