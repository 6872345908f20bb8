//! The control socket: who may change the table, and what is told about it.

use crate::handover::{self, Estate, Offer};
use crate::health::Watchers;
use crate::limits::{DEPARTED_MAX, SWITCH_TIMEOUT};
use crate::persist::{self, Kept};
use crate::predecessor::Predecessor;
use crate::remote::{Listen, Start, spawn};
use crate::server::{EdgeConfig, program_identity};
use crate::shared::Shared;
use crate::sockets::{Place, Sockets};
use crate::table;
use crate::wire::{self, Answer, Ask};
use kiln_model::edge::EdgeStatus;
use kiln_model::route::TABLE_FORM;
use kiln_model::{Digest, Fence, Generation, RouteTable};
use serde_json::json;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Notify};

/// What `set` decides by.
#[derive(Debug, Default)]
struct Current {
    kept: Option<(Fence, Generation, Digest)>,
    /// The last switch that every thread saw.
    used: (Generation, Option<Digest>),
    /// The number of the last switch.
    switch: u64,
    /// The kept table is of another boot of the host: nobody has said in this one that its targets live.
    unproved: bool,
    /// Another edge is about to take over, or has: the table on the disk must stay as it is.
    frozen: bool,
    /// What the edge before was told last.
    followed: Option<(Generation, Digest)>,
    watchers: Watchers,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Control {
    dir: PathBuf,
    boot: String,
    /// See [`EdgeStatus::process`].
    process: String,
    /// Without and with TLS.
    listening: (Vec<String>, Vec<String>),
    /// What another edge with the same addresses is started with.
    arguments: Vec<String>,
    shared: Arc<Shared>,
    current: Mutex<Current>,
    pub(crate) estate: Estate,
    /// Set once.
    pub(crate) predecessor: OnceLock<Predecessor>,
    pub(crate) stop: Notify,
    n_asking: AtomicUsize,
}

/// Counts an unanswered question.
struct Asking<'a>(&'a AtomicUsize);

