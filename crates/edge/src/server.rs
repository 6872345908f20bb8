//! The edge as a process: listeners, one runtime per core, the control thread, and the end.

use crate::access;
use crate::alarm;
use crate::bind::{bind, bind_first};
use crate::control::{Control, chain};
use crate::door::Door;
use crate::handover::{self, Estate, Giver, Inheritance};
use crate::limits::*;
use crate::log::Log;
use crate::mux;
use crate::notify;
use crate::persist;
use crate::pool;
use crate::shared::{Open, Parts, Phase, Shared};
use crate::sockets::{Passed, for_threads};
use crate::table;
use crate::tls::Tls;
use kiln_model::{Cidr, ServiceRange};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::json;
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, IsTerminal};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// What `accept` says when descriptors or memory of the process or the host are used up.
const EXHAUSTED: [Errno; 4] = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS];

/// What an edge needs to run.
#[derive(Debug, Clone)]
pub struct EdgeConfig {
    /// Its folder, `STATE/edge`: control socket, table, logs.
    pub dir: PathBuf,
    /// Where it takes traffic. Port 0 lets the kernel choose; `status` tells.
    pub listen: Vec<SocketAddr>,
    /// Where it takes traffic over TLS.
    pub listen_tls: Vec<SocketAddr>,
    /// The folder of certificates; none means `DIR/certificates`, which is made if TLS is listened for.
    pub certificates: Option<PathBuf>,
    /// Where instances find the services of their environment by name; none serves no names.
    pub internal: Option<ServiceRange>,
    /// Proxies whose PROXY protocol headers are believed, and have to come.
    pub proxies: Vec<Cidr>,
    /// Which boot of the host this is: no target of a table that was kept in another one is sent anything.
    pub boot: String,
    /// Data-path threads; none means one per core.
    pub threads: Option<usize>,
    /// Whether it writes `access.log`.
    pub access_log: bool,
    /// Whether it takes the place of the edge that runs in the folder, with all sockets and without losing a connection. If none
    /// does, it starts as usual.
    pub take_over: bool,
    /// How long an instance may take until the head of its answer.
    pub answer_timeout: Duration,
    /// How long a client may take for the head of a request.
    pub head_timeout: Duration,
    /// How long a client may take nothing of what it is sent.
    pub stall_timeout: Duration,
}

impl EdgeConfig {
    /// The defaults: one thread per core, no access log.
    pub fn new(dir: impl Into<PathBuf>, listen: Vec<SocketAddr>, boot: impl Into<String>) -> Self {
        Self {
            dir: dir.into(),
            listen,
            listen_tls: vec![],
            certificates: None,
            internal: None,
            proxies: vec![],
            boot: boot.into(),
            threads: None,
            access_log: false,
            take_over: false,
            answer_timeout: ANSWER_TIMEOUT,
            head_timeout: HEAD_TIMEOUT,
            stall_timeout: STALL_TIMEOUT,
        }
    }
}

