//! Instances that take all they can get. Another instance keeps answering, the host keeps working, what they take is
//! counted as theirs, and what the kernel has one of for all does not run out.

use crate::world::{World, number, wait_for};
use kiln_model::frame::{Frame, Stream};
use kiln_model::*;
use kiln_provider::conformance::{Behaviour, Subject, check, until_ready};
use kiln_provider::{Provider, local};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long each bomb goes on.
const FUSE_MS: u64 = 1_200;
/// How late the other instance may answer beside a bomb, on a machine that has other work, too.
const ANSWER_MS: u64 = 5_000;
/// Kernel memory that may be counted for nobody: the machine has other work, too.
const SLACK_BYTES: u64 = 400 << 20;
/// What the kernel forces upon a group that is full, to get on with ending something: the FIN of a TCP connection, pages
/// of a process that it is killing (`__GFP_NOFAIL` in `sk_forced_mem_schedule`, net/ipv4/tcp_output.c).
const FORCED_BYTES: u64 = 1 << 20;

/// An instance that answers, for comparison.
async fn victim(world: &World) -> InstanceSpec {
    let mut spec = Subject::spec(&&world.host, 0, Behaviour::Serve);
    spec.id = world.spec(&[]).id;
    world.start(&spec).await;
    until_ready(&world.provider, &spec.id, &check()).await;
    spec
}

async fn answers(world: &World, id: &InstanceId) -> Duration {
    let begun = Instant::now();
    let kind =
        CheckKind::Http { port: 8080, path: "/".into(), status: Some(200), contains: None, host: None };
    let evidence = world.look(id, kind, ANSWER_MS).await;
    assert!(evidence.passed, "the other instance does not answer: {evidence:?}");
    begun.elapsed()
}

/// The files of an instance's memory group: most that it used, and its limit.
struct Memory {
    most: PathBuf,
    limit: PathBuf,
    bytes: (u64, u64),
}

impl Memory {
    /// The group that the kernel has for pid 1, now. A moment after its end it would say the root's.
    fn of(world: &World, id: &InstanceId) -> Self {
        let path = group(world.pid_1(id)).unwrap();
        let path = path.strip_prefix("/").unwrap().to_owned();
        assert!(path.components().count() > 1, "{} is no group of an instance", path.display());
        let legacy = PathBuf::from("/sys/fs/cgroup/memory").join(&path);
        let (group, names) = match legacy.parent().is_some_and(|parent| parent.exists()) {
            true => (legacy, ["memory.max_usage_in_bytes", "memory.limit_in_bytes"]),
            false => (PathBuf::from("/sys/fs/cgroup").join(path), ["memory.peak", "memory.max"]),
        };
        let [most, limit] = names.map(|name| group.join(name));
        Self { most, limit, bytes: (0, 0) }
    }

    fn look(&mut self) {
        self.bytes = (number(&self.most).max(self.bytes.0), number(&self.limit).max(self.bytes.1));
    }
}

/// The path of a process's memory group in its tree.
fn group(pid: i32) -> Option<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let find = |controller: &str| {
        text.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (names, path) = rest.split_once(':')?;
            names.split(',').any(|name| name == controller).then(|| path.into())
        })
    };
    find("memory").or_else(|| find(""))
}

/// Bytes of the host's memory in a line of `/proc/meminfo`.
fn host_memory(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap_or("");
    line.trim_start_matches(':').split_whitespace().next().map_or(0, |w| w.parse::<u64>().unwrap() << 10)
}

/// Bytes of all TCP buffers of the host.
fn tcp_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/net/sockstat").unwrap();
    let line = text.lines().find(|l| l.starts_with("TCP:")).unwrap();
    line.split_whitespace().last().unwrap().parse::<u64>().unwrap() * 4096
}

