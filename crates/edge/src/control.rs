//! The control socket: who may change the table, and what is told about it.

use crate::health::Watchers;
use crate::limits::{DEPARTED_MAX, SWITCH_TIMEOUT};
use crate::persist::{self, Kept};
use crate::server::EdgeConfig;
use crate::shared::Shared;
use crate::table;
use crate::wire::{self, Answer, Ask};
use kiln_model::edge::EdgeStatus;
use kiln_model::route::TABLE_FORM;
use kiln_model::{Digest, Fence, Generation, RouteTable};
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
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
    watchers: Watchers,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Control {
    dir: PathBuf,
    boot: String,
    process: String,
    /// Without and with TLS.
    listening: (Vec<String>, Vec<String>),
    shared: Arc<Shared>,
    current: Mutex<Current>,
    pub(crate) stop: Notify,
}

impl Control {
    pub(crate) fn new(
        config: &EdgeConfig,
        process: String,
        listening: (Vec<String>, Vec<String>),
        shared: Arc<Shared>,
    ) -> Self {
        let (dir, boot) = (config.dir.clone(), config.boot.clone());
        Self { dir, boot, process, listening, shared, current: Mutex::default(), stop: Notify::new() }
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

    /// Accepts until the runtime ends.
    pub(crate) async fn listen(self: Arc<Self>, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(self.clone().talk(stream))),
                Err(_) => tokio::time::sleep(crate::limits::ACCEPT_PAUSE).await,
            }
        }
    }

    async fn talk(self: Arc<Self>, mut stream: UnixStream) {
        loop {
            let answer = match wire::receive(&mut stream).await {
                Ok(Ask::Set { fence, generation, table }) => self.set(fence, generation, table).await,
                Ok(Ask::Status) => Answer::Status { status: Box::new(self.status().await) },
                Ok(Ask::Stop) => {
                    self.stop.notify_one();
                    Answer::Done
                }
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

    async fn set(&self, fence: Fence, generation: Generation, table: RouteTable) -> Answer {
        let mut current = self.current.lock().await;
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
        if self.acknowledged(&mut current).await {
            return Answer::Done;
        }
        Answer::Failed { detail: "not every thread took the table in time".to_owned() }
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

    async fn status(&self) -> EdgeStatus {
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
