//! Reads what instances printed, while they live and after they are gone.
//!
//! Every instance has a folder with its specification, which says whose it is, and a black box of frames in two files that
//! take turns ([`kiln_model::frame`]). The supervisor writes them; nothing here ever does. What is torn or damaged is left
//! out; what was dropped is told as a line of its own.
#![forbid(unsafe_code)]

use kiln_model::frame::Frame;
use kiln_model::{
    CommitId, Digest, EnvName, EnvRef, ExitReason, InstanceId, ProjectName, ReleaseNumber, ServiceName, Wall,
};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Bytes of a specification or an exit record.
const RECORD_BYTES_MAX: u64 = 1 << 20;
/// Lines that may pile up before those that are too old are let go.
const LINES_AT_ONCE: usize = 10_000;
/// The stream of what the supervisor and this reader say.
const KILN: &str = "kiln";

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

#[derive(Debug, Deserialize)]
struct Exit {
    at: Wall,
    #[serde(flatten)]
    reason: ExitReason,
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

    /// Hands every matching line to `each`, oldest first, until it breaks.
    pub fn read(
        &self,
        filter: &Filter,
        each: &mut dyn FnMut(&Line) -> ControlFlow<()>,
    ) -> Result<(), LogError> {
        for line in self.newest(filter, &mut BTreeMap::new())? {
            if each(&line).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// The last `count` lines that an instance printed, whoever it belongs to. Empty if there is none.
    pub fn tail_of(&self, id: &InstanceId, count: usize) -> Vec<String> {
        let frames = self.frames(id);
        let skip = frames.len().saturating_sub(count);
        frames.iter().skip(skip).map(|frame| text(&frame.line)).collect()
    }

    /// Matching lines that `seen` does not cover, oldest first; `seen` has the next sequence of each instance.
    fn newest(
        &self,
        filter: &Filter,
        seen: &mut BTreeMap<InstanceId, Position>,
    ) -> Result<Vec<Line>, LogError> {
        let mut lines: Vec<Line> = vec![];
        for tags in self.matching(filter)? {
            let position = seen.entry(tags.id.clone()).or_default();
            let stamp = self.stamp(&tags.id);
            if position.stamp == stamp {
                continue;
            }
            let mut fresh = vec![];
            for frame in self.frames(&tags.id) {
                if frame.sequence >= position.next {
                    let dropped = frame.dropped.saturating_sub(position.dropped);
                    if dropped > 0 {
                        let text = format!("{dropped} lines were dropped: the black box was full");
                        fresh.push(line(&tags, frame.at, KILN, frame.sequence, text));
                    }
                    position.dropped = frame.dropped;
                    position.next = frame.sequence + 1;
                    fresh.push(line(&tags, frame.at, frame.stream.word(), frame.sequence, text(&frame.line)));
                }
            }
            if let Some(exit) = self.exit(&tags.id).filter(|_| !position.ended) {
                position.ended = true;
                fresh.push(line(&tags, exit.at, KILN, position.next, exit.reason.to_string()));
            }
            // What grows while it is read is read again the next time.
            position.stamp = stamp;
            lines.extend(fresh.into_iter().filter(|line| {
                filter.since.is_none_or(|since| line.at >= since)
                    && filter.grep.as_ref().is_none_or(|grep| line.line.contains(grep.as_str()))
            }));
            // Only what can still be among the newest is kept in memory.
            if filter.last.is_some_and(|last| lines.len() > 2 * last + LINES_AT_ONCE) {
                order(&mut lines, filter.last);
            }
        }
        order(&mut lines, filter.last);
        Ok(lines)
    }

    fn matching(&self, filter: &Filter) -> Result<Vec<Tags>, LogError> {
        let failed = |source| LogError { path: self.instances.clone(), source };
        let entries = match std::fs::read_dir(&self.instances) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
            other => other.map_err(failed)?,
        };
        let mut all = vec![];
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            all.extend(record::<Tags>(&path.join("spec.json")).filter(|tags| covers(filter, tags)));
        }
        all.sort_by_key(|tags| tags.id.sequence());
        Ok(all)
    }

    fn file(&self, id: &InstanceId, name: &str) -> PathBuf {
        self.instances.join(id.as_str()).join(name)
    }

    /// Sizes and times of the files: another value whenever something was added.
    fn stamp(&self, id: &InstanceId) -> Stamp {
        let of = |name| {
            let meta = std::fs::metadata(self.file(id, name));
            meta.map_or((0, 0, 0), |m| (m.len() + 1, m.mtime(), m.mtime_nsec()))
        };
        ["out.0", "out.1", "exit.json"].map(of)
    }

