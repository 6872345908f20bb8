//! `serve`, `edge`, `down` and `restore`: what needs the engines.

use crate::backup;
use kiln_api::Code;
use kiln_api::backup::{BackupView, RestoreView};
use kiln_api::error::chain;
use kiln_cli::{DownArgs, EdgeArgs, Failure, RestoreArgs, Roles, ServeArgs};
use kiln_control::{Control, ControlConfig, HomeError, ReconcileError, StartError, take_state};
use kiln_edge::{EdgeClient, EdgeConfig, Listen, SpawnError, control_socket};
use kiln_provider::local;
use kiln_server::ListenError;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

/// How long `kiln down` waits for an edge to end.
const EDGE_END_MAX: Duration = Duration::from_secs(15);

/// The real engines.
pub(crate) struct Engines;

impl Roles for Engines {
    fn serve(&self, arguments: &ServeArgs) -> Result<(), Failure> {
        require_root("kiln serve")?;
        let runtime = runtime()?;
        let ended = runtime.block_on(serve(arguments));
        // A bake may take minutes more, and ends with this process: its worker asked the kernel for that.
        runtime.shutdown_background();
        ended
    }

    fn edge(&self, arguments: &EdgeArgs) -> Result<(), Failure> {
        if arguments.upgrade {
            return runtime()?.block_on(upgrade_edge(arguments));
        }
        // Clients speak to it: what they might make it do is little.
        let kept = 1 << kiln_sys::privilege::CAP_NET_BIND_SERVICE;
        let shed = kiln_sys::privilege::shed_capabilities(kept);
        shed.map_err(|error| Failure::new(Code::HostUnable, error.line()))?;
        let boot = kiln_sys::clock::boot_id()
            .map_err(|error| Failure::new(Code::HostUnable, chain(&error)).hint("is /proc mounted?"))?;
        let mut config = EdgeConfig::new(&arguments.dir, arguments.listen.clone(), boot);
        config.access_log = arguments.access_log;
        config.internal = arguments.internal;
        config.listen_tls.clone_from(&arguments.listen_tls);
        config.certificates = absolute(arguments.certificates.as_deref())?;
        if !arguments.listen_tls.is_empty() {
            // It has private keys in its memory, which no core file may show.
            let kept = kiln_sys::privilege::not_dumpable();
            kept.map_err(|error| Failure::new(Code::HostUnable, error.line()))?;
        }
        config.proxies = arguments.proxy_protocol.clone();
        config.take_over = arguments.take_over;
        kiln_edge::run(config).map_err(|error| Failure::new(Code::AddressInUse, chain(&error)))
    }

    fn down(&self, arguments: &DownArgs) -> Result<Vec<String>, Failure> {
        require_root("kiln down")?;
        runtime()?.block_on(down(&arguments.state))
    }

    fn keep_backup(&self, file: &Path, bytes: &[u8]) -> Result<BackupView, Failure> {
        backup::keep(file, bytes)
    }

    fn restore(&self, arguments: &RestoreArgs) -> Result<RestoreView, Failure> {
        require_root("kiln restore")?;
        backup::restore(arguments)
    }
}

fn runtime() -> Result<Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::new(Code::Internal, format!("cannot start: {error}")))
}

fn require_root(what: &str) -> Result<(), Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::new(Code::NotRoot, format!("`{what}` needs root")).hint(Code::NotRoot.entry().help))
}

/// Has the edge of a folder replaced by this program.
async fn upgrade_edge(arguments: &EdgeArgs) -> Result<(), Failure> {
    use kiln_edge::client::Router;
    let client = EdgeClient::new(control_socket(&arguments.dir));
    let program = std::env::current_exe();
    let program = program.map_err(|error| Failure::new(Code::HostUnable, format!("own path: {error}")))?;
    let listen = Listen {
        plain: arguments.listen.clone(),
        tls: arguments.listen_tls.clone(),
        certificates: absolute(arguments.certificates.as_deref())?,
        internal: arguments.internal,
        proxies: arguments.proxy_protocol.clone(),
    };
    let given = !listen.plain.is_empty() || !listen.tls.is_empty();
    let before = client.status().await.map_err(|error| {
        let failure = Failure::new(Code::NoServer, format!("no edge to upgrade: {error}"));
        failure.hint("start one without `--upgrade`, or name its folder with `--dir`")
    })?;
    client.upgrade(&program, given.then_some(&listen)).await.map_err(|error| {
        let failure =
            Failure::new(Code::HostUnable, format!("the edge was not upgraded and serves on: {error}"));
        failure.hint(
            "`edge.log` in its folder has more; one that is older than upgrades is stopped with SIGTERM",
        )
    })?;
    let after = client.status().await.map_err(|error| Failure::new(Code::NoServer, error.to_string()))?;
    println!("upgraded: process {} serves instead of {}", after.pid, before.pid);
    Ok(())
}

