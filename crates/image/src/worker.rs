//! A bake runs in a process of its own with limits and a deadline, because it decodes what others wrote.
//! The job comes as JSON on its stdin; it answers with one `Message` a line on its stdout.

use crate::bake::{BakeJob, Baked, bake};
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long one image may take, downloads included, beside what its build may take.
pub const DEADLINE: Duration = Duration::from_secs(20 * 60);
/// Bytes of address space of a worker.
const ADDRESS_SPACE_MAX: u64 = 16 << 30;
/// Bytes of a job.
const JOB_BYTES_MAX: u64 = 64 << 20;
/// Bytes of one answer: a statement names every package of the lock.
const LINE_BYTES_MAX: u64 = 16 << 20;

/// What a worker says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    Progress(String),
    Done(Baked),
    Failed(WorkerError),
}

/// A bake that failed, as it is told to users and to the planner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct WorkerError {
    /// The failure with its causes.
    pub text: String,
    /// What helps.
    pub hint: Option<String>,
    /// Whether it may work when it is tried again as it is.
    pub may_pass: bool,
}

/// Plays the worker: `kiln internal bake`.
pub fn main() -> ExitCode {
    let result = kiln_sys::process::die_with_parent().map_err(|e| e.line()).and_then(|()| read_job());
    let result = match result {
        Ok(job) => bake(&job, &mut |text| say(&Message::Progress(text))).map_err(|error| WorkerError {
            text: chain(&error),
            hint: error.hint(),
            may_pass: error.may_pass(),
        }),
        Err(text) => Err(WorkerError { text, hint: None, may_pass: false }),
    };
    match result {
        Ok(baked) => say(&Message::Done(baked)),
        Err(error) => say(&Message::Failed(error)),
    }
    ExitCode::SUCCESS
}

fn read_job() -> Result<BakeJob, String> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // The hard limit of address space stays: compilers in a builder reserve more than they use.
    let reserved = getrlimit(Resource::As).maximum;
    for (resource, limit, maximum) in
        [(Resource::As, ADDRESS_SPACE_MAX, reserved), (Resource::Core, 0, Some(0))]
    {
        let limit = Rlimit { current: Some(maximum.map_or(limit, |m| m.min(limit))), maximum };
        setrlimit(resource, limit).map_err(|e| format!("cannot limit the worker: {e}"))?;
    }
    let mut bytes = Vec::new();
    std::io::stdin().take(JOB_BYTES_MAX).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    serde_json::from_slice(&bytes).map_err(|e| format!("the job is not understood: {e}"))
}

/// One line. If nobody listens any more, the worker is about to be ended anyway.
fn say(message: &Message) {
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    let _ = std::io::stdout().write_all(&line);
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Hands on what the worker says until it ends or says something that is no message.
fn forward(stdout: Option<std::process::ChildStdout>, sender: &mpsc::Sender<Message>) -> Option<()> {
    let mut reader = BufReader::new(stdout?);
    loop {
        let mut line = Vec::new();
        reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).ok().filter(|n| *n > 0)?;
        sender.send(serde_json::from_slice(&line).ok()?).ok()?;
    }
}

/// Time between two looks whether anybody still wants the image.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Has a worker of its own bake one image; blocks until it is done, and at most [`DEADLINE`], or until `abandoned` says that
/// nobody wants it any more. `program` is started as `PROGRAM internal bake`.
pub fn run(
    program: &Path,
    job: &BakeJob,
    abandoned: &dyn Fn() -> bool,
    progress: &mut dyn FnMut(String),
) -> Result<Baked, WorkerError> {
    let failed = |text: String| WorkerError { text, hint: None, may_pass: true };
    let bytes = serde_json::to_vec(job).map_err(|e| failed(e.to_string()))?;
    let mut child = Command::new(program)
        .args(["internal", "bake"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| failed(format!("cannot start the bake worker: {e}")))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    std::thread::spawn(move || {
        // A worker that ended early is noticed below.
        stdin.map(|mut stdin| stdin.write_all(&bytes))
    });
    let (sender, messages) = mpsc::channel();
    std::thread::spawn(move || forward(stdout, &sender));
    let build = job.recipe.build.as_ref().map(|build| build.time.duration());
    let limit = DEADLINE + build.unwrap_or_default();
    let deadline = Instant::now() + limit;
    let result = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match messages.recv_timeout(left.min(LOOK_EVERY)) {
            Ok(Message::Progress(text)) => progress(text),
            Ok(Message::Done(baked)) => break Ok(baked),
            Ok(Message::Failed(error)) => break Err(error),
            Err(mpsc::RecvTimeoutError::Timeout) if abandoned() => {
                break Err(failed(format!("image `{}`: nobody wants it any more", job.recipe.name)));
            }
            Err(mpsc::RecvTimeoutError::Timeout) if left > LOOK_EVERY => {}
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let seconds = limit.as_secs();
                let text = format!("image `{}`: the bake did not end within {seconds} s", job.recipe.name);
                break Err(WorkerError { text, hint: None, may_pass: false });
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break Err(failed(String::new())),
        }
    };
    if result.is_err() {
        // It has said all; or it is late, or has crashed, and there is nothing to lose.
        let _ = child.kill();
    }
    let status = child.wait().map_err(|e| failed(format!("cannot wait for the bake worker: {e}")))?;
    result.map_err(|error| match error.text.is_empty() {
        true => failed(format!("the worker that bakes image `{}` ended: {status}", job.recipe.name)),
        false => error,
    })
}
