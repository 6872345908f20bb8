//! The local provider on a real kernel. Needs root; skips loudly otherwise. It is its own program: the provider starts
//! it as zygote and as exec helper. Everything happens in a network namespace of its own.

#[path = "local/host.rs"]
mod host;
#[path = "local/secrets.rs"]
mod secrets;
#[path = "local/stage.rs"]
mod stage;

use host::Host;
use kiln_model::frame::Stream;
use kiln_model::*;
use kiln_provider::conformance::{self, Behaviour, Subject, until, until_ready};
use kiln_provider::local::{self, Inventory, LocalProvider, inventory};
use kiln_provider::{Provider, ProviderError};
use kiln_sys::cgroup::Trees;
use std::process::ExitCode;
use std::time::Instant;

/// Ends a zygote or a shim that uses its heap.
#[global_allocator]
static ALLOCATOR: kiln_sys::seal::Strict = kiln_sys::seal::Strict;

fn main() -> ExitCode {
    if let Some(status) = stage::play() {
        return status;
    }
    if stage::arguments().iter().any(|a| a == "--prepare") {
        // What needs a compiler, for a host that has none.
        host::probe();
        return ExitCode::SUCCESS;
    }
    match stage::enter("the local provider's tests") {
        Some(_) => stage::run(all()),
        None => ExitCode::SUCCESS,
    }
}

async fn all() {
    let host = Host::new();
    suite(&host).await;
    speed(&host).await;
    down(&host).await;
    fallbacks().await;
    addresses_come_back().await;
    shards().await;
}

/// All that holds whichever way the host makes the provider go.
async fn suite(host: &Host) {
    conformance::suite(&mut &*host).await;
    host.nothing_is_left().await;
    isolation(host).await;
    limits(host).await;
    declared(host).await;
    secrets::run(host).await;
    black_box(host).await;
    checks(host).await;
    refusals(host).await;
    damage(host).await;
    half_created(host).await;
    strays(host).await;
    down(host).await;
}

fn fence() -> Fence {
    Fence { incarnation: Incarnation(1), epoch: Epoch(9), revision: Revision(100), op: OpId(1) }
}

async fn run(host: &Host, provider: &LocalProvider, sequence: u64, command: &[&str]) -> ExitReason {
    let spec = host.spec(sequence, command);
    provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
    match until(provider, &spec.id, |state| matches!(state, SeenState::Exited(_))).await {
        SeenState::Exited(reason) => reason,
        other => panic!("{other:?}"),
    }
}

async fn isolation(host: &Host) {
    let provider = host.provider();
    let other = Subject::spec(&host, 101, Behaviour::Serve);
    let seen = provider.ensure(fence(), &other, &NO_SECRETS).await.unwrap();
    until_ready(&provider, &other.id, &conformance::check()).await;
    let address = format!("{}:8080", seen.address.unwrap());
    let reason = run(host, &provider, 102, &["probe", "audit", &address]).await;
    let id = host.spec(102, &[]).id;
    let lines = host.printed(&id, Stream::Out);
    lines.iter().for_each(|line| println!("audit: {line}"));
    assert_eq!(reason, ExitReason::Status { code: 0 }, "{:?}", host.printed(&id, Stream::Err));
    assert_eq!(lines.last().map(String::as_str), Some("audit ends"));
    assert!(!lines.iter().any(|line| line.starts_with("BROKEN")));
    provider.absent(fence(), &other.id).await.unwrap();
    provider.absent(fence(), &id).await.unwrap();

    let mut bare = host.spec(103, &["probe", "environment"]);
    bare.environment = [("A".to_owned(), "b c".to_owned())].into();
    provider.ensure(fence(), &bare, &NO_SECRETS).await.unwrap();
    until(&provider, &bare.id, |state| matches!(state, SeenState::Exited(_))).await;
    let mut lines = host.printed(&bare.id, Stream::Out);
    lines.sort();
    assert_eq!(lines[0], "A=b c");
    assert!(lines.len() == 2 && lines[1].starts_with("PATH="), "{lines:?}");
    provider.absent(fence(), &bare.id).await.unwrap();
}