/// The edge has another working folder than who starts it. A folder of certificates that is not there is better told now.
fn absolute(dir: Option<&Path>) -> Result<Option<PathBuf>, Failure> {
    let Some(dir) = dir else { return Ok(None) };
    let found = dir.canonicalize().and_then(|path| path.read_dir().map(|_| path));
    let text = |error| format!("cannot use the folder of certificates `{}`: {error}", dir.display());
    let hint = "it holds pairs of `NAME.crt` and `NAME.key`; `mkdir` it if they come later";
    found.map(Some).map_err(|error| Failure::new(Code::Usage, text(error)).hint(hint))
}

async fn serve(arguments: &ServeArgs) -> Result<(), Failure> {
    let subnet = arguments.subnet.parse().map_err(|error: local::SubnetError| {
        Failure::new(Code::Usage, chain(&error)).hint("give a private network such as 10.83.0.0/16")
    })?;
    let forced = std::env::var("KILN_FORCE").unwrap_or_default();
    let forced = forced.parse().map_err(|error: local::ForcedError| {
        Failure::new(Code::Usage, format!("`KILN_FORCE={forced}`: {error}")).hint(error.hint())
    })?;
    if let Some(mirror) = &arguments.mirror {
        // Now, not at the first bake.
        let parsed = kiln_image::debian::Mirror::parse(mirror);
        parsed.map_err(|error| Failure::new(Code::Usage, chain(&error)).hint(error.hint()))?;
    }
    let program = std::env::current_exe();
    let program =
        program.map_err(|error| Failure::new(Code::Internal, format!("cannot find myself: {error}")))?;
    if let Some(path) = &arguments.keyring {
        // It is read again with every lock; a file of the wrong kind is better told now.
        let text = |error| format!("cannot use the keyring `{}`: {}", path.display(), chain(&error));
        let keyring = kiln_image::debian::Keyring::read(path);
        keyring.map_err(|error| {
            Failure::new(Code::Usage, text(error)).hint("write one with `gpg --export KEY... > FILE`")
        })?;
    }
    // It has values of secrets in its memory for a moment, which no core file may show.
    kiln_sys::privilege::not_dumpable().map_err(|error| Failure::new(Code::HostUnable, error.line()))?;
    let config = ControlConfig {
        state: arguments.state.clone(),
        program,
        edge: arguments.edge.clone(),
        edge_tls: arguments.edge_tls.clone(),
        certificates: absolute(arguments.certificates.as_deref())?,
        proxies: arguments.edge_proxy_protocol.clone(),
        subnet,
        mirror: arguments.mirror.clone(),
        forced,
        registry_auth: arguments.registry_auth.clone(),
        keyring: arguments.keyring.clone(),
        signing_key: arguments.signing_key.clone(),
        trust: arguments.trust.clone(),
    };
    if let Some(store) = &arguments.store {
        return crate::shared::serve(arguments, config, crate::shared::address(store)?).await;
    }
    let lock = take_state(&arguments.state).map_err(start_failure)?;
    let listener = kiln_server::bind(&arguments.listen).map_err(listen_failure)?;
    let mut control = Control::start(config, lock).await.map_err(start_failure)?;
    eprintln!("kiln: state in `{}`, listening on `{}`", arguments.state.display(), arguments.listen);
    let context = kiln_server::Context {
        handle: control.handle.clone(),
        workshop: control.workshop.clone(),
        vault: control.vault.clone(),
    };
    let server = tokio::spawn(kiln_server::serve(listener, context));
    let fail = |error: &dyn std::error::Error| Failure::new(Code::Internal, chain(error));
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| fail(&e))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| fail(&e))?;
    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        ended = &mut control.reconciler => match ended {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(loop_failure(&error)),
            Err(error) => Err(fail(&error)),
        },
    };
    eprintln!("kiln: stopping; edge and instances go on");
    // As long as the state folder is locked: afterwards it may be the next server's.
    let _ = std::fs::remove_file(arguments.listen.path());
    control.stop().await;
    // Requests in flight have been told; the rest is cut off with the process.
    let _ = tokio::time::timeout(Duration::from_secs(2), server).await;
    result
}

