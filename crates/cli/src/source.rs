//! The source of a commit: which one is meant, whether the work tree differs from it, and the pack that the server gets.
//!
//! git is the git program by argv. Nothing that a repository or a user could configure to run is run: no hooks, no
//! monitors, no filters. The pack holds the commit, its tree and its files; a commit object alone names its tree, so its
//! parents stay here, and so does what the server has already.

use crate::progress::Progress;
use crate::project::{self, LOCK, SPEC};
use crate::{Context, Failure, watch};
use kiln_api::{Client, Code};
use kiln_model::{CommitId, ProjectName};
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};

/// Files of a dirty tree that are named.
const DIRTY_SHOWN_MAX: usize = 20;
/// Bytes of git's own words that are kept.
const WORDS_BYTES_MAX: u64 = 2000;

/// A commit of a project on this machine.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// The project.
    pub project: ProjectName,
    /// Its folder, the top of the repository.
    pub dir: PathBuf,
    /// The commit.
    pub commit: CommitId,
    /// Whether it is the one that the work tree stands on.
    pub is_head: bool,
}

/// Which commit is meant: `reference`, else the one that the work tree stands on, from which it must not differ.
pub(crate) fn resolve(context: &Context<'_>, reference: Option<&str>) -> Result<Source, Failure> {
    let dir = context.project_dir()?;
    let project = context.project()?;
    let here = project::find(&dir)?.map(|found| found.name);
    if here.as_ref() != Some(&project) {
        let message = format!("`--project {project}` is not the project of `{}`", dir.display());
        return Err(Failure::new(Code::Usage, message).hint("name its folder with `-C DIR`"));
    }
    let prefix = answer(git(&dir).args(["rev-parse", "--show-prefix"])).map_err(|error| {
        if !error.text().contains("not a git repository") {
            return error;
        }
        let message = format!("`{}` is not in a git repository", dir.display());
        Failure::new(Code::Git, message).hint("`git init`, then commit what is to be deployed")
    })?;
    if !prefix.is_empty() {
        let message = format!("`{SPEC}` is in `{prefix}` of its repository");
        let hint = format!("`{SPEC}` belongs into the top folder of a repository of its own");
        return Err(Failure::new(Code::Git, message).hint(hint));
    }
    let head = commit_of(&dir, "HEAD");
    let (commit, is_head) = match reference {
        Some(reference) => {
            let commit = commit_of(&dir, reference)?;
            let is_head = head.is_ok_and(|head| head == commit);
            (commit, is_head)
        }
        None => {
            let head = head?;
            refuse_dirty(&dir)?;
            (head, true)
        }
    };
    Ok(Source { project, dir, commit, is_head })
}

/// Makes the server have the source, durable.
pub(crate) async fn upload(client: &Client, source: &Source, progress: &mut Progress) -> Result<(), Failure> {
    // The first contact: a server that does not run is not waited for.
    let there = client.source(&source.project, &source.commit).await?;
    if there.present {
        return Ok(());
    }
    progress.now(&format!("uploading commit {}", source.commit.short()));
    let sent = send(client, source, &there.known).await;
    match sent {
        // What it had may be gone by now, or be damaged here: then it gets all.
        Err(error) if !there.known.is_empty() && matches!(error.code(), Code::Git | Code::SourceRefused) => {
            send(client, source, &[]).await
        }
        sent => sent,
    }
}

/// Sends one pack, without what the commits `known` have.
async fn send(client: &Client, source: &Source, known: &[CommitId]) -> Result<(), Failure> {
    let trouble = Trouble::default();
    let sent = watch::persist("nothing was changed", async || {
        // An error of git is no error of the connection, although it looks like one from there.
        let pack = Pack::start(source, known, trouble.clone());
        match pack {
            Ok(pack) => client
                .put_source(&source.project, &source.commit, pack)
                .await
                .or_else(|error| if trouble.seen().is_some() { Ok(()) } else { Err(error) }),
            Err(words) => {
                trouble.note(words);
                Ok(())
            }
        }
    })
    .await;
    match trouble.seen() {
        Some(words) => Err(failure(words)),
        None => sent,
    }
}

