//! Starts other runtimes where they work. crun 1.8 refuses a hybrid layout of control groups, so that they run in a mount
//! namespace in which its second version is out of sight; entering that one takes time, which is not theirs. A small
//! process enters it once, starts what it is told, and measures there.

use rustix::mount::UnmountFlags;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::Instant;

/// What became of some commands that were started together.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Milliseconds from the start of the first to the end of each.
    pub each: Vec<f64>,
    /// What those said that failed.
    pub errors: Vec<String>,
}

impl Answer {
    /// Milliseconds until all had ended.
    pub fn all(&self) -> f64 {
        self.each.iter().copied().fold(0.0, f64::max)
    }
}

/// The process that starts them.
pub struct Launcher {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Launcher {
    pub fn new() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("launcher")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (orders, answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, orders, answers }
    }

    /// Runs commands, all at once.
    pub fn run(&mut self, commands: &[Vec<String>]) -> Answer {
        let mut line = serde_json::to_vec(commands).unwrap();
        line.push(b'\n');
        self.orders.write_all(&line).unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    pub fn end(self) {
        let Self { mut child, orders, .. } = self;
        drop(orders);
        child.wait().unwrap();
    }
}

/// The launcher's own life: one line of commands, one line of answers.
pub fn main() -> ExitCode {
    kiln_sys::namespace::unshare(kiln_sys::process::Namespaces::MOUNT).unwrap();
    kiln_sys::mount::make_private().unwrap();
    // Not there on other layouts.
    let _ = rustix::mount::unmount("/sys/fs/cgroup/unified", UnmountFlags::DETACH);
    for line in std::io::stdin().lines() {
        let commands: Vec<Vec<String>> = serde_json::from_str(&line.unwrap()).unwrap();
        let begun = Instant::now();
        let children: Vec<Child> = commands.iter().map(|argv| spawn(argv)).collect();
        let mut answer = Answer { each: vec![], errors: vec![] };
        for child in children {
            let output = child.wait_with_output().unwrap();
            answer.each.push(begun.elapsed().as_secs_f64() * 1e3);
            if !output.status.success() {
                answer.errors.push(String::from_utf8_lossy(&output.stderr).trim().to_owned());
            }
        }
        println!("{}", serde_json::to_string(&answer).unwrap());
    }
    ExitCode::SUCCESS
}

fn spawn(argv: &[String]) -> Child {
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).stdin(Stdio::null()).stdout(Stdio::null());
    // A detached container keeps what it was given: a pipe would never end.
    let error = if argv.iter().any(|a| a == "--detach") { Stdio::null() } else { Stdio::piped() };
    command.stderr(error).spawn().unwrap()
}