fn loop_failure(error: &ReconcileError) -> Failure {
    let code = match error {
        ReconcileError::Store(cause) if cause.is_disk_full() => Code::DiskFull,
        ReconcileError::Store(_) => Code::Store,
        ReconcileError::Newer(..) | ReconcileError::Behind(_) => Code::Unavailable,
    };
    let hint = match error {
        ReconcileError::Behind(_) => {
            "start `kiln serve` again: nothing is destroyed, and `kiln recover --plan` says what would be adopted"
        }
        _ => code.entry().help,
    };
    Failure::new(code, chain(error)).hint(hint)
}

pub(crate) fn start_failure(error: StartError) -> Failure {
    let code = match &error {
        StartError::State { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
            Code::DiskFull
        }
        StartError::State { .. } => Code::HostUnable,
        StartError::Locked(_) => Code::StateLocked,
        StartError::Home(HomeError::Io { .. }) => Code::HostUnable,
        StartError::Home(HomeError::Store(_)) => Code::Store,
        StartError::Home(_) => Code::Usage,
        StartError::Store(error) if error.is_disk_full() => Code::DiskFull,
        StartError::Store(_) | StartError::Objects(_) => Code::Store,
        StartError::Provider(_) => Code::HostUnable,
        StartError::Keys(_) => Code::Keys,
        StartError::Vault(_) => Code::SecretUnreadable,
        StartError::Edge(SpawnError::InUse { .. }) => Code::AddressInUse,
        StartError::Edge(SpawnError::NoAddress { .. }) => Code::Usage,
        StartError::Edge(_) => Code::HostUnable,
    };
    let failure = Failure::new(code, chain(&error));
    match &error {
        StartError::State { .. } if code == Code::HostUnable => {
            failure.hint("name a folder that can be made and written with `--state`")
        }
        StartError::Provider(error) => failure.hint(error.hint()),
        StartError::Edge(SpawnError::NoAddress { .. }) => {
            failure.hint("give one, as in `kiln serve --edge 0.0.0.0:80`, or start `kiln edge` first")
        }
        StartError::Home(error) => failure.hint(error.hint()),
        StartError::Keys(error) => failure.hint(error.hint()),
        StartError::Vault(error) => failure.hint(error.hint()),
        _ => failure.hint(code.entry().help),
    }
}

pub(crate) fn listen_failure(error: ListenError) -> Failure {
    let (code, hint) = match &error {
        ListenError::InUse(_) => (Code::AddressInUse, Code::AddressInUse.entry().help),
        ListenError::NoSocket(_) | ListenError::Io { .. } => {
            (Code::HostUnable, "name another socket with `--listen unix:/path/to/socket`")
        }
    };
    Failure::new(code, chain(&error)).hint(hint)
}

/// Stops and removes all that a state folder owns. The folder stays: logs, images and the ledger are in it.
async fn down(state: &Path) -> Result<Vec<String>, Failure> {
    if !state.is_dir() {
        return Ok(vec![format!("nothing to do: there is no `{}`", state.display())]);
    }
    // A running server would start everything again.
    let _lock = take_state(state).map_err(start_failure)?;
    let state = state.canonicalize().unwrap_or_else(|_| state.to_owned());
    let mut lines = stop_edge(&state).await?;
    let before = local::inventory(&state);
    local::sweep(&state).map_err(|error| {
        Failure::new(Code::HostUnable, chain(&error)).hint("mend that and run `kiln down` again")
    })?;
    let removed = [
        (before.processes, "processes"),
        (before.mounts, "mounts"),
        (before.links, "network interfaces"),
        (before.cgroups, "control groups"),
    ];
    lines.extend(removed.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("removed {n} {what}")));
    if lines.is_empty() {
        lines.push("nothing was running".into());
    }
    Ok(lines)
}

async fn stop_edge(state: &Path) -> Result<Vec<String>, Failure> {
    use kiln_edge::client::Router;
    let client = EdgeClient::new(control_socket(&state.join("edge")));
    if client.stop().await.is_err() {
        return Ok(vec![]);
    }
    let deadline = tokio::time::Instant::now() + EDGE_END_MAX;
    while client.status().await.is_ok() {
        if tokio::time::Instant::now() > deadline {
            return Err(Failure::new(Code::HostUnable, "the edge did not end")
                .hint("it waits for its last requests: run `kiln down` again"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(vec!["stopped the edge".into()])
}