async fn limits(host: &Host) {
    let provider = host.provider();
    assert_eq!(run(host, &provider, 110, &["probe", "eat"]).await, ExitReason::OutOfMemory);
    assert_eq!(run(host, &provider, 111, &["probe", "forks"]).await, ExitReason::Status { code: 0 });
    let id = host.spec(111, &[]).id;
    let line = host.printed(&id, Stream::Out).remove(0);
    let forks: u32 = line.strip_prefix("forks ").unwrap().parse().unwrap();
    assert!((10..64).contains(&forks), "{line}");
    println!("limits: memory ends it as OutOfMemory, a fork bomb gets {forks} of 64 processes");
    for sequence in [110, 111] {
        provider.absent(fence(), &host.spec(sequence, &[]).id).await.unwrap();
    }
}

/// A service has what it declares and no more, whoever its user is.
async fn declared(host: &Host) {
    let provider = host.provider();
    let none = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|name| format!("{name}:{:016x}", 0));
    let calls =
        |answers: [&str; 3]| [135, 135, 165].iter().zip(answers).map(|(n, a)| format!("{n} {a}")).collect();
    let mut sequence = 112;
    let mut look = async |confinement: Confinement, user: &str| {
        sequence += 1;
        let mut spec = host.spec(sequence, &["probe", "unlisted"]);
        (spec.confinement, spec.user) = (confinement, user.into());
        provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
        let state = until(&provider, &spec.id, |state| matches!(state, SeenState::Exited(_))).await;
        assert_eq!(state, SeenState::Exited(ExitReason::Status { code: 0 }));
        let (lines, words) =
            (host.printed(&spec.id, Stream::Out), host.printed(&spec.id, Stream::Supervisor));
        provider.absent(fence(), &spec.id).await.unwrap();
        (lines, words)
    };
    for user in ["web", "0"] {
        let (lines, words) = look(Confinement::default(), user).await;
        let expected: Vec<String> = calls(["refused"; 3]);
        assert_eq!((&lines[..5], &lines[5..]), (&none[..], &expected[..]), "{user}");
        assert_eq!(words.len(), 2);
    }
    let declared = Confinement {
        capabilities: [Capability::Chown, Capability::Setuid].into(),
        seccomp: Seccomp::Log,
        ..Confinement::default()
    };
    let told = "system call 135 (personality) is not on the list; let through";
    for user in ["web", "0"] {
        let (lines, words) = look(declared.clone(), user).await;
        let some: Vec<String> = none.iter().map(|line| format!("{}81", &line[..line.len() - 2])).collect();
        let expected: Vec<String> = calls(["let through", "let through", "refused"]);
        assert_eq!((&lines[..5], &lines[5..]), (&some[..], &expected[..]), "{user}");
        assert_eq!(words[1..], [told, "exited with status 0"]);
    }
    println!("declared: capabilities and calls");
}

async fn black_box(host: &Host) {
    let provider = host.provider();
    let reason = run(host, &provider, 120, &["probe", "print", "20000", "5"]).await;
    assert_eq!(reason, ExitReason::Status { code: 5 });
    let id = host.spec(120, &[]).id;
    let expected: Vec<String> = (0..20_000).map(|n| format!("line {n}")).collect();
    assert!(host.printed(&id, Stream::Out) == expected);
    assert_eq!(host.printed(&id, Stream::Err), ["no line feed"]);
    let words = host.printed(&id, Stream::Supervisor);
    assert_eq!(words, ["starting `web-120`: probe print 20000 5", "exited with status 5"]);
    provider.absent(fence(), &id).await.unwrap();
    let folder = local::instance_folder(host.state(), &id);
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["exit.json", "gone.json", "out.0", "out.1", "spec.json"]);
    println!("black box: all 20000 lines and the last words, also after it is gone");
}

