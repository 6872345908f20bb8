//! Runs one program in the sandbox with a deadline, an empty environment and its output kept.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// Bytes of output that are kept of one program; the last ones.
const OUTPUT_BYTES_MAX: usize = 16 * 1024;

/// A program did not do its work.
#[derive(Debug, thiserror::Error)]
pub(super) enum ScriptError {
    /// It cannot be started.
    #[error("cannot start `{program}`")]
    Start {
        program: String,
        #[source]
        source: std::io::Error,
    },
    /// It ended with another status than 0.
    #[error("`{program}` failed ({status})")]
    Failed { program: String, status: String, output: String },
    /// It took longer than it may.
    #[error("`{program}` did not end within {seconds} s")]
    Deadline { program: String, seconds: u64 },
}

/// How programs run: what is the same for all of them.
pub(super) struct Runner {
    /// `SOURCE_DATE_EPOCH`.
    pub epoch: i64,
    /// Seconds that one program may take.
    pub seconds_max: u64,
}

impl Runner {
    /// Runs `argv` with `variables` besides the fixed ones.
    ///
    /// On a missed deadline the program still runs: the caller has to end, which ends the pid namespace.
    pub fn run(&self, argv: &[&str], variables: &[(&str, &str)]) -> Result<(), ScriptError> {
        let program = argv.join(" ");
        let start = |source| ScriptError::Start { program: program.clone(), source };
        let (mut reader, writer) = std::io::pipe().map_err(start)?;
        let mut command = Command::new(argv.first().copied().unwrap_or_default());
        command
            .args(argv.iter().skip(1))
            .env_clear()
            .envs(FIXED_ENVIRONMENT.iter().copied())
            .env("SOURCE_DATE_EPOCH", self.epoch.to_string())
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(writer.try_clone().map_err(start)?)
            .stderr(writer);
        let mut child = command.spawn().map_err(start)?;
        // The command holds the write ends; without this the output would never end.
        drop(command);
        let output = std::thread::spawn(move || tail(&mut reader));
        let (ended, end) = mpsc::channel();
        std::thread::spawn(move || ended.send(child.wait()));
        let Ok(status) = end.recv_timeout(Duration::from_secs(self.seconds_max)) else {
            return Err(ScriptError::Deadline { program, seconds: self.seconds_max });
        };
        let status = status.map_err(start)?;
        if status.success() {
            // A daemon that a script left behind may hold the pipe open, so the output is not waited for.
            return Ok(());
        }
        let output = output.join().unwrap_or_default();
        Err(ScriptError::Failed { program, status: status.to_string(), output })
    }
}

/// Everything that could differ between two hosts, or between two runs, is pinned.
const FIXED_ENVIRONMENT: &[(&str, &str)] = &[
    ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("LC_ALL", "C.UTF-8"),
    ("TZ", "UTC"),
    ("TERM", "dumb"),
    ("DEBIAN_FRONTEND", "noninteractive"),
    ("DEBCONF_NONINTERACTIVE_SEEN", "true"),
    ("DEBCONF_NOWARNINGS", "yes"),
    ("DPKG_ROOT", ""),
    ("PERL_HASH_SEED", "0"),
    ("PERL_PERTURB_KEYS", "0"),
    ("PYTHONHASHSEED", "0"),
];

/// The last part of what `reader` gives.
fn tail(reader: &mut impl Read) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0_u8; 4096];
    while let Ok(n) = reader.read(&mut buffer) {
        if n == 0 {
            break;
        }
        kept.extend_from_slice(&buffer[..n]);
        if kept.len() > 2 * OUTPUT_BYTES_MAX {
            kept.drain(..kept.len() - OUTPUT_BYTES_MAX);
        }
    }
    let start = kept.len().saturating_sub(OUTPUT_BYTES_MAX);
    String::from_utf8_lossy(&kept[start..]).into_owned()
}