/// Why the edge did not start or ended.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// The folder cannot be made or written.
    #[error("the edge's folder `{path}` cannot be used")]
    Dir {
        /// The folder or file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Another edge runs with the same folder.
    #[error("another edge already uses `{path}`")]
    Busy {
        /// The lock.
        path: PathBuf,
    },
    /// It has nowhere to listen.
    #[error("no address to listen on was given")]
    NoAddress,
    /// An address is taken or not this host's.
    #[error("the edge cannot listen on `{address}`")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The control socket cannot be made.
    #[error("the control socket `{path}` cannot be made")]
    Control {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A runtime, thread or signal handler cannot be made.
    #[error("{what} cannot be started")]
    Runtime {
        /// Which.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The edge that runs in the folder serves on. Hint for users: one that is older than kiln's hand-over is ended with SIGTERM.
    #[error("the running edge was not replaced: {detail}")]
    TakeOver {
        /// Its own words, or what it did not do.
        detail: String,
    },
    /// TLS cannot be had at all.
    #[error("TLS cannot be used")]
    Tls {
        /// The cause.
        #[source]
        source: rustls::Error,
    },
    /// A data-path thread ended; what supervises the edge should start it again.
    #[error("data-path thread {thread} ended")]
    Thread {
        /// Which.
        thread: usize,
    },
}

/// What a failed start leaves in `DIR/error.txt` for whoever started the edge.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StartFailure {
    /// The address that is taken, if that was it.
    pub(crate) in_use: Option<SocketAddr>,
    pub(crate) detail: String,
}

/// Where a failed start is described.
pub(crate) fn failure_path(dir: &Path) -> PathBuf {
    dir.join("error.txt")
}

/// Where control speaks to the edge of a folder.
pub fn control_socket(dir: &Path) -> PathBuf {
    dir.join("control.sock")
}

/// Names the build of the program that runs: its version, its size and the time of its last change. Another file may have the
/// same name by now.
pub fn program_identity() -> String {
    let file = fs::metadata("/proc/self/exe");
    let file =
        file.map(|file| (file.len(), file.mtime() as i128 * 1_000_000_000 + i128::from(file.mtime_nsec())));
    let (length, changed) = file.unwrap_or_default();
    format!("{}-{length:x}-{changed:x}", env!("CARGO_PKG_VERSION"))
}

/// Runs an edge until SIGTERM, SIGINT or `stop`. Without a terminal it becomes a session of its own, so that it
/// outlives who started it.
pub fn run(config: EdgeConfig) -> Result<(), EdgeError> {
    if !io::stdin().is_terminal() {
        // Fails if it leads a session already, as under systemd: then there is nothing to do.
        let _ = rustix::process::setsid();
    }
    let result = serve(&config);
    if let Err(error) = &result {
        let in_use = match error {
            EdgeError::Bind { address, source } if source.kind() == io::ErrorKind::AddrInUse => {
                Some(*address)
            }
            _ => None,
        };
        let failure = StartFailure { in_use, detail: chain(error) };
        // The lock's holder is healthy: its folder is not ours to write to.
        let of_another = matches!(error, EdgeError::Busy { .. });
        if !of_another {
            let _ = fs::write(failure_path(&config.dir), serde_json::to_vec(&failure).unwrap_or_default());
        }
    }
    result
}

/// What an edge has before it binds anything: of its own, or from the edge before.
struct Beginning {
    lock: fs::File,
    socket: StdUnixListener,
    passed: Arc<Passed>,
    /// Names the counts.
    process: String,
    giver: Option<Giver>,
}

impl Beginning {
    fn of(config: &EdgeConfig, runtime: &Runtime) -> Result<Self, EdgeError> {
        let dir = &config.dir;
        if config.take_over
            && let Some(inheritance) = runtime.block_on(handover::take(dir))?
        {
            return Self::inherit(config, runtime, inheritance);
        }
        let lock_path = dir.join("lock");
        let lock = fs::File::create(&lock_path);
        let lock = lock.map_err(|source| EdgeError::Dir { path: lock_path.clone(), source })?;
        lock.try_lock().map_err(|_| EdgeError::Busy { path: lock_path })?;
        let path = control_socket(dir);
        let failed = |source| EdgeError::Control { path: path.clone(), source };
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        // Nobody is refused or answered until it is listened on.
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
        socket.bind(&SockAddr::unix(&path).map_err(failed)?).map_err(failed)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let process = format!("{}-{:016x}", std::process::id(), RandomState::new().hash_one(0));
        Ok(Self { lock, socket: socket.into(), passed: Arc::default(), process, giver: None })
    }

    /// Finds out whether this program can serve as the edge before did, while that still does.
    fn inherit(config: &EdgeConfig, runtime: &Runtime, inheritance: Inheritance) -> Result<Self, EdgeError> {
        let Inheritance { lock, control, passed, offer, mut giver } = inheritance;
        let refused = |detail: String| EdgeError::TakeOver { detail };
        if offer.digest.is_some() {
            let kept = persist::load(persist::current(&config.dir)).map_err(|e| refused(chain(&e)))?;
            let kept = kept.ok_or_else(|| refused("its table is not on the disk".into()))?;
            table::validate(&kept.table).map_err(|e| refused(chain(&e)))?;
            if (kept.generation, Some(kept.table.digest())) != (offer.generation, offer.digest) {
                return Err(refused("this program does not read its table as it does".into()));
            }
        }
        runtime.block_on(giver.begin())?;
        Ok(Self { lock, socket: control, passed, process: offer.process, giver: Some(giver) })
    }
}

fn serve(config: &EdgeConfig) -> Result<(), EdgeError> {
    let dir = &config.dir;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| EdgeError::Dir { path: dir.clone(), source })?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let n_threads = config.threads.unwrap_or(cores).max(1);
    if config.listen.is_empty() && config.listen_tls.is_empty() {
        return Err(EdgeError::NoAddress);
    }
    let connections_max = raise_descriptors();
    let runtime = runtime("the control thread's runtime")?;
    let _entered = runtime.enter();
    let tls = if config.listen_tls.is_empty() { None } else { Some(Arc::new(certificates(config)?)) };
    let Beginning { lock, socket, passed, process, giver } = Beginning::of(config, &runtime)?;
    // All sockets are bound before the first one is served.
    let mut per_thread: Vec<Vec<(Door, StdListener)>> = (0..n_threads).map(|_| vec![]).collect();
    let mut bind_all = |addresses: &[SocketAddr], secure: bool| -> Result<Vec<SocketAddr>, EdgeError> {
        let door = Door::World { secure };
        let bind_at = |address: &SocketAddr| {
            let failed = |source| EdgeError::Bind { address: *address, source };
            let mut there = passed.take(door.purpose(), *address);
            if there.is_empty() {
                there.push(bind_first(*address).map_err(failed)?);
            }
            let real = there[0].local_addr().unwrap_or(*address);
            for (thread, listener) in for_threads(there, n_threads, || bind(real)).map_err(failed)? {
                per_thread[thread].push((door.clone(), listener));
            }
            Ok(real)
        };
        addresses.iter().map(bind_at).collect()
    };
    let (plain, secure) = (bind_all(&config.listen, false)?, bind_all(&config.listen_tls, true)?);
    // Whoever is sent to HTTPS goes to the port that clients take by themselves, if it is listened on.
    let https_port = secure.iter().map(SocketAddr::port).min_by_key(|port| *port != 443);
    let https_port = https_port.filter(|port| *port != 443);
    let access = config.access_log.then(|| Arc::new(Log::new(dir, "access.log", ACCESS_LOG_BYTES_MAX)));
    let log = Log::new(dir, "edge.log", LOG_BYTES_MAX);
    let listening = plain.iter().chain(&secure).copied().collect();
    let passed_on = passed.clone();
    let parts =
        Parts { listening, n_threads, connections_max, log, access, tls, https_port, passed: passed_on };
    let shared = Arc::new(Shared::new(config, parts));
    let failed = |source| EdgeError::Control { path: control_socket(dir), source };
    let own = socket.try_clone().map_err(failed)?;
    let control = Control::new(config, process, (&plain, &secure), shared.clone(), Estate::new(lock, own));
    let control = Arc::new(control);
    let _ = fs::remove_file(failure_path(dir));
    let result = runtime.block_on(live(&shared, &control, per_thread, Ways { socket, passed, giver }));
    if result.is_ok() && !control.estate.is_replaced() {
        let _ = fs::remove_file(control_socket(dir));
    }
    shared.log.event(
        "info",
        "ended",
        json!({ "connections_left": shared.n_connections.load(Ordering::Acquire) }),
    );
    result
}

