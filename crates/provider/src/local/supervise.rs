//! `kiln internal supervise DIR`: makes one instance and ends. A process of its own because the server has threads,
//! must never be forked, and may be killed at any moment; from here to pid 1 every process has one thread.
//!
//! ```text
//! server ── posix_spawn ─▶ supervisor: cgroups, network, mounts
//!                             ├─ clone3 ─▶ pid 1 (shim.rs): waits for `go`, file system, program
//!                             ├─ id maps, joins cgroups, writes process.json durably
//!                             ├─ `go`
//!                             └─ passes on what pid 1 reports, and ends; pid 1 lives on
//! ```
//! The order matters: before `go` nothing of the image has run, and from process.json on a later server finds pid 1.

use super::folder::{EXIT, Folder, LOCK, OUT, PROCESS, Process, Record, SPEC, durable};
use super::order::{self, Failure, Order, Report};
use super::rootfs::Parts;
use super::subnet::{IDS_EACH, ids_of};
use super::{program, shim};
use kiln_sys::cgroup::{self, Group, Trees};
use kiln_sys::netlink::Netlink;
use kiln_sys::process::{self, Namespaces};
use kiln_sys::{CallError, namespace};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

/// An instance that cannot be made in this time is given up; the server tries again or destroys it.
const DEADLINE_SECONDS: u32 = 30;
/// The name of an instance's interface inside.
const INTERFACE: &str = "eth0";

/// The entry point; `args` are what follows `internal supervise`.
pub fn main(args: impl IntoIterator<Item = std::ffi::OsString>) -> ExitCode {
    let Some(directory) = args.into_iter().next() else { return ExitCode::from(64) };
    let report = match supervise(Path::new(&directory)) {
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

/// The files that pid 1 writes, opened before it exists.
pub(crate) struct Files {
    pub lock: File,
    pub out: [File; 2],
    pub exit: File,
    pub oom: Option<File>,
}

impl Files {
    pub(crate) fn open(directory: &Path) -> Result<Self, Failure> {
        let open = |name: &str| {
            let mut options = File::options();
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o640);
            options.write(true).create(true).truncate(true).open(directory.join(name))
        };
        let lock = open(LOCK).map_err(failed("open the lock"))?;
        // Kept by pid 1, so that it is held as long as anything of the instance lives.
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| Failure::io("lock the instance's folder", &e.into()))?;
        // The server that ordered this may be dead, and its successor may have gone on without it.
        if Folder::at(directory).is_spent() {
            let detail = "it was started, or ended, by another supervisor before this one came";
            return Err(Failure::retry("start the instance", detail));
        }
        let exit = open(EXIT).map_err(failed("open `exit.json`"))?;
        let out = [open(OUT[0]), open(OUT[1])];
        let [a, b] = out.map(|file| file.map_err(failed("open the black box")));
        Ok(Self { lock, out: [a?, b?], exit, oom: None })
    }
}

fn supervise(directory: &Path) -> Result<(), Failure> {
    process::end_after(DEADLINE_SECONDS);
    process::new_session()?;
    let (order, layers) = order::receive::<Order>(io::stdin())
        .map_err(failed("read the order"))?
        .ok_or_else(|| Failure::retry("read the order", "the server went away"))?;
    let mut files = Files::open(directory)?;
    let text = std::fs::read(directory.join(SPEC)).map_err(failed("read `spec.json`"))?;
    let record: Record = serde_json::from_slice(&text)
        .map_err(|error| Failure::permanent("read `spec.json`", error.to_string()))?;
    let user =
        program::user_of(&record.spec).map_err(|detail| Failure::permanent("find the user", detail))?;
    let program = program::Program::new(&record.spec.command, &record.spec.environment, user)
        .map_err(|detail| Failure::permanent("prepare the command", detail))?;
    let home = File::open(directory).map_err(failed("open the instance's folder"))?;

    let group = make_group(&order, &record)?;
    files.oom = group.oom_file()?;
    let (doors, birthplace) = (group.doors(false)?, group.birthplace()?);
    make_network(&order, &record)?;
    let parts = Parts::make(&record, &layers, &directory.to_string_lossy())?;
    drop(layers);

    let (go_read, go_write) = io::pipe().map_err(failed("make a pipe"))?;
    let (report_read, report_write) = order::pair().map_err(failed("make a socket"))?;
    let namespaces =
        Namespaces::USER | Namespaces::PID | Namespaces::MOUNT | Namespaces::UTS | Namespaces::IPC;
    let mut clone = process::Clone::new(namespaces).owned_by(ids_of(record.number));
    if let Some(birthplace) = &birthplace {
        clone = clone.into_cgroup(birthplace.as_fd());
    }
    let inside = shim::Inside { record: &record, user, program: &program };
    let child = {
        let (go, report) = (&go_read, &report_write);
        let (close_go, close_report) = (&go_write, &report_read);
        clone.spawn(move || {
            shim::main(inside, files, parts, go, report, &[close_go.as_fd(), close_report.as_fd()])
        })?
    };
    drop((go_read, report_write));
    let ready = (|| {
        namespace::map_ids(child.pid(), ids_of(record.number), IDS_EACH)?;
        join(&doors, child.pid())?;
        let started = process::start_time(child.pid())?;
        let boot = kiln_sys::clock::boot_id()?;
        durable(&home, PROCESS, &Process { pid: child.pid(), started, boot })
            .map_err(failed("write `process.json`"))
    })();
    if let Err(failure) = ready {
        child.kill_and_reap()?;
        return Err(failure);
    }
    process::end_never();
    let mut go_write = go_write;
    go_write.write_all(b"g").map_err(failed("start pid 1"))?;
    hear(&report_read)
}

