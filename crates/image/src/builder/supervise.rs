//! `kiln internal build`: the supervisor of one build. A process of its own, with one thread, because it makes
//! namespaces, and because it outlives a bake that is killed just long enough to leave nothing behind.
//!
//! ```text
//! bake ── spawn ─▶ supervisor: control group, network namespace, mounts
//!                     ├─ clone3 ─▶ pid 1 (inside.rs): root, /src, the commands, the result
//!                     └─ id maps, joins groups, `go`; then: output, limits, the bake's pipe
//! ```
//! If the supervisor itself is killed, pid 1 dies with it, and with that every process and mount of the builder; the
//! empty control group is removed by the bake ([`sweep`]) or, if that is dead too, by the next server.

use super::inside::{self, Channels};
use super::output::Output;
use super::protocol::{Failure, Job, Limit, Report, Word, read_json, say};
use super::root::Parts;
use kiln_sys::cgroup::{self, Choice, Group, Trees};
use kiln_sys::netlink::Netlink;
use kiln_sys::process::{self, Namespaces};
use kiln_sys::{CallError, namespace};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// First id on the host of a builder's user namespace: below those of the package installer, far above those of
/// instances.
pub(super) const IDS_FIRST: u32 = 0xFFFD_0000;
/// Ids of a builder.
pub(super) const IDS: u32 = 65_536;
/// How long killed processes may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// How long the output may go on after pid 1 has ended.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// Bytes that are read at a time.
const CHUNK: usize = 64 << 10;
/// A disk with less space than this is full.
const DISK_BYTES_LEAST: u64 = 64 << 10;
/// So is the disk of the state folder with less than this.
const HOST_BYTES_LEAST: u64 = 4 << 20;

/// Plays the supervisor: `kiln internal build`.
pub fn main() -> ExitCode {
    let mut output = Output::new(Instant::now());
    let report = match supervise(&mut output) {
        Ok(()) => Report::Done { log: output.log() },
        Err(failure) => Report::Failed { failure, said: output.said() },
    };
    say(io::stderr(), &report);
    ExitCode::SUCCESS
}

/// What is taken away at the end, however that comes.
struct Guard {
    group: Group,
    /// The host's mount namespace, in which control groups can be seen.
    host: File,
    child: Option<process::Child>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // What cannot be removed now is removed when the next server starts.
        let _ = namespace::enter(&self.host, Namespaces::MOUNT);
        if let Some(child) = self.child.take() {
            let _ = child.kill_and_reap();
        }
        if self.group.kill(KILL_PATIENCE).is_ok_and(|empty| empty) {
            let _ = self.group.remove();
        }
    }
}

fn supervise(output: &mut Output) -> Result<(), Failure> {
    process::new_session()?;
    // Read without a buffer: what follows is for pid 1.
    let stdin = io::stdin().as_fd().try_clone_to_owned();
    let mut stdin = File::from(stdin.map_err(|e| Failure::step("read the job", &e))?);
    let job: Job = read_json(&mut stdin).map_err(|e| Failure::step("read the job", &e))?;
    // The bake's own limit is not that of a compiler, which reserves more than it uses.
    let maximum = getrlimit(Resource::As).maximum;
    setrlimit(Resource::As, Rlimit { current: maximum, maximum })
        .map_err(|e| Failure::step("lift the limit of address space", &e.into()))?;

    let host = File::open("/proc/self/ns/mnt").map_err(|e| Failure::step("open the mount namespace", &e))?;
    let group = make_group(&job)?;
    let mut guard = Guard { group, host, child: None };
    let counters = Counters { oom: guard.group.oom_file()?, pids: guard.group.pids_file() };
    let (doors, birthplace) = (guard.group.doors(false)?, guard.group.birthplace()?);
    make_network()?;
    let (parts, disk) = Parts::make(&job)?;

    let pipe = || io::pipe().map_err(|e| Failure::step("make a pipe", &e));
    let ((go_read, mut go_write), (words, control), (printed, printer)) = (pipe()?, pipe()?, pipe()?);
    let namespaces =
        Namespaces::USER | Namespaces::PID | Namespaces::MOUNT | Namespaces::UTS | Namespaces::IPC;
    let mut clone = process::Clone::new(namespaces);
    if let Some(birthplace) = &birthplace {
        clone = clone.into_cgroup(birthplace.as_fd());
    }
    let child = {
        let foreign = [go_write.as_fd(), words.as_fd(), printed.as_fd(), stdin.as_fd(), guard.host.as_fd()];
        let (go, control, output) = (&go_read, &control, printer.try_clone());
        let output = output.map_err(|e| Failure::step("make a pipe", &e))?;
        let job = &job;
        // The child has the original of the writing end as well, and closes it here.
        let printer = printer.as_fd();
        let foreign = [&foreign[..], &[printer]].concat();
        clone.spawn(move || inside::main(job, parts, Channels { go, control, output, foreign: &foreign }))?
    };
    let pid = child.pid();
    guard.child = Some(child);
    // Back to where the control groups can be seen, to count and remove.
    namespace::enter(&guard.host, Namespaces::MOUNT)?;
    drop((go_read, control, printer, stdin));
    namespace::map_ids(pid, IDS_FIRST, IDS)?;
    join(&doors, pid)?;
    go_write.write_all(b"g").map_err(|e| Failure::step("start pid 1", &e))?;

    let until = Instant::now() + Duration::from_millis(job.time_ms);
    let mut watch =
        Watch { job: &job, output, words, printed: Some(printed), heard: vec![], number: None, last: None };
    watch.follow(until)?;
    watch.verdict(&counters, &disk)
}

