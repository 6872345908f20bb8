//! What instances printed, while they live and after they are gone.

use kiln_model::{
    CommitId, Digest, EnvName, EnvRef, InstanceId, ProjectName, ReleaseNumber, ServiceName, Wall,
};
use serde::{Deserialize, Serialize};

/// Which lines. Filters that are given must all match.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogQuery {
    /// Only of this project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectName>,
    /// Only of this environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<EnvName>,
    /// Only of this service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// Only of this release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseNumber>,
    /// Only of this instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// Only of commits that start with this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Only from that time on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Wall>,
    /// Only lines that contain this text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grep: Option<String>,
    /// Only the newest so many lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<usize>,
    /// Go on with what comes.
    #[serde(default)]
    pub follow: bool,
}

/// One line of the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When the supervisor read it.
    pub at: Wall,
    /// Whose.
    pub env: EnvRef,
    /// Of which service.
    pub service: ServiceName,
    /// Of which release.
    pub release: ReleaseNumber,
    /// Of which instance.
    pub instance: InstanceId,
    /// What it runs.
    pub image: Digest,
    /// Of which commit.
    pub commit: CommitId,
    /// `out`, `err` or `kiln` (its supervisor).
    pub stream: String,
    /// Its number within the instance.
    pub sequence: u64,
    /// The text; bytes that are not UTF-8 are replaced.
    pub line: String,
}
