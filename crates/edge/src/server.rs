//! The edge as a process: listeners, one runtime per core, the control thread, and the end.

use crate::access;
use crate::alarm;
use crate::control::{Control, chain};
use crate::door::Door;
use crate::limits::*;
use crate::log::Log;
use crate::mux;
use crate::pool;
use crate::shared::{Open, Phase, Shared};
use crate::tls::Tls;
use kiln_model::{Cidr, ServiceRange};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::json;
use socket2::{Domain, Socket, Type};
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, IsTerminal};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
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
        if !matches!(error, EdgeError::Busy { .. }) {
            let _ = fs::write(failure_path(&config.dir), serde_json::to_vec(&failure).unwrap_or_default());
        }
    }
    result
}

fn serve(config: &EdgeConfig) -> Result<(), EdgeError> {
    let dir = &config.dir;
    let broken = |path: &Path| {
        let path = path.to_owned();
        move |source| EdgeError::Dir { path, source }
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(broken(dir))?;
    let lock_path = dir.join("lock");
    let lock = fs::File::create(&lock_path).map_err(broken(&lock_path))?;
    lock.try_lock().map_err(|_| EdgeError::Busy { path: lock_path.clone() })?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let n_threads = config.threads.unwrap_or(cores).max(1);
    if config.listen.is_empty() && config.listen_tls.is_empty() {
        return Err(EdgeError::NoAddress);
    }
    raise_descriptors();
    // All sockets are bound before the first one is served.
    let mut per_thread: Vec<Vec<(Door, StdListener)>> = (0..n_threads).map(|_| vec![]).collect();
    let (mut listening, mut listening_tls) = (vec![], vec![]);
    let plain = config.listen.iter().map(|address| (address, false));
    for (address, secure) in plain.chain(config.listen_tls.iter().map(|address| (address, true))) {
        let first = bind_first(*address).map_err(|source| EdgeError::Bind { address: *address, source })?;
        let real = first.local_addr().unwrap_or(*address);
        if secure { &mut listening_tls } else { &mut listening }.push(real);
        per_thread[0].push((Door::World { secure }, first));
        for doors in &mut per_thread[1..] {
            let listener = bind(real).map_err(|source| EdgeError::Bind { address: real, source })?;
            doors.push((Door::World { secure }, listener));
        }
    }
    let tls = if listening_tls.is_empty() { None } else { Some(Arc::new(certificates(config)?)) };
    // Whoever is sent to HTTPS goes to the port that clients take by themselves, if it is listened on.
    let https_port = listening_tls.iter().map(SocketAddr::port).min_by_key(|port| *port != 443);
    let https_port = https_port.filter(|port| *port != 443);
    let access = config.access_log.then(|| Arc::new(Log::new(dir, "access.log", ACCESS_LOG_BYTES_MAX)));
    let log = Log::new(dir, "edge.log", LOG_BYTES_MAX);
    let real: Vec<SocketAddr> = listening.iter().chain(&listening_tls).copied().collect();
    let shared = Arc::new(Shared::new(config, &real, n_threads, log, access, tls, https_port));
    let process = format!("{}-{:016x}", std::process::id(), RandomState::new().hash_one(0));
    let texts = |all: Vec<SocketAddr>| all.iter().map(ToString::to_string).collect();
    let listening = (texts(listening), texts(listening_tls));
    let control = Arc::new(Control::new(config, process, listening, shared.clone()));
    let runtime = runtime("the control thread's runtime")?;
    let _entered = runtime.enter();
    let socket_path = control_socket(dir);
    let failed = |source| EdgeError::Control { path: socket_path.clone(), source };
    match fs::remove_file(&socket_path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let socket = UnixListener::bind(&socket_path).map_err(failed)?;
    fs::set_permissions(&socket_path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    let _ = fs::remove_file(failure_path(dir));
    let result = runtime.block_on(live(&shared, &control, per_thread, socket));
    let _ = fs::remove_file(&socket_path);
    shared.log.event(
        "info",
        "ended",
        json!({ "connections_left": shared.n_connections.load(Ordering::Acquire) }),
    );
    drop(lock);
    result
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
/// environment. The default limit is for programs that use `select`.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    // Cannot fail below the maximum; if it did, what is refused then is told where it happens.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
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
    socket: UnixListener,
) -> Result<(), EdgeError> {
    let on = |kind| signal(kind).map_err(|source| EdgeError::Runtime { what: "a signal handler", source });
    let (mut term, mut int) = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
    if let Some(tls) = &shared.tls {
        let first = tls.start(&shared.log);
        tokio::spawn(tls.clone().watch(shared.clone(), first, on(SignalKind::hangup())?));
    }
    control.restore().await;
    let (ended, mut endings) = mpsc::unbounded_channel();
    for (thread, listeners) in per_thread.into_iter().enumerate() {
        let worker = Worker { shared: shared.clone(), thread, _ended: Ended(ended.clone(), thread) };
        let runtime = runtime("a data-path thread's runtime")?;
        let spawned = std::thread::Builder::new()
            .name(format!("edge-{thread}"))
            .spawn(move || runtime.block_on(worker.run(listeners)));
        spawned.map_err(|source| EdgeError::Runtime { what: "a data-path thread", source })?;
    }
    control.settle().await;
    shared.log.event("info", "started", json!({ "pid": std::process::id() }));
    tokio::spawn(control.clone().listen(socket));
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        () = control.stop.notified() => {}
        Some(thread) = endings.recv() => return Err(EdgeError::Thread { thread }),
    }
    wind_down(shared).await;
    Ok(())
}

/// Lets clients go: they are told first, idle connections are closed later, and the rest has until a hard end.
async fn wind_down(shared: &Arc<Shared>) {
    shared.log.event("info", "stopping", json!({}));
    let hard = tokio::time::Instant::now() + STOP_TIMEOUT;
    shared.enter(Phase::LameDuck);
    if tokio::time::timeout(LAME_DUCK, all_gone(shared)).await.is_err() {
        shared.enter(Phase::Closing);
        let _ = tokio::time::timeout_at(hard, all_gone(shared)).await;
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
                _ = phase.changed() => alarm::wake_all(),
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
    let mut phase = shared.phase.subscribe();
    let left = door.left(&shared);
    tokio::pin!(left);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
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

/// A listener that shares its port with those of the other threads.
pub(crate) fn bind(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// Also finds out whether another process has the port: with `SO_REUSEPORT` the kernel would share it silently.
fn bind_first(address: SocketAddr) -> io::Result<StdListener> {
    if address.port() != 0 {
        probe(address)?;
    }
    bind(address)
}

/// Fails if anybody listens there.
pub(crate) fn probe(address: SocketAddr) -> io::Result<()> {
    let probe = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    probe.set_reuse_address(true)?;
    if address.is_ipv6() {
        probe.set_only_v6(true)?;
    }
    probe.bind(&address.into())
}
