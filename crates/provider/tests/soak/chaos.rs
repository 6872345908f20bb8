//! Starts and stops while servers, their helpers and pids 1 are killed. Other processes of the machine stand by; some of
//! them have numbers that records of dead instances name.

use crate::host::Host;
use crate::server::{self, Server, Sweeper, Wish};
use crate::setting;
use kiln_model::*;
use kiln_provider::Provider;
use kiln_provider::local::{self, Inventory, inventory};
use kiln_sys::process;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const BYSTANDERS: usize = 12;
/// Longer than any server lives without progress.
const PATIENCE: Duration = Duration::from_secs(120);
/// The most that a server lives undisturbed.
const LIFE_MS: u64 = 400;

/// Numbers from a seed (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let at = self.below(from.len().max(1) as u64) as usize;
        from.get(at).copied()
    }
}

/// Processes that have nothing to do with any instance.
struct Bystanders(Vec<Child>);

impl Bystanders {
    fn new() -> Self {
        Self((0..BYSTANDERS).map(|_| Self::one()).collect())
    }

    fn one() -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let command = command.args(["bystander", "x"]).stdin(Stdio::piped());
        command.stdout(Stdio::null()).spawn().unwrap()
    }

    /// One goes home, another one comes: numbers move on as on a busy host.
    fn recycle(&mut self, random: &mut Random) {
        let n = random.below(BYSTANDERS as u64) as usize;
        let mut old = std::mem::replace(&mut self.0[n], Self::one());
        assert_eq!(old.try_wait().unwrap(), None, "a bystander was killed");
        drop(old.stdin.take());
        assert!(old.wait().unwrap().success(), "a bystander was killed");
    }

    fn all_alive(&mut self) {
        for bystander in &mut self.0 {
            assert_eq!(bystander.try_wait().unwrap(), None, "a bystander was killed");
            // Nor was it stopped.
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", bystander.id())).unwrap();
            let state = stat.rsplit_once(") ").unwrap().1.chars().next().unwrap();
            assert!(matches!(state, 'S' | 'R'), "a bystander is in state {state}");
        }
    }

    fn end(self) {
        for mut bystander in self.0 {
            drop(bystander.stdin.take());
            bystander.wait().unwrap();
        }
    }
}

#[derive(Debug, Default)]
struct Kills {
    servers: u32,
    helpers: u32,
    shims: u32,
    stale: u32,
}

pub async fn starts_and_stops() {
    let (count, seed) = (setting("KILN_SOAK", 150), setting("KILN_SEED", 7));
    println!("  {count} starts and stops, KILN_SEED={seed}");
    let host = Host::new();
    let _sweeper = Sweeper(host.state());
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let wishes: Vec<_> = (1..=count).map(|n| an_instance(&host, n, &mut random)).collect();
    server::wish(host.state(), &wishes);
    let mut bystanders = Bystanders::new();
    let mut kills = Kills::default();
    let begun = Instant::now();
    let mut progress = (0, Instant::now());
    loop {
        let mut child = server::start(host.state());
        let is_done = disturb(&host, &mut child, &mut random, &mut bystanders, &mut kills).await;
        bystanders.all_alive();
        if is_done {
            break;
        }
        let gone = wishes.iter().filter(|(spec, _)| gone(&host, &spec.id)).count();
        if gone > progress.0 {
            progress = (gone, Instant::now());
        }
        assert!(progress.1.elapsed() < PATIENCE, "{gone} of {count} and no further; KILN_SEED={seed}");
    }
    println!("  killed in {:.1} s: {kills:?}", begun.elapsed().as_secs_f64());
    nothing_is_left(&host).await;
    every_exit_is_recorded(&host, &wishes);
    bystanders.all_alive();
    bystanders.end();
    // With few starts there is not time for all kinds of kills.
    if count >= 100 {
        assert!(kills.servers > 0 && kills.shims > 0 && kills.helpers > 0 && kills.stale > 0, "{kills:?}");
    }
}

