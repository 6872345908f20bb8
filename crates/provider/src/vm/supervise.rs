//! `kiln internal machine DIR`: makes one machine and ends; the watcher that it leaves behind looks after it. The order of the
//! steps is that of `internal supervise`: before `go` nothing runs that a later server could not find.
//!
//! `kiln internal machine --probe` boots a guest without anything and says whether it did.

use super::child::{Machine, Qemu};
use super::guest::Guest;
use super::jail::Jail;
use super::launch::{MachineOrder, PROBE};
use super::qemu::{self, Shape};
use super::watch::{Given, Outcome, Watch};
use super::{QEMU_BYTES, QEMU_PIDS, ask, guest_memory, records};
use crate::local::blackbox::{BlackBox, greeting};
use crate::local::folder::{PROCESS, Process, Record, SPEC, durable};
use crate::local::network::hardware_of;
use crate::local::order::{self, Failure, Report};
use crate::local::subnet::{IDS_EACH, ids_of};
use crate::local::supervise::{Files, hear, join, wait_for_go};
use crate::local::{blackbox, program, shim, wire};
use kiln_model::ExitReason;
use kiln_sys::cgroup::{self, Group, Trees};
use kiln_sys::netlink::Netlink;
use kiln_sys::process::{self, Namespaces};
use kiln_sys::wire::{FRAME_BYTES_MAX, FromGuest};
use kiln_sys::{namespace, tap};
use std::fs::File;
use std::io::{self, PipeReader, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// A machine that cannot be made in this time is given up. Its guest's boot has a deadline of its own.
const DEADLINE_SECONDS: u32 = 30;
/// A guest that is not there in this time with the processor's help will never be: it takes half a second.
const PROBE_MAX: Duration = Duration::from_secs(3);
const PROBE_SECONDS: u32 = 10;
const PROBE_BYTES: u64 = 128 << 20;

/// The entry point; `args` are what follows `internal machine`.
pub fn main(args: impl IntoIterator<Item = std::ffi::OsString>) -> ExitCode {
    let Some(directory) = args.into_iter().next() else { return ExitCode::from(64) };
    let done = if directory == PROBE { probe() } else { supervise(Path::new(&directory)) };
    let report = match done {
        Ok(()) => Report::Started,
        Err(failure) => Report::Failed(failure),
    };
    match order::send(io::stdin(), &report, &[]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(2),
    }
}

fn failed(step: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::io(step, &error)
}

/// Kernel, initial RAM disk, the secrets, and the layers, lowest first.
type Disks = (File, File, Option<File>, Vec<OwnedFd>);

fn receive() -> Result<(MachineOrder, Disks), Failure> {
    let step = "read the order";
    let (order, descriptors) = order::receive::<MachineOrder>(io::stdin())
        .map_err(failed(step))?
        .ok_or_else(|| Failure::retry(step, "the server went away"))?;
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().ok_or_else(|| Failure::permanent(step, "a file is missing"));
    let (kernel, initrd) = (next()?.into(), next()?.into());
    let secrets = if order.has_secrets { Some(next()?.into()) } else { None };
    Ok((order, (kernel, initrd, secrets, descriptors.collect())))
}

fn find_program() -> Result<&'static str, Failure> {
    let detail =
        || format!("this host has no `qemu-system-x86_64`; hint: `apt-get install {}`", qemu::PACKAGE);
    qemu::program().ok_or_else(|| Failure::permanent("start the machine", detail()))
}

fn read_record(directory: &Path) -> Result<Record, Failure> {
    let text = std::fs::read(directory.join(SPEC)).map_err(failed("read `spec.json`"))?;
    serde_json::from_slice(&text).map_err(|error| Failure::permanent("read `spec.json`", error.to_string()))
}

