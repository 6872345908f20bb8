//! What a user may ask for. A command only changes desired state, in one commit; it never waits for it to come true.

use kiln_model::mutant::{Mutant, planted};
use kiln_model::{
    Boot, EnvRef, Environment, Event, Millis, Mutation, Pause, Release, ReleaseNumber, ReleaseSpec, Rollout,
    RolloutId, RolloutKind, RolloutPhase, ServiceName, Snapshot, Wall, limits, rollout::Receipt,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Move an environment to a new release. The newest deploy wins: it supersedes one that has not switched yet.
    Deploy {
        /// Which environment; made if it does not exist.
        env: EnvRef,
        /// What the release is.
        spec: Box<ReleaseSpec>,
    },
    /// Move an environment to a release that exists.
    Rollback {
        /// Which environment.
        env: EnvRef,
        /// Where to; without it the newest release below the serving one that ever served.
        to: Option<ReleaseNumber>,
    },
    /// Override how many instances services have; none restores what the release asks for.
    Scale {
        /// Which environment.
        env: EnvRef,
        /// Instances by service.
        instances: BTreeMap<ServiceName, Option<u32>>,
    },
    /// Stop the running rollout; what serves stays.
    Abort {
        /// Which environment.
        env: EnvRef,
    },
    /// Remove everything that runs of an environment. Its history stays.
    Destroy {
        /// Which environment.
        env: EnvRef,
    },
    /// Stop effects; observation goes on.
    Pause {
        /// Of which environment; none stops all.
        env: Option<EnvRef>,
        /// Why.
        reason: String,
    },
    /// Go on after a pause.
    Resume {
        /// With which environment; none ends the pause of the whole server.
        env: Option<EnvRef>,
    },
}

/// A command with its circumstances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What is asked for.
    pub command: Command,
    /// Who asks.
    pub actor: String,
    /// When, for the record.
    pub at: Wall,
    /// When, for deadlines.
    pub now: Boot,
}

/// What a command leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The commit.
    pub mutations: Vec<Mutation>,
    /// Its ledger entries.
    pub events: Vec<Event>,
    /// The answer.
    pub outcome: Outcome,
}

/// The answer to a command.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Outcome {
    /// A rollout was accepted.
    Started {
        /// Its number.
        rollout: RolloutId,
        /// Where it goes.
        release: ReleaseNumber,
    },
    /// That is what is serving, or what the running rollout goes to.
    Already {
        /// The release.
        release: ReleaseNumber,
        /// The rollout under way to it, if any.
        rollout: Option<RolloutId>,
    },
    /// The override is recorded.
    Scaled,
    /// The rollout ended.
    Aborted {
        /// Which.
        rollout: RolloutId,
    },
    /// Everything of the environment is being removed.
    Destroying,
    /// Effects are stopped.
    Paused {
        /// By which pause, which may be an older one.
        pause: Pause,
    },
    /// Effects go on.
    Resumed {
        /// After how long.
        after: Millis,
    },
}

/// Why a command is refused. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such environment.
    #[error("there is no environment `{env}`")]
    NoEnvironment {
        /// Which.
        env: EnvRef,
    },
    /// No such release.
    #[error("`{env}` has no release {release}")]
    NoRelease {
        /// Of which environment.
        env: EnvRef,
        /// Which.
        release: ReleaseNumber,
    },
    /// The release was never baked, so there is nothing to run.
    #[error("release {release} of `{env}` was never baked")]
    NotBaked {
        /// Of which environment.
        env: EnvRef,
        /// Which.
        release: ReleaseNumber,
    },
    /// There is nothing to roll back to.
    #[error("`{env}` has no earlier release that served")]
    NothingBefore {
        /// Which environment.
        env: EnvRef,
    },
    /// No such service.
    #[error("release {release} of `{env}` has no service `{service}`")]
    NoService {
        /// Of which environment.
        env: EnvRef,
        /// The serving release.
        release: ReleaseNumber,
        /// The name as given.
        service: ServiceName,
    },
    /// More instances than kiln allows.
    #[error("`{service}` cannot have {instances} instances: at most {}", limits::INSTANCES_PER_SERVICE_MAX)]
    TooMany {
        /// Which service.
        service: ServiceName,
        /// How many were asked for.
        instances: u32,
    },
    /// Another environment has that route already.
    #[error("the route `{route}` is taken by `{other}`")]
    RouteTaken {
        /// Host and path.
        route: String,
        /// By which environment.
        other: EnvRef,
    },
    /// Nothing to abort.
    #[error("no rollout of `{env}` is under way")]
    NoRollout {
        /// Which environment.
        env: EnvRef,
    },
    /// Traffic is already on the new release.
    #[error("rollout {rollout} of `{env}` has already switched")]
    AlreadySwitched {
        /// Which environment.
        env: EnvRef,
        /// Which rollout.
        rollout: RolloutId,
    },
    /// Nothing is paused.
    #[error("{} is not paused", env.as_ref().map_or("the server".to_owned(), |env| format!("`{env}`")))]
    NotPaused {
        /// Which environment; none for the whole server.
        env: Option<EnvRef>,
    },
    /// An act that has to be explained was not.
    #[error("a reason of 1 to {} bytes is needed", limits::REASON_BYTES_MAX)]
    NoReason,
    /// What the store has of the environment cannot be read.
    #[error("`{env}` is on hold: {what} cannot be read")]
    Damaged {
        /// Which environment.
        env: EnvRef,
        /// Which row.
        what: String,
    },
}