/// Keeps the kiln.lock that the server resolved because the commit has none.
pub(crate) fn keep_lock(context: &Context<'_>, source: &Source, lock: Option<String>) -> Result<(), Failure> {
    let Some(lock) = lock else { return Ok(()) };
    let path = source.dir.join(LOCK);
    let commit = source.commit.short();
    if !source.is_head {
        context
            .out()
            .note(&format!("commit {commit} has no {LOCK}: its packages were resolved by the server"));
    } else if !path.exists() {
        project::write(&path, &lock)?;
        context.out().note(&format!("commit {commit} has no {LOCK}: wrote the one that was resolved"));
        context.out().hint(&format!("`git add {LOCK} && git commit` pins what the project is made of"));
    } else {
        let used = std::fs::read_to_string(&path).is_ok_and(|text| text == lock);
        if !used {
            context
                .out()
                .note(&format!("commit {commit} has no {LOCK}: the one in the work tree was not used"));
        }
        context.out().hint(&format!("`git add {LOCK} && git commit` pins what the project is made of"));
    }
    Ok(())
}

fn commit_of(dir: &Path, reference: &str) -> Result<CommitId, Failure> {
    let wanted = format!("{reference}^{{commit}}");
    let verify = ["rev-parse", "--verify", "--end-of-options", &wanted];
    let text = answer(git(dir).args(verify)).map_err(|error| {
        let what = match reference {
            "HEAD" => format!("the repository of `{}` has no commit yet", dir.display()),
            other => format!("there is no commit `{other}`"),
        };
        let help = match reference {
            "HEAD" => "`git add -A && git commit`: only what is committed is deployed",
            _ => "give a commit, branch or tag of this repository; `git log --all --oneline` shows them",
        };
        if is_repository(dir) { Failure::new(Code::Git, what).hint(help) } else { error }
    })?;
    text.parse().map_err(|_| failure(format!("git named the commit `{text}`")))
}

fn is_repository(dir: &Path) -> bool {
    answer(git(dir).args(["rev-parse", "--git-dir"])).is_ok()
}

/// Refuses a work tree that differs from its commit, naming the files. Files that git ignores do not count, and neither
/// does kiln.lock: the bake takes the one of the commit, if there is one.
fn refuse_dirty(dir: &Path) -> Result<(), Failure> {
    let arguments = ["status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=all"];
    let mut command = git(dir);
    without_filters(dir, &mut command)?;
    let listing = output(command.args(arguments).arg("--ignore-submodules=all"))?;
    let files = dirty_files(&listing);
    if files.is_empty() {
        return Ok(());
    }
    let mut details: Vec<String> = files.iter().take(DIRTY_SHOWN_MAX).cloned().collect();
    if files.len() > DIRTY_SHOWN_MAX {
        details.push(format!("and {} more", files.len() - DIRTY_SHOWN_MAX));
    }
    let count = match files.len() {
        1 => "1 file differs".to_owned(),
        n => format!("{n} files differ"),
    };
    Err(Failure::new(Code::DirtyTree, format!("the work tree is not committed: {count}"))
        .details(details)
        .hint(Code::DirtyTree.entry().help))
}

/// What `git status --porcelain=v1 -z` names, less kiln.lock.
fn dirty_files(listing: &[u8]) -> Vec<String> {
    let rows = listing.split(|b| *b == 0).filter(|row| row.len() > 3);
    let files = rows.map(|row| (&row[..2], String::from_utf8_lossy(&row[3..]).into_owned()));
    let named = files.filter(|(_, path)| path != LOCK).map(|(state, path)| match state {
        b"??" => format!("new       {path}"),
        state if state.contains(&b'D') => format!("deleted   {path}"),
        _ => format!("changed   {path}"),
    });
    named.collect()
}

/// Switches off every filter that the repository configures: they are programs.
fn without_filters(dir: &Path, command: &mut Command) -> Result<(), Failure> {
    let list = ["config", "-z", "--name-only", "--get-regexp", r"^filter\..*\.(clean|process|required)$"];
    // It answers with status 1 if there is none.
    let listed = git(dir).args(list).output().map_err(no_git)?;
    let names = listed.stdout.split(|b| *b == 0).filter(|name| !name.is_empty());
    let mut count = 0;
    for name in names {
        let value = if name.ends_with(b".required") { "false" } else { "" };
        // The name of a filter need not be text.
        let name = OsStr::from_bytes(name);
        command.env(format!("GIT_CONFIG_KEY_{count}"), name).env(format!("GIT_CONFIG_VALUE_{count}"), value);
        count += 1;
    }
    command.env("GIT_CONFIG_COUNT", count.to_string());
    Ok(())
}

