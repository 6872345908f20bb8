//! What a user may ask for. A command only changes desired state, in one commit; it never waits for it to come true.
//!
//! Each command has a file in `command/`; this one has what they have in common.

mod abort;
mod deploy;
mod destroy;
mod environment;
mod promote;
mod refusal;
mod requirement;
mod rollback;
mod rollout;
mod scale;
mod secret;

pub use promote::source;
pub use refusal::{NotMet, Refusal};
pub use requirement::{Unmet, requirements};
pub use rollback::rollback_target;
pub(crate) use rollout::free_routes;

use crate::recovery::World;
use kiln_model::{
    Boot, EnvName, EnvRef, Environment, Event, Millis, Mutation, Pause, ReleaseNumber, ReleaseSpec, Rollout,
    RolloutId, SecretContent, SecretName, SecretVersion, ServiceName, Snapshot, Wall,
};
use std::collections::BTreeMap;

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
    /// Move an environment to a new release with the images of a release of another one.
    Promote {
        /// Where to.
        env: EnvRef,
        /// Whose images.
        from: EnvName,
        /// Which of its releases; without it the one that serves.
        release: Option<ReleaseNumber>,
        /// What the release is: that commit, configured for `env`.
        spec: Box<ReleaseSpec>,
    },
    /// Carry out a deploy or a promotion also if what the environment requires is not met.
    Override {
        /// The deploy or promotion.
        command: Box<Command>,
        /// Why, for the record.
        reason: String,
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
    /// Make an environment without a release.
    CreateEnvironment {
        /// Which.
        env: EnvRef,
        /// The environment of the same project whose settings it gets.
        like: Option<EnvName>,
    },
    /// Give a secret a new value. It takes effect with the next release that is made.
    SetSecret {
        /// Of which environment.
        env: EnvRef,
        /// Which.
        name: SecretName,
        /// The value, sealed.
        content: SecretContent,
    },
    /// Take a secret out. Releases that have it keep it.
    UnsetSecret {
        /// Of which environment.
        env: EnvRef,
        /// Which.
        name: SecretName,
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
    /// End the recovery hold: adopt what serves, and leave the rest to the ordinary mechanism.
    Recover {
        /// What was seen of the world.
        world: Box<World>,
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
    /// The recovery hold ended.
    Recovered {
        /// Instances that have a row again.
        adopted: usize,
        /// Instances that are being removed.
        removed: usize,
    },
    /// The environment exists.
    Created,
    /// The secret has this version now.
    Secret {
        /// Which.
        version: SecretVersion,
    },
}

/// Decides on a command.
pub fn decide(snapshot: &Snapshot, request: &Request) -> Result<Decision, Refusal> {
    in_hold(snapshot, &request.command)?;
    readable(snapshot, &request.command)?;
    match &request.command {
        Command::Deploy { env, spec } => deploy::deploy(snapshot, request, env, spec, None),
        Command::Promote { env, from, release, spec } => {
            promote::promote(snapshot, request, (env, spec), (from, *release), None)
        }
        Command::Override { command, reason } => match &**command {
            Command::Deploy { env, spec } => deploy::deploy(snapshot, request, env, spec, Some(reason)),
            Command::Promote { env, from, release, spec } => {
                promote::promote(snapshot, request, (env, spec), (from, *release), Some(reason))
            }
            other => decide(snapshot, &Request { command: other.clone(), ..request.clone() }),
        },
        Command::Rollback { env, to } => rollback::rollback(snapshot, request, env, *to),
        Command::Scale { env, instances } => scale::scale(snapshot, request, env, instances),
        Command::Abort { env } => abort::abort(snapshot, request, env),
        Command::Destroy { env } => destroy::destroy(snapshot, request, env),
        Command::CreateEnvironment { env, like } => {
            environment::create(snapshot, request, env, like.as_ref())
        }
        Command::SetSecret { env, name, content } => secret::set(snapshot, request, env, name, content),
        Command::UnsetSecret { env, name } => secret::unset(snapshot, request, env, name),
        Command::Pause { env, reason } => crate::pause::pause(snapshot, request, env.as_ref(), reason),
        Command::Resume { env } => crate::pause::resume(snapshot, request, env.as_ref()),
        Command::Recover { world } => crate::recovery::recover(snapshot, request, world),
    }
}

/// Nothing is decided on state that is older than the world: its numbers may be given already.
fn in_hold(snapshot: &Snapshot, command: &Command) -> Result<(), Refusal> {
    let about_the_hold =
        matches!(command, Command::Recover { .. } | Command::Pause { .. } | Command::Resume { .. });
    match &snapshot.recovery {
        Some(recovery) if !about_the_hold => Err(Refusal::Recovering { reason: recovery.reason.clone() }),
        _ => Ok(()),
    }
}

/// Nothing is decided on what cannot be read. Pausing the whole server is always possible.
fn readable(snapshot: &Snapshot, command: &Command) -> Result<(), Refusal> {
    let env = match command {
        Command::Deploy { env, .. }
        | Command::Promote { env, .. }
        | Command::Rollback { env, .. }
        | Command::Scale { env, .. }
        | Command::Abort { env }
        | Command::Destroy { env }
        | Command::CreateEnvironment { env, .. }
        | Command::SetSecret { env, .. }
        | Command::UnsetSecret { env, .. } => env,
        Command::Override { command, .. } => return readable(snapshot, command),
        Command::Pause { .. } | Command::Resume { .. } | Command::Recover { .. } => return Ok(()),
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
