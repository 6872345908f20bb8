//! Virtual machines on a real kernel: the contract of every provider, and what is theirs alone. Needs root, QEMU and Debian's
//! kernel in target/machine; skips loudly without root. It is its own program: the provider starts it as supervisor. Everything
//! happens in a network namespace of its own. `cargo test --test vm -- NAME` runs one case.

#[path = "local/host.rs"]
mod host;
#[path = "local/machine.rs"]
mod machine;
#[macro_use]
#[path = "local/cases.rs"]
mod cases;
#[path = "local/secrets.rs"]
mod secrets;
#[path = "local/stage.rs"]
mod stage;

use host::Host;
use kiln_model::frame::Stream;
use kiln_model::*;
use kiln_provider::conformance::{self, Behaviour, Subject, check, until, until_ready};
use kiln_provider::local::{self, Inventory, LocalConfig, LocalProvider, inventory};
use kiln_provider::{Provider, ProviderError};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Emulated machines share their cores with all other tests.
const PATIENCE: Duration = Duration::from_secs(180);

fn main() -> ExitCode {
    if let Some(status) = stage::play() {
        return status;
    }
    match stage::enter("the tests of virtual machines") {
        Some(wanted) => stage::run(all(&wanted)),
        None => ExitCode::SUCCESS,
    }
}

async fn all(wanted: &str) {
    let host = Host::with_machines();
    cases! { wanted, &host; contract inside secrets limits black_box checks }
    // Minutes of boots: `just nightly`, or by name.
    if !wanted.is_empty() || std::env::var_os("KILN_NIGHTLY").is_some() {
        cases! { wanted, &host; refusals other_ways hostile_guest killed swept damage speed many_boots }
    }
    local::sweep(host.state()).unwrap();
    assert_eq!(inventory(host.state()), Inventory::default());
}

impl Host {
    fn with_machines() -> Self {
        let mut host = Self::new();
        host.isolation = Isolation::Vm;
        host.forced.emulation = true;
        host.machine = Some(Arc::new(machine::with_init(kiln_sys::GUEST_INIT, host.state())));
        host
    }
}

async fn secrets(host: &Host) {
    secrets::run(host).await;
}

