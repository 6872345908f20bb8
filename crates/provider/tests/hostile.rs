//! The local provider against programs that mean harm, and against deaths at the worst moments. Needs root; skips
//! loudly otherwise. Everything happens in a network namespace of its own. `cargo test --test hostile -- NAME` runs
//! one case.

#[path = "local/host.rs"]
mod host;
#[macro_use]
#[path = "local/cases.rs"]
mod cases;
#[path = "local/stage.rs"]
mod stage;

use host::Host;
use kiln_model::frame::Stream;
use kiln_model::*;
use kiln_provider::conformance::{Behaviour, Subject, check, until, until_ready};
use kiln_provider::local::{self, Inventory, LocalConfig, LocalProvider, inventory};
use kiln_provider::{Provider, ProviderError};
use kiln_sys::netlink::Netlink;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// As the name of the program: the zygote sleeps before its first step.
const SLOW: &str = "slow";
const SLOW_TIME: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().collect();
    let word = |n: usize| args.get(n).and_then(|a| a.to_str()).unwrap_or("");
    match word(1) {
        "internal" if Path::new(word(0)).file_name().is_some_and(|name| name == SLOW) => {
            std::thread::sleep(SLOW_TIME);
        }
        "owners" => loop {
            kiln_sys::namespace::user_namespace(100_000, 65_536).unwrap();
        },
        "server" => return server(word(2).into(), word(3), word(4)),
        _ => {}
    }
    if let Some(status) = stage::play() {
        return status;
    }
    match stage::enter("the local provider's tests") {
        Some(wanted) => stage::run(all(&wanted)),
        None => ExitCode::SUCCESS,
    }
}

async fn all(wanted: &str) {
    let host = Host::new();
    cases! { wanted, &host;
        full_tmpfs inotify_is_its_own reopened_output
        stubborn_end thief
        noisy_daemon_of_a_check helper_killed
        helpers_killed_at_any_moment owner_killed server_killed_at_any_moment
        late_zygote_after_absent late_zygote_after_sweep zygote_stopped zygote_killed
        past_the_routing_table interface_of_another leftovers_of_a_burial
    }
    local::sweep(host.state()).unwrap();
    assert_eq!(inventory(host.state()), Inventory::default());
}

fn fence() -> Fence {
    Fence { incarnation: Incarnation(1), epoch: Epoch(9), revision: Revision(100), op: OpId(1) }
}

async fn ended(provider: &LocalProvider, id: &InstanceId) -> ExitReason {
    match until(provider, id, |state| matches!(state, SeenState::Exited(_))).await {
        SeenState::Exited(reason) => reason,
        other => panic!("{other:?}"),
    }
}

/// Waits for a condition on which no event can be waited for.
async fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The memory of an instance may be full of files when its program is killed: the rest of it must still be able to
/// tell.
async fn full_tmpfs(host: &Host) {
    let provider = host.provider();
    let cases = [
        ("fill", "/tmp/x"),
        ("fill", "/dev/shm/x"),
        ("fill", "/data/x"),
        ("fill-bravely", "/tmp/x"),
        ("fill-bravely", "/dev/shm/x"),
    ];
    for (sequence, (how, place)) in (1..).zip(cases) {
        let spec = host.spec(sequence, &["probe", how, place]);
        provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
        assert_eq!(ended(&provider, &spec.id).await, ExitReason::OutOfMemory, "{how} {place}");
        provider.absent(fence(), &spec.id).await.unwrap();
        let exit = local::instance_folder(host.state(), &spec.id).join("exit.json");
        let exit = std::fs::read_to_string(exit).unwrap();
        assert!(exit.contains("out_of_memory"), "{exit}");
        if how == "fill" {
            let last = host.printed(&spec.id, Stream::Supervisor).pop().unwrap();
            assert_eq!(last, ExitReason::OutOfMemory.to_string());
        }
    }
    host.nothing_is_left().await;
}

/// What the kernel counts per user is counted for the instance, not for the host's root.
async fn inotify_is_its_own(host: &Host) {
    let provider = host.provider();
    let spec = host.spec(10, &["probe", "inotify"]);
    provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
    wait_for("the program took all", || !host.printed(&spec.id, Stream::Out).is_empty()).await;
    println!("{:?}", host.printed(&spec.id, Stream::Out));
    let own = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC);
    assert!(own.is_ok(), "the host's root gets none: {own:?}");
    let other = host.spec(11, &["probe", "inotify"]);
    provider.ensure(fence(), &other, &NO_SECRETS).await.unwrap();
    wait_for("the other took all", || !host.printed(&other.id, Stream::Out).is_empty()).await;
    assert_eq!(host.printed(&spec.id, Stream::Out), host.printed(&other.id, Stream::Out));
    provider.absent(fence(), &spec.id).await.unwrap();
    provider.absent(fence(), &other.id).await.unwrap();
}

