//! Backups of kiln's own state, and the end of the hold that follows a restore.

use kiln_model::{
    Digest, EnvRef, InstanceId, Millis, ReleaseNumber, SecretName, SecretVersion, ServiceName, Wall,
};
use serde::{Deserialize, Serialize};

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupView {
    /// The file.
    pub file: String,
    /// The kiln that wrote it.
    pub kiln: String,
    /// When it was taken.
    pub created: Wall,
    /// Of which commit of the state.
    pub revision: u64,
    /// Of which history of the state.
    pub incarnation: u64,
    /// Environments, also destroyed ones.
    pub environments: usize,
    /// Releases of all of them.
    pub releases: usize,
    /// Instances that were not gone.
    pub instances: usize,
    /// Versions of secrets, sealed.
    pub secrets: usize,
    /// Entries of the ledger.
    pub entries: usize,
    /// Bytes of the file.
    pub bytes: u64,
    /// The images that its releases need. They are not in it.
    pub images: Vec<Digest>,
}

/// The answer to `kiln restore`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreView {
    /// What was restored.
    pub backup: BackupView,
    /// False for a dry run.
    pub done: bool,
    /// The history that begins.
    pub incarnation: u64,
    /// Where the state that was there is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<String>,
    /// Images that the folder does not have.
    pub missing: Vec<Digest>,
    /// Values of secrets that no key in the folder opens.
    pub sealed: usize,
}

/// End a recovery hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoverRequest {
    /// Only say what would be done.
    #[serde(default)]
    pub plan: bool,
}

/// State that is older than what runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryView {
    /// What showed it.
    pub reason: String,
    /// For how long nothing has begun.
    pub since_ms: Millis,
    /// The command that helps.
    pub command: String,
}

/// What the end of a hold does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoverView {
    /// False for a plan.
    pub done: bool,
    /// Why there is a hold.
    pub reason: String,
    /// Environments whose serving release becomes another one.
    pub serving: Vec<ServesView>,
    /// Get their rows back.
    pub adopted: Vec<AdoptedView>,
    /// Serve nothing, or nobody knows what they are of: removed when the edge has a table without them.
    pub removed: Vec<RemovedView>,
    /// The state wants them and nothing of them runs: they are started.
    pub started: Vec<StartedView>,
    /// Values of secrets that were set after the backup was taken: an instance that is replaced lacks them.
    pub lost_secrets: Vec<LostSecretView>,
}

/// A change of what serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServesView {
    /// Which environment.
    pub env: EnvRef,
    /// What serves by the state.
    pub state: Option<ReleaseNumber>,
    /// What the edge sends to. The first serves; with a second one it shares the traffic.
    pub world: Vec<ReleaseNumber>,
}

/// An instance that is adopted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptedView {
    /// Which.
    pub instance: InstanceId,
    /// Whose.
    pub env: EnvRef,
    /// Of which release.
    pub release: ReleaseNumber,
    /// Of which service.
    pub service: ServiceName,
}

/// An instance that is removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedView {
    /// Which.
    pub instance: InstanceId,
    /// Whose, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<EnvRef>,
    /// Whether the edge sends to it now.
    pub serves: bool,
    /// Why it is not adopted.
    pub why: String,
}

/// A service that is started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartedView {
    /// Whose.
    pub env: EnvRef,
    /// Of which release.
    pub release: ReleaseNumber,
    /// Which.
    pub service: ServiceName,
}

/// A value that is lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostSecretView {
    /// Of which environment.
    pub env: EnvRef,
    /// Which secret.
    pub name: SecretName,
    /// Which version.
    pub version: SecretVersion,
}
