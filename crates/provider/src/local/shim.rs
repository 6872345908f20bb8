//! Pid 1 of an instance: starts the program, pumps what it prints into the black box, passes on the stop signal,
//! writes how it ended. It is root of the instance's user namespace, with the capability to signal and no other, and
//! it is not dumpable: the program can neither signal, trace nor read it. When it dies, the kernel kills the rest.

use super::blackbox::{BlackBox, Lines, greeting};
use super::folder::{Exit, Record};
use super::order::{self, Failure, Report};
use super::program::Program;
use super::rootfs::Parts;
use super::supervise::{Files, wait_for_go};
use kiln_model::frame::Stream;
use kiln_model::{ExitReason, Wall};
use kiln_sys::process::{self, Ended, Namespaces, SignalFd};
use kiln_sys::{CallError, cgroup, namespace, privilege};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Gid, Uid};
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Asks pid 1 to kill the program and to end as if the program had ended by itself.
pub(crate) const KILL: i32 = libc::SIGQUIT;
/// Bytes read at a time from the program's output.
const CHUNK_BYTES: usize = 64 * 1024;
/// How long the drain waits for a writer that outlived the kill of its whole namespace, which nothing should.
const DRAIN_SECONDS: i64 = 2;

/// What pid 1 runs.
#[derive(Clone, Copy)]
pub(super) struct Inside<'a> {
    pub record: &'a Record,
    pub user: (u32, u32),
    pub program: &'a Program,
}

