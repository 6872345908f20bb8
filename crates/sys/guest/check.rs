//! What a host wants to know of its instance from inside. The words of the answers are those of a sandbox's checks.

use crate::call;
use crate::host::Host;
use crate::instance::{Group, Service};
use crate::place::ROOT;
use crate::wire::{ANSWER_BYTES_MAX, FromGuest, QUESTIONS_MAX, Question};
use std::fs::{self, File};
use std::io::{Read, pipe};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Bytes of a file that a check reads.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Bytes of a command's output that are told.
const TAIL_BYTES: usize = ANSWER_BYTES_MAX / 2;
static RUNNING: AtomicUsize = AtomicUsize::new(0);

type Outcome = Result<String, String>;

/// Answers a question, in a thread of its own.
pub fn answer(host: &Host, service: &Arc<Service>, number: u32, timeout: Duration, question: Question) {
    let tell = {
        let host = host.clone();
        move |outcome: Outcome| {
            let passed = outcome.is_ok();
            let mut detail = outcome.unwrap_or_else(|detail| detail);
            if detail.len() > ANSWER_BYTES_MAX {
                detail.truncate(detail.floor_char_boundary(ANSWER_BYTES_MAX));
            }
            host.say(&FromGuest::Answer { number, passed, detail });
        }
    };
    if RUNNING.fetch_add(1, Ordering::SeqCst) >= QUESTIONS_MAX {
        RUNNING.fetch_sub(1, Ordering::SeqCst);
        return tell(Err("too many checks at the same time".into()));
    }
    let service = service.clone();
    let work = move || {
        let outcome = match question {
            Question::File { path, contains } => file(&path, contains.as_deref()),
            Question::Listening(port) => listening(port),
            Question::Command(argv) => command(&service, number, &argv, timeout),
        };
        RUNNING.fetch_sub(1, Ordering::SeqCst);
        tell(outcome);
    };
    // Without a thread there is no answer, and the host's time-out says so.
    let _ = std::thread::Builder::new().spawn(work);
}

fn file(path: &str, contains: Option<&str>) -> Outcome {
    let text = |error: std::io::Error| error.to_string();
    let root = call::open_directory(ROOT).map_err(text)?;
    let Some(wanted) = contains else {
        return call::open_below(&root, path, call::O_PATH).map(|_| "exists".into()).map_err(text);
    };
    // Neither a pipe nor a device can hold this up.
    let found = call::open_below(&root, path, call::O_NONBLOCK).map_err(text)?;
    if !found.metadata().map_err(text)?.is_file() {
        return Err("it is no regular file".into());
    }
    let mut bytes = vec![];
    found.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(text)?;
    match wanted.is_empty() || bytes.windows(wanted.len()).any(|window| window == wanted.as_bytes()) {
        true => Ok(format!("contains `{wanted}`")),
        false => Err(format!("{} bytes without `{wanted}`", bytes.len())),
    }
}

fn listening(port: u16) -> Outcome {
    let found = ["tcp", "tcp6"].iter().any(|table| {
        let text = fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
        text.lines().skip(1).any(|line| listens(line, port))
    });
    if found { Ok(format!("listens on {port}")) } else { Err(format!("nothing listens on {port}")) }
}

/// Whether a line of /proc/net/tcp is a socket in state 0A (listen) on `port`.
fn listens(line: &str, port: u16) -> bool {
    let mut fields = line.split_whitespace().skip(1);
    let local = fields.next().and_then(|f| f.rsplit_once(':')).map(|(_, p)| u16::from_str_radix(p, 16));
    local == Some(Ok(port)) && fields.nth(1) == Some("0A")
}

/// Runs one more program beside the service. Whatever it started goes with it.
fn command(service: &Service, number: u32, argv: &[String], timeout: Duration) -> Outcome {
    let group = service.group(&format!("check-{number}")).map_err(|error| error.to_string())?;
    let outcome = run(service, &group, argv, timeout);
    group.remove();
    outcome
}

fn run(service: &Service, group: &Group, argv: &[String], timeout: Duration) -> Outcome {
    let text = |error: std::io::Error| error.to_string();
    let (mut output, printed) = pipe().map_err(text)?;
    service.owns(&printed).map_err(text)?;
    let input = File::open("/dev/null").map_err(text)?;
    let pid = service.start(argv, group, [&input, &printed, &printed])?;
    drop(printed);
    let tail = std::thread::spawn(move || {
        let (mut tail, mut chunk) = (vec![], [0; 8192]);
        while let Ok(count @ 1..) = output.read(&mut chunk) {
            tail.extend_from_slice(&chunk[..count]);
            tail.drain(..tail.len().saturating_sub(TAIL_BYTES));
        }
        tail
    });
    let status = service.children.wait(pid, Some(timeout));
    if status.is_none() {
        service.children.signal(pid, 9);
        service.children.forget(pid);
    }
    // What it left behind may go on printing: with its group it goes, and the pipe ends.
    group.kill();
    let tail = tail.join().unwrap_or_default();
    let tail = String::from_utf8_lossy(&tail);
    let tail = tail.trim();
    let with_tail = |text: String| if tail.is_empty() { text } else { format!("{text}: {tail}") };
    match status {
        Some(0) => Ok(with_tail("status 0".into())),
        Some(raw) if raw & 0x7f == 0 => Err(with_tail(format!("status {}", raw >> 8 & 0xff))),
        Some(raw) => Err(with_tail(format!("killed by signal {}", raw & 0x7f))),
        None => Err(with_tail(format!("did not end in {} ms", timeout.as_millis()))),
    }
}
