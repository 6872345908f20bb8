//! What pid 1 does while its program runs: takes what is printed, hands on signals, reaps, and tells of system calls that
//! are not on the list if it is asked about them.

use super::blackbox::{BlackBox, Lines};
use super::shim::{KILL, Launched};
use kiln_model::ExitReason;
use kiln_model::frame::Stream;
use kiln_sys::process::{self, Ended, SignalFd};
use kiln_sys::seccomp::Listener;
use kiln_sys::{cgroup, syscalls, text};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::{self, PipeReader, Read};
use std::os::fd::OwnedFd;

/// How long the drain waits for a writer that outlived the kill of its whole namespace, which nothing should.
const DRAIN_SECONDS: i64 = 2;
/// System calls that are told of once; more than there are.
const CALLS: usize = 1024;
const STREAMS: [Stream; 2] = [Stream::Out, Stream::Err];

/// How the program ended.
pub(super) enum Outcome {
    Status(i32),
    Signal(i32),
    OutOfMemory,
}

/// One program's.
pub(super) struct Pump<'a> {
    pid: i32,
    signals: SignalFd,
    pipes: [Option<PipeReader>; 2],
    listener: Option<Listener>,
    door: &'a OwnedFd,
    /// The server that asked last, after the one that started it.
    heir: Option<OwnedFd>,
    told: [bool; CALLS],
    chunk: &'a mut [u8],
    lines: &'a mut [Lines; 2],
    spool: &'a mut BlackBox,
}

/// What has something to say.
#[derive(Default)]
struct Ready {
    signals: bool,
    pipes: [bool; 2],
    listener: bool,
    door: bool,
    /// Nobody is left who could ask.
    is_unheard: bool,
}

impl<'a> Pump<'a> {
    pub(super) fn new(
        launched: Launched,
        door: &'a OwnedFd,
        chunk: &'a mut [u8],
        lines: &'a mut [Lines; 2],
        spool: &'a mut BlackBox,
    ) -> Self {
        let Launched { pid, signals, pipes, listener } = launched;
        let (pipes, told) = (pipes.map(Some), [false; CALLS]);
        Self { pid, signals, pipes, listener, door, heir: None, told, chunk, lines, spool }
    }

    /// Until the program has ended and its last line is written. With how it ended comes the server that is to be told.
    pub(super) fn run(mut self, stop_signal: i32, oom: Option<&File>) -> (ExitReason, Option<OwnedFd>) {
        let mut is_killed = false;
        let ended = loop {
            let ready = self.wait(None).unwrap_or_default();
            self.take(&ready);
            if ready.signals {
                while let Some(signal) = self.signals.next() {
                    self.hand_on(signal, stop_signal, &mut is_killed);
                }
                if let Some(ended) = self.reap() {
                    break ended;
                }
            }
        };
        let outcome = match ended {
            Ended::Status(code) => Outcome::Status(code),
            Ended::Signal(libc::SIGKILL)
                if !is_killed && oom.is_some_and(|file| cgroup::oom_kills(file) > 0) =>
            {
                Outcome::OutOfMemory
            }
            Ended::Signal(signal) => Outcome::Signal(signal),
        };
        process::kill_namespace();
        self.drain();
        (outcome.into(), self.heir)
    }

    fn hand_on(&mut self, signal: i32, stop_signal: i32, is_killed: &mut bool) {
        // Gone already is as good.
        let _ = match signal {
            libc::SIGTERM => {
                let mut line = [0; 64];
                self.spool.note(text::format(&mut line, format_args!("stopping: signal {stop_signal}")));
                process::signal_pid(self.pid, stop_signal)
            }
            KILL => {
                self.spool.note("not ended in time: killing it");
                *is_killed = true;
                process::signal_pid(self.pid, libc::SIGKILL)
            }
            _ => Ok(()),
        };
    }

    /// Reaps all that ended; how the program did, if it was among them.
    fn reap(&self) -> Option<Ended> {
        let mut main = None;
        while let Some((pid, ended)) = process::reap() {
            if pid == self.pid {
                main = Some(ended);
            }
        }
        main
    }

    /// Takes what is in the pipes when all writers are dead.
    fn drain(&mut self) {
        while self.pipes.iter().any(Option::is_some) {
            let limit = Timespec { tv_sec: DRAIN_SECONDS, tv_nsec: 0 };
            match self.wait(Some(&limit)) {
                Ok(ready) => self.take(&ready),
                Err(_) => break,
            }
        }
        for (lines, stream) in self.lines.iter_mut().zip(STREAMS) {
            let _ = lines.finish(stream, self.spool);
        }
    }

    /// Waits until something is to do. With a limit only the pipes count, and it is an error if nothing comes in time.
    fn wait(&self, limit: Option<&Timespec>) -> io::Result<Ready> {
        // What is not there is stood in for by what is always there, and not asked for anything.
        let nothing = PollFd::new(&self.signals, PollFlags::empty());
        let input = if limit.is_none() { PollFlags::IN } else { PollFlags::empty() };
        let [out, err] = self.pipes.each_ref().map(Option::as_ref);
        let listener = self.listener.as_ref().filter(|_| limit.is_none());
        let mut fds = [
            PollFd::new(&self.signals, input),
            out.map_or_else(|| nothing.clone(), |out| PollFd::new(out, PollFlags::IN)),
            err.map_or_else(|| nothing.clone(), |err| PollFd::new(err, PollFlags::IN)),
            listener.map_or_else(|| nothing.clone(), |listener| PollFd::new(&listener.0, PollFlags::IN)),
            PollFd::new(self.door, input),
        ];
        if rustix::io::retry_on_intr(|| poll(&mut fds, limit))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let has = |n: usize| !fds[n].revents().is_empty();
        Ok(Ready {
            signals: has(0),
            pipes: [out.is_some() && has(1), err.is_some() && has(2)],
            listener: listener.is_some() && has(3),
            door: limit.is_none() && has(4),
            is_unheard: listener.is_some() && fds[3].revents().contains(PollFlags::HUP),
        })
    }

    fn take(&mut self, ready: &Ready) {
        for n in (0..2).filter(|n| ready.pipes[*n]) {
            let Some(pipe) = &mut self.pipes[n] else { continue };
            match pipe.read(self.chunk) {
                // The program may have read it itself, as it may open what it prints to.
                Err(error)
                    if [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted].contains(&error.kind()) => {}
                Ok(0) | Err(_) => self.pipes[n] = None,
                // A full disk loses lines, not the program.
                Ok(got) => drop(self.lines[n].push(&self.chunk[..got], STREAMS[n], self.spool)),
            }
        }
        if ready.listener {
            self.tell_of_a_call();
        }
        if ready.door {
            // A new server takes the place of one that is dead.
            self.heir = kiln_sys::message::accept(self.door).ok().or(self.heir.take());
        }
        if ready.is_unheard {
            self.listener = None;
        }
    }

    fn tell_of_a_call(&mut self) {
        // Who asked may be dead by now.
        let Some(number) = self.listener.as_ref().and_then(Listener::let_through) else { return };
        let told = self.told.get_mut(number as usize).map(|told| std::mem::replace(told, true));
        if told == Some(false) {
            let mut line = [0; 96];
            let name = syscalls::name(number).unwrap_or("?");
            let words = format_args!("system call {number} ({name}) is not on the list; let through");
            self.spool.note(text::format(&mut line, words));
        }
    }
}