/// The life of pid 1. The status is seen by nobody; `exit.json` is.
pub(super) fn main(
    inside: Inside<'_>,
    files: Files,
    parts: Parts,
    go: &PipeReader,
    report: &OwnedFd,
    foreign: &[BorrowedFd<'_>],
) -> i32 {
    process::end_never();
    if process::close_here(foreign).is_err() || !wait_for_go(go) {
        return 1;
    }
    let Files { lock, out, exit, oom } = files;
    let mut spool = BlackBox::new(out);
    spool.note(&greeting(&inside.record.spec.id, &inside.record.spec.command));
    let started = prepare(inside, parts).and_then(|signals| {
        start(inside, signals, [lock.as_fd(), exit.as_fd(), report.as_fd()], &oom, &spool)
    });
    let reason = match started {
        Ok(Started { pid, signals, pipes }) => {
            let _ = order::send(report, &Report::Started, &[]);
            let _ = process::close_here(&[report.as_fd()]);
            Pump { pid, signals, pipes: pipes.map(Some), lines: Default::default(), spool: &mut spool }
                .run(inside.record.spec.stop.signal, oom.as_ref())
        }
        Err(Problem::Executing(error)) => {
            let reason = ExitReason::NotStarted { error };
            end(&mut spool, &exit, &reason);
            let _ = order::send(report, &Report::Started, &[]);
            return 0;
        }
        Err(Problem::Before(failure)) => {
            let error = format!("{}: {}", failure.step, failure.detail);
            if failure.permanent {
                end(&mut spool, &exit, &ExitReason::NotStarted { error });
            }
            let _ = order::send(report, &Report::Failed(failure), &[]);
            return 1;
        }
    };
    end(&mut spool, &exit, &reason);
    0
}

/// Why the program does not run.
enum Problem {
    /// Something around it failed.
    Before(Failure),
    /// It could not be executed.
    Executing(String),
}

impl From<CallError> for Problem {
    fn from(error: CallError) -> Self {
        Problem::Before(error.into())
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Problem::Before(Failure::io("start the program", &error))
    }
}

fn prepare(inside: Inside<'_>, parts: Parts) -> Result<SignalFd, Problem> {
    privilege::become_user(0, 0)?;
    // Only now, after it joined its groups: the namespace's root is where it is made.
    namespace::unshare(Namespaces::CGROUP)?;
    parts.assemble(inside.record, inside.user).map_err(Problem::Before)?;
    process::new_session()?;
    Ok(SignalFd::new(&[libc::SIGTERM, KILL, libc::SIGCHLD])?)
}

struct Started {
    pid: i32,
    signals: SignalFd,
    pipes: [PipeReader; 2],
}

/// Starts the program and waits until it is executed.
fn start(
    inside: Inside<'_>,
    signals: SignalFd,
    keep: [BorrowedFd<'_>; 3],
    oom: &Option<File>,
    spool: &BlackBox,
) -> Result<Started, Problem> {
    let null = File::options().read(true).open("/dev/null")?;
    let ((out_read, out_write), (err_read, err_write)) = (io::pipe()?, io::pipe()?);
    // Whoever owns them may open them by name: `/dev/stdout`.
    let (uid, gid) = (Uid::from_raw(inside.user.0), Gid::from_raw(inside.user.1));
    for pipe in [&out_write, &err_write] {
        rustix::fs::fchown(pipe, Some(uid), Some(gid)).map_err(io::Error::from)?;
    }
    let (mut status_read, status_write) = io::pipe()?;
    let (hold_read, mut hold_write) = io::pipe()?;
    let child = process::Clone::new(Namespaces::default()).spawn(|| {
        let mut status: &PipeWriter = &status_write;
        let error = become_program(inside.program, &null, &out_write, &err_write, &hold_read, &hold_write);
        let _ = status.write_all(error.as_bytes());
        126
    })?;
    drop((null, out_write, err_write, status_write, hold_read));

    // The program is held until pid 1 has given up what it has.
    let [a, b] = spool.files();
    let mut kept = vec![
        signals.as_fd(),
        out_read.as_fd(),
        err_read.as_fd(),
        status_read.as_fd(),
        hold_write.as_fd(),
        a.as_fd(),
        b.as_fd(),
    ];
    kept.extend(keep);
    kept.extend(oom.as_ref().map(|f| f.as_fd()));
    process::close_all_but(&kept)?;
    for number in 0..3 {
        process::set_standard(File::options().read(true).write(true).open("/dev/null")?, number)?;
    }
    privilege::drop_bounding_set()?;
    privilege::keep_capabilities(1 << privilege::CAP_KILL)?;
    privilege::no_new_privileges()?;
    privilege::not_dumpable()?;
    hold_write.write_all(b"g")?;
    drop(hold_write);
    let mut error = String::new();
    status_read.read_to_string(&mut error)?;
    if error.is_empty() {
        let pid = child.pid();
        // Its descriptor was closed above with all that is not kept.
        std::mem::forget(child);
        return Ok(Started { pid, signals, pipes: [out_read, err_read] });
    }
    std::mem::forget(child);
    Err(Problem::Executing(error))
}

/// In the program's process. Returns only on failure, with a text for the user.
fn become_program(
    program: &Program,
    null: &File,
    out: &PipeWriter,
    err: &PipeWriter,
    mut hold: &PipeReader,
    hold_write: &PipeWriter,
) -> String {
    let standard = process::close_here(&[hold_write.as_fd()])
        .and_then(|()| process::set_standard(null, 0))
        .and_then(|()| process::set_standard(out, 1))
        .and_then(|()| process::set_standard(err, 2))
        .and_then(|()| process::new_session());
    if let Err(error) = standard {
        return error.line();
    }
    if hold.read_exact(&mut [0]).is_err() {
        return "pid 1 ended".into();
    }
    program.run()
}

/// Writes the last frame and then the exit record, each durably: whoever sees the record finds every line before it.
pub(crate) fn end(spool: &mut BlackBox, mut exit: &File, reason: &ExitReason) {
    spool.note(&reason.to_string());
    let record = Exit { at: Wall(kiln_sys::clock::wall_ms()), reason: reason.clone() };
    // What cannot be written is seen as `ExitReason::Unknown`; there is nobody to tell.
    let _ = spool.sync();
    let _ = exit.write_all(&serde_json::to_vec(&record).unwrap_or_default());
    let _ = exit.sync_all();
}

struct Pump<'a> {
    pid: i32,
    signals: SignalFd,
    pipes: [Option<PipeReader>; 2],
    lines: [Lines; 2],
    spool: &'a mut BlackBox,
}

const STREAMS: [Stream; 2] = [Stream::Out, Stream::Err];

impl Pump<'_> {
    fn run(mut self, stop_signal: i32, oom: Option<&File>) -> ExitReason {
        let mut is_killed = false;
        let ended = loop {
            if self.turn(None).unwrap_or(false) {
                while let Some(signal) = self.signals.next() {
                    // Gone already is as good.
                    let _ = match signal {
                        libc::SIGTERM => {
                            self.spool.note(&format!("stopping: signal {stop_signal}"));
                            process::signal_pid(self.pid, stop_signal)
                        }
                        KILL => {
                            self.spool.note("not ended in time: killing it");
                            is_killed = true;
                            process::signal_pid(self.pid, libc::SIGKILL)
                        }
                        _ => Ok(()),
                    };
                }
                let mut main = None;
                while let Some((pid, ended)) = process::reap() {
                    if pid == self.pid {
                        main = Some(ended);
                    }
                }
                if let Some(ended) = main {
                    break ended;
                }
            }
        };
        let reason = match ended {
            Ended::Status(code) => ExitReason::Status { code },
            Ended::Signal(libc::SIGKILL)
                if !is_killed && oom.is_some_and(|file| cgroup::oom_kills(file) > 0) =>
            {
                ExitReason::OutOfMemory
            }
            Ended::Signal(signal) => ExitReason::Signal { signal },
        };
        process::kill_namespace();
        while self.pipes.iter().any(Option::is_some) {
            let limit = Timespec { tv_sec: DRAIN_SECONDS, tv_nsec: 0 };
            if self.turn(Some(&limit)).is_err() {
                break;
            }
        }
        for ((lines, stream), _) in self.lines.iter_mut().zip(STREAMS).zip(0..) {
            let _ = lines.finish(stream, self.spool);
        }
        reason
    }

    /// Waits until something is to do and pumps what was printed. True: signals are to be read. With a limit it is an
    /// error if nothing comes in time, and signals are left alone.
    fn turn(&mut self, limit: Option<&Timespec>) -> io::Result<bool> {
        let mut ready = [false; 3];
        {
            let mut fds = vec![];
            if limit.is_none() {
                fds.push((2, PollFd::new(&self.signals, PollFlags::IN)));
            }
            for (n, pipe) in self.pipes.iter().enumerate() {
                fds.extend(pipe.iter().map(|p| (n, PollFd::new(p, PollFlags::IN))));
            }
            let (numbers, mut fds): (Vec<usize>, Vec<PollFd<'_>>) = fds.into_iter().unzip();
            if rustix::io::retry_on_intr(|| poll(&mut fds, limit))? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            for (n, fd) in numbers.into_iter().zip(&fds) {
                ready[n] = !fd.revents().is_empty();
            }
        }
        let mut chunk = [0; CHUNK_BYTES];
        for n in (0..2).filter(|n| ready[*n]) {
            let Some(pipe) = &mut self.pipes[n] else { continue };
            match pipe.read(&mut chunk) {
                Ok(0) | Err(_) => self.pipes[n] = None,
                // A full disk loses lines, not the program.
                Ok(got) => drop(self.lines[n].push(&chunk[..got], STREAMS[n], self.spool)),
            }
        }
        Ok(ready[2])
    }
}
