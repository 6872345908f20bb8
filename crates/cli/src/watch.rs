//! Waiting for what was asked for: following a rollout to its end, over restarts of the server.

use crate::progress::Progress;
use crate::{Context, Failure};
use kiln_api::client::{Client, ClientError};
use kiln_api::error::chain;
use kiln_api::rollout::{RolloutView, SafetyView};
use kiln_api::{Code, Update};
use kiln_model::{RolloutId, RolloutKind, RolloutPhase};
use std::time::{Duration, Instant};

/// How long a lost connection may stay lost: the server may be killed, or being upgraded.
const LOST_MAX: Duration = Duration::from_secs(30);
/// Time between attempts to connect again.
const RETRY_EVERY: Duration = Duration::from_millis(200);

/// Counts how long the server has been away.
#[derive(Default)]
pub(crate) struct Patience {
    lost_since: Option<Instant>,
}

impl Patience {
    /// The server answered.
    pub(crate) fn reset(&mut self) {
        self.lost_since = None;
    }

    /// Waits a little after `error`, or gives up: with it, if it is not about the connection.
    pub(crate) async fn wait(&mut self, error: ClientError, what: &str) -> Result<(), Failure> {
        if !error.is_lost() {
            return Err(error.into());
        }
        if self.lost_since.get_or_insert_with(Instant::now).elapsed() > LOST_MAX {
            let message = format!(
                "the connection was lost and did not come back within {} s; {what}",
                LOST_MAX.as_secs()
            );
            let details = vec![chain(&error)];
            return Err(Failure::new(Code::Lost, message).details(details).hint(Code::Lost.entry().help));
        }
        tokio::time::sleep(RETRY_EVERY).await;
        Ok(())
    }
}

/// Does `request` again while the connection is lost. Only for requests that may be repeated, and only after the
/// server answered once: one that does not run is not waited for.
pub(crate) async fn persist<T>(
    what: &str,
    mut request: impl AsyncFnMut() -> Result<T, ClientError>,
) -> Result<T, Failure> {
    let mut patience = Patience::default();
    loop {
        match request().await {
            Ok(answer) => return Ok(answer),
            Err(error) => patience.wait(error, what).await?,
        }
    }
}

/// Does one command once: if the connection is lost before the answer came it is asked again under the same name, and the
/// server answers what it answered the first time. A server that does not run is not waited for.
pub(crate) async fn once<T>(
    context: &Context<'_>,
    mut request: impl AsyncFnMut(&Client) -> Result<T, ClientError>,
) -> Result<T, Failure> {
    let client = context.client()?.once(key()?);
    match request(&client).await {
        Err(error) if matches!(error.code(), Code::Lost | Code::Unavailable) => {
            let what = "`kiln audit` shows whether it was recorded";
            persist(what, async || request(&client).await).await
        }
        answered => Ok(answered?),
    }
}

/// A name that nobody else gives to a command.
pub(crate) fn key() -> Result<String, Failure> {
    let read = std::fs::read_to_string("/proc/sys/kernel/random/uuid");
    let read = read.map_err(|error| Failure::new(Code::File, format!("no random number: {error}")));
    Ok(read?.trim().to_owned())
}

/// Follows a rollout to its end, whichever that is.
pub(crate) async fn rollout(
    context: &Context<'_>,
    client: &Client,
    id: RolloutId,
) -> Result<RolloutView, Failure> {
    let going_on = format!("rollout {id}");
    context.goes_on(going_on.clone());
    let what = format!("{going_on} goes on");
    let mut progress = Progress::start();
    let mut patience = Patience::default();
    loop {
        let error = match client.watch_rollout(id).await {
            Err(error) => error,
            Ok(mut updates) => loop {
                match updates.next().await {
                    Ok(Some(Update::Item(view))) => {
                        patience.reset();
                        if view.ended {
                            return Ok(view);
                        }
                        progress.now(&step(&view));
                    }
                    Ok(Some(Update::Progress(text))) => progress.line(&text),
                    Ok(Some(_)) => {}
                    Ok(None) => {
                        let source = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                        break ClientError::Lost { address: client.address().clone(), source: source.into() };
                    }
                    Err(error) => break error,
                }
            },
        };
        if error.is_lost() {
            progress.now(&format!("{going_on}: the connection was lost, connecting again"));
        }
        patience.wait(error, &what).await?;
    }
}

/// Where a rollout is, in one line.
pub(crate) fn step(view: &RolloutView) -> String {
    let detail = match view.phase {
        RolloutPhase::Planned => ": waits for the rollout before it".to_owned(),
        RolloutPhase::Launching => {
            format!(": {} of {} instances run", view.instances_running, view.instances_wanted)
        }
        RolloutPhase::Validating => {
            format!(
                ": {} of {} instances passed their checks",
                view.instances_validated, view.instances_wanted
            )
        }
        RolloutPhase::Shifting => shifting(view),
        RolloutPhase::Switching => ": the edge takes the new table".to_owned(),
        RolloutPhase::Draining => ": requests in flight on the old release end".to_owned(),
        _ => String::new(),
    };
    format!("rollout {} to release {}: {}{detail}", view.id, view.to, view.phase.word())
}

