//! Checks of an instance, all from outside but `command`, which runs one more program in it.

use super::folder::Process;
use super::http;
use super::order::{self, ExecOrder, ExecReport};
use super::program;
use crate::vm;
use kiln_model::limits::EVIDENCE_BYTES_MAX;
use kiln_model::{Check, CheckKind, Evidence, InstanceSpec, Isolation, Millis, Wall};
use kiln_sys::cgroup::Group;
use kiln_sys::{mount, path, process};
use rustix::fs::{Gid, Uid};
use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes of a file in an instance that a check reads.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// What a helper may take beyond the time of the program that it runs.
const HELPER_GRACE: Duration = Duration::from_secs(2);

/// What a check needs to know of a running instance.
pub(super) struct Target {
    pub address: Ipv4Addr,
    pub process: Process,
    pub spec: InstanceSpec,
    pub group: Group,
    /// What the host calls the instance's user 0.
    pub ids: u32,
    pub program: PathBuf,
    /// Its folder.
    pub folder: PathBuf,
}

type Outcome = Result<String, String>;

/// Evidence of a check that took from `begun` until now.
pub(super) fn evidence(check: &Check, begun: Instant, outcome: Outcome) -> Evidence {
    let passed = outcome.is_ok();
    let mut detail = harmless(&outcome.unwrap_or_else(|detail| detail));
    if detail.len() > EVIDENCE_BYTES_MAX {
        detail.truncate(detail.floor_char_boundary(EVIDENCE_BYTES_MAX));
    }
    let took = Millis(begun.elapsed().as_millis() as u64);
    Evidence { check: check.kind.to_string(), passed, detail, took, at: Wall(kiln_sys::clock::wall_ms()) }
}

/// Text from an instance that is safe to print on a terminal: no control characters but line feeds and tabs, and none that
/// turn the direction of what follows around.
fn harmless(text: &str) -> String {
    let harms = |c: char| {
        c.is_control() && !matches!(c, '\n' | '\t')
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.replace(harms, "\u{fffd}")
}

/// Runs a check.
pub(super) async fn run(target: Target, check: &Check) -> Outcome {
    let limit = check.timeout.duration();
    let late = || format!("no answer in {}", check.timeout);
    match check.kind.clone() {
        CheckKind::Http { port, path, status, contains, host } => {
            let begun = Instant::now();
            let host = host.unwrap_or_else(|| target.address.to_string());
            let own = target.spec.proxy_protocol && target.spec.port == Some(port);
            let get = http::get((target.address, port).into(), &host, &path, own);
            let answer = tokio::time::timeout(limit, get).await.map_err(|_| late())?.map_err(text)?;
            judge(&answer, status, contains.as_deref(), begun.elapsed())
        }
        CheckKind::Tcp { port } => {
            let begun = Instant::now();
            let own = target.spec.proxy_protocol && target.spec.port == Some(port);
            let connect = http::connect((target.address, port).into(), own);
            tokio::time::timeout(limit, connect).await.map_err(|_| late())?.map_err(text)?;
            Ok(format!("connected in {} ms", begun.elapsed().as_millis()))
        }
        // What is to be seen inside of a machine is asked of the machine.
        kind if target.spec.confinement.isolation == Isolation::Vm => {
            let timeout = check.timeout;
            blocking(move || vm::ask::ask(&target.folder, kind, timeout)).await
        }
        CheckKind::File { path, contains } => {
            blocking(move || file(&target, &path, contains.as_deref())).await
        }
        CheckKind::Listening { port } => blocking(move || listening(&target, port)).await,
        CheckKind::Command { argv } => {
            let timeout = check.timeout;
            blocking(move || command(&target, argv, timeout)).await
        }
    }
}

async fn blocking(work: impl FnOnce() -> Outcome + Send + 'static) -> Outcome {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.to_string()))
}

fn text(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".into(),
        io::ErrorKind::ConnectionReset => "connection reset".into(),
        _ => error.to_string(),
    }
}