fn make_group(job: &Job) -> Result<Group, Failure> {
    let n_cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let limits = cgroup::Limits {
        cpu_milli: u32::try_from(n_cores).unwrap_or(1) * 1000,
        memory_bytes: job.memory,
        pids: job.pids,
    };
    let trees = Trees::detect(Choice::Auto)?;
    let group = trees.create(&job.group, &group_name(std::process::id()))?;
    group.limit(&trees, limits)?;
    Ok(group)
}

/// The group of the supervisor with this number. The dot keeps it apart from instances, whose names have none.
fn group_name(pid: u32) -> String {
    format!("build.{pid}")
}

/// Ends and removes the group that a supervisor left which ended without a word.
pub(super) fn sweep(parent: &str, pid: u32) -> Result<(), CallError> {
    let group = Trees::detect(Choice::Auto)?.group(parent, &group_name(pid));
    group.kill(KILL_PATIENCE)?;
    group.remove()
}

/// Moves this process into a network namespace with loopback alone. It belongs to the host's user namespace, so that no
/// process of the build can add to it.
fn make_network() -> Result<(), CallError> {
    namespace::unshare(Namespaces::NET)?;
    let inside = Netlink::open()?;
    inside.up(inside.index("lo")?)
}

fn join(doors: &[File], pid: i32) -> Result<(), Failure> {
    for mut door in doors {
        let joined = door.write_all(pid.to_string().as_bytes());
        joined.map_err(|e| Failure::step("join the control group", &e))?;
    }
    Ok(())
}

/// What the kernel counts of a build.
struct Counters {
    oom: Option<File>,
    pids: Option<File>,
}

/// A build that runs.
struct Watch<'a> {
    job: &'a Job,
    output: &'a mut Output,
    words: PipeReader,
    printed: Option<PipeReader>,
    /// The beginning of a word.
    heard: Vec<u8>,
    /// The command that runs.
    number: Option<usize>,
    last: Option<Word>,
}

fn show(line: String) {
    say(io::stderr(), &Report::Line(line));
}

