//! The sources that the server keeps: one bare git repository per project, filled with uploaded packs, never checked out.
//! git is the git program by argv, with hooks, configuration, filters and prompts off. Everything in a repository is
//! hostile until it is checked.

mod batch;

use crate::objects::write_durable;
use crate::tree::Content;
use batch::batch;
use kiln_model::{CommitId, ProjectName, limits};
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// Bytes of a listing of a commit's files.
const LISTING_BYTES_MAX: u64 = 256 << 20;
/// Bytes that all files of one image may have together.
pub const COPIED_BYTES_MAX: u64 = 4 << 30;
/// Bytes of a commit object.
const COMMIT_BYTES_MAX: u64 = 1 << 20;
/// Bytes of address space of a git that reads a pack. Its clients send files above 512 MB whole, and a delta needs what it
/// is made from, its result and itself.
const GIT_ADDRESS_SPACE_MAX: u64 = 3 << 30;
/// Seconds of processor time of a git that reads a pack of [`limits::PACK_BYTES_MAX`].
const GIT_CPU_SECONDS_MAX: u64 = 600;
/// Bytes of git's own words that are kept.
const STDERR_BYTES_MAX: u64 = 2000;

/// A source could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// git could not be started.
    #[error("cannot start the git program")]
    Start(#[source] std::io::Error),
    /// The connection to it, or the upload, broke off.
    #[error("cannot {step}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// git refused.
    #[error("git {verb}: {text}")]
    Git {
        /// Which git command.
        verb: String,
        /// What it said.
        text: String,
    },
    /// The upload is larger than it may be.
    #[error("the source is larger than {} bytes", limits::PACK_BYTES_MAX)]
    TooLarge,
    /// The pack does not hold what it should.
    #[error("the uploaded pack does not hold commit {commit} with all its files: {text}")]
    Incomplete {
        /// Which commit.
        commit: CommitId,
        /// What is missing.
        text: String,
    },
    /// A file is too large, or all files that are copied are.
    #[error("`{path}` has more than {limit} bytes")]
    FileTooLarge {
        /// Which file.
        path: String,
        /// The bound.
        limit: u64,
    },
    /// git answered with something else than expected.
    #[error("git answered with something unexpected: {0}")]
    Answer(&'static str),
}

fn io(step: &'static str) -> impl FnOnce(std::io::Error) -> SourceError {
    move |source| SourceError::Io { step, source }
}

/// A file of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Its path in the commit.
    pub path: Vec<u8>,
    /// git's mode: 100644, 100755, 120000 (link) or 160000 (submodule).
    pub mode: u32,
    /// Its object name.
    pub id: String,
}

/// What is known of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitInfo {
    /// Committer's time in seconds since 1970.
    pub time: i64,
    /// First line of the message, at most 100 characters.
    pub subject: String,
}

/// The content of a file that may not be there.
type MaybeFile = Option<Vec<u8>>;

/// All repositories.
#[derive(Debug)]
pub struct Sources {
    dir: PathBuf,
    accepting: Mutex<()>,
}