    fn exit(&self, id: &InstanceId) -> Option<Exit> {
        record(&self.file(id, "exit.json"))
    }

    /// The undamaged frames of both files, in order.
    fn frames(&self, id: &InstanceId) -> Vec<Frame> {
        let mut frames = vec![];
        for name in ["out.0", "out.1"] {
            let bytes = std::fs::read(self.file(id, name)).unwrap_or_default();
            let mut rest = bytes.as_slice();
            while let Some((frame, length)) = Frame::decode(rest) {
                frames.push(frame);
                rest = &rest[length..];
            }
        }
        frames.sort_by_key(|frame| frame.sequence);
        frames
    }
}

/// By time, and only the newest `last`.
fn order(lines: &mut Vec<Line>, last: Option<usize>) {
    lines.sort_by(|a, b| (a.at, &a.instance, a.sequence).cmp(&(b.at, &b.instance, b.sequence)));
    if let Some(last) = last {
        lines.drain(..lines.len().saturating_sub(last));
    }
}

fn covers(filter: &Filter, tags: &Tags) -> bool {
    filter.project.as_ref().is_none_or(|p| *p == tags.env.project)
        && filter.env.as_ref().is_none_or(|e| *e == tags.env.env)
        && filter.service.as_ref().is_none_or(|s| *s == tags.service)
        && filter.release.is_none_or(|r| r == tags.release)
        && filter.instance.as_ref().is_none_or(|i| *i == tags.id)
        && filter.commit.as_ref().is_none_or(|c| tags.commit.as_str().starts_with(c.as_str()))
}

fn record<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    let size = std::fs::metadata(path).ok()?.len();
    if size > RECORD_BYTES_MAX {
        return None;
    }
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn line(tags: &Tags, at: Wall, stream: &str, sequence: u64, line: String) -> Line {
    Line {
        at,
        env: tags.env.clone(),
        service: tags.service.clone(),
        release: tags.release,
        instance: tags.id.clone(),
        image: tags.image,
        commit: tags.commit.clone(),
        stream: stream.to_owned(),
        sequence,
        line,
    }
}

/// (size and one, seconds, nanoseconds) of each file of a black box.
type Stamp = [(u64, i64, i64); 3];

/// How far one instance was read.
#[derive(Debug, Clone, Default)]
struct Position {
    stamp: Stamp,
    next: u64,
    dropped: u64,
    ended: bool,
}

/// Remembers how far everything was read.
#[derive(Debug, Clone)]
pub struct Cursor {
    folder: LogFolder,
    seen: BTreeMap<InstanceId, Position>,
}

impl Cursor {
    /// Before everything.
    pub fn new(folder: LogFolder) -> Self {
        Self { folder, seen: BTreeMap::new() }
    }

