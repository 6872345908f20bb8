//! What a user may ask for. A command only changes desired state, in one commit; it never waits for it to come true.
//!
//! Each command has a file in `command/`; this one has what they have in common.

mod abort;
mod deploy;
mod destroy;
mod refusal;
mod rollback;
mod rollout;
mod scale;

pub use refusal::Refusal;

use kiln_model::{
    Boot, EnvRef, Environment, Event, Mutation, ReleaseNumber, ReleaseSpec, Rollout, RolloutId, ServiceName,
    Snapshot, Wall,
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
#[derive(Debug, Clone, PartialEq, Eq)]
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
}

/// Decides on a command.
pub fn decide(snapshot: &Snapshot, request: &Request) -> Result<Decision, Refusal> {
    match &request.command {
        Command::Deploy { env, spec } => deploy::deploy(snapshot, request, env, spec),
        Command::Rollback { env, to } => rollback::rollback(snapshot, request, env, *to),
        Command::Scale { env, instances } => scale::scale(snapshot, request, env, instances),
        Command::Abort { env } => abort::abort(snapshot, request, env),
        Command::Destroy { env } => destroy::destroy(snapshot, request, env),
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
    snapshot.active_rollouts(env).last().map(AsRef::as_ref)
}
