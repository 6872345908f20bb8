//! Many instances that do nothing: how long starting them takes, what each costs, how long each takes to go.

use crate::kiln::{Kiln, fence};
use crate::peers::Peers;
use crate::report::{Figures, at_most};
use crate::setting;
use kiln_model::{InstanceId, InstanceSpec};
use kiln_provider::{Provider, local};
use std::time::{Duration, Instant};

/// Started at the same time, so that neither one core nor one lock decides.
const TOGETHER: usize = 16;
/// Stopped one by one; the others all at once.
const ONE_BY_ONE: usize = 50;

/// Bytes of the host's memory.
#[derive(Debug, Clone, Copy)]
struct Memory {
    available: f64,
    slab: f64,
    stacks: f64,
    tables: f64,
}

impl Memory {
    /// Once what was freed has come back.
    async fn settled() -> Self {
        let mut last = Self::now();
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let next = Self::now();
            let is_still = (next.available - last.available).abs() < 512e3;
            last = next;
            if is_still {
                break;
            }
        }
        last
    }

    fn now() -> Self {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap();
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("");
            line.trim_start_matches(':')
                .split_whitespace()
                .next()
                .and_then(|w| w.parse::<f64>().ok())
                .unwrap_or(0.0)
                * 1024.0
        };
        Self {
            available: field("MemAvailable"),
            slab: field("Slab"),
            stacks: field("KernelStack"),
            tables: field("PageTables"),
        }
    }

    /// Prints what `n` instances took since then, each.
    fn print(&self, now: Self, n: usize, name: &str) -> f64 {
        let each = |before: f64, after: f64| (after - before) / n as f64 / 1e3;
        let available = each(now.available, self.available);
        println!(
            "{name}: {available:.0} kB each by MemAvailable; slab {:.0}, kernel stacks {:.0}, page tables {:.0} kB each",
            each(self.slab, now.slab),
            each(self.stacks, now.stacks),
            each(self.tables, now.tables)
        );
        available
    }
}

/// Kilobytes of a process that are its own, shared ones counted in parts.
fn proportional(pid: i32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or("");
    line.split_whitespace().next().and_then(|w| w.parse::<f64>().ok()).unwrap_or(0.0) * 1.024
}

fn children(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

fn pid_1(kiln: &Kiln, id: &InstanceId) -> i32 {
    let path = local::instance_folder(kiln.host.state(), id).join("process.json");
    let process: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    process["pid"].as_i64().unwrap() as i32
}

pub async fn all(kiln: &Kiln, peers: &Peers) {
    let count = setting("KILN_BENCH_IDLE", 500) as usize;
    println!("== {count} idle instances");
    let memory = ours(kiln, count).await;
    at_most("memory of an idle instance with its network", memory, "kB", 500.0);
    if peers.has_crun {
        theirs(peers, count).await;
    }
    println!();
}

async fn ours(kiln: &Kiln, count: usize) -> f64 {
    let specs: Vec<InstanceSpec> = (0..count).map(|_| kiln.spec(&["/bin/true", "for-ever"])).collect();
    let before = Memory::settled().await;
    let begun = Instant::now();
    for some in specs.chunks(TOGETHER) {
        let tasks: Vec<_> = some.iter().cloned().map(|spec| kiln.start_in_background(spec)).collect();
        for task in tasks {
            task.await.unwrap();
        }
    }
    let took = begun.elapsed();
    println!(
        "kiln: started in {:.2} s, {:.2} ms each",
        took.as_secs_f64(),
        took.as_secs_f64() * 1e3 / count as f64
    );
    let memory = before.print(Memory::settled().await, count, "kiln");
    let pids: Vec<i32> = specs.iter().map(|spec| pid_1(kiln, &spec.id)).collect();
    let average = |sum: f64| sum / count as f64;
    println!(
        "kiln: pid 1 {:.0} kB each, the program {:.0} kB each (PSS)",
        average(pids.iter().map(|pid| proportional(*pid)).sum()),
        average(pids.iter().flat_map(|pid| children(*pid)).map(proportional).sum())
    );
    let (some, rest) = specs.split_at(ONE_BY_ONE.min(count));
    let mut stops = Figures::default();
    for spec in some {
        stops.push(kiln.remove(&spec.id).await);
    }
    stops.line("kiln: stop, from the kill to nothing left, one by one");
    let begun = Instant::now();
    let tasks: Vec<_> = rest
        .iter()
        .map(|spec| {
            let (provider, id) = (kiln.provider.clone(), spec.id.clone());
            tokio::spawn(async move { provider.absent(fence(), &id).await.unwrap() })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let took = begun.elapsed().as_secs_f64();
    println!(
        "kiln: {} stopped at once in {took:.2} s, {:.2} ms each",
        rest.len(),
        took * 1e3 / rest.len().max(1) as f64
    );
    at_most("stop to clean, one by one", stops.median(), "ms", 10.0);
    memory
}

async fn theirs(peers: &Peers, count: usize) {
    let before = Memory::settled().await;
    let begun = Instant::now();
    let mut names = vec![];
    while names.len() < count {
        let some: Vec<_> =
            (0..TOGETHER.min(count - names.len())).map(|_| peers.crun_detached("idle")).collect();
        let (commands, new): (Vec<_>, Vec<_>) = some.into_iter().unzip();
        let answer = peers.run(&commands);
        assert!(answer.errors.is_empty(), "{:?}", answer.errors);
        names.extend(new);
    }
    println!("crun, no veth, nobody looking after it: started in {:.2} s", begun.elapsed().as_secs_f64());
    before.print(Memory::settled().await, count, "crun");
    let sum: f64 = names.iter().filter_map(|name| peers.crun_pid(name)).map(proportional).sum();
    println!("crun: the program {:.0} kB each (PSS)", sum / count as f64);
    let mut stops = Figures::default();
    for name in names.iter().take(ONE_BY_ONE) {
        stops.extend(&[peers.one(peers.crun_delete(name))]);
    }
    stops.line("crun: stop (`delete --force`), one by one");
    let begun = Instant::now();
    for some in names[ONE_BY_ONE.min(count)..].chunks(TOGETHER) {
        let commands: Vec<_> = some.iter().map(|name| peers.crun_delete(name)).collect();
        peers.run(&commands);
    }
    println!("crun: the others stopped in {:.2} s, {TOGETHER} at a time", begun.elapsed().as_secs_f64());
}