fn judge(answer: &http::Answer, status: Option<u16>, contains: Option<&str>, took: Duration) -> Outcome {
    let seen = format!("{} in {} ms", answer.status, took.as_millis());
    match status {
        Some(wanted) if answer.status != wanted => return Err(format!("{seen}, expected {wanted}")),
        None if !(200..400).contains(&answer.status) => return Err(format!("{seen}, expected 200 to 399")),
        _ => {}
    }
    match contains {
        Some(wanted) if !holds(&answer.body, wanted) => {
            Err(format!("{seen}, {} bytes without `{wanted}`", answer.body.len()))
        }
        _ => Ok(seen),
    }
}

fn holds(bytes: &[u8], wanted: &str) -> bool {
    wanted.is_empty() || bytes.windows(wanted.len()).any(|w| w == wanted.as_bytes())
}

/// Runs `look` while pid 1 is surely the one that was recorded.
fn with_process<T>(target: &Target, look: impl FnOnce(i32) -> Result<T, String>) -> Result<T, String> {
    let ended = || "the instance has ended".to_owned();
    let Process { pid, started, .. } = target.process;
    let pidfd = process::open_same(pid, started).ok_or_else(ended)?;
    let seen = look(pid);
    // If it is alive now, the number meant it all the time.
    match process::wait_readable(pidfd.as_fd(), Some(Duration::ZERO)) {
        Ok(false) => seen,
        _ => Err(ended()),
    }
}

fn file(target: &Target, name: &str, contains: Option<&str>) -> Outcome {
    with_process(target, |pid| {
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        let root = mount::directory(&root).map_err(|error| error.line())?;
        match contains {
            None => match path::kind_in_root(&root, name) {
                Ok(_) => Ok("exists".into()),
                Err(error) => Err(error.source.to_string()),
            },
            Some(wanted) => {
                let bytes =
                    path::read_in_root(&root, name, FILE_BYTES_MAX).map_err(|e| e.source.to_string())?;
                if holds(&bytes, wanted) {
                    return Ok(format!("contains `{wanted}`"));
                }
                Err(format!("{} bytes without `{wanted}`", bytes.len()))
            }
        }
    })
}

fn listening(target: &Target, port: u16) -> Outcome {
    with_process(target, |pid| {
        let found = ["tcp", "tcp6"].iter().any(|table| {
            let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
            text.lines().skip(1).any(|line| listens(line, port))
        });
        if found { Ok(format!("listens on {port}")) } else { Err(format!("nothing listens on {port}")) }
    })
}

/// Whether a line of `/proc/PID/net/tcp` is a socket in state 0A (listen) on `port`.
fn listens(line: &str, port: u16) -> bool {
    let mut fields = line.split_whitespace().skip(1);
    let local = fields.next().and_then(|f| f.rsplit_once(':')).map(|(_, p)| u16::from_str_radix(p, 16));
    local == Some(Ok(port)) && fields.nth(1) == Some("0A")
}

/// The group of one check's program. Whatever it started goes with it, also what left its process group.
struct Place(Group);

impl Place {
    fn new(group: &Group) -> Result<(Self, Vec<std::fs::File>), String> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        // A server before this one, with other numbers, may have left some.
        let name = format!("check-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let (group, doors) = group.nest(&name).map_err(|error| error.line())?;
        Ok((Self(group), doors))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What cannot be killed now goes with the instance.
        if self.0.kill(HELPER_GRACE).is_ok_and(|is_empty| is_empty) {
            let _ = self.0.remove();
        }
    }
}

