//! The watcher of a machine: pid 1 of namespaces that hold QEMU and nothing else. It starts QEMU, tells the guest what to start,
//! writes down what it prints and how it ended, and passes on what it is asked. When it dies, the kernel kills QEMU.
//!
//! ```text
//! Booting ─ Hello ─▶ (Start) ─ Started ─▶ Running ─ Ended ─▶ exit.json
//!    │ deadline, QEMU ends, Failed           │ QEMU ends, broken protocol, killed
//!    ▼                                       ▼
//! Report::Failed, with the console's last   exit.json
//! ```

use super::ask::{Ask, Told};
use super::child::Qemu;
use super::guest::Guest;
use super::{FIRST_WORD, clean};
use crate::local::blackbox::{BlackBox, Lines};
use crate::local::folder::Record;
use crate::local::order::{self, Failure, Report};
use crate::local::shim::KILL;
use kiln_model::ExitReason;
use kiln_model::frame::Stream;
use kiln_sys::cgroup;
use kiln_sys::process::{self, SignalFd};
use kiln_sys::wire::{End, Frames, FromGuest, QUESTIONS_MAX, ToGuest};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::SocketFlags;
use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// How long a killed service may take until the machine is killed instead. Less than the server's patience.
const KILL_MAX: Duration = Duration::from_secs(3);
/// How long a guest may take for a check beyond the check's own time.
const ANSWER_GRACE: Duration = Duration::from_secs(1);
/// Bytes of a text of the guest.
const TEXT_BYTES: usize = 1000;

/// Everything else that it is given.
pub(super) struct Given<'a> {
    pub record: &'a Record,
    pub records: Vec<u8>,
    /// What the guest is told before, until it was.
    pub secrets: RefCell<Option<File>>,
    /// Where checks are asked for.
    pub desk: OwnedFd,
    pub oom: Option<File>,
    /// How long the guest may take to start its service, with a whole processor.
    pub boot_max: Duration,
}

/// How a machine came to its end.
pub(super) enum Outcome {
    /// Its service ended like that.
    Ended(ExitReason),
    /// Its program could not be executed.
    NotStarted(String),
    /// The machine, or something in it around the service, failed before the service ran.
    Failed(Failure),
}

/// Somebody who wants to know something.
struct Client {
    socket: OwnedFd,
    /// The question's number and the time until which it is waited for. None: nothing was asked yet.
    asked: Option<(u32, Instant)>,
}

/// The watcher at work.
pub(super) struct Watch<'a> {
    qemu: Qemu,
    guest: Guest,
    signals: SignalFd,
    given: &'a Given<'a>,
    report: &'a OwnedFd,
    spool: &'a mut BlackBox,
    lines: [Lines; 2],
    clients: Vec<Client>,
    questions: u32,
    has_spoken: bool,
    is_running: bool,
    stop_wanted: bool,
    killed_until: Option<Instant>,
    /// Until when the guest has to have said anything, and until when its service has to run.
    boot_until: [Instant; 2],
    /// QEMU has ended.
    is_over: bool,
    outcome: Option<Outcome>,
}

/// What `poll` found.
#[derive(Default)]
struct Ready {
    signals: bool,
    port: bool,
    console: bool,
    desk: bool,
    clients: Vec<bool>,
}

impl<'a> Watch<'a> {
    pub(super) fn new(
        started: (Qemu, UnixStream, SignalFd),
        given: &'a Given<'a>,
        report: &'a OwnedFd,
        spool: &'a mut BlackBox,
    ) -> io::Result<Self> {
        let (qemu, port, signals) = started;
        // A machine with a part of a processor takes the longer.
        let cpu_milli = given.record.spec.resources.cpu_milli.clamp(10, 1000);
        let (now, boot_max) = (Instant::now(), given.boot_max * 1000 / cpu_milli);
        Ok(Self {
            qemu,
            guest: Guest::new(port)?,
            signals,
            given,
            report,
            spool,
            lines: Default::default(),
            clients: vec![],
            questions: 0,
            has_spoken: false,
            is_running: false,
            stop_wanted: false,
            killed_until: None,
            boot_until: [now + boot_max / 3, now + boot_max],
            is_over: false,
            outcome: None,
        })
    }

