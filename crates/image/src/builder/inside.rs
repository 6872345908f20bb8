//! Pid 1 of a builder: puts its root together, writes the committed files, runs the commands, ends what they left
//! running, and copies the result out. It is root of the builder's user namespace and keeps its rights; the commands get
//! few of them, and can neither trace it nor read its memory, environment or descriptors.

use super::collect::collect;
use super::protocol::{Failure, Head, Job, Limit, Word, is_full, read_json, say};
use super::root::Parts;
use crate::erofs;
use crate::worker::chain;
use kiln_sys::exec::{self, Words};
use kiln_sys::process::{self, Ended, Namespaces};
use kiln_sys::{CallError, namespace, privilege, seccomp};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Mode, Timestamps, UTIME_OMIT};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

/// Where the committed tree is.
const SOURCE: &str = "/src";
/// Open files of one process, if the host allows that many.
const FILES_MAX: u64 = 65_536;
/// When memory is short, commands go before pid 1, and before what the host itself needs.
const OOM_SCORE: u16 = 500;

/// What pid 1 has of its supervisor.
pub(super) struct Channels<'a> {
    /// A byte comes when its ids are mapped and its groups joined.
    pub go: &'a PipeReader,
    /// Its words.
    pub control: &'a PipeWriter,
    /// What commands print.
    pub output: PipeWriter,
    /// The supervisor's own ends.
    pub foreign: &'a [BorrowedFd<'a>],
}

/// The life of pid 1. The status is seen by nobody; its last word is.
pub(super) fn main(job: &Job, parts: Parts, channels: Channels<'_>) -> i32 {
    let control = channels.control;
    match build(job, parts, channels) {
        Ok(()) => say(control, &Word::Done),
        Err(failure) => say(control, &Word::Failed(failure)),
    }
    0
}

fn build(job: &Job, parts: Parts, channels: Channels<'_>) -> Result<(), Failure> {
    let Channels { go, control, output, foreign } = channels;
    process::close_here(foreign)?;
    enter(go)?;
    parts.assemble()?;
    process::close_all_but(&[control.as_fd(), output.as_fd()])?;
    privilege::not_dumpable()?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    receive(job).map_err(|(path, error)| match is_full(&error) {
        true => Failure::Limit { number: None, limit: Limit::Disk },
        false => Failure::step(&format!("write `{}`", path.display()), &error),
    })?;
    let ran = job.run.iter().enumerate().try_for_each(|(number, line)| {
        say(control, &Word::Run(number));
        match run(job, line, &output)? {
            Ended::Status(0) => Ok(()),
            Ended::Status(status) => Err(Failure::Command { number, status: format!("status {status}") }),
            Ended::Signal(signal) => Err(Failure::Command { number, status: format!("signal {signal}") }),
        }
    });
    // Also what they left in the background: nothing may change what is copied, and the output has to end.
    process::kill_namespace();
    drop(output);
    ran?;
    let tree = collect(&job.from, job.epoch, job.disk)?;
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    let stdout = stdout.map_err(|error| Failure::step("write the result", &error))?;
    let mut out = BufWriter::with_capacity(1 << 20, File::from(stdout));
    let written = erofs::write(&tree, &mut out);
    written.map_err(|error| Failure::Sandbox {
        text: format!("cannot write the result: {}", chain(&error)),
        disk_full: crate::bake::full_disk(&error).is_some(),
        may_pass: false,
    })?;
    out.flush().map_err(|error| Failure::step("write the result", &error))
}