    /// The matching lines that came since the last call, each once.
    pub fn next_lines(&mut self, filter: &Filter) -> Result<Vec<Line>, LogError> {
        self.folder.newest(filter, &mut self.seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_model::frame::Stream;
    use proptest::prelude::*;
    use std::fs;

    /// Writes the folder of an instance as its server would.
    fn instance(state: &Path, sequence: u64, service: &str, release: u64) -> PathBuf {
        let folder = state.join("instances").join(format!("{service}-{sequence}"));
        fs::create_dir_all(&folder).unwrap();
        let spec = serde_json::json!({
            "id": format!("{service}-{sequence}"), "env": "shop/production",
            "release": release, "service": service, "commit": "ab".repeat(20),
            "image": Digest::of(b"image"), "ignored": 1,
        });
        fs::write(folder.join("spec.json"), spec.to_string()).unwrap();
        folder
    }

    fn frame(sequence: u64, dropped: u64, text: &str) -> Vec<u8> {
        let line = text.as_bytes().to_vec();
        let mut out = vec![];
        Frame { at: Wall(1000 + sequence), sequence, dropped, stream: Stream::Out, line }.encode(&mut out);
        out
    }

    fn texts(folder: &LogFolder, filter: &Filter) -> Vec<String> {
        let mut out = vec![];
        folder
            .read(filter, &mut |line| {
                out.push(format!("{}: {}", line.instance, line.line));
                ControlFlow::Continue(())
            })
            .unwrap();
        out
    }

    #[test]
    fn filters_choose_and_instances_are_merged_by_time() {
        let state = tempfile::tempdir().unwrap();
        let logs = LogFolder::new(state.path());
        assert_eq!(texts(&logs, &Filter::default()), [""; 0], "a state folder without instances");
        let web = instance(state.path(), 1, "web", 1);
        let api = instance(state.path(), 2, "api", 2);
        fs::write(web.join("out.0"), [frame(0, 0, "zero"), frame(2, 0, "two")].concat()).unwrap();
        fs::write(api.join("out.0"), [frame(1, 0, "one")].concat()).unwrap();
        fs::write(web.join("exit.json"), r#"{"at":1009,"exit":"status","code":3}"#).unwrap();
        let all = ["web-1: zero", "api-2: one", "web-1: two", "web-1: exited with status 3"];
        assert_eq!(texts(&logs, &Filter::default()), all);
        let table: [(Filter, &[&str]); 9] = [
            (Filter { service: ServiceName::new("api").ok(), ..Filter::default() }, &all[1..2]),
            (Filter { release: Some(ReleaseNumber(2)), ..Filter::default() }, &all[1..2]),
            (Filter { instance: "api-2".parse().ok(), ..Filter::default() }, &all[1..2]),
            (Filter { grep: Some("two".into()), ..Filter::default() }, &all[2..3]),
            (Filter { since: Some(Wall(1002)), ..Filter::default() }, &all[2..]),
            (Filter { last: Some(2), ..Filter::default() }, &all[2..]),
            (Filter { commit: Some("abab".into()), ..Filter::default() }, &all),
            (Filter { commit: Some("ff".into()), ..Filter::default() }, &[]),
            (Filter { project: ProjectName::new("other").ok(), ..Filter::default() }, &[]),
        ];
        for (filter, expected) in table {
            assert_eq!(texts(&logs, &filter), expected, "{filter:?}");
        }
        assert_eq!(logs.tail_of(&"web-1".parse().unwrap(), 1), ["two"]);
        assert_eq!(logs.tail_of(&"web-9".parse().unwrap(), 5), [""; 0]);
    }

    #[test]
    fn following_shows_each_line_once_also_when_the_files_take_turns() {
        let state = tempfile::tempdir().unwrap();
        let web = instance(state.path(), 1, "web", 1);
        let mut cursor = Cursor::new(LogFolder::new(state.path()));
        let mut next = || -> Vec<String> {
            cursor.next_lines(&Filter::default()).unwrap().into_iter().map(|line| line.line).collect()
        };
        assert_eq!(next(), [""; 0]);
        fs::write(web.join("out.0"), [frame(0, 0, "a"), frame(1, 0, "b")].concat()).unwrap();
        assert_eq!(next(), ["a", "b"]);
        assert_eq!(next(), [""; 0]);
        fs::write(web.join("out.1"), frame(2, 0, "c")).unwrap();
        assert_eq!(next(), ["c"]);
        // The older file is emptied and written anew: its two lines count as dropped from then on.
        fs::write(web.join("out.0"), [frame(3, 2, "d"), frame(4, 2, "e")].concat()).unwrap();
        assert_eq!(next(), ["2 lines were dropped: the black box was full", "d", "e"]);
        fs::write(web.join("exit.json"), r#"{"at":2000,"exit":"status","code":0}"#).unwrap();
        assert_eq!(next(), ["exited with status 0"]);
        assert_eq!(next(), [""; 0]);
    }

    proptest! {
        #[test]
        fn damage_hides_lines_and_never_invents_any(
            count in 1_usize..6,
            cut in any::<prop::sample::Index>(),
            flip in any::<prop::sample::Index>(),
        ) {
            let state = tempfile::tempdir().unwrap();
            let web = instance(state.path(), 1, "web", 1);
            let whole: Vec<u8> = (0..count as u64).flat_map(|n| frame(n, 0, &format!("line {n}"))).collect();
            let logs = LogFolder::new(state.path());
            let expected: Vec<String> = (0..count).map(|n| format!("web-1: line {n}")).collect();
            fs::write(web.join("out.0"), &whole).unwrap();
            prop_assert_eq!(&texts(&logs, &Filter::default()), &expected);
            let mut damaged = whole[..cut.index(whole.len())].to_vec();
            fs::write(web.join("out.0"), &damaged).unwrap();
            let seen = texts(&logs, &Filter::default());
            prop_assert_eq!(&seen[..], &expected[..seen.len()]);
            if !damaged.is_empty() {
                let at = flip.index(damaged.len());
                damaged[at] ^= 0x10;
                fs::write(web.join("out.0"), &damaged).unwrap();
                let seen = texts(&logs, &Filter::default());
                prop_assert_eq!(&seen[..], &expected[..seen.len()]);
            }
        }
    }
}