    /// Watches until the machine is at its end, which it then is. What it reports is in the black box.
    pub(super) fn run(mut self) -> Outcome {
        while self.outcome.is_none() {
            let ready = self.wait();
            if ready.console {
                self.qemu.read();
            }
            if ready.port {
                self.guest.flush();
                self.guest.read();
                self.hear();
            }
            if ready.signals {
                self.obey();
            }
            if ready.desk {
                self.welcome();
            }
            self.serve(&ready.clients);
            if self.is_over && self.outcome.is_none() {
                // It may have said its last word before it ended.
                while self.guest.read() {
                    self.hear();
                }
                self.qemu.kill();
                self.outcome.get_or_insert_with(|| {
                    let oom = self.given.oom.as_ref();
                    end_of_machine(&self.qemu, self.is_running, self.killed_until.is_some(), oom)
                });
                if matches!(self.outcome, Some(Outcome::Ended(ExitReason::Unknown))) {
                    self.spool.note(&format!("the machine ended; {}", self.qemu.console()));
                }
            }
            self.enforce_deadlines();
        }
        self.qemu.kill();
        for (lines, stream) in self.lines.iter_mut().zip([Stream::Out, Stream::Err]) {
            // A full disk loses lines, and the next that fits tells.
            let _ = lines.finish(stream, self.spool);
        }
        let failed = Outcome::Failed(Failure::retry("watch the machine", "it has no end"));
        self.outcome.unwrap_or(failed)
    }