impl Refusal {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Refusal::NoEnvironment { .. } => {
                Some("`kiln status` shows what exists; `kiln deploy` makes one".into())
            }
            Refusal::NoRelease { .. } | Refusal::NotBaked { .. } => {
                Some("`kiln release list` shows the releases and which of them served".into())
            }
            Refusal::NothingBefore { .. } => Some("name a release with `--to N`".into()),
            Refusal::NoService { .. } => Some("`kiln status` shows the services".into()),
            Refusal::TooMany { .. } | Refusal::NoRollout { .. } => None,
            Refusal::NotPaused { .. } => Some("`kiln status` shows what is paused".into()),
            Refusal::NoReason => {
                Some("say why with `--reason TEXT`; `kiln status` shows it to others".into())
            }
            Refusal::Damaged { .. } => {
                Some("restore the state from a backup; until then what runs of it is left alone".into())
            }
            Refusal::RouteTaken { .. } => {
                Some("give one of them another `host` or `path`, or `kiln destroy` the other".into())
            }
            Refusal::AlreadySwitched { .. } => {
                Some("`kiln rollback` brings the previous release back".into())
            }
        }
    }
}

/// Decides on a command.
pub fn decide(snapshot: &Snapshot, request: &Request) -> Result<Decision, Refusal> {
    readable(snapshot, &request.command)?;
    match &request.command {
        Command::Deploy { env, spec } => deploy(snapshot, request, env, spec),
        Command::Rollback { env, to } => rollback(snapshot, request, env, *to),
        Command::Scale { env, instances } => scale(snapshot, request, env, instances),
        Command::Abort { env } => abort(snapshot, request, env),
        Command::Destroy { env } => destroy(snapshot, request, env),
        Command::Pause { env, reason } => crate::pause::pause(snapshot, request, env.as_ref(), reason),
        Command::Resume { env } => crate::pause::resume(snapshot, request, env.as_ref()),
    }
}

/// Nothing is decided on what cannot be read. Pausing the whole server is always possible.
fn readable(snapshot: &Snapshot, command: &Command) -> Result<(), Refusal> {
    let env = match command {
        Command::Deploy { env, .. }
        | Command::Rollback { env, .. }
        | Command::Scale { env, .. }
        | Command::Abort { env }
        | Command::Destroy { env } => env,
        Command::Pause { .. } | Command::Resume { .. } => return Ok(()),
    };
    match snapshot.damage_of(env).next() {
        Some(row) => Err(Refusal::Damaged { env: env.clone(), what: row.what.clone() }),
        None => Ok(()),
    }
}

fn existing<'a>(snapshot: &'a Snapshot, env: &EnvRef) -> Result<&'a Environment, Refusal> {
    snapshot
        .environments
        .get(env)
        .map(AsRef::as_ref)
        .ok_or_else(|| Refusal::NoEnvironment { env: env.clone() })
}

fn event(request: &Request, env: &EnvRef, kind: &str, subject: String, detail: String) -> Event {
    Event {
        at: request.at,
        actor: request.actor.clone(),
        env: Some(env.clone()),
        kind: kind.into(),
        subject,
        detail,
    }
}

/// The rollout that decides what the environment is moving to: the newest that has not ended.
fn newest_active<'a>(snapshot: &'a Snapshot, env: &EnvRef) -> Option<&'a Rollout> {
    snapshot.active_rollouts(env).next_back().map(AsRef::as_ref)
}