fn supervise(directory: &Path) -> Result<(), Failure> {
    process::end_after(DEADLINE_SECONDS);
    process::new_session()?;
    let (order, (kernel, initrd, secrets, layers)) = receive()?;
    let mut files = Files::open(directory)?;
    let record = read_record(directory)?;
    let user =
        program::user_of(&record.spec).map_err(|detail| Failure::permanent("find the user", detail))?;
    // Refuses what no program can be started with.
    refuse_unfit(&record)?;
    let records = records::of(&record, user, &order);
    if records.len() > FRAME_BYTES_MAX {
        return Err(Failure::permanent("prepare the command", "it is too long, with its environment"));
    }
    let program = find_program()?;
    let home: OwnedFd = File::open(directory).map_err(failed("open the instance's folder"))?.into();
    let desk = ask::listen(&home).map_err(failed("listen for checks"))?;
    let group = make_group(&order, &record)?;
    files.oom = group.oom_file()?;
    let (doors, birthplace) = (group.doors(false)?, group.birthplace()?);
    let card = make_network(&order, &record)?;
    let (port, theirs) = UnixStream::pair().map_err(failed("make a socket"))?;
    let shape = Shape {
        accelerator: order.accelerator,
        memory_bytes: guest_memory(record.spec.resources.memory_bytes),
        cpu_milli: record.spec.resources.cpu_milli,
        port: theirs.as_raw_fd(),
        layers: layers.iter().map(AsRawFd::as_raw_fd).collect(),
        card: Some((card.as_raw_fd(), hardware_of(record.address))),
        tsc_khz: tsc_khz(),
    };
    let machine = Machine {
        arguments: qemu::arguments(program, &shape),
        inherited: [theirs.into(), card].into_iter().chain(layers).collect(),
        port,
        console: io::pipe().map_err(failed("make a pipe"))?,
        jail: Jail::make(&kernel, &initrd, order.accelerator, &directory.to_string_lossy())?,
    };
    drop((kernel, initrd));
    let boot_max = order.boot_max.duration();
    let (oom, secrets) = (files.oom.take(), secrets.into());
    let given = Given { record: &record, records, secrets, desk, oom, boot_max };
    let (go_read, mut go_write) = io::pipe().map_err(failed("make a pipe"))?;
    let (report_read, report_write) = kiln_sys::message::pair().map_err(failed("make a socket"))?;
    let child = {
        let foreign = [go_write.as_fd(), report_read.as_fd(), home.as_fd()];
        let clone = isolated(ids_of(record.number), birthplace.as_ref());
        let go = &go_read;
        let report = &report_write;
        let given = &given;
        clone.spawn(move || life(files, machine, given, go, report, &foreign))?
    };
    drop((go_read, report_write));
    let ready = (|| {
        namespace::map_ids(child.pid(), ids_of(record.number), IDS_EACH)?;
        join(&doors, child.pid())?;
        let started = process::start_time(child.pid())?;
        let process = Process { pid: child.pid(), started, boot: order.boot.clone() };
        durable(&home, PROCESS, &process).map_err(failed("write `process.json`"))
    })();
    if let Err(failure) = ready {
        child.kill_and_reap()?;
        return Err(failure);
    }
    process::end_never();
    go_write.write_all(b"g").map_err(failed("start the watcher"))?;
    hear(&report_read)
}

fn refuse_unfit(record: &Record) -> Result<(), Failure> {
    let unfit = |detail: &str| Failure::permanent("prepare the command", detail);
    if record.spec.command.first().is_none_or(String::is_empty) {
        return Err(unfit("the command is empty"));
    }
    let (variables, _) = program::environment_of(&record.spec);
    let words = record.spec.command.iter().chain(&variables).map(String::as_str);
    wire::words(words).map(drop).map_err(|_| unfit("a NUL byte in the command or its environment"))
}

/// A child in namespaces of its own. The network namespace is this process's.
fn isolated(owner: u32, birthplace: Option<&OwnedFd>) -> process::Clone<'_> {
    let namespaces =
        Namespaces::USER | Namespaces::PID | Namespaces::MOUNT | Namespaces::UTS | Namespaces::IPC;
    let clone = process::Clone::new(namespaces).owned_by(owner);
    match birthplace {
        Some(birthplace) => clone.into_cgroup(birthplace.as_fd()),
        None => clone,
    }
}

fn tsc_khz() -> Option<u64> {
    qemu::tsc_khz(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

fn make_group(order: &MachineOrder, record: &Record) -> Result<Group, Failure> {
    let resources = record.spec.resources;
    let limits = cgroup::Limits {
        cpu_milli: resources.cpu_milli,
        memory_bytes: guest_memory(resources.memory_bytes) + QEMU_BYTES,
        pids: QEMU_PIDS,
    };
    let trees = Trees::detect(order.forced.cgroups)?;
    let group = trees.create(&order.mark.cgroup(), record.group())?;
    group.limit(&trees, limits)?;
    Ok(group)
}

/// Makes the machine's network card, whose other end is an isolated port of the bridge, and moves this process into a network
/// namespace without anything.
fn make_network(order: &MachineOrder, record: &Record) -> Result<OwnedFd, Failure> {
    let host = Netlink::open()?;
    let bridge = host.index(&order.bridge)?;
    let name = record.link(&order.mark);
    let card = tap::make(&name).map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV => {
            let detail = format!("{}; hint: `modprobe tun`", error.line());
            Failure::retry("make the network card", detail)
        }
        _ => error.into(),
    })?;
    let port = host.index(&name)?;
    host.enslave(port, bridge)?;
    host.isolate(port)?;
    host.up(port)?;
    namespace::unshare(Namespaces::NET)?;
    Ok(card)
}