async fn checks(host: &Host) {
    let provider = host.provider();
    let spec = Subject::spec(&host, 130, Behaviour::Serve);
    provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
    until_ready(&provider, &spec.id, &conformance::check()).await;
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
        (http(None, Some("ell")), true, "200 in"),
        (http(Some(200), None), true, "200 in"),
        (http(Some(204), None), false, "expected 204"),
        (http(None, Some("absent")), false, "without `absent`"),
        (CheckKind::Tcp { port: 81 }, false, "connection refused"),
        (CheckKind::Listening { port: 8080 }, true, "listens"),
        (CheckKind::Listening { port: 81 }, false, "nothing"),
        (file("/bin/probe", None), true, "exists"),
        (file("/etc/hosts", Some("web-130")), true, "contains"),
        (file("/etc/outside", None), false, "No such file"),
        (file("/dev/null", Some("x")), false, ""),
        (file("/proc/self/root/etc/passwd", None), false, ""),
        (command(&["probe", "true"]), true, "fine"),
        (command(&["probe", "false"]), false, "status 3"),
        (command(&["missing"]), false, "`missing` is not in the image"),
        (command(&["probe", "sleep"]), false, "did not end"),
        (command(&["probe", "audit", "10.83.0.1:9"]), true, "audit ends"),
    ];
    for (kind, passes, detail) in cases {
        let timeout = if kind == command(&["probe", "sleep"]) { Millis(100) } else { Millis(20_000) };
        let evidence = provider.check(&spec.id, &Check { kind, timeout }).await;
        assert!(evidence.passed == passes && evidence.detail.contains(detail), "{evidence:?}");
        assert!(!evidence.detail.contains("BROKEN"), "{evidence:?}");
        println!("check: {}: {}", evidence.check, evidence.detail.lines().next().unwrap_or(""));
    }
    provider.absent(fence(), &spec.id).await.unwrap();
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
    let reason = run(host, &provider, 150, &["/bin/plain"]).await;
    let text = reason.to_string();
    assert!(
        matches!(reason, ExitReason::NotStarted { .. }) && text.contains("may not be executed"),
        "{text}"
    );
    provider.absent(fence(), &host.spec(150, &[]).id).await.unwrap();
}

/// No instance starts from a layer that is not what its name says, whether it is mounted for others or not; those that run
/// go on; and it starts from a good file in its place.
async fn damage(host: &Host) {
    let provider = host.provider();
    let first = host.spec(151, &["probe", "sleep"]);
    provider.ensure(fence(), &first, &NO_SECRETS).await.unwrap();
    let layer = host.manifest.layers.last().unwrap();
    let path = host.object(layer.digest);
    let good = std::fs::read(&path).unwrap();
    let before = std::fs::metadata(&path).unwrap().modified().unwrap();
    for (sequence, at) in [(152, 0), (153, good.len() / 2), (154, good.len() - 1)] {
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_at(&file, &[good[at] ^ 1], at as u64).unwrap();
        file.set_modified(before).unwrap();
        drop(file);
        let spec = host.spec(sequence, &["probe", "sleep"]);
        for _ in 0..2 {
            let error = provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap_err();
            assert!(matches!(error, ProviderError::Damaged { .. }), "{error:?}");
            let name = format!("layer {} (app)", layer.digest);
            assert!(error.to_string().contains(&name), "{error}");
            println!("damage: {error}");
        }
        until(&provider, &spec.id, |state| *state == SeenState::Starting).await;
        until(&provider, &first.id, |state| *state == SeenState::Running).await;
        // Mended: a new file, as a bake makes it.
        let new = path.with_extension("new");
        std::fs::write(&new, &good).unwrap();
        std::fs::rename(&new, &path).unwrap();
        assert_eq!(provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap().state, SeenState::Running);
        provider.absent(fence(), &spec.id).await.unwrap();
    }
    provider.absent(fence(), &first.id).await.unwrap();
    let missing = host.spec(155, &["probe", "sleep"]);
    std::fs::rename(&path, path.with_extension("away")).unwrap();
    let error = provider.ensure(fence(), &missing, &NO_SECRETS).await.unwrap_err();
    assert!(matches!(error, ProviderError::Damaged { .. }), "{error:?}");
    std::fs::rename(path.with_extension("away"), &path).unwrap();
    provider.absent(fence(), &missing.id).await.unwrap();
}