/// How control and the edge before are reached.
struct Ways {
    socket: StdUnixListener,
    passed: Arc<Passed>,
    giver: Option<Giver>,
}

/// The folder of certificates, without reading it yet.
fn certificates(config: &EdgeConfig) -> Result<Tls, EdgeError> {
    let own = || config.dir.join("certificates");
    let dir = config.certificates.clone().unwrap_or_else(own);
    if config.certificates.is_none() {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(|source| EdgeError::Dir { path: dir.clone(), source })?;
    }
    Tls::new(dir).map_err(|source| EdgeError::Tls { source })
}

/// As many descriptors as the process may have: connections take two each, and every thread has a listener for each
/// environment. The default limit is for programs that use `select`. Answers how many connections there may be at a time, so that
/// each of them can reach an instance.
fn raise_descriptors() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    // Cannot fail below the maximum; if it did, what is refused then is told where it happens.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let Some(maximum) = maximum else { return usize::MAX };
    (usize::try_from(maximum).unwrap_or(usize::MAX).saturating_sub(DESCRIPTORS_KEPT) / 2).max(CONNECTIONS_MIN)
}

fn runtime(what: &'static str) -> Result<Runtime, EdgeError> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|source| EdgeError::Runtime { what, source })
}

/// From the first thread to the last connection.
async fn live(
    shared: &Arc<Shared>,
    control: &Arc<Control>,
    per_thread: Vec<Vec<(Door, StdListener)>>,
    ways: Ways,
) -> Result<(), EdgeError> {
    let on = |kind| signal(kind).map_err(|source| EdgeError::Runtime { what: "a signal handler", source });
    let (mut term, mut int) = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
    if let Some(tls) = &shared.tls {
        let first = tls.start(&shared.log);
        tokio::spawn(tls.clone().watch(shared.clone(), first, on(SignalKind::hangup())?));
    }
    control.restore().await;
    let (ended, mut endings) = mpsc::unbounded_channel();
    let mut threads = vec![];
    for (thread, listeners) in per_thread.into_iter().enumerate() {
        let worker = Worker { shared: shared.clone(), thread, _ended: Ended(ended.clone(), thread) };
        let runtime = runtime("a data-path thread's runtime")?;
        let spawned = std::thread::Builder::new()
            .name(format!("edge-{thread}"))
            .spawn(move || runtime.block_on(worker.run(listeners)));
        threads.push(spawned.map_err(|source| EdgeError::Runtime { what: "a data-path thread", source })?);
    }
    control.settle().await;
    let n_closed = ways.passed.close_rest();
    let failed = |source| EdgeError::Control { path: control_socket(&shared.dir), source };
    // Upon this it is this process that the kernel names to those who connect.
    rustix::net::listen(&ways.socket, CONTROL_BACKLOG).map_err(|e| failed(e.into()))?;
    ways.socket.set_nonblocking(true).map_err(failed)?;
    let socket = UnixListener::from_std(ways.socket).map_err(failed)?;
    let took_over = ways.giver.is_some();
    if let Some(giver) = ways.giver {
        let _ = control.predecessor.set(giver.serving().await);
    }
    let fields = json!({ "pid": std::process::id(), "took_over": took_over, "listeners_closed": n_closed });
    shared.log.event("info", "started", fields);
    tokio::spawn(control.clone().listen(socket));
    notify::ready();
    let end = tokio::select! {
        _ = term.recv() => End::Stopped,
        _ = int.recv() => End::Stopped,
        () = control.stop.notified() => End::Stopped,
        () = control.estate.replaced() => End::Replaced,
        Some(thread) = endings.recv() => return Err(EdgeError::Thread { thread }),
    };
    match end {
        End::Stopped => wind_down(shared, control).await,
        End::Replaced => {
            let stop = async {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = int.recv() => {}
                    () = control.stop.notified() => {}
                }
            };
            drain(shared, control, stop).await;
            // What is still there is cut, and counted.
            shared.enter(Phase::Ended);
            let joined =
                tokio::task::spawn_blocking(move || threads.into_iter().for_each(|t| drop(t.join())));
            let _ = joined.await;
            control.estate.say_last(control.status().await).await;
            // Who asked for the upgrade has an answer to come.
            let answered = async {
                while control.is_asked() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            let _ = tokio::time::timeout(HANDOVER_TIMEOUT, answered).await;
        }
    }
    Ok(())
}