fn command(target: &Target, argv: Vec<String>, timeout: Millis) -> Outcome {
    let user = program::user_of(&target.spec)?;
    let (environment, search) = program::environment_of(&target.spec);
    let capabilities = program::mask_of(target.spec.confinement.capabilities.iter().copied());
    let order = ExecOrder { argv, environment, search, user, capabilities, timeout };
    let (ours, theirs) = kiln_sys::message::pair().map_err(|e| e.to_string())?;
    let (mut out_read, out_write) = io::pipe().map_err(|e| e.to_string())?;
    let pidfd =
        process::open_same(target.process.pid, target.process.started).ok_or("the instance has ended")?;
    // Where the program may write by name as well, it owns what it writes to.
    rustix::fs::fchown(
        &out_write,
        Some(Uid::from_raw(target.ids + user.0)),
        Some(Gid::from_raw(target.ids + user.1)),
    )
    .map_err(|e| e.to_string())?;
    let (place, doors) = Place::new(&target.group)?;
    let mut child = {
        let mut command = Command::new(&target.program);
        command.args(["internal", "exec"]).env_clear().stdin(Stdio::from(theirs));
        command.stdout(Stdio::from(out_write.try_clone().map_err(|e| e.to_string())?));
        command.stderr(Stdio::from(out_write));
        command.spawn().map_err(|e| e.to_string())?
    };
    let mut with = vec![pidfd.as_fd()];
    with.extend(doors.iter().map(AsFd::as_fd));
    let sent = order::send(&ours, &order, &with);
    let (report, tail) = match sent {
        Ok(()) => listen(&ours, &mut out_read, Instant::now() + timeout.duration() + HELPER_GRACE),
        Err(error) => (Err(error.to_string()), vec![]),
    };
    let _ = child.kill();
    let _ = child.wait();
    drop(place);
    let tail = String::from_utf8_lossy(&tail);
    let tail = tail.trim();
    let with_tail = |text: String| if tail.is_empty() { text } else { format!("{text}: {tail}") };
    match report? {
        ExecReport::Status(0) => Ok(with_tail("status 0".into())),
        ExecReport::Status(code) => Err(with_tail(format!("status {code}"))),
        ExecReport::Signal(signal) => Err(with_tail(format!("killed by signal {signal}"))),
        ExecReport::TimedOut => Err(with_tail(format!("did not end in {timeout}"))),
        ExecReport::NotStarted(error) => Err(error),
    }
}

/// Reads the program's output until the helper reports, and keeps the last of it. What the program left behind may go on
/// printing: after the report no more is read than a pipe holds.
fn listen(
    socket: &std::os::fd::OwnedFd,
    output: &mut io::PipeReader,
    end: Instant,
) -> (Result<ExecReport, String>, Vec<u8>) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    const TAIL_BYTES: usize = EVIDENCE_BYTES_MAX / 2;
    const PIPE_BYTES: usize = 64 * 1024;
    let mut tail = vec![];
    let mut open = true;
    let mut report = None;
    let mut rest = PIPE_BYTES;
    loop {
        // After the report only what is there already is read.
        let left = match report {
            Some(_) => Duration::ZERO,
            None => end.saturating_duration_since(Instant::now()),
        };
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let (said, printed) = {
            let mut fds = vec![PollFd::new(socket, PollFlags::IN)];
            if open {
                fds.push(PollFd::new(&*output, PollFlags::IN));
            }
            let n = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&left))).unwrap_or(0);
            if report.is_none() && (n == 0 || Instant::now() > end) {
                return (Err("the helper did not answer".into()), tail);
            }
            (!fds[0].revents().is_empty(), fds.get(1).is_some_and(|fd| !fd.revents().is_empty()))
        };
        if printed && rest > 0 {
            let mut chunk = [0; 8192];
            match output.read(&mut chunk) {
                Ok(0) | Err(_) => open = false,
                Ok(n) => {
                    tail.extend(&chunk[..n]);
                    rest -= if report.is_some() { n.min(rest) } else { 0 };
                }
            }
            let excess = tail.len().saturating_sub(TAIL_BYTES);
            tail.drain(..excess);
        } else if let Some(report) = report.take() {
            return (report, tail);
        }
        if said && report.is_none() {
            report = Some(match order::receive::<ExecReport>(socket) {
                Ok(Some((report, _))) => Ok(report),
                Ok(None) => Err("the helper was killed".to_owned()),
                Err(error) => Err(error.to_string()),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_an_instance_moves_no_cursor() {
        assert_eq!(harmless("a\tb\nc \u{1f525}"), "a\tb\nc \u{1f525}");
        let hostile = "\x1b[2J\r\x07\x7f\u{9b}\u{202e}\u{2066}\0";
        assert_eq!(harmless(hostile), "\u{fffd}[2J\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}");
    }

    #[test]
    fn only_a_listening_socket_on_the_port_counts() {
        let line =
            "   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1";
        assert!(listens(line, 8080));
        assert!(!listens(line, 80));
        assert!(!listens(&line.replace(" 0A ", " 01 "), 8080));
    }
}
