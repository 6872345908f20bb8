//! What the server does to start a machine, and to find out what runs it best.

use super::{Accelerator, Machine};
use crate::local::forced::Forced;
use crate::local::mark::Mark;
use crate::local::order::{self, Failure, Report};
use kiln_model::Millis;
use kiln_sys::process;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Instead of a folder: boot a guest without anything.
pub(super) const PROBE: &str = "--probe";
/// How long a probe may take until it is killed; it has a deadline of its own before that.
const PROBE_PATIENCE: Duration = Duration::from_secs(8);

/// To the supervisor of a machine. With it come the kernel, the initial RAM disk, the secrets if there are any, and the layers,
/// lowest first.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MachineOrder {
    pub mark: Mark,
    /// The bridge that its card is a port of.
    pub bridge: String,
    /// Bits of the network part of its addresses.
    pub prefix: u8,
    /// The bridge's address.
    pub gateway: Ipv4Addr,
    /// The content of /etc/hosts and of /etc/resolv.conf.
    pub hosts: String,
    pub resolver: String,
    pub forced: Forced,
    /// Which boot this is.
    pub boot: String,
    pub accelerator: Accelerator,
    /// How long the boot may take, with a whole processor.
    pub boot_max: Millis,
    pub has_secrets: bool,
}

/// Kernel and initial RAM disk, open. QEMU runs as nobody and has to be able to read them.
fn open(machine: &Machine) -> Result<[File; 2], Failure> {
    let open = |path: &Path| {
        let step = || format!("open `{}`", path.display());
        let file = File::open(path).map_err(|error| Failure::io(step(), &error))?;
        let mode = file.metadata().map_err(|error| Failure::io(step(), &error))?.permissions().mode();
        match mode & 0o004 {
            0 => Err(Failure::retry(step(), "QEMU's user may not read it; hint: `chmod o+r` it")),
            _ => Ok(file),
        }
    };
    Ok([open(&machine.kernel)?, open(&machine.initrd)?])
}

/// Starts `PROGRAM internal machine ARGUMENT` and gives it its order.
fn start(
    program: &Path,
    argument: &OsStr,
    order: &MachineOrder,
    files: &[File],
) -> io::Result<(Child, OwnedFd)> {
    let (ours, theirs) = kiln_sys::message::pair()?;
    let mut child = Command::new(program)
        .args([OsStr::new("internal"), OsStr::new("machine"), argument])
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let descriptors: Vec<_> = files.iter().map(File::as_fd).collect();
    let sent = order::send(&ours, order, &descriptors);
    if sent.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    sent.map(|()| (child, ours))
}

/// Starts the machine of the instance with this folder. Returns when its service runs, or will not.
pub(crate) fn launch(
    program: &Path,
    folder: &Path,
    order: &MachineOrder,
    machine: &Machine,
    secrets: Option<File>,
    layers: Vec<File>,
) -> Result<(), Failure> {
    let files: Vec<File> = open(machine)?.into_iter().chain(secrets).chain(layers).collect();
    let io = |step: &'static str| move |error: io::Error| Failure::io(step, &error);
    let (mut child, ours) =
        start(program, folder.as_os_str(), order, &files).map_err(io("start the supervisor"))?;
    let report = order::receive::<Report>(&ours).map_err(io("talk to the supervisor"));
    // It ends by itself; the watcher is not its to take along.
    let _ = child.wait();
    match report? {
        Some((Report::Started, _)) => Ok(()),
        Some((Report::Failed(failure), _)) => Err(failure),
        None => Err(Failure::retry("start the instance", "the supervisor was killed")),
    }
}

/// What runs machines on this host: the processor only if a machine has booted with its help. That `/dev/kvm` can be opened
/// proves nothing: in some nested hosts every guest hangs or is killed.
pub(crate) fn accelerator(program: &Path, order: MachineOrder, machine: &Machine) -> Accelerator {
    if !Path::new("/dev/kvm").exists() {
        return Accelerator::Emulation;
    }
    match boots(program, &MachineOrder { accelerator: Accelerator::Kvm, ..order }, machine) {
        true => Accelerator::Kvm,
        false => Accelerator::Emulation,
    }
}

fn boots(program: &Path, order: &MachineOrder, machine: &Machine) -> bool {
    let Ok(files) = open(machine) else { return false };
    let Ok((mut child, ours)) = start(program, OsStr::new(PROBE), order, &files) else { return false };
    let told = process::wait_readable(ours.as_fd(), Some(PROBE_PATIENCE)).unwrap_or(false);
    let report = if told { order::receive::<Report>(&ours).ok().flatten() } else { None };
    // What it started dies with it.
    let _ = child.kill();
    let _ = child.wait();
    matches!(report, Some((Report::Started, _)))
}