impl<'a> Asking<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Control {
    pub(crate) fn new(
        config: &EdgeConfig,
        process: String,
        listening: (&[SocketAddr], &[SocketAddr]),
        shared: Arc<Shared>,
        estate: Estate,
    ) -> Self {
        let texts = |all: &[SocketAddr]| all.iter().map(ToString::to_string).collect();
        let listen = Listen {
            plain: listening.0.to_vec(),
            tls: listening.1.to_vec(),
            certificates: config.certificates.clone(),
            internal: config.internal,
            proxies: config.proxies.clone(),
        };
        let mut arguments = listen.arguments();
        arguments.extend(config.access_log.then(|| "--access-log".to_owned()));
        Self {
            dir: config.dir.clone(),
            boot: config.boot.clone(),
            process,
            listening: (texts(listening.0), texts(listening.1)),
            arguments,
            shared,
            current: Mutex::default(),
            estate,
            predecessor: OnceLock::new(),
            stop: Notify::new(),
            n_asking: AtomicUsize::new(0),
        }
    }

    /// Puts the table of the last run into use: the newest sound copy, or none. After a reboot all its targets are dead and
    /// their addresses may be somebody else's: then the routes are known and lead nowhere.
    pub(crate) async fn restore(&self) {
        let mut current = self.current.lock().await;
        for path in [persist::current(&self.dir), persist::previous(&self.dir)] {
            let problem = match persist::load(path.clone()) {
                Ok(None) => continue,
                Ok(Some(kept)) => match table::validate(&kept.table) {
                    Ok(()) => {
                        if let Err(e) = self.shared.inside.prepare(&kept.table) {
                            let fields = json!({ "problem": chain(&e) });
                            self.shared.log.event("error", "names inside do not work", fields);
                        }
                        for e in self.shared.ports.restore(&kept.table) {
                            let fields = json!({ "problem": chain(&e) });
                            self.shared.log.event("error", "raw TCP routes do not work", fields);
                        }
                        let digest = kept.table.digest();
                        current.kept = Some((kept.fence, kept.generation, digest));
                        current.unproved = kept.boot != self.boot;
                        let fields = json!({ "path": path, "generation": kept.generation });
                        if current.unproved {
                            let routes = without_targets(kept.table);
                            self.switch(&mut current, Generation(0), None, &routes);
                            let words = "table of another boot, every request gets 503";
                            self.shared.log.event("warn", words, fields);
                        } else {
                            self.switch(&mut current, kept.generation, Some(digest), &kept.table);
                            self.shared.log.event("info", "table restored", fields);
                        }
                        return;
                    }
                    Err(e) => e.to_string(),
                },
                Err(e) => chain(&e),
            };
            self.shared.log.event("error", "table not usable", json!({ "path": path, "problem": problem }));
        }
        self.shared.log.event("warn", "no table, every request gets 503", json!({}));
    }

    /// Once all threads run.
    pub(crate) async fn settle(&self) {
        let mut current = self.current.lock().await;
        self.acknowledged(&mut current).await;
    }

    /// Accepts until the runtime ends or another edge takes over.
    pub(crate) async fn listen(self: Arc<Self>, listener: UnixListener) {
        let mut open = self.estate.open.subscribe();
        loop {
            if open.wait_for(|open| *open).await.is_err() || self.estate.is_replaced() {
                return;
            }
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = open.wait_for(|open| !*open) => continue,
            };
            match accepted {
                Ok((stream, _)) => drop(tokio::spawn(self.clone().talk(stream))),
                Err(_) => tokio::time::sleep(crate::limits::ACCEPT_PAUSE).await,
            }
        }
    }

    async fn talk(self: Arc<Self>, mut stream: UnixStream) {
        loop {
            let asked = wire::receive(&mut stream).await;
            let _asking = Asking::new(&self.n_asking);
            let answer = match asked {
                Ok(Ask::TakeOver {}) => return handover::give(&self, stream).await,
                Ok(ask) => self.answer(ask).await,
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return,
                Err(e) => {
                    // Framing is lost: tell why, and end the connection.
                    let _ = wire::send(&mut stream, &Answer::Failed { detail: e.to_string() }).await;
                    return;
                }
            };
            if wire::send(&mut stream, &answer).await.is_err() {
                return;
            }
        }
    }

    async fn answer(&self, ask: Ask) -> Answer {
        if self.estate.is_replaced() {
            // The connection is older than the edge that serves now.
            return Answer::Failed { detail: "another edge has taken its place, ask again".into() };
        }
        match ask {
            Ask::Set { fence, generation, table } => self.set(fence, generation, table).await,
            Ask::Status => Answer::Status { status: Box::new(self.status().await) },
            Ask::Upgrade { program, arguments } => self.upgrade(&program, arguments).await,
            Ask::Stop => {
                self.stop.notify_one();
                Answer::Done
            }
            Ask::TakeOver {} | Ask::Ready | Ask::Serving => {
                Answer::Failed { detail: "this is said in a hand-over".into() }
            }
        }
    }

    /// Whether somebody who asked has no answer yet.
    pub(crate) fn is_asked(&self) -> bool {
        self.n_asking.load(Ordering::Acquire) > 0
    }

    async fn set(&self, fence: Fence, generation: Generation, table: RouteTable) -> Answer {
        let mut current = self.current.lock().await;
        if current.frozen {
            return Answer::Failed { detail: "another edge is taking its place, ask again".into() };
        }
        let digest = table.digest();
        if let Some(detail) = current.kept.and_then(|kept| stale(kept, fence, generation, digest)) {
            return Answer::Stale { detail };
        }
        if let Err(e) = table::validate(&table) {
            return Answer::Invalid { detail: e.to_string() };
        }
        // Whoever sets it has seen its targets in this boot, also if it was kept before.
        let unproved = current.unproved;
        let same = !unproved && current.kept.is_some_and(|(_, g, d)| (g, d) == (generation, digest));
        let told = current.followed == Some((generation, digest));
        let follower =
            self.predecessor.get().filter(|_| !told).map(|predecessor| (predecessor, table.clone()));
        if unproved || current.kept != Some((fence, generation, digest)) {
            // First: once it is durable there is no way back, and a name must not lead to somebody else's listener.
            if let Err(e) = self.shared.inside.prepare(&table) {
                let detail = chain(&e);
                self.shared.log.event("error", "table not usable yet", json!({ "problem": detail }));
                return Answer::Failed { detail };
            }
            if let Err(e) = self.shared.ports.prepare(&table) {
                let detail = e.to_string();
                self.shared.log.event("error", "table not usable", json!({ "problem": detail }));
                return Answer::Invalid { detail };
            }
            let kept = Kept { fence, generation, table, boot: self.boot.clone() };
            if let Err(e) = persist::save(&self.dir, &kept) {
                self.shared.log.event("error", "table not stored", json!({ "problem": e.to_string() }));
                // Nobody would accept what comes there.
                self.shared.ports.keep_only(&self.shared.table.load().ports());
                return Answer::Failed { detail: format!("the table could not be stored: {e}") };
            }
            current.kept = Some((fence, generation, digest));
            current.unproved = false;
            if !same {
                self.switch(&mut current, generation, Some(digest), &kept.table);
                let fields =
                    json!({ "generation": generation, "digest": digest, "fence": fence.to_string() });
                self.shared.log.event("info", "table switched", fields);
            }
        }
        if !self.acknowledged(&mut current).await {
            return Answer::Failed { detail: "not every thread took the table in time".to_owned() };
        }
        if let Some((predecessor, table)) = follower {
            predecessor.follow(fence, generation, &table).await;
            current.followed = Some((generation, digest));
        }
        Answer::Done
    }

    /// Takes the table of the edge that took over into use, for the connections that are left here.
    pub(crate) async fn follow(&self, fence: Fence, generation: Generation, table: &RouteTable) -> Answer {
        if let Err(e) = table::validate(table) {
            return Answer::Failed { detail: e.to_string() };
        }
        let mut current = self.current.lock().await;
        self.switch(&mut current, generation, Some(table.digest()), table);
        if !self.acknowledged(&mut current).await {
            return Answer::Failed { detail: "not every thread took the table in time".to_owned() };
        }
        if let Some(predecessor) = self.predecessor.get() {
            predecessor.follow(fence, generation, table).await;
        }
        Answer::Done
    }

    /// Starts `program` as the next edge and waits until it has taken over; without `arguments` at the addresses of this one.
    async fn upgrade(&self, program: &Path, arguments: Vec<String>) -> Answer {
        let arguments = if arguments.is_empty() { self.arguments.clone() } else { arguments };
        self.log("info", "upgrade", json!({ "program": program, "arguments": arguments }));
        match spawn(program, &self.dir, &arguments, Start::TakeOver).await {
            Ok(_child) => Answer::Done,
            Err(e) => Answer::Failed { detail: chain(&e) },
        }
    }

    /// Whether the table may be changed.
    pub(crate) async fn freeze(&self, frozen: bool) {
        self.current.lock().await.frozen = frozen;
    }

    /// What the next edge is told.
    pub(crate) fn offer(&self, places: Vec<Place>) -> Offer {
        let table = self.shared.table.load();
        Offer { process: self.process.clone(), generation: table.generation, digest: table.digest, places }
    }

    pub(crate) fn sockets(&self) -> &Sockets {
        &self.shared.sockets
    }

    pub(crate) fn log(&self, level: &str, event: &str, fields: serde_json::Value) {
        self.shared.log.event(level, event, fields);
    }

    fn switch(
        &self,
        current: &mut Current,
        generation: Generation,
        digest: Option<Digest>,
        table: &RouteTable,
    ) {
        let compiled = self.shared.registry().compile(generation, digest, table);
        current.watchers.update(&self.shared, &compiled);
        current.switch = self.shared.switch(compiled);
        self.shared.inside.keep_only(table);
        self.shared.ports.keep_only(&self.shared.table.load().ports());
    }

    async fn acknowledged(&self, current: &mut Current) -> bool {
        let seen = tokio::time::timeout(SWITCH_TIMEOUT, self.shared.all_saw(current.switch)).await.is_ok();
        if seen {
            let table = self.shared.table.load();
            current.used = (table.generation, table.digest);
        }
        seen
    }

    /// What it knows, with what the edges that it took over from have counted.
    pub(crate) async fn status(&self) -> EdgeStatus {
        let mut status = self.own_status().await;
        if let Some(predecessor) = self.predecessor.get() {
            status.absorb(&predecessor.status().await);
        }
        status
    }

    async fn own_status(&self) -> EdgeStatus {
        let ((generation, digest), fence) = {
            let current = self.current.lock().await;
            (current.used, current.kept.map(|(fence, ..)| fence))
        };
        if self.shared.ports.retry() {
            self.shared.nudge();
        }
        let table = self.shared.table.load_full();
        let mut registry = self.shared.registry();
        registry.fold(&table, DEPARTED_MAX);
        let targets = registry.targets(&table);
        EdgeStatus {
            process: self.process.clone(),
            pid: std::process::id(),
            program: program_identity(),
            replaced: 0,
            generation,
            digest,
            fence,
            form: TABLE_FORM,
            ports: self.shared.ports.open(),
            listening: self.listening.0.clone(),
            tls: self.shared.tls.as_ref().map(|tls| tls.status(&self.listening.1)),
            internal: self.shared.inside.range(),
            names: table.names() as u64,
            waiting: registry.waiting(),
            log_lines_lost: self.shared.log.lost() + self.shared.access.as_ref().map_or(0, |log| log.lost()),
            routes: registry.routes(),
            targets: targets.iter().map(|(t, in_table)| t.report(*in_table)).collect(),
            unrouted: registry.unrouted(),
        }
    }
}

/// The same routes with nobody behind them.
fn without_targets(mut table: RouteTable) -> RouteTable {
    table.pools.iter_mut().for_each(|pool| pool.targets.clear());
    table
}

/// Why a table must not replace the one that is kept. A higher incarnation is a new history: its generations begin
/// anew.
fn stale(
    kept: (Fence, Generation, Digest),
    fence: Fence,
    generation: Generation,
    digest: Digest,
) -> Option<String> {
    let (kept_fence, kept_generation, kept_digest) = kept;
    if fence.server() < kept_fence.server() {
        return Some(format!("fence {fence} is older than {kept_fence}"));
    }
    if fence.incarnation > kept_fence.incarnation {
        return None;
    }
    if generation < kept_generation {
        return Some(format!("generation {kept_generation} is in use"));
    }
    let other = generation == kept_generation && digest != kept_digest;
    other.then(|| format!("generation {generation} is in use with {kept_digest}, not {digest}"))
}

/// The error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
