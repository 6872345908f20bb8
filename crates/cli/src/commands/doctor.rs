//! `kiln doctor`: whether this host is able to run `kiln serve`, what is slower than it could be, and what mends it. What
//! can be tried is tried, in namespaces that vanish with the attempt; nothing of the host is changed, except that the
//! kernel loads modules for a trial as it would for kiln.
//!
//! | file | looks at |
//! |---|---|
//! | `kernel` | version, file systems, loop devices |
//! | `layers` | trials: how layers are mounted, owners, /proc |
//! | `groups` | control groups |
//! | `rights` | root, capabilities, containers |
//! | `limits` | what the kernel and the shell allow for 500 instances |
//! | `network` | bridges, the packet filter, forwarding, virtual machines |
//! | `place` | the state folder, the clock, git |
//! | `servers` | who leads, if a server answers |

mod groups;
mod kernel;
mod layers;
mod limits;
mod network;
mod place;
mod rights;
mod servers;

use super::serve::STATE_DEFAULT;
use crate::output::table;
use crate::{Context, Failure};
use clap::Args;
use kiln_api::Code;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Options of `kiln doctor`.
#[derive(Debug, Args)]
#[command(after_help = "The exit code is 1 if something is missing that kiln needs.

Examples:
  sudo kiln doctor
  sudo kiln doctor --state /srv/kiln --json")]
pub struct DoctorArgs {
    /// The folder that is to hold all state
    #[arg(long, value_name = "DIR", default_value = STATE_DEFAULT)]
    pub state: PathBuf,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    /// As it should be.
    Ok,
    /// kiln runs, but not at its best.
    Warning,
    /// kiln cannot run.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    /// What was looked at.
    name: &'static str,
    /// How bad it is.
    level: Level,
    /// What was seen.
    found: String,
    /// What helps, if something is amiss.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Finding {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, level: Level::Ok, found: found.into(), fix: None }
    }

    fn bad(name: &'static str, level: Level, found: impl Into<String>, fix: &str) -> Self {
        Self { name, level, found: found.into(), fix: Some(fix.to_owned()) }
    }
}

#[derive(Serialize)]
struct DoctorView {
    able: bool,
    findings: Vec<Finding>,
}

pub(crate) fn run(context: &Context<'_>, arguments: DoctorArgs) -> Result<(), Failure> {
    let mut findings = examine(&arguments.state);
    findings.extend(servers::findings(context));
    let missing: Vec<&str> = findings.iter().filter(|f| f.level == Level::Missing).map(|f| f.name).collect();
    let able = missing.is_empty();
    let message = format!("this host is not able to run `kiln serve`: {}", missing.join(", "));
    let view = DoctorView { able, findings };
    if able || !context.out().is_json() {
        context.out().answer(&view, || text(&view))?;
    }
    if able {
        return Ok(());
    }
    let fix = view.findings.iter().find(|f| f.level == Level::Missing).and_then(|f| f.fix.clone());
    Err(Failure::new(Code::HostUnable, message).hint(fix.unwrap_or_default()).document(&view))
}

fn text(view: &DoctorView) -> String {
    let row = |f: &Finding| {
        let level = match f.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Missing => "missing",
        };
        vec![level.to_owned(), f.name.to_owned(), f.found.clone()]
    };
    let rows: Vec<_> = view.findings.iter().map(row).collect();
    let mut text = table(&["", "WHAT", "FOUND"], &rows);
    for finding in &view.findings {
        if let Some(fix) = &finding.fix {
            text.push_str(&format!("to mend {}: {fix}\n", finding.name));
        }
    }
    if view.able {
        text.push_str("this host is able to run `kiln serve`\n");
    }
    text
}

/// The text of a file of the kernel's; empty if it cannot be read.
fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn examine(state: &Path) -> Vec<Finding> {
    let release = read("/proc/sys/kernel/osrelease").trim().to_owned();
    let status = read("/proc/self/status");
    let root = rights::is_root(&status);
    // Trials that make processes come first: they need that this one has a single thread.
    let trials = root.then(|| layers::Trials::make(state));
    let kernel = kernel::Kernel::of(&release);
    let mut findings =
        vec![kernel::machine(std::env::consts::ARCH), kernel.version(), rights::rights(&status)];
    findings.extend(rights::container());
    findings.extend(groups::examine());
    findings.extend(kernel.file_systems());
    findings.extend(layers::findings(trials, &kernel));
    findings.push(kernel.builds());
    findings.extend(limits::examine());
    findings.extend(network::examine(root, &kernel));
    findings.extend(place::examine(state));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_helps_is_told_below_the_table() {
        let finding = Finding::bad("loop devices", Level::Missing, "none", "`modprobe loop`");
        let view = DoctorView { able: false, findings: vec![finding] };
        assert!(text(&view).contains("to mend loop devices: `modprobe loop`"), "{}", text(&view));
    }
}