/// Why an edge ends.
enum End {
    Stopped,
    /// By another edge, which accepts by now.
    Replaced,
}

/// Lets clients go: they are told first, idle connections are closed later, and the rest has until a hard end.
async fn wind_down(shared: &Arc<Shared>, control: &Control) {
    shared.log.event("info", "stopping", json!({}));
    let hard = tokio::time::Instant::now() + STOP_TIMEOUT;
    if let Some(predecessor) = control.predecessor.get() {
        predecessor.stop().await;
    }
    shared.enter(Phase::LameDuck);
    if tokio::time::timeout(LAME_DUCK, all_gone(shared)).await.is_err() {
        shared.enter(Phase::Closing);
        let _ = tokio::time::timeout_at(hard, all_gone(shared)).await;
    }
}

/// As [`wind_down`], but what is under way may go on for long: another edge serves. `stop` ends it earlier.
async fn drain(shared: &Arc<Shared>, control: &Control, stop: impl Future<Output = ()>) {
    shared.enter(Phase::LameDuck);
    let rest = async {
        if tokio::time::timeout(LAME_DUCK, all_gone(shared)).await.is_err() {
            shared.enter(Phase::Closing);
            all_gone(shared).await;
        }
        // The edge after this one knows of the one before only through this one.
        while let Some(predecessor) = control.predecessor.get()
            && !predecessor.is_gone().await
        {
            predecessor.status().await;
            tokio::time::sleep(PREDECESSOR_LOOK_EVERY).await;
        }
    };
    tokio::select! {
        _ = tokio::time::timeout(REPLACED_DRAIN, rest) => {}
        () = stop => wind_down(shared, control).await,
    }
}