impl Watch<'_> {
    /// Follows the build until pid 1 has ended and all that was printed is read.
    fn follow(&mut self, until: Instant) -> Result<(), Failure> {
        let mut until = until;
        let mut ended = false;
        while !ended || self.printed.is_some() {
            let now = Instant::now();
            if now >= until && !ended {
                self.output.end(now, &mut show);
                return Err(Failure::Limit { number: self.number, limit: Limit::Time });
            }
            if now >= until {
                break;
            }
            let wake = self.output.wake_at().map_or(until, |at| at.min(until));
            let (hung_up, word, printed) = self.wait(wake.saturating_duration_since(now), ended)?;
            if hung_up {
                return Err(Failure::broken("nobody waits for the build any more"));
            }
            if printed {
                self.read_output();
            }
            if word && !self.read_words()? {
                ended = true;
                until = Instant::now() + DRAIN_MAX;
            }
            self.output.tick(Instant::now(), &mut show);
        }
        self.output.end(Instant::now(), &mut show);
        Ok(())
    }

    /// Waits for the bake to hang up, for a word, or for output.
    fn wait(&self, time: Duration, ended: bool) -> Result<(bool, bool, bool), Failure> {
        let stdin = io::stdin();
        let mut fds = vec![PollFd::new(&stdin, PollFlags::empty())];
        // Each has its place, whether or not it is still waited for: then it stands for the bake's pipe once more.
        fds.push(if ended {
            PollFd::new(&stdin, PollFlags::empty())
        } else {
            PollFd::new(&self.words, PollFlags::IN)
        });
        if let Some(printed) = &self.printed {
            fds.push(PollFd::new(printed, PollFlags::IN));
        }
        let time = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) };
        match poll(&mut fds, Some(&time)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Failure::step("wait for the build", &error.into())),
        }
        let ready = |n: usize| fds.get(n).is_some_and(|fd| !fd.revents().is_empty());
        Ok((ready(0), !ended && ready(1), ready(2)))
    }

    fn read_output(&mut self) {
        let mut chunk = [0; CHUNK];
        let Some(pipe) = &mut self.printed else { return };
        match pipe.read(&mut chunk) {
            Ok(0) | Err(_) => self.printed = None,
            Ok(n) => self.output.push(&chunk[..n], Instant::now(), &mut show),
        }
    }

    /// False: no word will follow.
    fn read_words(&mut self) -> Result<bool, Failure> {
        let mut chunk = [0; CHUNK];
        let n = self.words.read(&mut chunk).map_err(|e| Failure::step("hear from pid 1", &e))?;
        self.heard.extend_from_slice(&chunk[..n]);
        while let Some(end) = self.heard.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.heard.drain(..=end).collect();
            let word = serde_json::from_slice(&line);
            match word.map_err(|e| Failure::broken(format!("pid 1 is not understood: {e}")))? {
                Word::Run(number) => {
                    self.number = Some(number);
                    let command = self.job.run.get(number).map_or("", |line| line.trim());
                    for (n, line) in command.lines().enumerate() {
                        let mark = if n == 0 { "$" } else { ">" };
                        self.output.note(&format!("{mark} {line}"), Instant::now(), &mut show);
                    }
                }
                word => self.last = Some(word),
            }
        }
        Ok(n > 0)
    }

    /// What became of it. A limit that was met explains a command that failed.
    fn verdict(&mut self, counters: &Counters, disk: &OwnedFd) -> Result<(), Failure> {
        let number = self.number;
        let failure = match self.last.take() {
            Some(Word::Done) => return Ok(()),
            Some(Word::Failed(failure)) => failure,
            Some(Word::Run(_)) | None => Failure::broken("pid 1 of the builder was killed"),
        };
        if !matches!(failure, Failure::Command { .. } | Failure::Sandbox { .. }) {
            return Err(failure);
        }
        let limit = |limit| Err(Failure::Limit { number, limit });
        if counters.oom.as_ref().is_some_and(|file| cgroup::oom_kills(file) > 0) {
            return limit(Limit::Memory);
        }
        if counters.pids.as_ref().is_some_and(|file| cgroup::refused_processes(file) > 0) {
            return limit(Limit::Pids);
        }
        let bytes = |s: rustix::fs::StatFs| s.f_bavail * s.f_bsize as u64;
        let free = rustix::fs::fstatfs(disk).map_or(u64::MAX, bytes);
        // The builder's disk is a file there, and grows as it is written.
        let host = rustix::fs::statfs(&self.job.disk_folder).map_or(u64::MAX, bytes);
        if host < HOST_BYTES_LEAST {
            return Err(Failure::Sandbox {
                text: "the builder's disk could not grow".into(),
                disk_full: true,
                may_pass: false,
            });
        }
        // A program that met the limit may have removed its files before it ended.
        let said_so = self.output.said().contains("No space left on device");
        if matches!(failure, Failure::Command { .. }) && (free < DISK_BYTES_LEAST || said_so) {
            return limit(Limit::Disk);
        }
        Err(failure)
    }
}
