//! What instances print while the server is killed and started again: it goes to files that pid 1 writes, so that no
//! server is needed for it.

use crate::host::{self, Host};
use crate::server::{self, Sweeper, Wish};
use crate::setting;
use kiln_model::frame::{Frame, Stream};
use kiln_model::limits::SPOOL_BYTES_MAX;
use kiln_model::*;
use kiln_provider::Provider;
use kiln_provider::local::{self, Inventory, LocalProvider, inventory};
use std::time::{Duration, Instant};

/// Lines of each instance in a second.
const RATE: u64 = 1_000;
const RESTARTS: u32 = 10;
const PATIENCE: Duration = Duration::from_secs(300);

/// A host with the program in its image.
fn with_loggers() -> Host {
    let mut host = Host::new();
    let tree = host.state().join("logger");
    std::fs::create_dir_all(tree.join("bin")).unwrap();
    std::fs::copy(host::program("tests/soak/logger.rs"), tree.join("bin/logger")).unwrap();
    let layer = host::layer(&host.state().join("objects"), &tree, "logger");
    host.manifest.layers.push(layer);
    host
}

/// Runs the same program in many instances while servers come and go, until all have ended.
async fn run(host: &Host, count: u64, command: &[&str], lasts: Duration) -> (LocalProvider, Vec<InstanceId>) {
    let _sweeper = Sweeper(host.state());
    let specs: Vec<InstanceSpec> = (1..=count).map(|n| host.spec(n, command)).collect();
    let ids: Vec<InstanceId> = specs.iter().map(|spec| spec.id.clone()).collect();
    let wishes: Vec<_> = specs.into_iter().map(|spec| (spec, Wish::Stay)).collect();
    server::wish(host.state(), &wishes);
    let mut child = server::start(host.state());
    // All of them run before anything is killed, so that it is the running ones that are tried.
    let end = Instant::now() + PATIENCE;
    while !ids.iter().all(|id| local::instance_folder(host.state(), id).join("process.json").exists()) {
        assert!(Instant::now() < end, "not all were started");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..RESTARTS {
        tokio::time::sleep(lasts / (RESTARTS + 1)).await;
        assert_eq!(child.0.try_wait().unwrap(), None, "a server ended by itself");
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        child = server::start(host.state());
    }
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    let provider = host.provider();
    while !provider.list().await.unwrap().iter().all(|seen| matches!(seen.state, SeenState::Exited(_))) {
        assert!(Instant::now() < end, "not all ended");
        let _ = tokio::time::timeout(Duration::from_millis(20), provider.changed()).await;
    }
    let ended = SeenState::Exited(ExitReason::Status { code: 0 });
    let all = provider.list().await.unwrap();
    assert!(all.len() as u64 == count && all.iter().all(|seen| seen.state == ended), "{all:?}");
    (provider, ids)
}

async fn end(host: Host, provider: LocalProvider, ids: &[InstanceId]) {
    for id in ids {
        provider.absent(server::fence(), id).await.unwrap();
    }
    drop(provider);
    local::sweep(host.state()).unwrap();
    assert_eq!(inventory(host.state()), Inventory::default());
}

/// All frames that an instance's black box still holds, oldest first.
fn frames(host: &Host, id: &InstanceId) -> Vec<Frame> {
    let folder = local::instance_folder(host.state(), id);
    let mut frames = vec![];
    let mut size = 0;
    for name in ["out.0", "out.1"] {
        let bytes = std::fs::read(folder.join(name)).unwrap();
        size += bytes.len() as u64;
        let mut rest = &bytes[..];
        while let Some((frame, n)) = Frame::decode(rest) {
            frames.push(frame);
            rest = &rest[n..];
        }
        assert!(rest.is_empty(), "`{id}` has a damaged frame in `{name}`");
    }
    assert!(size <= SPOOL_BYTES_MAX, "`{id}` has {size} bytes");
    frames.sort_by_key(|frame| frame.sequence);
    frames
}

/// The number that a line begins with.
fn number(frame: &Frame) -> u64 {
    let text = String::from_utf8_lossy(&frame.line);
    text.split(' ').next().unwrap().parse().unwrap()
}

/// What the program says at its end.
fn written(frames: &[Frame]) -> u64 {
    let said = frames.iter().find(|frame| frame.stream == Stream::Err).unwrap();
    String::from_utf8_lossy(&said.line).strip_prefix("wrote ").unwrap().parse().unwrap()
}

/// At a rate that fits, every line is there.
pub async fn paced_lines() {
    let (count, seconds) = (setting("KILN_LOGGERS", 20), setting("KILN_LOG_SECONDS", 8));
    let host = with_loggers();
    let lines = seconds * RATE;
    let (all, rate) = (lines.to_string(), RATE.to_string());
    let lasts = Duration::from_secs(seconds);
    let (provider, ids) = run(&host, count, &["logger", "paced", &all, &rate], lasts).await;
    for id in &ids {
        let frames = frames(&host, id);
        assert_eq!(written(&frames), lines);
        assert!(frames.iter().all(|frame| frame.dropped == 0), "`{id}` dropped lines");
        let numbers = frames.iter().filter(|frame| frame.stream == Stream::Out).map(number);
        assert!(numbers.eq(0..lines), "`{id}` lost a line, or has one twice");
    }
    println!(
        "  {count} instances with {lines} lines each over {RESTARTS} kills of the server: nothing is missing"
    );
    end(host, provider, &ids).await;
}

/// Faster than what is kept: what is stored and what is counted as dropped is what was written.
pub async fn floods() {
    let host = with_loggers();
    // Enough to fill a black box more than once, also when the processor is shared.
    let (provider, ids) = run(&host, 3, &["logger", "flood", "4000"], Duration::from_secs(3)).await;
    let mut has_dropped = false;
    for id in &ids {
        let frames = frames(&host, id);
        let total = written(&frames);
        let last = frames.last().unwrap();
        // The program's last line, and pid 1's first and last.
        assert_eq!(frames.len() as u64 + last.dropped, total + 3, "`{id}`: {} stored", frames.len());
        let kept: Vec<&Frame> = frames.iter().filter(|frame| frame.stream == Stream::Out).collect();
        for pair in kept.windows(2) {
            let skipped = number(pair[1]) - number(pair[0]) - 1;
            let dropped = pair[1].dropped - pair[0].dropped;
            assert!(skipped <= dropped, "`{id}`: {skipped} lines are missing, {dropped} are counted");
        }
        println!("  {total} written, {} kept, {} dropped", frames.len(), last.dropped);
        has_dropped |= last.dropped > 0;
    }
    assert!(has_dropped, "this machine is too slow to fill a black box: this proves nothing");
    end(host, provider, &ids).await;
}
