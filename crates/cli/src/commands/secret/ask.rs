//! Reads a value from the terminal without showing it. The terminal is put back whatever happens, also after an interruption:
//! it is read key by key, so that Ctrl-C comes as a key.

use crate::Failure;
use kiln_api::Code;
use kiln_model::{SecretValue, limits};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::io::{Read, Stdin, Write, stderr, stdin};

const INTERRUPT: u8 = 3;
const END: u8 = 4;
const DELETE: [u8; 2] = [8, 127];

/// The terminal as it was, which it becomes again.
struct Quiet {
    terminal: Stdin,
    before: Termios,
}

impl Quiet {
    fn start() -> rustix::io::Result<Self> {
        let terminal = stdin();
        let before = tcgetattr(&terminal)?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        // What was typed before it was asked for is not the answer.
        tcsetattr(&terminal, OptionalActions::Flush, &quiet)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
        let _ = writeln!(stderr());
    }
}

/// What is typed until the end of the line. None: interrupted.
pub(super) fn value(prompt: &str) -> Result<Option<SecretValue>, Failure> {
    let unreadable = |error: std::io::Error| {
        Failure::new(Code::File, format!("the terminal cannot be read: {error}"))
            .hint("give the value on stdin")
    };
    let quiet = Quiet::start().map_err(|error| unreadable(error.into()))?;
    let _ = write!(stderr(), "{prompt}");
    // Wiped when dropped, and never moved while it grows.
    let mut typed = Vec::with_capacity(limits::SECRET_BYTES_MAX + 2);
    let mut key = [0];
    let interrupted = loop {
        match quiet.terminal.lock().read(&mut key) {
            Ok(0) => break false,
            Ok(_) => match key[0] {
                INTERRUPT => break true,
                b'\n' | b'\r' | END => break false,
                key if DELETE.contains(&key) => drop(typed.pop()),
                _ if typed.len() > limits::SECRET_BYTES_MAX => {}
                key => typed.push(key),
            },
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    };
    let value = SecretValue::new(typed);
    Ok((!interrupted).then_some(value))
}
