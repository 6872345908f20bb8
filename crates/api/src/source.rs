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
}