async fn reopened_output(host: &Host) {
    let provider = host.provider();
    let spec = host.spec(20, &["probe", "reopen"]);
    provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
    assert_eq!(ended(&provider, &spec.id).await, ExitReason::Status { code: 0 });
    assert_eq!(host.printed(&spec.id, Stream::Out), ["by name", "by name"]);
    assert_eq!(host.printed(&spec.id, Stream::Err), ["by name"]);
    provider.absent(fence(), &spec.id).await.unwrap();
}

/// A program that kiln itself had to kill ends with a reason, and with every line that it printed.
async fn stubborn_end(host: &Host) {
    let provider = host.provider();
    let spec = Subject::spec(&host, 30, Behaviour::Stubborn);
    provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
    wait_for("it prints", || !host.printed(&spec.id, Stream::Out).is_empty()).await;
    provider.absent(fence(), &spec.id).await.unwrap();
    let words = host.printed(&spec.id, Stream::Supervisor);
    assert_eq!(words[1..], ["stopping: signal 15", "not ended in time: killing it", "killed by signal 9"]);
    let exit = std::fs::read(local::instance_folder(host.state(), &spec.id).join("exit.json")).unwrap();
    let exit: serde_json::Value = serde_json::from_slice(&exit).unwrap();
    assert_eq!((&exit["exit"], &exit["signal"]), (&"signal".into(), &9.into()));
}

/// A program that reads its own output holds nobody up: it is asked to end, ends, and how is written down.
async fn thief(host: &Host) {
    let provider = host.provider();
    for sequence in 300..306 {
        let spec = host.spec(sequence, &["probe", "thief"]);
        provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        provider.absent(fence(), &spec.id).await.unwrap();
        let exit = std::fs::read(local::instance_folder(host.state(), &spec.id).join("exit.json")).unwrap();
        let exit: serde_json::Value = serde_json::from_slice(&exit).unwrap();
        assert_eq!((&exit["exit"], &exit["signal"]), (&"signal".into(), &15.into()), "{exit}");
    }
}

/// The program of a `command` check leaves nothing behind, and cannot keep the server busy.
async fn noisy_daemon_of_a_check(host: &Host) {
    let provider = host.provider();
    let spec = Subject::spec(&host, 40, Behaviour::Serve);
    provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
    until_ready(&provider, &spec.id, &check()).await;
    let before = inventory(host.state()).processes;
    for _ in 0..3 {
        let kind = CheckKind::Command { argv: vec!["probe".into(), "daemon".into()] };
        let check = Check { kind, timeout: Millis(5000) };
        let evidence = tokio::time::timeout(PATIENCE, provider.check(&spec.id, &check)).await;
        let evidence = evidence.expect("a check ends");
        assert!(evidence.passed, "{evidence:?}");
    }
    assert_eq!(inventory(host.state()).processes, before, "a check left processes");
    provider.absent(fence(), &spec.id).await.unwrap();
}

/// Processes of this host whose arguments start so.
fn running(arguments: &[&str]) -> Vec<i32> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str().and_then(|n| n.parse::<i32>().ok()));
    let is_it = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let own: Vec<&[u8]> = line.split(|b| *b == 0).skip(1).collect();
        own.len() >= arguments.len() && own.iter().zip(arguments).all(|(a, b)| *a == b.as_bytes())
    };
    pids.filter(is_it).collect()
}

fn parent_of(pid: i32) -> i32 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().nth(1).and_then(|f| f.parse().ok()).unwrap_or(0)
}