    /// Waits until something is to do or a deadline has come.
    fn wait(&self) -> Ready {
        let mut ready = Ready { clients: vec![false; self.clients.len()], ..Ready::default() };
        let clients = self.clients.iter().filter_map(|client| Some(client.asked?.1));
        let boot = (!self.is_running).then_some(self.boot_until[usize::from(self.has_spoken)]);
        let first = clients.chain(boot).chain(self.killed_until).min();
        let limit = first.map(|first| first.saturating_duration_since(Instant::now()));
        let limit = limit
            .map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) });
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        if self.clients.len() < QUESTIONS_MAX {
            fds.push(PollFd::new(&self.given.desk, PollFlags::IN));
        }
        let desk = fds.len() - 1;
        fds.extend(self.clients.iter().map(|client| PollFd::new(&client.socket, PollFlags::IN)));
        let port = fds.len();
        let port_fd = self.guest.port();
        if let Some((fd, has_more)) = &port_fd {
            let flags = if *has_more { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            fds.push(PollFd::new(fd, flags));
        }
        let console = fds.len();
        fds.extend(self.qemu.console.iter().map(|console| PollFd::new(console, PollFlags::IN)));
        if poll(&mut fds, limit.as_ref()).is_err() {
            return ready;
        }
        let is_ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
        ready.signals = is_ready(0);
        ready.desk = desk == 1 && is_ready(1);
        for (number, client) in ready.clients.iter_mut().enumerate() {
            *client = is_ready(desk + 1 + number);
        }
        ready.port = port_fd.is_some() && is_ready(port);
        ready.console = self.qemu.console.is_some() && is_ready(console);
        ready
    }

    /// Handles all that the guest has said.
    fn hear(&mut self) {
        while self.outcome.is_none() {
            match self.guest.heard() {
                Ok(None) => return,
                Ok(Some(word)) => self.handle(word),
                Err(kiln_sys::wire::Broken) => {
                    let text = "the guest does not keep to the protocol: ending the machine";
                    self.spool.note(text);
                    self.outcome = Some(match self.is_running {
                        true => Outcome::Ended(ExitReason::Unknown),
                        false => Outcome::Failed(Failure::retry("boot the machine", text)),
                    });
                }
            }
        }
    }

    /// Says them, and has them no more.
    fn tell_secrets(&mut self) -> io::Result<()> {
        let Some(mut file) = self.given.secrets.take() else { return Ok(()) };
        let mut bytes = Zeroizing::new(vec![]);
        file.read_to_end(&mut bytes)?;
        let mut frames = Frames::default();
        frames.push(&bytes);
        let broken = |_| io::Error::from(io::ErrorKind::InvalidData);
        while let Some((kind, content)) = frames.take().map_err(broken)? {
            let word = ToGuest::decode(kind, &content).map_err(broken)?;
            if !self.guest.say(&word) {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
        }
        Ok(())
    }

    fn handle(&mut self, word: FromGuest) {
        match word {
            FromGuest::Hello if !self.is_running => {
                self.has_spoken = true;
                if let Err(error) = self.tell_secrets() {
                    let failure = Failure::io("give the instance its secrets", &error);
                    self.outcome = Some(Outcome::Failed(failure));
                    return;
                }
                // Longer than a frame was refused before the start.
                self.guest.say(&ToGuest::Start(self.given.records.clone()));
            }
            FromGuest::Started if !self.is_running => {
                self.is_running = true;
                let _ = order::send(self.report, &Report::Started, &[]);
                if self.stop_wanted {
                    self.stop();
                }
            }
            // Said again.
            FromGuest::Hello | FromGuest::Started => {}
            FromGuest::NotStarted(error) if !self.is_running => {
                self.outcome = Some(Outcome::NotStarted(clean(&error, TEXT_BYTES)));
            }
            FromGuest::Failed { permanent, step, detail } if !self.is_running => {
                let (step, detail) = (clean(&step, TEXT_BYTES), clean(&detail, TEXT_BYTES));
                let failure = Failure::retry(step, detail);
                self.outcome = Some(Outcome::Failed(Failure { permanent, ..failure }));
            }
            FromGuest::NotStarted(_) | FromGuest::Failed { .. } => {
                self.outcome = Some(Outcome::Ended(ExitReason::Unknown));
            }
            // A full disk loses lines, not the machine.
            FromGuest::Out(bytes) => drop(self.lines[0].push(&bytes, Stream::Out, self.spool)),
            FromGuest::Err(bytes) => drop(self.lines[1].push(&bytes, Stream::Err, self.spool)),
            FromGuest::Answer { number, passed, detail } => {
                self.answer(number, &Told { passed, detail: clean_lines(&detail) });
            }
            FromGuest::Ended(end) => {
                self.outcome = Some(Outcome::Ended(match end {
                    // Whatever it says: a status has eight bits, a signal is one of 64.
                    End::Status(code) => ExitReason::Status { code: code & 0xff },
                    End::Signal(signal) => ExitReason::Signal { signal: signal.clamp(1, 64) },
                    End::OutOfMemory => ExitReason::OutOfMemory,
                }));
            }
        }
    }

    /// Does what signals ask for.
    fn obey(&mut self) {
        while let Some(signal) = self.signals.next() {
            match signal {
                libc::SIGTERM => {
                    self.stop_wanted = true;
                    self.stop();
                }
                KILL => {
                    self.spool.note("not ended in time: killing it");
                    let asked = self.is_running && self.guest.say(&ToGuest::Kill);
                    let patience = if asked { KILL_MAX } else { Duration::ZERO };
                    self.killed_until.get_or_insert(Instant::now() + patience);
                }
                _ => {}
            }
        }
        while let Some((pid, _)) = process::reap() {
            self.is_over |= pid == self.qemu.pid;
        }
    }

    fn stop(&mut self) {
        if self.is_running {
            let signal = self.given.record.spec.stop.signal;
            self.spool.note(&format!("stopping: signal {signal}"));
            self.guest.say(&ToGuest::Stop(signal));
        }
    }

    /// Ends what has taken too long.
    fn enforce_deadlines(&mut self) {
        let now = Instant::now();
        let is_late = now >= self.boot_until[usize::from(self.has_spoken)];
        if self.outcome.is_none() && !self.is_running && is_late {
            let step = if self.has_spoken { "boot the machine" } else { FIRST_WORD };
            let detail = format!("no word from it in time; {}", self.qemu.console());
            self.outcome = Some(Outcome::Failed(Failure::retry(step, detail)));
        }
        if self.outcome.is_none() && self.killed_until.is_some_and(|until| now >= until) {
            self.outcome = Some(Outcome::Ended(ExitReason::Signal { signal: libc::SIGKILL }));
        }
        let late = Told { passed: false, detail: "the machine did not answer in time".to_owned() };
        self.clients.retain(|client| {
            let is_late = client.asked.is_some_and(|(_, until)| now >= until);
            if is_late {
                let _ = order::send(&client.socket, &late, &[]);
            }
            !is_late
        });
    }

    fn welcome(&mut self) {
        if let Ok(socket) = rustix::net::accept_with(&self.given.desk, SocketFlags::CLOEXEC) {
            self.clients.push(Client { socket, asked: None });
        }
    }

    /// Reads what clients ask, and forgets those that went away.
    fn serve(&mut self, ready: &[bool]) {
        let mut ready = ready.iter();
        for mut client in std::mem::take(&mut self.clients) {
            let is_ready = ready.next().copied().unwrap_or(false);
            // Whoever has asked says nothing more but that it has gone.
            let gone = is_ready && (client.asked.is_some() || !self.put(&mut client));
            if !gone {
                self.clients.push(client);
            }
        }
    }

    /// Puts a client's question to the guest. False: that is not possible, and it was told so.
    fn put(&mut self, client: &mut Client) -> bool {
        let Ok(Some((ask, _))) = order::receive::<Ask>(&client.socket) else { return false };
        let (timeout, number) = (ask.timeout, self.questions);
        self.questions = self.questions.wrapping_add(1);
        let question = ask.question().filter(|_| self.is_running);
        let word = question.map(|question| ToGuest::Ask { number, timeout_ms: timeout.0, question });
        if !word.is_some_and(|word| self.guest.say(&word)) {
            let told = Told { passed: false, detail: "the machine does not listen".to_owned() };
            let _ = order::send(&client.socket, &told, &[]);
            return false;
        }
        client.asked = Some((number, Instant::now() + timeout.duration() + ANSWER_GRACE));
        true
    }

    /// Passes an answer on to whoever asked; one that nobody asked for is ignored.
    fn answer(&mut self, number: u32, told: &Told) {
        let asked = |client: &Client| client.asked.is_some_and(|(asked, _)| asked == number);
        if let Some(at) = self.clients.iter().position(asked) {
            let client = self.clients.swap_remove(at);
            let _ = order::send(&client.socket, told, &[]);
        }
    }
}

/// As [`clean`], with its line ends.
fn clean_lines(text: &str) -> String {
    let text = &text[..text.floor_char_boundary(kiln_sys::wire::ANSWER_BYTES_MAX)];
    text.lines().map(|line| clean(line, line.len())).collect::<Vec<_>>().join("\n")
}

/// What it means that QEMU ended without a last word of the guest.
fn end_of_machine(qemu: &Qemu, is_running: bool, is_killed: bool, oom: Option<&File>) -> Outcome {
    let short_of_memory = oom.is_some_and(|file| cgroup::oom_kills(file) > 0);
    match (is_running, is_killed) {
        (_, true) => Outcome::Ended(ExitReason::Signal { signal: libc::SIGKILL }),
        (true, false) if short_of_memory => Outcome::Ended(ExitReason::OutOfMemory),
        (true, false) => Outcome::Ended(ExitReason::Unknown),
        (false, false) => {
            let detail = format!("QEMU ended; {}", qemu.console());
            Outcome::Failed(Failure::retry("boot the machine", detail))
        }
    }
}