/// What two releases share, and what comes next.
fn shifting(view: &RolloutView) -> String {
    let Some(step) = &view.step else { return String::new() };
    let counted = match step.weight {
        Some(weight) => format!(": step {} of {}, {weight} % of the requests", step.number, step.of),
        None if view.strategy == "canary" => format!(": step {} of {}", step.number, step.of),
        None => format!(": {} of {} instances are replaced", step.number, step.of),
    };
    let held = step.hold.as_ref().map(|why| format!("; on hold: {why}")).unwrap_or_default();
    format!("{counted}{held}")
}

/// Whether a rollback would work, in one line each.
pub(crate) fn safety(view: &SafetyView) -> String {
    let mut notes = view.notes.clone();
    let line = match (view.to, view.safe, view.warm_ms) {
        (Some(to), true, Some(warm)) => {
            format!("rollback: safe, to release {to}; it is kept ready for {warm}")
        }
        (Some(to), true, None) => format!("rollback: safe, to release {to}"),
        (Some(to), false, _) => format!("rollback: not safe, to release {to}"),
        (None, ..) => "rollback: not possible".to_owned(),
    };
    notes.insert(0, line);
    format!("{}\n", notes.join("; "))
}

/// What came of a rollout that ended: text for stdout, or the failure.
pub(crate) fn outcome(view: &RolloutView) -> Result<String, Failure> {
    let code = match view.phase {
        RolloutPhase::Succeeded => return Ok(success(view)),
        RolloutPhase::Superseded => Code::Superseded,
        RolloutPhase::Aborted => Code::Aborted,
        RolloutPhase::FailedNoPrevious => Code::FailedNoPrevious,
        _ => Code::TakenBack,
    };
    let verb = match (code, view.kind) {
        (Code::Superseded, _) => "was superseded",
        (Code::Aborted, _) => "was aborted",
        (Code::FailedNoPrevious, _) => "failed, and nothing served before",
        _ => "was taken back",
    };
    let reason = view.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let mut details = view.evidence.clone();
    if let (Code::TakenBack | Code::Aborted, Some(from)) = (code, view.from) {
        // A candidate that had traffic did touch what it answered.
        let shared = receipt_of_candidate(view);
        let untouched = if shared.is_empty() { ", untouched" } else { "" };
        details.push(format!("release {from} serves on{untouched}{shared}"));
    }
    let hint = match code {
        Code::TakenBack | Code::FailedNoPrevious => {
            format!(
                "`kiln why --env {}` says more; `kiln logs --release {}` shows all that it printed",
                view.env.env, view.to
            )
        }
        other => other.entry().help.to_owned(),
    };
    Err(Failure::new(code, format!("release {} of `{}` {verb}{reason}", view.to, view.env))
        .details(details)
        .hint(hint))
}

fn receipt_of_candidate(view: &RolloutView) -> String {
    let Some(tally) = view.receipt.shared.get(&view.to).filter(|tally| tally.requests > 0) else {
        return String::new();
    };
    let bad = tally.failed + tally.cut + tally.errors;
    format!("; release {} had answered {} requests, {bad} badly", view.to, tally.requests)
}

fn success(view: &RolloutView) -> String {
    let verb = match view.kind {
        RolloutKind::Deploy => "serves",
        RolloutKind::Rollback => "serves again",
    };
    let mut text = format!("release {} of {} {verb} (commit {})\n", view.to, view.env, view.commit.short());
    for (name, digest) in &view.images {
        text.push_str(&format!("image {name}: sha256:{}\n", digest.short()));
    }
    if let Some(span) = view.switched_after_ms {
        text.push_str(&format!("switched after {span}\n"));
    }
    let receipt = &view.receipt;
    let total = receipt.total();
    for (release, tally) in &receipt.shared {
        let bad = tally.failed + tally.cut + tally.errors;
        text.push_str(&format!("shared: release {release} answered {}, {bad} badly\n", tally.requests));
    }
    text.push_str(&format!(
        "requests: {} before, {} during, {} after; failed {}; cut {}\n",
        receipt.before.requests, receipt.during.requests, receipt.after.requests, total.failed, total.cut
    ));
    if total.connections > 0 {
        text.push_str(&format!(
            "raw connections among them: {} ended, which carried {} bytes\n",
            total.connections, total.bytes
        ));
    }
    text.push_str(&view.rollback.as_ref().map(safety).unwrap_or_default());
    text
}