pub async fn nothing_runs_out(world: &World) {
    let other = victim(world).await;
    let kinds = [
        "fork",
        "thread",
        "memory",
        "descriptor",
        "inode",
        "directory",
        "pipe",
        "unix",
        "tcp",
        "shm",
        "sysv",
        "mq",
        "timer",
        "inotify",
        "epoll",
        "lock",
        "aio",
        "terminal",
        "spin",
    ];
    let before = (host_memory("SUnreclaim"), tcp_memory(), number("/proc/sys/fs/aio-nr"));
    for kind in kinds {
        let fuse = FUSE_MS.to_string();
        let spec = world.spec(&["hostile", "bomb", kind, &fuse]);
        let limit = spec.resources.memory_bytes;
        world.start(&spec).await;
        let begun = Instant::now();
        let mut memory = Memory::of(world, &spec.id);
        let (mut slowest, mut tcp, mut slab, mut aio) = (Duration::ZERO, 0, 0, 0);
        while begun.elapsed() < Duration::from_millis(FUSE_MS) {
            slowest = slowest.max(answers(world, &other.id).await);
            memory.look();
            tcp = tcp.max(tcp_memory());
            slab = slab.max(host_memory("SUnreclaim"));
            aio = aio.max(number("/proc/sys/fs/aio-nr"));
            // The host can still make processes, files, sockets and watches.
            assert!(std::process::Command::new("/bin/true").status().unwrap().success());
            assert!(tempfile::tempfile().is_ok() && std::os::unix::net::UnixStream::pair().is_ok());
            assert!(rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC).is_ok());
        }
        memory.look();
        let most = memory.bytes;
        let text = world.host.printed(&spec.id, Stream::Out).join(", ");
        world.remove(&spec.id).await;
        println!(
            "  {kind}: {text}; {} of {} MiB; the other answered within {} ms",
            most.0 >> 20,
            most.1 >> 20,
            slowest.as_millis()
        );
        let bounded = most.0 <= limit + FORCED_BYTES && most.1 == limit;
        assert!(most.0 > 0 && bounded, "{kind} took {most:?} of {limit}");
        // What is received is forced upon a group that has room for the socket no more, and others have sockets, too.
        assert!(tcp < before.1 + 3 * limit, "{kind}: {} MiB of TCP buffers of the host", tcp >> 20);
        assert!(
            slab < before.0 + SLACK_BYTES,
            "{kind}: {} MiB of the kernel's memory",
            (slab - before.0) >> 20
        );
        assert!(aio <= before.2, "{kind}: {aio} of the host's requests for asynchronous I/O");
        answers(world, &other.id).await;
    }
    world.remove(&other.id).await;
}

/// A file system in memory has an end to its files as well, one that its memory limit could pay for.
pub async fn inodes_are_limited(world: &World) {
    let spec = world.spec(&["probe", "sleep"]);
    world.start(&spec).await;
    let root = PathBuf::from(format!("/proc/{}/root", world.pid_1(&spec.id)));
    for place in ["tmp", "run", "dev/shm", "data", "run/deep/er"] {
        let files = rustix::fs::statvfs(root.join(place)).unwrap().f_files;
        let limit = spec.resources.memory_bytes / 512;
        assert!(files > 1000 && files <= limit, "/{place} may have {files} files, expected at most {limit}");
    }
    world.remove(&spec.id).await;
}

/// The kernel has one list of hardware addresses for all namespaces. New instances can still be reached while one fills
/// it. Others on this machine have it, too: for half a second.
pub async fn neighbours_run_out(world: &World) {
    let spec = world.spec(&["hostile", "bomb", "neighbour", "500"]);
    world.start(&spec).await;
    world.printed(&spec.id, "exploding").await;
    let other = victim(world).await;
    answers(world, &other.id).await;
    world.remove(&spec.id).await;
    world.remove(&other.id).await;
}

/// Output faster than any disk: what is kept is bounded, and what is not is counted.
pub async fn log_flood(world: &World) {
    let other = victim(world).await;
    let mut spec = world.spec(&["hostile", "bomb", "log", "2500"]);
    spec.resources.cpu_milli = 2000;
    world.start(&spec).await;
    let folder = local::instance_folder(world.host.state(), &spec.id);
    let size = || {
        ["out.0", "out.1"]
            .map(|f| std::fs::metadata(folder.join(f)).map_or(0, |m| m.len()))
            .iter()
            .sum::<u64>()
    };
    let (mut largest, mut slowest) = (0, Duration::ZERO);
    while world
        .provider
        .list()
        .await
        .unwrap()
        .iter()
        .any(|s| s.id == spec.id && s.state == SeenState::Running)
    {
        slowest = slowest.max(answers(world, &other.id).await);
        largest = largest.max(size());
    }
    wait_for("it ends", || folder.join("exit.json").metadata().is_ok_and(|m| m.len() > 0)).await;
    assert_eq!(world.ended(&spec.id).await, ExitReason::Status { code: 0 });
    assert!(largest <= kiln_model::limits::SPOOL_BYTES_MAX, "{largest} bytes");
    let mut frames = vec![];
    for name in ["out.0", "out.1"] {
        let bytes = std::fs::read(folder.join(name)).unwrap();
        let mut rest = &bytes[..];
        while let Some((frame, n)) = Frame::decode(rest) {
            frames.push(frame);
            rest = &rest[n..];
        }
        assert!(rest.is_empty(), "a damaged frame");
    }
    frames.sort_by_key(|frame| frame.sequence);
    let last = frames.last().unwrap();
    // One line more than the program printed that are its own words, and those of pid 1.
    let said: u64 = frames
        .iter()
        .rev()
        .find_map(|f| String::from_utf8_lossy(&f.line).strip_prefix("took ").and_then(|n| n.parse().ok()))
        .unwrap();
    let printed = said + 5;
    println!(
        "  {said} lines of 100 bytes in 2.5 s, {} kept, {} dropped, {} MiB at most; the other answered within {} ms",
        frames.len(),
        last.dropped,
        largest >> 20,
        slowest.as_millis()
    );
    assert!(last.dropped > 0, "this machine is too slow to flood anything");
    assert_eq!(frames.len() as u64 + last.dropped, printed);
    world.remove(&spec.id).await;
    world.remove(&other.id).await;
}
