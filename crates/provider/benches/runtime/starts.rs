//! One start after the other, with a pause between them, and many at once.

use crate::kiln::Kiln;
use crate::peers::Peers;
use crate::report::{Figures, times};
use crate::setting;
use std::time::{Duration, Instant};

/// Of the slower peers there are fewer rounds.
const PODMAN_EACH: u64 = 10;
/// Between starts that are not back to back.
const PAUSE: Duration = Duration::from_millis(30);
const AT_ONCE: usize = 32;

/// What is measured of kiln in each round.
#[derive(Default)]
struct Own {
    started: Figures,
    ended: Figures,
    removed: Figures,
    paused: [Figures; 2],
    client: Figures,
}

impl Own {
    async fn round(&mut self, kiln: &Kiln) {
        let [started, ended, removed] = kiln.life().await;
        self.started.push(started);
        self.ended.push(ended);
        self.removed.push(removed);
        tokio::time::sleep(PAUSE).await;
        let [started, ended, _] = kiln.life().await;
        self.paused[0].push(started);
        self.paused[1].push(ended);
        self.client.push(kiln.by_a_client().await);
    }

    fn print(&self, name: &str) {
        self.started.line(&format!("kiln {name}: start to executed, in the server (`ensure`)"));
        self.client.line(&format!("kiln {name}: the same, asked by a process started for it"));
        self.ended.line(&format!("kiln {name}: start to exit collected"));
        self.removed.line(&format!("kiln {name}: start to exit collected and all removed"));
        self.paused[0].line(&format!("kiln {name}: start to executed, after a pause of 30 ms"));
        self.paused[1].line(&format!("kiln {name}: start to exit collected, after a pause of 30 ms"));
    }
}

pub async fn alternating(cold: &Kiln, warm: &Kiln, peers: &Peers) {
    println!("== one start at a time");
    let (mut own_cold, mut own_warm) = (Own::default(), Own::default());
    let [mut crun, mut crun_started, mut crun_paused, mut bridge, mut none] =
        [(); 5].map(|()| Figures::default());
    // The first of each is not counted: it fills caches.
    cold.life().await;
    warm.life().await;
    // Whatever one of them did, the others are not to pay for what it does afterwards.
    let settle = || [cold, warm].map(|kiln| kiln.provider.wait_until_ready());
    for round in 0..setting("KILN_BENCH_ROUNDS", 100) {
        settle();
        own_cold.round(cold).await;
        settle();
        own_warm.round(warm).await;
        settle();
        if peers.has_crun {
            crun.extend(&[peers.one(peers.crun("run"))]);
            tokio::time::sleep(PAUSE).await;
            crun_paused.extend(&[peers.one(peers.crun("run"))]);
            let (command, name) = peers.crun_detached("run");
            crun_started.extend(&[peers.one(command)]);
            peers.one(peers.crun_delete(&name));
        }
        if peers.has_podman && round % PODMAN_EACH == 0 {
            bridge.extend(&[peers.one(peers.podman("podman"))]);
            none.extend(&[peers.one(peers.podman("none"))]);
        }
    }
    own_cold.print("cold");
    own_warm.print("warm");
    crun_started.line("crun: start to executed (`run --detach`), its process included");
    crun.line("crun: start to exit collected and all removed (`run`)");
    crun_paused.line("crun: the same, after a pause of 30 ms");
    bridge.line("podman: start to exit collected and all removed, its bridge");
    none.line("podman: the same, no network");
    times("crun / kiln cold, to executed", &crun_started, &own_cold.started, 6.0);
    times("crun / kiln cold, to exit collected", &crun, &own_cold.ended, 6.0);
    times("crun / kiln cold, to exit collected, after a pause", &crun_paused, &own_cold.paused[1], 6.0);
    times("crun / kiln warm, to executed", &crun_started, &own_warm.started, 12.0);
    times("crun / kiln warm, to exit collected", &crun, &own_warm.ended, 12.0);
    times("crun / kiln warm, to exit collected, after a pause", &crun_paused, &own_warm.paused[1], 12.0);
    times("podman's bridge / kiln cold, to exit collected", &bridge, &own_cold.ended, 150.0);
    times("podman's bridge / kiln warm, to exit collected", &bridge, &own_warm.ended, 150.0);
    println!();
}

/// Milliseconds until all are executed, and until all have ended.
async fn at_once(kiln: &Kiln) -> [Duration; 2] {
    let specs: Vec<_> = (0..AT_ONCE).map(|_| kiln.spec(&["/bin/true"])).collect();
    let begun = Instant::now();
    let tasks: Vec<_> = specs.iter().map(|spec| kiln.start_in_background(spec.clone())).collect();
    let mut again = 0;
    for task in tasks {
        again += task.await.unwrap();
    }
    let executed = begun.elapsed();
    for spec in &specs {
        kiln.ended(&spec.id).await;
    }
    let ended = begun.elapsed();
    for spec in &specs {
        kiln.remove(&spec.id).await;
    }
    if again > 0 {
        println!("  {again} starts were asked for again");
    }
    [executed, ended]
}

pub async fn concurrent(cold: &Kiln, warm: &Kiln, peers: &Peers) {
    println!("== {AT_ONCE} starts at once");
    let mut figures = [(); 6].map(|()| Figures::default());
    let rounds = setting("KILN_BENCH_ROUNDS", 100).div_ceil(10);
    for round in 0..rounds {
        for (n, kiln) in [cold, warm].into_iter().enumerate() {
            let [executed, ended] = at_once(kiln).await;
            figures[2 * n].push(executed);
            figures[2 * n + 1].push(ended);
        }
        if peers.has_crun {
            let commands: Vec<_> = (0..AT_ONCE).map(|_| peers.crun("run")).collect();
            let answer = peers.run(&commands);
            assert!(answer.errors.is_empty(), "{:?}", answer.errors);
            figures[4].extend(&[answer.all()]);
        }
        // One round: it takes seconds.
        if peers.has_podman && round == 0 {
            let commands: Vec<_> = (0..AT_ONCE).map(|_| peers.podman("podman")).collect();
            let answer = peers.run(&commands);
            println!("  podman: {} of {AT_ONCE} failed", answer.errors.len());
            figures[5].extend(&[answer.all()]);
        }
    }
    let [cold_executed, cold_ended, warm_executed, warm_ended, crun, podman] = &figures;
    cold_executed.line("kiln cold: all executed");
    cold_ended.line("kiln cold: all exits collected");
    warm_executed.line("kiln warm: all executed");
    warm_ended.line("kiln warm: all exits collected");
    crun.line("crun: all exits collected and removed");
    podman.line("podman, its bridge: all exits collected and removed");
    times("crun / kiln cold", crun, cold_ended, 6.0);
    times("crun / kiln warm", crun, warm_ended, 6.0);
    times("podman / kiln cold", podman, cold_ended, 150.0);
    println!();
}
