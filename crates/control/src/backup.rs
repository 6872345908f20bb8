//! `kiln backup` writes what a server answered to a file, whole or not at all; `kiln restore` makes a state folder of such a
//! file, while no server uses it. Whenever either dies, the old state or the new one is there, whole.
//!
//! ```text
//! restore: file ─▶ STATE/restore.part/kiln.db ─▶ old kiln.db gets a second name ─▶ rename ─▶ restore.part removed
//! ```

use crate::clock::{Clock, HostClock};
use crate::crash;
use crate::start::{StartError, take_state};
use crate::vault::Vault;
use kiln_model::{Digest, Epoch, Event, Incarnation, Recovery, Revision, Snapshot};
use kiln_store::dump::Head;
use kiln_store::{Dump, DumpError, Restored, SqliteStore, Store, StoreError};
use std::fs::{self, File};
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};

/// Where a restore makes the new database, in the state folder.
const PART: &str = "restore.part";
/// The named points of [`keep`] and [`restore`] at which `KILN_CRASH_AT` ends the process.
pub const POINTS: &[&str] =
    &["backup.written", "backup.renamed", "restore.filled", "restore.kept", "restore.swapped"];

/// A backup could not be kept or restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// What is in the file.
    #[error("`{}` cannot be restored", path.display())]
    Dump {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: DumpError,
    },
    /// A file could not be read or written.
    #[error("cannot {step} `{}`", path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// Which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The state folder is in use or cannot be used.
    #[error(transparent)]
    State(#[from] StartError),
    /// The folder has newer state.
    #[error("the state in `{}` is newer (revision {there}) than the backup (revision {backup})", path.display())]
    Newer {
        /// The state folder.
        path: PathBuf,
        /// Its revision.
        there: Revision,
        /// That of the backup.
        backup: Revision,
    },
    /// The folder has state that cannot be read, so that nobody knows whether it is newer.
    #[error("the state in `{}` cannot be read, so that it may be newer than the backup", path.display())]
    Unreadable {
        /// The state folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: StoreError,
    },
    /// The new database could not be made.
    #[error("the new state could not be written")]
    Store(#[from] StoreError),
}

impl BackupError {
    fn io(step: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { step, path: path.to_owned(), source }
    }
}

/// What is asked of [`restore`].
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// The backup.
    pub file: PathBuf,
    /// The state folder.
    pub state: PathBuf,
    /// Also over newer state.
    pub replace: bool,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Who asks, for the ledger.
    pub actor: String,
}

/// What a restore did, or would do.
#[derive(Debug, Clone)]
pub struct Restoration {
    /// What the backup is of.
    pub head: Head,
    /// The new history.
    pub incarnation: Incarnation,
    /// What it holds.
    pub snapshot: Snapshot,
    /// Entries of its ledger.
    pub n_entries: usize,
    /// Where the old state is kept, if there was any.
    pub kept: Option<PathBuf>,
    /// Images that it needs and that are not in the content store of the folder.
    pub missing: Vec<Digest>,
    /// Values of secrets that no key in the folder opens.
    pub n_sealed: usize,
}