/// The program of a check dies with the helper that started it.
async fn helper_killed(host: &Host) {
    let provider = host.provider();
    let spec = Subject::spec(&host, 50, Behaviour::Serve);
    provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
    until_ready(&provider, &spec.id, &check()).await;
    let before = inventory(host.state()).processes;
    // Other tests on this host may run a program of the same name.
    let unique = format!("{}", host.state().display());
    let kind = CheckKind::Command { argv: vec!["probe".into(), "sleep".into(), unique.clone()] };
    let task = tokio::spawn({
        let (provider, id) = (provider.clone(), spec.id.clone());
        async move { provider.check(&id, &Check { kind, timeout: Millis(20_000) }).await }
    });
    wait_for("the program runs", || !running(&["sleep", &unique]).is_empty()).await;
    let own = std::process::id() as i32;
    let helper = running(&["internal", "exec"]).into_iter().find(|pid| parent_of(*pid) == own).unwrap();
    kiln_sys::process::signal_pid(helper, 9).unwrap();
    assert!(!task.await.unwrap().passed);
    wait_for("the program dies too", || inventory(host.state()).processes == before).await;
    provider.absent(fence(), &spec.id).await.unwrap();
}

/// The zygotes of a state folder, dead ones left out.
fn zygotes(host: &Host) -> Vec<i32> {
    let folder = host.state().canonicalize().unwrap().join("instances");
    let all = running(&["internal", "zygote", folder.to_str().unwrap()]);
    all.into_iter().filter(|pid| !is_shim(*pid)).collect()
}

fn is_shim(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "kiln-shim")
}

/// Kills the zygote and the shim at moments all over a start. Whatever comes of it, the instance can be removed, and
/// others can be started.
async fn helpers_killed_at_any_moment(host: &Host) {
    let mut ends = [0; 3];
    for n in 0..90u64 {
        let mut config = LocalConfig::new(host.state());
        config.program = std::env::current_exe().unwrap();
        // All of it happens on the spot, where it can be met.
        config.spare = local::Spare { sites: 2, slots: 0, fitted: 0 };
        let provider = LocalProvider::open(config).unwrap();
        let spec = host.spec(1000 + n, &["probe", "sleep"]);
        let task = std::thread::spawn({
            let (provider, spec, runtime) =
                (provider.clone(), spec.clone(), tokio::runtime::Handle::current());
            move || runtime.block_on(provider.ensure(fence(), &spec, &NO_SECRETS))
        });
        let begun = Instant::now();
        let is_for_shim = n % 2 == 1;
        let mut victims = vec![];
        while victims.is_empty() && begun.elapsed() < Duration::from_millis(300) {
            victims = match is_for_shim {
                false => zygotes(host),
                true => shims(host),
            };
        }
        match n {
            // However slow this machine is now, some are killed when all is done.
            84.. => wait_for("it ends", || task.is_finished()).await,
            _ => std::thread::sleep(Duration::from_micros(n * 60)),
        }
        for victim in victims {
            // It may have ended already.
            let _ = kiln_sys::process::signal_pid(victim, 9);
        }
        wait_for("ensure ends", || task.is_finished()).await;
        let ensured = task.join().unwrap();
        ends[match ensured {
            Ok(Seen { state: SeenState::Running, .. }) => 0,
            Ok(Seen { state: SeenState::Exited(ExitReason::Unknown), .. }) => 1,
            Err(ProviderError::Retry { .. }) => 2,
            other => panic!("{other:?}"),
        }] += 1;
        let absent = tokio::time::timeout(PATIENCE, provider.absent(fence(), &spec.id)).await;
        absent.expect("absent ends").unwrap();
        let after = host.spec(1500 + n, &["probe", "true"]);
        provider.ensure(fence(), &after, &NO_SECRETS).await.unwrap();
        assert_eq!(ended(&provider, &after.id).await, ExitReason::Status { code: 0 });
        provider.absent(fence(), &after.id).await.unwrap();
        host.nothing_is_left().await;
    }
    println!(
        "helpers killed: {} started all the same, {} ended, {} were given up",
        ends[0], ends[1], ends[2]
    );
    assert!(ends[0] > 0 && ends[2] > 0, "the moments are not all over its life");
}

/// The shims of a state folder: those of instances, and those that wait for one.
fn shims(host: &Host) -> Vec<i32> {
    let folder = host.state().canonicalize().unwrap().join("instances");
    running(&["internal", "zygote", folder.to_str().unwrap()])
        .into_iter()
        .filter(|pid| is_shim(*pid))
        .collect()
}

/// The helper that makes a user namespace for an idmap never outlives who asked for it.
async fn owner_killed(_: &Host) {
    for n in 0..20u64 {
        let mut owner = Command::new(std::env::current_exe().unwrap()).args(["owners", "x"]).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(3000 + n * 137));
        owner.kill().unwrap();
        owner.wait().unwrap();
    }
    // Each of them is dead before anybody could have asked it to die.
    wait_for("its helpers die", || running(&["owners", "x"]).is_empty()).await;
}