fn an_instance(host: &Host, n: u64, random: &mut Random) -> (InstanceSpec, Wish) {
    let (command, wish): (&[&str], Wish) = match random.below(5) {
        0 => (&["probe", "print", "50", "7"], Wish::End),
        1 => (&["probe", "print", "5", "0"], Wish::Pass(random.below(30))),
        2 => (&["probe", "stubborn"], Wish::Pass(random.below(30))),
        3 => (&["probe", "serve", "8080"], Wish::Pass(random.below(60))),
        _ => (&["probe", "sleep"], Wish::Pass(0)),
    };
    let mut spec = host.spec(n, command);
    spec.stop.timeout = Millis(50);
    (spec, wish)
}

fn gone(host: &Host, id: &InstanceId) -> bool {
    local::instance_folder(host.state(), id).join("gone.json").exists()
}

/// Lets a server live for a while among kills. True: it came to its end by itself.
async fn disturb(
    host: &Host,
    server: &mut Server,
    random: &mut Random,
    bystanders: &mut Bystanders,
    kills: &mut Kills,
) -> bool {
    let end = Instant::now() + Duration::from_millis(20 + random.below(LIFE_MS));
    // One in five may go on for longer, so that it comes to what takes time; not the first ones, as on a fast machine all
    // would be over before a server was killed.
    let end = if random.below(5) == 0 && kills.servers >= 3 {
        end + 3 * Duration::from_millis(LIFE_MS)
    } else {
        end
    };
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(5 + random.below(40))).await;
        if let Some(status) = server.0.try_wait().unwrap() {
            assert!(status.success(), "a server failed: {status}");
            return true;
        }
        match random.below(6) {
            0 | 1 => kills.shims += u32::from(kill_shim(host, random)),
            2 | 3 => kills.helpers += u32::from(kill_helper(server.0.id() as i32, random)),
            _ => bystanders.recycle(random),
        }
    }
    server.0.kill().unwrap();
    let status = server.0.wait().unwrap();
    if status.code().is_some() {
        assert!(status.success(), "a server failed: {status}");
        return true;
    }
    kills.servers += 1;
    kills.stale += u32::from(leave_stale_record(host, bystanders, random));
    false
}

/// The records of instances that are not gone: file and content.
fn records(host: &Host) -> Vec<(PathBuf, serde_json::Value)> {
    let folders =
        std::fs::read_dir(host.state().join("instances")).into_iter().flatten().flatten().map(|e| e.path());
    let folders = folders.filter(|folder| !folder.join("gone.json").exists());
    let read = |path: PathBuf| Some((path.clone(), serde_json::from_slice(&std::fs::read(path).ok()?).ok()?));
    let mut all: Vec<_> = folders.filter_map(|folder| read(folder.join("process.json"))).collect();
    all.sort_by(|a: &(PathBuf, serde_json::Value), b| a.0.cmp(&b.0));
    all
}

fn process_of(record: &serde_json::Value) -> (i32, u64) {
    (record["pid"].as_i64().unwrap() as i32, record["started"].as_u64().unwrap())
}

/// Kills the pid 1 of an instance, if it still is that.
fn kill_shim(host: &Host, random: &mut Random) -> bool {
    let all: Vec<_> = records(host).iter().map(|(_, record)| process_of(record)).collect();
    let Some((pid, started)) = random.pick(&all) else { return false };
    process::open_same(pid, started)
        .is_some_and(|pidfd| process::signal(pidfd.as_fd(), libc::SIGKILL).is_ok())
}

