//! Reads what instances printed, while they live and after they are gone.
//!
//! Every instance has a folder with its specification, which says whose it is, and a black box of frames in two files that
//! take turns ([`kiln_model::frame`]). The supervisor writes them; nothing here ever does. What is torn or damaged is left
//! out; what was lost or dropped is told as a line of its own.
//!
//! Memory does not grow with what was printed: each black box is read through a small window.
#![forbid(unsafe_code)]

mod blackbox;
mod merge;
mod segment;

use blackbox::{BlackBox, Entry, record};
use kiln_model::{
    CommitId, Digest, EnvName, EnvRef, InstanceId, ProjectName, ReleaseNumber, ServiceName, Wall,
};
use merge::Source;
use serde::Deserialize;
use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Lines that [`Cursor::next_lines`] gives at a time if no number is asked for.
pub const LINES_AT_ONCE: usize = 10_000;

/// The folder of instances could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read `{}`", path.display())]
pub struct LogError {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

/// Which lines. Everything that is given must hold.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only of this project.
    pub project: Option<ProjectName>,
    /// Only of environments of this name.
    pub env: Option<EnvName>,
    /// Only of this service.
    pub service: Option<ServiceName>,
    /// Only of this release.
    pub release: Option<ReleaseNumber>,
    /// Only of this instance.
    pub instance: Option<InstanceId>,
    /// Only of commits that start with this.
    pub commit: Option<String>,
    /// Only from that time on.
    pub since: Option<Wall>,
    /// Only lines that contain this text.
    pub grep: Option<String>,
    /// Only the newest so many.
    pub last: Option<usize>,
}

/// One line with its tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When the supervisor read it.
    pub at: Wall,
    /// Whose.
    pub env: EnvRef,
    /// Of which service.
    pub service: ServiceName,
    /// Of which release.
    pub release: ReleaseNumber,
    /// Of which instance.
    pub instance: InstanceId,
    /// What it runs.
    pub image: Digest,
    /// Of which commit.
    pub commit: CommitId,
    /// `out`, `err` or `kiln`.
    pub stream: String,
    /// Its number within the instance.
    pub sequence: u64,
    /// The text; bytes that are not UTF-8 are replaced.
    pub line: String,
}

/// What a specification says of an instance.
#[derive(Debug, Clone, Deserialize)]
struct Tags {
    id: InstanceId,
    env: EnvRef,
    release: ReleaseNumber,
    service: ServiceName,
    commit: CommitId,
    image: Digest,
}

impl Tags {
    fn line(&self, entry: Entry) -> Line {
        Line {
            at: entry.at,
            env: self.env.clone(),
            service: self.service.clone(),
            release: self.release,
            instance: self.id.clone(),
            image: self.image,
            commit: self.commit.clone(),
            stream: entry.stream.word().to_owned(),
            sequence: entry.sequence,
            line: entry.text,
        }
    }
}

impl Filter {
    fn covers(&self, tags: &Tags) -> bool {
        self.project.as_ref().is_none_or(|p| *p == tags.env.project)
            && self.env.as_ref().is_none_or(|e| *e == tags.env.env)
            && self.service.as_ref().is_none_or(|s| *s == tags.service)
            && self.release.is_none_or(|r| r == tags.release)
            && self.instance.as_ref().is_none_or(|i| *i == tags.id)
            && self.commit.as_ref().is_none_or(|c| tags.commit.as_str().starts_with(c.as_str()))
    }

    fn shows(&self, entry: &Entry) -> bool {
        self.since.is_none_or(|since| entry.at >= since)
            && self.grep.as_ref().is_none_or(|grep| entry.text.contains(grep.as_str()))
    }
}

/// `STATE/instances`.
#[derive(Debug, Clone)]
pub struct LogFolder {
    instances: PathBuf,
}

impl LogFolder {
    /// The logs of a state folder.
    pub fn new(state: &Path) -> Self {
        Self { instances: state.join("instances") }
    }

    /// Hands every matching line to `each`, oldest first by time, instance and number, until it breaks. Memory grows with
    /// `last` only.
    pub fn read(
        &self,
        filter: &Filter,
        each: &mut dyn FnMut(&Line) -> ControlFlow<()>,
    ) -> Result<(), LogError> {
        let mut sources = BTreeMap::new();
        self.find(&mut sources)?;
        let mut chosen: Vec<&mut Source> = sources.values_mut().filter(|s| filter.covers(&s.tags)).collect();
        let Some(last) = filter.last else {
            merge::forward(&mut chosen, filter, &mut |line| each(&line));
            return Ok(());
        };
        for line in merge::newest(&mut chosen, filter, last) {
            if each(&line).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Whether there is anything of an instance, alive or gone.
    pub fn holds(&self, id: &InstanceId) -> bool {
        self.instances.join(id.as_str()).is_dir()
    }

    /// The last `count` lines that an instance and its supervisor printed. Empty if there are none.
    pub fn tail_of(&self, id: &InstanceId, count: usize) -> Vec<String> {
        let mut tail = VecDeque::new();
        let mut black_box = BlackBox::new(self.instances.join(id.as_str()));
        black_box.look();
        while let Some(entry) = black_box.next_entry() {
            tail.push_back(entry.text);
            if tail.len() > count {
                tail.pop_front();
            }
        }
        tail.into()
    }

    /// Adds the instances that are not there yet. A specification never changes and is there before the first line.
    fn find(&self, sources: &mut BTreeMap<InstanceId, Source>) -> Result<(), LogError> {
        let failed = |source| LogError { path: self.instances.clone(), source };
        let entries = match std::fs::read_dir(&self.instances) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(failed)?,
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let Ok(id) = entry.file_name().to_string_lossy().parse::<InstanceId>() else { continue };
            if sources.contains_key(&id) {
                continue;
            }
            let tags = record::<Tags>(&entry.path().join("spec.json")).filter(|tags| tags.id == id);
            if let Some(tags) = tags {
                sources.insert(id, Source::new(tags, BlackBox::new(entry.path())));
            }
        }
        Ok(())
    }
}

/// Remembers how far everything was read.
#[derive(Debug, Clone)]
pub struct Cursor {
    folder: LogFolder,
    sources: BTreeMap<InstanceId, Source>,
}

impl Cursor {
    /// Before everything.
    pub fn new(folder: LogFolder) -> Self {
        Self { folder, sources: BTreeMap::new() }
    }

    /// The matching lines that came since the last call, each once, oldest first. With `filter.last` only the newest so
    /// many, and the others are passed over; without it at most [`LINES_AT_ONCE`], and the others come with the next
    /// calls. Between calls only `last` of a filter may change: what it hid before is not shown later.
    pub fn next_lines(&mut self, filter: &Filter) -> Result<Vec<Line>, LogError> {
        self.folder.find(&mut self.sources)?;
        let mut chosen: Vec<&mut Source> =
            self.sources.values_mut().filter(|s| filter.covers(&s.tags)).collect();
        if let Some(last) = filter.last {
            return Ok(merge::newest(&mut chosen, filter, last));
        }
        let mut lines = vec![];
        merge::forward(&mut chosen, filter, &mut |line| {
            lines.push(line);
            if lines.len() < LINES_AT_ONCE { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        Ok(lines)
    }
}

#[cfg(test)]
mod tests;
