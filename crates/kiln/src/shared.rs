//! One of several `kiln serve` on one state folder and one PostgreSQL database: it stands by until the lease is its own, leads
//! until it loses it, and then begins anew as another program in the same process. Nothing that it believed as a leader
//! outlives that: neither a thread, nor a book, nor an effect.

use crate::roles::start_failure;
use kiln_api::Code;
use kiln_api::error::chain;
use kiln_cli::{Failure, ServeArgs};
use kiln_control::lead::{Candidate, Turn, keep_lease};
use kiln_control::{Control, ControlConfig, HomeError, StartError, home, share_state};
use kiln_model::{Epoch, Incarnation};
use kiln_server::Front;
use kiln_store::{PostgresAddress, PostgresStore, Store, StoreError};
use rustix::process::{Pid, WaitOptions, waitpid};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Time between two looks at the lease.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long the last one may take when the process is asked to end.
const LOOK_END_MAX: Duration = Duration::from_secs(2);
/// Bytes of a file with an address.
const FILE_BYTES_MAX: u64 = 4096;

/// What `--store` or `KILN_STORE` says.
pub(crate) fn address(text: &str) -> Result<PostgresAddress, Failure> {
    let usage = |message: String, hint: &str| Failure::new(Code::Usage, message).hint(hint);
    let parse = |text: &str| {
        let parsed = text.parse::<PostgresAddress>();
        parsed.map_err(|error| usage(format!("`--store`: {}", chain(&error)), error.hint()))
    };
    if let Some(path) = text.strip_prefix("file:") {
        let hint = "it holds one line, as in `postgres://USER:PASSWORD@HOST/DATABASE`; make it readable for root only";
        let fail = |error: std::io::Error| usage(format!("cannot read `{path}`: {error}"), hint);
        let meta = std::fs::metadata(path).map_err(fail)?;
        if std::os::unix::fs::MetadataExt::mode(&meta) & 0o077 != 0 || meta.len() > FILE_BYTES_MAX {
            return Err(usage(format!("`{path}` may be read by others, or is too large"), hint));
        }
        return parse(&std::fs::read_to_string(path).map_err(fail)?);
    }
    let address = parse(text)?;
    if address.has_password() && std::env::args().any(|argument| argument.contains(text)) {
        let message = "`--store` has a password, which everybody on this host can read in a command line";
        return Err(usage(
            message.into(),
            "write it into a file and name that: `--store file:PATH`, or set KILN_STORE",
        ));
    }
    Ok(address)
}

/// The signals that ask for an end.
struct Asked(Signal, Signal);

impl Asked {
    fn listen() -> Result<Self, Failure> {
        let on = |kind| signal(kind).map_err(|error| Failure::new(Code::Internal, chain(&error)));
        Ok(Self(on(SignalKind::terminate())?, on(SignalKind::interrupt())?))
    }

    async fn wait_for_end(&mut self) {
        tokio::select! { _ = self.0.recv() => {} _ = self.1.recv() => {} }
    }
}

/// Serves until it is asked to end.
pub(crate) async fn serve(
    arguments: &ServeArgs,
    config: ControlConfig,
    address: PostgresAddress,
) -> Result<(), Failure> {
    let lock = share_state(&config.state).map_err(start_failure)?;
    let home = home::name_of(&config.state).map_err(|error| start_failure(StartError::Home(error)))?;
    let listener = kiln_server::bind(&arguments.listen).map_err(crate::roles::listen_failure)?;
    let mut asked = Asked::listen()?;
    let front = Front::default();
    let server = tokio::spawn(front.clone().serve(listener));
    let name = address.to_string();
    eprintln!(
        "kiln: state in `{}` and PostgreSQL ({name}), listening on `{}`",
        config.state.display(),
        arguments.listen
    );
    let candidate =
        Candidate { address, state: config.state.clone(), home, holder: holder(arguments), store: None };
    let result = match stand_by(candidate, &front, &mut asked).await {
        Ok(None) => Ok(()),
        Ok(Some((store, fence))) => lead(arguments, config, lock, (store, fence), &front, &mut asked).await,
        Err(failure) => Err(failure),
    };
    let _ = std::fs::remove_file(arguments.listen.path());
    front.stop();
    let _ = tokio::time::timeout(Duration::from_secs(2), server).await;
    result
}

