//! Keeps an edge running: adopts the one that answers, starts one if none does, starts it again if it dies, and ends one that
//! lives but does not answer: it holds the addresses, so that nobody could take its place.

use kiln_edge::client::Router;
use kiln_edge::{EdgeClient, Listen, SpawnError, control_socket, spawn_edge};
use kiln_model::edge::EdgeStatus;
use kiln_plan::explain::EDGE_SILENCE_MAX;
use rustix::process::Signal;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Time between two looks at the edge.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long one look may take.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// How long the end of a hung edge may take.
const KILL_MAX: Duration = Duration::from_secs(10);
/// Looks without an answer after which an edge counts as dead.
const MISSES_MAX: u32 = 3;
/// Time before the next try when an edge could not be started.
const PAUSE: Duration = Duration::from_secs(2);

/// What the keeper needs to know.
#[derive(Debug, Clone)]
pub struct KeeperConfig {
    /// The kiln program, started as `PROGRAM edge`.
    pub program: PathBuf,
    /// Which build that is, see [`EdgeStatus::program`].
    pub identity: String,
    /// The edge's folder, `STATE/edge`.
    pub dir: PathBuf,
    /// Where it shall listen.
    pub listen: Listen,
}

/// Looks after one edge.
pub struct Keeper {
    config: KeeperConfig,
    client: EdgeClient,
    child: Option<std::process::Child>,
}

impl Keeper {
    /// Adopts the running edge or starts one. One of another build, or with other addresses than it should have, is upgraded:
    /// no connection is lost.
    pub async fn start(config: KeeperConfig) -> Result<Self, SpawnError> {
        let client = EdgeClient::new(control_socket(&config.dir));
        let mut keeper = Self { config, client, child: None };
        match keeper.client.status().await {
            Ok(status) => keeper.renew(&status).await,
            // Asking took longer than any that works needs.
            Err(_) => {
                keeper.end_hung().await;
                keeper.child = Some(keeper.spawn().await?);
            }
        }
        keeper.warn().await;
        Ok(keeper)
    }

    /// Upgrades the running edge if it is not as it should be. It serves on if that comes to nothing.
    async fn renew(&self, status: &EdgeStatus) {
        let differences = self.differences(status);
        if differences.is_empty() {
            return;
        }
        let what = differences.join(", ");
        if status.pid == 0 {
            eprintln!(
                "kiln: warning: the running edge {what}, and is too old to be upgraded; stop it with SIGTERM, and a new one starts"
            );
            return;
        }
        let listen = &self.config.listen;
        // Without addresses it is somebody else's, a service manager's: it keeps its own. So it does with those that the
        // kernel chose.
        let mut given = listen.plain.iter().chain(&listen.tls).peekable();
        let is_told = given.peek().is_some() && given.all(|address| address.port() != 0);
        let listen = is_told.then_some(listen);
        match self.client.upgrade(&self.config.program, listen).await {
            Ok(()) => eprintln!("kiln: the running edge {what}; upgraded it"),
            Err(error) => eprintln!("kiln: warning: the running edge {what}, and was not upgraded: {error}"),
        }
    }

    async fn spawn(&self) -> Result<std::process::Child, SpawnError> {
        let KeeperConfig { program, dir, listen, .. } = &self.config;
        spawn_edge(program, dir, listen).await
    }

    /// In which ways the running edge is not as it should be.
    fn differences(&self, status: &EdgeStatus) -> Vec<String> {
        let listen = &self.config.listen;
        let mut all = vec![];
        if status.program != self.config.identity {
            all.push("is of another build of kiln".to_owned());
        }
        if listen.plain.is_empty() && listen.tls.is_empty() {
            return all;
        }
        let internal = listen.internal.map(|range| range.to_string());
        if let Some(internal) = internal.filter(|own| status.internal.as_ref() != Some(own)) {
            all.push(format!("does not serve the names of services at {internal}"));
        }
        let secure = status.tls.as_ref().map_or(&[][..], |tls| &tls.listening);
        let wanted = listen.plain.iter().map(|a| (a, &status.listening[..], ""));
        let wanted = wanted.chain(listen.tls.iter().map(|a| (a, secure, " for TLS")));
        let missing = wanted.filter(|(a, there, _)| a.port() != 0 && !there.contains(&a.to_string()));
        all.extend(missing.map(|(address, _, how)| format!("does not listen on {address}{how}")));
        all
    }

    /// Says what is wrong with certificates: the edge serves on, and somebody must know.
    async fn warn(&self) {
        let Ok(status) = self.client.status().await else { return };
        for problem in status.tls.iter().flat_map(|tls| &tls.problems) {
            eprintln!("kiln: warning: {problem}; the edge does not use it");
        }
    }

    /// Kills the edge that listens and does not answer, if there is one, and waits for its end.
    async fn end_hung(&self) {
        let Some(pid) = self.client.holder().await else { return };
        let Ok(process) = kiln_sys::process::open_pid(pid) else { return };
        // It still listens, so the number was not given to another process before it was opened.
        if self.client.holder().await != Some(pid) {
            return;
        }
        eprintln!("kiln: warning: the edge (pid {pid}) lives but does not answer; ending it");
        let ended = tokio::task::spawn_blocking(move || {
            kiln_sys::process::signal(process.as_fd(), Signal::KILL.as_raw())?;
            kiln_sys::process::wait_readable(process.as_fd(), Some(KILL_MAX))
        });
        if !matches!(ended.await, Ok(Ok(true))) {
            eprintln!("kiln: error: the edge (pid {pid}) could not be ended");
        }
    }

    /// Looks after it until `stop` says so. The edge lives on.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut misses = 0;
        let mut answered = Instant::now();
        while !*stop.borrow_and_update() {
            let pause = tokio::time::sleep(LOOK_EVERY);
            tokio::select! { () = pause => {} _ = stop.changed() => {} }
            let ended = self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))));
            if ended {
                self.child = None;
            }
            let look = tokio::time::timeout(LOOK_MAX, self.client.status()).await;
            misses = if matches!(look, Ok(Ok(_))) { 0 } else { misses + 1 };
            if misses == 0 {
                answered = Instant::now();
                continue;
            }
            if misses < MISSES_MAX && !ended {
                continue;
            }
            if self.client.holder().await.is_some() {
                // It may only be slow: it serves, and ending it would not.
                if answered.elapsed() < EDGE_SILENCE_MAX.duration() {
                    continue;
                }
                self.end_hung().await;
            }
            eprintln!("kiln: warning: the edge does not answer; starting it again");
            match self.spawn().await {
                Ok(child) => (self.child, misses, answered) = (Some(child), 0, Instant::now()),
                Err(error) => {
                    eprintln!("kiln: error: {}", kiln_image::worker::chain(&error));
                    tokio::select! { () = tokio::time::sleep(PAUSE) => {} _ = stop.changed() => {} }
                }
            }
        }
    }
}