/// git with everything off that could run something or change something.
fn git(dir: &Path) -> Command {
    let mut command = Command::new("git");
    command.env_clear();
    // The home is where the user's own list of ignored files is.
    for name in ["PATH", "HOME", "XDG_CONFIG_HOME"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
        .env("LC_ALL", "C")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_NO_LAZY_FETCH", "1")
        // Unlike `protocol.allow`, nothing that a repository configures goes over it.
        .env("GIT_ALLOW_PROTOCOL", "none")
        .env("GIT_NO_REPLACE_OBJECTS", "1")
        .args(["--no-optional-locks", "--literal-pathspecs"])
        .args(["-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "safe.directory=*"])
        .args(["-c", "core.attributesFile=/dev/null", "-c", "protocol.allow=never"])
        .arg("-C")
        .arg(dir)
        .stdin(Stdio::null());
    command
}

fn output(command: &mut Command) -> Result<Vec<u8>, Failure> {
    let output = command.output().map_err(no_git)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(failure(words.lines().next().unwrap_or("git failed").trim_start_matches("fatal: ").to_owned()))
}

fn answer(command: &mut Command) -> Result<String, Failure> {
    let bytes = output(command)?;
    Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned())
}

fn failure(words: String) -> Failure {
    Failure::new(Code::Git, words).hint(Code::Git.entry().help)
}

fn no_git(error: std::io::Error) -> Failure {
    Failure::new(Code::Git, format!("cannot start the git program: {error}")).hint("`apt-get install git`")
}

/// What went wrong with git while the pack was on its way.
#[derive(Debug, Clone, Default)]
struct Trouble(Arc<Mutex<Option<String>>>);

impl Trouble {
    fn note(&self, words: String) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(words);
    }

    fn seen(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

/// A pack on its way: `git rev-list` names the objects, `git pack-objects` writes them.
struct Pack {
    list: Child,
    pack: Child,
    stdout: ChildStdout,
    trouble: Trouble,
    ended: bool,
}

impl Pack {
    fn start(source: &Source, known: &[CommitId], trouble: Trouble) -> Result<Self, String> {
        let start = |command: &mut Command| {
            let started = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
            started.map_err(|e| format!("cannot start the git program: {e}"))
        };
        let walk = ["rev-list", "--objects", "--max-count=1", source.commit.as_str()];
        let trees = known.iter().map(|commit| format!("^{commit}^{{tree}}"));
        // What the server has need not be here. Without that, a commit that is missing is an error.
        let lenient = (!known.is_empty()).then_some("--ignore-missing");
        let mut list = start(git(&source.dir).args(walk).args(lenient).args(trees))?;
        let names = list.stdout.take().map_or_else(Stdio::null, Stdio::from);
        // The way to the server is short: to look for what is alike and to compress take longer than to send it.
        let packing = ["-c", "pack.compression=0", "pack-objects", "--stdout", "-q", "--window=0"];
        let pack = start(git(&source.dir).args(packing).stdin(names));
        let mut pack = match pack {
            Ok(pack) => pack,
            Err(words) => {
                end(&mut list);
                return Err(words);
            }
        };
        match pack.stdout.take() {
            Some(stdout) => Ok(Self { list, pack, stdout, trouble, ended: false }),
            None => {
                end(&mut list);
                end(&mut pack);
                Err("git gave no pipe".into())
            }
        }
    }

    /// Both programs must have ended well, or the pack is not whole.
    fn finish(&mut self) -> std::io::Result<()> {
        self.ended = true;
        for child in [&mut self.list, &mut self.pack] {
            let mut words = String::new();
            if let Some(stderr) = child.stderr.take() {
                stderr.take(WORDS_BYTES_MAX).read_to_string(&mut words)?;
            }
            let status = child.wait()?;
            if !status.success() {
                let words = words.lines().next().map_or_else(|| status.to_string(), str::to_owned);
                let words =
                    format!("the source could not be packed: {}", words.trim_start_matches("fatal: "));
                self.trouble.note(words.clone());
                return Err(std::io::Error::other(words));
            }
        }
        Ok(())
    }
}

impl Read for Pack {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.stdout.read(buffer)?;
        if read == 0 && !buffer.is_empty() && !self.ended {
            self.finish()?;
        }
        Ok(read)
    }
}

impl Drop for Pack {
    fn drop(&mut self) {
        if !self.ended {
            end(&mut self.list);
            end(&mut self.pack);
        }
    }
}

fn end(child: &mut Child) {
    // It may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod hostile;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Global;
    use crate::{DownArgs, EdgeArgs, RestoreArgs, Roles, ServeArgs};
    use std::io::Write;

    struct NoRoles;

    impl Roles for NoRoles {
        fn serve(&self, _: &ServeArgs) -> Result<(), Failure> {
            Ok(())
        }
        fn edge(&self, _: &EdgeArgs) -> Result<(), Failure> {
            Ok(())
        }
        fn down(&self, _: &DownArgs) -> Result<Vec<String>, Failure> {
            Ok(vec![])
        }
        fn keep_backup(&self, _: &Path, _: &[u8]) -> Result<kiln_api::backup::BackupView, Failure> {
            unreachable!("no test of this one makes a backup")
        }
        fn restore(&self, _: &RestoreArgs) -> Result<kiln_api::backup::RestoreView, Failure> {
            unreachable!("no test of this one restores")
        }
    }

    pub(super) fn user(dir: &Path, arguments: &[&str]) -> String {
        let author = ["-c", "user.name=t", "-c", "user.email=t@example.invalid"];
        answer(git(dir).args(author).args(arguments)).unwrap()
    }

    pub(super) fn project() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        user(dir.path(), &["init", "-q"]);
        std::fs::create_dir(dir.path().join("site")).unwrap();
        std::fs::write(dir.path().join(SPEC), "name = \"shop\"").unwrap();
        std::fs::write(dir.path().join("site/a"), "first").unwrap();
        std::fs::write(dir.path().join(".gitignore"), "target\n").unwrap();
        user(dir.path(), &["add", "."]);
        user(dir.path(), &["commit", "-q", "-m", "first"]);
        dir
    }

    pub(super) fn resolved(
        dir: &Path,
        project: Option<&str>,
        reference: Option<&str>,
    ) -> Result<Source, Failure> {
        let global = Global {
            dir: dir.to_owned(),
            project: project.map(str::to_owned),
            json: false,
            addr: "unix:/nonexistent/kiln.sock".into(),
        };
        resolve(&Context::new(global, &NoRoles), reference)
    }

    #[test]
    fn a_dirty_tree_is_refused_but_for_the_lock_and_what_git_ignores() {
        let dir = project();
        let head = user(dir.path(), &["rev-parse", "HEAD"]);
        let source = resolved(&dir.path().join("site"), None, None).unwrap();
        assert_eq!((source.commit.as_str(), source.is_head), (head.as_str(), true));
        std::fs::write(dir.path().join(LOCK), "x").unwrap();
        std::fs::write(dir.path().join("target"), "x").unwrap();
        assert_eq!(resolved(dir.path(), None, None).unwrap().commit.as_str(), head);
        user(dir.path(), &["add", LOCK]);
        assert!(resolved(dir.path(), None, None).is_ok(), "a staged kiln.lock");

        std::fs::write(dir.path().join("site/a"), "other").unwrap();
        std::fs::write(dir.path().join("site/new file"), "x").unwrap();
        std::fs::write(dir.path().join("site").join(LOCK), "x").unwrap();
        std::fs::remove_file(dir.path().join(".gitignore")).unwrap();
        let refused = resolved(dir.path(), None, None).unwrap_err();
        assert_eq!(refused.code(), Code::DirtyTree);
        for words in [
            "changed   site/a",
            "new       site/new file",
            "new       site/kiln.lock",
            "deleted   .gitignore",
        ] {
            assert!(refused.text().contains(words), "{words}: {}", refused.text());
        }
        assert_eq!(resolved(dir.path(), None, Some("HEAD")).unwrap().commit.as_str(), head);
    }

    #[test]
    fn a_reference_names_a_commit_and_nothing_else() {
        let dir = project();
        let first = user(dir.path(), &["rev-parse", "HEAD"]);
        user(dir.path(), &["tag", "-a", "-m", "x", "v1"]);
        user(dir.path(), &["commit", "-q", "--allow-empty", "-m", "second"]);
        let source = resolved(dir.path(), None, Some("v1")).unwrap();
        assert_eq!((source.commit.as_str(), source.is_head), (first.as_str(), false));
        for bad in ["none", "HEAD:site", "--all", "-h", "", "HEAD:site/a"] {
            assert_eq!(resolved(dir.path(), None, Some(bad)).unwrap_err().code(), Code::Git, "{bad}");
        }
        assert_eq!(resolved(dir.path(), Some("other"), None).unwrap_err().code(), Code::Usage);
        let none = tempfile::tempdir().unwrap();
        assert_eq!(resolved(none.path(), None, None).unwrap_err().code(), Code::NoProject);
        std::fs::write(none.path().join(SPEC), "name = \"x\"").unwrap();
        let outside = resolved(none.path(), None, None).unwrap_err();
        assert_eq!(outside.code(), Code::Git);
        let words = format!("`{}` is not in a git repository\nhint: `git init`", none.path().display());
        assert!(outside.text().contains(&words), "{}", outside.text());
        user(none.path(), &["init", "-q"]);
        let empty = resolved(none.path(), None, None).unwrap_err();
        assert!(empty.text().contains("no commit yet"), "{}", empty.text());
        let nested = dir.path().join("site");
        std::fs::write(nested.join(SPEC), "name = \"x\"").unwrap();
        assert!(resolved(&nested, None, Some("HEAD")).unwrap_err().text().contains("top folder"));
    }

    #[test]
    fn what_a_repository_configures_is_not_run() {
        let dir = project();
        let mark = dir.path().join("target");
        let trap = dir.path().join(".git/trap");
        std::fs::write(&trap, format!("#!/bin/sh\ntouch '{}'\ncat\n", mark.display())).unwrap();
        std::fs::set_permissions(&trap, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let trap = trap.display().to_string();
        for name in ["filter.x.clean", "core.fsmonitor"] {
            user(dir.path(), &["config", name, &trap]);
        }
        user(dir.path(), &["config", "filter.x.required", "true"]);
        std::fs::write(dir.path().join(".git/info/attributes"), "* filter=x\n").unwrap();
        // Touched, so that git has to read it again.
        std::fs::write(dir.path().join("site/a"), "First").unwrap();
        assert_eq!(resolved(dir.path(), None, None).unwrap_err().code(), Code::DirtyTree);
        assert!(!mark.exists());
    }

    #[test]
    fn the_pack_holds_the_commit_with_its_files_and_not_its_history() {
        let dir = project();
        std::fs::write(dir.path().join("site/a"), "second").unwrap();
        user(dir.path(), &["commit", "-q", "-a", "-m", "second"]);
        let source = resolved(dir.path(), None, None).unwrap();
        let trouble = Trouble::default();
        let mut bytes = vec![];
        Pack::start(&source, &[], trouble.clone()).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(trouble.seen(), None);

        let other = tempfile::tempdir().unwrap();
        user(other.path(), &["init", "-q"]);
        let mut index = git(other.path())
            .args(["index-pack", "--stdin"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        index.stdin.take().unwrap().write_all(&bytes).unwrap();
        assert!(index.wait().unwrap().success());
        let commit = source.commit.as_str();
        assert_eq!(
            user(other.path(), &["show", "--no-patch", "--format=%s", &format!("{commit}:site/a")]),
            "second"
        );
        let listed = user(other.path(), &["cat-file", "--batch-all-objects", "--batch-check=%(objecttype)"]);
        assert_eq!(listed.lines().filter(|kind| *kind == "commit").count(), 1);
        assert_eq!(listed.lines().count(), 1 + 2 + 3, "one commit, two trees, three files");

        std::fs::write(dir.path().join("site/a"), "third").unwrap();
        user(dir.path(), &["commit", "-q", "-a", "-m", "third"]);
        let newer = resolved(dir.path(), None, None).unwrap();
        let absent = "0123456789".repeat(4).parse().unwrap();
        let known = [absent, source.commit];
        let mut bytes = vec![];
        Pack::start(&newer, &known, Trouble::default()).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes[8..12], 4_u32.to_be_bytes(), "one commit, two trees and the file that changed");
    }

    #[test]
    fn trouble_with_git_is_told_as_such() {
        let dir = project();
        let mut source = resolved(dir.path(), None, None).unwrap();
        source.commit = "0123456789".repeat(4).parse().unwrap();
        let trouble = Trouble::default();
        let read = Pack::start(&source, &[], trouble.clone()).unwrap().read_to_end(&mut vec![]);
        assert!(read.is_err());
        assert!(trouble.seen().unwrap().contains("could not be packed"));
    }
}