fn deploy(
    snapshot: &Snapshot,
    request: &Request,
    env: &EnvRef,
    spec: &ReleaseSpec,
) -> Result<Decision, Refusal> {
    let current = snapshot.environments.get(env).map(|e| Environment::clone(e));
    let mut environment = current.unwrap_or_else(|| Environment::new(env.clone()));
    let heading_to =
        newest_active(snapshot, env).map(|r| (r.to, Some(r.id))).or(environment.serving.map(|n| (n, None)));
    if let Some((number, rollout)) = heading_to
        && !environment.destroyed
        && snapshot.release(env, number).is_some_and(|release| release.spec == *spec)
    {
        let outcome = Outcome::Already { release: number, rollout };
        return Ok(Decision { mutations: vec![], events: vec![], outcome });
    }
    free_routes(snapshot, env, spec)?;
    let number = environment.next_release;
    environment.next_release = number.next();
    environment.destroyed = false;
    environment.network = snapshot.network_for(env);
    let release = Release {
        env: env.clone(),
        number,
        spec: spec.clone(),
        images: None,
        created: request.at,
        actor: request.actor.clone(),
        served: false,
    };
    let mut decision = start(snapshot, request, &environment, RolloutKind::Deploy, number);
    decision.mutations.insert(0, Mutation::PutRelease(Box::new(release)));
    Ok(decision)
}

/// The same (host, path) twice on one edge is an error, found before anything is baked.
pub(crate) fn free_routes(snapshot: &Snapshot, env: &EnvRef, spec: &ReleaseSpec) -> Result<(), Refusal> {
    for other in snapshot.environments.values().filter(|e| &e.env != env && !e.destroyed) {
        let target = newest_active(snapshot, &other.env).map(|r| r.to);
        for number in [other.serving, target].into_iter().flatten() {
            let Some(release) = snapshot.release(&other.env, number) else { continue };
            let taken = spec
                .routes
                .iter()
                .find(|mine| release.spec.routes.iter().any(|t| t.host == mine.host && t.path == mine.path));
            if let Some(rule) = taken {
                let route = format!("{}{}", rule.host.as_deref().unwrap_or("*"), rule.path);
                return Err(Refusal::RouteTaken { route, other: other.env.clone() });
            }
        }
    }
    Ok(())
}

fn rollback(
    snapshot: &Snapshot,
    request: &Request,
    env: &EnvRef,
    to: Option<ReleaseNumber>,
) -> Result<Decision, Refusal> {
    let environment = existing(snapshot, env)?;
    let number = match to {
        Some(number) => number,
        None => rollback_target(snapshot, environment)
            .ok_or_else(|| Refusal::NothingBefore { env: env.clone() })?,
    };
    let release = snapshot
        .release(env, number)
        .ok_or_else(|| Refusal::NoRelease { env: env.clone(), release: number })?;
    if release.images.is_none() {
        return Err(Refusal::NotBaked { env: env.clone(), release: number });
    }
    let active = newest_active(snapshot, env);
    let heading_to = active.map(|r| (r.to, Some(r.id))).or(environment.serving.map(|n| (n, None)));
    if let Some((heading, rollout)) = heading_to
        && heading == number
        && !environment.destroyed
    {
        let outcome = Outcome::Already { release: number, rollout };
        return Ok(Decision { mutations: vec![], events: vec![], outcome });
    }
    free_routes(snapshot, env, &release.spec)?;
    let mut environment = environment.clone();
    environment.destroyed = false;
    environment.network = snapshot.network_for(env);
    Ok(start(snapshot, request, &environment, RolloutKind::Rollback, number))
}

/// Where a rollback goes that names no release: the newest below the serving one that ever served. While a candidate has
/// traffic, going back means that what serves has all of it.
pub fn rollback_target(snapshot: &Snapshot, environment: &Environment) -> Option<ReleaseNumber> {
    let mixed = environment.serving.filter(|_| environment.mix.is_some());
    let served = |r: &&std::sync::Arc<Release>| {
        r.served && environment.serving.is_none_or(|serving| r.number < serving)
    };
    mixed.or_else(|| snapshot.releases_of(&environment.env).rev().find(served).map(|r| r.number))
}