/// Becomes root of the namespaces, once the supervisor says so; dies with it from then on.
fn enter(mut go: &PipeReader) -> Result<(), Failure> {
    let gone = || Failure::broken("the supervisor is gone");
    go.read_exact(&mut [0]).map_err(|_| gone())?;
    privilege::become_user(0, 0)?;
    // A change of user clears it.
    process::die_with_parent()?;
    // It may have ended before that: then its end of the pipe is closed.
    let mut end = [PollFd::new(&go, PollFlags::empty())];
    let closed = poll(&mut end, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    if closed.map_err(|error| Failure::step("look for the supervisor", &error.into()))? > 0 {
        return Err(gone());
    }
    // Only now, after it joined its groups: the namespace's root is where it is made.
    namespace::unshare(Namespaces::CGROUP)?;
    process::new_session()?;
    Ok(())
}

/// Writes the committed files, and nothing else, to [`SOURCE`].
fn receive(job: &Job) -> Result<(), (PathBuf, io::Error)> {
    let root = Path::new(SOURCE);
    let mut stdin = BufReader::with_capacity(1 << 20, io::stdin().lock());
    // What the base has there is not of the commit.
    let cleared = fs::read_dir(root).and_then(|mut entries| {
        entries.try_for_each(|entry| {
            let path = entry?.path();
            if path.symlink_metadata()?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
        })
    });
    cleared.map_err(|error| (root.to_owned(), error))?;
    let mut folders = std::collections::BTreeSet::new();
    for _ in 0..job.n_files {
        let head: Head = read_json(&mut stdin).map_err(|error| (root.to_owned(), error))?;
        let path = root.join(std::ffi::OsStr::from_bytes(&head.path));
        let written = write_file(&path, &head, job.epoch, &mut stdin);
        written.map_err(|error| (path.clone(), error))?;
        folders.extend(path.ancestors().skip(1).take_while(|p| p.starts_with(root)).map(Path::to_owned));
    }
    for folder in folders.iter().rev() {
        set_time(folder, job.epoch).map_err(|error| (folder.clone(), error))?;
    }
    Ok(())
}

fn write_file(path: &Path, head: &Head, epoch: i64, from: &mut impl Read) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut bytes = from.take(head.size);
    match head.mode {
        0o120_000 => {
            let mut target = vec![];
            bytes.read_to_end(&mut target)?;
            symlink(std::ffi::OsStr::from_bytes(&target), path)?;
        }
        // As git does with a submodule that was not fetched.
        0o160_000 => fs::create_dir(path)?,
        mode => {
            let mode = if mode & 0o111 == 0 { 0o644 } else { 0o755 };
            let mut file = File::options().write(true).create_new(true).mode(mode).open(path)?;
            if io::copy(&mut bytes, &mut file)? != head.size {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
    set_time(path, epoch)
}

fn set_time(path: &Path, seconds: i64) -> io::Result<()> {
    let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 0 };
    let omit = rustix::fs::Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let times = Timestamps { last_access: omit, last_modification: time };
    Ok(rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Runs one command to its end, and reaps what ends beside it.
fn run(job: &Job, line: &str, output: &PipeWriter) -> Result<Ended, Failure> {
    let text = |text: String| {
        let no_nul = |_| Failure::Unfit { text: "a command or a variable has a zero byte".into() };
        CString::new(text).map(CString::into_bytes_with_nul).map_err(no_nul)
    };
    let argv = ["/bin/sh", "-e", "-c", line].map(|word| text(word.to_owned()));
    let argv = argv.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
    let environment = job.environment.iter().map(|(name, value)| text(format!("{name}={value}")));
    let environment = environment.collect::<Result<Vec<_>, _>>()?.concat();
    let (argv, environment) =
        (Words::new(&argv).unwrap_or_default(), Words::new(&environment).unwrap_or_default());
    let mut room = exec::Room::default();
    let filter = seccomp::filter();
    let child = process::Clone::new(Namespaces::default()).spawn(|| {
        let error = match become_command(output, &filter) {
            Ok(()) => exec::exec(argv, environment, "", &mut room).to_string(),
            Err(error) => error.line(),
        };
        let mut output = output;
        let _ = writeln!(output, "kiln: the builder cannot run `/bin/sh`: {error}");
        126
    })?;
    loop {
        match rustix::process::wait(rustix::process::WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get() == child.pid() => {
                return Ok(match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => Ended::Status(code),
                    (None, signal) => Ended::Signal(signal.unwrap_or(0)),
                });
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Failure::step("wait for a command", &error.into())),
        }
    }
}

/// The last steps of a process before it becomes a command.
fn become_command(output: &PipeWriter, filter: &[seccomp::Instruction]) -> Result<(), CallError> {
    use kiln_sys::Context;
    let null = File::open("/dev/null").context("open", "/dev/null")?;
    process::set_standard(&null, 0)?;
    process::set_standard(output, 1)?;
    process::set_standard(output, 2)?;
    process::new_session()?;
    process::reset_signals();
    // Not possible if the host's own score is higher already, and not needed then.
    let _ = privilege::prefer_for_oom(OOM_SCORE);
    privilege::limit_resources(FILES_MAX)?;
    privilege::limit_bounding_set(privilege::FILE_CAPABILITIES)?;
    privilege::keep_capabilities(privilege::FILE_CAPABILITIES)?;
    privilege::no_new_privileges()?;
    process::close_on_exec()?;
    rustix::process::chdir(SOURCE).context("chdir", SOURCE)?;
    seccomp::install(filter)
}