/// What every provider promises.
async fn contract(host: &Host) {
    conformance::suite(&mut &*host).await;
    host.nothing_is_left().await;
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

/// What the program of an instance sees and may do. Its kernel is its own, so that the filter of system calls of a sandbox is
/// not there: those are the only differences.
async fn inside(host: &Host) {
    const OTHERWISE: [&str; 8] = [
        "Seccomp: 0",
        "clone3: Invalid argument",
        "setns: Invalid argument",
        "process_vm_readv: answered 0",
        "keyctl: Invalid argument",
        "io_uring_setup: Bad address",
        "perf_event_open: Bad address",
        "goes first when memory is short: 0",
    ];
    let provider = host.provider();
    let other = Subject::spec(&host, 101, Behaviour::Serve);
    let seen = provider.ensure(fence(), &other, &NO_SECRETS).await.unwrap();
    until_ready(&provider, &other.id, &check()).await;
    let address = format!("{}:8080", seen.address.unwrap());
    let spec = host.spec(102, &["probe", "audit", &address]);
    provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
    let reason = ended(&provider, &spec.id).await;
    let lines = host.printed(&spec.id, Stream::Out);
    assert_eq!(reason, ExitReason::Status { code: 0 }, "{:?}", host.printed(&spec.id, Stream::Err));
    assert_eq!(lines.last().map(String::as_str), Some("audit ends"));
    let broken: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("BROKEN ")).collect();
    assert_eq!(broken.len(), OTHERWISE.len(), "{broken:?}");
    for (broken, known) in broken.iter().zip(OTHERWISE) {
        assert!(broken.starts_with(known), "{broken}");
    }
    // Not by its interface either, past the routing table.
    let reach = host.spec(103, &["probe", "reach", &address, "192.0.2.1:80"]);
    provider.ensure(fence(), &reach, &NO_SECRETS).await.unwrap();
    assert_eq!(ended(&provider, &reach.id).await, ExitReason::Status { code: 0 });
    let lines = host.printed(&reach.id, Stream::Out);
    assert!(lines.len() == 4 && lines.iter().all(|line| line.ends_with(": not reached")), "{lines:?}");
    let mut able = host.spec(105, &["probe", "capabilities"]);
    able.confinement.capabilities = [Capability::NetBindService, Capability::Chown].into();
    provider.ensure(fence(), &able, &NO_SECRETS).await.unwrap();
    ended(&provider, &able.id).await;
    let lines = host.printed(&able.id, Stream::Out);
    assert!(lines.len() == 5 && lines.iter().all(|line| line.ends_with("\t0000000000000401")), "{lines:?}");
    let mut bare = host.spec(104, &["probe", "environment"]);
    bare.environment = [("A".to_owned(), "b c\nd".to_owned())].into();
    provider.ensure(fence(), &bare, &NO_SECRETS).await.unwrap();
    ended(&provider, &bare.id).await;
    let mut lines = host.printed(&bare.id, Stream::Out);
    lines.sort();
    assert!(
        lines.len() == 3
            && lines[..2] == ["A=b c", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "{lines:?}"
    );
    for spec in [other, spec, reach, able, bare] {
        provider.absent(fence(), &spec.id).await.unwrap();
    }
    host.nothing_is_left().await;
}

async fn limits(host: &Host) {
    let provider = host.provider();
    for (sequence, command) in [(110, &["probe", "eat"][..]), (111, &["probe", "fill", "/tmp/x"])] {
        let spec = host.spec(sequence, command);
        provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
        let reason = ended(&provider, &spec.id).await;
        let words = host.printed(&spec.id, Stream::Supervisor);
        assert_eq!(reason, ExitReason::OutOfMemory, "{command:?}: {words:?}");
        provider.absent(fence(), &spec.id).await.unwrap();
    }
    // The guest's own kernel and init can go on when the service has used up all that is its.
    let spec = host.spec(113, &["probe", "memory"]);
    provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
    ended(&provider, &spec.id).await;
    let lines = host.printed(&spec.id, Stream::Out);
    let field = |name: &str| -> u64 {
        let line = lines.iter().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    };
    let spare = field("MemAvailable").saturating_sub(spec.resources.memory_bytes);
    println!("memory: {} MiB, spare {} MiB", field("MemTotal") >> 20, spare >> 20);
    assert!(spare >= 32 << 20, "{lines:?}");
    provider.absent(fence(), &spec.id).await.unwrap();
    let spec = host.spec(112, &["probe", "forks"]);
    provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
    assert_eq!(ended(&provider, &spec.id).await, ExitReason::Status { code: 0 });
    let line = host.printed(&spec.id, Stream::Out).remove(0);
    let forks: u32 = line.strip_prefix("forks ").unwrap().parse().unwrap();
    assert!((10..64).contains(&forks), "{line}");
    provider.absent(fence(), &spec.id).await.unwrap();
}

/// Nothing that was printed is lost, however long it is and how it ends; and who prints for ever can be stopped.
async fn black_box(host: &Host) {
    let provider = host.provider();
    let spec = host.spec(120, &["probe", "print", "20000", "5"]);
    provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
    assert_eq!(ended(&provider, &spec.id).await, ExitReason::Status { code: 5 });
    let expected: Vec<String> = (0..20_000).map(|n| format!("line {n}")).collect();
    assert!(host.printed(&spec.id, Stream::Out) == expected);
    assert_eq!(host.printed(&spec.id, Stream::Err), ["no line feed"]);
    let words = host.printed(&spec.id, Stream::Supervisor);
    assert_eq!(words, ["starting `web-120`: probe print 20000 5", "exited with status 5"]);
    provider.absent(fence(), &spec.id).await.unwrap();

    let long = host.spec(121, &["probe", "long", "1000000"]);
    provider.ensure(fence(), &long, &NO_SECRETS).await.unwrap();
    assert_eq!(ended(&provider, &long.id).await, ExitReason::Status { code: 0 });
    assert_eq!(host.printed(&long.id, Stream::Out).concat().len(), 1_000_000);
    let named = host.spec(122, &["probe", "reopen"]);
    provider.ensure(fence(), &named, &NO_SECRETS).await.unwrap();
    assert_eq!(ended(&provider, &named.id).await, ExitReason::Status { code: 0 });
    assert_eq!(host.printed(&named.id, Stream::Out), ["by name", "by name"]);
    assert_eq!(host.printed(&named.id, Stream::Err), ["by name"]);

    let flood = host.spec(123, &["probe", "flood"]);
    provider.ensure(fence(), &flood, &NO_SECRETS).await.unwrap();
    let size = || {
        let folder = local::instance_folder(host.state(), &flood.id);
        ["out.0", "out.1"].map(|name| std::fs::metadata(folder.join(name)).unwrap().len()).iter().sum::<u64>()
    };
    wait_for("it prints", || size() > 4 << 20).await;
    assert_eq!(state_of(&provider, &flood.id).await, SeenState::Running);
    for spec in [&long, &named, &flood] {
        provider.absent(fence(), &spec.id).await.unwrap();
    }
    assert!(size() <= limits::SPOOL_BYTES_MAX);
    host.nothing_is_left().await;
}

async fn state_of(provider: &LocalProvider, id: &InstanceId) -> SeenState {
    provider.list().await.unwrap().into_iter().find(|seen| seen.id == *id).unwrap().state
}

async fn checks(host: &Host) {
    let spec = Subject::spec(&host, 130, Behaviour::Serve);
    host.provider().ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
    // Also after the server that started it.
    let provider = host.provider();
    until_ready(&provider, &spec.id, &check()).await;
    let http = |status, contains: Option<&str>| CheckKind::Http {
        port: 8080,
        path: "/x?y".into(),
        status,
        contains: contains.map(str::to_owned),
        host: None,
    };
    let file = |path: &str, contains: Option<&str>| CheckKind::File {
        path: path.into(),
        contains: contains.map(str::to_owned),
    };
    let command = |argv: &[&str]| CheckKind::Command { argv: argv.iter().map(|a| (*a).to_owned()).collect() };
    let cases = [
        (http(Some(200), Some("ell")), true, "200 in"),
        (CheckKind::Tcp { port: 81 }, false, "connection refused"),
        (CheckKind::Listening { port: 8080 }, true, "listens"),
        (CheckKind::Listening { port: 81 }, false, "nothing"),
        (file("/bin/probe", None), true, "exists"),
        (file("/etc/hosts", Some("web-130")), true, "contains"),
        (file("/etc/hosts", Some("web-131")), false, "bytes without"),
        (file("/etc/outside", None), false, "No such file"),
        (file("/dev/null", Some("x")), false, "no regular file"),
        (file("/proc/self/root/etc/passwd", None), false, ""),
        (command(&["probe", "true"]), true, "fine"),
        (command(&["probe", "false"]), false, "status 3"),
        (command(&["probe", "abort"]), false, "killed by signal 6"),
        (command(&["missing"]), false, "`missing` is not in the image"),
        (command(&["probe", "sleep"]), false, "did not end"),
        // What it leaves behind prints on, and goes all the same.
        (command(&["probe", "daemon"]), true, "status 0"),
        (command(&["probe", "true"]), true, "fine"),
    ];
    for (kind, passes, detail) in cases {
        let timeout = if kind == command(&["probe", "sleep"]) { Millis(100) } else { Millis(30_000) };
        let evidence = provider.check(&spec.id, &Check { kind, timeout }).await;
        assert!(evidence.passed == passes && evidence.detail.contains(detail), "{evidence:?}");
        println!("check: {}: {}", evidence.check, evidence.detail.lines().next().unwrap_or(""));
    }
    let check = |argv: &[&str]| Check { kind: command(argv), timeout: Millis(30_000) };
    let (one, two) = (check(&["probe", "true"]), check(&["probe", "false"]));
    let both = || async { tokio::join!(provider.check(&spec.id, &one), provider.check(&spec.id, &two)) };
    for (one, two) in [both().await, both().await] {
        assert!(one.passed && !two.passed, "{one:?} {two:?}");
    }
    assert_eq!(state_of(&provider, &spec.id).await, SeenState::Running);
    provider.absent(fence(), &spec.id).await.unwrap();
    host.nothing_is_left().await;
}

async fn refusals(host: &Host) {
    let provider = host.provider();
    let mut sequence = 140;
    let mut permanent = async |change: &dyn Fn(&mut InstanceSpec), expected: &str| {
        sequence += 1;
        let mut spec = host.spec(sequence, &["probe", "sleep"]);
        change(&mut spec);
        let error = provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap_err();
        assert!(matches!(error, ProviderError::Permanent { .. }), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
        println!("refused: {error}");
        provider.absent(fence(), &spec.id).await.unwrap();
    };
    permanent(&|s| s.writable.push("/var/cache/x".into()), "no directory `/var/cache/x`; hint:").await;
    permanent(&|s| s.writable.push("/bin/probe".into()), "`/bin/probe` is no directory").await;
    permanent(&|s| s.user = "nobody-knows".into(), "no user `nobody-knows`; hint:").await;
    permanent(&|s| s.command.clear(), "the command is empty").await;
    permanent(&|s| s.manifest.layers = vec![s.manifest.layers[0].clone(); 17], "expected 1 to 16").await;
    let plain = host.spec(150, &["/bin/plain"]);
    provider.ensure(fence(), &plain, &NO_SECRETS).await.unwrap();
    let reason = ended(&provider, &plain.id).await.to_string();
    assert!(reason.contains("may not be executed by user 1000"), "{reason}");
    provider.absent(fence(), &plain.id).await.unwrap();
    drop(provider);
    let mut without = LocalConfig::new(host.state());
    without.program = std::env::current_exe().unwrap();
    let provider = LocalProvider::open(without).unwrap();
    let spec = host.spec(151, &["probe", "sleep"]);
    let error = provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap_err();
    assert!(error.to_string().contains("hint:"), "{error}");
    provider.absent(fence(), &spec.id).await.unwrap();
}

/// One layer, v1 groups, and whatever this host has to run machines with, once that was tried.
async fn other_ways(usual: &Host) {
    // Two state folders cannot have the same addresses.
    local::sweep(usual.state()).unwrap();
    let mut host = Host::with_machines();
    host.flatten();
    host.forced.cgroups = kiln_sys::cgroup::Choice::V1;
    host.forced.emulation = false;
    let provider = host.provider();
    let spec = Subject::spec(&&host, 1, Behaviour::Serve);
    let begun = Instant::now();
    provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
    println!("one layer, accelerator tried: runs after {} ms", begun.elapsed().as_millis());
    until_ready(&provider, &spec.id, &check()).await;
    provider.absent(fence(), &spec.id).await.unwrap();
    let spec = host.spec(2, &["probe", "eat"]);
    let begun = Instant::now();
    provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
    println!("again: runs after {} ms", begun.elapsed().as_millis());
    assert_eq!(ended(&provider, &spec.id).await, ExitReason::OutOfMemory);
    provider.absent(fence(), &spec.id).await.unwrap();
    drop(provider);
    local::sweep(host.state()).unwrap();
    assert_eq!(inventory(host.state()), Inventory::default());
}

/// Whether a machine ended as it should.
type IsExpected = fn(&ExitReason) -> bool;

/// A guest that was taken over, its kernel with it.
async fn hostile_guest(usual: &Host) {
    local::sweep(usual.state()).unwrap();
    let mut host = Host::with_machines();
    let init = std::fs::read(host::program("tests/local/hostile_init.rs")).unwrap();
    let machine = machine::with_init(&init, host.state());
    host.machine = Some(Arc::new(machine.clone()));
    let provider = host.provider();
    // Those that come to an end by themselves.
    let cases: [(&str, IsExpected); 5] = [
        ("panic-later", |reason| *reason == ExitReason::Unknown),
        ("garbage", |reason| *reason == ExitReason::Unknown),
        ("length", |reason| *reason == ExitReason::Unknown),
        ("status", |reason| *reason == ExitReason::Status { code: 24 }),
        ("signal", |reason| *reason == ExitReason::Signal { signal: 1 }),
    ];
    for (sequence, (command, expected)) in (1..).zip(cases) {
        let spec = host.spec(sequence, &[command]);
        provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
        let reason = ended(&provider, &spec.id).await;
        assert!(expected(&reason), "{command}: {reason:?}");
        let words = host.printed(&spec.id, Stream::Supervisor);
        assert_eq!(command == "panic-later", words[1].contains("Kernel panic"), "{words:?}");
        println!("{command}: {} words", words.len());
        provider.absent(fence(), &spec.id).await.unwrap();
    }
    // Those that go on for ever.
    for (sequence, command) in (10..).zip(["answers", "line", "console", "deaf", "eager"]) {
        let spec = host.spec(sequence, &[command]);
        provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
        let look = Check { kind: CheckKind::Listening { port: 80 }, timeout: Millis(200) };
        for _ in 0..2 {
            let evidence = provider.check(&spec.id, &look).await;
            assert!(evidence.detail.len() <= limits::EVIDENCE_BYTES_MAX, "{}", evidence.detail.len());
            assert!(!evidence.detail.contains(|c: char| c.is_control() && c != '\n'), "{evidence:?}");
        }
        let bytes = memory_of(host.supervisor(&spec.id));
        assert!(bytes < 32 << 20, "the watcher has {bytes} bytes");
        assert_eq!(state_of(&provider, &spec.id).await, SeenState::Running);
        let begun = Instant::now();
        provider.absent(fence(), &spec.id).await.unwrap();
        println!("{command}: watcher {} kB, gone after {} ms", bytes >> 10, begun.elapsed().as_millis());
    }
    // Those that never start.
    for (sequence, (command, expected)) in (20..).zip([("panic", "Kernel panic"), ("text", "\u{20}[2J")]) {
        let error = refused(&provider, &host.spec(sequence, &[command])).await;
        assert!(error.contains(expected), "{error}");
    }
    drop(provider);
    host.boot_max = Some(Millis(9000));
    let provider = host.provider();
    let error = refused(&provider, &host.spec(30, &["silent"])).await;
    assert!(error.contains("no word from it in time"), "{error}");
    // One that says nothing at all is booted twice: its kernel may have hung.
    machine::add(&machine, "mute", b"");
    let begun = Instant::now();
    let error = refused(&provider, &host.spec(31, &["silent"])).await;
    assert!(error.contains("first word") && begun.elapsed() >= Duration::from_secs(6), "{error}");
    host.nothing_is_left().await;
    drop(provider);
    local::sweep(host.state()).unwrap();
}

/// What is told of an instance that does not start; then it goes.
async fn refused(provider: &LocalProvider, spec: &InstanceSpec) -> String {
    let error = provider.ensure(fence(), spec, &NO_SECRETS).await.unwrap_err().to_string();
    assert!(error.len() < 4000 && !error.contains(char::is_control), "{error:?}");
    println!("refused: {}", &error[..error.floor_char_boundary(200)]);
    provider.absent(fence(), &spec.id).await.unwrap();
    error
}

/// Bytes that a process has in memory.
fn memory_of(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Processes whose parent is `pid`.
fn children_of(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

/// Waits for a condition on which no event can be waited for.
async fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Whatever is killed, the rest goes with it and is seen.
async fn killed(host: &Host) {
    let provider = host.provider();
    let spec = Subject::spec(&host, 160, Behaviour::Serve);
    provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
    let [qemu] = children_of(host.supervisor(&spec.id))[..] else { panic!("one child") };
    confined(qemu);
    kiln_sys::process::signal_pid(qemu, 9).unwrap();
    assert_eq!(ended(&provider, &spec.id).await, ExitReason::Unknown);
    provider.absent(fence(), &spec.id).await.unwrap();
    host.nothing_is_left().await;
    let spec = Subject::spec(&host, 161, Behaviour::Serve);
    provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
    let watcher = host.supervisor(&spec.id);
    let [qemu] = children_of(watcher)[..] else { panic!("one child") };
    kiln_sys::process::signal_pid(watcher, 9).unwrap();
    assert_eq!(ended(&provider, &spec.id).await, ExitReason::Unknown);
    wait_for("QEMU dies with its watcher", || !Path::new(&format!("/proc/{qemu}")).exists()).await;
    provider.absent(fence(), &spec.id).await.unwrap();
    host.nothing_is_left().await;
    // At moments all over a boot.
    for moment in 0..8 {
        let spec = Subject::spec(&host, 170 + moment, Behaviour::Serve);
        let process = local::instance_folder(host.state(), &spec.id).join("process.json");
        let started = provider.clone();
        let own = spec.clone();
        let ensure = tokio::spawn(async move { started.ensure(fence(), &own, &NO_SECRETS).await });
        wait_for("its watcher is there", || std::fs::read(&process).is_ok_and(|text| !text.is_empty())).await;
        // A guess is what is wanted here.
        tokio::time::sleep(Duration::from_millis(moment * 350)).await;
        kiln_sys::process::signal_pid(host.supervisor(&spec.id), 9).unwrap();
        match ensure.await.unwrap() {
            Ok(_) => assert_eq!(ended(&provider, &spec.id).await, ExitReason::Unknown),
            Err(error) => assert!(matches!(error, ProviderError::Retry { .. }), "{error:?}"),
        }
        provider.absent(fence(), &spec.id).await.unwrap();
        host.nothing_is_left().await;
    }
}

/// Without a server: a machine whose folder is gone is removed by the next one, and `kiln down` ends one that serves.
async fn swept(host: &Host) {
    let provider = host.provider();
    let spec = Subject::spec(&host, 180, Behaviour::Serve);
    provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
    drop(provider);
    std::fs::remove_dir_all(local::instance_folder(host.state(), &spec.id)).unwrap();
    assert!(inventory(host.state()).processes > 0);
    let provider = host.provider();
    host.nothing_is_left().await;
    let spec = Subject::spec(&host, 181, Behaviour::Serve);
    provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
    assert_eq!(inventory(host.state()).links, 2, "the bridge and the card");
    drop(provider);
    local::sweep(host.state()).unwrap();
    assert_eq!(inventory(host.state()), Inventory::default());
    let exit = local::instance_folder(host.state(), &spec.id).join("exit.json");
    let exit = std::fs::read_to_string(exit).unwrap();
    assert!(exit.contains("\"signal\":15"), "{exit}");
}

/// What a QEMU that was taken over could do.
fn confined(qemu: i32) {
    let status = std::fs::read_to_string(format!("/proc/{qemu}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or("").trim_start_matches(':').trim().to_owned()
    };
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(name), "0000000000000000", "{name}");
    }
    assert_eq!((field("NoNewPrivs"), field("Seccomp"), field("Groups")), ("1".into(), "2".into(), "".into()));
    let uid: u32 = field("Uid").split_whitespace().next().unwrap().parse().unwrap();
    assert!(uid > 100_000 + 65_536, "{uid}");
    let own = |kind: &str| std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
    for kind in ["user", "pid", "mnt", "net", "uts", "ipc", "cgroup"] {
        assert_ne!(std::fs::read_link(format!("/proc/{qemu}/ns/{kind}")).unwrap(), own(kind), "{kind}");
    }
    let mut roots: Vec<String> = std::fs::read_dir(format!("/proc/{qemu}/root/"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    roots.retain(|name| !["bin", "lib", "lib64", "sbin"].contains(&name.as_str()));
    roots.sort();
    assert_eq!(roots, ["dev", "etc", "initrd", "kernel", "usr"]);
    let mut written: Vec<String> = vec![];
    for line in std::fs::read_to_string(format!("/proc/{qemu}/mounts")).unwrap().lines() {
        let mut fields = line.split(' ').skip(1);
        let (place, options) = (fields.next().unwrap(), fields.nth(1).unwrap());
        if !options.split(',').any(|option| option == "ro") {
            written.push(place.to_owned());
        }
    }
    assert_eq!(written, [""; 0], "mounts that can be written");
}

/// A layer that is not what its name says is not given to a guest.
async fn damage(host: &Host) {
    let provider = host.provider();
    let path = host.object(host.manifest.layers.last().unwrap().digest);
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    let spec = host.spec(185, &["probe", "sleep"]);
    let error = provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap_err();
    assert!(matches!(error, ProviderError::Damaged { .. }), "{error:?}");
    std::fs::write(&path, &good).unwrap();
    assert_eq!(provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap().state, SeenState::Running);
    provider.absent(fence(), &spec.id).await.unwrap();
}

/// Prints figures; asserts none.
async fn speed(host: &Host) {
    let provider = host.provider();
    let (mut starts, mut stops, mut peaks) = (vec![], vec![], vec![]);
    for sequence in 190..195 {
        let spec = Subject::spec(&host, sequence, Behaviour::Serve);
        let begun = Instant::now();
        provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
        starts.push(begun.elapsed());
        until_ready(&provider, &spec.id, &check()).await;
        let [qemu] = children_of(host.supervisor(&spec.id))[..] else { panic!("one child") };
        peaks.push(memory_of(qemu) >> 20);
        let begun = Instant::now();
        provider.absent(fence(), &spec.id).await.unwrap();
        stops.push(begun.elapsed());
    }
    starts.sort();
    stops.sort();
    println!("speed: start to running {starts:?}; stop {:?}; QEMU has {peaks:?} MiB", stops[2]);
}

/// `KILN_BOOTS=N` boots so many more.
async fn many_boots(host: &Host) {
    let count = std::env::var("KILN_BOOTS").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let provider = host.provider();
    for sequence in 1000..1000 + count {
        let spec = host.spec(sequence, &["probe", "print", "3", "7"]);
        let begun = Instant::now();
        provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
        assert_eq!(ended(&provider, &spec.id).await, ExitReason::Status { code: 7 });
        provider.absent(fence(), &spec.id).await.unwrap();
        println!("boot {sequence}: {} ms", begun.elapsed().as_millis());
    }
}