/// A server that died between writing down and starting: the next one sees it as starting, and may finish it or not.
async fn half_created(host: &Host) {
    let provider = host.provider();
    let spec = host.spec(160, &["probe", "sleep"]);
    provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
    let folder = local::instance_folder(host.state(), &spec.id);
    let record = std::fs::read(folder.join("spec.json")).unwrap();
    let text = String::from_utf8(record).unwrap();
    drop(provider);
    for (sequence, finish) in [(161, true), (162, false)] {
        let id = host.spec(sequence, &[]).id;
        let folder = local::instance_folder(host.state(), &id);
        std::fs::create_dir(&folder).unwrap();
        let number: serde_json::Value = serde_json::from_str(&text).unwrap();
        let (number, other) = (number["number"].as_u64().unwrap(), sequence + 40);
        let text = text.replace("web-160", id.as_str());
        let text = text.replace(&format!("\"number\":{number}"), &format!("\"number\":{other}"));
        let text = text.replace(&format!("10.83.0.{number}"), &format!("10.83.0.{other}"));
        std::fs::write(folder.join("spec.json"), text).unwrap();
        let provider = host.provider();
        until(&provider, &id, |state| *state == SeenState::Starting).await;
        if finish {
            let seen = provider
                .ensure(fence(), &host.spec(sequence, &["probe", "sleep"]), &NO_SECRETS)
                .await
                .unwrap();
            assert_eq!(seen.state, SeenState::Running);
        }
        provider.absent(fence(), &id).await.unwrap();
    }
    let provider = host.provider();
    provider.absent(fence(), &spec.id).await.unwrap();
    host.nothing_is_left().await;
    println!("half-created: finished by ensure, removed by absent");
}

/// Groups and interfaces with our mark that no folder owns go when a provider opens.
async fn strays(host: &Host) {
    let provider = host.provider();
    let spec = host.spec(170, &["probe", "sleep"]);
    provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
    drop(provider);
    let folder = local::instance_folder(host.state(), &spec.id);
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(inventory(host.state()).spare > 0);
    drop(host.provider());
    host.nothing_is_left().await;
    println!("strays: an instance without a folder is removed");
}

async fn down(host: &Host) {
    let provider = host.provider();
    for sequence in 180..183 {
        // Ids that are tombstoned from an earlier round are refused, which is fine.
        let _ = provider.ensure(fence(), &host.spec(sequence, &["probe", "sleep"]), &NO_SECRETS).await;
    }
    drop(provider);
    local::sweep(host.state()).unwrap();
    let left = inventory(host.state());
    println!("left after the sweep: {left:?}");
    assert_eq!(left, Inventory::default());
    until_no_loops(host).await;
    local::sweep(host.state()).unwrap();
    let late = host.provider().ensure(fence(), &host.spec(180, &["probe", "sleep"]), &NO_SECRETS).await;
    assert!(matches!(late, Err(ProviderError::Tombstoned { .. })), "{late:?}");
    // Opening it made its bridge again.
    local::sweep(host.state()).unwrap();
}