/// Supersedes what has not switched yet and records the new rollout, in one commit.
fn start(
    snapshot: &Snapshot,
    request: &Request,
    environment: &Environment,
    kind: RolloutKind,
    to: ReleaseNumber,
) -> Decision {
    let env = &environment.env;
    let id = snapshot.next_rollout.max(RolloutId(1));
    let mut mutations = vec![Mutation::PutEnvironment(environment.clone())];
    let mut events = vec![];
    let supersedes = |r: &&Arc<Rollout>| r.phase.is_before_switch() && !planted(Mutant::NoSupersede);
    for older in snapshot.active_rollouts(env).filter(supersedes) {
        let mut older = Rollout::clone(older);
        older.phase = RolloutPhase::Superseded;
        older.since = request.now;
        older.ended = Some(request.at);
        older.reason = Some(format!("rollout {id} to release {to} came"));
        events.push(event(
            request,
            env,
            "rollout.superseded",
            format!("rollout {}", older.id),
            format!("by {id}"),
        ));
        mutations.push(Mutation::PutRollout(Box::new(older)));
    }
    let verb = match kind {
        RolloutKind::Deploy => "deploy",
        RolloutKind::Rollback => "rollback",
    };
    events.push(event(request, env, verb, format!("release {to}"), format!("rollout {id}")));
    mutations.push(Mutation::PutRollout(Box::new(Rollout {
        id,
        env: env.clone(),
        kind,
        to,
        from: environment.serving,
        actor: request.actor.clone(),
        phase: RolloutPhase::Planned,
        since: request.now,
        begun: request.now,
        deadline: None,
        created: request.at,
        ended: None,
        step: None,
        switch: None,
        switched_after: None,
        failures: 0,
        reason: None,
        evidence: vec![],
        receipt: Receipt { opened: environment.receipt_end.clone(), ..Receipt::default() },
    })));
    Decision { mutations, events, outcome: Outcome::Started { rollout: id, release: to } }
}

fn scale(
    snapshot: &Snapshot,
    request: &Request,
    env: &EnvRef,
    instances: &BTreeMap<ServiceName, Option<u32>>,
) -> Result<Decision, Refusal> {
    let mut environment = existing(snapshot, env)?.clone();
    let number = environment.serving.or(newest_active(snapshot, env).map(|r| r.to));
    let release = number.and_then(|n| snapshot.release(env, n));
    let release = release.ok_or_else(|| Refusal::NoEnvironment { env: env.clone() })?;
    let mut events = vec![];
    for (service, count) in instances {
        if !release.spec.services.contains_key(service) {
            let (env, release, service) = (env.clone(), release.number, service.clone());
            return Err(Refusal::NoService { env, release, service });
        }
        if let Some(count) = count.filter(|c| *c > limits::INSTANCES_PER_SERVICE_MAX) {
            return Err(Refusal::TooMany { service: service.clone(), instances: count });
        }
        let detail = count.map_or("default".to_owned(), |c| c.to_string());
        events.push(event(request, env, "scale", format!("service {service}"), detail));
        match count {
            Some(count) => environment.scale.insert(service.clone(), *count),
            None => environment.scale.remove(service),
        };
    }
    Ok(Decision { mutations: vec![Mutation::PutEnvironment(environment)], events, outcome: Outcome::Scaled })
}

fn abort(snapshot: &Snapshot, request: &Request, env: &EnvRef) -> Result<Decision, Refusal> {
    existing(snapshot, env)?;
    let active = newest_active(snapshot, env).ok_or_else(|| Refusal::NoRollout { env: env.clone() })?;
    if !active.phase.is_before_switch() {
        return Err(Refusal::AlreadySwitched { env: env.clone(), rollout: active.id });
    }
    let rollout = ended(active, RolloutPhase::Aborted, request, format!("aborted by {}", request.actor));
    let events = vec![event(request, env, "abort", format!("rollout {}", active.id), String::new())];
    let outcome = Outcome::Aborted { rollout: active.id };
    Ok(Decision { mutations: vec![Mutation::PutRollout(Box::new(rollout))], events, outcome })
}

fn ended(rollout: &Rollout, phase: RolloutPhase, request: &Request, reason: String) -> Rollout {
    Rollout { phase, since: request.now, ended: Some(request.at), reason: Some(reason), ..rollout.clone() }
}

fn destroy(snapshot: &Snapshot, request: &Request, env: &EnvRef) -> Result<Decision, Refusal> {
    let mut environment = existing(snapshot, env)?.clone();
    environment.destroyed = true;
    environment.serving = None;
    environment.keep = None;
    environment.mix = None;
    let mut mutations = vec![Mutation::PutEnvironment(environment)];
    for rollout in snapshot.active_rollouts(env).filter(|r| r.phase.is_before_switch()) {
        let reason = format!("environment destroyed by {}", request.actor);
        mutations.push(Mutation::PutRollout(Box::new(ended(
            rollout,
            RolloutPhase::Aborted,
            request,
            reason,
        ))));
    }
    let events = vec![event(request, env, "destroy", format!("environment {env}"), String::new())];
    Ok(Decision { mutations, events, outcome: Outcome::Destroying })
}
