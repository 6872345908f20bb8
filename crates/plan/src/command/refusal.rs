//! Why a command is refused, and what the user can do about it.

use super::requirement::Unmet;
use kiln_model::{
    CommitId, EnvName, EnvRef, ImageName, Millis, ReleaseNumber, RolloutId, SecretName, ServiceName, limits,
};

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
        /// Host and path, or `tcp:PORT`.
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
    /// There is such an environment.
    #[error("there is an environment `{env}` already")]
    EnvironmentExists {
        /// Which.
        env: EnvRef,
    },
    /// Nothing serves, so there is nothing to promote.
    #[error("no release of `{env}` serves")]
    NothingServes {
        /// Which environment.
        env: EnvRef,
    },
    /// The release never served, so nobody has seen that it works.
    #[error("release {release} of `{env}` never served")]
    NeverServed {
        /// Of which environment.
        env: EnvRef,
        /// Which.
        release: ReleaseNumber,
    },
    /// The release that is promoted does not have an image that is needed.
    #[error("release {release} of `{env}` has no image `{image}`, which the other environment needs")]
    LacksImage {
        /// Of which environment.
        env: EnvRef,
        /// Which.
        release: ReleaseNumber,
        /// The image.
        image: ImageName,
    },
    /// The images have not shown what the environment requires.
    #[error(transparent)]
    RequirementNotMet(Box<NotMet>),
    /// An override without a reason.
    #[error("the reason for an override has to be one line of 1 to {} bytes", limits::REASON_BYTES_MAX)]
    NoReason,
    /// Nothing is paused.
    #[error("{} is not paused", env.as_ref().map_or("the server".to_owned(), |env| format!("`{env}`")))]
    NotPaused {
        /// Which environment; none for the whole server.
        env: Option<EnvRef>,
    },
    /// A pause that was not explained.
    #[error("a reason of 1 to {} bytes is needed", limits::REASON_BYTES_MAX)]
    NoPauseReason,
    /// What the store has of the environment cannot be read.
    #[error("`{env}` is on hold: {what} cannot be read")]
    Damaged {
        /// Which environment.
        env: EnvRef,
        /// Which row.
        what: String,
    },
    /// The state is older than what runs.
    #[error("the state is older than what runs: {reason}")]
    Recovering {
        /// What showed it.
        reason: String,
    },
    /// There is no hold to end.
    #[error("there is no recovery hold")]
    NotRecovering,
    /// Neither the provider nor the edge may be unknown when a hold ends.
    #[error("what runs is not known: the edge or the provider has not answered yet")]
    Unseen,
    /// A hold on state that cannot be read does not end.
    #[error("{what} cannot be read")]
    DamagedHold {
        /// Which row.
        what: String,
    },
    /// A service needs a secret that is not set.
    #[error("service `{service}` needs the secret `{secret}`, which is not set in `{env}`")]
    SecretNotSet {
        /// In which environment.
        env: EnvRef,
        /// Which service.
        service: ServiceName,
        /// Which secret.
        secret: SecretName,
    },
    /// The secrets of a service have too many bytes.
    #[error(
        "the secrets of service `{service}` in `{env}` have {bytes} bytes: at most {}",
        limits::SECRETS_PER_SERVICE_BYTES_MAX
    )]
    SecretsTooLarge {
        /// In which environment.
        env: EnvRef,
        /// Which service.
        service: ServiceName,
        /// How many.
        bytes: usize,
    },
    /// More secrets than kiln allows.
    #[error("`{env}` has {} secrets already", limits::SECRETS_MAX)]
    TooManySecrets {
        /// Which environment.
        env: EnvRef,
    },
    /// No such secret.
    #[error("the secret `{secret}` is not set in `{env}`")]
    NoSecret {
        /// In which environment.
        env: EnvRef,
        /// Which.
        secret: SecretName,
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
            Refusal::Recovering { .. } => Some(
                "`kiln recover --plan` shows what it would adopt and remove, `kiln recover` does it".into(),
            ),
            Refusal::NotRecovering => Some("`kiln status` shows what there is".into()),
            Refusal::Unseen => Some("try again in a moment; `kiln why` says what does not answer".into()),
            Refusal::DamagedHold { .. } => {
                Some("restore another backup: `kiln restore FILE --replace`".into())
            }
            Refusal::RouteTaken { .. } => Some(
                "give one of them another `host`, `path` or `tcp` port, or `kiln destroy` the other".into(),
            ),
            Refusal::AlreadySwitched { .. } => {
                Some("`kiln rollback` brings the previous release back".into())
            }
            Refusal::EnvironmentExists { env } => {
                Some(format!("`kiln environment show {}` shows it", env.env))
            }
            Refusal::NothingServes { env } => {
                Some(format!("`kiln deploy --env {}` first, or name a release with `--release N`", env.env))
            }
            Refusal::NeverServed { .. } => Some("`kiln release list` shows which releases served".into()),
            Refusal::LacksImage { .. } => {
                Some("deploy the commit instead: `kiln deploy --env ENV --ref COMMIT`".into())
            }
            Refusal::RequirementNotMet(not_met) => Some(not_met.hint()),
            Refusal::NoReason => Some("say why, as in `--override \"fixes the outage\"`".into()),
            Refusal::NotPaused { .. } => Some("`kiln status` shows what is paused".into()),
            Refusal::NoPauseReason => {
                Some("say why with `--reason TEXT`; `kiln status` shows it to others".into())
            }
            Refusal::Damaged { .. } => {
                Some("restore the state from a backup; until then what runs of it is left alone".into())
            }
            Refusal::SecretNotSet { env, secret, .. } => Some(format!(
                "`kiln secret set {secret} --env {}` reads its value from the terminal or stdin",
                env.env
            )),
            Refusal::SecretsTooLarge { .. } => {
                Some("give large files to the image, and keep only the key secret".into())
            }
            Refusal::TooManySecrets { env } => {
                Some(format!("`kiln secret unset NAME --env {}` makes room", env.env))
            }
            Refusal::NoSecret { env, .. } => {
                Some(format!("`kiln secret list --env {}` shows those that are set", env.env))
            }
        }
    }
}

/// What an environment requires of images, and what is missing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{env}` takes only images that `{required}` served for {time}: {unmet}")]
pub struct NotMet {
    /// Which environment.
    pub env: EnvRef,
    /// The commit that was asked for.
    pub commit: CommitId,
    /// Who has to have served them.
    pub required: EnvName,
    /// For how long.
    pub time: Millis,
    /// What is missing.
    pub unmet: Unmet,
}

impl NotMet {
    fn hint(&self) -> String {
        let Self { commit, required, unmet, .. } = self;
        let first = match unmet {
            Unmet::TooShort { missing, runs: true, .. } => format!("ask again in {missing}"),
            Unmet::TooShort { .. } | Unmet::Never => {
                format!("`kiln deploy --env {required} --ref {}` first", commit.short())
            }
            Unmet::TakenBack => format!("mend it and deploy it to `{required}` again"),
        };
        format!("{first}; `--override REASON` goes on all the same and is recorded")
    }
}
