//! A backup of the whole truth, whatever store holds it: rows as the mutations that write them, tombstones and the ledger, in
//! one file of lines that tells by itself whether it is whole.
//!
//! ```text
//! {"head":{"format":1, …}}       what it is, and every counter
//! {"row":{"mutation":"…", …}}    environments, releases, secrets (sealed), rollouts, instances, effects, table, answers
//! {"tombstone":{…}}              every instance that was ever destroyed
//! {"entry":{…}}                  the ledger, with its hashes
//! {"end":{"lines":N,"checksum":"sha256:…"}}   of all bytes before this line
//! ```
//! What is taken while a server runs is of one revision: the snapshot is one value, and tombstones and ledger only grow, so
//! that those of later revisions are left out.

use crate::{LedgerEntry, Store, StoreError};
use kiln_model::{
    Digest, Epoch, Event, Generation, Incarnation, Instance, InstanceId, Mutation, OpId, Recovery, Revision,
    RolloutId, Snapshot, Wall,
};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use std::collections::BTreeSet;
use std::io::{self, BufRead, Read, Write};

/// The format that this kiln writes, and the newest that it reads.
pub const FORMAT: u32 = 1;
/// Bytes of one line: the largest is the route table.
const LINE_BYTES_MAX: u64 = 64 << 20;
/// Bytes of a backup.
const DUMP_BYTES_MAX: u64 = 4 << 30;
/// Ledger entries that are read at once.
const PAGE: usize = 1000;

/// What a backup is of, and the counters of its store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// See [`FORMAT`].
    pub format: u32,
    /// The kiln that wrote it.
    pub kiln: String,
    /// When it was taken.
    pub created: Wall,
    /// Of which commit.
    pub revision: Revision,
    /// Of which history.
    pub incarnation: Incarnation,
    /// The newest lease.
    pub epoch: Epoch,
    /// The boot of the host that its times belong to.
    pub boot_id: String,
    /// The last generation that the edge acknowledged.
    pub acked: Generation,
    /// The next number of an instance.
    pub next_instance: u64,
    /// The next number of a rollout.
    pub next_rollout: RolloutId,
    /// The next number of an effect.
    pub next_op: OpId,
}

/// That an instance was destroyed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// Which.
    pub id: InstanceId,
    /// By which commit it was known.
    pub revision: Revision,
    /// Its last row, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Box<Instance>>,
}

/// A backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dump {
    /// What it is of.
    pub head: Head,
    /// The mutations that write its rows, in an order in which each finds what it needs.
    pub rows: Vec<Mutation>,
    /// Oldest first.
    pub tombstones: Vec<Tombstone>,
    /// From its first entry.
    pub ledger: Vec<LedgerEntry>,
}

/// What a restore adds to what a backup says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The new history, above every one that is known.
    pub incarnation: Incarnation,
    /// The next lease is above it.
    pub epoch: Epoch,
    /// The hold that it begins with, and its entry in the ledger; none makes a copy of the store that it was taken from.
    pub hold: Option<(Recovery, Event)>,
}

/// A backup could not be taken or read.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The store.
    #[error("the state cannot be read")]
    Store(#[from] StoreError),
    /// What is missing in the snapshot would be missing in the backup.
    #[error("{what} cannot be read, and a backup would be without it")]
    Incomplete {
        /// Which row.
        what: String,
    },
    /// The file.
    #[error("the backup cannot be read")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("it is not a backup of kiln")]
    NotOne,
    /// It was written by a newer kiln.
    #[error("it has format {found}, this kiln knows up to {FORMAT}")]
    Newer {
        /// Its format.
        found: u64,
    },
    /// Its end is missing.
    #[error("it is cut off after line {lines}")]
    Cut {
        /// Whole lines.
        lines: u64,
    },
    /// It is not what was written.
    #[error("it is damaged at line {line}: {detail}")]
    Damaged {
        /// Which, from 1.
        line: u64,
        /// How.
        detail: String,
    },
}