impl Sources {
    /// The repositories in `dir`.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), accepting: Mutex::new(()) }
    }

    fn repository(&self, project: &ProjectName) -> PathBuf {
        self.dir.join(format!("{project}.git"))
    }

    /// Whether a commit is there with all its files, durable.
    pub fn has(&self, project: &ProjectName, commit: &CommitId) -> bool {
        self.repository(project).join("refs/kiln").join(commit.as_str()).is_file()
    }

    /// The commits that came last, the newest first.
    pub fn newest(&self, project: &ProjectName, max: usize) -> Vec<CommitId> {
        let entries = std::fs::read_dir(self.repository(project).join("refs/kiln")).into_iter().flatten();
        let row = |entry: std::fs::DirEntry| {
            let commit = entry.file_name().into_string().ok()?.parse().ok()?;
            Some((entry.metadata().and_then(|meta| meta.modified()).ok()?, commit))
        };
        let mut commits: Vec<(std::time::SystemTime, CommitId)> = entries.flatten().filter_map(row).collect();
        commits.sort_by(|a, b| b.cmp(a));
        commits.into_iter().take(max).map(|(_, commit)| commit).collect()
    }

    /// Keeps a pack that holds a commit, and its files as far as they are not there yet. Durable when this returns;
    /// repeating it is harmless.
    pub fn accept(
        &self,
        project: &ProjectName,
        commit: &CommitId,
        pack: &mut dyn Read,
    ) -> Result<(), SourceError> {
        let _one_at_a_time = self.accepting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let repository = self.repository(project);
        if !repository.join("HEAD").is_file() {
            std::fs::create_dir_all(&self.dir).map_err(io("make the folder of sources"))?;
            let format = if commit.as_str().len() == 64 { "sha256" } else { "sha1" };
            let init = ["init", "--quiet", "--bare", "--template=", "--object-format", format];
            run(git(&self.dir).args(init).arg(&repository), "init")?;
        }
        remove_halves(&repository);
        // The parents are not uploaded: git has to know that this is as far as the history goes.
        let shallow = repository.join("shallow");
        let known = std::fs::read_to_string(&shallow).unwrap_or_default();
        let mut lines: BTreeSet<&str> = known.lines().collect();
        lines.insert(commit.as_str());
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        write_durable(&shallow, text.as_bytes()).map_err(io("write to the repository"))?;
        index_pack(&repository, pack)?;
        let walk = ["rev-list", "--objects", "--no-walk", "--quiet", commit.as_str()];
        let complete = run(git(&repository).args(walk), "rev-list");
        complete.map_err(|error| SourceError::Incomplete {
            commit: commit.clone(),
            text: match error {
                SourceError::Git { text, .. } => text,
                other => other.to_string(),
            },
        })?;
        let reference = repository.join("refs/kiln").join(commit.as_str());
        write_durable(&reference, format!("{commit}\n").as_bytes()).map_err(io("write to the repository"))
    }

    /// Time and subject of a commit.
    pub fn info(&self, project: &ProjectName, commit: &CommitId) -> Result<CommitInfo, SourceError> {
        Ok(self.open(project, commit, &[])?.0)
    }

    /// Time and subject of a commit, and some of its files with the bytes that each may have; none for a file that it
    /// does not have. One git process answers all.
    pub fn open(
        &self,
        project: &ProjectName,
        commit: &CommitId,
        files: &[(&str, u64)],
    ) -> Result<(CommitInfo, Vec<MaybeFile>), SourceError> {
        let mut names = vec![commit.to_string()];
        names.extend(files.iter().map(|(path, _)| format!("{commit}:{path}")));
        let mut answers: Vec<MaybeFile> = vec![];
        batch(&self.repository(project), &names, &mut |n, object| {
            let Some(object) = object else {
                answers.push(None);
                return Ok(());
            };
            let (kind, limit) = match n.checked_sub(1) {
                None => ("commit", COMMIT_BYTES_MAX),
                Some(n) => ("blob", files[n].1),
            };
            let bytes = (object.kind == kind).then(|| object.bytes(limit)).transpose()?;
            answers.push(bytes);
            Ok(())
        })?;
        let mut answers = answers.into_iter();
        let info = answers.next().flatten().and_then(|bytes| commit_info(&bytes));
        let info = info.ok_or(SourceError::Answer("a commit without time"))?;
        Ok((info, answers.collect()))
    }

    /// The content of a file of a commit; none if it has no such file.
    pub fn read(
        &self,
        project: &ProjectName,
        commit: &CommitId,
        path: &str,
        bytes_max: u64,
    ) -> Result<Option<Vec<u8>>, SourceError> {
        let mut found = None;
        batch(&self.repository(project), &[format!("{commit}:{path}")], &mut |_, object| {
            if let Some(object) = object.filter(|object| object.kind == "blob") {
                found = Some(object.bytes(bytes_max)?);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// The files of a commit, in git's order.
    pub fn list(&self, project: &ProjectName, commit: &CommitId) -> Result<Vec<SourceFile>, SourceError> {
        let list = ["ls-tree", "-r", "-z", "--full-tree", commit.as_str()];
        let bytes = run(git(&self.repository(project)).args(list), "ls-tree")?;
        let row = |row: &[u8]| -> Option<SourceFile> {
            let tab = row.iter().position(|b| *b == b'\t')?;
            let head = std::str::from_utf8(&row[..tab]).ok()?;
            let mut words = head.split(' ');
            let mode = u32::from_str_radix(words.next()?, 8).ok()?;
            let id = words.nth(1)?.to_owned();
            Some(SourceFile { path: row[tab + 1..].to_vec(), mode, id })
        };
        let rows = bytes.split(|b| *b == 0).filter(|row| !row.is_empty());
        rows.map(|r| row(r).ok_or(SourceError::Answer("a malformed listing"))).collect()
    }

    /// The object name of a commit's tree: the same for all commits with the same files.
    pub fn tree_id(&self, project: &ProjectName, commit: &CommitId) -> Result<String, SourceError> {
        let tree = format!("{commit}^{{tree}}");
        let parse = ["rev-parse", "--verify", "--end-of-options", &tree];
        let id = run(git(&self.repository(project)).args(parse), "rev-parse")?;
        Ok(String::from_utf8_lossy(&id).trim().to_owned())
    }

    /// Hands `each` the contents of files by object name, in order, one after the other.
    pub fn each(
        &self,
        project: &ProjectName,
        ids: &[String],
        bytes_max: u64,
        each: &mut dyn FnMut(usize, Vec<u8>),
    ) -> Result<(), SourceError> {
        batch(&self.repository(project), ids, &mut |n, object| match object {
            Some(object) if object.kind == "blob" => {
                each(n, object.bytes(bytes_max)?);
                Ok(())
            }
            _ => Err(SourceError::Answer("a file that is not there")),
        })
    }

    /// The contents of files by object name, in order. They are spooled to a file without a name, so that however
    /// large they are, none is in memory; each is a part of that file.
    pub fn contents(&self, project: &ProjectName, ids: &[String]) -> Result<Vec<Content>, SourceError> {
        let mut spool = batch::Spool::new(&self.dir).map_err(io("make a temporary file"))?;
        batch(&self.repository(project), ids, &mut |_, object| match object {
            Some(object) if object.kind == "blob" => spool.take(object, COPIED_BYTES_MAX),
            _ => Err(SourceError::Answer("a file that is not there")),
        })?;
        spool.finish().map_err(io("write a temporary file"))
    }
}

/// Reads a raw commit object (gitformat-commit): header lines, an empty line, the message.
fn commit_info(raw: &[u8]) -> Option<CommitInfo> {
    let text = String::from_utf8_lossy(raw);
    let (head, message) = text.split_once("\n\n").unwrap_or((&text, ""));
    let committer = head.lines().find_map(|line| line.strip_prefix("committer "))?;
    // `NAME <MAIL> SECONDS ZONE`, and a name may hold anything.
    let time = committer.rsplit(' ').nth(1)?.parse().ok()?;
    let subject = message.trim_start().lines().next().unwrap_or("").trim_end();
    let subject = subject.chars().filter(|c| !c.is_control()).take(100).collect();
    Some(CommitInfo { time, subject })
}

/// Removes what uploads that broke off left: git keeps the half of a pack.
fn remove_halves(repository: &Path) {
    for entry in std::fs::read_dir(repository.join("objects/pack")).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("tmp_") {
            // It is only space; the next upload tries again.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// git with everything off that a repository or a user could configure.
fn git(repository: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", "/nonexistent")
        .env("LC_ALL", "C")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_NO_LAZY_FETCH", "1")
        // Unlike `protocol.allow`, nothing that a repository configures goes over it.
        .env("GIT_ALLOW_PROTOCOL", "none")
        .env("GIT_NO_REPLACE_OBJECTS", "1")
        .args(["-c", "core.hooksPath=/dev/null", "-c", "safe.directory=*", "-c", "protocol.allow=never"])
        .args(["-c", "core.fsync=committed,loose-object,pack,pack-metadata", "-c", "core.fsmonitor=false"])
        .args(["-c", "core.attributesFile=/dev/null", "-c", "core.mailmap=", "-c", "log.showSignature=false"])
        .args(["-c", "gc.auto=0", "-c", "transfer.fsckObjects=true", "-c", "core.bigFileThreshold=16m"])
        // Packs are mapped in parts: what is mapped counts as memory.
        .args(["-c", "core.packedGitWindowSize=16m", "-c", "core.packedGitLimit=64m"])
        .arg("-C")
        .arg(repository)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs to the end; answers with its output.
fn run(command: &mut Command, verb: &str) -> Result<Vec<u8>, SourceError> {
    let mut child = command.spawn().map_err(SourceError::Start)?;
    let stderr = child.stderr.take();
    let words = std::thread::spawn(move || words(stderr));
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(LISTING_BYTES_MAX).read_to_end(&mut output).map_err(io("read from git"))?;
    }
    finish(child, words, verb)?;
    Ok(output)
}

fn words(stderr: Option<impl Read>) -> String {
    let mut text = Vec::new();
    if let Some(mut stderr) = stderr {
        // What cannot be read is only missing in a message.
        let _ = stderr.by_ref().take(STDERR_BYTES_MAX).read_to_end(&mut text);
        let _ = std::io::copy(&mut stderr, &mut std::io::sink());
    }
    String::from_utf8_lossy(&text).trim().replace('\n', "; ")
}

fn finish(
    mut child: std::process::Child,
    words: std::thread::JoinHandle<String>,
    verb: &str,
) -> Result<(), SourceError> {
    let status = child.wait().map_err(io("wait for git"))?;
    let text = words.join().unwrap_or_default();
    if status.success() {
        return Ok(());
    }
    Err(refusal(verb, if text.is_empty() { status.to_string() } else { text }))
}

/// What git's words mean. A full disk is not the fault of the source; git runs with `LC_ALL=C`.
fn refusal(verb: &str, text: String) -> SourceError {
    if text.contains("No space left on device") {
        return io("write to the repository")(rustix::io::Errno::NOSPC.into());
    }
    SourceError::Git { verb: verb.to_owned(), text }
}

/// Bounds what a pack can make git do. A few bytes of deltas can ask for any amount of memory, and a few megabytes of zeros
/// for hours of inflating.
fn bound(child: &std::process::Child) -> Result<(), SourceError> {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let pid = Pid::from_raw(child.id().try_into().unwrap_or(0));
    for (resource, limit) in [(Resource::As, GIT_ADDRESS_SPACE_MAX), (Resource::Cpu, GIT_CPU_SECONDS_MAX)] {
        let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
        // One that has ended already needs none.
        match prlimit(pid, resource, limit) {
            Ok(_) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(io("limit the git program")(error.into())),
        }
    }
    Ok(())
}

fn index_pack(repository: &Path, pack: &mut dyn Read) -> Result<(), SourceError> {
    let mut child = git(repository)
        .args(["index-pack", "--strict", "--stdin"])
        .arg(format!("--max-input-size={}", limits::PACK_BYTES_MAX))
        .stdin(Stdio::piped())
        .spawn()
        .map_err(SourceError::Start)?;
    // It waits for the pack, so nothing has happened yet.
    bound(&child)?;
    let stderr = child.stderr.take();
    let words = std::thread::spawn(move || words(stderr));
    let mut copied = Ok(0);
    if let Some(mut stdin) = child.stdin.take() {
        copied = std::io::copy(&mut pack.take(limits::PACK_BYTES_MAX + 1), &mut stdin);
    }
    let copied = match copied {
        // git has refused and says why.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(0),
        other => other,
    };
    let finished = finish(child, words, "index-pack");
    if copied.map_err(io("receive the source"))? > limits::PACK_BYTES_MAX {
        return Err(SourceError::TooLarge);
    }
    finished
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_raw_commit_gives_its_time_and_subject() {
        let info = |text: &str| commit_info(text.as_bytes());
        let head = "tree 1\nauthor A <a> 1 +0000\ncommitter B > 9 <b> 1700000000 -0330\ngpgsig x\n y\n";
        let found = info(&format!("{head}\n\n  a subject\t\nsecond\n")).unwrap();
        assert_eq!((found.time, found.subject.as_str()), (1_700_000_000, "a subject"));
        assert_eq!(info(head).unwrap().subject, "");
        assert_eq!(info("tree 1\n\ncommitter B <b> 5 +0000\n"), None);
        assert_eq!(info(&format!("{head}\n{}", "x".repeat(300))).unwrap().subject.len(), 100);
    }

    fn user(dir: &Path, args: &[&str]) -> String {
        let output = git(dir)
            .args(["-c", "user.name=t", "-c", "user.email=t@example.invalid"])
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn pack(dir: &Path, commit: &str) -> Vec<u8> {
        let objects = user(dir, &["rev-list", "--objects", "--no-walk", commit]);
        let mut child =
            git(dir).args(["pack-objects", "--stdout", "-q"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(objects.as_bytes()).unwrap();
        child.wait_with_output().unwrap().stdout
    }

    #[test]
    fn a_full_disk_is_not_the_fault_of_the_source() {
        let full = refusal("index-pack", "fatal: write error: No space left on device".into());
        let SourceError::Io { source, .. } = &full else { panic!("{full:?}") };
        assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
        assert!(matches!(refusal("index-pack", "fatal: bad object".into()), SourceError::Git { .. }));
    }

    #[test]
    fn a_commit_is_kept_without_its_history_and_refused_when_incomplete() {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("work");
        std::fs::create_dir_all(work.join("site")).unwrap();
        user(&work, &["init", "-q"]);
        std::fs::write(work.join("kiln.toml"), "name = \"x\"").unwrap();
        user(&work, &["add", "."]);
        user(&work, &["commit", "-q", "-m", "first"]);
        std::fs::write(work.join("site/a"), "hello").unwrap();
        std::os::unix::fs::symlink("a", work.join("site/b")).unwrap();
        user(&work, &["add", "."]);
        user(&work, &["commit", "-q", "-m", "second line\n\nbody"]);
        let commit: CommitId = user(&work, &["rev-parse", "HEAD"]).parse().unwrap();

        let sources = Sources::new(&dir.path().join("repos"));
        let project = ProjectName::new("x").unwrap();
        let good = pack(&work, commit.as_str());
        assert!(sources.accept(&project, &commit, &mut &good[..good.len() - 30]).is_err());
        assert!(!sources.has(&project, &commit));
        let pack_folder = dir.path().join("repos/x.git/objects/pack");
        std::fs::write(pack_folder.join("tmp_pack_left"), "half").unwrap();
        sources.accept(&project, &commit, &mut &good[..]).unwrap();
        let names = std::fs::read_dir(&pack_folder).unwrap().flatten().map(|e| e.file_name());
        let halves: Vec<_> = names.filter(|n| n.to_string_lossy().starts_with("tmp_")).collect();
        assert!(halves.is_empty(), "{halves:?}");
        sources.accept(&project, &commit, &mut &good[..]).unwrap();
        assert!(sources.has(&project, &commit));
        assert_eq!(sources.info(&project, &commit).unwrap().subject, "second line");
        assert_eq!(sources.read(&project, &commit, "site/a", 100).unwrap().unwrap(), b"hello");
        assert_eq!(sources.read(&project, &commit, "none", 100).unwrap(), None);
        assert!(sources.read(&project, &commit, "site/a", 3).is_err());
        let files = sources.list(&project, &commit).unwrap();
        let modes: Vec<u32> = files.iter().map(|f| f.mode).collect();
        assert_eq!(modes, [0o100_644, 0o100_644, 0o120_000]);
        let ids: Vec<String> = [1, 2, 1].map(|n: usize| files[n].id.clone()).into();
        let contents = sources.contents(&project, &ids).unwrap();
        let read: Vec<_> = contents.iter().map(|content| content.read().unwrap().into_owned()).collect();
        assert_eq!(read, [b"hello".to_vec(), b"a".to_vec(), b"hello".to_vec()]);
        let absent = sources.contents(&project, &["0".repeat(40)]);
        assert!(matches!(absent, Err(SourceError::Answer(_))), "{absent:?}");
        let asked = [("kiln.toml", 100), ("none", 100), ("site", 100)];
        let (info, found) = sources.open(&project, &commit, &asked).unwrap();
        assert_eq!(info, sources.info(&project, &commit).unwrap());
        assert_eq!(found, [Some(b"name = \"x\"".to_vec()), None, None]);
        assert!(sources.open(&project, &commit, &[("kiln.toml", 3)]).is_err());

        let mut lacking =
            git(&work).args(["pack-objects", "--stdout", "-q"]).stdin(Stdio::piped()).spawn().unwrap();
        lacking.stdin.take().unwrap().write_all(format!("{commit}\n").as_bytes()).unwrap();
        let lacking = lacking.wait_with_output().unwrap().stdout;
        let other = ProjectName::new("y").unwrap();
        assert!(sources.accept(&other, &commit, &mut &lacking[..]).is_err());
        assert!(!sources.has(&other, &commit));
    }
}
