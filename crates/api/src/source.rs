//! Sources: the commits that the server keeps.

use kiln_model::{CommitId, ProjectName};
use serde::{Deserialize, Serialize};

/// Whether the server has a commit with all of its tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceView {
    /// The project.
    pub project: ProjectName,
    /// The commit.
    pub commit: CommitId,
    /// Whether it is there, durable.
    pub present: bool,
    /// Commits of the project that are there, some of the newest: an upload may leave out what they have too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub known: Vec<CommitId>,
}