/// The devices of unmounted layers vanish by themselves, when what watched the instances has ended as well. The limit is a
/// guard against hanging.
async fn until_no_loops(host: &Host) {
    let state = host.state().display().to_string();
    let begun = Instant::now();
    loop {
        let devices = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
        let files = devices.filter_map(|d| std::fs::read_to_string(d.path().join("loop/backing_file")).ok());
        let left: Vec<String> = files.filter(|file| file.starts_with(&state)).collect();
        if left.is_empty() {
            return;
        }
        assert!(begun.elapsed().as_secs() < 30, "{left:?}");
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

/// An address that comes back answers at once: whoever spoke to its last owner remembers the same hardware address.
async fn addresses_come_back() {
    let host = Host::new();
    let mut config = local::LocalConfig::new(host.state());
    config.program = std::env::current_exe().unwrap();
    config.subnet = "10.99.0.0/29".parse().unwrap();
    let provider = LocalProvider::open(config).unwrap();
    // A bridge without ports forgets its neighbours, so one instance stays.
    let other = Subject::spec(&&host, 1, Behaviour::Serve);
    provider.ensure(fence(), &other, &NO_SECRETS).await.unwrap();
    for sequence in 2..10 {
        let spec = Subject::spec(&&host, sequence, Behaviour::Serve);
        provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
        loop {
            let evidence = provider.check(&spec.id, &conformance::check()).await;
            if evidence.passed {
                break;
            }
            // That it does not listen yet is an answer of the right one; silence is not.
            assert!(evidence.detail.contains("refused"), "instance {sequence}: {evidence:?}");
        }
        provider.absent(fence(), &spec.id).await.unwrap();
    }
    drop(provider);
    local::sweep(host.state()).unwrap();
    println!("addresses: 9 instances on 4 addresses, each answered");
}

/// Prints figures; asserts none.
async fn speed(host: &Host) {
    let provider = host.provider();
    let (mut starts, mut stops) = (vec![], vec![]);
    for sequence in 200..230 {
        let spec = host.spec(sequence, &["probe", "sleep"]);
        let begun = Instant::now();
        assert_eq!(provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap().state, SeenState::Running);
        starts.push(begun.elapsed());
        let begun = Instant::now();
        provider.absent(fence(), &spec.id).await.unwrap();
        stops.push(begun.elapsed());
    }
    starts.sort();
    stops.sort();
    println!(
        "speed: start to running {:?} median, {:?} max; stop {:?} median",
        starts[15], starts[29], stops[15]
    );
}

/// The ways that this host would not take by itself: the whole suite passes each of them.
async fn fallbacks() {
    for words in ["loop", "remount", "paths", "loop,paths", "cgroup-v1", "cgroup-v2"] {
        let mut host = Host::new();
        host.forced = words.parse().unwrap();
        if let Err(error) = Trees::detect(host.forced.cgroups) {
            println!("SKIPPED: `{words}` cannot be had on this host: {}", error.line());
            continue;
        }
        suite(&host).await;
        println!("fallbacks: {words}: the suite passed");
    }
    one_layer().await;
    no_idmap().await;
}

/// Without an overlay, with every other fallback that goes with it.
async fn one_layer() {
    let mut host = Host::new();
    host.flatten();
    for words in ["", "remount"] {
        host.forced = words.parse().unwrap();
        let provider = host.provider();
        let sequence = 1 + words.len() as u64;
        let spec = Subject::spec(&&host, sequence, Behaviour::Serve);
        provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap();
        until_ready(&provider, &spec.id, &conformance::check()).await;
        provider.absent(fence(), &spec.id).await.unwrap();
        drop(provider);
        local::sweep(host.state()).unwrap();
        assert_eq!(inventory(host.state()), Inventory::default());
    }
    println!("fallbacks: one layer, copied and mounted again");
}

/// Without idmapped mounts an image's files would be nobody's: refused, with a word on what helps, and nothing is left.
async fn no_idmap() {
    let mut host = Host::new();
    host.forced = "no-idmap".parse().unwrap();
    let provider = host.provider();
    let spec = host.spec(1, &["probe", "sleep"]);
    let error = provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap_err();
    assert!(matches!(error, ProviderError::Permanent { .. }), "{error:?}");
    assert!(error.to_string().contains("idmapped mounts); hint: "), "{error}");
    provider.absent(fence(), &spec.id).await.unwrap();
    drop(provider);
    local::sweep(host.state()).unwrap();
    assert_eq!(inventory(host.state()), Inventory::default());
    println!("fallbacks: {error}");
}

/// More instances than a bridge has ports are spread over several.
async fn shards() {
    let host = Host::new();
    let provider = host.provider();
    let first = Subject::spec(&&host, 1, Behaviour::Serve);
    provider.ensure(fence(), &first, &NO_SECRETS).await.unwrap();
    drop(provider);
    // As if a thousand had been there before.
    let path = local::instance_folder(host.state(), &first.id).join("spec.json");
    let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    record["number"] = 1018.into();
    std::fs::write(&path, record.to_string()).unwrap();
    let provider = host.provider();
    let mut blocks = std::collections::BTreeSet::new();
    for sequence in 10..22 {
        let spec = Subject::spec(&&host, sequence, Behaviour::Serve);
        let address = provider.ensure(fence(), &spec, &NO_SECRETS).await.unwrap().address.unwrap();
        until_ready(&provider, &spec.id, &conformance::check()).await;
        blocks.insert(address.to_string().rsplit_once('.').unwrap().0.to_owned());
    }
    assert!(blocks.contains("10.83.3") && blocks.contains("10.83.4"), "{blocks:?}");
    assert_eq!(inventory(host.state()).links, 2 + 13, "two bridges and thirteen instances");
    drop(provider);
    local::sweep(host.state()).unwrap();
    assert_eq!(inventory(host.state()), Inventory::default());
    println!("shards: two bridges, twelve instances answered");
}