/// Waits for the lease, or until it is asked to end.
async fn stand_by(
    mut candidate: Candidate,
    front: &Front,
    asked: &mut Asked,
) -> Result<Option<(Arc<PostgresStore>, (Incarnation, Epoch))>, Failure> {
    let mut said = String::new();
    let mut say = |text: String| {
        if text != said {
            eprintln!("kiln: {text}");
            said = text;
        }
    };
    let mut inherited = Inherited::find();
    loop {
        inherited.reap();
        // It blocks while the database does not answer; requests are still told so meanwhile.
        let mut look = tokio::task::spawn_blocking(move || {
            let looked = candidate.look();
            (candidate, looked)
        });
        let looked = tokio::select! {
            () = asked.wait_for_end() => {
                // It may have taken the lease by now: another one need not wait for its end.
                let last = tokio::time::timeout(LOOK_END_MAX, look).await;
                if let Ok(Ok((_, Ok(Turn::Leads { store, server })))) = last {
                    let _ = store.release_lease(server.1);
                }
                return Ok(None);
            }
            looked = &mut look => looked,
        };
        let (same, looked) = looked.map_err(|error| Failure::new(Code::Internal, error.to_string()))?;
        candidate = same;
        match looked {
            Ok(Turn::Leads { store, server }) => {
                say(format!("leads with epoch {}", server.1));
                return Ok(Some((store, server)));
            }
            Ok(Turn::Waits(lease)) => {
                say(format!("stands by; `{}` leads with epoch {}", lease.holder, lease.epoch));
                // One whose lease has ended is on its way to be taken over from.
                front.follow(
                    Some(PathBuf::from(lease.holder)).filter(|_| lease.left != Some(kiln_model::Millis(0))),
                );
            }
            Err(HomeError::Store(error @ StoreError::NewerSchema { .. })) => {
                return Err(start_failure(StartError::Store(error)));
            }
            Err(HomeError::Store(error)) => {
                say(format!("warning: the database does not answer: {}", chain(&error)));
                front.follow(None);
            }
            Err(error) => return Err(start_failure(StartError::Home(error))),
        }
        tokio::select! {
            () = asked.wait_for_end() => return Ok(None),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Leads until it is asked to end. Whatever else ends it begins the process anew.
async fn lead(
    arguments: &ServeArgs,
    config: ControlConfig,
    lock: kiln_store::StateLock,
    (store, fence): (Arc<PostgresStore>, (Incarnation, Epoch)),
    front: &Front,
    asked: &mut Asked,
) -> Result<(), Failure> {
    let kept = keep_lease(store.clone(), fence.1, |why| step_down(why));
    kept.map_err(|error| Failure::new(Code::Internal, format!("cannot start a thread: {error}")))?;
    let mut control = match Control::start_on(config, lock, store.clone(), Some(fence)).await {
        Ok(control) => control,
        Err(StartError::Store(error)) => step_down(&chain(&error)),
        Err(error) => {
            // Another may be able to.
            let _ = store.release_lease(fence.1);
            return Err(start_failure(error));
        }
    };
    front.lead(kiln_server::Context {
        handle: control.handle.clone(),
        workshop: control.workshop.clone(),
        vault: control.vault.clone(),
    });
    tokio::select! {
        () = asked.wait_for_end() => {}
        ended = &mut control.reconciler => match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => step_down(&chain(&error)),
            Err(error) => step_down(&error.to_string()),
        },
    }
    eprintln!("kiln: stopping; edge and instances go on");
    let _ = std::fs::remove_file(arguments.listen.path());
    control.stop().await;
    // Nothing is under way any more: the next one need not wait for the lease's end. If this fails it does.
    let _ = store.release_lease(fence.1);
    Ok(())
}

/// Ends all that this process is and knows, and begins anew, standing by.
fn step_down(why: &str) -> ! {
    use std::os::unix::process::CommandExt;
    eprintln!("kiln: warning: leads no more, and stands by: {why}");
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "kiln".into());
    let error = std::process::Command::new("/proc/self/exe").arg0(name).args(arguments).exec();
    eprintln!("kiln: error: cannot begin anew: {error}");
    // As a crash would: whoever looks after the process starts it again.
    #[expect(clippy::disallowed_methods, reason = "nothing of this process is to be trusted any more")]
    std::process::abort()
}

/// Children of what this process was before it began anew. They end by themselves, but for the edge, which may go on.
struct Inherited(Vec<Pid>);

impl Inherited {
    fn find() -> Self {
        let mut found = vec![];
        for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)));
        }
        Self(found)
    }

    /// Takes note of those that have ended, so that the kernel may forget them.
    fn reap(&mut self) {
        self.0.retain(|pid| matches!(waitpid(Some(*pid), WaitOptions::NOHANG), Ok(None)));
    }
}

/// How the others reach this server.
fn holder(arguments: &ServeArgs) -> String {
    let path = arguments.listen.path();
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}