impl DumpError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Store(_) | Self::Io(_) => "check the file, the disk and the rights",
            Self::Incomplete { .. } => {
                "stop the server and copy the whole state folder; `kiln why` names the rows"
            }
            Self::NotOne => "name a file that `kiln backup FILE` wrote",
            Self::Newer { .. } => "restore it with the kiln that wrote it, or a newer one",
            Self::Cut { .. } | Self::Damaged { .. } => "use another backup; nothing was changed",
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Head(Box<Head>),
    Row(Box<Mutation>),
    Tombstone(Tombstone),
    Entry(LedgerEntry),
    End { lines: u64, checksum: Digest },
}

impl Dump {
    /// Takes a backup of a store that may be in use.
    pub fn take(store: &dyn Store, created: Wall) -> Result<Self, DumpError> {
        let snapshot = store.load()?;
        if let Some(row) = snapshot.damaged.first() {
            return Err(DumpError::Incomplete { what: row.what.clone() });
        }
        let mut tombstones = store.tombstones()?;
        tombstones.retain(|tombstone| tombstone.revision <= snapshot.revision);
        let head = Head {
            format: FORMAT,
            kiln: env!("CARGO_PKG_VERSION").to_owned(),
            created,
            revision: snapshot.revision,
            incarnation: snapshot.incarnation,
            epoch: store.epoch()?,
            boot_id: snapshot.boot_id.clone(),
            acked: snapshot.acked,
            next_instance: snapshot.next_instance,
            next_rollout: snapshot.next_rollout,
            next_op: snapshot.next_op,
        };
        Ok(Self { head, rows: rows(&snapshot), tombstones, ledger: ledger(store, snapshot.revision)? })
    }

    /// The snapshot that it is of.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        self.rows.iter().for_each(|row| snapshot.apply(row));
        let head = &self.head;
        snapshot.revision = head.revision;
        snapshot.incarnation = head.incarnation;
        snapshot.boot_id.clone_from(&head.boot_id);
        snapshot.acked = head.acked;
        snapshot.next_instance = head.next_instance.max(snapshot.next_instance);
        snapshot.next_rollout = head.next_rollout.max(snapshot.next_rollout);
        snapshot.next_op = head.next_op.max(snapshot.next_op);
        snapshot
    }

    /// The images that its releases and instances need.
    pub fn images(&self) -> BTreeSet<Digest> {
        let images = self.rows.iter().flat_map(|row| match row {
            Mutation::PutRelease(release) => {
                release.images.iter().flatten().map(|(_, image)| *image).collect()
            }
            Mutation::PutInstance(instance) => vec![instance.image],
            _ => vec![],
        });
        images.collect()
    }

    /// Writes it.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut out = Hashed { out, hash: sha2::Sha256::new(), lines: 0 };
        out.line(&Line::Head(Box::new(self.head.clone())))?;
        for row in &self.rows {
            out.line(&Line::Row(Box::new(row.clone())))?;
        }
        for tombstone in &self.tombstones {
            out.line(&Line::Tombstone(tombstone.clone()))?;
        }
        for entry in &self.ledger {
            out.line(&Line::Entry(entry.clone()))?;
        }
        let checksum = Digest::from_bytes(out.hash.clone().finalize().into());
        out.line(&Line::End { lines: out.lines, checksum })
    }

    /// Reads one, and answers it only if it is whole.
    pub fn read(input: impl BufRead) -> Result<Self, DumpError> {
        let mut input = input.take(DUMP_BYTES_MAX);
        let mut hash = sha2::Sha256::new();
        let (mut head, mut rows, mut tombstones, mut ledger) = (None, vec![], vec![], vec![]);
        for n in 1.. {
            let mut text = vec![];
            (&mut input).take(LINE_BYTES_MAX).read_until(b'\n', &mut text)?;
            if n == 1 {
                check_head(&text)?;
            }
            if text.last() != Some(&b'\n') {
                return Err(DumpError::Cut { lines: n - 1 });
            }
            let damaged = |detail: String| DumpError::Damaged { line: n, detail };
            match serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))? {
                Line::Head(own) if n == 1 => head = Some(*own),
                Line::Head(_) => return Err(damaged("a second beginning".into())),
                Line::Row(row) => rows.push(*row),
                Line::Tombstone(tombstone) => tombstones.push(tombstone),
                Line::Entry(entry) => ledger.push(entry),
                Line::End { lines, checksum } => {
                    if lines != n - 1 || checksum != Digest::from_bytes(hash.finalize().into()) {
                        return Err(damaged("it does not have its checksum".into()));
                    }
                    if input.read(&mut [0])? > 0 {
                        return Err(damaged("something follows its end".into()));
                    }
                    let head = head.ok_or(DumpError::NotOne)?;
                    return Ok(Self { head, rows, tombstones, ledger });
                }
            }
            hash.update(&text);
        }
        Err(DumpError::NotOne)
    }
}