/// Kills a pid 1 that lives and waits until it is gone.
fn end_shim(record: &serde_json::Value) {
    let (pid, started) = process_of(record);
    if let Some(pidfd) = process::open_same(pid, started) {
        // It may end by itself in between.
        let _ = process::signal(pidfd.as_fd(), libc::SIGKILL);
    }
    let end = Instant::now() + PATIENCE;
    while process::open_same(pid, started).is_some() {
        assert!(Instant::now() < end, "{record} does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Kills one of the processes that a server started, if it still is its child.
fn kill_helper(server: i32, random: &mut Random) -> bool {
    let path = format!("/proc/{server}/task");
    let threads = std::fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path().join("children"));
    let text: String = threads.map(|path| std::fs::read_to_string(path).unwrap_or_default()).collect();
    let pids: Vec<i32> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let Some(pid) = random.pick(&pids) else { return false };
    let Ok(pidfd) = process::open_pid(pid) else { return false };
    // The number may mean another one by now.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
    parent == Some(server) && process::signal(pidfd.as_fd(), libc::SIGKILL).is_ok()
}

/// What a record says when the number of a pid 1 that ended was given to another process: a bystander's number, and the
/// moment at which the dead one started. Only while no server runs. One dies for it if all live.
fn leave_stale_record(host: &Host, bystanders: &Bystanders, random: &mut Random) -> bool {
    let (mut dead, live): (Vec<_>, Vec<_>) = records(host).into_iter().partition(|(_, record)| {
        let (pid, started) = process_of(record);
        process::open_same(pid, started).is_none()
    });
    if dead.is_empty()
        && let Some(n) = random.pick(&(0..live.len()).collect::<Vec<_>>())
    {
        end_shim(&live[n].1);
        dead.push(live[n].clone());
    }
    let numbers: Vec<u32> = bystanders.0.iter().map(Child::id).collect();
    let (Some(n), Some(pid)) = (random.pick(&(0..dead.len()).collect::<Vec<_>>()), random.pick(&numbers))
    else {
        return false;
    };
    let (path, mut record) = dead[n].clone();
    record["pid"] = pid.into();
    std::fs::write(path, record.to_string()).unwrap();
    true
}

async fn nothing_is_left(host: &Host) {
    let provider = host.provider();
    assert_eq!(provider.list().await.unwrap(), []);
    drop(provider);
    let end = Instant::now() + PATIENCE;
    loop {
        let left = inventory(host.state());
        // Bridges, one for each thousand addresses that were used, and the parent of the groups in each tree; what a
        // provider keeps ready is no instance's.
        let links = kiln_sys::netlink::Netlink::open().and_then(|net| net.links()).unwrap();
        let n_bridges = links.iter().filter(|link| link.name.starts_with("kb")).count();
        let of_instances = left.processes + left.addresses + left.mounts + left.dirs;
        if of_instances == 0 && left.links <= n_bridges && left.cgroups <= 4 {
            break;
        }
        assert!(Instant::now() < end, "{left:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    local::sweep(host.state()).unwrap();
    assert_eq!(inventory(host.state()), Inventory::default());
    // What the inventory does not know of: processes that name the folder or have a file of it open.
    let inside = host.state().canonicalize().unwrap();
    loop {
        let users = users_of(&inside);
        if users.is_empty() {
            break;
        }
        assert!(Instant::now() < end, "{users:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Processes other than this one with the folder in their command line, or with an open file, root or directory in it.
fn users_of(folder: &Path) -> Vec<(i32, String)> {
    let name = folder.display().to_string();
    let own = std::process::id() as i32;
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str().and_then(|n| n.parse::<i32>().ok()));
    let uses = |pid: i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let links =
            std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().map(|e| e.path());
        let links = links.chain(["cwd", "root"].map(|link| PathBuf::from(format!("/proc/{pid}/{link}"))));
        let holds = links.filter_map(|link| std::fs::read_link(link).ok()).any(|to| to.starts_with(folder));
        (holds || line.contains(&name)).then_some((pid, line))
    };
    pids.filter(|pid| *pid != own).filter_map(uses).collect()
}

fn every_exit_is_recorded(host: &Host, wishes: &[(InstanceSpec, Wish)]) {
    let mut reasons = BTreeMap::<String, u32>::new();
    for (spec, _) in wishes {
        let folder = local::instance_folder(host.state(), &spec.id);
        assert!(folder.join("gone.json").exists(), "`{}` has no tombstone", spec.id);
        let exit = std::fs::read(folder.join("exit.json")).unwrap_or_default();
        let exit: serde_json::Value =
            serde_json::from_slice(&exit).unwrap_or_else(|error| panic!("`{}`: {error}", spec.id));
        let reason = exit["exit"].as_str().unwrap_or_else(|| panic!("`{}`: {exit}", spec.id));
        *reasons.entry(reason.to_owned()).or_default() += 1;
        let mut names: Vec<_> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| {
            !["exit.json", "gone.json", "out.0", "out.1", "spec.json"].contains(&name.as_str())
        });
        assert_eq!(names, [""; 0], "`{}`: files are left", spec.id);
    }
    println!("  every exit is recorded: {reasons:?}");
}