/// Kills the server at moments all over a start and a stop. The next one can finish either, and nothing is left.
async fn server_killed_at_any_moment(host: &Host) {
    let mut states = [0; 4];
    for n in 0..60u64 {
        let spec = host.spec(2000 + n, &["probe", "sleep"]);
        let mut server = server_command(host, &spec, &std::env::current_exe().unwrap()).spawn().unwrap();
        let folder = local::instance_folder(host.state(), &spec.id);
        let instances = folder.parent().unwrap().to_owned();
        let is_begun = || {
            std::fs::read_dir(&instances).is_ok_and(|mut entries| {
                entries.any(|e| e.is_ok_and(|e| e.file_name().to_string_lossy().starts_with(".spare-")))
            })
        };
        wait_for("it begins", || is_begun() || folder.exists()).await;
        match n {
            // However slow this machine is now, some are killed when it runs and some when all is done.
            54.. => wait_for("it is gone", || folder.join("gone.json").exists()).await,
            48.. => wait_for("it runs", || folder.join("process.json").exists()).await,
            _ => std::thread::sleep(Duration::from_micros(n * 400)),
        }
        server.kill().unwrap();
        server.wait().unwrap();
        let at =
            ["gone.json", "process.json", "spec.json"].iter().position(|name| folder.join(name).exists());
        states[at.unwrap_or(3)] += 1;
        if n % 3 == 2 {
            local::sweep(host.state()).unwrap();
            assert_eq!(inventory(host.state()), Inventory { dirs: 0, ..Inventory::default() });
        }
        let provider = host.provider();
        if n % 3 == 1 {
            match provider.ensure(fence(), &spec, &NO_SECRETS).await {
                // The server that died may have been stopping it.
                Ok(seen) => assert_ne!(seen.state, SeenState::Starting),
                Err(ProviderError::Tombstoned { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        provider.absent(fence(), &spec.id).await.unwrap();
        host.nothing_is_left().await;
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| {
            !["exit.json", "gone.json", "out.0", "out.1", "spec.json"].contains(&name.as_str())
        });
        assert_eq!(names, [""; 0], "files are left");
    }
    println!(
        "server killed: {} when gone, {} when it ran, {} before, {} with nothing",
        states[0], states[1], states[2], states[3]
    );
    assert!(states[0] > 0 && states[1] > 0 && states[2] + states[3] > 0, "the moments are not all over");
}

/// A server of its own that starts one instance and ends it, until it is killed.
fn server(state: std::path::PathBuf, spec: &str, program: &str) -> ExitCode {
    let spec: InstanceSpec = serde_json::from_str(spec).unwrap();
    let mut config = LocalConfig::new(state);
    config.program = program.into();
    stage::runtime().block_on(async {
        let provider = LocalProvider::open(config).unwrap();
        let _ = provider.ensure(fence(), &spec, &NO_SECRETS).await;
        let _ = provider.absent(fence(), &spec.id).await;
    });
    ExitCode::SUCCESS
}

fn server_command(host: &Host, spec: &InstanceSpec, program: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("server").arg(host.state()).arg(serde_json::to_string(spec).unwrap()).arg(program);
    command.stdin(Stdio::null());
    command
}

/// Has a server killed that just asked a zygote which has not done anything yet.
async fn order_and_die(host: &Host, spec: &InstanceSpec) {
    let slow = host.state().join(SLOW);
    let _ = std::os::unix::fs::symlink(std::env::current_exe().unwrap(), &slow);
    let mut server = server_command(host, spec, &slow).spawn().unwrap();
    wait_for("the zygote exists", || !zygotes(host).is_empty()).await;
    // It is asked right after that.
    tokio::time::sleep(SLOW_TIME / 4).await;
    server.kill().unwrap();
    server.wait().unwrap();
}

/// What was destroyed never runs again, also if a zygote that an earlier server asked comes late; nothing of it stays.
async fn late_zygote_after_absent(host: &Host) {
    let spec = host.spec(60, &["probe", "sleep"]);
    order_and_die(host, &spec).await;
    let late = zygotes(host);
    let provider = host.provider();
    provider.absent(fence(), &spec.id).await.unwrap();
    wait_for("the late zygote ends", || !zygotes(host).iter().any(|pid| late.contains(pid))).await;
    wait_for("what it cloned ends", || shims(host).iter().all(|shim| !late.contains(&parent_of(*shim))))
        .await;
    host.nothing_is_left().await;
}

async fn late_zygote_after_sweep(host: &Host) {
    let spec = host.spec(61, &["probe", "sleep"]);
    order_and_die(host, &spec).await;
    local::sweep(host.state()).unwrap();
    wait_for("the late zygote ends", || zygotes(host).is_empty()).await;
    wait_for("what it cloned ends", || shims(host).is_empty()).await;
    local::sweep(host.state()).unwrap();
    assert_eq!(inventory(host.state()), Inventory::default());
}

/// A zygote that does not answer is replaced; instances know nothing of it.
async fn zygote_stopped(host: &Host) {
    zygote_lost(host, 62, libc::SIGSTOP).await;
}

async fn zygote_killed(host: &Host) {
    zygote_lost(host, 64, libc::SIGKILL).await;
}

async fn zygote_lost(host: &Host, sequence: u64, signal: i32) {
    let mut config = LocalConfig::new(host.state());
    config.program = std::env::current_exe().unwrap();
    config.spare = local::Spare { sites: 1, slots: 0, fitted: 0 };
    let provider = LocalProvider::open(config).unwrap();
    let first = Subject::spec(&host, sequence, Behaviour::Serve);
    provider.ensure(fence(), &first, &NO_SECRETS).await.unwrap();
    until_ready(&provider, &first.id, &check()).await;
    let old = zygotes(host);
    kiln_sys::process::signal_pid(old[0], signal).unwrap();
    let second = Subject::spec(&host, sequence + 1, Behaviour::Serve);
    provider.ensure(fence(), &second, &NO_SECRETS).await.unwrap();
    for spec in [&first, &second] {
        until_ready(&provider, &spec.id, &check()).await;
        provider.absent(fence(), &spec.id).await.unwrap();
    }
    wait_for("the old zygote is gone", || !zygotes(host).contains(&old[0])).await;
    host.nothing_is_left().await;
}

/// A socket that is bound to the interface takes no heed of routes. Other instances and other networks stay out of reach.
async fn past_the_routing_table(host: &Host) {
    let provider = host.provider();
    let other = Subject::spec(&host, 70, Behaviour::Serve);
    let seen = provider.ensure(fence(), &other, &NO_SECRETS).await.unwrap();
    until_ready(&provider, &other.id, &check()).await;
    let address = format!("{}:8080", seen.address.unwrap());
    let spec = host.spec(71, &["probe", "reach", &address, "192.0.2.1:80"]);
    provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
    assert_eq!(ended(&provider, &spec.id).await, ExitReason::Status { code: 0 });
    let lines = host.printed(&spec.id, Stream::Out);
    assert!(lines.len() == 4 && lines.iter().all(|line| line.ends_with(": not reached")), "{lines:?}");
    provider.absent(fence(), &other.id).await.unwrap();
    provider.absent(fence(), &spec.id).await.unwrap();
}

/// An interface of another state folder, whose name looks like ours by chance, is not touched.
async fn interface_of_another(host: &Host) {
    let net = Netlink::open().unwrap();
    let provider = host.provider();
    provider.wait_until_ready();
    let links = net.links().unwrap();
    let own = links.iter().find(|link| link.name.starts_with("kb")).unwrap().index;
    let port = links.iter().find(|link| link.master == Some(own)).unwrap();
    let bridge = net.bridge("another", [2, 0, 0, 0, 0, 1]).unwrap();
    let name = format!("{}another", &port.name[..5]);
    net.veth(&name, bridge, "peer", [2, 0, 0, 0, 0, 2], kiln_sys::namespace::current_net().unwrap()).unwrap();
    drop(provider);
    drop(host.provider());
    local::sweep(host.state()).unwrap();
    assert_eq!(inventory(host.state()), Inventory::default());
    let link = net.find(&name).unwrap();
    assert_eq!(link.master, Some(bridge));
    net.delete(link.index).unwrap();
    net.delete(bridge).unwrap();
}

/// Files that a server left beside a tombstone when it was killed go with the next one.
async fn leftovers_of_a_burial(host: &Host) {
    let provider = host.provider();
    let spec = host.spec(90, &["probe", "sleep"]);
    provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
    provider.absent(fence(), &spec.id).await.unwrap();
    drop(provider);
    let folder = local::instance_folder(host.state(), &spec.id);
    for name in ["lock", "door", "process.json", "fence.json", ".gone.json.new"] {
        std::fs::write(folder.join(name), "x").unwrap();
    }
    drop(host.provider());
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["exit.json", "gone.json", "out.0", "out.1", "spec.json"]);
}
