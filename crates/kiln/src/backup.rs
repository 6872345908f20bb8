//! `backup` and `restore`, on this side of the wire: files, and the error table.

use crate::roles::start_failure;
use kiln_api::Code;
use kiln_api::backup::{BackupView, RestoreView};
use kiln_api::error::chain;
use kiln_cli::{Failure, RestoreArgs};
use kiln_control::backup::{self, BackupError, Restoration, RestoreOptions};
use kiln_model::{Digest, Snapshot};
use kiln_store::dump::Head;
use std::path::Path;

pub(crate) fn keep(file: &Path, bytes: &[u8]) -> Result<BackupView, Failure> {
    let dump = backup::keep(file, bytes).map_err(failure)?;
    let images = dump.images().into_iter().collect();
    Ok(view((file, bytes.len() as u64), &dump.head, &dump.snapshot(), dump.ledger.len(), images))
}

pub(crate) fn restore(arguments: &RestoreArgs) -> Result<RestoreView, Failure> {
    let RestoreArgs { file, state, replace, dry_run } = arguments.clone();
    let size = std::fs::metadata(&file).map_or(0, |meta| meta.len());
    let options = RestoreOptions { file: file.clone(), state, replace, dry_run, actor: "root".into() };
    let Restoration { head, incarnation, snapshot, n_entries, kept, missing, n_sealed } =
        backup::restore(&options).map_err(failure)?;
    let images = snapshot.releases.values().flat_map(|r| r.images.iter().flatten().map(|(_, image)| *image));
    let images: std::collections::BTreeSet<Digest> = images.collect();
    let backup = view((&file, size), &head, &snapshot, n_entries, images.into_iter().collect());
    Ok(RestoreView {
        backup,
        done: !dry_run,
        incarnation: incarnation.0,
        kept: kept.map(|path| path.display().to_string()),
        missing,
        sealed: n_sealed,
    })
}

fn view(
    (file, bytes): (&Path, u64),
    head: &Head,
    snapshot: &Snapshot,
    entries: usize,
    images: Vec<Digest>,
) -> BackupView {
    BackupView {
        file: file.display().to_string(),
        kiln: head.kiln.clone(),
        created: head.created,
        revision: head.revision.0,
        incarnation: head.incarnation.0,
        environments: snapshot.environments.len(),
        releases: snapshot.releases.len(),
        instances: snapshot.instances.len(),
        secrets: snapshot.secrets.len(),
        entries,
        bytes,
        images,
    }
}

fn failure(error: BackupError) -> Failure {
    let text = chain(&error);
    let (code, hint) = match error {
        BackupError::State(error) => return start_failure(error),
        BackupError::Dump { ref source, .. } => (Code::BackupRefused, source.hint()),
        BackupError::Io { ref source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
            (Code::DiskFull, Code::DiskFull.entry().help)
        }
        BackupError::Io { .. } => (Code::File, Code::File.entry().help),
        BackupError::Newer { .. } | BackupError::Unreadable { .. } => {
            (Code::NewerState, Code::NewerState.entry().help)
        }
        BackupError::Store(ref error) if error.is_disk_full() => {
            (Code::DiskFull, Code::DiskFull.entry().help)
        }
        BackupError::Store(_) => (Code::Store, Code::Store.entry().help),
    };
    Failure::new(code, text).hint(hint)
}