async fn all_gone(shared: &Shared) {
    while shared.n_connections.load(Ordering::Acquire) > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Tells that a thread has ended, however it did.
struct Ended(mpsc::UnboundedSender<usize>, usize);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.send(self.1);
    }
}

/// One data-path thread.
struct Worker {
    shared: Arc<Shared>,
    thread: usize,
    _ended: Ended,
}

impl Worker {
    async fn run(self, listeners: Vec<(Door, StdListener)>) {
        for (door, listener) in listeners {
            if !self.open(door, listener) {
                return;
            }
        }
        let mut switches = self.shared.switch.subscribe();
        switches.mark_changed();
        let mut phase = self.shared.phase.subscribe();
        let mut tick = tokio::time::interval(ALARM_TICK);
        loop {
            tokio::select! {
                changed = switches.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // Between two polls: no request of this thread is in the act of loading a table.
                    let number = *switches.borrow_and_update();
                    let inside = self.shared.inside.take(self.thread).into_iter();
                    let ports = self.shared.ports.take(self.thread).into_iter();
                    let new = inside.map(|(network, listener)| (Door::Inside(network), listener));
                    for (door, listener) in new.chain(ports.map(|(port, listener)| (Door::Port(port), listener))) {
                        if !self.open(door, listener) {
                            return;
                        }
                    }
                    let table = self.shared.table.load();
                    pool::keep_only(&table.ids);
                    mux::keep_only(&table.ids);
                    self.shared.saw(self.thread, number);
                }
                _ = phase.changed() => {
                    if self.shared.phase() == Phase::Ended {
                        return;
                    }
                    alarm::wake_all();
                }
                _ = tick.tick() => {
                    alarm::tick();
                    pool::sweep();
                    mux::sweep();
                    if let Some(log) = &self.shared.access {
                        access::flush(log);
                    }
                }
            }
        }
    }
}

impl Worker {
    /// Begins to accept; false if that cannot be.
    fn open(&self, door: Door, listener: StdListener) -> bool {
        match TcpListener::from_std(listener) {
            Ok(listener) => drop(tokio::spawn(accept(self.shared.clone(), self.thread, door, listener))),
            Err(e) => {
                let fields = json!({ "problem": e.to_string() });
                self.shared.log.event("error", "a listener cannot be used", fields);
                return false;
            }
        }
        true
    }
}

/// Accepts until the edge stops, or until what it is for left the table.
async fn accept(shared: Arc<Shared>, thread: usize, door: Door, listener: TcpListener) {
    // A listener counts as a connection: nobody may believe that all are gone while one can still come.
    let _open = Open::new(&shared);
    let address = listener.local_addr();
    let listed = address.and_then(|address| shared.sockets.list(door.purpose(), address, &listener));
    if let Err(e) = &listed {
        let fields = json!({ "problem": e.to_string() });
        shared.log.event("error", "a listener cannot be handed over", fields);
    }
    let mut phase = shared.phase.subscribe();
    let left = door.left(&shared);
    tokio::pin!(left);
    loop {
        let full = shared.n_connections.load(Ordering::Relaxed) >= shared.connections_max;
        let accepted = tokio::select! {
            // Who comes now waits in the kernel's queue: without a descriptor for an instance there is no answer but an error.
            () = tokio::time::sleep(ACCEPT_PAUSE), if full => {
                shared.log.seldom("warn", "as many connections as descriptors allow", json!({ "max": shared.connections_max }));
                continue;
            }
            accepted = listener.accept(), if !full => accepted,
            _ = phase.wait_for(|p| *p != Phase::Open) => break,
            () = &mut left => break,
        };
        match accepted {
            Ok((stream, peer)) => door.admit(&shared, thread, stream, peer),
            // File descriptors or memory are used up; other errors belong to one connection.
            Err(e) if Errno::from_io_error(&e).is_some_and(|e| EXHAUSTED.contains(&e)) => {
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            Err(_) => {}
        }
    }
    drop(listed);
    // What the kernel has accepted already is served, else it would be reset.
    if let Ok(listener) = listener.into_std() {
        while let Ok((stream, peer)) = listener.accept() {
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            if let Ok(stream) = stream {
                door.admit(&shared, thread, stream, peer);
            }
        }
    }
}