/// What pid 1 reports once the program runs or could not be executed.
pub(crate) fn hear(socket: &OwnedFd) -> Result<(), Failure> {
    match order::receive::<Report>(socket).map_err(failed("hear from pid 1"))? {
        Some((Report::Started, _)) => Ok(()),
        Some((Report::Failed(failure), _)) => Err(failure),
        None => Err(Failure::retry("start the program", "pid 1 was killed")),
    }
}

fn make_group(order: &Order, record: &Record) -> Result<Group, Failure> {
    let choice = if order.cgroup_v1 { cgroup::Choice::V1 } else { cgroup::Choice::Auto };
    let resources = record.spec.resources;
    let limits = cgroup::Limits {
        cpu_milli: resources.cpu_milli,
        memory_bytes: resources.memory_bytes,
        pids: resources.pids,
    };
    Ok(Trees::detect(choice)?.create(&order.mark.cgroup(), record.spec.id.as_str(), limits)?)
}

pub(crate) fn join(doors: &[File], pid: i32) -> Result<(), Failure> {
    for mut door in doors {
        door.write_all(pid.to_string().as_bytes()).map_err(failed("join the cgroup"))?;
    }
    Ok(())
}

/// Moves this process into a new network namespace that is connected to the bridge and to nothing else. It belongs to
/// the host's user namespace, so that no process of the instance can ever change it.
fn make_network(order: &Order, record: &Record) -> Result<(), Failure> {
    let host = Netlink::open()?;
    let bridge = host.index(&order.mark.bridge())?;
    let name = order.mark.link(&record.spec.id);
    namespace::unshare(Namespaces::NET)?;
    let hardware = hardware_of(record.address);
    let port = host.veth(&name, bridge, INTERFACE, hardware, namespace::current_net()?)?;
    host.isolate(port)?;
    host.up(port)?;
    let inside = Netlink::open()?;
    inside.up(inside.index("lo")?)?;
    let link = inside.index(INTERFACE)?;
    // Every user may listen on every port, as there is no privileged user in there.
    sysctl("net/ipv4/ip_unprivileged_port_start", "0")?;
    // A host without IPv6 has no such file.
    let _ = sysctl(&format!("net/ipv6/conf/{INTERFACE}/disable_ipv6"), "1");
    inside.address(link, record.address, order.prefix)?;
    Ok(inside.up(link)?)
}

/// The hardware address that goes with an address, locally administered. It is the same whenever the address comes back:
/// whoever spoke to its last owner remembers it for up to a minute and would speak to nobody.
pub(crate) fn hardware_of(address: std::net::Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x69, a, b, c, d]
}

fn sysctl(name: &str, value: &str) -> Result<(), CallError> {
    use kiln_sys::Context;
    let path = format!("/proc/sys/{name}");
    std::fs::write(&path, value).context("write", path)
}

/// Waits for `go`. False: the supervisor is dead, and nobody would ever find this process again.
pub(crate) fn wait_for_go(mut pipe: &io::PipeReader) -> bool {
    let mut byte = [0];
    pipe.read_exact(&mut byte).is_ok()
}
