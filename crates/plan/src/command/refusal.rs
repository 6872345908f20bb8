//! Why a command is refused, and what the user can do about it.

use kiln_model::{EnvRef, ReleaseNumber, RolloutId, ServiceName, limits};

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
            Refusal::RouteTaken { .. } => {
                Some("give one of them another `host` or `path`, or `kiln destroy` the other".into())
            }
            Refusal::AlreadySwitched { .. } => {
                Some("`kiln rollback` brings the previous release back".into())
            }
        }
    }
}