/// The life of the watcher. The status is seen by nobody; `exit.json` is.
fn life(
    files: Files,
    machine: Machine,
    given: &Given<'_>,
    go: &PipeReader,
    report: &OwnedFd,
    foreign: &[BorrowedFd<'_>],
) -> i32 {
    process::end_never();
    if process::close_here(foreign).is_err() || !wait_for_go(go) {
        return 1;
    }
    let Files { lock, out, exit, .. } = files;
    let mut spool = BlackBox::new(out, blackbox::room());
    spool.note(&greeting(&given.record.spec.id, &given.record.spec.command));
    let started = {
        let [first, second] = spool.files();
        let mut keep = vec![lock.as_fd(), exit.as_fd(), report.as_fd(), given.desk.as_fd()];
        keep.extend([first.as_fd(), second.as_fd()]);
        keep.extend(given.oom.as_ref().map(|file| file.as_fd()));
        let secrets = given.secrets.borrow();
        keep.extend(secrets.as_ref().map(|file| file.as_fd()));
        Qemu::start(machine, &keep)
    };
    let watched = started.and_then(|started| {
        let watch = Watch::new(started, given, report, &mut spool).map_err(failed("watch the machine"))?;
        Ok(watch.run())
    });
    let outcome = watched.unwrap_or_else(Outcome::Failed);
    let (reason, told) = match outcome {
        Outcome::Ended(reason) => (Some(reason), Report::Started),
        Outcome::NotStarted(error) => (Some(ExitReason::NotStarted { error }), Report::Started),
        Outcome::Failed(failure) => {
            let error = format!("{}: {}", failure.step, failure.detail);
            (failure.permanent.then_some(ExitReason::NotStarted { error }), Report::Failed(failure))
        }
    };
    if let Some(reason) = reason {
        shim::end(&mut spool, &exit, &reason);
    }
    // Whoever was told that it started is gone, and hears this no more.
    let _ = order::send(report, &told, &[]);
    0
}

/// Boots a guest and waits for its first word.
fn probe() -> Result<(), Failure> {
    let step = "boot a machine to try it";
    process::end_after(PROBE_SECONDS);
    process::new_session()?;
    let (order, (kernel, initrd, ..)) = receive()?;
    let program = find_program()?;
    let (port, theirs) = UnixStream::pair().map_err(failed(step))?;
    let shape = Shape {
        accelerator: order.accelerator,
        memory_bytes: PROBE_BYTES,
        cpu_milli: 1000,
        port: theirs.as_raw_fd(),
        layers: vec![],
        card: None,
        tsc_khz: tsc_khz(),
    };
    namespace::unshare(Namespaces::NET)?;
    let machine = Machine {
        arguments: qemu::arguments(program, &shape),
        inherited: vec![theirs.into()],
        port,
        console: io::pipe().map_err(failed(step))?,
        jail: Jail::make(&kernel, &initrd, order.accelerator, "/usr")?,
    };
    let (go_read, mut go_write) = io::pipe().map_err(failed(step))?;
    // No instance has these ids: number 0 is the network's.
    let child = isolated(ids_of(0), None).spawn(|| {
        let has_come = wait_for_go(&go_read)
            && Qemu::start(machine, &[])
                .is_ok_and(|(_qemu, port, _)| process::die_with_parent().is_ok() && says_hello(port));
        i32::from(!has_come)
    })?;
    namespace::map_ids(child.pid(), ids_of(0), IDS_EACH)?;
    go_write.write_all(b"g").map_err(failed(step))?;
    match child.wait(None)? {
        Some(process::Ended::Status(0)) => Ok(()),
        _ => Err(Failure::retry(step, "it did not come up")),
    }
}

fn says_hello(port: UnixStream) -> bool {
    let until = Instant::now() + PROBE_MAX;
    let Ok(mut guest) = Guest::new(port) else { return false };
    loop {
        match guest.heard() {
            Ok(None) => {}
            Ok(Some(word)) => return word == FromGuest::Hello,
            Err(_) => return false,
        }
        let Some((fd, _)) = guest.port() else { return false };
        let left = until.saturating_duration_since(Instant::now());
        if !process::wait_readable(fd, Some(left)).unwrap_or(false) || !guest.read() {
            return false;
        }
    }
}
