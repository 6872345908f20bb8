//! `kiln image import`.

use crate::output::bytes;
use crate::progress::Progress;
use crate::{Context, Failure};
use clap::Args;
use kiln_api::Code;
use kiln_api::export::ImportQuery;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// What to import.
#[derive(Debug, Args)]
#[command(
    after_help = "What `kiln image export` wrote as OCI archive, OCI layout or docker archive comes back as the very same image, which is \
computed, not believed. Another image, or one that was changed, gets a digest of its own.

Examples:
  kiln image import web.tar
  kiln image import web/             an OCI layout in a folder"
)]
pub struct ImportArgs {
    /// An archive, or the folder of an OCI layout
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

pub(super) async fn run(context: &Context<'_>, arguments: ImportArgs) -> Result<(), Failure> {
    let path = context.dir().join(&arguments.path);
    let unreadable = |e: io::Error| {
        Failure::new(Code::File, format!("`{}` could not be read: {e}", path.display()))
            .hint(Code::File.entry().help)
    };
    let archive = open(&path).map_err(unreadable)?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let client = context.client()?;
    let mut progress = Progress::start();
    progress.now(&format!("importing {name}"));
    let view = client.import(&ImportQuery { name }, archive).await?;
    drop(progress);
    if let Some(said) = view.said.filter(|said| *said != view.image) {
        context
            .out()
            .note(&format!("warning: it says that it is {said}, but its content is not the same any more"));
    }
    context.out().answer(&view, || format!("imported {}, {}\n", view.image, bytes(view.size)))
}

/// An archive; a folder becomes one on the way.
fn open(path: &Path) -> io::Result<Box<dyn Read + Send>> {
    if !path.is_dir() {
        return Ok(Box::new(File::open(path)?));
    }
    let folder = path.to_owned();
    let (reader, writer) = io::pipe()?;
    std::thread::spawn(move || {
        // If the folder cannot be read, the archive ends too early, and is refused.
        let _ = tar::Builder::new(writer).append_dir_all(".", folder);
    });
    Ok(Box::new(reader))
}
