//! How a request fails: one row of the error table for each way, as JSON.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use kiln_api::{Code, ErrorBody, WireError, error::chain};
use kiln_control::{KeysError, SubmitError, VaultError, WorkshopError};
use kiln_image::kernel::KernelError;
use kiln_image::replicate::ReplicateError;
use kiln_plan::Refusal;
use kiln_store::StoreError;

/// An answer that is not a success.
#[derive(Debug)]
pub(crate) struct Failure(pub WireError);

impl Failure {
    /// A failure with the hint of the table.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self(WireError::new(code, message, Some(code.entry().help.to_owned())))
    }

    /// A failure with a hint of its own, if it has one.
    pub(crate) fn hinted(code: Code, message: String, hint: Option<String>) -> Self {
        Self(WireError::new(code, message, hint))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.entry().status);
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(ErrorBody { error: self.0 })).into_response()
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            error if error.is_disk_full() => Code::DiskFull,
            // Whoever leads next knows whether it happened.
            StoreError::LeaseLost { .. } => Code::Unavailable,
            error if error.is_unreachable() => Code::Unavailable,
            _ => Code::Store,
        };
        Self::new(code, chain(&error))
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let code = match &refusal {
            Refusal::NoEnvironment { .. } => Code::NoEnvironment,
            Refusal::NoRelease { .. } => Code::NoRelease,
            Refusal::NotBaked { .. } => Code::NotBaked,
            Refusal::NothingBefore { .. } => Code::NothingBefore,
            Refusal::NoService { .. } => Code::NoService,
            Refusal::TooMany { .. } => Code::TooMany,
            Refusal::RouteTaken { .. } => Code::RouteTaken,
            Refusal::NoRollout { .. } => Code::NoRollout,
            Refusal::AlreadySwitched { .. } => Code::AlreadySwitched,
            Refusal::EnvironmentExists { .. } => Code::EnvironmentExists,
            Refusal::NothingServes { .. } => Code::NothingServes,
            Refusal::NeverServed { .. } => Code::NeverServed,
            Refusal::LacksImage { .. } => Code::NoImage,
            Refusal::RequirementNotMet(_) => Code::RequirementNotMet,
            Refusal::NoReason | Refusal::NoPauseReason => Code::Usage,
            Refusal::SecretNotSet { .. } => Code::SecretNotSet,
            Refusal::SecretsTooLarge { .. } => Code::TooLarge,
            Refusal::TooManySecrets { .. } => Code::TooMany,
            Refusal::NoSecret { .. } => Code::NoSecret,
            Refusal::NotPaused { .. } => Code::NotPaused,
            Refusal::Damaged { .. } | Refusal::DamagedHold { .. } => Code::OnHold,
            Refusal::Recovering { .. } => Code::Recovering,
            Refusal::NotRecovering => Code::NotRecovering,
            Refusal::Unseen => Code::Unavailable,
        };
        Self::hinted(code, refusal.to_string(), refusal.hint())
    }
}

impl From<SubmitError> for Failure {
    fn from(error: SubmitError) -> Self {
        match error {
            error @ SubmitError::KeyReused { .. } => Self::new(Code::KeyReused, error.to_string()),
            SubmitError::Refused(refusal) => refusal.into(),
            SubmitError::Store(error) => error.into(),
        }
    }
}

impl From<WorkshopError> for Failure {
    fn from(error: WorkshopError) -> Self {
        if error.is_disk_full() {
            return Self::new(Code::DiskFull, chain(&error));
        }
        let code = match &error {
            WorkshopError::NoSource { .. } => Code::NoSource,
            WorkshopError::Source { .. } => Code::SourceRefused,
            WorkshopError::Spec(errors) => {
                let mut failure = Self::hinted(Code::InvalidProject, errors.message(), errors.hint());
                failure.0.details = errors.details();
                return failure;
            }
            WorkshopError::NoSpec { .. }
            | WorkshopError::OtherProject { .. }
            | WorkshopError::Lock { .. }
            | WorkshopError::StaleLock { .. }
            | WorkshopError::NoServices { .. } => Code::InvalidProject,
            WorkshopError::Resolve { mirror: true, .. } => Code::Mirror,
            WorkshopError::Resolve { .. } | WorkshopError::Base { .. } => Code::LockFailed,
            WorkshopError::Kernel(error) if matches!(**error, KernelError::Mirror(_)) => Code::Mirror,
            WorkshopError::Bake(_) | WorkshopError::Kernel(_) => Code::BakeFailed,
            WorkshopError::Policy(_) => Code::ImageRefused,
            WorkshopError::Sbom(_) => Code::ImageBroken,
            WorkshopError::Trust(_) => Code::Keys,
            WorkshopError::Replicate(ReplicateError::Objects(_)) => Code::Store,
            WorkshopError::Replicate(_) => Code::LayerRefused,
            WorkshopError::Objects(_) | WorkshopError::State { .. } => Code::Store,
        };
        Self::hinted(code, chain(&error), error.hint())
    }
}

impl From<KeysError> for Failure {
    fn from(error: KeysError) -> Self {
        let code = match &error {
            KeysError::Ledger(_) => Code::Store,
            _ => Code::Keys,
        };
        Self::hinted(code, chain(&error), Some(error.hint().to_owned()))
    }
}

impl From<VaultError> for Failure {
    fn from(error: VaultError) -> Self {
        Self::hinted(Code::SecretUnreadable, chain(&error), Some(error.hint()))
    }
}

impl From<tokio::task::JoinError> for Failure {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::new(Code::Internal, error.to_string())
    }
}