/// Writes a backup that came from a server, if it is whole. What was under that name before is replaced in one step.
pub fn keep(path: &Path, bytes: &[u8]) -> Result<Dump, BackupError> {
    let dump = Dump::read(bytes).map_err(|source| BackupError::Dump { path: path.to_owned(), source })?;
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let fail = BackupError::io("write", path);
    let written = || -> io::Result<()> {
        let mut file = private(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        crash::at("backup.written");
        fs::rename(&part, path)?;
        crash::at("backup.renamed");
        sync_folder(path)
    };
    written().map_err(|error| {
        // Half of it is of no use, and its name is not the one that was asked for.
        let _ = fs::remove_file(&part);
        fail(error)
    })?;
    Ok(dump)
}

/// Makes the state of a folder from a backup. A new history begins, in a recovery hold.
pub fn restore(options: &RestoreOptions) -> Result<Restoration, BackupError> {
    let RestoreOptions { file: path, state, .. } = options;
    let file = File::open(path).map_err(BackupError::io("read", path))?;
    let dump = Dump::read(BufReader::new(file))
        .map_err(|source| BackupError::Dump { path: path.clone(), source })?;
    // A look makes no folder; everything else holds the lock to its end.
    let _lock = if options.dry_run && !state.exists() { None } else { Some(take_state(state)?) };
    let database = state.join("kiln.db");
    let there = database.exists().then(|| SqliteStore::peek(&database));
    if !options.replace {
        refuse_newer(state, &dump.head, &there)?;
    }
    let seen = newest_server(state, &dump.head, there.as_ref().and_then(|there| there.as_ref().ok()));
    let restored = restored(options, &dump, seen)?;
    let restoration = Restoration {
        head: dump.head.clone(),
        incarnation: restored.incarnation,
        snapshot: dump.snapshot(),
        n_entries: dump.ledger.len(),
        kept: there.is_some().then(|| aside(state)),
        missing: dump.images().into_iter().filter(|image| !is_stored(state, *image)).collect(),
        n_sealed: Vault::lost(state, &dump.snapshot()),
    };
    if !options.dry_run {
        fill(state, &dump, &restored)?;
        swap(state, &database, restoration.kept.as_deref()).map_err(BackupError::io("replace", &database))?;
    }
    Ok(restoration)
}

/// Removes what a restore that died left behind. The lock is held.
pub(crate) fn clean(state: &Path) {
    // It is only space.
    let _ = fs::remove_dir_all(state.join(PART));
}

type There = (Incarnation, Epoch, Revision);

fn refuse_newer(
    state: &Path,
    head: &Head,
    there: &Option<Result<There, StoreError>>,
) -> Result<(), BackupError> {
    let path = state.to_owned();
    match there {
        None => Ok(()),
        Some(Ok((incarnation, _, revision))) => {
            if (*incarnation, *revision) <= (head.incarnation, head.revision) {
                return Ok(());
            }
            Err(BackupError::Newer { path, there: *revision, backup: head.revision })
        }
        Some(Err(error)) => {
            let source = StoreError::Io {
                step: "reading",
                path: state.join("kiln.db").display().to_string(),
                source: kiln_image::worker::chain(error).into(),
            };
            Err(BackupError::Unreadable { path, source })
        }
    }
}

/// The newest server that anybody heard of, as far as this folder tells.
fn newest_server(state: &Path, head: &Head, there: Option<&There>) -> (Incarnation, Epoch) {
    let store = there.map(|(incarnation, epoch, _)| (*incarnation, *epoch));
    let edge = kiln_edge::kept_fence(&state.join("edge")).map(|fence| fence.server());
    let provider = kiln_provider::local::newest_server(state);
    let all = [Some((head.incarnation, head.epoch)), store, edge, provider];
    let known = all.into_iter().flatten();
    known.fold(Default::default(), |(incarnation, epoch), (i, e)| (incarnation.max(i), epoch.max(e)))
}

fn restored(
    options: &RestoreOptions,
    dump: &Dump,
    seen: (Incarnation, Epoch),
) -> Result<Restored, BackupError> {
    let clock = HostClock::new().map_err(BackupError::io("read the clock of", &options.state))?;
    let (at, since, head) = (clock.wall(), clock.boot(), &dump.head);
    let reason = format!("a backup of revision {} was restored", head.revision);
    let event = Event {
        at,
        actor: options.actor.clone(),
        env: None,
        kind: "restore".into(),
        subject: "the whole server".into(),
        detail: reason.clone(),
    };
    let recovery = Recovery { reason, since, at };
    Ok(Restored { incarnation: seen.0.next(), epoch: seen.1, hold: Some((recovery, event)) })
}

/// The name under which the old state is kept.
fn aside(state: &Path) -> PathBuf {
    let name = |n: u32| state.join(format!("kiln.before-restore-{n}.db"));
    (1..).map(name).find(|path| !path.exists()).unwrap_or_else(|| name(0))
}

fn is_stored(state: &Path, image: Digest) -> bool {
    let hex = image.hex();
    state.join("objects/sha256").join(&hex[..2]).join(&hex[2..]).exists()
}

/// Makes the new database, complete and on the disk, where nobody looks for it.
fn fill(state: &Path, dump: &Dump, restored: &Restored) -> Result<(), BackupError> {
    clean(state);
    let part = state.join(PART);
    fs::create_dir(&part).map_err(BackupError::io("make", &part))?;
    let path = part.join("kiln.db");
    // One file when it is closed: its log is written into it.
    SqliteStore::open(&path)?.fill(dump, restored)?;
    let durable = || File::open(&path)?.sync_all().and_then(|()| File::open(&part)?.sync_all());
    durable().map_err(BackupError::io("write", &path))?;
    crash::at("restore.filled");
    Ok(())
}

fn swap(state: &Path, database: &Path, kept: Option<&Path>) -> io::Result<()> {
    if let Some(kept) = kept {
        // One file, if it can be read; a log that stays would be taken for that of the new database.
        let whole = SqliteStore::settle(database).is_ok();
        fs::hard_link(database, kept)?;
        for end in ["-wal", "-shm"] {
            let (log, beside) = (with_end(database, end), with_end(kept, end));
            let moved = if whole { fs::remove_file(&log) } else { fs::rename(&log, &beside) };
            moved.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })?;
        }
        File::open(state)?.sync_all()?;
    }
    crash::at("restore.kept");
    fs::rename(state.join(PART).join("kiln.db"), database)?;
    File::open(state)?.sync_all()?;
    crash::at("restore.swapped");
    clean(state);
    Ok(())
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// A new file that only its owner can read: it has configuration, and secrets, if sealed.
fn private(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}