/// Whether a first line is one of a backup that this kiln knows. Read apart, because a newer one may look different.
fn check_head(text: &[u8]) -> Result<(), DumpError> {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(text) else {
        let begins = text.starts_with(b"{\"head\":{");
        return Err(if begins { DumpError::Cut { lines: 0 } } else { DumpError::NotOne });
    };
    match value["head"]["format"].as_u64() {
        None => Err(DumpError::NotOne),
        Some(found) if found > u64::from(FORMAT) => Err(DumpError::Newer { found }),
        Some(_) => Ok(()),
    }
}

fn rows(snapshot: &Snapshot) -> Vec<Mutation> {
    let mut rows: Vec<Mutation> = vec![];
    rows.extend(snapshot.environments.values().map(|row| Mutation::PutEnvironment((**row).clone())));
    rows.extend(snapshot.releases.values().map(|row| Mutation::PutRelease(Box::new((**row).clone()))));
    rows.extend(snapshot.secrets.values().map(|row| Mutation::PutSecret(Box::new((**row).clone()))));
    rows.extend(snapshot.rollouts.values().map(|row| Mutation::PutRollout(Box::new((**row).clone()))));
    rows.extend(snapshot.instances.values().map(|row| Mutation::PutInstance(Box::new((**row).clone()))));
    rows.extend(snapshot.ops.values().cloned().map(Mutation::PutOp));
    let (generation, table) = &snapshot.route;
    if generation.0 > 0 {
        rows.push(Mutation::PutRoute { generation: *generation, table: Box::new((**table).clone()) });
    }
    rows.extend(snapshot.answers.values().map(|row| Mutation::Answer((**row).clone())));
    rows.extend(snapshot.paused.clone().map(|pause| Mutation::Pause { env: None, pause: Some(pause) }));
    rows
}

fn ledger(store: &dyn Store, until: Revision) -> Result<Vec<LedgerEntry>, StoreError> {
    let mut entries: Vec<LedgerEntry> = vec![];
    loop {
        let page = store.ledger(entries.len() as u64 + 1, PAGE)?;
        let n = page.len();
        let own: Vec<_> = page.into_iter().take_while(|entry| entry.revision <= until).collect();
        let ends = own.len() < PAGE || n < PAGE;
        entries.extend(own);
        if ends {
            return Ok(entries);
        }
    }
}

struct Hashed<'a> {
    out: &'a mut dyn Write,
    hash: sha2::Sha256,
    lines: u64,
}

impl Hashed<'_> {
    fn line(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.hash.update(&text);
        self.lines += 1;
        self.out.write_all(&text)
    }
}

/// The snapshot of a store that was filled from a backup.
pub(crate) fn restored(dump: &Dump, restored: &Restored) -> Snapshot {
    let mut snapshot = dump.snapshot();
    if let Some((recovery, _)) = &restored.hold {
        snapshot.apply(&Mutation::Hold { recovery: recovery.clone() });
        snapshot.revision = snapshot.revision.next();
    }
    snapshot.incarnation = restored.incarnation;
    snapshot
}
